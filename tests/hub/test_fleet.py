"""What hubs know of their workers: which models may be asked for, and how providers fare."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from hub import fleet as fleet_module
from hub import health
from hub.broker.broker import Broker
from hub.broker.health import Fare, Health, ProviderBoard
from hub.fleet import FRESH_S, Fleet, OutOfSight
from tests.conftest import StartHub
from tests.installation import eventually, question, running_worker, token
from workers.catalog import parse
from workers.providers.registry import Providers

MODELS = ["fast", "mine", "acme/small", "acme/big"]
MERRY = Fare("acme", "small", 40, 2, ttft_ms=(100, 200, 900), last_fault="silent")
DEAD = Fare("acme", "big", 10, 10, 4.02, last_fault="unreachable")
SLIP = Fare("acme", "typo", 9, 9, 60.0, last_fault="absent")
SECRET = Fare("acme", "ft:project-x", 3, 1, last_fault="server")


def seen(*fares: Fare, workers: int = 1, keyless: tuple[str, ...] = ()) -> Health:
    return Health(workers, MODELS, ["acme", "fallback", "scripted"], list(fares), list(keyless))


async def get(port: int, path: str, bearer: str | None = None) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {bearer or token()}"} if bearer != "" else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=10
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    status, text = await asyncio.to_thread(ask)
    return status, json.loads(text) if text.startswith("{") else text


# -- what is told


def test_a_provider_is_told_of_with_its_models_and_without_what_users_made_up() -> None:
    told = health.described(seen(MERRY, DEAD, SLIP, SECRET, keyless=("local",)))
    assert (told["state"], told["workers"], told["without_key"]) == ("degraded", 1, ["local"])
    assert list(told["providers"]) == ["acme"]
    models = told["providers"]["acme"]["models"]
    assert models["small"] == {
        "state": "healthy", "asked": 40, "failed": 2, "ttft_ms": {"p50": 200, "p95": 900}, "open_s": 0,
        "last_fault": "silent",
    }  # fmt: skip
    assert (models["big"]["state"], models["big"]["open_s"]) == ("down", 4.0)
    assert (models["others"]["asked"], models["others"]["state"]) == (3, "degraded")
    assert "project-x" not in str(told) and "typo" not in str(told)


def test_models_that_no_catalog_names_are_told_of_together() -> None:
    other = Fare("acme", "ft:project-y", 2, 2, ttft_ms=(7,))
    others = health.described(seen(SECRET, other))["providers"]["acme"]["models"]["others"]
    assert (others["asked"], others["failed"], others["ttft_ms"]["p50"]) == (5, 3, 7)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (seen(), "healthy"),
        (seen(MERRY), "healthy"),
        (seen(MERRY, DEAD), "degraded"),
        (seen(DEAD), "down"),
        (seen(SLIP), "healthy"),
        (seen(workers=0), "down"),
        (Health(1, [], ["fallback", "scripted"], []), "down"),
    ],
)
def test_all_of_it_is_down_when_no_model_can_answer(seen: Health, state: str) -> None:
    assert health.overall(seen) == state


def test_monitoring_gets_a_figure_for_each_provider() -> None:
    two = Health(2, [], ["a", "b", "c", "fallback"], [Fare("a", "x", 9, 9, 2.0), Fare("b", "x", 9, 9)])
    assert health.levels(two) == {"a": 0, "b": 1, "c": 2}


# -- what is known


async def test_the_shipped_names_are_known_before_anybody_reports_and_stay_when_all_are_gone(broker: Broker) -> None:
    board = ProviderBoard(broker.connections.control)
    fleet = Fleet(board, frozenset(), is_open=False)
    assert fleet.choices.allows("fast") and fleet.choices.allows("anthropic/anything")
    assert not fleet.choices.allows("mine") and not fleet.choices.allows("acme/small")
    await board.publish("w", [*MODELS, "scripted/story"], ["acme", "fallback", "scripted"], [], ["local"])
    await fleet.look()
    assert fleet.choices.allows("mine") and fleet.choices.allows("acme/other") and fleet.choices.allows("local/x")
    assert not fleet.choices.allows("scripted/story")  # it needs no key, and is for tests
    assert fleet.models == ["fast", "standard", "premium", "simple", "medium", "complex", "mine", *MODELS[2:]]
    await board.forget("w")
    await fleet.look()
    assert fleet.last_seen.workers == 0 and fleet.choices.allows("mine")


async def test_a_list_of_providers_stands_above_what_workers_have(broker: Broker) -> None:
    board = ProviderBoard(broker.connections.control)
    await board.publish("w", MODELS, ["acme", "openai"], [])
    fleet = Fleet(board, frozenset({"openai"}), is_open=True)
    await fleet.look()
    assert fleet.choices.allows("openai/x") and fleet.choices.allows("mine") and fleet.choices.allows("scripted/story")
    assert not fleet.choices.allows("acme/small") and "acme/small" not in fleet.models


async def test_many_who_ask_at_once_cost_redis_one_look(broker: Broker) -> None:
    board = ProviderBoard(broker.connections.control)
    fleet = Fleet(board, frozenset(), is_open=False)

    async def reads() -> int:
        return int((await broker.connections.control.info("commandstats"))["cmdstat_hgetall"]["calls"])

    await fleet.look()
    before = await reads()
    await asyncio.gather(*[fleet.look() for _ in range(50)])
    assert await reads() == before + 1


async def test_what_was_read_too_long_ago_is_not_told_as_news(broker: Broker) -> None:
    now = [0.0]
    fleet = Fleet(ProviderBoard(broker.connections.control), frozenset(), is_open=False, clock=lambda: now[0])
    assert fleet.is_blind
    with pytest.raises(OutOfSight):
        _ = fleet.health
    await fleet.look()
    assert fleet.health.workers == 0 and not fleet.is_blind
    now[0] = FRESH_S + 0.1
    with pytest.raises(OutOfSight):
        _ = fleet.health


# -- over a hub


@pytest.fixture
def own() -> Providers:
    """A worker's catalog with a tier of the operator's own."""
    table = {"format": "openai", "base_url": "http://127.0.0.1:1/v1"}
    catalog = parse({
        "providers": {"acme": table, "local": {**table, "key": ["NO_SUCH_KEY"]}},
        "models": {"acme/big": {}},
        "tiers": {"mine": {"models": ["acme/small"]}},
        "complexity": {"hard": "mine"},
    })  # fmt: skip
    return Providers.from_env({}, catalog=catalog)


async def test_a_tier_of_the_operator_is_accepted_as_soon_as_a_worker_has_it(
    start_hub: StartHub, broker: Broker, redis_url: str, own: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "EVERY_S", 600)  # only asking makes the hub look
    hub = await start_hub(providers="")
    wire = await hub.join()
    await wire.send(question("early", model="mine"))
    refusal = await wire.expect("error", id="early", code="unknown_model")
    assert "fast" in refusal["message"]
    async with running_worker(redis_url, providers=own):

        async def reported() -> bool:
            return (await ProviderBoard(broker.connections.control).read()).workers == 1

        await eventually(reported, "the worker's report")
        await wire.send(question("later", model="hard", attach=False))
        await wire.expect("accepted", id="later")
        status, models = await get(hub.port, "/v1/models")
        names = [model["id"] for model in models["data"]]
        assert status == 200 and {"mine", "hard", "acme/small", "acme/big", "fast"} <= set(names)
        assert not any(name.startswith(("local/", "scripted")) for name in names)


async def test_providers_are_told_of_to_everybody_with_a_token_and_503_says_that_nobody_can_answer(
    start_hub: StartHub, redis_url: str, own: Providers
) -> None:
    hub = await start_hub()
    path = "/v1/health/providers"
    assert (await get(hub.port, path, bearer=""))[0] == 401

    async def none() -> bool:
        status, told = await get(hub.port, path)
        return status == 503 and told.get("workers") == 0 and told["state"] == "down"

    await eventually(none, "the first look")
    async with running_worker(redis_url, providers=own):

        async def some() -> bool:
            status, told = await get(hub.port, path)
            return bool(status == 200 and told["workers"] == 1)

        await eventually(some, "the report")
        _, told = await get(hub.port, path)
        assert told["providers"] == {"acme": {"state": "healthy", "models": {}}}
        assert told["without_key"] == ["local"]
        _, metrics = await get(hub.port, "/metrics")
        assert 'headrace_provider{provider="acme"} 2.0' in metrics and "headrace_workers 1.0" in metrics


async def test_tools_of_the_workers_are_listed(start_hub: StartHub, broker: Broker) -> None:
    board = ProviderBoard(broker.connections.control)
    await board.publish("w1", [], [], [], tools=["weather", "search"])
    await board.publish("w2", [], [], [], tools=["search"])
    hub = await start_hub()

    async def listed() -> bool:
        return await get(hub.port, "/v1/tools") == (200, {"tools": [{"name": "search"}, {"name": "weather"}]})

    await eventually(listed, "the first look")
    assert (await get(hub.port, "/v1/tools", bearer=""))[0] == 401


async def test_without_redis_health_is_unknown_and_a_new_hub_refuses_nothing_for_good(start_hub: StartHub) -> None:
    hub = await start_hub(redis_url="redis://127.0.0.1:1/0", is_ready=False, providers="")
    status, told = await get(hub.port, "/v1/health/providers")
    assert (status, told["error"]["code"]) == (503, "overloaded")
    wire = await hub.join()
    began = time.monotonic()
    await wire.send(question("r", model="mine"))
    refusal = await wire.expect("error", id="r", code="overloaded")
    assert refusal["retry"] != "no" and time.monotonic() - began < 5
