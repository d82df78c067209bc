"""Networks that misbehave on purpose: `FaultProxy` between any two sockets, `RedisProxy` in front of Redis."""
