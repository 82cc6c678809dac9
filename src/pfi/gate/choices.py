"""What the gate chooses from: how much of the personal adapter and of memory an answer uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Floats = NDArray[np.float64]

#: What a choice's gain on a question is measured by.
Signal = Literal["metric", "likelihood", "both"]


class GateConfig(BaseModel):
    """What the gate chooses from, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.0, 0.5, 1.0], min_length=1, description="weights of the personal adapter, from 0 to 1"
    )
    ks: list[Annotated[int, Field(ge=0, le=32)]] = Field(
        [0, 2, 4], min_length=1, description="numbers of retrieved records"
    )
    per_question: bool = Field(
        True,
        description="also choose to weigh the adapter by how like the user's records a question "
        "is, or to leave alone what the shared adapter is sure of",
    )
    signal: Signal = Field(
        "both",
        description="what a gain is measured by: `metric`, the probability of the right label or "
        "the metric of the answer; `likelihood`, of the right answer a token; `both`, the metric's "
        "gain as both tell of it",
    )
    caution: float = Field(
        1.5, ge=0, description="standard deviations that a gain has to exceed to be believed"
    )
    held_back: float = Field(
        0.3, gt=0, lt=1, description="newest share of a user's records that choices are tried on"
    )
    least: int = Field(2, ge=1, description="fewest records held back; with fewer, none are")
    most: int = Field(8, ge=1, description="most records held back")


@dataclass(frozen=True, slots=True)
class Choice:
    """What an answer uses beside the backbone and the shared adapter.

    Attributes:
        weight: of the personal adapter, in [0, 1].
        k: how many retrieved records.
        by_likeness: the weight is multiplied by how like the user's records a question is
            (FedDPA, arXiv 2403.19211).
        if_unsure: a question that the shared adapter alone is sure of has its answer.
    """

    weight: float = 0.0
    k: int = 0
    by_likeness: bool = False
    if_unsure: bool = False

    def weight_at(self, likeness: float) -> float:
        """The weight for a question of this likeness, in steps of ``STEP`` of the whole."""
        if not self.by_likeness:
            return self.weight
        return self.weight * round(likeness / STEP) * STEP


#: The shared adapter alone.
NOTHING = Choice()
#: Weights by likeness come in steps, so that questions of one weight share a pass.
STEP = 0.25


def plain_choices(config: GateConfig) -> list[Choice]:
    """What the gate may choose regardless of how sure an answer is, ``NOTHING`` first."""
    found = [Choice(weight, k) for k in config.ks for weight in config.weights]
    if config.per_question:
        found += [Choice(max(config.weights), k, by_likeness=True) for k in config.ks]
    return [NOTHING, *(choice for choice in dict.fromkeys(found) if choice != NOTHING)]


def choices(config: GateConfig) -> list[Choice]:
    """All that the gate may choose, ``NOTHING`` first."""
    plain = plain_choices(config)
    return plain + ([replace(c, if_unsure=True) for c in plain[1:]] if config.per_question else [])


def mixing_weights(config: GateConfig) -> list[float]:
    """All weights above zero that an answer may ask for."""
    most = max(config.weights)
    steps = round(1 / STEP) if config.per_question else 0
    found = {*config.weights, *(most * step * STEP for step in range(1, steps + 1))}
    return sorted(weight for weight in found if weight > 0)
