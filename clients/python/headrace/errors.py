"""Everything this library raises, in one family.

HeadraceError
├── ConnectionFailed          no hub could be reached, or it speaks something else
│   └── ConnectionReplaced    the same device opened a newer connection
├── AuthenticationFailed      the hub does not accept the token
├── ProtocolViolation         a hub and this client do not understand each other
├── InvalidRequest            a request that no hub could accept; nothing was sent (also a ValueError)
├── RequestRejected           the hub said no: .code .retry .after_ms
│   ├── NotFound              absent, expired, or somebody else's: a hub does not say which
│   └── StreamGone            it was there, and is not any more
├── GenerationFailed          the answer ended badly: .code .retry .after_ms .text .retry_token
│   ├── InvalidOutput         … because the answer is not the document that was asked for
│   └── GenerationCancelled   … because somebody cancelled it, or nobody watched it
├── RoundsExhausted           a run was given no more rounds, and the model still calls tools: .text .tools
├── DigestMismatch            the text is not what the hub logged, even after a second reading: .text
└── GenerationClosed          this application let go of it: `aclose()`, or its client was closed

`retry` is what the hub advises: `no`, `now`, `after` (`after_ms` milliseconds), `backoff` or `reauth`
(docs/protocol.md §8).
"""

from __future__ import annotations

from headrace.events import Done
from headrace.protocol.codes import Retry


class HeadraceError(Exception):
    """Base of the family."""


class ConnectionFailed(HeadraceError):
    """No hub could be reached. The message says what was tried and what to check."""


class ConnectionReplaced(ConnectionFailed):
    """Another connection of the same user and `device` took over; fighting it would never end."""


class AuthenticationFailed(HeadraceError):
    """The hub does not accept the token, and there is no fresh one to try."""


class ProtocolViolation(HeadraceError):
    """A message that the other side cannot make sense of: versions that do not fit, or a bug."""


class InvalidRequest(HeadraceError, ValueError):
    """Refused before anything was sent; the message names the field."""


class RequestRejected(HeadraceError):
    """The hub refused a request.

    Attributes:
        code: One of the error codes of docs/protocol.md §8.
        retry: What the hub advises.
        after_ms: How long to wait first, in milliseconds, when the hub said so.
    """

    def __init__(self, code: str, message: str, retry: Retry = "no", after_ms: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry: Retry = retry
        self.after_ms = after_ms


class NotFound(RequestRejected):
    """No such stream for this user: absent, expired, or somebody else's."""


class StreamGone(RequestRejected):
    """The stream existed and is no more. Asking again with a new request is safe."""


class GenerationFailed(HeadraceError):
    """The answer ended without being complete.

    Attributes:
        code: A code of `done.error`, or the stop reason when there is none.
        retry: What the hub advises.
        after_ms: How long to wait first, in milliseconds, when the hub said so.
        text: What was said until then.
        retry_token: Its generation's `retry()` goes on from that text; so does `generate` with
            `retry_of={"stream": …, "retry_token": …}`. None: asking again would not help.
        stream: The stream that failed.
    """

    def __init__(self, done: Done, stream: str, text: str) -> None:
        error = done.error
        self.code = error.code if error else done.stop_reason
        self.retry: Retry = error.retry if error else "no"
        self.after_ms = error.after_ms if error else None
        self.text = text
        self.retry_token = done.retry_token
        self.stream = stream
        hint = "; its `retry()` goes on from here" if done.retry_token else ""
        super().__init__(f"{self.code}: {error.message if error else f'the answer was {done.status}'}{hint}")


class InvalidOutput(GenerationFailed):
    """What the model wrote is not the document that was asked for; `.text` has it as it is. Ask again."""

    def __init__(self, done: Done, stream: str, text: str, problem: str = "") -> None:
        super().__init__(done, stream, text)
        if problem:  # nobody but this client found it
            self.code, self.retry = "invalid_output", "now"
            self.args = (f"invalid_output: {problem}",)


class GenerationCancelled(GenerationFailed):
    """Cancelled by somebody, or ended because nobody watched (`code` is then `abandoned`)."""


class RoundsExhausted(HeadraceError):
    """A run ended with calls that nobody answered. `Run.messages` is the conversation, should it go on.

    Attributes:
        text: What the model said with its last calls.
        tools: The names of the tools that it called.
    """

    def __init__(self, text: str, tools: list[str]) -> None:
        super().__init__(f"the model still calls tools ({', '.join(tools)}) in the last round; allow more `rounds`")
        self.text = text
        self.tools = tools


class DigestMismatch(HeadraceError):
    """The folded text does not have the digest that its `done` names, not even after a second replay.

    Attributes:
        text: The text as it was received.
    """

    def __init__(self, stream: str, text: str) -> None:
        super().__init__(
            f"the text of {stream} differs from what its hub logged, also after reading it again from the "
            "start; something between hub and client changes messages"
        )
        self.text = text


class GenerationClosed(HeadraceError):
    """This application stopped watching; the generation itself may go on."""


def rejected(code: str, message: str, retry: Retry = "no", after_ms: int | None = None) -> HeadraceError:
    """The exception for an `error` frame."""
    if code in ("unauthenticated", "token_expired"):
        return AuthenticationFailed(f"{code}: {message}")
    kinds = {"not_found": NotFound, "gone": StreamGone}
    return kinds.get(code, RequestRejected)(code, message, retry, after_ms)
