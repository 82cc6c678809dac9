"""Whether a federation's settings fit its strategy; called wherever settings come in.

``FederateConfig`` itself knows no strategies: it checks what can be told without them.
"""

from __future__ import annotations

from pfi.errors import ConfigError
from pfi.federate.config import FederateConfig
from pfi.federate.strategies import get_strategy
from pfi.federate.strategy import LinearStrategy


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
