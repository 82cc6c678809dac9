"""How a federation combines updates: the mean, a robust rule or a private mean; alone, or across
the groups of secure aggregation.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import seed_of
from pfi.errors import ConfigError, FederationError
from pfi.federate.aggregate.mean import Combined, Combiner, WeightedMean
from pfi.federate.aggregate.robust import RobustCombiner, across_groups
from pfi.federate.config import FederateConfig
from pfi.federate.privacy.accounting import Spent
from pfi.federate.privacy.dp_fedavg import PrivateRounds
from pfi.federate.sampling import fixed_cohort, poisson_cohort
from pfi.federate.secure.server import SecureServer


class Combining:
    """Who is asked, what combines what they send, and what of it lasts over rounds.

    Args:
        config: of the federation.
        clients: that may be asked.
        width: numbers in an update.
        simulated: noise is drawn by the seed, for a run that can be repeated.

    Raises:
        ConfigError: settings that do not fit each other.
    """

    def __init__(
        self, config: FederateConfig, clients: Sequence[str], width: int, *, simulated: bool
    ) -> None:
        self.config, self.clients, self.width = config, clients, width
        if config.secure is not None and len(clients) < config.secure.smallest:
            what = f"{len(clients)} clients make no secure sum of {config.secure.smallest}"
            fix = "register more devices, hold out fewer, or take a smaller one"
            raise ConfigError(what, where="secure.smallest", fix=fix)
        self._last: NDArray[np.float64] | None = None
        self._private: PrivateRounds | None = None
        if config.privacy.mechanism != "none":
            self._private = PrivateRounds(
                config.privacy,
                fleet=len(clients),
                cohort=min(config.cohort, len(clients)),
                sampling=config.sampling,
                rounds=config.rounds,
                width=width,
                seed=seed_of(config.seed, "privacy") if simulated else None,
            )

    @property
    def private(self) -> bool:
        """Whether the result has noise."""
        return self._private is not None

    def cohort(
        self, number: int, available: Sequence[str] | None = None, again: int = 0
    ) -> list[str]:
        """The clients that a round asks.

        Args:
            number: of the round.
            available: those that can be reached, where cohorts are drawn from them.  With privacy
                they never are: lots are accounted for all of the fleet, and who is away is a client
                that does not reply.
            again: how often this round was asked in vain; others are drawn each time.
        """
        config = self.config
        if self._private is not None:
            return self._private.cohort(self.clients)
        names = self.clients if available is None else available
        seed = seed_of(config.seed, "cohort", number, *([again] if again else []))
        if config.sampling == "poisson":
            return poisson_cohort(names, min(1.0, config.cohort / max(1, len(names))), seed)
        wanted = round(config.cohort * (1 + config.spare))
        return fixed_cohort(names, min(wanted, len(names)), seed)

    @property
    def extra_values(self) -> dict[str, float]:
        """Sent to clients beside what the strategy broadcasts: the bound of their updates."""
        return {} if self._private is None else {"clip": self._private.clip}

    def combiner(self, cohort: Collection[str], number: int) -> Combiner:
        """What combines the updates of a round."""
        if self._private is not None:
            return self._private.combiner(cohort)
        if self.config.robust is not None:
            seed = seed_of(self.config.seed, "robust", number)
            return RobustCombiner(self.width, self.config.robust, last=self._last, seed=seed)
        return WeightedMean(self.width)

    def across(
        self, groups: Sequence[SecureServer], cohort: Collection[str], number: int
    ) -> Combined:
        """One vector of the secure sums of groups; those that failed are not among them."""
        if self._private is not None:
            step = None if self.config.secure is None else self.config.secure.step
            mean = self._private.combiner(cohort, step=step)
            for group in groups:
                mean.add_sum(group.survivors(), group.total())
            return mean.result()
        refused: dict[str, str] = {}
        usable: list[tuple[SecureServer, NDArray[np.float64]]] = []
        for group in groups:
            try:
                usable.append((group, group.mean()))
            except FederationError as error:
                refused |= dict.fromkeys(group.survivors(), error.what)
        if len(usable) < (1 if self.config.robust is None else 3):  # a rule needs a majority
            return Combined(np.zeros(self.width), 0, refused)
        names = [name for group, _ in usable for name in group.survivors()]
        means = np.stack([mean for _, mean in usable])
        weights = np.array([float(group.weight()) for group, _ in usable])
        if self.config.robust is not None:
            size = max(len(group.survivors()) for group, _ in usable)
            seed = seed_of(self.config.seed, "robust", number)
            combined = across_groups(
                means.astype(np.float32),
                weights,
                size,
                self.config.robust,
                last=self._last,
                seed=seed,
            )
            return Combined(combined.vector, len(names), {**refused, **combined.refused})
        return Combined(np.average(means, axis=0, weights=weights), len(names), refused)

    def taken(self, combined: Combined) -> None:
        """Remember what a round came to."""
        if self.config.robust is not None and self.config.robust.rule == "centred-clipping":
            self._last = combined.vector

    def allows(self) -> bool:
        """Whether another round is within the privacy budget."""
        return self._private is None or self._private.allows()

    def spent(self) -> Spent | None:
        """What the rounds so far have spent; None without privacy."""
        return None if self._private is None else self._private.spent()

    # Checkpoints --------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What is remembered, for a checkpoint."""
        return {} if self._last is None else {"last": self._last}

    def values(self) -> str:
        """The rest of it, as JSON; as secret as updates are."""
        return json.dumps({} if self._private is None else self._private.state())

    def restore(self, arrays: Mapping[str, Any], values: str) -> None:
        """Go on from a checkpoint."""
        self._last = arrays.get("last")
        if self._private is not None:
            self._private.restore(json.loads(values))
