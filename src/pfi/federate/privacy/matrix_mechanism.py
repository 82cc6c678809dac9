"""Noise that cancels over the rounds: tree aggregation and banded matrix factorization.

The sums of all rounds ``X (rounds, width)`` are released as ``C⁻¹(C X + Z)``, Z independent, C
lower triangular without negative numbers.  DP-FTRL (2103.00039) takes a binary tree for C, the
banded mechanism (2306.08153) a band; its numbers are those of the square root of the matrix of
running sums, cut off (2405.13763).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pfi.errors import ConfigError

Floats = NDArray[np.float64]


class Stream(ABC):
    """Makes independent noise into correlated noise, a round at a time."""

    @abstractmethod
    def next(self, independent: Floats) -> Floats:
        """The next row of ``C⁻¹ Z``, given that of Z; ``(width,)`` both."""


class Factor(ABC):
    """A matrix C.

    Args:
        rounds: its size.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    @abstractmethod
    def matrix(self) -> Floats:
        """C, ``(rounds, rounds)``; for tests and plots."""

    @abstractmethod
    def stream(self) -> Stream:
        """What makes its noise."""

    @abstractmethod
    def weights(self, rounds: int, separation: int, most: int) -> Floats:
        """What taking part in each of the first rounds adds to the squared sensitivity at most."""

    @abstractmethod
    def running_error(self) -> float:
        """The sum over rounds of the variance of the running sum, at unit noise."""

    def sensitivity(self, rounds: int, separation: int, most: int) -> float:
        """How far one client moves ``C X`` in the first rounds, at a bound of 1 on each update.

        C has no negative numbers, so no client does worse than to send the same longest update
        every time (2306.08153); which rounds are worst is found by dynamic
        programming over all choices that the constraint leaves.

        Args:
            rounds: how many were released; beyond those of C it is infinite.
            separation: rounds from one participation to the next one at least.
            most: participations of a client at most.
        """
        if rounds > self.rounds:
            return math.inf
        weights = self.weights(rounds, separation, most)
        times = min(most, -(-len(weights) // separation))
        # best[k] after round j: the largest sum of k + 1 weights of rounds up to j.
        history = np.zeros((len(weights) + 1, times))
        for j, weight in enumerate(weights):
            earlier = history[max(0, j + 1 - separation)]
            taken = weight + np.concatenate([[0.0], earlier[:-1]])
            history[j + 1] = np.maximum(history[j], taken)
        return math.sqrt(history[-1, -1]) if times else 0.0

    def gain(self) -> float:
        """Error of running sums relative to that of independent noise, root mean square."""
        return math.sqrt(self.running_error() / (self.rounds * (self.rounds + 1) / 2))


class Tree(Factor):
    """Running sums from the nodes of a binary tree that end in a round, one node a round."""

    def matrix(self) -> Floats:
        """See ``Factor``: row t is 1 on the rounds that its node covers."""
        matrix = np.zeros((self.rounds, self.rounds))
        for t in range(1, self.rounds + 1):
            matrix[t - 1, t - (t & -t) : t] = 1
        return matrix

    def stream(self) -> Stream:
        """See ``Factor``."""
        return _TreeStream()

    def weights(self, rounds: int, separation: int, most: int) -> Floats:
        """See ``Factor``.

        A node that a client is in n times adds n² to the square of the sensitivity, which is n
        for each of them; n is at most what fits into the node.
        """
        weights = np.zeros(rounds)
        for t in range(1, rounds + 1):
            size = t & -t
            weights[t - size : t] += min(most, -(-size // separation))
        return weights

    def running_error(self) -> float:
        """See ``Factor``: a running sum has as many nodes as its round has binary ones."""
        return float(sum(t.bit_count() for t in range(1, self.rounds + 1)))


class _TreeStream(Stream):
    def __init__(self) -> None:
        self._round = 0
        #: The noise of running sums, by how many rounds they are of; the nodes in use.
        self._running: list[tuple[int, Floats]] = []

    def next(self, independent: Floats) -> Floats:
        """See ``Stream``."""
        self._round += 1
        start = self._round & (self._round - 1)  # the first round of the node, less one
        last = self._running[-1][1] if self._running else np.zeros_like(independent)
        while self._running and self._running[-1][0] > start:
            self._running.pop()
        base = self._running[-1][1] if self._running else 0.0
        self._running.append((self._round, base + independent))
        return self._running[-1][1] - last


class Banded(Factor):
    """The square root of the matrix of running sums, ``bands`` diagonals of it.

    Args:
        rounds: its size.
        bands: at most as many as rounds from one participation of a client to the next, so that
            no two participations meet in a row.
    """

    def __init__(self, rounds: int, bands: int) -> None:
        super().__init__(rounds)
        self.bands = max(1, min(bands, rounds))
        steps = np.arange(1, self.bands)
        self.numbers = np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))

    def matrix(self) -> Floats:
        """See ``Factor``: the same numbers in every column."""
        return _toeplitz(np.pad(self.numbers, (0, self.rounds - self.bands)))

    def stream(self) -> Stream:
        """See ``Factor``."""
        return _BandedStream(self.numbers)

    def weights(self, rounds: int, separation: int, most: int) -> Floats:
        """See ``Factor``: the squared columns, of as many rows as there are.

        Raises:
            ConfigError: two participations would meet in a row.
        """
        if self.bands > separation:
            raise ConfigError(
                f"{self.bands} bands for clients that take part every {separation} rounds",
                fix="take at most as many bands as rounds between",
            )
        lengths = np.minimum(self.bands, np.arange(rounds, 0, -1))
        return np.cumsum(self.numbers**2)[lengths - 1]

    def running_error(self) -> float:
        """See ``Factor``."""
        stream, impulse = self.stream(), np.zeros(self.rounds)
        impulse[0] = 1
        inverse = np.array([stream.next(np.array([x]))[0] for x in impulse])
        return float(((self.rounds - np.arange(self.rounds)) * np.cumsum(inverse) ** 2).sum())


class _BandedStream(Stream):
    def __init__(self, numbers: Floats) -> None:
        self._numbers = numbers
        self._last: deque[Floats] = deque(maxlen=len(numbers) - 1)  # newest first

    def next(self, independent: Floats) -> Floats:
        """See ``Stream``: forward substitution, which needs the last rows of a band only."""
        row = independent.copy()
        for number, earlier in zip(self._numbers[1:], self._last, strict=False):
            row -= number * earlier
        self._last.appendleft(row)
        return row


def _toeplitz(column: Sequence[float] | Floats) -> Floats:
    """The lower-triangular matrix with this first column."""
    size = len(column)
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    return np.where(distance >= 0, np.asarray(column)[np.abs(distance)], 0.0)
