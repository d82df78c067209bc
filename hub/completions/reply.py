"""One HTTP response, whole or as events."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import Send

from hub.completions.problem import Headers, Problem

_json = msgspec.json.Encoder().encode


class Reply:
    """Each write waits until the client's socket takes more."""

    def __init__(self, send: Send) -> None:
        self._send = send
        #: Sent with whatever is answered.
        self.headers: Headers = []
        #: The status was sent.
        self.has_begun = False

    async def json(self, status: int, value: dict[str, Any], headers: Headers | None = None) -> None:
        body = _json(value)
        length = b"%d" % len(body)
        await self._begin(status, [(b"content-type", b"application/json"), (b"content-length", length)], headers)
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, problem: Problem) -> None:
        """With its status; as the last event when the response has begun."""
        if self.has_begun:
            await self._body(b"data: " + _json(problem.object()) + b"\n\n", is_last=True)
        else:
            await self.json(problem.status, problem.object(), problem.headers())

    async def write(self, events: bytes, headers: Headers) -> None:
        """A piece of a response of unknown length, which begins with the first one."""
        if not self.has_begun:
            await self._begin(200, headers)
        await self._body(events, is_last=False)

    async def end(self) -> None:
        await self._body(b"", is_last=True)

    async def _begin(self, status: int, headers: Headers, more: Headers | None = None) -> None:
        self.has_begun = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self.headers, *(more or [])]}
        )

    async def _body(self, body: bytes, *, is_last: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
