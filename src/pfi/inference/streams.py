"""Answers on their way from the thread that decodes to the one that reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

from pfi.inference.engine import Piece


@dataclass(eq=False)
class Channel:
    """The decoding side: what was decoded goes in.

    Attributes:
        wake: tells the decoding thread that something has changed.
        cached: tokens of the prompt that came from the prefix cache.
        cancelled: whether the reader wants no more.
        ended: whether the last piece, or an error, is in.
    """

    wake: Callable[[], None]
    cached: int = 0
    cancelled: bool = False
    ended: bool = False
    queue: SimpleQueue[Piece | BaseException] = field(default_factory=SimpleQueue)

    def put(self, piece: Piece) -> None:
        """Hand on a piece; the last one has a ``finish``."""
        self.ended = piece.finish is not None
        self.queue.put(piece)

    def fail(self, error: BaseException) -> None:
        """End with an error, which the reader's iterator raises."""
        self.ended = True
        self.queue.put(error)


class QueuedStream:
    """The reading side of a channel; see ``engine.Stream``.

    A reader who lets go of it, or closes its iterator, cancels the answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._done = False

    @property
    def cached(self) -> int:
        return self._channel.cached

    def __iter__(self) -> Iterator[Piece]:
        try:
            while not self._done:
                found = self._channel.queue.get()
                if isinstance(found, BaseException):
                    self._done = True
                    raise found
                self._done = found.finish is not None
                yield found
        finally:
            self.cancel()

    def cancel(self) -> None:
        channel = self._channel
        if not channel.ended and not channel.cancelled:
            channel.cancelled = True
            channel.wake()

    def __del__(self) -> None:
        self.cancel()
