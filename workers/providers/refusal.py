"""The body of a refused request: as much of it as says why. Imported with the SDKs, for it is httpx2's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

#: Of an error's body, in bytes as they come: an error object is a few hundred, a gateway's page has no end that it must
#: keep. The SDKs read all that there is.
BODY_BYTES = 16 * 1024


async def shorten(response: httpx2.Response) -> None:
    """A hook for the SDKs' client: a refusal's body ends after BODY_BYTES, whatever was sent."""
    if response.status_code >= 400 and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Beginning(response.stream)


class _Beginning(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = BODY_BYTES
        async for chunk in self._stream:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()
