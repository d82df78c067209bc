"""What a provider writes for one call, and what becomes of it when the call ends before it does.

Most of it ends with its reader. What a provider writes in the background is kept by name in the stream's facts before
anything of it is shown, so that whoever takes the generation over reads on instead of asking, and paying, again. When
nobody will, it is cancelled at the provider.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
import structlog

from headrace.protocol.body import Body
from hub.broker.connections import Unreachable
from hub.broker.keys import StreamKey
from workers.chain import Candidate
from workers.providers import Event, Provider, Stop
from workers.providers.background import Background, BackgroundProvider
from workers.run import Run
from workers.usage import Attempt

log_ = structlog.get_logger(__name__)

#: Keeps bytes for the stream and mark that they are kept for; False: it is not this attempt's any more.
Remember = Callable[[StreamKey, str, bytes], Awaitable[bool]]
#: How a generation can be over for this worker without anybody who takes it over.
_NOBODY_ELSE = frozenset({"gone", "terminal"})


class Underway(msgspec.Struct, frozen=True, array_like=True):
    """An answer that a provider writes in the background, as the stream's facts keep it."""

    provider: str
    model: str
    response: str
    event: int
    """It can be read again from the one after this event on."""
    attempt: int
    """That began it."""
    calls: tuple[str, ...]
    """`mark/number` of the call that began it, and of all that read it again: one call, for the ledger."""

    def joined(self, call: str) -> Underway:
        return msgspec.structs.replace(self, calls=(*self.calls, call))


def underway_of(data: bytes) -> Underway | None:
    """What was kept; None for nothing, and for what another version kept."""
    try:
        return msgspec.msgpack.decode(data, type=Underway) if data else None
    except msgspec.DecodeError:
        return None


class Upstream:
    """One call's. `stream`, then `hear` for all that it says, then `end` once, whatever happened."""

    def __init__(
        self,
        run: Run,
        provider: Provider,
        candidate: Candidate,
        call: tuple[Attempt, int],
        remember: Remember,
        *,
        underway: Underway | None = None,
    ) -> None:
        """With `underway` the call reads that answer again."""
        self._run = run
        self._provider = provider
        self._candidate = candidate
        self._own, self._number = call
        self._remember = remember
        self._read_on = underway
        self._kept = underway
        self._is_whole = True
        self._has_stopped = False
        #: The next worker reads on.
        self.is_left = False

    @property
    def billed(self) -> tuple[Attempt, int]:
        """The attempt and the number of the call that pays."""
        if self._read_on is None:
            return self._own, self._number
        mark, _, number = self._read_on.calls[0].rpartition("/")
        attempt = msgspec.structs.replace(self._own, mark=mark, number=self._read_on.attempt)
        return attempt, int(number)

    async def stream(self, body: Body, given: str) -> AsyncGenerator[list[Event], None]:
        provider, underway = self._provider, self._read_on
        if underway is None or not isinstance(provider, BackgroundProvider):
            self._is_whole = not given
            return provider.stream(self._candidate.model, body, given)
        provider.hold(
            underway.response
        )  # its name is kept: by now it may be another worker's, not this one's to cancel
        await self._keep(underway.joined(self._name))
        return provider.read_again(underway.model, underway.response, underway.event)

    async def hear(self, events: Sequence[Event]) -> Sequence[Event]:
        """`events` as viewers may have them. An answer in the background is kept before anything of it is shown."""
        first = events[0] if events else None
        if isinstance(first, Background):
            if self._is_whole:  # the rest of an answer is none by itself: it ends with its reader
                candidate, calls = self._candidate, (self._name,)
                await self._begin(
                    Underway(candidate.provider, candidate.model, first.response, first.event, self._own.number, calls)
                )
            events = events[1:]
        if events and isinstance(events[-1], Stop):
            self._has_stopped = True
        return events

    async def end(self, error: BaseException | None) -> None:
        """The call is over, by `error` if it did not end well."""
        underway, generation = self._kept, self._run.generation
        if underway is None:
            return
        is_cut = error is not None and not isinstance(error, Exception)  # cancelled: not to be held up
        if is_cut and generation.status is None and generation.over not in _NOBODY_ELSE:
            self.is_left = True
            return
        if self._has_stopped:
            return
        drop(self._provider, underway)
        if not is_cut and not generation.ended:
            await self._tell(b"")

    @property
    def _name(self) -> str:
        return f"{self._own.mark}/{self._number}"

    async def _begin(self, underway: Underway) -> None:
        """Once it is kept, the answer outlives its reader."""
        if await self._keep(underway) and isinstance(self._provider, BackgroundProvider):
            self._provider.hold(underway.response)

    async def _keep(self, underway: Underway) -> bool:
        if is_kept := await self._tell(msgspec.msgpack.encode(underway)):
            self._kept = underway
        return is_kept

    async def _tell(self, underway: bytes) -> bool:
        try:
            return await self._remember(self._run.key, self._run.mark, underway)
        except Unreachable as error:
            log_.warning("redis out of reach, an answer ends with its reader", error=type(error).__name__)
            return False


def drop(provider: Provider, underway: Underway) -> None:
    """Nobody will read on: it is cancelled at the provider."""
    if isinstance(provider, BackgroundProvider):
        provider.drop(underway.response)
