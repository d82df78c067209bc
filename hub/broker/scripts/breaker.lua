-- One breaker: how a provider's model fared with one credential lately. Says whether it may be asked.
--
-- KEYS[1] breaker (hash: ok, bad, since = start of the window; open = kept out until; trial = another may try at; all ms)
-- ARGV    1 "look" | "enter" | "ok" | "bad" | "cool", 2 ms: with "bad" how long it opens, with "cool" at least how long;
--         3 window in ms, 4 failures that open it, 5 ms between two trials of one that failed, 6 ttl in ms
-- returns {state, ms}: "closed", 0 | "open", how long it is kept out | "trial", 0: one request may try it now;
--         after "enter" the one that asks is that request, and for others it is "open" until the next trial is due
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local m = redis.call('HMGET', KEYS[1], 'ok', 'bad', 'since', 'open', 'trial')
local ok, bad, since = tonumber(m[1]) or 0, tonumber(m[2]) or 0, tonumber(m[3]) or now
local open, trial = tonumber(m[4]) or 0, tonumber(m[5]) or 0
local what, ms = ARGV[1], tonumber(ARGV[2])
if what == 'ok' or what == 'bad' then
  if now - since >= tonumber(ARGV[3]) then ok, bad, since = 0, 0, now end
  if what == 'ok' then
    ok = ok + 1
    if open > 0 and open <= now then open, trial, bad = 0, 0, 0 end
  else
    bad = bad + 1
    if open > 0 and open <= now then trial = now + tonumber(ARGV[5])
    elseif open == 0 and bad >= tonumber(ARGV[4]) and bad >= ok then open, trial = now + ms, 0 end
  end
elseif what == 'cool' then
  open, trial = math.max(open, now + ms), 0
end
local state, wait = 'closed', 0
if open > now then
  state, wait = 'open', open - now
elseif open > 0 then
  if trial > now then
    state, wait = 'open', trial - now
  else
    state = 'trial'
    if what == 'enter' then trial = now + tonumber(ARGV[5]) end
  end
end
if what == 'look' or (what == 'enter' and state ~= 'trial') then return {state, wait} end
redis.call('HSET', KEYS[1], 'ok', ok, 'bad', bad, 'since', string.format('%.0f', since),
  'open', string.format('%.0f', open), 'trial', string.format('%.0f', trial))
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[6]), open - now + tonumber(ARGV[6])))
return {state, wait}
