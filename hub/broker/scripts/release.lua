-- A draining worker hands its generation back: no lease to wait for, no loss counted. The lease ends now, which
-- tells since when it waits.
--
-- KEYS[1] meta
-- ARGV    mark
-- returns {"OK"} | {"GONE"} | {"FENCED"} | {"TERMINAL"}
local m = redis.call('HMGET', KEYS[1], 'mark', 'state')
if not m[1] then return {'GONE'} end
if m[1] ~= ARGV[1] then return {'FENCED'} end
if m[2] == 'done' then return {'TERMINAL'} end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'owner', '', 'lease', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return {'OK'}
