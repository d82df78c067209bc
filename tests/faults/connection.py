"""One connection through a `FaultProxy`: two sides, and a lane for each direction between them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from tests.faults.proxy import FaultProxy

#: A lane that holds this much reads no more; one read adds up to READ_BYTES. 64 KiB together.
HELD_BYTES = 48 * 1024
READ_BYTES = 16 * 1024
#: A throttled lane writes this often a second.
THROTTLE_HZ = 50
#: A cut waits this many turns of FLUSH_S for what was written before it to leave.
FLUSH_TURNS, FLUSH_S = 40, 0.005


class Side(asyncio.BufferedProtocol):
    """One socket. What it reads goes into its lane."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = bytearray(READ_BYTES)
        self.transport: asyncio.Transport | None = None
        self.lane: Lane
        self.is_lost = False
        self.is_writable = True
        self._is_reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(high=0)  # the bound is the lane's
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.side_made(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.arrived(self, bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self.lane.end(Lane.EOF)
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._connection.side_lost(self, is_reset=exc is not None)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._connection.lane_into(self).flush()

    def regulate_reading(self, is_wanted: bool) -> None:
        if self.transport is None or self.is_lost or self.transport.is_closing() or is_wanted == self._is_reading:
            return
        self._is_reading = is_wanted
        if is_wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def reset(self) -> None:
        """RST, whatever was still to be written."""
        if self.transport is None or self.is_lost:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Lane:
    """Bytes on their way from `source` to `sink`, in order, each piece not before its time."""

    #: How a lane may end, once what it holds is delivered.
    EOF, CLOSE, RESET = 1, 2, 3

    def __init__(self, proxy: FaultProxy, connection: Connection, source: Side, sink: Side) -> None:
        self._proxy = proxy
        self._connection = connection
        self.source = source
        self.sink = sink
        source.lane = self
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[float, bytes]] = deque()
        self.held = 0
        self._last_due = 0.0
        self._free_at = 0.0
        self._wakening: asyncio.Handle | None = None
        self._ending = 0
        #: The sink was told that nothing more comes.
        self.is_finished = False
        #: Reset the connection after so many bytes.
        self.cut_at: int | None = None
        self.forwarded = 0

    @property
    def is_full(self) -> bool:
        return self.held >= HELD_BYTES

    def push(self, data: bytes, *, delay_s: float = 0.0) -> None:
        """Take data over, to leave when the weather, `delay_s` more and what is before it allow."""
        if self.sink.is_lost:
            return
        weather = self._proxy.weather
        due = self._loop.time() + weather.delay_s + delay_s
        if weather.jitter_s:
            due += self._proxy.dice.uniform(0, weather.jitter_s)
        self._last_due = due = max(due, self._last_due)
        self._pieces.append((due, data))
        self.held += len(data)
        self.flush()

    def end(self, ending: int) -> None:
        """Tell the sink after what is held; of several endings the hardest counts."""
        self._ending = max(self._ending, ending)
        self.flush()

    def flush(self) -> None:
        """Deliver what is due, and see to it that the rest will be."""
        if self._wakening is not None:
            self._wakening.cancel()
            self._wakening = None
        while not self._connection.is_silent and not self.sink.is_lost:
            if self.forwarded == self.cut_at:
                self._connection.cut()
                return
            if not self._pieces:
                self._finish()
                break
            now = self._loop.time()
            due = max(self._pieces[0][0], self._free_at)
            if not self.sink.is_writable or self.sink.transport is None or self.sink.transport.is_closing():
                break  # `resume_writing` comes back
            if due > now:
                self._wakening = self._loop.call_at(due, self.flush)
                break
            if self._write(now):
                self._wakening = self._loop.call_soon(self.flush)
                break
        self.source.regulate_reading(not self._connection.is_silent and not self.is_full)

    def _write(self, now: float) -> bool:
        """Whether the rest should wait for the next turn, so that pieces stay pieces."""
        weather = self._proxy.weather
        due, data = self._pieces.popleft()
        limits = [len(data)]
        if weather.split:
            limits.append(weather.split)
        if weather.bytes_per_s:
            limits.append(max(1, int(weather.bytes_per_s / THROTTLE_HZ)))
        if self.cut_at is not None:
            limits.append(self.cut_at - self.forwarded)
        size = min(limits)
        if size < len(data):
            self._pieces.appendleft((due, data[size:]))
        self.held -= size
        self.forwarded += size
        if weather.bytes_per_s:
            self._free_at = now + size / weather.bytes_per_s
        assert self.sink.transport is not None
        self.sink.transport.write(data[:size])
        return bool(weather.split)

    def _finish(self) -> None:
        transport = self.sink.transport
        if not self._ending or transport is None or transport.is_closing():
            return
        if self._ending == self.RESET:
            self.sink.reset()
        elif self._ending == self.CLOSE:
            transport.close()
        elif not self.is_finished:
            transport.write_eof()
            self.is_finished = True
            self._connection.side_finished()

    def drop(self) -> None:
        """Nobody takes what is held any more."""
        self._pieces.clear()
        self.held = 0
        if self._wakening is not None:
            self._wakening.cancel()
            self._wakening = None
        self.source.regulate_reading(not self._connection.is_silent)  # to learn that it closes


class Connection:
    """From being accepted until both sides are gone."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self.client = Side(self)
        self.server = Side(self)
        self.up = Lane(proxy, self, self.client, self.server)
        self.down = Lane(proxy, self, self.server, self.client)
        self._has_vanished = False
        self._is_reset = False
        self._is_unreachable = False
        #: Set once both sockets are closed.
        self.lost = asyncio.Event()

    @property
    def is_silent(self) -> bool:
        return self._has_vanished or self._proxy.is_stalled

    def side_made(self, side: Side) -> None:
        if side is self.client:
            self._proxy.admit(self)
        elif self._is_reset or self.client.is_lost and not self.up.held:
            side.reset()
        self.regulate()

    def arrived(self, side: Side, data: bytes) -> None:
        side.lane.push(data)

    def side_lost(self, side: Side, *, is_reset: bool) -> None:
        self.lane_into(side).drop()
        side.lane.end(Lane.RESET if is_reset else Lane.CLOSE)
        self._leave()

    def unreachable(self) -> None:
        """The target does not take connections."""
        self._is_unreachable = True
        self.reset()
        self._leave()

    def _leave(self) -> None:
        if self.client.is_lost and (self.server.is_lost or self._is_unreachable):
            self._proxy.dismiss(self)
            self.lost.set()

    def side_finished(self) -> None:
        if self.up.is_finished and self.down.is_finished:
            for side in (self.client, self.server):
                if side.transport is not None:
                    side.transport.close()

    def lane_into(self, side: Side) -> Lane:
        return self.down if side is self.client else self.up

    def regulate(self) -> None:
        """Read and deliver, or not, as things are now."""
        self.up.flush()
        self.down.flush()

    def reset(self) -> None:
        self._is_reset = True
        for lane in (self.up, self.down):
            lane.drop()
        self.client.reset()
        self.server.reset()

    def vanish(self) -> None:
        self._has_vanished = True
        self.regulate()

    def cut(self) -> None:
        """Reset, but let what was forwarded before arrive; what comes from now on does not."""
        self._has_vanished = True
        for side in (self.client, self.server):
            side.regulate_reading(False)
        self._when_flushed(self.reset, FLUSH_TURNS)

    def _when_flushed(self, then: Callable[[], None], turns: int) -> None:
        transports = [side.transport for side in (self.client, self.server) if side.transport and not side.is_lost]
        if turns and any(transport.get_write_buffer_size() for transport in transports):
            self._loop.call_later(FLUSH_S, self._when_flushed, then, turns - 1)
        else:
            then()
