"""The responder that needs no model: a few rules, friendly, and plain about what it is.

It answers when no provider has a key, so that everything else can be seen working, and when all models of a tier
failed. Every answer says that no model wrote it and what to do to get one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator

from headrace.protocol.body import Body
from workers.providers import Continues, Event, Speaker, Stop, Text, Usage

MODEL = "rules"
#: Asked for instead when models are configured and none of them answered.
MODEL_OUTAGE = "outage"

#: Pause between two pieces: quick, but visibly a stream.
PIECE_S = 0.02
#: How much of a question is repeated in the answer, in characters.
TOPIC_CHARS = 120

WHAT_TO_DO = (
    "No model is configured on this server, so this is a rule-based reply and not a model's answer. "
    "To get real answers, set ANTHROPIC_API_KEY or OPENAI_API_KEY for the worker and start it again. "
    "To watch a longer stream without any key, ask for the model scripted/story."
)

OUTAGE = (
    "None of the models that are configured here could answer just now, so this is a rule-based reply and not a "
    "model's answer. Please ask again in a little while."
)

_GREETING = re.compile(r"\s*(hi|hello|hey|good (morning|afternoon|evening)|hallo|bonjour|hola)\b", re.I)
_THANKS = re.compile(r"\b(thanks|thank you|merci|danke|gracias)\b", re.I)
_WHO = re.compile(r"\b(who|what) are you\b|\bwhat is (this|headrace)\b", re.I)
_HELP = re.compile(r"^\s*help\b|\bhow (do|can) (i|you)\b.*\b(start|set ?up|configure|use)\b", re.I)
_PIECES = re.compile(r"\s*\S+\s*$|\s*\S+|\s+$")


def reply(prompt: str, *, outage: bool = False) -> str:
    """What is answered to `prompt`. Pure; the same prompt gets the same reply."""
    if outage:
        return f"I received your message{_topic(prompt)}.\n\n{OUTAGE}"
    if _GREETING.match(prompt):
        opening = "Hello! The connection works: you are reading this as a stream, word by word."
    elif _WHO.search(prompt):
        opening = (
            "I am the fallback of a Headrace worker: a handful of rules that keep the stream alive without a model."
        )
    elif _HELP.search(prompt):
        opening = "Happy to help with the set-up; that is all these rules know about."
    elif _THANKS.search(prompt):
        opening = "You are welcome!"
    else:
        opening = f"I received your message{_topic(prompt)}, but there is no model here to think about it."
    return f"{opening}\n\n{WHAT_TO_DO}"


def _topic(prompt: str) -> str:
    words = " ".join(prompt.split())
    if not words:
        return ""
    shown = words if len(words) <= TOPIC_CHARS else words[:TOPIC_CHARS].rsplit(" ", 1)[0] + " …"
    return f" (“{shown}”)"


def pieces(text: str) -> list[str]:
    """`text` cut into words, each with the white space before it. Joined again they are `text`."""
    return _PIECES.findall(text)


class FallbackProvider:
    """Streams `reply` in word pieces. Counts no tokens: no model was used."""

    name = "fallback"
    mode = "fallback"

    def continues(self, model: str) -> Continues:
        return "no"

    async def stream(self, model: str, body: Body, kept: str = "") -> AsyncGenerator[list[Event], None]:
        yield [Speaker(MODEL)]
        for piece in pieces(reply(body.messages[-1].content, outage=model == MODEL_OUTAGE)):
            yield [Text(piece)]
            await asyncio.sleep(PIECE_S)
        yield [Usage(), Stop("stop")]

    async def close(self) -> None:
        """Nothing is held."""
