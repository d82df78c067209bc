-- Cancels: a fact in Redis before it is a message. Idempotent; cancelling what is finished is fine.
--
-- KEYS[1] meta  KEYS[2] log  KEYS[3] interest
-- ARGV    user, 1 if a scope lets this user cancel for others, data of a `done cancelled` entry, ttl in ms
-- returns {"ABSENT"} absent or foreign, not told apart | {"DONE"} was finished
--         | {"ENDED", offset, mark, {mailbox, demand, …}} nobody had claimed it: `done` was appended here
--         | {"FLAGGED", owner} its owner, or whoever claims next, ends it
local m = redis.call('HMGET', KEYS[1], 'user', 'state', 'attempt', 'mark', 'owner')
if not m[1] or (m[1] ~= ARGV[1] and ARGV[2] ~= '1') then return {'ABSENT'} end
if m[2] == 'done' then return {'DONE'} end
if m[3] ~= '0' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  return {'FLAGGED', m[5]}
end
local offset = redis.call('XLEN', KEYS[2]) + 1
local watchers = redis.call('HGETALL', KEYS[3])
redis.call('XADD', KEYS[2], offset .. '-0', 'k', 'done', 'd', ARGV[3])
redis.call('HSET', KEYS[1], 'state', 'done', 'cancel', 1)
redis.call('HDEL', KEYS[1], 'request')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('DEL', KEYS[3])
return {'ENDED', offset, m[4], watchers}
