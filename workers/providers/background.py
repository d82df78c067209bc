"""Answers that a provider writes by itself, whether or not anybody reads them: how they are named, read again, ended.

Without a word such an answer ends with its reader: closing its stream cancels it at the provider. Who wants it to
outlive the reader says `hold` once its name is kept, and owes it a `drop` from then on, or a reader.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from workers.providers import Event


class Background(Event, gc=False):
    """Comes first: the provider calls this answer `response`, and can tell again what follows its event `event`."""

    response: str
    event: int


@runtime_checkable
class BackgroundProvider(Protocol):
    """A provider that can do that. Beside `Provider`."""

    def hold(self, response: str) -> None:
        """Closing the stream of `response` leaves it running from now on."""
        ...

    def drop(self, response: str) -> None:
        """Nobody wants `response` any more: have it cancelled, soon and off every path. Any number of times."""
        ...

    def read_again(self, model: str, response: str, event: int) -> AsyncGenerator[list[Event], None]:
        """What `response` says after its event `event`, as `Provider.stream` tells it.

        Raises ProviderError, with nothing told if the provider does not know it, or not any more.
        """
        ...
