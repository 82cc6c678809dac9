"""Who is asked in a round, by lot as it is accounted, and who may take part again.

Without a seed, lots are drawn from the system's randomness: who could foresee them would know who
took part, and the accounting of sampling assumes that nobody does.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pfi._util.seeds import generator
from pfi.errors import ConfigError, FederationError


def poisson_cohort(clients: Iterable[str], rate: float, seed: int | None) -> list[str]:
    """Clients by Poisson sampling: each with probability ``rate``, regardless of the others.

    Args:
        clients: the order does not matter, nor does a name that is there twice.
        rate: from 0 to 1.
        seed: of the lots; None for the system's randomness.

    Raises:
        ConfigError: the rate is no probability.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"a sampling rate of {rate}", fix="give one from 0 to 1")
    names = sorted(set(clients))
    if seed is None:
        system = secrets.SystemRandom()
        return [name for name in names if system.random() < rate]
    lots = generator(seed, "poisson cohort").random(len(names))
    return [name for name, lot in zip(names, lots, strict=True) if lot < rate]


def fixed_cohort(clients: Iterable[str], size: int, seed: int | None) -> list[str]:
    """So many clients, every set of them as probable as any other.

    Args:
        clients: the order does not matter, nor does a name that is there twice.
        size: how many.
        seed: of the lots; None for the system's randomness.

    Raises:
        FederationError: there are fewer.
    """
    names = sorted(set(clients))
    if not 0 <= size <= len(names):
        raise FederationError(
            f"a cohort of {size} cannot be drawn from {len(names)} clients",
            fix="ask fewer, or wait for more clients",
        )
    if seed is None:
        return sorted(secrets.SystemRandom().sample(names, size))
    picked = generator(seed, "fixed cohort").choice(len(names), size, replace=False)
    return [names[i] for i in sorted(picked)]


class Participation:
    """Which clients may take part in a round, where noise is correlated over rounds.

    Args:
        separation: rounds from one participation of a client to its next one at least.
        most: participations of a client at most.
    """

    def __init__(self, separation: int, most: int) -> None:
        self.separation, self.most = separation, most
        self._last: dict[str, tuple[int, int]] = {}  # the last round and how many so far

    def refusal(self, client: str, round: int) -> str | None:
        """Why a client may not take part in a round, or None."""
        last, times = self._last.get(client, (None, 0))
        if last is not None and round < last + self.separation:
            return f"it took part in round {last}, and may again in round {last + self.separation}"
        if times >= self.most:
            return f"it took part {times} times, as often as it may"
        return None

    def available(self, clients: Iterable[str], round: int) -> list[str]:
        """The clients that may take part in a round."""
        return [client for client in clients if self.refusal(client, round) is None]

    def record(self, clients: Iterable[str], round: int) -> None:
        """Note that clients took part in a round.

        Raises:
            FederationError: one of them may not.
        """
        for client in clients:
            if why := self.refusal(client, round):
                raise FederationError(f"client {client} is not in this round: {why}")
            self._last[client] = (round, self._last.get(client, (0, 0))[1] + 1)

    def state(self) -> dict[str, Sequence[int]]:
        """For a checkpoint: every client's last round and number of participations."""
        return {client: list(entry) for client, entry in self._last.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._last = {client: (int(last), int(times)) for client, (last, times) in state.items()}
