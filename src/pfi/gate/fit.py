"""Choosing for one user: the choice whose gain over the shared adapter alone is believed most."""

from __future__ import annotations

from dataclasses import dataclass

from pfi.gate.choices import Choice, GateConfig, choices
from pfi.gate.prior import Prior, Tried, choose

#: Fewest records that choices are tried on where no prior tells of other users.
LEAST_TRIED = 4


@dataclass(frozen=True)
class Chosen:
    """What the gate chose for a user.

    Attributes:
        choice: what answers use.
        gain: its gain over the shared adapter alone, less caution; 0 for nothing.
        tried: how many of the user's records it was tried on.
    """

    choice: Choice
    gain: float
    tried: int


def choose_for(
    config: GateConfig, prior: Prior, tried: Tried | None, *, by_likeness: bool = True
) -> Chosen:
    """The choice for a user.

    Args:
        config: what there is to choose from.
        prior: what all choices gained for other users.
        tried: what plain choices gained on the user's own records; None without any.
        by_likeness: whether a weight by likeness is a choice: not without a personal adapter or
            a sentence model.
    """
    known = choices(config)
    places = [i for i, choice in enumerate(known) if by_likeness or not choice.by_likeness]
    own = None if tried is None else tried.of_all(config, prior.sure).only(places)
    number, believed = choose(prior.only(places), own, config.caution)
    count = 0 if own is None else len(own.gains)
    return Chosen(known[places[number]], float(believed[number]), count)
