"""The strategies, by name, and whether a federation's settings fit its strategy.

``FederateConfig`` itself knows no strategies: it checks what can be told without them.
"""

from __future__ import annotations

from pfi.errors import ConfigError
from pfi.federate.config import FederateConfig
from pfi.federate.strategies.alternate import FedSA, RoLoRA
from pfi.federate.strategies.average import Average, FrozenA
from pfi.federate.strategies.based import Residual, Stacking
from pfi.federate.strategies.clusters import IFCA, Similarity
from pfi.federate.strategies.dual import Ditto, FedDPA
from pfi.federate.strategies.hetero import CutByPlace
from pfi.federate.strategies.kseed import FedKSeed
from pfi.federate.strategies.scaffold import Scaffold
from pfi.federate.strategies.svd import CutBySvd
from pfi.federate.strategy import LinearStrategy, Strategy

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


def check(
    config: FederateConfig, where: str | None = None, fix: str | None = "see docs/federate.md"
) -> FederateConfig:
    """Settings that their strategy can be run with, as they are.

    Args:
        config: the settings.
        where: they come from, for the error.
        fix: what to do about it, for the error.

    Raises:
        ConfigError: there is no such strategy, or something is set that needs another.
    """
    kind = get_strategy(config.strategy)
    given = {
        "robust": config.robust is not None,
        "privacy": config.privacy.mechanism != "none",
        "secure": config.secure is not None,
        "compress": config.compress.active,
    }
    if any(given.values()) and not issubclass(kind, LinearStrategy):
        name = next(name for name, is_set in given.items() if is_set)
        what = f"`{name}` needs a strategy whose update is one vector; {config.strategy} sends"
        raise ConfigError(f"{what} factors that the server has to see", where=where, fix=fix)
    return config
