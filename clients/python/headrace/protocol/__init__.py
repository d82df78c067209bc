"""The wire protocol: frames, entries, cursor, window, codes. No asyncio, no I/O.

It lives with the client because the client is what people install; hub and workers import this package and
nothing else of `headrace`.
"""
