"""`GET /v1/models`: what may be asked for, in OpenAI's format."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Receive, Scope, Send

from hub.admission import Choices
from hub.completions.face import identify
from hub.completions.problem import Problem
from hub.completions.reply import Reply
from hub.node import Node

PATH: Final = "/v1/models"


def listed(choices: Choices) -> list[dict[str, Any]]:
    """The names that mean something on every hub. Concrete models are known to workers alone: they can be asked
    for, and looked up one by one, and are not listed.
    """
    return [_model(name) for name in choices.tiers]


def found(name: str, choices: Choices) -> dict[str, Any]:
    """One that may be asked for. Raises Problem."""
    if not choices.allows(name):
        raise Problem("unknown_model", "there is no such model on this hub", param="model")
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    provider, slash, _ = name.partition("/")
    return {"id": name, "object": "model", "created": 0, "owned_by": provider if slash else "headrace"}


class Models:
    """The ASGI application at `PATH` and below."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply, choices = Reply(send), self._node.choices
        try:
            identify(self._node, dict(scope["headers"]))
            name = scope["path_params"].get("name")
            value = {"object": "list", "data": listed(choices)} if name is None else found(name, choices)
        except Problem as problem:
            await reply.fail(problem)
            return
        await reply.json(200, value)
