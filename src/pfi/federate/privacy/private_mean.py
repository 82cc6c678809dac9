"""Updates clipped, summed, and noise added once: the private mean of a round (1710.06963).

Sums and noise are whole numbers of grains, so that no float of the result tells by its last bits
what the sum was without noise (Mironov 2012, "On significance of the least significant bits").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.aggregate.mean import Combined, Vector

Floats = NDArray[np.float64]

#: Sums and noise are whole multiples of a power of two, this many times finer than the noise.
_FINE = 2.0**20


def clipped(vector: NDArray[np.floating], bound: float) -> tuple[Floats, bool]:
    """An update within a bound, and whether it was so already.

    One that lies at the bound counts as clipped: a client that clips before it sends is then
    told from one that need not, by its update alone.

    Args:
        vector: ``(width,)``, finite.
        bound: largest L2 norm.
    """
    wide = vector.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if norm > bound:
        wide *= bound / norm
    return wide, norm < bound * (1 - 1e-4)


def faded(total: Floats, longest: float) -> Floats:
    """A sum as it is up to a length, then shorter by as much as it is longer, and none from twice
    that length on.

    Two sums never come out further apart than they went in.  A sum that is left out from some
    length on would, with all clients in it, tell by its absence of one of them.
    """
    norm = float(np.linalg.norm(total))
    return total if norm <= longest else total * (max(0.0, 2 * longest - norm) / norm)


def grain_of(finest: float, step: float | None) -> float:
    """A grain for sums and noise: a power of two, or a step's fraction by one.

    Args:
        finest: it is no coarser than this.
        step: of which it has to be a whole fraction, if there is one.
    """
    if step is None:
        return 2.0 ** math.floor(math.log2(finest))
    return step * 2.0 ** min(0, math.floor(math.log2(finest / step)))


def secret_normal(key: bytes, label: str, size: int) -> Floats:
    """Standard normal numbers, ``(size,)``, unpredictable to whom the key is unknown.

    SHAKE-256 makes uniform 64-bit numbers of key and label, Box-Muller normal ones of those.
    """
    pairs = (size + 1) // 2
    data = hashlib.shake_256(key + label.encode()).digest(16 * pairs)
    words = np.frombuffer(data, "<u8").reshape(2, pairs)
    radius = np.sqrt(-2 * np.log((words[0].astype(np.float64) + 1) * 2.0**-64))
    angle = words[1].astype(np.float64) * (2 * math.pi * 2.0**-64)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


class PrivateMean:
    """A combiner: the sum of clipped updates and noise, over a denominator that is fixed.

    Weights are not used: every client counts the same, and who drops out counts as zero.  The
    result is made once; asked for again it is the same, since noise drawn twice averages out.

    Args:
        width: numbers in an update.
        clip: largest L2 norm of an update; longer ones are shortened to it.
        deviation: of the noise on each number of the sum.
        denominator: what the sum is divided by, a number known beforehand.
        noise: draws standard normal numbers, correlated or not, ``(width,)``; called once.
        refusal: why a client's update may not be in this round, or None.
        done: told when the result has been made.
        step: of which secure sums are whole multiples.  The grain divides it, since rounding such
            a sum could add more to it than one client may.
    """

    def __init__(
        self,
        width: int,
        *,
        clip: float,
        deviation: float,
        denominator: float,
        noise: Callable[[], Floats],
        refusal: Callable[[str], str | None] = lambda client: None,
        done: Callable[[PrivateMean], None] = lambda mean: None,
        step: float | None = None,
    ) -> None:
        self.clip, self.clients = clip, list[str]()
        #: Clients whose update was within the bound, less half of all: moves by 1/2 for one.
        self.within = 0.0
        self._deviation, self._denominator = deviation, denominator
        self._noise, self._refusal, self._done = noise, refusal, done
        self._grain = grain_of(deviation / _FINE, step)
        #: Towards zero a vector gets no longer; a sum of steps is in whole grains but for floats.
        self._whole = np.trunc if step is None else np.rint
        self._sum = np.zeros(width)
        self._refused: dict[str, str] = {}
        self._known: set[str] = set()
        self._result: Combined | None = None

    def add(self, client: str, vector: Vector, weight: float) -> None:
        """See ``Combiner``.

        Raises:
            FederationError: the result has been made.
        """
        if self._result is not None:
            raise FederationError(f"the update of client {client} came after the round's result")
        if client in self._known:
            self._refused[client] = "it sent two updates; the first one counts"
            return
        why = self._refusal(client)
        if why is None and vector.shape != self._sum.shape:
            why = f"its update has the shape {vector.shape}"
        if why is None and not np.isfinite(vector).all():
            why = "its update is not finite"
        if why is not None:
            self._refused[client] = why
            return
        update, within = clipped(vector, self.clip)
        # Whole grains, towards zero: no longer than before, and the sum of them is exact.
        self._sum += np.trunc(update / self._grain)
        self.within += 0.5 if within else -0.5
        self._known.add(client)
        self.clients.append(client)

    def add_sum(self, clients: Sequence[str], total: Floats, within: int = 0) -> None:
        """Take a secure sum of updates, which clients have clipped themselves (``clipped``).

        One longer than clipped updates can make has a client in it that did not clip, and nobody
        can tell which: it is left out with all its clients.  Whether it is must not hang on one
        honest client's update, though, so it fades out (``faded``).

        Args:
            clients: whose updates are in it.
            total: ``(width,)``.
            within: how many of them were within the bound already.

        Raises:
            FederationError: it cannot be a sum of updates of clients of this round.
        """
        whys = [self._refusal(client) for client in clients]
        whys += ["it is in the result already" for client in clients if client in self._known]
        if self._result is not None or any(whys) or len(set(clients)) < len(clients):
            why = next(filter(None, whys), "it came too late, or has a client twice")
            raise FederationError(f"a secure sum is refused: {why}")
        if total.shape != self._sum.shape or not np.isfinite(total).all():
            raise FederationError(f"a secure sum is refused: it has the shape {total.shape}")
        if not 0 <= within <= len(clients):
            raise FederationError(f"a secure sum is refused: {within} of its updates were short")
        longest = len(clients) * self.clip * (1 + 1e-9)  # for the rounding of floats alone
        if float(np.linalg.norm(total)) > longest:
            total = np.trunc(faded(total, longest) / self._grain) * self._grain
            why = "its group is left out: one of its clients, none can tell which, did not clip"
            self._refused.update(dict.fromkeys(clients, why))
        self._sum += self._whole(total / self._grain)
        self.within += within - len(clients) / 2
        # Also those of a sum that faded: they took part, and what that spends is spent.
        self._known.update(clients)
        self.clients.extend(clients)

    def result(self) -> Combined:
        """See ``Combiner``."""
        if self._result is None:
            noise = np.rint(self._noise() * (self._deviation / self._grain))
            total = (self._sum + noise) * self._grain
            self._result = Combined(total / self._denominator, len(self.clients), self._refused)
            self._done(self)
        return self._result
