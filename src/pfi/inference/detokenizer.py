"""An answer's text as its tokens come: whole characters, cut at the texts that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
#: An unfinished character has at most three bytes.
_UNFINISHED = 3
#: Tokens that are decoded again with a new one, at least.
_WINDOW = 16


class Written:
    """The text of one answer.

    Args:
        text: decodes tokens.
        stop: texts that end the answer; they are no part of it.

    Attributes:
        stopped: whether one of them came.
    """

    def __init__(self, text: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._text, self._stop = text, tuple(stop)
        self._tokens: list[int] = []
        self._shown = 0  # characters of the window's text that were taken
        self._whole = 0  # tokens of the window up to which the text was whole before the last time
        self._held = ""  # what could be the beginning of a stop text
        self.stopped = False

    def add(self, token: int) -> str:
        """Another token; what can be shown of the answer since the last time."""
        self._tokens.append(token)
        text = self._text(self._tokens)
        # A character of several tokens is not whole before its last one.
        whole = len(text) - _broken(text)
        new, self._shown = text[self._shown : whole], max(self._shown, whole)
        if whole == len(text):
            if self._whole >= _WINDOW:
                # Decoded on from the last place where no character was unfinished.
                self._tokens = self._tokens[self._whole :]
                self._shown = len(self._text(self._tokens))
            self._whole = len(self._tokens)
        return self._until_stop(new)

    def end(self) -> str:
        """No more tokens; what was held back. An unfinished character is left out."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _until_stop(self, new: str) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else new
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stop)
        shown = len(text) - held
        self._held = text[shown:]
        return text[:shown]


def _broken(text: str) -> int:
    """Characters at the end that may be part of one that is not whole yet."""
    return min(len(text) - len(text.rstrip(_BROKEN)), _UNFINISHED)


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that ``stop`` begins with, but is not."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
