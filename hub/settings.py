"""Settings of a hub. Read once at start from `HEADRACE_…` variables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from hub.broker.settings import BrokerSettings
from hub.gate import networks
from hub.ledger import DEFAULT, check


class HubSettings(BrokerSettings):
    jwt_secret: SecretStr | None = Field(None, description="Secret of HS256 tokens. At least 32 bytes.")
    jwt_audience: str = Field("", description="A token must be meant for this `aud`; unset: any.")
    jwt_issuer: str = Field("", description="A token must come from this `iss`; unset: any.")
    auth: Literal["jwt", "none"] = Field("jwt", description="`none`: everybody is the user `dev`; loopback only.")
    allowed_origins: str = Field("", description="Comma-separated origins that browsers may connect from; `*` for any.")
    providers: str = Field(
        "",
        description="Comma-separated providers that requests may name; unset: all that workers have, but `scripted`.",
    )
    heartbeat_s: float = Field(
        20.0, ge=1, le=300, description="The hub pings this often; no sign of life for two: dropped."
    )
    header_timeout_s: float = Field(10.0, gt=0, le=60, description="Time for an HTTP request to arrive whole.")
    header_bytes: int = Field(32_768, ge=1024, le=1_048_576, description="Largest head of an HTTP request, bytes.")
    hello_timeout_s: float = Field(5.0, gt=0, le=60, description="Time for the first `hello`.")
    unauthenticated: int = Field(
        2000, ge=1, description="Connections without `hello`; the one that has waited longest makes room, with 4101."
    )
    unauthenticated_per_address: int = Field(500, ge=1, description="The same for one address (IPv6: one /64 network).")
    trusted_proxies: str = Field(
        "", description="Comma-separated addresses or networks of proxies whose `X-Forwarded-For` is believed."
    )
    token_grace_s: float = Field(30.0, ge=0, description="Time between a token's expiry and the close.")
    drain_s: float = Field(10.0, ge=0, description="SIGTERM closes connections spread over this time.")
    message_bytes: int = Field(262_144, ge=1024, description="Largest message a client may send, bytes.")
    prompt_bytes: int = Field(131_072, ge=1, description="Largest prompt, tools and schema included, bytes of UTF-8.")
    window: int = Field(4096, ge=1, description="Largest window, entries.")
    attachments: int = Field(64, ge=1, description="Streams followed by one connection.")
    frames_per_second: int = Field(
        400, ge=1, description="Frames a client may send per second, sustained; twice that at once."
    )
    ledger: str = Field(
        DEFAULT,
        description="Where usage and cost are kept: `sqlite:FILE`, `postgresql://…`, or `off`. Same for all hubs.",
    )
    connections: int = Field(20_000, ge=1, description="Connections of one hub; more are refused with 4101.")

    @field_validator("ledger")
    @classmethod
    def _is_ledger(cls, value: str) -> str:
        value = value or DEFAULT  # set to nothing is not set
        check(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        networks(value)
        return value
