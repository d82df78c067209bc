-- Creates a stream with its first entry, only if it is absent. A repeat changes nothing.
--
-- KEYS[1] meta   hash    state    queued | running | done
--                        mark     mark of the newest attempt, of the creation before there is one
--                        runs     "first:mark first:mark …", contiguous runs of marks
--                        attempt  attempts claimed so far
--                        losses   attempts whose lease ran out; barren: those since the last content entry
--                        owner    mailbox of the worker that holds the lease, empty when nobody does
--                        lease    server time in ms when the lease ends
--                        cancel   1 once somebody cancelled
--                        shown    1 while content is visible that a restart must reset
--                        user     who asked; request, options: MessagePack; lane; created: server time, ms
--                        abandon  rule that a detach set in place of the option, absent until then
--                        underway what a provider writes for it without a reader, absent unless there is such a thing
-- KEYS[2] log    stream  entries N-0: k kind, d data
-- ARGV    mark, data of the `queued` entry, user, request, options, lane, ttl in ms
-- returns {"CREATED" | "EXISTS", state}
local state = redis.call('HGET', KEYS[1], 'state')
if state then return {'EXISTS', state} end
local now = redis.call('TIME')
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'state', 'queued', 'mark', ARGV[1], 'runs', '1:' .. ARGV[1], 'attempt', 0,
  'losses', 0, 'barren', 0, 'owner', '', 'lease', 0, 'cancel', 0, 'shown', 0, 'user', ARGV[3],
  'request', ARGV[4], 'options', ARGV[5], 'lane', ARGV[6],
  'created', string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)))
redis.call('XADD', KEYS[2], '1-0', 'k', 'queued', 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return {'CREATED', 'queued'}
