-- Appends a frozen batch of entries. All of it or nothing; a repeat is DUP, which means "in the log" as OK does.
-- A batch that is partly there (Redis lost the end of it) is completed.
--
-- KEYS[1] meta  KEYS[2] log  KEYS[3] interest
-- ARGV    1 mark, 2 offset of the first entry, 3 "c" the first content of this attempt | "r" a reset
--         | "k" a `done` after which the request is kept, for a dead letter | "",
--         4 lease in ms to renew (0: young enough), 5 ttl in ms if the batch ends with `done` (0 otherwise),
--         6… kind, data, kind, data, …
-- returns {"GONE", 0} the stream is not there and is never made again | {"FENCED", 0} | {"TERMINAL", 0}
--         | {"GAP", top} | {"OK" | "DUP", 1 if somebody cancelled}
local m = redis.call('HMGET', KEYS[1], 'mark', 'state', 'cancel')
if not m[1] then return {'GONE', 0} end
if m[1] ~= ARGV[1] then return {'FENCED', 0} end
local first = tonumber(ARGV[2])
local last = first + (#ARGV - 5) / 2 - 1
local top = redis.call('XLEN', KEYS[2])
if last <= top then return {'DUP', tonumber(m[3])} end
if m[2] == 'done' then return {'TERMINAL', 0} end
if first > top + 1 then return {'GAP', top} end
for offset = top + 1, last do
  local i = 6 + (offset - first) * 2
  redis.call('XADD', KEYS[2], offset .. '-0', 'k', ARGV[i], 'd', ARGV[i + 1])
end
-- A log that was lost without its meta is made again with an end.
if top == 0 then redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1])) end
if ARGV[3] == 'c' then redis.call('HSET', KEYS[1], 'shown', 1, 'barren', 0)
elseif ARGV[3] == 'r' then redis.call('HSET', KEYS[1], 'shown', 0) end
if ARGV[5] ~= '0' then
  redis.call('HSET', KEYS[1], 'state', 'done', 'owner', '', 'lease', 0)
  redis.call('HDEL', KEYS[1], 'underway')
  if ARGV[3] ~= 'k' then redis.call('HDEL', KEYS[1], 'request') end
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
  redis.call('DEL', KEYS[3])
elseif ARGV[4] ~= '0' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'lease',
    string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4]))
end
return {'OK', tonumber(m[3])}
