"""Whether a failed generation may be gone on with: what its `done` says against what a request brings (protocol §3)."""

from __future__ import annotations

from hmac import compare_digest

import msgspec

from headrace.protocol.entries import Done, Entry

_decode = msgspec.msgpack.Decoder(Done).decode


def fits(last: Entry, retry_token: str) -> bool:
    """Whether the `last` entry of a stream is the end of a failure that handed out this very token. Pure."""
    kind, data = last
    if kind != "done":
        return False
    try:
        done = _decode(data)
    except msgspec.DecodeError:  # of another version
        return False
    if done.status != "failed" or done.retry_token is None:
        return False
    return compare_digest(done.retry_token.encode(), retry_token.encode("utf-8", "surrogatepass"))
