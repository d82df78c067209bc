"""An answer with tools: the model is asked, what it calls for is run, and it is asked again with the results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from hub.broker.keys import org_of, stream_of
from workers.asking import Asking
from workers.generation import TOOL_STEPS
from workers.office import Office
from workers.providers import Stop, ToolResult
from workers.question import Question
from workers.run import Run
from workers.steps import Steps, Wanted
from workers.tools.asker import Caller
from workers.tools.runner import ToolRunner

#: Tools of one step that run at the same time; the others wait their turn.
TOGETHER: Final = 8


async def answer(run: Run, question: Question, office: Office) -> None:
    """Ask, step by step, until the generation ended. Raises the ProviderError that it ends with."""
    if not question.body.tools:
        await Asking(run, question, office).run()
        return
    toolbox = office.tools.toolbox
    steps = Steps(toolbox.described(question.body), toolbox.wanted(question.body))
    asking = Asking(run, replace(question, body=steps.body), office, steps)
    await asking.run()
    while steps.is_over and not run.generation.ended:
        await _take_step(run, steps, office, asking)
        if run.generation.ended:
            return
        await run.readable()
        asking = asking.following(steps.body)
        await asking.run()


async def _take_step(run: Run, steps: Steps, office: Office, asking: Asking) -> None:
    """Run the tools that the model called for, and make its next question of the results; or end the answer."""
    generation = run.generation
    if steps.is_last:
        generation.end(TOOL_STEPS)
        return
    # Whoever takes this answer over must find in its log that a tool may have run.
    office.mark(run)
    await run.settled()
    if generation.ended:
        return
    text, results = asking.said, []
    attempt = asking.question.attempt
    caller = Caller(attempt.user, org_of(run.key), stream_of(run.key))
    async with aclosing(results_of(office.tools, steps, caller)) as running:
        async for result in running:
            results.append(result)
            generation.feed([result], office.clock())
            office.mark(run)
    if steps.waits_for_client:
        generation.feed([Stop("tool")], office.clock())
        return
    generation.begin_step(asking.question.before)
    steps.go_on(text, results)


async def results_of(runner: ToolRunner, steps: Steps, caller: Caller) -> AsyncGenerator[ToolResult, None]:
    """Of all calls, in their order, each as soon as it and those before it are there. Closing this ends the rest."""
    slots = asyncio.Semaphore(TOGETHER)

    async def run(call: Wanted) -> ToolResult:
        async with slots:
            return await runner.run(call, steps.ours, caller)

    tasks = [asyncio.create_task(run(call)) for call in steps.wanted]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
