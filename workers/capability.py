"""What a model cannot do is left out of its request, and said so: nothing is sent that it would refuse. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.protocol.body import Body
from headrace.protocol.entries import Notice
from headrace.protocol.tools import forces
from workers.catalog import ModelEntry
from workers.structured import prompted

#: The notices' codes; their `parameter` names the field of the request.
DROPPED, LOWERED = "parameter_dropped", "parameter_lowered"


def fitted(body: Body, can: ModelEntry, model: str) -> tuple[Body, list[Notice]]:
    """`body` as `model` takes it, and what to tell viewers about the difference."""
    changes: dict[str, Any] = {}
    if body.temperature is not None and not can.sampling:
        changes["temperature"] = None
    if body.stop and not can.stop:
        changes["stop"] = None
    if body.tools and not can.tools:
        changes["tools"] = None
        if body.tool_choice is not None:
            changes["tool_choice"] = None
    elif forces(body.tool_choice) and not can.forced_tools:
        changes["tool_choice"] = None
    if body.max_tokens is not None and can.max_output is not None and body.max_tokens > can.max_output:
        changes["max_tokens"] = can.max_output
    if not can.schema:
        body = prompted(body)
    if not changes:
        return body, []
    notices = [Notice(DROPPED if value is None else LOWERED, model, parameter=name) for name, value in changes.items()]
    return msgspec.structs.replace(body, **changes), notices
