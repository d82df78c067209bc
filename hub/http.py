"""The hub's plain HTTP: alive, ready, metrics, how providers fare, and what was used."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hub import health
from hub.auth import Identity, TokenExpired, TokenInvalid, bearer
from hub.fleet import OutOfSight
from hub.ledger import BYS, GROUPS, LedgerDown, Query, since
from hub.ledger.books import Books, TooManyQuestions
from hub.node import Node

#: Lets a user see what everybody of the same organisation used.
USAGE_SCOPE = "usage:read"
_USAGE_PARAMETERS = frozenset({"by", "since", "user"})


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        headers = {"cache-control": "no-store"}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        elif status == 503:
            headers["retry-after"] = "5"
        self.response = JSONResponse({"error": {"code": code, "message": message, **more}}, status, headers)


def routes(node: Node, books: Books) -> list[Route]:
    async def healthz(_: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        """New connections may be sent here: Redis answers and the hub is not draining."""
        if node.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if not node.relay.ready.is_set() or not await node.broker.is_reachable():
            return JSONResponse({"status": "redis out of reach"}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(_: Request) -> Response:
        return Response(node.counts.exposition(), media_type="text/plain; version=0.0.4")

    async def providers(request: Request) -> Response:
        try:
            return _providers(request, node)
        except _Refused as refused:
            return refused.response

    async def tools(request: Request) -> Response:
        """Tools that workers run: what `{"type": "worker", "name": …}` in a request may name."""
        try:
            _identify(request, node)
        except _Refused as refused:
            return refused.response
        named = [{"name": name} for name in node.fleet.last_seen.tools]
        return JSONResponse({"tools": named}, headers={"cache-control": "no-store"})

    async def usage(request: Request) -> Response:
        try:
            return await _usage(request, node, books)
        except _Refused as refused:
            return refused.response

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/v1/health/providers", providers),
        Route("/v1/tools", tools),
        Route("/v1/usage", usage),
    ]


def _providers(request: Request, node: Node) -> Response:
    """`GET /v1/health/providers`: for everybody with a token. 503 while no model can answer. Raises _Refused.

    What was read a moment ago: asking costs neither Redis nor a provider anything.
    """
    _identify(request, node)
    try:
        described = health.described(node.fleet.health)
    except OutOfSight:
        message = "Redis is out of reach, so nobody knows how providers fare; ask again in a few seconds"
        raise _Refused(503, "overloaded", message) from None
    return JSONResponse(described, 503 if described["state"] == "down" else 200, {"cache-control": "no-store"})


async def _usage(request: Request, node: Node, books: Books) -> Response:
    """`GET /v1/usage?by=…&since=…&user=…`: sums of the caller's own calls, or with `usage:read` of its
    organisation's. Never of another organisation's, whatever is asked. Raises _Refused.
    """
    query = _usage_query(request, _identify(request, node))
    try:
        totals = await books.totals(query)
    except LedgerDown:
        if not books.are_kept:
            raise _Refused(404, "not_found", "this hub keeps no ledger: HEADRACE_LEDGER is off") from None
        message = "the ledger is out of reach; nothing is lost meanwhile, ask again later"
        raise _Refused(503, "overloaded", message, waiting=books.waiting) from None
    except TooManyQuestions:
        message = "too many ask at this moment; ask again in a few seconds"
        raise _Refused(503, "overloaded", message, waiting=books.waiting) from None
    answer = {
        "by": query.by,
        "since_ms": query.since_ms,
        "until_ms": query.until_ms,
        "totals": msgspec.to_builtins(totals),
        "is_complete": len(totals) < GROUPS,
        "waiting": books.waiting,
    }
    return JSONResponse(answer, headers={"cache-control": "no-store"})


def _identify(request: Request, node: Node) -> Identity:
    try:
        return node.auth.identify(bearer(request.headers.get("authorization", "")))
    except TokenExpired:
        raise _Refused(401, "token_expired", "the token has expired: ask with a new one") from None
    except TokenInvalid:
        message = "send a token of this installation as `Authorization: Bearer …`; `headrace token` makes one"
        raise _Refused(401, "unauthenticated", message) from None


def _usage_query(request: Request, identity: Identity) -> Query:
    asked = request.query_params
    for name, _ in asked.multi_items():
        if name not in _USAGE_PARAMETERS or len(asked.getlist(name)) > 1:
            raise _Refused(400, "invalid_request", "write each of by, since and user at most once, and no other")
    by = asked.get("by", "model")
    if by not in BYS:
        raise _Refused(400, "invalid_request", f"`by` is one of {', '.join(BYS)}")
    now = time.time()
    try:
        start = since.since_ms(asked.get("since", since.DEFAULT), now)
    except ValueError:
        raise _Refused(400, "invalid_request", f"`since` is {since.HOW}") from None
    user = asked.get("user")
    if not identity.may(USAGE_SCOPE):
        if user not in (None, identity.user):
            message = f"other users' usage needs a token with the scope {USAGE_SCOPE}; leave `user` out to see your own"
            raise _Refused(403, "forbidden", message)
        user = identity.user
    return Query(by, start, int(now * 1000) + 1, identity.org, user)
