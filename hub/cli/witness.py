"""Counts what a viewer was sent, from the offsets in the frames themselves, not from what a library says of them."""

from __future__ import annotations

from headrace.protocol.frames import Attached, Delta, EntryFrame, HubFrame


class Witness:
    """One viewer of one stream. Pure."""

    def __init__(self) -> None:
        #: The highest offset that came.
        self.last = 0
        #: Entries that came again, and entries that never came.
        self.duplicates = 0
        self.gaps = 0
        #: Answers that took up the stream where it was left, and those that began it anew.
        self.resumes = 0
        self.restarts = 0
        #: The digest in `done`, once it came.
        self.digest = ""

    @property
    def is_clean(self) -> bool:
        return not (self.duplicates or self.gaps or self.restarts)

    def see(self, frame: HubFrame) -> None:
        if isinstance(frame, Attached):
            if not frame.resumed:
                self.restarts += 1
                self.last = frame.offset
            elif frame.offset:
                self.resumes += 1
        elif isinstance(frame, Delta | EntryFrame):
            first = frame.first if isinstance(frame, Delta) and isinstance(frame.first, int) else frame.offset
            self.gaps += max(0, first - self.last - 1)
            self.duplicates += max(0, min(self.last, frame.offset) - first + 1)
            self.last = max(self.last, frame.offset)
            if isinstance(frame, EntryFrame) and frame.kind == "done" and isinstance(frame.data, dict):
                self.digest = str(frame.data.get("text_sha256"))
