-- Keeps what the next worker needs to read on what a provider still writes for this attempt; empty: forget it.
--
-- KEYS[1] meta
-- ARGV    mark, what to keep
-- returns {"OK"} | {"GONE"} | {"FENCED"} | {"TERMINAL"}
local m = redis.call('HMGET', KEYS[1], 'mark', 'state')
if not m[1] then return {'GONE'} end
if m[1] ~= ARGV[1] then return {'FENCED'} end
if m[2] == 'done' then return {'TERMINAL'} end
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], 'underway')
else redis.call('HSET', KEYS[1], 'underway', ARGV[2]) end
return {'OK'}
