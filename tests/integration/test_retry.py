"""Going on with a failed answer: `retry_of`, through a hub, a worker and both formats over HTTP."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest

import headrace
from hub.broker import keys
from hub.broker.broker import Broker
from tests.conftest import StartHub, StartWorker
from tests.fakes import Script
from tests.installation import RunningHub, question, token
from tests.integration.failover import MODELS, Scene, scene
from tests.wire import Map, Wire, text_of
from workers.providers.continuation import GO_ON

TEXTS = tuple(f"{number:03d} " for number in range(8))
WHOLE = "".join(TEXTS)
SHOWN = 3
REST = TEXTS[SHOWN:]
#: A scripted answer that breaks off after four pieces, and the same to its end.
BROKEN, WELL = "scripted/tokens=9,rate=0,fail_after=4,fault=idle", "scripted/tokens=9,rate=0"
WELL_TEXT = "".join(f"{number:04d} " for number in range(9))
#: No second call of the same answer goes on behind its back.
FORMATS = {"fast": "anthropic", "standard": "openai"}
TIERS: dict[str, Any] = {
    tier: {"models": [f"{name}/{MODELS[name]}"], "after_content": ["error"]} for tier, name in FORMATS.items()
}


async def failure(wire: Wire, request: str = "first", model: str = BROKEN, **options: Any) -> Map:
    """A `retry_of` for an answer that failed just now."""
    await wire.send(question(request, model=model, **options))
    stream = (await wire.expect("accepted", id=request))["stream"]
    frames = await wire.until("entry", kind="done")
    assert frames[-1]["data"]["status"] == "failed"
    return {"stream": stream, "retry_token": frames[-1]["data"]["retry_token"]}


async def retried(wire: Wire, retry_of: Map, request: str = "again", model: str = WELL, **options: Any) -> list[Map]:
    await wire.send(question(request, model=model, retry_of=retry_of, **options))
    await wire.expect("accepted", id=request)
    return await wire.until("entry", kind="done")


def sources(frames: list[Map]) -> list[Map]:
    return [frame["data"] for frame in frames if frame.get("kind") == "source"]


async def test_the_new_stream_begins_with_the_kept_text_and_is_the_whole_answer(
    hub: RunningHub, worker: object
) -> None:
    wire = await hub.join()
    frames = await retried(wire, await failure(wire))
    done = frames[-1]["data"]
    assert text_of(frames) == WELL_TEXT and done["status"] == "completed"
    assert done["text_bytes"] == len(WELL_TEXT)
    quoted, live = sources(frames)
    assert (quoted["mode"], quoted["reason"], quoted["provider"]) == ("cached", "retry", "scripted")
    assert live["mode"] == "live" and done["usage"]["output_tokens"] < 9, "what was kept is not paid for again"
    assert "reset" not in [frame.get("kind") for frame in frames]


async def test_a_retry_is_a_request_like_any_other_by_its_key(hub: RunningHub, worker: object) -> None:
    wire = await hub.join()
    retry_of = await failure(wire)
    await wire.send(question("again", model=WELL, retry_of=retry_of), question("again", model=WELL, retry_of=retry_of))
    one = await wire.expect("accepted", id="again")
    other = (await wire.until("accepted", id="again"))[-1]
    assert one["stream"] == other["stream"] != retry_of["stream"]
    await wire.until("entry", kind="done")
    await wire.send(question("again", model=WELL))
    await wire.expect("error", id="again", code="request_conflict")


async def test_a_repeat_is_answered_also_when_the_failed_stream_has_expired_since(
    hub: RunningHub, worker: object, broker: Broker
) -> None:
    wire = await hub.join()
    retry_of = await failure(wire)
    await retried(wire, retry_of)
    await expire(broker, retry_of)
    assert text_of(await retried(wire, retry_of)) == WELL_TEXT
    await wire.send(question("a new one", model=WELL, retry_of=retry_of))
    await wire.expect("error", id="a new one", code="not_found")


async def expire(broker: Broker, retry_of: Map) -> None:
    key = keys.stream_key("alice", retry_of["stream"])
    assert await broker.connections.control.delete(keys.meta(key), keys.log(key)) == 2


@pytest.mark.parametrize("text", [WELL_TEXT[:20], ""], ids=["shown", "nothing shown"])
async def test_a_retry_that_fails_may_be_retried(hub: RunningHub, worker: object, text: str) -> None:
    wire = await hub.join()
    fails = "scripted/tokens=9,rate=0,fault=idle,fail_after="
    retry_of = await failure(wire, model=fails + str(len(text) // 5))
    frames = await retried(wire, retry_of, model=fails + "6")
    done = frames[-1]["data"]
    assert (done["status"], text_of(frames)) == ("failed", WELL_TEXT[:30])
    stream = next(frame["stream"] for frame in frames if frame.get("kind") == "done")
    frames = await retried(wire, {"stream": stream, "retry_token": done["retry_token"]}, "third")
    assert (text_of(frames), frames[-1]["data"]["status"]) == (WELL_TEXT, "completed")


@pytest.mark.parametrize("wrong", ["token", "empty", "running", "completed"])
async def test_only_a_failure_with_its_own_token_is_gone_on_with(hub: RunningHub, worker: object, wrong: str) -> None:
    wire = await hub.join()
    retry_of = await failure(wire)
    if wrong in ("token", "empty"):
        retry_of["retry_token"] = "another" if wrong == "token" else ""
    else:
        model = "scripted/tokens=1000,rate=1" if wrong == "running" else WELL
        await wire.send(question("other", model=model, attach=wrong == "completed"))
        retry_of["stream"] = (await wire.expect("accepted", id="other"))["stream"]
        if wrong == "completed":
            await wire.until("entry", kind="done")
    await wire.send(question("again", model=WELL, retry_of=retry_of))
    assert "retry_token" in (await wire.expect("error", id="again", code="invalid_request"))["message"]


@pytest.mark.parametrize(
    ("user", "scope"), [("bob", ""), ("bob", "streams:read streams:cancel")], ids=["a colleague", "with every scope"]
)
async def test_what_somebody_else_s_model_wrote_is_not_found(
    hub: RunningHub, worker: object, user: str, scope: str
) -> None:
    alice = await hub.join("alice", org="acme")
    retry_of = await failure(alice)
    other = await hub.join(user, org="acme", scope=scope)
    await other.send(question("again", model=WELL, retry_of=retry_of))
    foreign = await other.expect("error", id="again", code="not_found")
    for stream in ("g_aaaaaaaaaaaaaaaa", "no such name", "s_aaaaaaaaaaaaaaaa"):
        await other.send(question("again", model=WELL, retry_of={**retry_of, "stream": stream}))
        assert await other.expect("error", id="again", code="not_found") == foreign


async def test_when_it_expires_between_hub_and_worker_it_is_asked_anew(
    start_worker: StartWorker, hub: RunningHub, broker: Broker
) -> None:
    wire = await hub.join()
    first = await start_worker()
    retry_of = await failure(wire)
    first.stop()
    await wire.send(question("again", model=WELL, retry_of=retry_of, on_abandon="continue"))
    await wire.expect("accepted", id="again")
    await expire(broker, retry_of)
    await start_worker()
    frames = await wire.until("entry", kind="done")
    assert (text_of(frames), len(sources(frames))) == (WELL_TEXT, 1)


async def test_a_retry_that_breaks_off_is_gone_on_with_like_any_answer(hub: RunningHub, worker: object) -> None:
    """The second telling is held against all of it: what was kept and what was added."""
    wire = await hub.join()
    retry_of = await failure(wire)
    breaks = "scripted/tokens=9,rate=0,fault=idle,fail_after=6"
    frames = await retried(wire, retry_of, model=breaks, fallbacks=[WELL])
    assert (text_of(frames), frames[-1]["data"]["status"]) == (WELL_TEXT, "completed")
    assert [frame["data"]["code"] for frame in frames if frame.get("kind") == "notice"] == ["failover"]
    assert "reset" not in [frame.get("kind") for frame in frames]


@pytest.fixture
async def installed(start_hub: StartHub, broker: Broker, redis_url: str) -> AsyncIterator[tuple[Scene, Wire]]:
    async with scene(broker, redis_url, tiers=TIERS) as stage:
        hub = await start_hub(providers="scripted,fallback,anthropic,openai,hasty_anthropic,hasty_openai,backup")
        yield stage, await hub.join()


@pytest.mark.parametrize("tier", FORMATS, ids=FORMATS.get)
async def test_a_model_is_asked_for_the_rest_over_http(installed: tuple[Scene, Wire], tier: str) -> None:
    stage, wire = installed
    stage.primary.by_turn["Why?"] = deque([Script(texts=TEXTS, fault="end", fault_after=SHOWN)])
    retry_of = await failure(wire, model=tier, content="Why?")
    stage.primary.by_prompt[GO_ON] = Script(texts=REST)
    frames = await retried(wire, retry_of, model=tier, content="Why?")
    assert (text_of(frames), frames[-1]["data"]["status"]) == (WHOLE, "completed")
    turns = stage.primary.last.body["messages"]
    said = [turn for turn in turns if turn["role"] == "assistant"]
    assert len(said) == 1 and "000 001 002" in str(said[0]["content"])


@pytest.mark.parametrize("tier", FORMATS, ids=FORMATS.get)
async def test_a_provider_that_refuses_to_go_on_is_asked_anew_after_a_reset(
    installed: tuple[Scene, Wire], tier: str
) -> None:
    stage, wire = installed
    stage.primary.by_turn["Why?"] = deque([Script(texts=TEXTS, fault="end", fault_after=SHOWN), Script(texts=TEXTS)])
    retry_of = await failure(wire, model=tier, content="Why?")
    stage.primary.by_prompt[GO_ON] = Script(status=400)
    frames = await retried(wire, retry_of, model=tier, content="Why?")
    assert text_of(frames) == WHOLE and frames[-1]["data"]["status"] == "completed"
    assert [frame["data"] for frame in frames if frame.get("kind") == "reset"] == [{"reason": "retry"}]


async def test_a_failure_inside_of_thinking_is_asked_anew(hub: RunningHub, worker: object) -> None:
    wire = await hub.join()
    retry_of = await failure(wire, model="scripted/tokens=9,reasoning=3,rate=0,fail_after=0,fault=idle")
    frames = await retried(wire, retry_of)
    assert (text_of(frames), len(sources(frames))) == (WELL_TEXT, 1)


async def test_a_lost_worker_begins_a_retry_with_the_kept_text_again(
    start_worker: StartWorker, hub: RunningHub, broker: Broker
) -> None:
    wire = await hub.join()
    first = await start_worker()
    retry_of = await failure(wire)
    await wire.send(question("again", model="scripted/tokens=9,rate=2", retry_of=retry_of, on_abandon="continue"))
    await wire.expect("accepted", id="again")
    await wire.until("delta")
    first.stop()
    first.stop()  # at once: it hands over what it has not finished
    await start_worker()
    frames = await wire.until("entry", kind="done")
    after = frames[max(index for index, frame in enumerate(frames) if frame.get("kind") == "reset") :]
    assert text_of(after) == WELL_TEXT
    assert [source["mode"] for source in sources(after)] == ["cached", "live"]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_the_client_asks_the_same_again_with_one_word(hub: RunningHub, worker: object, encoding: Any) -> None:
    async with headrace.connect(hub.url, token(), encoding=encoding) as client:
        failed = client.generate("Why?", model=BROKEN, metadata={"a": 1})
        with pytest.raises(headrace.GenerationFailed) as caught:
            await failed.text()
        assert caught.value.text == WELL_TEXT[:20] and "retry()" in str(caught.value)
        again = failed.retry(model=WELL)
        assert await again.text() == WELL_TEXT and again.verified
        assert again.stream != failed.stream
        with pytest.raises(headrace.InvalidRequest, match="nothing to retry"):
            again.retry()
        attached = client.attach(failed.stream or "")
        await attached.done()
        with pytest.raises(headrace.InvalidRequest, match="retry_of"):
            attached.retry()
