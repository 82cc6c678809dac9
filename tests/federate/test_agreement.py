"""Server and devices agree on settings, backbone and task, and say before the first round where
they do not.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from pfi.datasets.demo import write_demo
from pfi.errors import FederationError
from pfi.federate.agreement import (
    BACKBONE,
    KIND,
    SETTINGS,
    check_terms,
    client_settings,
    disagreement,
    statement,
    terms,
)
from pfi.federate.client import Clients, Memories
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.server.handshake import agree, require
from pfi.federate.engine import Engine
from pfi.federate.events import read_rounds
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation
from pfi.federate.strategies import get_strategy
from pfi.federate.users import Users
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.fingerprint import weights_fingerprint
from pfi.tasks import get_task

BASE: dict[str, Any] = {
    "strategy": "ffa",
    "rounds": 1,
    "held_out": 0,
    "local": {"rank": 2, "alpha": 4, "steps": 1, "optimizer": "sgd", "max_length": 48},
}


def config(**more: Any) -> FederateConfig:
    local = {**BASE["local"], **more.pop("local", {})}
    return FederateConfig.model_validate({**BASE, **more, "local": local})


# Settings -------------------------------------------------------------------------------

#: What clients work by: in another place, with another size, and where one side has a default.
CLIENTS: list[dict[str, Any]] = [
    {"local": {"alpha": 64}},
    {"local": {"learning_rate": 0.05}},
    {"local": {"rank": 4}},
    {"local": {"optimizer": "adamw"}},
    {"local": {"prox": 0.1}},
    {"strategy": "average"},
    {"seed": 1},
    {"compress": {"bits": 8}},
    {"privacy": {"mechanism": "gaussian", "noise": 1.0}},
    {"privacy": {"mechanism": "gaussian", "noise": 1.0, "clip": 0.5}},
    {"secure": {}},
    {"secure": {"clip": 2.0}},
]
#: What the server alone goes by.
SERVERS: list[dict[str, Any]] = [
    {"rounds": 9},
    {"cohort": 3},
    {"sampling": "poisson"},
    {"spare": 0.5},
    {"least": 2},
    {"seconds": 5},
    {"held_out": 0.3},
    {"evaluate_every": 2},
    {"robust": {}},
    {"accept": {}},
    {"server": {"learning_rate": 0.5}},
    {"simulate": {"workers": 3}},
    {"privacy": {"budget": 3.0, "smallest_fleet": 5}},
]


@pytest.mark.parametrize("change", CLIENTS, ids=str)
def test_what_clients_work_by_has_to_be_the_same(change: dict[str, Any]) -> None:
    mine, theirs = config(), config(**change)
    for one, other in ((mine, theirs), (theirs, mine)):
        with pytest.raises(FederationError, match="runs other settings"):
            check_terms(terms(one, "b"), terms(other, "b"))
        why = disagreement(one, "b", statement(other, "b"))
        assert next(iter(change)) in why
        assert "the default" in why or "not" in why


@pytest.mark.parametrize("change", SERVERS, ids=str)
def test_what_the_server_alone_goes_by_may_differ(change: dict[str, Any]) -> None:
    check_terms(terms(config(), "b"), terms(config(**change), "b"), needed=True)
    assert disagreement(config(), "b", statement(config(**change), "b")) == ""


def test_every_setting_is_the_clients_or_named_as_the_servers() -> None:
    told = {*SERVERS[0], *(name for change in SERVERS for name in change)} - {"privacy"}
    used = set(FederateConfig.model_fields) - told
    strategies = {"clusters", "ditto", "dual", "kseed", "scaffold", "flexlora", "hetlora"}
    plain = {"strategy", "seed", "local", "compress", "privacy", "secure", "measure_noise"}
    assert used <= plain | strategies


def test_a_default_that_is_written_out_is_no_difference() -> None:
    plain = FederateConfig()
    given = FederateConfig(compress={}, privacy={}, ditto={"strength": 0.1})  # type: ignore[arg-type]
    assert client_settings(plain) == client_settings(given) == {}


def test_a_message_that_does_not_say_is_refused_where_it_has_to() -> None:
    own = terms(config(), "b" * 64)
    check_terms(own, {})
    for stated in ({}, {SETTINGS: own[SETTINGS]}, {BACKBONE: own[BACKBONE]}, {**own, SETTINGS: 1}):
        with pytest.raises(FederationError, match="the server"):
            check_terms(own, stated, needed=True)
    with pytest.raises(FederationError, match="another backbone"):
        check_terms(own, terms(config(), "c" * 64))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {SETTINGS: "{}"},
        {SETTINGS: "[]", BACKBONE: "b"},
        {SETTINGS: "nonsense", BACKBONE: "b"},
        {SETTINGS: "{}", BACKBONE: 3},
        {SETTINGS: json.dumps({"a": "x" * 70000}), BACKBONE: "b"},
        {SETTINGS: "[" * 60000, BACKBONE: "b"},
    ],
)
def test_a_statement_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match="malformed"):
        disagreement(config(), "b", Message(values=values))


def test_only_a_few_differences_are_named() -> None:
    other = config(local={"alpha": 1, "rank": 1, "prox": 1, "learning_rate": 9}, seed=4)
    why = disagreement(config(), "b", statement(other, "c"))
    assert "2 more settings differ" in why and why.endswith("another tokenizer")


# Backbones ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


def _changed(backbone: Backbone, change: Callable[[Any], None]) -> Backbone:
    other = load_backbone(backbone.name)
    with torch.no_grad():
        change(other)
    return other


def test_a_fingerprint_is_of_weights_and_tokenizer(backbone: Backbone) -> None:
    first = weights_fingerprint(backbone)
    assert first == weights_fingerprint(load_backbone(backbone.name))
    assert len(first) == 64

    def weights(other: Backbone) -> None:
        next(other.model.parameters()).view(-1)[-1] += 1e-3

    def tokens(other: Backbone) -> None:
        other.tokenizer.add_tokens(["pfi-token"])

    for change in (weights, tokens):
        assert weights_fingerprint(_changed(backbone, change)) != first
    # Adapters laid over it, and texts that were encoded, are not the backbone.
    other = load_backbone(backbone.name)
    other.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert weights_fingerprint(other) == first
    engine = Engine(other, config().local, 2, 1)
    assert engine.layout.backbone == engine.layout.with_rank(1).backbone == first


# Rounds ---------------------------------------------------------------------------------


class Devices:
    """Devices in this process, with settings and a backbone of their own."""

    def __init__(self, population: Users, settings: FederateConfig, backbone: Backbone) -> None:
        self.population = population
        folder = Path(tempfile.mkdtemp())
        self.made = Clients(backbone, population, settings, Memories(folder), 4)

    def clients(self) -> Sequence[str]:
        return self.population.clients()

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        yield from self.made.answers({n: Message.decode(data) for n, data in messages.items()})


@pytest.mark.parametrize("case", ["same", "settings", "backbone"])
def test_updates_of_other_settings_or_another_backbone_are_not_taken(
    case: str, backbone: Backbone, tmp_path: Path
) -> None:
    write_demo(tmp_path / "data", seed=1, train_users=3, users=1)
    population = Users(tmp_path / "data", get_task("LaMP_3"), "train")
    server = config(local={"alpha": 64}) if case == "settings" else config()

    def noise(other: Backbone) -> None:
        for weights in other.model.parameters():
            weights.copy_(torch.randn_like(weights) * weights.std())

    theirs = _changed(backbone, noise) if case == "backbone" else backbone
    devices = Devices(population, config(), theirs)
    kind = get_strategy(server.strategy)
    strategy = kind(Engine(backbone, server.local, kind.rank(server), 1).layout, server)
    federation = Federation(server, strategy, devices, tmp_path / "run")
    with suppress(FederationError):  # that no round was usable
        federation.run()
    (event,) = read_rounds(tmp_path / "run")
    assert event["clients"] == (3 if case == "same" else 0)
    assert all(case in why for why in event["failed"].values())


# Before the first round -----------------------------------------------------------------


@dataclasses.dataclass
class Phone:
    """A device's answer before the first round."""

    config: FederateConfig
    backbone: str = "b"
    task: str = "LaMP_3"

    def says(self) -> bytes:
        return statement(self.config, self.backbone, self.task).encode()


class Phones:
    """Some of them, as a fleet."""

    def __init__(self, phones: Mapping[str, Any]) -> None:
        self.phones = phones

    def clients(self) -> Sequence[str]:
        return list(self.phones)

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for name, data in messages.items():
            assert Message.decode(data).values["kind"] == KIND
            phone = self.phones[name]
            yield name, phone.says() if isinstance(phone, Phone) else phone


def test_what_differs_is_named_before_the_first_round() -> None:
    mine = config()
    phones = {
        "a": Phone(mine),
        "b": Phone(config(local={"alpha": 64})),
        "c": Phone(mine, backbone="other"),
        "d": Phone(mine, task="LaMP_2N"),
        "e": Failure("the agent went away"),
        "f": b"nonsense",
        "g": Message(values={"ready": True}).encode(),
        "h": Phone(config(rounds=7, cohort=9)),
    }
    fleet = Phones(phones)
    found = agree(fleet, fleet.clients(), mine, "b")
    assert found.agreed == ["a", "h"]
    assert found.refused == {
        "b": "local.alpha is 64.0, not 4.0",
        "c": "its backbone has other weights or another tokenizer",
        "d": "it learns 'LaMP_2N', and most learn 'LaMP_3'",
    }
    assert set(found.failed) == {"e", "f", "g"}
    with pytest.raises(FederationError, match="2 of 8"):
        require(found, 2)  # three work otherwise
    del found.refused["c"]
    require(found, 2)
    with pytest.raises(FederationError, match=r"2 of 7 devices agree.*b: local\.alpha.*2 more"):
        require(found, 3)
    assert found.event()["agreed"] == 2


def test_one_device_keeps_no_run_from_beginning() -> None:
    for one in (Failure("it was late"), b"nonsense", Phone(config(seed=9)), Phone(config(), "x")):
        fleet = Phones({"a": Phone(config()), "b": Phone(config()), "one": one})
        require(agree(fleet, fleet.clients(), config(), "b"), 2)


def test_a_fleet_that_was_invited_with_other_settings_learns_nothing() -> None:
    fleet = Phones({name: Phone(config(local={"alpha": 64})) for name in "abc"})
    found = agree(fleet, fleet.clients(), config(), "b")
    with pytest.raises(FederationError, match=r"0 of 3 devices agree.*local\.alpha is 64"):
        require(found, 1)
