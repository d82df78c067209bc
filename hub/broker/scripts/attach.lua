-- Registers a hub's interest in a stream and tells what it must know to serve a viewer. Interest is written
-- before the owner is read: whoever claims later finds it, whoever owns it now is the one to announce to.
--
-- KEYS[1] meta  KEYS[2] log  KEYS[3] interest
-- ARGV    user, 1 if a scope lets this user read for others, hub mailbox (empty: only look), demand,
--         entries past the top that any viewer may ask for (empty: not known): demand beyond them is a cursor
--         that no log here ever reached, and would let the worker run ahead without end
-- returns {"ABSENT"} absent or foreign, not told apart | {"OK", state, top, runs, owner, cancel}
local m = redis.call('HMGET', KEYS[1], 'user', 'state', 'runs', 'owner', 'cancel')
if not m[1] or (m[1] ~= ARGV[1] and ARGV[2] ~= '1') then return {'ABSENT'} end
local top = redis.call('XLEN', KEYS[2])
if ARGV[3] ~= '' and m[2] ~= 'done' then
  local demand = tonumber(ARGV[4])
  if ARGV[5] ~= '' then demand = math.min(demand, top + ARGV[5]) end
  redis.call('HSET', KEYS[3], ARGV[3], string.format('%.0f', demand))
  redis.call('PEXPIRE', KEYS[3], redis.call('PTTL', KEYS[1]))
end
return {'OK', m[2], top, m[3], m[4], tonumber(m[5])}
