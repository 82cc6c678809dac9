"""Whole rounds of secure sums in which a client, or the server, does not keep to the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.errors import FederationError
from pfi.federate import client as module
from pfi.federate.config import FederateConfig
from pfi.federate.events import read_rounds
from pfi.federate.message import Message
from pfi.federate.rounds import Federation
from pfi.federate.secure import run
from pfi.federate.secure.parties import Parties
from pfi.federate.secure.server import SecureServer
from pfi.federate.simulate import SimulatedFleet
from pfi.federate.work import Client, Memory, Update
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import Example

NAMES = [f"user {n}" for n in range(9)]
PRIVATE = {"privacy": {"mechanism": "gaussian", "noise": 1e-3, "clip": 0.05}}


class People:
    """Nine people with a few examples each."""

    def clients(self) -> Sequence[str]:
        return NAMES

    def examples(self, client: str) -> Sequence[Example]:
        n = NAMES.index(client)
        return [Example(f"quick {n} fox {i}", f"{n % 3}", {}, str(i)) for i in range(3 + n)]

    def rank(self, client: str) -> int | None:
        return None


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


def config_of(**changes: Any) -> FederateConfig:
    local = {"rank": 2, "max_length": 48, "steps": 1, "optimizer": "sgd", "learning_rate": 0.3}
    secure = {"smallest": 4, "largest": 9, "heaviest": 100}
    settings = {"strategy": "ffa", "cohort": 9, "rounds": 2, "held_out": 0, "local": local}
    return FederateConfig.model_validate({**settings, "secure": secure, **changes})


def federation_of(
    backbone: Backbone, folder: Path, config: FederateConfig
) -> tuple[Federation, SimulatedFleet]:
    fleet = SimulatedFleet(backbone, People(), config, folder / "clients")
    run = Federation(config, fleet.strategy, fleet, folder / "run", parties=fleet.parties)
    return run, fleet


@pytest.mark.parametrize("changes", [PRIVATE, {}], ids=["privacy", "plain"])
@pytest.mark.parametrize("how", ["values", "weight"])
def test_a_client_that_masks_what_it_may_not_costs_its_group_the_round(
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    how: str,
) -> None:
    packed, bad = module.Clients._packed, NAMES[4]

    def spoiled(
        self: Any, update: Update, message: Message, memory: Memory, client: Client
    ) -> Message:
        reply = packed(self, update, message, memory, client)
        if client.id == bad:
            entries = self._summing[bad]._entries
            if how == "values":
                entries[:-1] = np.full(entries.size - 1, 2**22, np.uint32)
            else:
                entries[-1] = 2**31
        return reply

    monkeypatch.setattr(module.Clients, "_packed", spoiled)
    federation, fleet = federation_of(backbone, tmp_path, config_of(**changes))
    state = federation.run()
    rounds = list(read_rounds(tmp_path / "run"))
    assert len(rounds) == 2
    for event in rounds:
        lost = {**event["failed"], **event["refused"]}
        assert bad in lost and 4 <= len(lost) <= 5
    moved = np.abs(state["row"] - fleet.strategy.start()["row"])
    assert 0 < moved.max() < 0.5 and np.isfinite(state["row"]).all()


def _sum(
    fleet: SimulatedFleet, messages: Mapping[str, bytes], number: int, names: Sequence[str]
) -> SecureServer:
    """What a server does that asks these clients for a sum, of its own accord."""
    ready = dict(fleet.ask(0, {name: messages[name] for name in names}))
    assert all(isinstance(reply, bytes) for reply in ready.values()), ready
    parties = fleet.parties
    assert isinstance(parties, Parties)
    digest = Message.decode(messages[names[0]]).digest
    server = SecureServer(parties.policy, parties.roster, number, names, digest)

    def ask(stage: Mapping[str, Message]) -> Iterator[Any]:
        coded = {
            name: Message(m.arrays, {**m.values, "kind": "secure"}).encode()
            for name, m in stage.items()
        }
        for name, reply in fleet.ask(0, coded):
            yield name, Message.decode(reply) if isinstance(reply, bytes) else reply

    run(server, ask)
    return server


def _changed(messages: Mapping[str, bytes], how: str) -> dict[str, bytes]:
    changed = {}
    for name, data in messages.items():
        message = Message.decode(data)
        arrays, values = dict(message.arrays), dict(message.values)
        if how == "a value":
            values["note"] = 1
        elif how == "the state":
            arrays = {key: array + array.dtype.type(1e-6) for key, array in arrays.items()}
        changed[name] = Message(arrays, values).encode()
    return changed


@pytest.mark.parametrize("how", ["nothing", "a value", "the state"])
@pytest.mark.parametrize("order", ["nine, then eight", "eight, then nine"])
def test_a_server_gets_no_two_sums_that_differ_in_one_client(
    backbone: Backbone, tmp_path: Path, how: str, order: str
) -> None:
    """Devices train alike for each question, so the difference would be one's exact update."""
    federation, fleet = federation_of(backbone, tmp_path, config_of())
    messages = federation._messages(NAMES, "train", 0)
    cohorts = [NAMES, [name for name in NAMES if name != NAMES[4]]]
    one, two = cohorts if order.startswith("nine") else cohorts[::-1]
    assert _sum(fleet, messages, 1, one).survivors() == one
    with pytest.raises(FederationError, match=r"another cohort|almost this update"):
        _sum(fleet, _changed(messages, how), 2, two)
