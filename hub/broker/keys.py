"""Every Redis key of Headrace. Nothing else in the project builds one.

A stream's three keys share the hash tag `{org:stream}`, so that one script can touch them in Redis Cluster.
The organisation comes from the token: a stream of somebody else is a key that does not exist.

| key                            | type       | holds                                                            |
|--------------------------------|------------|------------------------------------------------------------------|
| `hr:{org:stream}:meta`         | hash       | the stream's facts, see scripts/create.lua                       |
| `hr:{org:stream}:log`          | stream     | entries `N-0`: `k` kind, `d` data; dense from 1, never trimmed   |
| `hr:{org:stream}:interest`     | hash       | hub mailbox → demand, the greatest offset its viewers could take |
| `hr:{org:user}:request:<key>`  | string     | stream, digest of the body, whether accepted                     |
| `hr:{org:user}:streams`        | sorted set | the user's streams by time of creation, for `list`               |
| `hr:{org:user}:prefetched`     | sorted set | request keys of the user's prefetches of the last hour, by time  |
| `hr:{org:user}:prefetching`    | hash       | of those that may run: request key → the conversation's digest   |
| `hr:{org:user:digest}:answer`  | string     | the stream that answers a request like this, see answers.py      |
| `hr:{lanes}:<lane>`            | stream     | `s`: a stream that waits for a worker                            |
| `hr:{lanes}:dead`              | stream     | generations given up, see letters.py                             |
| `hr:live:<shard>`              | sorted set | unfinished streams by when the janitor looks next, ms            |
| `hr:janitor`                   | string     | who sweeps now; saves work, guards nothing                       |
| `hr:mail:<incarnation>`        | stream     | `p`: packets for one hub or worker                               |
| `hr:usage`                     | stream     | `r`: what provider calls used, until the ledger has it           |
| `hr:breaker:<provider/model/…>`| hash       | how calls with one credential fared lately, scripts/breaker.lua  |
| `hr:providers`                 | hash       | how providers fare, as each worker sees it, see health.py        |

Organisation, user and request key are percent-encoded: none can forge a tag or another tenant's key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NewType
from urllib.parse import quote, unquote
from zlib import crc32

#: `org:stream`, both parts safe to stand in a key.
StreamKey = NewType("StreamKey", str)
#: `org:user:digest`, of a request whose answer may be shared.
AnswerKey = NewType("AnswerKey", str)

LIVE_SHARDS = 16
TAKEOVER_LANE = "takeover"
#: Read only when nothing waits in the others.
PREFETCH_LANE = "prefetch"
#: Lanes that requests are dispatched by; takeovers have one of their own, read first.
LANES = ("standard",)
ALL_LANES = (TAKEOVER_LANE, *LANES, PREFETCH_LANE)
#: What SCAN finds all streams by.
ALL_METAS = "hr:{*}:meta"


def _safe(part: str) -> str:
    return quote(part, safe="@-_.~")


def stream_key(org: str, stream: str) -> StreamKey:
    return StreamKey(f"{_safe(org)}:{_safe(stream)}")


def org_of(key: StreamKey) -> str:
    return unquote(key.partition(":")[0])


def stream_of(key: StreamKey) -> str:
    return unquote(key.partition(":")[2])


def meta(key: StreamKey) -> str:
    return f"hr:{{{key}}}:meta"


def key_of_meta(name: str) -> StreamKey:
    """The stream whose facts lie under this key, which `ALL_METAS` matched."""
    return StreamKey(name.removeprefix("hr:{").removesuffix("}:meta"))


def log(key: StreamKey) -> str:
    return f"hr:{{{key}}}:log"


def interest(key: StreamKey) -> str:
    return f"hr:{{{key}}}:interest"


def request(org: str, user: str, request_key: str) -> str:
    return f"hr:{{{_safe(org)}:{_safe(user)}}}:request:{_safe(request_key)}"


def user_streams(org: str, user: str) -> str:
    return f"hr:{{{_safe(org)}:{_safe(user)}}}:streams"


def prefetched(org: str, user: str) -> str:
    return f"hr:{{{_safe(org)}:{_safe(user)}}}:prefetched"


def prefetching(org: str, user: str) -> str:
    return f"hr:{{{_safe(org)}:{_safe(user)}}}:prefetching"


def answer_key(org: str, user: str, digest: str) -> AnswerKey:
    """`user` is empty where all of an organisation share."""
    return AnswerKey(f"{_safe(org)}:{_safe(user)}:{digest}")


def answer(key: AnswerKey) -> str:
    return f"hr:{{{key}}}:answer"


def lane(name: str) -> str:
    return f"hr:{{lanes}}:{name}"


def dead_letters() -> str:
    return "hr:{lanes}:dead"


def live(shard: int) -> str:
    return f"hr:live:{shard}"


def live_shard(key: StreamKey) -> int:
    return crc32(key.encode()) % LIVE_SHARDS


def janitor() -> str:
    return "hr:janitor"


def usage() -> str:
    return "hr:usage"


def breaker(name: str) -> str:
    return f"hr:breaker:{_safe(name)}"


def providers() -> str:
    return "hr:providers"


def mailbox(incarnation: str) -> str:
    return f"hr:mail:{incarnation}"


#: The keys each script gets, in order: the slot test runs all of them through the slot function.
SCRIPT_KEYS: dict[str, tuple[Callable[..., str], ...]] = {
    "create": (meta, log),
    "claim": (meta, log, interest),
    "append": (meta, log, interest),
    "renew": (meta, log, interest),
    "cancel": (meta, log, interest),
    "attach": (meta, log, interest),
    "leave": (interest,),
    "release": (meta,),
    "remember": (meta,),
    "abandon": (meta,),
    "breaker": (breaker,),
    "lead": (answer,),
}
