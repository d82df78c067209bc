"""One generation's question: what is asked of whom, and what there is of its answer already."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.protocol.body import Body
from hub.broker.keys import AnswerKey
from workers.chain import Candidate
from workers.providers.registry import Route
from workers.takeover import ReadOn
from workers.upstream import Underway
from workers.usage import Attempt


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of whom. `kept` is the beginning of the answer, when a lost worker's or a failed one is gone on
    with; `is_quoted`: it stands at the head of this attempt's own entries.
    """

    route: Route
    body: Body
    attempt: Attempt
    kept: str = ""
    is_quoted: bool = False
    shared: AnswerKey | None = None
    """What it has in common with requests that may have the same answer; None: it has its own."""
    underway: tuple[Underway, ReadOn] | None = None
    """What a provider still writes for a lost worker, and how it is read on; `kept` is the text that stays."""

    @property
    def before(self) -> str:
        """What viewers have of the answer beside this attempt's own entries."""
        return "" if self.is_quoted else self.kept

    @property
    def first(self) -> Candidate:
        """Who is asked if nothing speaks against it."""
        return self.route.candidates[0]
