"""`GET /v1/usage`: everybody their own, an accountant the whole organisation, nobody another one."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from hub.broker.broker import Broker
from hub.broker.usage import UsageQueue
from hub.ledger import books as books_module
from hub.ledger import connect, writer
from hub.settings import HubSettings
from tests.conftest import StartHub
from tests.installation import eventually, status_of, token
from tests.ledger.test_ledger import row

ACCOUNTANT = "usage:read"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LOOK_S", 0.02)
    monkeypatch.setattr(writer, "PAUSE_S", 0.1)


async def get(port: int, query: str = "", bearer: str | None = None) -> tuple[int, Any, Any]:
    """Status, JSON and headers."""

    def ask() -> tuple[int, Any, Any]:
        headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/usage{query}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error), error.headers

    return await asyncio.to_thread(ask)


async def metric(port: int) -> float:
    def ask() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(ask)
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("headrace_usage_waiting ")))


@pytest.fixture
async def port(start_hub: StartHub, broker: Broker, tmp_path: Path) -> int:
    """A hub whose ledger has calls of two users of `acme` and one of `rival`."""
    hub = await start_hub(ledger=f"sqlite:{tmp_path}/usage.db")
    now_ms = int(time.time() * 1000)
    queue = UsageQueue(broker.connections.control)
    await queue.add(
        [
            row(1, ended_ms=now_ms, user="ada", cost_nanos=30),
            row(2, ended_ms=now_ms, user="ben", cost_nanos=20),
            row(3, ended_ms=now_ms - 60 * 86_400_000, user="ada", cost_nanos=10),
            row(4, ended_ms=now_ms, org="rival", user="ada", cost_nanos=5),
        ]
    )

    async def is_written() -> bool:
        return await queue.waiting() == 0

    await eventually(is_written, "the writer")
    return hub.port


async def totals(port: int, query: str, bearer: str) -> dict[str, int]:
    status, answer, headers = await get(port, query, bearer)
    assert (status, answer["is_complete"], answer["waiting"]) == (200, True, 0), answer
    assert headers["cache-control"] == "no-store"
    return {total["name"]: total["cost_nanos"] for total in answer["totals"]}


async def test_a_user_sees_their_own_and_an_accountant_the_organisation_s(port: int) -> None:
    ada = token("ada", org="acme")
    assert await totals(port, "?by=user", ada) == {"ada": 30}
    assert await totals(port, "?by=user&since=90d", ada) == {"ada": 40}
    assert await totals(port, "?by=org&user=ada", ada) == {"acme": 30}
    accountant = token("kim", org="acme", scope=ACCOUNTANT)
    assert await totals(port, "?by=user", accountant) == {"ada": 30, "ben": 20}
    assert await totals(port, "?by=user&user=ben", accountant) == {"ben": 20}
    assert await totals(port, "", accountant) == {"anthropic/claude": 50}
    assert await totals(port, "?by=org", token("ada", org="rival", scope=ACCOUNTANT)) == {"rival": 5}
    assert await totals(port, "?by=user", token("kim", org="acme")) == {}


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("?by=colour", "user, org, model, day"), ("?since=yesterday", "24h"), ("?since=", "24h"),
        ("?org=rival", "by, since"), ("?by=user&by=org", "at most once"),
    ],
)  # fmt: skip
async def test_a_wrong_question_is_told_what_would_be_right(start_hub: StartHub, query: str, hint: str) -> None:
    hub = await start_hub()
    status, answer, _ = await get(hub.port, query, token("ada", scope=ACCOUNTANT))
    assert status == 400
    assert answer["error"]["code"] == "invalid_request" and hint in answer["error"]["message"]


async def test_without_a_good_token_nothing_is_told(start_hub: StartHub) -> None:
    hub = await start_hub()
    for bearer in (None, "nonsense"):
        status, answer, headers = await get(hub.port, "", bearer)
        assert (status, answer["error"]["code"], headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")
    status, answer, _ = await get(hub.port, "", token("ada", ttl_s=-1))
    assert (status, answer["error"]["code"]) == (401, "token_expired")
    status, answer, _ = await get(hub.port, "?user=ben", token("ada", org="acme"))
    assert status == 403 and "usage:read" in answer["error"]["message"]


async def test_a_ledger_that_is_off_is_said_and_its_rows_do_not_pile_up(start_hub: StartHub, broker: Broker) -> None:
    queue = UsageQueue(broker.connections.control)
    await queue.add([row(1)])
    hub = await start_hub(ledger="off")
    status, answer, _ = await get(hub.port, "", token("ada"))
    assert status == 404 and "HEADRACE_LEDGER" in answer["error"]["message"]

    async def is_empty() -> bool:
        return await queue.waiting() == 0

    await eventually(is_empty, "dropping the rows")


async def test_a_ledger_that_cannot_be_opened_stops_nothing_and_says_how_many_rows_wait(
    start_hub: StartHub, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "down").write_text("in the way of the folder")
    queue = UsageQueue(broker.connections.control)
    await queue.add([row(1, ended_ms=int(time.time() * 1000), user="ada", org="ada"), row(2)])
    hub = await start_hub(ledger=f"sqlite:{tmp_path}/down/usage.db")
    await eventually(lambda: hub.node.counts.gauges["headrace_usage_waiting"][1]() == 2, "looking")
    status, answer, headers = await get(hub.port, "", token("ada"))
    assert (status, answer["error"]["waiting"], headers["retry-after"]) == (503, 2, "5")
    assert str(tmp_path) not in answer["error"]["message"]
    assert await metric(hub.port) == 2
    assert await status_of(hub.port, "/readyz") == 200
    wire = await hub.join("ada")
    assert wire is not None
    (tmp_path / "down").unlink()

    async def is_told() -> bool:
        status, answer, _ = await get(hub.port, "", token("ada"))
        return status == 200 and [total["calls"] for total in answer["totals"]] == [1]

    await eventually(is_told, "the ledger's return")


async def test_only_so_many_may_ask_at_a_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_module, "QUESTIONS", 0)
    status, answer, _ = await get(port, "", token("ada"))
    assert status == 503 and "few seconds" in answer["error"]["message"]


@pytest.mark.parametrize("url", ["mysql://u:hunter2@x", "usage.db", "sqlite:"])
def test_a_ledger_that_can_never_be_ends_the_start_without_a_word_of_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:") as caught:
        HubSettings(ledger=url)
    assert "hunter2" not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]


def test_the_setting_may_be_empty_and_postgres_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LEDGER", "")
    assert HubSettings().ledger.startswith("sqlite:~")
    assert HubSettings(ledger="postgresql://x/y").ledger == "postgresql://x/y"
    connect("postgresql://x/y")
