"""Two provider calls for one answer, side by side until one of them shows something. The rules are `hedge.Race`'s.

Each call runs in a task of its own from its beginning to its end, since adapters time what they wait for in the task
that reads. Until it shows content nothing of it reaches the generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from workers.chain import Ask
from workers.hedge import Race
from workers.providers import Event, ProviderError, Reasoning, Speaker, Text, Usage


class Beaten(Exception):
    """The other call was first: this one is to end."""


class Contender:
    """One of the calls. Bound of what it holds back: the newest usage and the newest name of its model."""

    def __init__(self, ask: Ask, race: Race, number: int, decided: asyncio.Event) -> None:
        self.ask = ask
        #: It has shown content and goes on.
        self.is_in = False
        #: Called when it is in, before anything of it is fed.
        self.on_in: Callable[[], None] = lambda: None
        self._race = race
        self._number = number
        self._decided = decided
        self._held: dict[type[Event], Event] = {}

    @property
    def is_second(self) -> bool:
        return self._number > 0

    @property
    def is_out(self) -> bool:
        """Another one goes on."""
        return self._race.settled not in (None, self._number)

    def hear(self, events: Sequence[Event]) -> Sequence[Event]:
        """What of it is to be fed: nothing before its first content. Raises Beaten."""
        if self.is_in:
            return events
        if not any(_shows(event) for event in events):
            self._held |= {type(event): event for event in events}
            return ()
        if not self._race.shows(self._number):
            raise Beaten
        self.is_in = True
        self._decided.set()
        self.on_in()
        return [*self._held.values(), *events]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`ask` is the call whose end counts, `error` how it failed. `spared` was cut off, or never begun."""

    ask: Ask
    error: ProviderError | None
    spared: Ask | None


async def contest(
    first: Ask,
    after_s: float,
    call: Callable[[Contender], Awaitable[ProviderError | None]],
    beside: Callable[[], Awaitable[Ask | None]],
) -> Outcome:
    """Make the `first` call; after `after_s` of silence that which `beside` names, if any. To the end of the one that
    goes on; the other is cut off at once. Both have ended when this returns or raises, whatever happens to it.
    """
    race, decided = Race(), asyncio.Event()
    contenders: list[Contender] = []
    tasks: list[asyncio.Task[ProviderError | None]] = []
    second: Ask | None = None

    def begin(ask: Ask, number: int) -> None:
        contenders.append(Contender(ask, race, number, decided))
        tasks.append(asyncio.create_task(_played(contenders[-1], call, race, number, decided)))

    try:
        begin(first, 0)
        try:
            async with asyncio.timeout(after_s):
                await decided.wait()
        except TimeoutError:
            second = await beside()
        if second is not None and race.settled is None:
            begin(second, race.join())
        while race.settled is None:
            decided.clear()
            await decided.wait()
        winner = race.settled
        for number, task in enumerate(tasks):
            if number != winner:
                task.cancel()
        await asyncio.wait(tasks)
        error = tasks[winner].result()
        asks = [first] if second is None else [first, second]
        spared = [ask for number, ask in enumerate(asks) if number != winner and not race.has_failed(number)]
        return Outcome(asks[winner], error, spared[0] if spared else None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _played(
    contender: Contender,
    call: Callable[[Contender], Awaitable[ProviderError | None]],
    race: Race,
    number: int,
    decided: asyncio.Event,
) -> ProviderError | None:
    try:
        error = await call(contender)
        if error is not None:
            race.fails(number, error.fault)
        return error
    except Beaten:
        return None
    finally:
        if not race.has_failed(number):
            race.ends(number)
        decided.set()


def _shows(event: Event) -> bool:
    """Whether viewers see anything of it: content, or the end of an answer without any."""
    if isinstance(event, Text | Reasoning):
        return bool(event.text)
    return not isinstance(event, Usage | Speaker)
