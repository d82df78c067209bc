-- A draining worker hands its generation back: no lease to wait for, no loss counted.
--
-- KEYS[1] meta
-- ARGV    mark
-- returns {"OK"} | {"GONE"} | {"FENCED"} | {"TERMINAL"}
local m = redis.call('HMGET', KEYS[1], 'mark', 'state')
if not m[1] then return {'GONE'} end
if m[1] ~= ARGV[1] then return {'FENCED'} end
if m[2] == 'done' then return {'TERMINAL'} end
redis.call('HSET', KEYS[1], 'owner', '', 'lease', 0)
return {'OK'}
