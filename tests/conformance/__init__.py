"""Does the hub speak WebSocket? `python -m tests.conformance` runs all Autobahn cases and prints a table."""
