"""A study's shared adapter learnt by federation: each train user is a simulated client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfi._util.events import Event, new_event, read_events
from pfi.evaluate.study.arms import FEDERATED
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.run import Run
from pfi.federate.config import FederateConfig
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone
from pfi.tasks import Example, Task

#: What a ``round`` event says of a round, beside the task, the arm and the number.
_SAID = ("asked", "clients", "bytes_down", "bytes_up", "loss", "epsilon", "seconds", "kept")


@dataclass(frozen=True)
class TrainUsers:
    """Train users as a ``Population``; they stay in memory, ``train_users`` limits them."""

    own: dict[str, Sequence[Example]]

    def clients(self) -> Sequence[str]:
        """All that have something to learn from."""
        return [user for user, examples in self.own.items() if examples]

    def examples(self, client: str) -> Sequence[Example]:
        """What central training learns from of that user."""
        return self.own[client]

    def rank(self, client: str) -> int | None:
        """No limit."""
        return None


def federate(
    run: Run,
    task: Task,
    backbone: Backbone,
    strategy: str,
    examples: Iterable[tuple[str, Sequence[Example]]],
) -> Adapter:
    """Learn a task's shared adapter by federation; a killed run goes on at its last whole round.

    What a new user answers with becomes one plain adapter, which is kept with the events.

    Args:
        run: whose settings, checkpoints and event log are used.
        task: the task.
        backbone: the frozen model.
        strategy: the rule of aggregation.
        examples: of the train users, user by user.

    Raises:
        ConfigError: the settings make no sense for these clients.
        FederationError: the rounds led nowhere.
    """
    from pfi.federate.rounds import Federation
    from pfi.federate.simulate import SimulatedFleet

    kind, name = FEDERATED + strategy, task.name
    checkpoints = Checkpoints(run.out)
    settings = _settings(run.config, strategy, name)
    users = TrainUsers(dict(examples))
    folder = checkpoints.state(kind, name)

    def told(text: str, done: int, rounds: int) -> None:
        _log(run, kind, name, folder)
        run.progress(f"{name} {kind} {done}/{rounds}, {text}")

    fleet = SimulatedFleet(backbone, users, settings, folder / "clients")
    try:
        federation = Federation(settings, fleet.strategy, fleet, folder, resume=True, on_round=told)
        adapter = fleet.adapter(federation.run())
    finally:
        fleet.close()
    _log(run, kind, name, folder)
    rounds = list(read_events(folder / "events.jsonl"))
    event = new_event(
        "trained",
        task=name,
        adapter=kind,
        user=None,
        examples=sum(len(own) for own in users.own.values()),
        steps=len(rounds),
        losses=[],
        seconds=sum(event["seconds"] for event in rounds),
    )
    if federation.stopped is not None:
        event["stopped"] = federation.stopped
    checkpoints.put(adapter, event)
    run.log.append(event)
    checkpoints.drop_state(kind, name)
    return adapter


def _settings(config: StudyConfig, strategy: str, task: str) -> FederateConfig:
    """The federation of a task; all strategies have the same cohorts."""
    given = config.federation
    simulate = given.simulate.model_copy(
        update={"workers": max(config.workers, given.simulate.workers)}
    )
    seed = config.seed_of("federation", given.seed, task)
    return given.model_copy(update={"strategy": strategy, "seed": seed, "simulate": simulate})


def _log(run: Run, kind: str, task: str, folder: Path) -> None:
    """Log the rounds that a federation has ended and the study has not logged."""
    known = run.log.rounds(kind, task)
    for found in list(read_events(folder / "events.jsonl")):
        number = found["number"] + 1
        if number not in known:
            event: Event = {"task": task, "arm": kind, "round": number}
            event |= {name: found[name] for name in _SAID if found.get(name) is not None}
            lost = {**found["failed"], **found["refused"]}
            run.log.append(new_event("round", **event, failed=len(lost)))
