-- Withdraws a hub's interest in a stream. A repeat changes nothing.
--
-- KEYS[1] interest (hash: hub mailbox → demand)
-- ARGV    hub mailbox
-- returns the number of hubs that left
return redis.call('HDEL', KEYS[1], ARGV[1])
