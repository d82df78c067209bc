"""RFC 6455 as the Autobahn cases see it, over the hub's own sockets and WebSocket layer."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from tests.conformance.__main__ import GROUPS
from tests.conformance.autobahn import run_cases


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the runner leaves its data files to the collector
async def test_every_autobahn_case_passes_or_is_listed_with_its_reason() -> None:
    outcomes = await run_cases()
    assert [outcome for outcome in outcomes if not outcome.is_as_expected] == []
    groups = Counter(outcome.case.split(".")[0] for outcome in outcomes)
    assert set(groups) == set(GROUPS)
    assert len(outcomes) == 517 and sum(outcome.passed for outcome in outcomes) == 263
    gc.collect()
