"""Robust aggregation: one update of a round's many although some clients are bad.

Updates that no rule needs to judge are refused first: not finite, of another rank, sent twice, or
with an impossible weight.  The rules are in ``robust_rules.py``.
"""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pfi._util.seeds import generator
from pfi.errors import ConfigError
from pfi.federate.aggregate import robust_rules as rules
from pfi.federate.aggregate.bounds import LARGEST_WEIGHT, update_refusal
from pfi.federate.aggregate.mean import Combined, Vector

Floats = NDArray[np.float64]
Rule = Literal[
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "norm-bound",
    "centred-clipping",
    "spectral",
]
Pre = Literal["none", "nnm", "bucketing"]


class RobustConfig(BaseModel):
    """How updates become one; the defaults are what `benchmarks/results/robust.md` recommends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = Field("spectral", description="what makes one update of many")
    pre: Pre = Field(
        "none", description="step before the rule: nearest-neighbour mixing, random buckets or none"
    )
    bad: float = Field(
        0.25, ge=0, lt=0.5, description="largest share of a round's clients that may be bad"
    )
    weights: Literal["equal", "examples"] = Field(
        "equal",
        description="what a client counts: the same, or the examples that it claims",
    )
    weight_cap: float = Field(
        2.0, ge=1, description="largest claimed number of examples, as a multiple of the median"
    )
    bound: float = Field(
        1.0, gt=0, description="largest distance when clipping, as a multiple of the median one"
    )
    stands_out: float = Field(
        2.0, ge=1, description="spectral: the largest variance, as a multiple of the 4th, to act at"
    )
    clip_steps: int = Field(3, ge=1, description="steps of centred clipping in a round")
    bucket: int = Field(2, ge=2, description="updates in a bucket")
    memory_mib: int = Field(
        1024, ge=1, description="memory for a round's updates; those beyond it go to disk"
    )


def bad_among(count: int, share: float) -> int:
    """How many of ``count`` updates a rule is to withstand: never half of them."""
    return min(math.ceil(share * count - 1e-9), (count - 1) // 2)


def robust(
    updates: NDArray[np.float32],
    weights: Floats,
    config: RobustConfig,
    *,
    last: NDArray[np.floating] | None = None,
    rng: np.random.Generator | None = None,
) -> Floats:
    """One update of many.

    Args:
        updates: ``(n, width)``, finite, at least one.
        weights: ``(n,)``, all above zero.
        config: which rule, and its settings.
        last: what the last round made, the reference of centred clipping; zero when None.
        rng: puts updates into buckets.

    Returns:
        ``(width,)``.
    """
    reference = last if config.rule == "centred-clipping" else None
    bad = bad_among(len(updates), config.bad)
    coordinates = config.rule in ("median", "trimmed-mean")
    mixing: Floats | None = None
    pairs: rules.Pairs | None = None
    if config.pre == "bucketing":
        mixing = rules.bucket_mixing(weights, config.bucket, rng or generator(0))
        weights = mixing.sum(axis=1)
        mixing = mixing / weights[:, None]
        bad = min(bad, (len(mixing) - 1) // 2)
    if config.pre == "nnm" or not (coordinates or config.rule == "mean"):
        pairs = rules.pairs_of(updates, reference)
    if config.pre == "nnm":
        assert pairs is not None
        mixing = rules.nearest_mixing(pairs, weights, bad)
    if config.rule == "median":
        return rules.by_coordinate(updates, weights, rules.median, mixing)
    if config.rule == "trimmed-mean":
        rule = partial(rules.trimmed_mean, bad=bad)
        return rules.by_coordinate(updates, weights, rule, mixing)
    if pairs is not None and mixing is not None:
        pairs = pairs.mixed(mixing)
    shares = _shares(pairs, weights, bad, config)
    if mixing is not None:
        shares = np.append(shares[:-1] @ mixing, shares[-1])
    return rules.add_up(updates, shares, reference)


def _shares(pairs: rules.Pairs | None, weights: Floats, bad: int, config: RobustConfig) -> Floats:
    """The share of each point, and last of the reference."""
    if pairs is None:
        return np.append(weights / weights.sum(), 0.0)
    match config.rule:
        case "krum":
            return rules.krum(pairs, weights, bad)
        case "multi-krum":
            return rules.krum(pairs, weights, bad, keep=pairs.count - bad)
        case "geometric-median":
            return rules.geometric_median(pairs, weights)
        case "norm-bound":
            return rules.clipped(pairs, weights, config.bound)
        case "centred-clipping":
            return rules.clipped(pairs, weights, config.bound, steps=config.clip_steps)
        case "spectral":
            return rules.spectral(pairs, weights, bad, config.bound, stands_out=config.stands_out)
        case _:
            return np.append(weights / weights.sum(), 0.0)


class RobustCombiner:
    """Combines a round's updates by a robust rule.

    Rules compare updates, so that all are kept until the end: 4 bytes for each number of each
    client, in memory up to ``config.memory_mib`` and beyond that in a temporary file.

    Args:
        width: of an update.
        config: the rule.
        last: what the last round made; only centred clipping uses it.
        seed: of the buckets.
        folder: where the temporary file lies; the system's place by default.
    """

    def __init__(
        self,
        width: int,
        config: RobustConfig,
        *,
        last: NDArray[np.floating] | None = None,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._width, self._config, self._last = width, config, last
        self._seed, self._folder = seed, folder
        self._rows: list[Vector] = []
        self._weights: dict[str, float] = {}
        self._refused: dict[str, str] = {}
        self._file: IO[bytes] | None = None

    def add(self, client: str, vector: Vector, weight: float) -> None:
        """Keep an update, or refuse it; see ``Combiner``."""
        why = update_refusal(vector, self._width)
        if client in self._weights:
            why = "it sent a second update; the first one counts"
        elif not (math.isfinite(weight) and weight > 0):  # its size is capped later
            why = f"its weight is {weight}"
        if why is not None:
            self._refused[client] = why
            return
        row = np.array(vector, np.float32)
        self._weights[client] = min(float(weight), LARGEST_WEIGHT)
        if self._file is not None:
            self._file.write(row.tobytes())
        else:
            self._rows.append(row)
            if 4 * self._width * len(self._rows) > self._config.memory_mib << 20:
                self._spill()

    def _spill(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115, closed by result()
        for row in self._rows:
            self._file.write(row.tobytes())
        self._rows = []

    def weights(self) -> Floats:
        """What each kept client counts ``(n,)``."""
        claimed = np.array(list(self._weights.values()))
        if self._config.weights == "equal":
            return np.ones(len(claimed))
        return np.minimum(claimed, self._config.weight_cap * np.median(claimed))

    def result(self) -> Combined:
        """The robust update, zero when all were refused; forgets the round's updates."""
        count = len(self._weights)
        if count == 0:
            return Combined(np.zeros(self._width), 0, dict(self._refused))
        try:
            vector = robust(
                self._updates(),
                self.weights(),
                self._config,
                last=self._last,
                rng=generator(self._seed, "buckets"),
            )
        finally:
            self._rows = []
            if self._file is not None:
                self._file.close()
        return Combined(vector, count, dict(self._refused))

    def _updates(self) -> NDArray[np.float32]:
        if self._file is None:
            return np.stack(self._rows)
        self._file.flush()
        shape = (len(self._weights), self._width)
        return np.memmap(self._file, np.float32, "r", shape=shape)


# Secure aggregation shows sums of groups only -------------------------------------------------


def bad_groups(share: float, size: int) -> float:
    """The expected share of groups with a bad client when a ``share`` of the clients is bad.

    Raises:
        ConfigError: it is half of the groups: no rule can help.
    """
    groups = 1.0 - (1.0 - share) ** size
    if groups >= 0.5:
        most = 1.0 - 0.5 ** (1.0 / size)
        raise ConfigError(
            f"with {share:.0%} bad clients, {groups:.0%} of groups of {size} have one",
            where="robust.bad",
            fix=f"groups of {size} withstand less than {most:.1%} bad clients; "
            "expect fewer, or make groups smaller",
        )
    return groups


def across_groups(
    means: NDArray[np.float32],
    weights: Floats,
    size: int,
    config: RobustConfig,
    *,
    last: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> Combined:
    """The robust update across groups of which only the means are seen.

    One bad client makes its group bad, so that the rule has to withstand far more bad groups
    than there are bad clients.

    Args:
        means: ``(groups, width)``, one mean for each random group.
        weights: ``(groups,)``, what each group counts, by its number of clients or of examples.
        size: clients of the largest group.
        config: the rule; ``bad`` is the share of clients, not of groups.
        last: see ``robust``.
        seed: of the buckets.

    Returns:
        ``clients`` counts groups, and ``refused`` names them by their position.

    Raises:
        ConfigError: half of the groups are expected to have a bad client: no rule can help.
    """
    share = bad_groups(config.bad, size)
    combiner = RobustCombiner(
        means.shape[1], config.model_copy(update={"bad": share}), last=last, seed=seed
    )
    for position, (mean, weight) in enumerate(zip(means, weights, strict=True)):
        combiner.add(str(position), mean, float(weight))
    return combiner.result()
