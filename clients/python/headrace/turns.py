"""The turns of a conversation that an answer amounts to: what the next `generate` sends along. Pure."""

from __future__ import annotations

from itertools import pairwise

from headrace.fold import Fold, ToolUse
from headrace.protocol.frames import Call, Message

#: `done.stop_reason` of an answer that waits for results of the client's tools.
TOOL_CALLS = "tool_calls"


def open_calls(fold: Fold) -> list[ToolUse]:
    """The calls whose arguments are complete and that have no result, in order."""
    return [use for use in fold.tools.values() if use.ready and use.output is None]


def turns_of(fold: Fold, *, with_open_calls: bool) -> list[Message]:
    """The answer as the model is to be reminded of it: for each of its steps what it said and the tools it called,
    and what the worker's tools returned.

    Calls without a result are among them only `with_open_calls`: then the results are the caller's to add. Half a
    call never is.
    """
    text = fold.text
    turns: list[Message] = []
    for step, (start, end) in enumerate(pairwise([0, *fold.steps, len(text)])):
        uses = [use for use in fold.tools.values() if use.step == step and use.ready]
        uses = [use for use in uses if with_open_calls or use.output is not None]
        calls = [Call(use.call, use.name, use.input if isinstance(use.input, dict) else {}) for use in uses]
        if calls or text[start:end]:
            turns.append(Message("assistant", text[start:end], calls or None))
        turns += [Message("tool", use.output, call=use.call, error=use.error) for use in uses if use.output is not None]
    return turns
