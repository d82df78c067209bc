"""A pydantic-ai agent as a model of Headrace: its text, its tools and its usage, as a stream.

    pip install pydantic-ai-slim
    HEADRACE_GENERATORS=examples.pydantic_ai_agent:weather headrace dev
    headrace chat --model generator/weather

It needs no key: pydantic-ai's TestModel calls each tool once. With HEADRACE_EXAMPLE_MODEL=anthropic:claude-haiku-4-5,
a key, and pydantic-ai-slim[anthropic] it is a real agent.
"""

import os
from collections.abc import AsyncIterator

import pydantic_ai as ai
from pydantic_ai.models.test import TestModel

from workers.generators import Request, Said, ToolCall, ToolResult, Usage

agent = ai.Agent(os.environ.get("HEADRACE_EXAMPLE_MODEL") or TestModel(), instructions="You tell the weather.")


@agent.tool_plain
async def forecast(city: str) -> str:
    return f"{city}: 18 °C, dry"


async def weather(request: Request) -> AsyncIterator[Said]:
    before = [
        ai.ModelRequest.user_text_prompt(turn.content)
        if turn.role == "user"
        else ai.ModelResponse([ai.TextPart(turn.content)])
        for turn in request.messages[:-1]
    ]
    async with agent.run_stream_events(request.prompt, message_history=before) as events:
        async for event in events:
            match event:
                case ai.PartStartEvent(part=ai.TextPart(content=text)):
                    yield text
                case ai.PartDeltaEvent(delta=ai.TextPartDelta(content_delta=text)):
                    yield text
                case ai.FunctionToolCallEvent(part=call):
                    yield ToolCall(call.tool_call_id, call.tool_name, call.args_as_dict())
                case ai.FunctionToolResultEvent(part=result):
                    yield ToolResult(result.tool_call_id, str(result.content))
                case ai.AgentRunResultEvent(result=result):
                    yield Usage(result.usage.input_tokens, result.usage.output_tokens)
