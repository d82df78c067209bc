"""A LangGraph graph as a model of Headrace: what its nodes write, and the tokens of its models, as a stream.

    pip install langgraph
    HEADRACE_GENERATORS=examples.langgraph_agent:weather headrace dev
    headrace chat --model generator/weather

It needs no key: the model is one of langchain-core's fakes. Put a real one in its place.
"""

from collections.abc import AsyncIterator

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph

from workers.generators import Request, Said, ToolCall, ToolResult


async def look(state: MessagesState) -> None:
    """A node that calls a tool, and lets viewers see it."""
    write = get_stream_writer()
    write(ToolCall("look-1", "forecast", {"city": "Lyon"}))
    write(ToolResult("look-1", "18 °C, dry"))


async def say(state: MessagesState) -> MessagesState:
    model = GenericFakeChatModel(messages=iter([AIMessage("It is 18 °C and dry in Lyon.")]))
    return {"messages": [await model.ainvoke(state["messages"])]}


graph = StateGraph(MessagesState).add_sequence([look, say]).add_edge(START, "look").compile()


async def weather(request: Request) -> AsyncIterator[Said]:
    messages = [(message.role, message.content) for message in request.messages]
    async for mode, part in graph.astream({"messages": messages}, stream_mode=["messages", "custom"]):
        if mode == "custom":
            yield part
        else:
            yield part[0].text  # a piece of a model's answer, and which node it is from
