"""One generation's answer, from the first provider call to its end."""

from __future__ import annotations

import structlog

from workers.generation import Ending
from workers.office import Office
from workers.providers import ProviderError
from workers.question import Question
from workers.run import Run
from workers.stepping import answer

log_ = structlog.get_logger(__name__)


async def read_answer(run: Run, question: Question, office: Office) -> None:
    """Ask, and feed what comes until the generation needs no more. However this ends, every provider's socket is
    closed or back in its pool, every call is reported, and the generation has an end; cancelling it leaves the end
    to the canceller.
    """
    generation = run.generation
    try:
        if not await office.sharing.answer(run, question):
            await answer(run, question, office)
    except ProviderError as error:
        generation.fail(error)
    except Exception:
        log_.exception("provider adapter failed", stream=run.key, provider=question.first.provider)
        generation.end(Ending.failed("internal", "the worker failed while reading the provider; ask again"))
    finally:
        office.mark(run)
