"""What a new personal adapter makes the model forget, and the weight at which it may be used.

The model without the personal adapter is what it is compared with: the backbone, with the shared
adapter where there is one.  An adapter beyond the bound is tried at lower weights of its update,
which costs no training; ``benchmarks/results/forgetting.md`` compares this with other remedies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pfi._util.settings import checked
from pfi.models.adapters import Adapter
from pfi.profile.home import Home
from pfi.train.config import ForgettingConfig

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone
    from pfi.train.forgetting import Forgetting, GeneralProbe

#: An adapter at a lower weight of its update, that weight, and what it makes the model forget.
Lighter = tuple[Adapter, float, "Forgetting"]


def forgetting_config(home: Home) -> ForgettingConfig:
    """What is measured and what is too much: the profile's settings, then the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    return checked(ForgettingConfig, home.config.forgetting, "forgetting settings")


def open_probe(home: Home, base: Backbone, on_stage: Callable[[str], None]) -> GeneralProbe | None:
    """The probe over the model without a personal adapter; None where nothing is to be measured."""
    from pfi.train.forgetting import GeneralProbe

    config = forgetting_config(home)
    if not config.passages:
        return None
    on_stage("measuring what is forgotten")
    return GeneralProbe(base, config, home.models_folder)


def lower_weights(probe: GeneralProbe, adapter: Adapter) -> Iterator[Lighter]:
    """The adapter at the lower weights at which it forgets no more than it may, highest first."""
    for weight in probe.config.weights:
        lighter = adapter.scaled(weight)
        found = probe.forgetting(lighter)
        if not found.exceeded:
            yield lighter, weight, found


def too_much(forgetting: Forgetting) -> str:
    """That the bound is exceeded, in a sentence."""
    return (
        f"it forgets too much: the loss on general text rises by {forgetting.rise:.2f} nats a "
        f"token, and the bound is {forgetting.bound:g}"
    )


def at_lower_weight(full: Forgetting, weight: float) -> str:
    """Why an adapter is used at a lower weight, in a sentence."""
    return (
        f"used at weight {weight:g}, as at full weight the loss on general text rises by "
        f"{full.rise:.2f} nats a token, and the bound is {full.bound:g}"
    )
