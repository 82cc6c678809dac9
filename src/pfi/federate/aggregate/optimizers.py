"""Server optimisers: FedAvg (1602.05629), with momentum FedAvgM (1909.06335); FedAdagrad, FedAdam
and FedYogi (2003.00295, Algorithm 2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pfi.federate.message import Array


class ServerConfig(BaseModel):
    """How the server steps along the clients' combined update."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: Literal["fedavg", "fedadagrad", "fedadam", "fedyogi"] = Field(
        "fedavg", description="fedavg adds the combined update; the others scale it per number"
    )
    learning_rate: float = Field(1.0, gt=0, description="server's learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment; not of fedavg")
    beta2: float = Field(
        0.99, ge=0, lt=1, description="decay of the second moment, of fedadam and fedyogi"
    )
    tau: float = Field(1e-3, gt=0, description="adaptivity: added to the root of the second moment")
    momentum: float = Field(0.0, ge=0, lt=1, description="of fedavg")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the rounds with rising rate")
    decay: Literal["none", "linear"] = Field(
        "none", description="of the rate: none, or to zero after the last round"
    )


class ServerOptimizer:
    """Steps an array of the server's state; its moments are part of that state.

    The combined update stands where the negative gradient does. As in the paper, no moment is
    corrected for its start, and the second one begins at ``tau ** 2``.

    Args:
        config: which one.
        rounds: planned, for a rate that rises and falls.
    """

    def __init__(self, config: ServerConfig, rounds: int = 1) -> None:
        self.config, self.rounds = config, rounds

    def step(
        self, state: dict[str, Array], name: str, update: NDArray[np.float64]
    ) -> dict[str, Array]:
        """The array after a step along ``update``, and its moments.

        Args:
            state: has the array, and its moments after an earlier step.
            name: of the array; its moments are ``NAME.first`` and ``NAME.second``, float64.
            update: of the array's shape.
        """
        config, old = self.config, state[name].astype(np.float64)
        moments: dict[str, Array] = {}
        rate = config.learning_rate
        if config.warmup or config.decay != "none":
            done = int(state.get(f"{name}.steps", np.zeros(())))
            moments[f"{name}.steps"] = np.array(done + 1)
            rate *= self._share(done)
        if config.optimizer == "fedavg":
            if config.momentum:
                update = config.momentum * _moment(state, f"{name}.first", old, 0.0) + update
                moments[f"{name}.first"] = update
            return {name: (old + rate * update).astype(np.float32), **moments}
        first = _moment(state, f"{name}.first", old, 0.0)
        first = config.beta1 * first + (1 - config.beta1) * update
        second = _moment(state, f"{name}.second", old, config.tau**2)
        square = update**2
        if config.optimizer == "fedadagrad":
            second = second + square
        elif config.optimizer == "fedadam":
            second = config.beta2 * second + (1 - config.beta2) * square
        else:
            second = second - (1 - config.beta2) * square * np.sign(second - square)
        new = old + rate * first / (np.sqrt(second) + config.tau)
        moments |= {f"{name}.first": first, f"{name}.second": second}
        return {name: new.astype(np.float32), **moments}

    def _share(self, done: int) -> float:
        """Of the rate, after so many steps."""
        rising = round(self.rounds * self.config.warmup)
        if done < rising:
            return (done + 1) / rising
        if self.config.decay == "none":
            return 1.0
        return max(0.0, (self.rounds - done) / max(1, self.rounds - rising))


def _moment(state: dict[str, Array], name: str, like: Array, start: float) -> Array:
    moment = state.get(name)
    return np.full(like.shape, start) if moment is None else moment
