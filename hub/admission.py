"""Whether a `generate` can be accepted: what is wrong with it is said before it costs anything (protocol §3). Pure.

Everything here raises Rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from headrace.protocol.body import Body
from headrace.protocol.frames import Generate
from headrace.protocol.schema import WrongSchema
from headrace.protocol.schema import check as check_schema
from headrace.protocol.tools import WrongTools, check_tools, check_turns
from hub.broker.answers import may_share
from hub.errors import Rejected
from hub.patterns import pattern_problem

#: Tiers and complexities that the shipped catalog names.
SHIPPED: Final = ("fast", "standard", "premium", "simple", "medium", "complex")
#: Providers that need no report of a worker to be known: the shipped catalog's, and the rules.
SHIPPED_PROVIDERS: Final = frozenset({"anthropic", "openai", "fallback"})
#: Models that a request may bring to be tried next.
FALLBACKS: Final = 8
#: Fields of `generate` that this version cannot honour. Said, never ignored.
_UNSUPPORTED: Final = (
    "session",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choices:
    """What `model` may be: a tier or a complexity by its name, or `provider/model` with one of `providers`."""

    providers: frozenset[str]
    tiers: tuple[str, ...] = SHIPPED

    def allows(self, model: str) -> bool:
        provider, slash, concrete = model.partition("/")
        return model in self.tiers or bool(slash and concrete and provider in self.providers)

    def __str__(self) -> str:
        return f"{', '.join(self.tiers)}, or provider/model with one of: {', '.join(sorted(self.providers))}"


def check(
    frame: Generate, body: Body, prompt_bytes: int, choices: Choices, *, shares: bool = True, prefetches: bool = False
) -> None:
    """`prompt_bytes` is the largest prompt; `shares` and `prefetches`: the operator allows it."""
    for name in _UNSUPPORTED:
        if getattr(frame, name) is not None:
            raise Rejected("unsupported", f"`{name}` is not available on this hub")
    if frame.notify:
        raise Rejected("unsupported", "`notify` is not available on this hub")
    if frame.cache != "off" and not shares:
        raise Rejected("unsupported", "`cache` is turned off on this hub: answers are not shared")
    if frame.prefetch and not (shares and prefetches):
        raise Rejected("unsupported", "`prefetch` is turned off on this hub: answers are not prepared ahead")
    if frame.prefetch and not may_share(body):
        raise Rejected("invalid_request", "`prefetch` is not for requests with tools: their answers are not shared")
    if body.prompt_bytes > prompt_bytes:
        raise Rejected("prompt_too_long", f"the prompt has {body.prompt_bytes} bytes, the limit is {prompt_bytes}")
    _check_models(frame, choices)
    if frame.schema is not None:
        try:
            check_schema(frame.schema, pattern_problem)
        except WrongSchema as error:
            raise Rejected("invalid_request", f"`schema`: {error}") from None
    try:
        check_tools(frame.tools or [], frame.tool_choice)
        check_turns(frame.messages)
    except WrongTools as error:
        raise Rejected("invalid_request", str(error)) from None


def _check_models(frame: Generate, choices: Choices) -> None:
    if frame.provider is not None and frame.provider not in choices.providers:
        raise Rejected("unknown_model", f"`provider` must be one of: {', '.join(sorted(choices.providers))}")
    fallbacks = frame.fallbacks or []
    if len(fallbacks) > FALLBACKS:
        raise Rejected("invalid_request", f"`fallbacks` lists at most {FALLBACKS} models")
    for what, model in [("model", frame.model), *[("model in `fallbacks`", fallback) for fallback in fallbacks]]:
        if not choices.allows(model):
            raise Rejected("unknown_model", f"the {what} must be {choices}")
