-- Gives a generation to a worker: mints an attempt under a new mark. Refuses while another lease lives, so a
-- second lane entry never fences a healthy run. A repeat with the same mark answers the same and counts once.
--
-- KEYS[1] meta  KEYS[2] log  KEYS[3] interest (hash: hub mailbox → demand)
-- ARGV    mark, owner (mailbox), lease in ms, ttl in ms
-- returns {"GONE"} | {"TERMINAL"} | {"FENCED"} | {"LEASED"} | {"OK", next offset, attempt, runs, cancel, shown, losses,
--          request, options, user, bytes already in the log, {mailbox, demand, …},
--          abandon rule set by a detach, or empty, what a provider still writes, or empty: see remember.lua}
local m = redis.call('HMGET', KEYS[1], 'state', 'mark', 'owner', 'lease', 'attempt', 'runs', 'losses', 'barren')
if not m[1] then return {'GONE'} end
if m[1] == 'done' then return {'TERMINAL'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local top = redis.call('XLEN', KEYS[2])
local attempt, runs, losses = tonumber(m[5]), m[6], tonumber(m[7])
if m[2] ~= ARGV[1] then
  -- A claim that was under way for ever: its attempt wrote, and was replaced. No mark comes back.
  if string.find(runs .. ' ', ':' .. ARGV[1] .. ' ', 1, true) then return {'FENCED'} end
  if m[3] ~= '' then
    if tonumber(m[4]) > now then return {'LEASED'} end
    losses = losses + 1
    redis.call('HSET', KEYS[1], 'losses', losses, 'barren', tonumber(m[8]) + 1)
  end
  attempt = attempt + 1
  -- A run that starts above the top never held an entry: the new one takes its place.
  local first, kept = top + 1, {}
  for start, mark in string.gmatch(runs, '(%d+):(%S+)') do
    if tonumber(start) < first then kept[#kept + 1] = start .. ':' .. mark end
  end
  kept[#kept + 1] = first .. ':' .. ARGV[1]
  runs = table.concat(kept, ' ')
end
redis.call('HSET', KEYS[1], 'state', 'running', 'mark', ARGV[1], 'owner', ARGV[2], 'attempt', attempt,
  'runs', runs, 'lease', string.format('%.0f', now + ARGV[3]))
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
local bytes = 0
if attempt > 1 then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do bytes = bytes + #entry[2][4] end
end
local f = redis.call('HMGET', KEYS[1], 'cancel', 'shown', 'request', 'options', 'user', 'abandon', 'underway')
return {'OK', top + 1, attempt, runs, tonumber(f[1]), tonumber(f[2]), losses, f[3], f[4], f[5], bytes,
  redis.call('HGETALL', KEYS[3]), f[6] or '', f[7] or ''}
