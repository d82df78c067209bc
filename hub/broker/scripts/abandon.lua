-- Changes what happens to a generation when nobody is left to watch. A repeat changes nothing.
--
-- KEYS[1] meta
-- ARGV    user, 1 if a scope lets this user decide for others, rule (cancel | continue)
-- returns {"ABSENT"} absent or foreign, not told apart | {"OK", owner}
local m = redis.call('HMGET', KEYS[1], 'user', 'owner')
if not m[1] or (m[1] ~= ARGV[1] and ARGV[2] ~= '1') then return {'ABSENT'} end
redis.call('HSET', KEYS[1], 'abandon', ARGV[3])
return {'OK', m[2]}
