"""Which server is the primary, by what the sentinels say.

All sentinels are asked at once, and of what they answer the newest configuration counts (the greatest epoch): one
that was cut off from the others, and still names the former primary, misleads nobody while another one answers.
Whether the server that they name has that role is for whoever connects to it to check.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from hub.broker.address import Address
from hub.broker.resp import RawConnection, ReplyError

#: A sentinel that has not answered in this time does not count, in seconds, connecting included.
ANSWER_S = 1.0
#: Once most of the sentinels have answered, the others have this long.
LATE_S = 0.05

Place = tuple[str, int]
"""Host and port."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one sentinel says."""

    place: Place
    epoch: int
    #: The sentinels agree that the primary is down, and this one knows of no new one yet.
    is_down: bool


def newest(answers: list[Answer]) -> Answer | None:
    """The answer that counts; of the same epoch one that knows a living primary. None if there is none."""
    return max(answers, key=lambda answer: (answer.epoch, not answer.is_down), default=None)


def read_answer(master: Any, place: Any) -> Answer:
    """From the replies to SENTINEL MASTER and SENTINEL GET-MASTER-ADDR-BY-NAME. Raises ValueError, KeyError."""
    flat = [part for pair in master.items() for part in pair] if isinstance(master, dict) else master
    facts = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    host, port = (part.decode() for part in place)
    # While replicas are being moved, the second names the promoted server and the first still the former one.
    is_same = (host, port) == (facts["ip"], facts["port"])
    return Answer((host, int(port)), int(facts["config-epoch"]), is_same and "o_down" in facts["flags"].split(","))


class Sentinels:
    """The sentinels of one service. Close it when done; connections to them are kept open."""

    def __init__(self, address: Address) -> None:
        self._service = address.service
        self._links = [_Link(place, address) for place in address.sentinels]
        self._asking: asyncio.Task[Answer | str] | None = None

    async def primary(self) -> Place:
        """Where the primary is now, within ANSWER_S. Raises redis' ConnectionError when nobody knows.

        Callers at the same time share one question.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        answer = await asyncio.shield(self._asking)
        if isinstance(answer, str):
            raise RedisConnectionError(answer)
        if answer.is_down:
            raise RedisConnectionError(f"the primary of {self._service!r} is down, and no other was elected yet")
        return answer.place

    async def close(self) -> None:
        """Close the connections to the sentinels, after a question under way was answered."""
        if self._asking is not None:
            await asyncio.wait([self._asking])
        for link in self._links:
            link.close()

    async def _ask(self) -> Answer | str:
        """What counts, or what is wrong: not raised, for perhaps nobody waits for it any more."""
        asked = [asyncio.create_task(link.ask()) for link in self._links]
        try:
            async with asyncio.timeout(ANSWER_S):
                left = set(asked)
                while left and not self._is_most(asked):
                    _, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                if left:
                    await asyncio.wait(left, timeout=LATE_S)
        except TimeoutError:
            pass
        finally:
            for task in asked:
                task.cancel()
            results = await asyncio.gather(*asked, return_exceptions=True)
        best = newest([result for result in results if isinstance(result, Answer)])
        if best is not None:
            return best
        if any(isinstance(result, ReplyError) for result in results):
            return f"the sentinels do not know the service {self._service!r}"
        return f"none of {len(asked)} sentinels answered within {ANSWER_S:g} s"

    def _is_most(self, asked: list[asyncio.Task[Answer]]) -> bool:
        answered = [task for task in asked if task.done() and not task.cancelled() and task.exception() is None]
        return len(answered) > len(asked) // 2


class _Link:
    """One sentinel, asked by one caller at a time."""

    def __init__(self, place: Place, address: Address) -> None:
        self._place = place
        self._address = address
        self._raw: RawConnection | None = None

    async def ask(self) -> Answer:
        """Raises ReplyError when it does not know the service, RedisError or OSError when it is out of reach."""
        if self._raw is None or not self._raw.is_open:
            self._raw = await RawConnection.open(self._connection())
        service = self._address.service
        commands = [("SENTINEL", "MASTER", service), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)]
        master, place = await self._raw.execute(commands, ANSWER_S)
        for reply in (master, place):
            if isinstance(reply, ReplyError):
                raise reply
        try:
            return read_answer(master, place)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RedisError("a sentinel's answer cannot be read") from None

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()

    def _connection(self) -> Any:
        host, port = self._place
        kind = SSLConnection if self._address.is_tls else Connection
        return kind(
            host=host, port=port, protocol=2, retry=Retry(NoBackoff(), 0),
            socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S, **self._address.sentinel_options,
        )  # fmt: skip
