"""The HTTP/1.1 server under the fake providers: its own few lines, since no framework can break off as a socket can.

One connection serves one request after another. An answer is a generator of steps, played by timers against an
absolute schedule: no task, so that hundreds of paced streams cost little.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from http import HTTPStatus
from types import TracebackType
from typing import Any, cast

from tests.fakes import completions, messages, responses
from tests.fakes.background import Background, Underway
from tests.fakes.script import Record, Script, script_of_model

#: A request above these is refused or cut off, so that a stray client cannot fill the memory.
HEAD_BYTES = 64 * 1024
BODY_BYTES = 32 * 1024 * 1024
#: Requests that are remembered.
RECORDS = 1000
#: Writes in one go when nothing paces an answer; then the loop gets its turn.
BURST = 64


class Ending(Enum):
    DONE = "done"
    RESET = "reset"
    CLOSE = "close"


Step = bytes | float | Ending | None
"""Write these bytes; wait so many seconds (from when the step before was due); end the connection; None: stall."""

_FORMATS: dict[str, Any] = {messages.PATH: messages, completions.PATH: completions, responses.PATH: responses}
_CLASSES: dict[str, Any] = {
    messages.PATH: messages.MessagesFormat,
    completions.PATH: completions.CompletionsFormat,
    responses.PATH: responses.ResponsesFormat,
}


class FakeProvider:
    """Both APIs on one port. Use as `async with FakeProvider() as fake`, or `start` and `close`.

    A request is answered by the next script in `queue`, else by the next in `by_turn` of its last message, or of the
    user's last question (the last of them stays), else by `by_prompt` of its last message, else by its model's name
    (`fake-tokens=200-rate=25`), else by `default`.
    """

    def __init__(self, port: int = 0, *, keep_times: bool = True) -> None:
        self.queue: deque[Script] = deque()
        self.by_prompt: dict[str, Script] = {}
        self.by_turn: dict[str, deque[Script]] = {}
        self.default = Script()
        self.records: deque[Record] = deque(maxlen=RECORDS)
        self.keep_times = keep_times
        self.port = port
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.connections_made = 0
        #: Answers that were begun: what is paid for.
        self.begun = 0
        self.background = Background()
        self._arrived = asyncio.Event()

    @property
    def base_url_anthropic(self) -> str:
        """For ANTHROPIC_BASE_URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url_openai(self) -> str:
        """For OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> Record:
        return self.records[-1]

    async def arrival(self) -> Record:
        """The last request, as soon as there is any."""
        await self._arrived.wait()
        return self.last

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self.background.close()
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            await self._server.wait_closed()

    async def __aenter__(self) -> FakeProvider:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def remember(self, record: Record) -> None:
        self.records.append(record)
        self._arrived.set()

    def script_for(self, body: dict[str, Any]) -> Script:
        if self.queue:
            return self.queue.popleft()
        conversation = body.get("messages") or responses.turns(body)
        prompt = messages.last_prompt(conversation)
        if turns := self.by_turn.get(prompt) or self.by_turn.get(messages.question(conversation)):
            return turns.popleft() if len(turns) > 1 else turns[0]
        if prompt in self.by_prompt:
            return self.by_prompt[prompt]
        return script_of_model(str(body["model"])) or self.default


class _Connection(asyncio.Protocol):
    def __init__(self, fake: FakeProvider) -> None:
        self._fake = fake
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._playback: _Playback | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._fake._connections.add(self)
        self._fake.connections_made += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._fake._connections.discard(self)
        if self._playback is not None:
            self._playback.client_gone()
            self._playback = None

    def eof_received(self) -> bool:
        return False  # a client that closed its side is gone; the transport closes, `connection_lost` follows

    def pause_writing(self) -> None:
        if self._playback is not None:
            self._playback.pause()

    def resume_writing(self) -> None:
        if self._playback is not None:
            self._playback.resume()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next_request()

    def _next_request(self) -> None:
        if self._playback is not None:
            return  # one at a time; pipelined requests wait
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            if len(self._received) > HEAD_BYTES:
                self.abort()
            return
        lines = bytes(self._received[:head_end]).decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        length = int(headers.get("content-length", "0"))
        if length > BODY_BYTES:
            self.abort()
            return
        if len(self._received) < head_end + 4 + length:
            return
        body = bytes(self._received[head_end + 4 : head_end + 4 + length])
        del self._received[: head_end + 4 + length]
        method, target, _ = lines[0].split(" ", 2)
        self._answer(method, target, headers, body)

    def _answer(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> None:
        path = target.partition("?")[0]
        if path.startswith(responses.PATH + "/"):
            self._answer_again(method, target, headers)
            return
        api = _FORMATS.get(path)
        record = Record(path, headers, {}, time.monotonic())
        try:
            if api is None or method != "POST":
                api = api or messages
                raise messages.Refusal(404 if path not in _FORMATS else 405, f"{method} {path} does not exist")
            record.body = _json_object(content)
            api.check(headers, record.body)
            script = self._fake.script_for(record.body)
        except messages.Refusal as refusal:
            script = Script(status=refusal.status, error=refusal.fields)
        except ValueError as error:
            script = Script(status=400, error={"message": str(error)})
        self._fake.remember(record)
        record.status = script.status
        if script.status != 200 or script.raw_body:
            self._play(_whole(script, api), record, script)
            return
        self._fake.begun += 1
        if api is responses and record.body.get("background"):
            answer = self._fake.background.begin(script, record)
            self._play(_followed(answer, -1, script.fault, self._wake), record, script)
        else:
            self._play(_stream(script, api, record), record, script)

    def _answer_again(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        """Requests about an answer that runs in the background."""
        record = Record(target.partition("?")[0], headers, {}, time.monotonic())
        self._fake.remember(record)
        try:
            completions.check_key(headers)
            answer, verb, after = self._fake.background.asked(method, target)
            if verb == "cancel":
                answer.cancel()
                told = json.dumps({"id": answer.response, "object": "response", "status": "cancelled"})
                script = Script(raw_body=("application/json", told.encode()))
            else:
                record.resumed_after = after
                status, fault = answer.begin_again()
                script = Script(status=status)
        except messages.Refusal as refusal:
            script = Script(status=refusal.status, error=refusal.fields)
        record.status = script.status
        if script.status != 200 or script.raw_body:
            self._play(_whole(script, responses), record, script)
        else:
            self._play(_followed(answer, after, fault, self._wake), record, answer.script)

    def _play(self, steps: Iterator[Step], record: Record, script: Script) -> None:
        assert self._transport is not None
        self._playback = _Playback(self._loop, self._transport, steps, record, script, self._fake.keep_times)
        self._playback.on_end = self._finished
        self._playback.start()

    def _wake(self) -> None:
        if self._playback is not None:
            self._playback.wake()

    def _finished(self) -> None:
        self._playback = None
        self._next_request()


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise messages.Refusal(400, "the body is not a JSON object")
    return body


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Overloaded"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _whole(script: Script, api: Any) -> Iterator[Step]:
    """An answer that is no stream: an error, or whatever the script says."""
    content_type, content = script.raw_body or (
        "application/json",
        api.error_body(script.status, script.error or {}),
    )
    headers = {"content-type": content_type, "content-length": str(len(content)), "request-id": "req_fake"}
    yield script.headers_s
    yield _head(script.status, {**headers, **script.headers}) + content


def _stream(script: Script, api: Any, record: Record) -> Iterator[Step]:
    """The steps of a streamed answer."""
    form = _CLASSES[api.PATH](script, record.body)

    def chunk(event: bytes) -> bytes:
        return _chunk(event if script.newline == b"\n" else event.replace(b"\n", script.newline))

    yield from _opened(script, script.fault)
    for event in form.opening():
        yield chunk(event)
    if script.extra:
        yield chunk(script.extra)
    yield script.first_s
    pieces = script.pieces()
    while True:
        if record.tokens == script.fault_after and script.fault is not None:
            yield from _fault(script.fault, form, chunk)
        if record.tokens and script.gap_s:
            yield script.gap_s
        text = next(pieces, None)  # only now: a stamp says when it was written
        if text is None:
            break
        record.tokens += 1
        yield chunk(form.token(text))
    for event in form.closing():
        yield chunk(event)
    yield b"0\r\n\r\n"


def _opened(script: Script, fault: str | None) -> Iterator[Step]:
    """The head of a streamed answer, or its connection's end."""
    headers = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "transfer-encoding": "chunked",
        "request-id": "req_fake",
        **script.headers,
    }
    if fault in ("end", "error"):  # the body ends in order, the connection after it: nobody is to use it again
        headers["connection"] = "close"
    yield script.headers_s
    if fault == "drop":
        yield Ending.CLOSE
    yield _head(200, headers)


def _followed(answer: Underway, after: int, fault: str | None, wake: Callable[[], None]) -> Iterator[Step]:
    """The steps by which one connection follows an answer that is written without it."""
    script = answer.script

    def chunk(event: bytes) -> bytes:
        return _chunk(event if script.newline == b"\n" else event.replace(b"\n", script.newline))

    yield from _opened(script, fault)
    began = None
    for event in answer.read(after, wake):
        if event is None:
            yield None
            continue
        data, tokens = event
        began = tokens if began is None else began
        if fault is not None and fault != "error" and tokens - began > script.fault_after:
            yield from _fault(fault, responses.ResponsesFormat(script, answer.record.body), chunk)
            fault = None
        yield chunk(data)
    if answer.record.cancelled_at is not None:
        yield Ending.CLOSE
    yield b"0\r\n\r\n"


def _fault(fault: str | None, form: Any, chunk: Callable[[bytes], bytes]) -> Iterator[Step]:
    match fault:
        case "reset":
            yield Ending.RESET
        case "cut":
            yield Ending.CLOSE
        case "end":
            yield b"0\r\n\r\n"
            yield Ending.CLOSE
        case "stall":
            while True:
                yield None
        case "pings":
            while True:
                yield chunk(form.ping())
                yield 0.02
        case "error":
            yield chunk(form.error()) + b"0\r\n\r\n"
            yield Ending.CLOSE
        case "malformed":
            yield chunk(b'event: content_block_delta\ndata: {"type":"content_block_delta","choices":[{"del\n\n')
        case "invalid_utf8":
            yield chunk(form.token("?").replace(b'"?"', b'"\xff\xfe"'))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _bytewise(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, bytes):
            yield from (step[index : index + 1] for index in range(len(step)))
        else:
            yield step


class _Playback:
    """Plays the steps of one answer into a socket; stops for good when the client is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        steps: Iterator[Step],
        record: Record,
        script: Script,
        keep_times: bool,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._steps = _bytewise(steps) if script.split else steps
        self._split = script.split
        self._record = record
        self._keep_times = keep_times
        self._due = 0.0
        self._timer: asyncio.Handle | None = None
        self._paused = False
        self.on_end: Any = None

    def start(self) -> None:
        self._due = self._loop.time()
        self._advance()

    def pause(self) -> None:
        self._paused = True
        self._record.blocked.set()

    def resume(self) -> None:
        self._paused = False
        if self._timer is None:
            self._timer = self._loop.call_soon(self._advance)

    def wake(self) -> None:
        """What it waited for is there."""
        if self._timer is None and not self._paused:
            self._timer = self._loop.call_soon(self._advance)

    def client_gone(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        record = self._record
        if not record.finished and record.gone_at is None:
            record.gone_at = time.monotonic()
            record.gone.set()

    def _advance(self) -> None:
        self._timer = None
        for _ in range(1 if self._split else BURST):
            if self._paused:
                return
            step = next(self._steps, Ending.DONE)
            if isinstance(step, bytes):
                self._write(step)
            elif isinstance(step, float | int):
                self._due += step
                if self._due > self._loop.time():
                    self._timer = self._loop.call_at(self._due, self._advance)
                    return
            elif step is None:
                return
            else:
                self._end(step)
                return
        self._timer = self._loop.call_soon(self._advance)

    def _write(self, data: bytes) -> None:
        record = self._record
        if self._keep_times and record.tokens > len(record.token_times):
            record.token_times.append(time.monotonic())
        self._transport.write(data)

    def _end(self, step: Ending) -> None:
        self._record.finished = True
        if step is Ending.RESET:
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        elif step is Ending.CLOSE:
            self._transport.close()
        else:
            self.on_end()
