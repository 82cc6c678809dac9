"""The strategies, by name."""

from __future__ import annotations

from pfi.errors import ConfigError
from pfi.federate.strategies.alternate import FedSA, RoLoRA
from pfi.federate.strategies.average import Average, FrozenA
from pfi.federate.strategies.based import Residual, Stacking
from pfi.federate.strategies.clusters import IFCA, Similarity
from pfi.federate.strategies.dual import Ditto, FedDPA
from pfi.federate.strategies.hetero import CutByPlace
from pfi.federate.strategies.kseed import FedKSeed
from pfi.federate.strategies.scaffold import Scaffold
from pfi.federate.strategies.svd import CutBySvd
from pfi.federate.strategy import Strategy

_KINDS: tuple[type[Strategy], ...] = (
    IFCA,
    Average,
    CutByPlace,
    CutBySvd,
    Ditto,
    FedDPA,
    FedKSeed,
    FedSA,
    FrozenA,
    Residual,
    RoLoRA,
    Scaffold,
    Similarity,
    Stacking,
)
STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in _KINDS}


def get_strategy(name: str) -> type[Strategy]:
    """The strategy of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STRATEGIES:
        fix = f"use one of {', '.join(STRATEGIES)}"
        raise ConfigError(f"unknown strategy {name!r}", where="strategy", fix=fix)
    return STRATEGIES[name]
