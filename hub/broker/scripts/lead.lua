-- Names the stream that answers a kind of request; if there is none, or only one that is of no use, this one.
-- A repeat changes nothing.
--
-- KEYS[1] answer (string: key of the stream whose log holds the answer, or will)
-- ARGV    the caller's stream, ttl in ms, a stream known to be of no use (empty: none)
-- returns the stream to follow, or the caller's own
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[3] then return leader end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
