"""The contract between hubs and workers: what lies in Redis, and the only code that touches it.

keys         every key, its tenant and its slot
scripts/     one Lua script per change that spans keys of a stream
log          a stream's life: create, claim, append, renew, cancel, attach, leave, release, read
lanes        the queues that dispatch requests to workers
live         the index of streams that are not finished
accept       how a request becomes a stream, in ordered, repeatable steps
mailbox      the live path between processes
janitor      what nobody owns is finished or handed on
connections  one factory for every Redis client; `resp` beside it for the hot path
embedded     which Redis to use, and a private one where none is given; `lifeline` ends it with its owner
"""
