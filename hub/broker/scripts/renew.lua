-- Renews the lease of a generation, and names the owner anew: a worker's mailbox may have changed.
--
-- KEYS[1] meta  KEYS[2] log  KEYS[3] interest
-- ARGV    mark, owner (mailbox), lease in ms, ttl in ms
-- returns {"GONE"} | {"FENCED"} | {"TERMINAL"} | {"OK", cancel, {mailbox, demand, …}}
local m = redis.call('HMGET', KEYS[1], 'mark', 'state', 'cancel')
if not m[1] then return {'GONE'} end
if m[1] ~= ARGV[1] then return {'FENCED'} end
if m[2] == 'done' then return {'TERMINAL'} end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'lease',
  string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]))
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return {'OK', tonumber(m[3]), redis.call('HGETALL', KEYS[3])}
