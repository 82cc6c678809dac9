"""The rounds of a federation: what each came to, as it is logged, read again and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from pfi._util.events import Event, read_events
from pfi.errors import FederationError, StorageError

#: The log in a run folder.
FILE = "events.jsonl"


@dataclass(frozen=True)
class Round:
    """What a round came to.

    Attributes:
        number: from 0.
        asked: clients that were sent something.
        clients: those whose update was taken.
        failed: why others gave none.
        refused: why updates were left out.
        bytes_down, bytes_up: as sent, of all clients together.
        seconds: wall-clock time.
        losses: of held-out clients by name, where they were measured.
        kept: whether the server's state moved on.
        why: what held-out clients said of it, where they judge.
        epsilon: spent so far, where there is privacy and one may be printed.
        spent: the same for people.
    """

    number: int
    asked: int
    clients: int
    failed: Mapping[str, str]
    refused: Mapping[str, str]
    bytes_down: int
    bytes_up: int
    seconds: float
    losses: Mapping[str, float] = field(default_factory=dict)
    kept: bool = True
    why: str | None = None
    epsilon: float | None = None
    spent: str | None = None

    @property
    def loss(self) -> float | None:
        """The mean loss of the held-out clients."""
        return float(np.mean(list(self.losses.values()))) if self.losses else None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**vars(self), "event": "round", "loss": self.loss}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        """What ``to_dict`` gave."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})


def read_rounds(folder: Path) -> Iterator[Event]:
    """The logged rounds of a run, in order; a line torn by a kill is passed over.

    Raises:
        StorageError: there is no run, or a line is damaged.
    """
    path = folder / FILE
    if not path.exists():
        fix = "give the folder of a federation, or wait for its first round"
        raise StorageError("there are no rounds", where=str(folder), fix=fix)
    yield from (event for event in read_events(path) if event.get("event") == "round")


def unusable(
    rounds: Sequence[Event], least: int, stopped: str | None = None
) -> FederationError | None:
    """What is wrong with a run of which no round counted, or None if one did.

    Args:
        rounds: as logged.
        least: fewest updates of a round that is worth something; noise alone is not.
        stopped: why no more rounds are done, if the run ended early.
    """
    if any(event["kept"] and event["clients"] >= least for event in rounds):
        return None
    reasons = Counter(why for event in rounds for why in event["failed"].values())
    reasons.update(why for event in rounds for why in event["refused"].values())
    reasons.update(event["why"] for event in rounds if event.get("why"))
    why = "; ".join(f"{why} ({count} times)" for why, count in reasons.most_common(3))
    what = f"none of the {len(rounds)} rounds was usable, so there is no shared adapter"
    return FederationError(
        f"{what}: {why or stopped or 'no client replied'}",
        fix="see `pfi federate status FOLDER`; put right what failed, and go on with more rounds",
    )


def headline(event: Mapping[str, Any]) -> str:
    """A round in a line."""
    parts = [f"round {event['number'] + 1}: {event['clients']} of {event['asked']} clients"]
    if event.get("loss") is not None:
        parts.append(f"held-out loss {event['loss']:.4f}")
    if not event["kept"]:
        why = event.get("why")
        parts.append(f"taken back: {why}" if why else "too few, not counted")
    if event.get("epsilon") is not None:
        parts.append(f"epsilon {event['epsilon']:.2f}")
    return ", ".join(parts)
