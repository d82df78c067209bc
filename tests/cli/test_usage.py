"""`headrace usage`: sums out of a real ledger, and one line for whatever is wrong."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from hub.cli.usage import table
from hub.ledger import GROUPS, Total, connect
from hub.ledger.since import since_ms
from tests.cli.command import environment, run
from tests.cli.test_commands import said_one_line
from tests.ledger.test_ledger import DAY_MS, row

NOW_MS = int(time.time() * 1000)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Calls of two organisations, one of them 40 days ago."""
    url = f"sqlite:{tmp_path_factory.mktemp('ledger')}/usage.db"

    async def write() -> None:
        ledger = connect(url)
        await ledger.open()
        await ledger.write(
            [
                row(1, ended_ms=NOW_MS, cost_nanos=1_234_567_000, cached_tokens=40),
                row(2, ended_ms=NOW_MS, user="ben", model="opus", cost_nanos=None, estimated=True),
                row(3, ended_ms=NOW_MS - 40 * DAY_MS, cost_nanos=5000),
                row(4, ended_ms=NOW_MS, org="other", user="[bold]eve", cost_nanos=7_000_000_000),
            ]
        )
        await ledger.close()

    asyncio.run(write())
    return url


def usage(ledger: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("usage", *arguments, environ=environment(HEADRACE_LEDGER=ledger))


def test_sums_are_shown_with_what_is_not_certain_about_them(ledger: str) -> None:
    done = usage(ledger, "--org", "acme")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "anthropic/claude 1 100 40 10 1.2346" in lines
    assert "anthropic/opus 1 100 0 10 unknown 1 without a known price, 1 estimated" in lines


def test_programs_get_numbers(ledger: str) -> None:
    done = usage(ledger, "--by", "user", "--since", "60d", "--json")
    found = {total["name"]: (total["calls"], total["cost_nanos"]) for total in json.loads(done.stdout)}
    assert list(found) == ["[bold]eve", "ada", "ben"]
    assert found["ada"] == (2, 1_234_572_000)


def test_names_are_shown_as_they_are_and_only_of_whom_was_asked_for(ledger: str) -> None:
    done = usage(ledger, "--by", "user", "--user", "[bold]eve")
    assert "[bold]eve" in done.stdout and "ada" not in done.stdout


def test_nothing_is_no_failure(ledger: str) -> None:
    done = usage(ledger, "--since", "7d", "--org", "nobody")
    assert done.returncode == 0 and done.stdout.startswith("nothing was used since 20")
    assert usage(ledger, "--org", "nobody", "--json").stdout == "[]\n"


def test_what_is_wrong_is_one_line_that_says_how_to_mend_it(ledger: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    (tmp_path / "text.db").write_text("no database at all" * 100)
    for url, arguments, hints in (
        (ledger, ["--since", "yesterday"], ["yesterday", "24h"]),
        (f"sqlite:{tmp_path}/none.db", [], ["none.db", "nothing was written", "HEADRACE_LEDGER"]),
        (f"sqlite:{foreign}", [], ["foreign.db", "HEADRACE_LEDGER"]),
        (f"sqlite:{tmp_path}/text.db", [], ["text.db", "HEADRACE_LEDGER"]),
        ("postgresql://me:hunter2@127.0.0.1:1/x", [], ["PostgreSQL", "HEADRACE_LEDGER"]),
        ("mysql://me:hunter2@x", [], ["HEADRACE_LEDGER", "sqlite:"]),
        ("off", [], ["HEADRACE_LEDGER", "off"]),
    ):
        done = usage(url, *arguments)
        assert done.returncode == 1
        assert said_one_line(done.stderr), done.stderr
        assert "hunter2" not in done.stderr
        for hint in hints:
            assert hint in done.stderr
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", 1_000_000_000 - 1_800_000), ("2h", 1_000_000_000 - 7_200_000), ("1d", 1_000_000_000 - DAY_MS),
        ("1w", 1_000_000_000 - 7 * DAY_MS), ("1970-01-02", DAY_MS), ("1970-01-02T00:00+01:00", DAY_MS - 3_600_000),
    ],
)  # fmt: skip
def test_from_when_on_is_a_span_or_a_date_of_utc(text: str, expected: int) -> None:
    assert since_ms(text, 1_000_000) == expected


@pytest.mark.parametrize("text", ["", "d", "7", "-7d", "7y", "٣d", "1.5h", "yesterday", "2026-13-01", "9999999d"])
def test_other_words_are_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        since_ms(text, 0)


def test_a_list_that_was_cut_says_so() -> None:
    assert "first 1000" in str(table("user", [Total("x", 1, 1, 1, 1, 1, 0, 0)] * GROUPS).caption)
