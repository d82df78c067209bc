"""Going on with an answer that broke off, from a second telling of it.

A splice swallows the second answer as long as it repeats the first. If it repeats all of it, what follows is the
rest, and nothing that a viewer sees was invented. If it differs, nothing of it has been shown yet: it is a whole
answer of its own. Pure.
"""

from __future__ import annotations


class Splice:
    """Compares a second telling with the text that viewers have. Bound: the length of that text."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._at = 0
        #: The second telling has repeated all that was shown: from now on it is passed through.
        self.is_joined = not shown
        #: It said something else; `told` is what it said so far.
        self.has_diverged = False
        self.told = ""

    def feed(self, text: str) -> str:
        """What is new in `text`: nothing before the join, everything after it."""
        if self.is_joined:
            return text
        if self.has_diverged:
            self.told += text
            return ""
        rest = len(self._shown) - self._at
        if len(text) < rest:
            if self._shown.startswith(text, self._at):
                self._at += len(text)
            else:
                self._diverge(text)
            return ""
        if text.startswith(self._shown[self._at :]):
            self.is_joined = True
            self._shown = ""
            return text[rest:]
        self._diverge(text)
        return ""

    def end(self) -> bool:
        """The second telling is over: whether it repeated all that was shown. A shorter one has diverged."""
        if not self.is_joined and not self.has_diverged:
            self._diverge("")
        return self.is_joined

    def _diverge(self, text: str) -> None:
        self.has_diverged = True
        self.told = self._shown[: self._at] + text
        self._shown = ""
