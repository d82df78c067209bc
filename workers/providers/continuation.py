"""A request for the rest of an answer that was cut off, in the words of a conversation. Pure."""

from __future__ import annotations

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.frames import Message
from workers.providers import Continues

#: What a model is asked that does not take the beginning of its own answer. No system turn: that is the request's.
GO_ON = (
    "Your answer was cut off after the text above. Go on from exactly there, inside of a word if that is where it "
    "ends, and write only what is missing. Begin with a space or a line break if one belongs there. Say nothing "
    "about the interruption."
)
#: Characters a token, roughly: how much of `max_tokens` the kept text has used up.
_CHARACTERS_A_TOKEN = 4


def continued(body: Body, kept: str, continues: Continues) -> Body:
    """`body` with the beginning of its answer. What is left of `max_tokens` is an estimate, at least 1."""
    messages = list(body.messages)
    text = kept
    if messages[-1].role == "assistant":  # the request itself began the answer: one turn, not two
        text = messages.pop().content + text
    messages.append(Message("assistant", text))
    if continues == "turn":
        messages.append(Message("user", GO_ON))
    left = body.max_tokens and max(1, body.max_tokens - len(kept) // _CHARACTERS_A_TOKEN)
    return msgspec.structs.replace(body, messages=messages, max_tokens=left)
