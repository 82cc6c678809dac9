"""Answers on their way from an engine's threads to the event loop.

One thread reads one stream; the loop gets what has come since it last looked.  Whoever stops
waiting, a client that is gone above all, cancels, and the engine decodes no further.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from pfi.inference.engine import Piece, Stream

if TYPE_CHECKING:
    from starlette.types import Receive

#: The number of a stream, and a piece of it.
Numbered = tuple[int, "Piece"]


class Answering:
    """Streams that are read side by side; made in the event loop.

    Args:
        streams: the answers of one request.
        pool: gives a thread to each.
    """

    def __init__(self, streams: Sequence[Stream], pool: Executor) -> None:
        self.streams, self._pool = streams, pool
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._come: list[Numbered | BaseException] = []
        self._news = asyncio.Event()

    async def batches(self) -> AsyncIterator[list[Numbered]]:
        """The pieces, as many at a time as there are, until every stream has ended.

        Raises:
            PfiError: as ``Stream.__iter__``.
        """
        for number, stream in enumerate(self.streams):
            self._pool.submit(self._read, number, stream)
        left = len(self.streams)
        try:
            while left:
                await self._news.wait()
                self._news.clear()
                come, self._come = self._come, []
                batch = []
                for item in come:
                    if isinstance(item, BaseException):
                        raise item
                    batch.append(item)
                    left -= item[1].finish is not None
                yield batch
        finally:
            if left:
                self.cancel()

    def cancel(self) -> None:
        """Decode no further."""
        self.cancelled = True
        for stream in self.streams:
            stream.cancel()

    def _read(self, number: int, stream: Stream) -> None:
        try:
            for piece in stream:
                self._tell((number, piece))
        except BaseException as error:
            self._tell(error)

    def _tell(self, item: Numbered | BaseException) -> None:
        def put() -> None:
            self._come.append(item)
            self._news.set()

        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop has ended: nobody waits
            self.streams[item[0] if isinstance(item, tuple) else 0].cancel()


async def gone(receive: Receive) -> None:
    """Return when the client is; its request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
