"""What an app pays for a JSON document that it wants to see while it arrives."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.figures import Line
from bench.stack import Setup
from headrace.events import Event, Text
from headrace.fold import Fold
from headrace.partial import PartialJSON
from headrace.structured import snapshots

KIB = 1024
#: How often each is measured in one run.
_TIMES = 5


@dataclass(frozen=True)
class Snapshots:
    """In this process, without a hub: the client's own work, and nothing else."""

    kib: int = 72
    piece: int = 4

    @property
    def title(self) -> str:
        return f"snapshots: a document of {self.kib} KiB in pieces of {self.piece} characters"

    def lines(self) -> list[Line]:
        return [
            Line("valid snapshots of all of it; floor: one reading at the end", "partial", "ms", floor="whole",
                 at_most=20),
            Line("… with the fold and its digest, as `Generation.snapshots`", "folded", "ms", at_most=20),
            Line("… snapshots given", "given"),
            Line("… four times the document costs so much more", "times", "×", at_most=5),
        ]  # fmt: skip

    async def run(self, setup: Setup) -> dict[str, float]:
        text, large = document(self.kib * KIB), document(4 * self.kib * KIB)
        setup.say("snapshots")
        folded = [await _folded(self._pieces(text)) for _ in range(_TIMES)]
        large_ms = median([(await _folded(self._pieces(large)))[0] for _ in range(_TIMES)])
        folded_ms = median(ms for ms, _ in folded)
        return {
            "partial": median(_partial(self._pieces(text)) for _ in range(_TIMES)),
            "whole": median(_whole(text) for _ in range(_TIMES)),
            "folded": folded_ms,
            "given": folded[0][1],
            "times": large_ms / folded_ms,
        }

    def _pieces(self, text: str) -> list[str]:
        return [text[start : start + self.piece] for start in range(0, len(text), self.piece)]


def document(size: int) -> str:
    """A list of records with some of everything, the same each time, of at least `size` characters."""
    records: list[Any] = []
    length = 0
    while length < size:
        number = len(records)
        records.append({
            "id": number,
            "name": f"Item {number}",
            "price": number * 1.25,
            "tags": ["new", "größer", None, number % 2 == 0],
            "text": 'It says "quite so" here.\n' * 3,
        })  # fmt: skip
        length += len(json.dumps(records[-1], ensure_ascii=False)) + 2
    return json.dumps({"records": records}, ensure_ascii=False)


def _partial(pieces: list[str]) -> float:
    partial = PartialJSON()
    began = time.process_time()
    for piece in pieces:
        partial.feed(piece)
    partial.finish()
    return (time.process_time() - began) * 1000


def _whole(text: str) -> float:
    began = time.process_time()
    json.loads(text)
    return (time.process_time() - began) * 1000


async def _folded(pieces: list[str]) -> tuple[float, int]:
    """Milliseconds, and how many snapshots there were."""
    fold = Fold()
    events = [Text(piece) for piece in pieces]

    async def arriving() -> AsyncIterator[Event]:
        for event in events:
            fold.add(event)
            yield event

    count = 0
    began = time.process_time()
    async for _ in snapshots(arriving(), fold):
        count += 1
    return (time.process_time() - began) * 1000, count
