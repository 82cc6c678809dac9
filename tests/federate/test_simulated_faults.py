"""Faults that are played depend on round, kind of work and client, and on nothing else."""

from __future__ import annotations

from typing import Any

from pfi.federate.config import FederateConfig
from pfi.federate.message import Message
from pfi.federate.secure.terms import STAGES
from pfi.federate.simulate import _faults

NAMES = [f"c{n}" for n in range(400)]


def config(secure: bool = False, **rates: float) -> FederateConfig:
    given: dict[str, Any] = {"secure": {}} if secure else {}
    return FederateConfig(simulate=rates, cohort=16, **given)


def failed(settings: FederateConfig, round: int, names: list[str], **values: Any) -> set[str]:
    data = Message(values={"round": round, **values}).encode()
    return set(_faults(settings, round, dict.fromkeys(names, data)))


def test_who_else_is_asked_and_how_often_changes_nothing() -> None:
    settings = config(dropout=0.2, late=0.1)
    first = failed(settings, 3, NAMES, kind="train")
    failed(settings, 3, NAMES, kind="evaluate")
    assert failed(settings, 3, NAMES, kind="train") == first
    assert failed(settings, 3, NAMES[::-3], kind="train") == first & set(NAMES[::-3])
    assert 0.22 < len(first) / len(NAMES) < 0.38


def test_rounds_kinds_and_seeds_have_faults_of_their_own() -> None:
    settings = config(dropout=0.3)
    sets = [
        failed(settings, 3, NAMES, kind="train"),
        failed(settings, 4, NAMES, kind="train"),
        failed(settings, 3, NAMES, kind="evaluate"),
        failed(settings.model_copy(update={"seed": 1}), 3, NAMES, kind="train"),
    ]
    assert all(a != b for n, a in enumerate(sets) for b in sets[:n])


def test_a_rate_is_that_of_a_whole_secure_round_and_every_stage_has_its_share() -> None:
    settings = config(secure=True, dropout=0.3)
    there, gone = list(NAMES), []
    steps: list[dict[str, Any]] = [{"kind": "train"}]
    steps += [{"kind": "secure", "stage": stage} for stage in STAGES]
    for step in steps:
        lost = failed(settings, 1, there, **step)
        gone.append(len(lost))
        there = [name for name in there if name not in lost]
    assert 0.22 < sum(gone) / len(NAMES) < 0.38 and min(gone) > 5


def test_without_rates_nothing_fails_and_nothing_is_read() -> None:
    assert _faults(config(), 0, {"a": b"no message"}) == {}
