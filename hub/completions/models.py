"""`GET /v1/models`: what may be asked for, in OpenAI's format."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Receive, Scope, Send

from hub.completions.face import identify
from hub.completions.problem import Problem
from hub.completions.reply import Reply
from hub.fleet import Fleet
from hub.node import Node

PATH: Final = "/v1/models"


async def found(name: str, fleet: Fleet) -> dict[str, Any]:
    """One that may be asked for, listed or not: any model name passes through to its provider. Raises Problem."""
    if not fleet.choices.allows(name):
        await fleet.look()
    if not fleet.choices.allows(name):
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
        reply, fleet = Reply(send), self._node.fleet
        try:
            identify(self._node, dict(scope["headers"]))
            name = scope["path_params"].get("name")
            if name is None:
                value: dict[str, Any] = {"object": "list", "data": [_model(name) for name in fleet.models]}
            else:
                value = await found(name, fleet)
        except Problem as problem:
            await reply.fail(problem)
            return
        await reply.json(200, value)
