"""Reads one provider for one generation, at the generation's pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import structlog

from headrace.protocol.body import Body
from workers.generation import Ending
from workers.providers import Provider, ProviderError
from workers.run import Run
from workers.seam import Seam

log_ = structlog.get_logger(__name__)

#: After the provider's last word its body may still end in good order, so that the connection can be used again.
_LAST_WORD_S = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of whom. `kept` is the beginning of the answer, when a lost worker's is gone on with."""

    provider: Provider
    model: str
    body: Body
    kept: str = ""


async def read_answer(run: Run, question: Question, mark: Callable[[Run], None], clock: Callable[[], float]) -> None:
    """Ask, and feed what comes until the generation needs no more. However this ends, the provider's socket is
    closed or back in its pool, and the generation has an end; cancelling it leaves the end to the canceller.
    """
    generation = run.generation
    provider = question.provider
    try:
        try:
            await _read(run, question, mark, clock)
        except ProviderError as error:
            if not (question.kept and error.refused and generation.start_over()):
                raise
            log_.info("provider refuses to go on, starting over", stream=run.key, provider=provider.name)
            mark(run)
            await _read(run, replace(question, kept=""), mark, clock)
    except ProviderError as error:
        generation.fail(error)
    except Exception:
        log_.exception("provider adapter failed", stream=run.key, provider=provider.name)
        generation.end(Ending.failed("internal", "the worker failed while reading the provider; ask again"))
    finally:
        mark(run)


async def _read(run: Run, question: Question, mark: Callable[[Run], None], clock: Callable[[], float]) -> None:
    """One request, up to the generation's end. Raises ProviderError."""
    generation = run.generation
    seam = Seam(question.kept, question.provider.continues(question.model))
    try:
        async with aclosing(question.provider.stream(question.model, question.body, seam.given)) as stream:
            async for events in stream:
                generation.feed(seam.join(events), clock())
                if not run.is_marked:
                    mark(run)
                if not generation.may_read:
                    if generation.ended:
                        run.reader = None  # ends by itself now, and soon: nobody is to cut it off
                        await _hear_out(stream)
                        return
                    await run.readable()
    except ProviderError:
        generation.feed(seam.end(), clock())
        raise
    generation.feed(seam.end(), clock())
    generation.end(Ending.failed("provider_error", "the provider ended its answer without saying so"))


async def _hear_out(stream: Any) -> None:
    try:
        async with asyncio.timeout(_LAST_WORD_S):
            await anext(stream, None)
    except (TimeoutError, ProviderError):
        pass
