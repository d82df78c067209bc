"""The fold of a log: what a viewer shows (docs/protocol.md §5)."""

from __future__ import annotations

import hashlib

from headrace import (
    Citation,
    Done,
    Event,
    Fold,
    Live,
    Reasoning,
    Reset,
    Restarted,
    Text,
    ToolCall,
    ToolInput,
    ToolReady,
    ToolResult,
)


def done_for(text: str) -> Done:
    data = text.encode()
    return Done("completed", "end_turn", len(data), hashlib.sha256(data).hexdigest())


def test_text_and_reasoning_append_each_to_its_own() -> None:
    fold = Fold()
    assert (fold.text, fold.reasoning) == ("", "")
    for event in (Text("The sky"), Reasoning("hm"), Text(" is "), Reasoning("m"), Live(), Text("blue. 🌤")):
        fold.add(event)
    assert fold.text == "The sky is blue. 🌤"
    assert fold.reasoning == "hmm"
    assert fold.verify(done_for("The sky is blue. 🌤")) is True


def test_a_wrong_digest_and_a_wrong_length_are_both_seen() -> None:
    fold = Fold()
    fold.add(Text("abc"))
    right = done_for("abc")
    assert fold.verify(right) is True
    assert fold.verify(done_for("abd")) is False
    assert fold.verify(Done("completed", "end_turn", 4, right.text_sha256)) is False


def test_reset_empties_everything_and_what_follows_counts_anew() -> None:
    fold = Fold()
    for event in (Text("no"), Reasoning("no"), ToolCall("t1", "search"), Citation({"url": "x"})):
        fold.add(event)
    fold.add(Reset("worker_lost"))
    assert (fold.text, fold.reasoning, fold.tools, fold.citations) == ("", "", {}, [])
    fold.add(Text("yes"))
    assert fold.verify(done_for("yes")) is True


def test_done_freezes_and_a_restart_thaws() -> None:
    fold = Fold()
    fold.add(Text("a"))
    fold.add(done_for("a"))
    fold.add(Text("b"))
    assert fold.text == "a"
    fold.add(Restarted())
    fold.add(Text("c"))
    assert fold.text == "c"


def test_tool_calls_are_gathered_by_their_id() -> None:
    fold = Fold()
    for event in (
        ToolCall("t1", "search"),
        ToolInput("t1", '{"q":'),
        ToolCall("t2", "clock"),
        ToolInput("t1", ' "sky"}'),
        ToolReady("t1", {"q": "sky"}),
        ToolResult("t1", "blue", truncated=True),
        ToolResult("t2", "broken", error=True),
        Citation({"url": "https://example.org"}),
    ):
        fold.add(event)
    first, second = fold.tools["t1"], fold.tools["t2"]
    assert (first.name, first.arguments, first.input, first.output) == ("search", '{"q": "sky"}', {"q": "sky"}, "blue")
    assert (first.truncated, first.error) == (True, False)
    assert (second.name, second.output, second.error) == ("clock", "broken", True)
    assert fold.citations == [{"url": "https://example.org"}]


def test_a_viewer_without_its_prefix_checks_no_digest_until_the_log_starts_over() -> None:
    fold = Fold(None)
    fold.add(Text("…the end"))
    assert fold.verify(done_for("the whole")) is None
    fold.add(Reset("worker_lost"))
    assert fold.verify(done_for("")) is True


def test_a_kept_prefix_makes_the_text_whole() -> None:
    fold = Fold("The sky ")
    fold.add(Text("is blue."))
    assert fold.text == "The sky is blue."
    assert fold.verify(done_for("The sky is blue.")) is True


def test_half_a_character_makes_a_wrong_digest_and_no_crash() -> None:
    fold = Fold()
    fold.add(Text("\ud83c"))
    assert fold.verify(done_for("🌤")) is False


def test_a_step_begins_with_what_is_said_or_called_after_a_result() -> None:
    fold = Fold()

    def told(*events: Event) -> tuple[list[int], list[int]]:
        for event in events:
            fold.add(event)
        return fold.steps, [use.step for use in fold.tools.values()]

    assert told(Text("a"), ToolCall("t1", "x"), ToolCall("t2", "x"), ToolResult("t1", "1")) == ([], [0, 0])
    assert told(ToolResult("t2", "2"), Text("é"), ToolCall("t3", "x"), Text("c")) == ([1], [0, 0, 1])
    assert told(ToolResult("t3", "3"), ToolCall("t4", "x")) == ([1, 3], [0, 0, 1, 2])
    assert told(ToolResult("t4", "4"), Reset("failover"), Text("anew"), ToolCall("t1", "x")) == ([], [0])


def test_arguments_that_came_in_pieces_alone_are_parsed_from_them() -> None:
    fold = Fold()
    for call, pieces in (("t1", ['{"q":', " [1]}"]), ("t2", ["nonsense"]), ("t3", ["[" * 100_000])):
        fold.add(ToolCall(call, "x"))
        for piece in pieces:
            fold.add(ToolInput(call, piece))
        assert not fold.tools[call].ready
        fold.add(ToolReady(call))
    assert [(use.input, use.ready) for use in fold.tools.values()] == [({"q": [1]}, True), (None, True), (None, True)]


def test_the_last_text_is_that_of_the_last_step() -> None:
    fold = Fold()
    assert fold.last_text == ""
    for event, last in (
        (Text("I look."), "I look."),
        (ToolCall("t1", "look"), "I look."),
        (ToolResult("t1", "42"), ""),
        (Text("It is "), "It is "),
        (Text("42."), "It is 42."),
        (Reset("failover"), ""),
        (Text("No."), "No."),
    ):
        fold.add(event)
        assert fold.last_text == last
