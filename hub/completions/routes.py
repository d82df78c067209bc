"""OpenAI's format as a face of the hub."""

from __future__ import annotations

from typing import Final

from starlette.routing import Route

from hub.completions import face, models
from hub.gate import Gate
from hub.node import Node

#: Paths whose requests bring a body.
BODY_PATHS: Final = frozenset({face.PATH})


def routes(node: Node, gate: Gate) -> list[Route]:
    listing = models.Models(node)
    return [
        Route(face.PATH, face.ChatCompletions(node, gate), methods=["POST"]),
        Route(models.PATH, listing, methods=["GET"]),
        Route(models.PATH + "/{name:path}", listing, methods=["GET"]),
    ]
