"""What a run is made of, and when which fault strikes: all of it drawn from one seed, beforehand.

The same seed gives the same faults at the same times, and the same choices of each viewer. What comes of them
depends on how fast processes are scheduled: that cannot be replayed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

Redis = Literal["always", "everysec", "none", "sentinel"]


@dataclass(frozen=True)
class Plan:
    minutes: float = 2.0
    seed: int = 1
    redis: Redis = "always"
    hubs: int = 3
    #: One more than are away at a time: a worker that was killed needs seconds to load the providers' SDKs.
    workers: int = 5
    viewers: int = 200
    #: Mean seconds between two of a kind.
    hub_kill_s: float = 8.0
    worker_kill_s: float = 8.0
    redis_restart_s: float = 32.0
    network_s: float = 4.0
    #: After the last fault everything has this long to come to its end.
    settle_s: float = 120.0
    quiet: bool = False

    @property
    def seconds(self) -> float:
        return self.minutes * 60

    def dice(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose: more of one thing changes nothing about the others."""
        return random.Random(f"{self.seed}:{purpose}")


@dataclass(frozen=True, order=True)
class Fault:
    """`at` seconds after the start. `choice` in [0, 1) picks whom it strikes among those it may strike then."""

    at: float
    kind: str
    choice: float = 0.0
    seconds: float = 0.0
    """How long it lasts, where it lasts."""
    detail: str = ""
    amount: int = 0


#: Kinds with a rhythm of their own: mean seconds between two, shortest and longest duration.
_RHYTHMS: dict[str, tuple[float, float, float]] = {
    "hub drain": (41.0, 0.0, 0.0),
    "hub pause": (53.0, 0.5, 5.0),
    "worker drain": (37.0, 0.0, 0.0),
    "worker pause": (29.0, 1.0, 14.0),
    "redis pause": (61.0, 0.5, 3.0),
}
_FIRST_S = 4.0
_JITTER = 0.35

_LINKS = ("viewers", "viewers", "hub-redis", "worker-redis", "worker-redis", "provider")
_WEATHER = ("reset", "reset", "cut", "cut", "stall", "vanish", "refuse", "slow", "split")


def schedule(plan: Plan) -> list[Fault]:
    """Every fault of a run, in order of time."""
    faults: list[Fault] = []
    rhythms = {
        "hub kill": (plan.hub_kill_s, 0.0, 0.0),
        "worker kill": (plan.worker_kill_s, 0.0, 0.0),
        "redis restart": (plan.redis_restart_s, 0.0, 3.0),
        "network": (plan.network_s, 0.5, 6.0),
        **_RHYTHMS,
    }
    if plan.redis == "none":
        rhythms["redis flush"] = (67.0, 0.0, 0.0)
    for kind, (mean_s, shortest, longest) in rhythms.items():
        dice = plan.dice(f"faults:{kind}")
        at = _FIRST_S + dice.random() * mean_s * 0.5
        while at < plan.seconds:
            seconds = dice.uniform(shortest, longest)
            choice, amount = dice.random(), dice.choice((1, 50, 400, 3_000, 20_000))
            detail = f"{dice.choice(_LINKS)} {dice.choice(_WEATHER)}" if kind == "network" else ""
            faults.append(Fault(round(at, 3), kind, choice, round(seconds, 3), detail, amount))
            at += mean_s * dice.uniform(1 - _JITTER, 1 + _JITTER)
    return sorted(faults)


Mode = Literal["ask", "join"]


@dataclass(frozen=True)
class Intent:
    """What a viewer is going to do with one stream. Drawn before it does it."""

    model: str
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)
    window: int | None = 256
    pace_ms: int = 0
    #: Seconds after which the viewer cuts its own connection, again and again; 0: never.
    cut_every_s: float = 0.0
    #: Seconds that it does not read, once in a while; 0: never.
    nap_s: float = 0.0
    #: Seconds after the answer when it does so; 0: never.
    cancel_after_s: float = 0.0
    leave_after_s: float = 0.0
    detach_after_s: float = 0.0
    #: The same request is sent on another connection as well.
    is_doubled: bool = False
    #: Asked for with `attach: false`, attached to later.
    is_unwatched: bool = False
    #: Joins at the top: no prefix, no digest.
    from_now: bool = False
    encoding: Literal["json", "msgpack"] = "json"


def intent(dice: random.Random, mode: Mode) -> Intent:
    """Draw one. Every choice draws the same number of figures whatever comes out, so that intents stay comparable."""
    rate, seconds = dice.uniform(12, 35), dice.uniform(5, 18)
    tokens = int(rate * seconds)
    provider = dice.choices(("scripted", "anthropic", "openai"), (55, 25, 20))[0]
    trouble = dice.choices(("", "cut", "reset", "error", "end", "drop", "pause", "hang"), (84, 2, 2, 2, 1, 2, 6, 1))[0]
    loss = dice.choices(("restart", "continue", "fail"), (6, 2, 2))[0]
    reasoning, tools = dice.choice((0, 0, 0, 20)), dice.choice((0, 0, 0, 0, 0, 0, 0, 1))
    after = dice.randrange(1, max(2, tokens))
    options: dict[str, Any] = {"on_worker_loss": loss}
    model, prompt = _question(provider, trouble, tokens, rate, after, reasoning, tools)
    weights = (68, 7, 4, 7, 8, 6) if mode == "ask" else (1, 0, 0, 0, 0, 0)
    act = dice.choices(("", "cancel", "abandon", "detach", "double", "unwatched"), weights)[0]
    moment = dice.uniform(0.3, 8.0)
    if act == "abandon":
        options |= {"on_abandon": "cancel", "abandon_after_ms": 3000}
    elif act == "detach":
        options |= {"on_abandon": "continue"}
    return Intent(
        model,
        prompt,
        options,
        window=dice.choices((256, 64, 16, 4096, None), (60, 12, 8, 10, 10))[0],
        pace_ms=dice.choice((0, 0, 0, 0, 0, 0, 50, 300)),
        cut_every_s=dice.choices((0.0, dice.uniform(1.5, 12)), (60, 40))[0],
        nap_s=dice.choices((0.0, dice.uniform(0.5, 7)), (88, 12))[0],
        cancel_after_s=moment if act == "cancel" or (mode == "ask" and trouble == "hang") else 0.0,
        leave_after_s=moment if act == "abandon" else 0.0,
        detach_after_s=moment if act == "detach" else 0.0,
        is_doubled=act == "double",
        is_unwatched=act == "unwatched",
        from_now=mode == "join" and dice.random() < 0.2,
        encoding=dice.choice(("json", "json", "msgpack")),
    )


def _question(
    provider: str, trouble: str, tokens: int, rate: float, after: int, reasoning: int, tools: int
) -> tuple[str, str]:
    """Model and prompt. Tokens are stamps of the clock wherever possible: no two attempts give the same text."""
    if provider == "scripted":
        model = f"scripted/tokens={tokens},rate={rate:.1f},stamp=1,reasoning={reasoning},tools={tools}"
        if trouble in ("cut", "reset", "error", "end", "drop"):
            model += f",fail_after={after}"
        elif trouble == "hang":
            model += f",stall_after={after}"
        return model, "Tell me the time, again and again."
    prompt = f"chaos tokens={tokens} rate={rate:.1f} trouble={trouble or 'none'} after={after}"
    return f"{provider}/fake-chaos", prompt
