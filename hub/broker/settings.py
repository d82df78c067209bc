"""Settings that hubs and workers share. Read once at start from `HEADRACE_…` variables; durations in seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hub.broker.address import parse_address


class BrokerSettings(BaseSettings):
    """What hub and worker must agree on. Every process of one installation gets the same values."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", frozen=True, extra="ignore")

    redis_url: str | None = Field(
        None, description="Redis to use: `redis://`, `rediss://`, `unix://` or `redis+sentinel://`."
    )
    lease_s: float = Field(4.0, ge=0.5, le=60, description="How long a worker owns a generation without renewing.")
    lease_grace_s: float = Field(
        3.0, ge=0, le=60, description="After an outage of Redis, owners have so long to renew their leases."
    )
    janitor_interval_s: float = Field(0.5, gt=0, le=5, description="How often the janitor looks.")
    queue_timeout_s: float = Field(
        120.0,
        gt=0,
        description="A request that waits this long for a worker ends `overloaded`, a lost run `worker_lost`.",
    )
    max_run_s: float = Field(
        1800.0, gt=0, description="A generation may run this long; unfinished streams live no longer."
    )
    retention_s: float = Field(3600.0, gt=0, description="A finished stream can be resumed and replayed this long.")
    request_key_s: float = Field(86400.0, gt=0, description="A `request` key is remembered this long.")
    mailbox_ttl_s: float = Field(
        20.0, ge=2, le=300, description="A mailbox whose owner stopped renewing it is gone after this."
    )
    mailbox_packets: int = Field(
        512, ge=16, description="Packets kept in a mailbox; older ones become holes, read from the log."
    )
    run_ahead: int = Field(512, ge=1, description="Entries a worker may write past the greatest demand.")
    cache_scope: Literal["org", "user", "off"] = Field(
        "org", description="Who shares answers that were asked for with `cache`: an organisation, or each user alone."
    )
    cache_ttl_s: float = Field(
        3600.0, ge=1, le=86_400, description="An answer is used again this long after it was asked for, while kept."
    )
    prefetches_per_hour: int = Field(
        0, ge=0, le=1000, description="Answers that a user may have prepared ahead in an hour; 0: none."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_address(cls, url: str | None) -> str | None:
        if url:
            parse_address(url)
        return url


def wrong_settings(error: ValidationError) -> list[str]:
    """What is wrong with the `HEADRACE_…` variables, one short sentence each. Never a value: it may be a secret."""
    return [
        f"HEADRACE_{'_'.join(map(str, item['loc'])).upper()}: {_lowered(item['msg'].removeprefix('Value error, '))}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
