"""What of a failed answer is gone on with, and what is asked for anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from headrace.protocol import entries as kinds
from headrace.protocol.body import Body
from headrace.protocol.entries import Entry, TextDigest, encode_data
from headrace.protocol.frames import Message, RetryOf
from hub.broker.retry import fits
from workers.providers import Continues
from workers.retried import Gathered, Retried

TOKEN = "the token"
SOURCE: Entry = ("source", encode_data(kinds.Source("acme", "big", "live", "failover", 2)))
TEXT: list[Entry] = [("text", "so fär ".encode()), ("text", b"so good")]


def ended(log: Sequence[Entry], token: str | None = TOKEN, status: Any = "failed") -> Entry:
    digest = TextDigest()
    for kind, data in log:
        digest.add(kind, data)
    error = kinds.DoneError("provider_error", "it broke", "backoff")
    return "done", encode_data(
        kinds.Done(status, "error", digest.size, digest.hexdigest(), error=error, retry_token=token)
    )


def taken(
    log: Sequence[Entry], continues: Continues = "turn", token: str = TOKEN, **fields: Any
) -> Retried | None:  # fmt: skip
    gathered = Gathered()
    for kind, data in log:
        gathered.add(kind, data)
    assert gathered.count == len(log)
    body = Body([Message("user", "hi")], retry_of=RetryOf("g_aaaaaaaaaaaaaaaa", token), **fields)
    return gathered.taken(body, continues)


@pytest.mark.parametrize("continues", ["turn", "prefix"])
def test_text_is_gone_on_with_and_its_writer_is_named(continues: Continues) -> None:
    for before in ([], [("reasoning", b"hm")], [*TEXT, ("reset", encode_data(kinds.Reset("failover")))]):
        log = [SOURCE, *before, *TEXT]
        assert taken([*log, ended(log)], continues) == Retried(
            "so fär so good", kinds.Source("acme", "big", "cached", "retry")
        )


def test_without_a_source_nobody_is_named() -> None:
    unknown = kinds.Source("unknown", "unknown", "cached", "retry")
    assert taken([*TEXT, ended(TEXT)]) == Retried("so fär so good", unknown)


@pytest.mark.parametrize(
    "log",
    [
        [],
        [("text", b" \n")],
        [("reasoning", b"half a thought")],
        [*TEXT, ("reasoning", b"and half a thought")],
        [*TEXT, ("tool_call", encode_data(kinds.ToolCall("t", "x")))],
        [("tool_result", encode_data(kinds.ToolResult("t", "done"))), *TEXT],
        [("tool_result", encode_data(kinds.ToolResult("t", "done"))), ("reset", encode_data(kinds.Reset("x"))), *TEXT],
        [("citation", b"\x80"), *TEXT],
        [*TEXT, ("reset", encode_data(kinds.Reset("worker_lost")))],
    ],
    ids=[
        "nothing", "space", "a thought", "text and a thought", "a tool call", "a tool ran", "a tool ran before",
        "a cited passage", "void",
    ],
)  # fmt: skip
def test_anything_else_is_asked_for_anew(log: list[Entry]) -> None:
    assert taken([*log, ended(log)]) is None


def test_a_model_that_cannot_go_on_and_a_structured_answer_are_asked_anew() -> None:
    log = [*TEXT, ended(TEXT)]
    assert taken(log) is not None
    assert taken(log, "no") is None
    assert taken(log, schema={"type": "object"}) is None


def test_only_a_whole_log_that_failed_with_this_token_counts() -> None:
    assert taken([*TEXT, ended(TEXT)], token="another") is None
    assert taken([*TEXT, ended(TEXT, None)], token="") is None, "asking again is no use"
    assert taken([*TEXT, ended(TEXT, status="completed")]) is None
    assert taken(TEXT) is None, "it was cut short"
    assert taken([TEXT[1], ended(TEXT)]) is None, "a piece of it is missing"
    gathered = Gathered()
    gathered.add(*ended([]))
    assert gathered.is_whole
    assert gathered.taken(Body([Message("user", "hi")]), "turn") is None


def test_a_source_that_cannot_be_read_is_no_answer_to_go_on_with() -> None:
    with pytest.raises(msgspec.DecodeError):
        Gathered().add("source", b"\xc1")


def test_a_token_fits_the_end_that_it_came_with_and_nothing_else() -> None:
    end = ended(TEXT)
    assert fits(end, TOKEN)
    assert not fits(end, "the other") and not fits(end, "") and not fits(end, "\ud800")
    assert not fits(("text", end[1]), TOKEN)
    assert not fits(("done", b"\x81\xa6status\xa6asleep"), TOKEN), "an end of another version"
