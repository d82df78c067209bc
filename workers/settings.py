"""Settings of a worker. Read once at start from `HEADRACE_…` variables; durations in seconds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from hub.broker.settings import BrokerSettings
from workers.registration import parse


class WorkerSettings(BrokerSettings):
    # A thousand answers at 20 tokens a second take some 0.4 of a core without a provider's SDK, and an SDK takes
    # about as much again: more than this saturates one process, and one killed worker should not restart more.
    worker_concurrency: int = Field(
        1000, ge=1, le=20_000, description="Generations run at a time; one more place is kept for takeovers."
    )
    config: Path | None = Field(
        None, description="The catalog of providers, models and tiers; unset: `headrace.toml` here, if there is one."
    )
    tools: str = Field("", description="Modules with tools that this worker runs, with commas between them.")
    tool_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="A tool without a time limit of its own may run this long."
    )
    generators: str = Field(
        "", description="Your own generators as models: `module:function`, `name=module:function`, with commas between."
    )
    generator_silence_s: float = Field(
        120.0, gt=0, le=3600, description="A generator that yields nothing for so long has failed."
    )
    drain_timeout_s: float = Field(
        120.0, ge=0, description="After SIGTERM, what runs has this long to finish; the rest is handed to others."
    )

    @field_validator("generators")
    @classmethod
    def _are_generators(cls, value: str) -> str:
        parse(value)
        return value
