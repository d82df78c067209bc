"""What a fake provider does with one request, and what it saw of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

Fault = Literal["drop", "reset", "end", "cut", "stall", "error", "malformed", "invalid_utf8", "pings"]
"""What happens after `fault_after` tokens:

`drop` the socket closes instead of any answer; `reset` a TCP reset; `cut` the socket closes without the last
HTTP chunk; `end` the HTTP body ends in order but the format's last events never come; `stall` silence for ever;
`error` an error inside the stream, then its end; `malformed` and `invalid_utf8` one broken event, then the rest
as if nothing had been; `pings` signs of life every 20 ms for ever, and nothing else.
"""


@dataclass(frozen=True, kw_only=True)
class Script:
    """One answer. Times in seconds. The text is `texts`, else `tokens` numbered pieces or stamps of the clock."""

    texts: Sequence[str] | None = None
    tokens: int = 3
    size: int = 5
    stamp: bool = False
    """Each token is `time.monotonic_ns()` and a space, taken as it is written."""
    gap_s: float = 0.0
    headers_s: float = 0.0
    first_s: float = 0.0
    reasoning: Sequence[str] = ()
    tools: Sequence[tuple[str, Sequence[str]]] = ()
    """Name and pieces of the arguments' JSON."""
    citation: dict[str, Any] | None = None
    stop: str | None = None
    """The provider's own word for why it stopped."""
    usage: Mapping[str, Any] | None = None
    extra: bytes = b""
    """Raw bytes of the event stream, before the first token."""
    done_marker: bool = True
    """Chat completions only: whether `[DONE]` is sent."""
    status: int = 200
    error: Mapping[str, Any] | None = None
    """The error's fields, for a `status` or the fault `error`; else one that fits the status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw_body: tuple[str, bytes] | None = None
    """Content type and body of an answer that is no stream at all."""
    fault: Fault | None = None
    fault_after: int = 0
    again: Sequence[Fault | int] = ()
    """Responses in the background: what becomes of each reading again, an HTTP status or a fault `fault_after` tokens
    later; after these it succeeds. `fault` itself is that of the first connection."""
    split: bool = False
    """Every byte is written by itself."""
    newline: bytes = b"\n"

    def pieces(self) -> Iterator[str]:
        """The tokens' texts, made one by one."""
        if self.texts is not None:
            return iter(self.texts)
        if self.stamp:
            return (f"{time.monotonic_ns()} " for _ in range(self.tokens))
        width = max(self.size - 1, 1)
        return (f"{index % 10**width:0{width}d} " for index in range(self.tokens))


_PARAMETERS = {"tokens", "rate", "size", "stamp", "think_ms", "status", "fault", "after"}


def script_of_model(model: str) -> Script | None:
    """The script in a model's name like `fake-tokens=200-rate=25-stamp=1`; None if it is not of this form.

    Parameters: tokens, rate (a second; 0 is without pause), size, stamp, think_ms; status, of an answer that is an
    error; fault, and the tokens `after` which it comes. Raises ValueError.
    """
    name, dash, rest = model.partition("-")
    if name != "fake" or not dash:
        return None
    values = dict(item.partition("=")[::2] for item in rest.split("-"))
    if unknown := values.keys() - _PARAMETERS:
        raise ValueError(f"no such parameter: {', '.join(sorted(unknown))}")
    rate = float(values.get("rate", 20))
    return Script(
        tokens=int(values.get("tokens", 200)),
        gap_s=1 / rate if rate else 0.0,
        size=int(values.get("size", 5)),
        stamp=values.get("stamp") == "1",
        first_s=int(values.get("think_ms", 0)) / 1000,
        status=int(values.get("status", 200)),
        fault=_fault(values.get("fault")),
        fault_after=int(values.get("after", 0)),
    )


def _fault(name: str | None) -> Fault | None:
    if name is not None and name not in get_args(Fault):
        raise ValueError(f"no such fault: {name}")
    return cast(Fault | None, name)


@dataclass(eq=False)
class Record:
    """One request as its fake provider saw it. Times are `time.monotonic()`."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    opened_at: float
    status: int = 0
    tokens: int = 0
    """Tokens written so far."""
    token_times: list[float] = field(default_factory=list)
    """When each was written; empty unless the fake keeps times."""
    finished: bool = False
    """Everything that the script says was written."""
    gone_at: float | None = None
    """When the client was seen to be gone, if that was before the end of the answer."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    response: str = ""
    """Responses in the background: the answer's name."""
    resumed_after: int | None = None
    """An answer was read again, after this event."""
    cancelled_at: float | None = None
    """When its user cancelled the answer that this request began."""
    blocked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the client read so little that nothing more could be written."""

    def tokens_after(self, moment: float) -> int:
        """How many tokens were written after `moment`: what a provider would charge for nothing."""
        return sum(written > moment for written in self.token_times)
