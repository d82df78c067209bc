"""The Autobahn cases, run against an echo over the hub's sockets; and those that we do not pass, with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

import kosoku

from tests.conformance.echo import running_echo

#: Cases that wait for something do so side by side.
AT_ONCE = 8

_TOO_LARGE = "by design: a message of more than 1 MiB (four times `message_bytes`) is cut off with 1009"
_TOO_MANY = "by design: a message of 4 MiB in small fragments is cut off, with 4103 after 64 of them or with 1009"
_COMPRESSION = "by design: permessage-deflate is not negotiated (memory, and compression side channels)"

#: Cases that do not pass, as patterns for the whole of a case's number; the close codes that we answer; why.
LISTED: tuple[tuple[str, frozenset[int], str], ...] = (
    (r"9\.[12]\.[3-6]", frozenset({1009}), _TOO_LARGE),
    (r"9\.[34]\.[1-9]", frozenset({1009, 4103}), _TOO_MANY),
    (r"9\.[56]\.[1-6]", frozenset({1009}), _TOO_LARGE),
    (r"1[23]\..*", frozenset({1000}), _COMPRESSION),
)


@dataclass(frozen=True)
class Outcome:
    case: str
    title: str
    passed: bool
    verdict: str
    close_code: int | None
    reason: str | None
    """Why it may fail; None if it may not."""

    @property
    def is_as_expected(self) -> bool:
        """Passed; or listed, and closed as the list says. A listed case that passes is a list out of date."""
        if self.reason is None:
            return self.passed
        codes = next(codes for pattern, codes, _ in LISTED if re.fullmatch(pattern, self.case))
        return not self.passed and self.close_code in codes


def reason_of(case: str) -> str | None:
    return next((reason for pattern, _, reason in LISTED if re.fullmatch(pattern, case)), None)


async def run_cases() -> list[Outcome]:
    """All cases, in order. About 3 s."""
    async with running_echo() as url:
        try:
            results = await kosoku.run_fuzzingclient(url, concurrency=AT_ONCE)
        except kosoku.FailureError as failure:
            results = failure.results
    return [
        Outcome(
            result.case_id,
            " ".join(result.description.split()),
            result.passed,
            f"{result.behavior.value}, close {result.behavior_close.value}",
            result.remote_close_code,
            reason_of(result.case_id),
        )
        for result in results
    ]
