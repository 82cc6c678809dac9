"""Who trains and who only measures, for as long as a run lasts and whoever comes and goes.

A client's role follows from a keyed hash of its name: it is held out if the hash lies within the
share.  So it stays what it is when others come or go.  Where hashes alone would leave a small
fleet with almost nobody to measure or to train, the nearest hashes decide when the run begins;
the checkpoint keeps every role that was ever given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pfi._util.seeds import generator, seed_of
from pfi.errors import ConfigError
from pfi.federate.config import FederateConfig
from pfi.federate.message import Array, Message

#: So many are held out, and so many train, before hashes alone decide (the default of
#: ``accept.least``): a fleet of a few devices is divided exactly by its share.
_LEAST = 5
_PREFIX = "roles."


class Roles:
    """The roles of a run's clients.

    Args:
        config: of the run.
        known: whether a client is held out, of all that had a role before; empty at the start.
    """

    def __init__(self, config: FederateConfig, known: Mapping[str, bool] | None = None) -> None:
        self._config, self._known = config, dict(known or {})

    @classmethod
    def of(cls, checkpoint: Message | None, config: FederateConfig) -> Roles:
        """The roles in a checkpoint; fresh ones without any."""
        if checkpoint is None:
            return cls(config)
        if _PREFIX + "held_out" not in checkpoint.arrays:
            return _Shuffled(config)
        read = {name: _names(checkpoint.arrays[_PREFIX + name]) for name in ("train", "held_out")}
        return cls(
            config, dict.fromkeys(read["train"], False) | dict.fromkeys(read["held_out"], True)
        )

    def arrays(self) -> dict[str, Array]:
        """For a checkpoint."""
        return {
            name: _bytes(client for client, held in self._known.items() if held == which)
            for name, which in (("train", False), ("held_out", True))
        }

    def divide(self, clients: Sequence[str]) -> tuple[list[str], list[str]]:
        """Clients as those that train and those that only measure, each in its order.

        Raises:
            ConfigError: none is left to train.
        """
        held = self._held_out(clients)
        self._known |= {client: client in held for client in clients}
        train = [client for client in clients if client not in held]
        if not train:
            raise ConfigError("no client is left to train", where="held_out", fix="hold out fewer")
        return train, [client for client in clients if client in held]

    def _held_out(self, clients: Sequence[str]) -> set[str]:
        share = self._config.held_out
        hashes = {client: seed_of(self._config.seed, "held out", client) for client in clients}
        limit = share * 2**32
        if self._known:
            return {c for c in clients if self._known.get(c, hashes[c] < limit)}
        wanted = round(share * len(clients))
        fewest, most = min(wanted, _LEAST), len(clients) - min(len(clients) - wanted, _LEAST)
        count = min(max(sum(value < limit for value in hashes.values()), fewest), most)
        return set(sorted(clients, key=lambda client: (hashes[client], client))[:count])


class _Shuffled(Roles):
    """Of a run of an earlier version, which drew the division anew from all clients."""

    def _held_out(self, clients: Sequence[str]) -> set[str]:
        order = list(clients)
        generator(self._config.seed, "held out").shuffle(order)
        return set(order[: round(self._config.held_out * len(order))])


def _bytes(names: Iterable[str]) -> Array:
    return np.frombuffer(json.dumps(sorted(names)).encode(), np.uint8)


def _names(array: Array) -> list[Any]:
    return json.loads(array.tobytes())
