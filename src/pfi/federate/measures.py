"""What a device lets a server measure on its records: its loss, seldom and not exactly.

A loss tells whether records were trained on (1709.01604), all the more of a model that the server
made up to ask.  So a device that has trained measures no more; one that has not answers one
question a round, and a few a day.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pfi.errors import FederationError
from pfi.federate.remembered import Remembered

#: Losses are cut here, in nats a token: far beyond that of guessing among all tokens.
LARGEST_LOSS = 20.0
_DAY = 24 * 3600.0


class _Answer(BaseModel):
    """To one question: when (seconds since 1970), its digest, the loss as sent, as text: it may be
    no number.
    """

    model_config = ConfigDict(extra="forbid")

    when: float
    question: str
    loss: str


class _Client(BaseModel):
    """Whether a client has trained, and its answers of the last day by round."""

    model_config = ConfigDict(extra="forbid")

    trained: bool = False
    answers: dict[int, _Answer] = {}


class Measures:
    """What clients measured, so that it is rationed.

    Args:
        path: a JSON file; None keeps it in memory only, for simulations.
        most: answers of a client in a day.
        clock: seconds since 1970.
    """

    def __init__(
        self, path: Path | None = None, most: int = 100, clock: Callable[[], float] = time.time
    ) -> None:
        self._most, self._clock = most, clock
        # Damaged, it is not taken for empty: a client that trained would measure again.
        fix = "remove it, and the device counts as one that has not trained"
        self._clients = Remembered(_Client, path, what="the list of measures", fix=fix)

    def train(self, client: str) -> None:
        """Note that a client trains: from now on it measures nothing."""
        self._change(client, lambda known: setattr(known, "trained", True))

    def known(self, client: str, round: int, question: str) -> float | None:
        """The loss that was sent to the same question before; None for a new one.

        Args:
            client: who is asked.
            round: the number of the round.
            question: digest of the message.

        Raises:
            FederationError: the client may not answer.
        """
        losses: list[float] = []

        def look(known: _Client) -> None:
            if known.trained:
                raise FederationError("it has trained in this federation, so it measures nothing")
            answer = known.answers.get(round)
            if answer is not None and answer.question == question:
                losses.append(float(answer.loss))
            elif answer is not None:
                raise FederationError(f"it has measured another model in round {round}")
            elif len(known.answers) >= self._most:
                raise FederationError(f"it has measured {self._most} models within a day")

        self._change(client, look)
        return losses[0] if losses else None

    def keep(self, client: str, round: int, question: str, loss: float) -> None:
        """Note an answer, before it is sent."""
        answer = _Answer(when=self._clock(), question=question, loss=repr(loss))
        self._change(client, lambda known: known.answers.update({round: answer}))

    def _change(self, client: str, change: Callable[[_Client], None]) -> None:
        def changed(known: _Client) -> None:
            past = self._clock() - _DAY
            known.answers = {n: one for n, one in known.answers.items() if one.when > past}
            change(known)

        self._clients.change(client, changed)


def blurred(loss: float, noise: float, normal: Callable[[], float]) -> float:
    """A loss as it may be sent: cut, with noise, to two digits.

    Args:
        loss: in nats a token; one that is not finite counts as the largest.
        noise: deviation of the noise; with 0 the loss is sent as it is.
        normal: draws a standard normal number.
    """
    if not noise:
        return loss
    cut = min(max(loss, 0.0), LARGEST_LOSS) if math.isfinite(loss) else LARGEST_LOSS
    return round(cut + noise * normal(), 2)
