"""Fake providers: real servers for the real SDKs, with scripts for answers and records of what clients did.

In a test: `async with FakeProvider() as fake`, with `ANTHROPIC_BASE_URL` set to `fake.base_url_anthropic` and
`OPENAI_BASE_URL` to `fake.base_url_openai`. By hand, or under a measurement: `python -m tests.fakes --port 0`.
"""

from tests.fakes.script import Record, Script
from tests.fakes.server import FakeProvider

__all__ = ["FakeProvider", "Record", "Script"]
