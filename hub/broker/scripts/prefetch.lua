-- Counts a prefetch of one user, or says why it must wait. A repeat of one that was counted changes nothing.
--
-- KEYS[1] prefetched  sorted set: request keys of the last hour, by time
-- KEYS[2] prefetching hash: request key -> digest of the conversation, of those that may run
-- ARGV    request key, digest of the conversation, most in an hour, most at a time, the hour in ms,
--         ttl of `prefetching` in ms
-- returns {"OK", 0} | {"SPENT", ms until there is one more} | {"BUSY", 0}
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return {'OK', 0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local hour = tonumber(ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - hour)
local count = redis.call('ZCARD', KEYS[1])
if count >= tonumber(ARGV[3]) then
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return {'SPENT', oldest[2] + hour - now}
end
if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[4]) then return {'BUSY', 0} end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('PEXPIRE', KEYS[1], hour)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return {'OK', 0}
