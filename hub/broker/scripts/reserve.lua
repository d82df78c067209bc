-- Reserves a request key for a stream, or tells which stream holds it. A repeat changes nothing.
--
-- KEYS[1] request      string "stream digest accepted", accepted being 1 once the request is in a lane
-- KEYS[2] user_streams sorted set: the user's streams by creation
-- ARGV    stream, digest of the body, ttl of the key in ms, streams kept for `list`
-- returns the stored value
local stored = redis.call('GET', KEYS[1])
if stored then return stored end
local value = ARGV[1] .. ' ' .. ARGV[2] .. ' 0'
redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return value
