"""Who may go on with a failed generation: `retry_of` in a `generate` (protocol §3)."""

from __future__ import annotations

import re
from typing import Final

from headrace.protocol.frames import Generate
from hub.auth import Identity
from hub.broker import keys
from hub.broker.broker import Broker
from hub.broker.log import Absent
from hub.broker.retry import fits
from hub.errors import Rejected, not_found

_STREAM: Final = re.compile(r"g_[A-Za-z0-9]{16}")


async def check_retry(broker: Broker, identity: Identity, frame: Generate) -> None:
    """Raises Rejected unless `retry_of`, if there is any, names a failure of this very user, and `Unreachable`.

    Scopes open nothing here: what others wrote is not gone on with. A request that was accepted before is not looked
    at again, so that its repeat is answered also when the failed stream has expired since.
    """
    retry_of = frame.retry_of
    if retry_of is None or await broker.is_reserved(identity.org, identity.user, frame.request):
        return
    if not _STREAM.fullmatch(retry_of.stream):
        raise not_found()
    key = keys.stream_key(identity.org, retry_of.stream)
    try:
        view = await broker.log.attach(key, user=identity.user, may_read=False, mailbox="", demand=0)
    except Absent:
        raise not_found() from None
    last = await broker.log.read(key, view.top, 1)
    if not last or not fits(last[0], retry_of.retry_token):
        raise Rejected("invalid_request", "this stream did not fail with this `retry_token`: ask without `retry_of`")
