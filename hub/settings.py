"""Settings of a hub. Read once at start from `HEADRACE_…` variables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from hub.broker.settings import BrokerSettings


class HubSettings(BrokerSettings):
    jwt_secret: SecretStr | None = Field(None, description="Secret of HS256 tokens. At least 32 bytes.")
    auth: Literal["jwt", "none"] = Field("jwt", description="`none`: everybody is the user `dev`; loopback only.")
    allowed_origins: str = Field("", description="Comma-separated origins that browsers may connect from; `*` for any.")
    providers: str = Field(
        "anthropic,openai,fallback",
        description="Provider names that requests may use. With `auth` `none`, `scripted` is one of them too.",
    )
    heartbeat_s: float = Field(
        20.0, ge=1, le=300, description="The hub pings this often; no sign of life for two: dropped."
    )
    hello_timeout_s: float = Field(5.0, gt=0, le=60, description="Time for the first `hello`.")
    token_grace_s: float = Field(30.0, ge=0, description="Time between a token's expiry and the close.")
    drain_s: float = Field(10.0, ge=0, description="SIGTERM closes connections spread over this time.")
    message_bytes: int = Field(262_144, ge=1024, description="Largest message a client may send, bytes.")
    prompt_bytes: int = Field(131_072, ge=1, description="Largest prompt (system and messages), bytes of UTF-8.")
    window: int = Field(4096, ge=1, description="Largest window, entries.")
    attachments: int = Field(64, ge=1, description="Streams followed by one connection.")
    frames_per_second: int = Field(
        400, ge=1, description="Frames a client may send per second, sustained; twice that at once."
    )
    connections: int = Field(20_000, ge=1, description="Connections of one hub; more are refused with 4101.")
