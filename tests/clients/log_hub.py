"""A hub script that serves one log: answers, replays, obeys windows, and cuts the connection where told."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.clients.model_hub import Log, Viewer
from tests.clients.scripted_hub import Frame, Peer, Script


class LogHub:
    """Serves one log to any number of connections, and remembers what clients sent.

    Attributes:
        requests: Every `generate` and `attach`, in order.
        acks: Every `ack`, in order.
        sent: The greatest offset that was sent.
    """

    def __init__(self, log: Log, merge: int = 1) -> None:
        self.log = log
        self.merge = merge
        self.requests: list[Frame] = []
        self.acks: list[Frame] = []
        self.sent = 0

    def script(self, cut_after: int | None = None, **answer: Any) -> Script:
        """Play this log; drop the connection after so many frames of the stream, the answer included."""

        async def play(peer: Peer) -> None:
            await peer.welcome()
            viewer = Viewer(self.log)
            frames_left = cut_after if cut_after is not None else 1_000_000
            while True:
                frame = await peer.receive()
                if frame["type"] == "ack":
                    self.acks.append(frame)
                    viewer.ack(frame)
                elif frame["type"] in ("generate", "attach"):
                    self.requests.append(frame)
                    if not frames_left:
                        return peer.cut()
                    frames_left -= 1
                    accept = viewer.accept if frame["type"] == "generate" else viewer.attach
                    await peer.send(accept(frame) | answer)
                else:
                    assert frame["type"] == "detach", frame
                while (entry := viewer.next_frame(self.merge)) is not None:
                    if not frames_left:
                        return peer.cut()
                    frames_left -= 1
                    await peer.send(entry)
                    self.sent = max(self.sent, entry["offset"])
                    await asyncio.sleep(0)

        return play
