"""The round loop and the simulation: equal to central training, exact resume, faults, workers."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfi.errors import ConfigError, FederationError, PfiError, StorageError
from pfi.federate.config import FederateConfig
from pfi.federate.engine import Engine, _plan
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation, divide
from pfi.federate.simulate import SimulatedFleet
from pfi.federate.strategies import check
from pfi.federate.work import Client, Losses, Train
from pfi.models.adapters import Adapter, AdapterConfig, lora_config
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.packing import Row, target_losses
from pfi.tasks import Example

State = dict[str, Any]


@dataclass(frozen=True)
class People:
    """Clients of a test, picklable for workers; example targets are of equal length."""

    count: int = 6
    empty: str = ""

    def clients(self) -> Sequence[str]:
        return [f"user {n}" for n in range(self.count)]

    def examples(self, client: str) -> Sequence[Example]:
        if client == self.empty:
            return []
        n = int(client.split()[1])
        answer = "good book" if n % 2 else "bad film"
        return [Example(f"quick {n} fox {i}", answer, {}, str(i)) for i in range(2 + n % 3)]

    def rank(self, client: str) -> int | None:
        return None


def config_of(**changes: Any) -> FederateConfig:
    values: dict[str, Any] = {
        "rounds": 3,
        "cohort": 4,
        "held_out": 0,
        "local": {"rank": 2, "alpha": 4, "learning_rate": 0.02, "batch_size": 2},
        "simulate": {"working_set": 2},
    }
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if both else value
    return FederateConfig.model_validate(values)


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


Wrap = Callable[[SimulatedFleet], Any]


def federate(
    backbone: Backbone,
    out: Path,
    config: FederateConfig,
    people: People = People(),
    *,
    resume: bool = False,
    wrap: Wrap = lambda fleet: fleet,
    on_round: Callable[..., None] | None = None,
) -> tuple[Federation, State]:
    fleet = SimulatedFleet(backbone, people, config, out / "clients")
    try:
        federation = Federation(
            config,
            fleet.strategy,
            wrap(fleet),
            out,
            resume=resume,
            on_round=on_round,
            parties=fleet.parties,
        )
        return federation, federation.run()
    finally:
        fleet.close()


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]


# Against central training -------------------------------------------------------------


def test_one_full_batch_round_over_all_clients_is_one_central_step(
    backbone: Backbone, tmp_path: Path
) -> None:
    local = {
        "optimizer": "sgd", "weight_decay": 0, "clip": 1e9, "batch_size": 100,
        "learning_rate": 0.5, "max_length": 64,
    }  # fmt: skip
    config = config_of(rounds=1, cohort=6, local=local)
    federation, state = federate(backbone, tmp_path, config)
    engine = Engine(backbone, config.local, 2, 1)
    start = federation.strategy.start()["row"]
    people = People()
    everything = [example for client in people.clients() for example in people.examples(client)]
    whole = [engine.encode(everything)]

    def work() -> Any:
        trained = yield Train(start)
        return Message({"row": trained.row})

    client = Client("all", 0, len(everything), 1, 2, 0)
    (central,) = engine.run([(client, whole[0], work())])
    assert isinstance(central, Message)
    moved = central.arrays["row"] - start
    assert np.abs(moved).max() > 1e-4
    np.testing.assert_allclose(state["row"] - start, moved, atol=1e-6)


def test_local_steps_are_those_of_torch_on_a_peft_model(backbone: Backbone) -> None:
    """Momentum-free steps with FedProx's pull, by autograd over peft's own layers."""
    from peft import get_peft_model, set_peft_model_state_dict

    local = {"optimizer": "sgd", "weight_decay": 0, "clip": 1e9, "batch_size": 2, "epochs": 2}
    config = config_of(local={**local, "learning_rate": 0.3}).local
    engine = Engine(backbone, config, 2, 3)
    rng = np.random.default_rng(0)
    start = rng.normal(0, 0.05, engine.layout.width).astype(np.float32)
    pieces = engine.encode(People().examples("user 2"))

    def work() -> Any:
        trained = yield Train(start, pull=np.zeros_like(start), mu=0.1)
        return Message({"row": trained.row})

    client = Client("a", 0, len(pieces), engine.steps(pieces), 2, 5)
    (found,) = engine.run([(client, pieces, work())])
    assert isinstance(found, Message)

    slot = engine._run.put(start)
    adapter = engine.bank.adapter(slot)
    model = get_peft_model(
        copy.deepcopy(backbone.model),
        lora_config(AdapterConfig(rank=2, alpha=4), backbone.model),
    )
    set_peft_model_state_dict(model, adapter.weights)
    model.eval()
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    for factor in factors:
        factor.requires_grad_(True)
    own = Backbone("x", model.base_model.model, backbone.tokenizer, False, backbone.max_length)
    for picked in _plan(config, pieces, 5):
        losses = torch.cat([target_losses(own, [Row([pieces[i]])]) for i in picked])
        loss = losses.mean() + 0.05 * sum((factor**2).sum() for factor in factors)
        for factor, gradient in zip(factors, torch.autograd.grad(loss, factors), strict=True):
            factor.data -= 0.3 * gradient
    engine.bank.remove(slot)
    wanted = engine.bank.weights[engine.bank.add(Adapter.of(model))].numpy()
    assert np.abs(wanted - start).max() > 1e-3
    np.testing.assert_allclose(found.arrays["row"], wanted, atol=2e-6)


def test_what_is_not_trained_stays_bit_for_bit(backbone: Backbone) -> None:
    engine = Engine(backbone, config_of(local={"weight_decay": 0.5}).local, 2, 2)
    start = np.random.default_rng(0).normal(0, 0.1, engine.layout.width).astype(np.float32)
    mask = engine.layout.mask("B", slice(0, 1))

    def work() -> Any:
        trained = yield Train(start, mask)
        return Message({"row": trained.row})

    pieces = engine.encode(People().examples("user 1"))
    (found,) = engine.run([(Client("a", 0, 3, 2, 2, 0), pieces, work())])
    assert isinstance(found, Message)
    row = found.arrays["row"]
    assert (row[~mask] == start[~mask]).all()
    assert (row[mask] != start[mask]).all()


def test_two_epochs_are_two_passes_also_over_less_than_a_batch(backbone: Backbone) -> None:
    pieces = Engine(backbone, config_of().local, 2, 1).encode(People().examples("user 2"))
    for size, count in ((8, 2), (4, 2), (2, 4), (1, 8)):
        config = config_of(local={"batch_size": size, "epochs": 2}).local
        plan = _plan(config, pieces, 0)
        assert len(plan) == count == Engine(backbone, config, 2, 1).steps(pieces)
        assert sorted(i for step in plan for i in step) == sorted([*range(len(pieces))] * 2)


def test_a_base_beneath_is_the_backbone_with_those_weights(backbone: Backbone) -> None:
    config = config_of().local
    engine = Engine(backbone, config, 2, 2)
    rng = np.random.default_rng(1)
    base = [
        rng.normal(0, 0.05, (layer.outputs, layer.inputs)).astype(np.float32)
        for layer in engine.layout.layers
    ]
    row = rng.normal(0, 0.1, engine.layout.width).astype(np.float32)
    pieces = engine.encode(People().examples("user 1"))

    def loss_of(engine: Engine) -> float:
        def work() -> Any:
            losses = yield Losses([row])
            return Message(values={"loss": losses[0]})

        (found,) = engine.run([(Client("a", 0, 3, 2, 2, 0), pieces, work())])
        assert isinstance(found, Message)
        return found.number("loss")

    plain = loss_of(engine)
    engine.set_base(base)
    shifted = loss_of(engine)
    model = copy.deepcopy(backbone.model)
    for layer, delta in zip(engine.layout.layers, base, strict=True):
        model.get_submodule(layer.name).weight.data += torch.from_numpy(delta)  # type: ignore[operator]
    other = loss_of(Engine(replace(backbone, model=model), config, 2, 2))
    assert abs(plain - shifted) > 1e-3
    assert shifted == pytest.approx(other, abs=1e-6)
    engine.set_base(None)
    assert loss_of(engine) == plain


# Simulation ---------------------------------------------------------------------------


def test_processes_change_nothing_and_one_that_is_killed_is_reported(
    backbone: Backbone, tmp_path: Path
) -> None:
    one = federate(backbone, tmp_path / "1", config_of())[1]
    config = config_of(simulate={"workers": 2})
    fleet = SimulatedFleet(backbone, People(), config, tmp_path / "2" / "clients")
    try:
        federation = Federation(config, fleet.strategy, fleet, tmp_path / "2")
        assert (one["row"] == federation.run()["row"]).all()
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(PfiError, match=r"worker \d was killed.*SIGKILL.*--resume.*fewer"):
            list(fleet.ask(4, federation._messages(federation.train, "evaluate", 4)))
    finally:
        fleet.close()
    assert not multiprocessing.active_children()


def test_clients_that_are_sent_the_same_get_one_message(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(simulate={"working_set": 2})
    fleet = SimulatedFleet(backbone, People(), config, tmp_path)
    content = fleet.strategy.broadcast(fleet.strategy.start(), "user 0", 0)
    data = Message(content.arrays, {**content.values, "kind": "evaluate", "round": 0}).encode()
    seen = []
    answers = fleet._clients.answers
    monkeypatch.setattr(fleet._clients, "answers", lambda m: seen.extend(m.values()) or answers(m))
    copies = {name: bytes(bytearray(data)) for name in fleet.clients()}
    assert len(dict(fleet.ask(0, copies))) == len(seen) == len(copies) > 4
    assert len({id(message) for message in seen}) == 1


def test_the_working_set_changes_rounding_only(backbone: Backbone, tmp_path: Path) -> None:
    one = federate(backbone, tmp_path / "1", config_of(simulate={"working_set": 1}))[1]
    four = federate(backbone, tmp_path / "4", config_of(simulate={"working_set": 4}))[1]
    np.testing.assert_allclose(one["row"], four["row"], atol=2e-5)


def test_another_seed_gives_another_adapter(backbone: Backbone, tmp_path: Path) -> None:
    one = federate(backbone, tmp_path / "1", config_of())[1]
    two = federate(backbone, tmp_path / "2", config_of(seed=1))[1]
    assert np.abs(one["row"] - two["row"]).max() > 1e-3


def test_clients_that_fail_are_named_and_the_round_goes_on(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = config_of(rounds=6, simulate={"dropout": 0.25, "late": 0.25})
    federate(backbone, tmp_path, config, People(empty="user 3"))
    found = events(tmp_path)
    assert all(e["clients"] + len(e["failed"]) == e["asked"] == 4 for e in found)
    whys = {why for e in found for why in e["failed"].values()}
    assert whys == {"it dropped out", "its reply came too late", "it has no examples"}


def test_a_round_with_too_few_updates_counts_for_nothing(
    backbone: Backbone, tmp_path: Path
) -> None:
    class Silent:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for place, (client, reply) in enumerate(self.fleet.ask(round, messages, seconds)):
                yield client, Failure("silent") if round == 1 and place < 2 else reply

    whole = federate(backbone, tmp_path / "one", config_of(rounds=1, least=3))[1]
    state = federate(backbone, tmp_path / "two", config_of(rounds=2, least=3), wrap=Silent)[1]
    event = events(tmp_path / "two")[1]
    assert event["clients"] == 2 and not event["kept"]
    assert (state["row"] == whole["row"]).all()


def test_spare_clients_stand_in_for_those_that_drop_out(backbone: Backbone, tmp_path: Path) -> None:
    config = config_of(spare=0.5, simulate={"dropout": 0.2})
    federate(backbone, tmp_path, config)
    for event in events(tmp_path):
        assert event["asked"] == 6
        assert event["clients"] == min(4, 6 - _count(event, "it dropped out"))
    assert sum(_count(event, "it was one of the spare clients") for event in events(tmp_path))


def _count(event: dict[str, Any], why: str) -> int:
    return sum(found == why for found in event["failed"].values())


def test_bytes_are_those_of_the_messages(backbone: Backbone, tmp_path: Path) -> None:
    sent: list[int] = []
    received: list[int] = []

    class Counting:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet = fleet

        def clients(self) -> Sequence[str]:
            return self.fleet.clients()

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            sent.append(sum(len(data) for data in messages.values()))
            received.append(0)
            for client, reply in self.fleet.ask(round, messages, seconds):
                received[-1] += len(reply)
                yield client, reply

    federate(backbone, tmp_path, config_of(), wrap=Counting)
    assert [e["bytes_down"] for e in events(tmp_path)] == sent
    assert [e["bytes_up"] for e in events(tmp_path)] == received
    assert json.loads((tmp_path / "metrics.json").read_text())["bytes_up"] == sum(received)


def test_held_out_clients_measure_and_never_train(backbone: Backbone, tmp_path: Path) -> None:
    asked: dict[str, set[str]] = {"train": set(), "evaluate": set()}

    class Watching:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for client, data in messages.items():
                asked[str(Message.decode(data).values["kind"])].add(client)
            return self.fleet.ask(round, messages, seconds)

    config = config_of(rounds=8, held_out=0.34, evaluate_every=2)
    federation, _ = federate(backbone, tmp_path, config, wrap=Watching)
    assert len(asked["evaluate"]) == 2 and asked["train"].isdisjoint(asked["evaluate"])
    assert set(federation.held_out) == asked["evaluate"]
    measured = [e["number"] for e in events(tmp_path) if e["losses"]]
    assert measured == [1, 3, 5, 7]
    losses = [e["loss"] for e in events(tmp_path) if e["losses"]]
    assert losses[-1] < losses[0]


def test_a_reply_that_makes_no_sense_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    bad = {
        "user 0": b"no message",
        "user 1": Message({"update.vector": np.zeros(3, np.float32)}, {"weight": 1}).encode(),
        "user 2": Message({"update.vector": np.zeros(3, np.float32)}).encode(),
    }

    class Meddling:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for client, reply in self.fleet.ask(round, messages, seconds):
                yield client, bad.get(client, reply)

    config = config_of(rounds=1, cohort=6)
    federate(backbone, tmp_path, config, wrap=Meddling)
    (event,) = events(tmp_path)
    assert set(event["failed"]) == set(bad) and event["clients"] == 3


# Going on after a kill ----------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fedadam": {"server": {"optimizer": "fedadam", "learning_rate": 0.01}},
    "gaussian": {"privacy": {"mechanism": "gaussian", "noise": 0.1, "clip": 0.1}},
    "banded": {
        "privacy": {
            "mechanism": "banded", "noise": 0.1, "clip": 0.1, "separation": 2, "bands": 2,
        }
    },
    "centred-clipping": {"robust": {"rule": "centred-clipping", "pre": "none"}},
    "top-k": {"compress": {"top_k": 0.1}},
    "accept": {"accept": {"least": 2}},
}  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_killed_run_ends_with_the_same_result(
    backbone: Backbone, tmp_path: Path, changes: dict[str, Any], kind: str
) -> None:
    """Killed in the second round while clients train, and while its result is measured."""
    config = config_of(cohort=2, held_out=0.34, evaluate_every=1, **changes)
    whole = federate(backbone, tmp_path / "whole", config)[1]

    class Deadly:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for data in messages.values():
                message = Message.decode(data)
                wanted = 1 if kind == "train" else 2
                if (message.values["kind"], message.values["round"]) == (kind, wanted):
                    raise Killed
            return self.fleet.ask(round, messages, seconds)

    with pytest.raises(Killed):
        federate(backbone, tmp_path / "killed", config, wrap=Deadly)
    resumed = federate(backbone, tmp_path / "killed", config, resume=True)[1]
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole)

    def told(folder: Path) -> list[dict[str, Any]]:
        return [{**event, "seconds": 0} for event in events(folder)]

    assert told(tmp_path / "whole") == told(tmp_path / "killed")


@pytest.mark.parametrize(
    "changes",
    [
        {"held_out": 0.34},
        {"spare": 0.5},
        {"sampling": "poisson"},
        {"secure": {"bits": 64, "step": 1e-6, "smallest": 4, "largest": 8}, "cohort": 8},
    ],
    ids=["plain", "spare", "poisson", "secure"],
)
def test_a_run_with_faults_that_goes_on_is_the_whole_one(
    backbone: Backbone, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = {"evaluate_every": 1, "simulate": {"dropout": 0.15, "late": 0.1}, **changes}
    whole = federate(backbone, tmp_path / "a", config_of(rounds=4, **given), People(10))[1]
    federate(backbone, tmp_path / "b", config_of(rounds=2, **given), People(10))
    config = config_of(rounds=4, **given)
    resumed = federate(backbone, tmp_path / "b", config, People(10), resume=True)[1]
    assert all((whole[name] == resumed[name]).all() for name in whole)
    whys = [event["failed"] for event in events(tmp_path / "a")]
    assert whys == [event["failed"] for event in events(tmp_path / "b")] and any(whys)


@pytest.mark.skipif(os.name == "nt", reason="modes of files")
def test_only_its_owner_reads_a_run_folder(backbone: Backbone, tmp_path: Path) -> None:
    """Whatever the umask; also after a resume, which writes the log anew, and where an older
    version left its checkpoints open."""
    privacy = {"mechanism": "banded", "noise": 0.1, "clip": 0.1, "separation": 2, "bands": 2}
    out, before = tmp_path / "runs" / "a", os.umask(0o022)
    try:
        config = config_of(rounds=1, cohort=2, privacy={**privacy, "participations": 2})
        federate(backbone, out, config_of(rounds=1, compress={"top_k": 0.5}))
        (out / "checkpoints").chmod(0o755)
        federate(backbone, out, config_of(rounds=2, compress={"top_k": 0.5}), resume=True)
        federate(backbone, tmp_path / "b", config)
    finally:
        os.umask(before)
    for folder in (out, tmp_path / "b"):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "checkpoints").stat().st_mode & 0o777 == 0o700
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert len(files) > 4 and all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_damaged_checkpoint_costs_one_round(backbone: Backbone, tmp_path: Path) -> None:
    whole = federate(backbone, tmp_path / "whole", config_of())[1]
    federate(backbone, tmp_path / "a", config_of(rounds=2))
    newest = sorted((tmp_path / "a" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    resumed = federate(backbone, tmp_path / "a", config_of(), resume=True)[1]
    assert (whole["row"] == resumed["row"]).all()
    assert [event["number"] for event in events(tmp_path / "a")] == [0, 1, 2]


def test_a_folder_with_a_run_is_not_overwritten(backbone: Backbone, tmp_path: Path) -> None:
    federate(backbone, tmp_path, config_of(rounds=1))
    with pytest.raises(StorageError, match="--resume"):
        federate(backbone, tmp_path, config_of(rounds=1))
    with pytest.raises(ConfigError, match="cohort"):
        federate(backbone, tmp_path, config_of(rounds=1, cohort=3), resume=True)


# Combining ----------------------------------------------------------------------------


def test_secure_sums_are_the_plain_ones(backbone: Backbone, tmp_path: Path) -> None:
    secure = {"bits": 64, "step": 1e-9, "smallest": 4, "largest": 8}
    config = config_of(cohort=8, rounds=1)
    plain = federate(backbone, tmp_path / "plain", config, People(10))[1]
    config = config_of(cohort=8, rounds=1, secure=secure)
    seen: list[Message] = []

    class Watching:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for client, reply in self.fleet.ask(round, messages, seconds):
                assert not isinstance(reply, Failure)
                seen.append(Message.decode(reply))
                yield client, reply

    summed = federate(backbone, tmp_path / "secure", config, People(10), wrap=Watching)[1]
    np.testing.assert_allclose(plain["row"], summed["row"], atol=1e-6)
    assert [event["clients"] for event in events(tmp_path / "secure")] == [8]
    assert not any(name.startswith("update") for message in seen for name in message.arrays)
    assert not any("weight" in message.values for message in seen)


def test_a_secure_round_survives_dropouts_and_fails_below_the_threshold(
    backbone: Backbone, tmp_path: Path
) -> None:
    secure = {"bits": 64, "step": 1e-6, "smallest": 4, "largest": 8}
    config = config_of(cohort=8, secure=secure, simulate={"dropout": 0.08}, rounds=4)
    federate(backbone, tmp_path / "few", config, People(10))
    assert all(event["kept"] for event in events(tmp_path / "few"))
    assert any(event["clients"] < 8 for event in events(tmp_path / "few"))
    config = config_of(cohort=8, secure=secure, simulate={"dropout": 0.7}, rounds=2)
    with pytest.raises(FederationError, match="none of the 2 rounds was usable"):
        federate(backbone, tmp_path / "many", config, People(10))
    assert not any(event["kept"] for event in events(tmp_path / "many"))


def test_privacy_with_secure_sums_is_privacy_without(backbone: Backbone, tmp_path: Path) -> None:
    privacy = {"mechanism": "gaussian", "noise": 0.5, "clip": 0.05}
    secure = {"bits": 64, "step": 1e-9, "smallest": 4, "largest": 8}
    config = config_of(cohort=8, rounds=1, privacy=privacy)
    plain = federate(backbone, tmp_path / "plain", config, People(10))[1]
    config = config_of(cohort=8, rounds=1, privacy=privacy, secure=secure)
    summed = federate(backbone, tmp_path / "secure", config, People(10))[1]
    np.testing.assert_allclose(plain["row"], summed["row"], atol=1e-6)


def test_a_spent_budget_ends_the_run(backbone: Backbone, tmp_path: Path) -> None:
    privacy = {"mechanism": "gaussian", "noise": 2.0, "delta": 1e-2, "smallest_fleet": 1}
    federation, _ = federate(
        backbone, tmp_path / "a", config_of(rounds=4, privacy={**privacy, "most_noise": 1e9})
    )
    spent = [event["epsilon"] for event in events(tmp_path / "a")]
    assert all(a < b for a, b in itertools.pairwise(spent))
    budget = (spent[1] + spent[2]) / 2
    privacy = {**privacy, "most_noise": 1e9, "budget": budget}
    federation, _ = federate(backbone, tmp_path / "b", config_of(rounds=4, privacy=privacy))
    assert [event["epsilon"] for event in events(tmp_path / "b")] == spent[:2]
    assert federation.stopped == "the privacy budget is spent"


def test_a_robust_rule_withstands_a_client_that_the_mean_does_not(
    backbone: Backbone, tmp_path: Path
) -> None:
    class Scaling:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for client, reply in self.fleet.ask(round, messages, seconds):
                if client == "user 0" and isinstance(reply, bytes):
                    found = Message.decode(reply)
                    if "update.vector" in found.arrays:
                        arrays = {"update.vector": found.arrays["update.vector"] * -1000}
                        reply = Message(arrays, found.values).encode()
                yield client, reply

    runs = {}
    for name, robust in {"mean": None, "robust": {}}.items():
        config = config_of(cohort=8, robust=robust, rounds=2)
        clean = federate(backbone, tmp_path / f"{name}-clean", config, People(8))[1]
        bad = federate(backbone, tmp_path / name, config, People(8), wrap=Scaling)[1]
        runs[name] = float(np.abs(clean["row"] - bad["row"]).max())
    assert runs["mean"] > 1 and runs["robust"] < 0.2


def test_held_out_clients_take_a_bad_round_back(backbone: Backbone, tmp_path: Path) -> None:
    class Poisoning:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for client, reply in self.fleet.ask(round, messages, seconds):
                assert isinstance(reply, bytes)
                found = Message.decode(reply)
                if round == 1 and "update.vector" in found.arrays:
                    noise = np.random.default_rng(0).normal(
                        0, 3, found.arrays["update.vector"].shape
                    )
                    arrays = {"update.vector": noise.astype(np.float32)}
                    reply = Message(arrays, found.values).encode()
                yield client, reply

    config = config_of(cohort=2, held_out=0.5, accept={"least": 3, "trim": 0, "limit": 0.01})
    federate(backbone, tmp_path, config, wrap=Poisoning)
    first, second, third = events(tmp_path)
    assert first["kept"] and not second["kept"] and third["kept"]
    assert "loss" in second["why"] and second["loss"] > third["loss"]


def test_held_out_clients_end_a_run_that_only_gets_worse(
    backbone: Backbone, tmp_path: Path
) -> None:
    class Worsening:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients

        def ask(self, round: int, messages: Any, seconds: Any = None) -> Any:
            for client, reply in self.fleet.ask(round, messages, seconds):
                assert isinstance(reply, bytes)
                found = Message.decode(reply)
                if "loss" in found.values:
                    loss = found.number("loss") + round
                    reply = Message(values={**found.values, "loss": loss}).encode()
                yield client, reply

    accept = {"least": 3, "trim": 0, "patience": 2}
    config = config_of(cohort=2, held_out=0.5, accept=accept, rounds=5)
    with pytest.raises(FederationError, match="in a row"):
        federate(backbone, tmp_path, config, wrap=Worsening)
    assert [event["kept"] for event in events(tmp_path)] == [False, False]


def test_secure_sums_of_groups_go_through_a_robust_rule(backbone: Backbone, tmp_path: Path) -> None:
    """Groups of one bad client among nine: the rule across three means takes the bad one out."""

    class Lying:
        def __init__(self, fleet: SimulatedFleet) -> None:
            self.fleet, self.clients = fleet, fleet.clients
            packed = fleet._clients._packed

            def lie(update: Any, message: Message, memory: Any, client: Client) -> Message:
                if client.id == "user 0":
                    update = replace(update, vector=np.full_like(update.vector, 50))
                return packed(update, message, memory, client)

            fleet._clients._packed = lie  # type: ignore[method-assign]
            self.ask = fleet.ask

    secure = {"bits": 64, "step": 1e-9, "smallest": 4, "largest": 8, "clip": 100}
    moved = {}
    for name, robust in {
        "mean": None,
        "robust": {"rule": "median", "pre": "none", "bad": 0.1},
    }.items():
        config = config_of(cohort=12, rounds=1, secure=secure, robust=robust)
        clean = federate(backbone, tmp_path / f"{name}-clean", config, People(12))[1]
        bad = federate(backbone, tmp_path / name, config, People(12), wrap=Lying)[1]
        moved[name] = float(np.abs(clean["row"] - bad["row"]).max())
    assert moved["mean"] > 1 and moved["robust"] < 0.2


# Settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"strategy": "flora", "robust": {}}, "robust"),
        ({"strategy": "fedex", "compress": {"bits": 8}}, "compress"),
        ({"robust": {}, "privacy": {"mechanism": "gaussian", "noise": 1}}, "the mean only"),
        ({"spare": 0.5, "privacy": {"mechanism": "gaussian", "noise": 1}}, "spare"),
        ({"secure": {}, "compress": {"bits": 8}}, "smaller"),
        ({"secure": {}, "cohort": 8, "simulate": {"workers": 2}}, "one worker"),
        ({"strategy": "fedprox"}, "unknown strategy"),
        ({"secure": {}, "robust": {"bad": 0.25}, "cohort": 32}, "expect fewer"),
        ({"secure": {}, "robust": {"bad": 0.05}, "cohort": 16}, "three groups"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], what: str
) -> None:
    with pytest.raises((ValueError, ConfigError), match=what):
        check(config_of(**changes))


def test_somebody_has_to_train() -> None:
    with pytest.raises(ConfigError, match="no client is left"):
        divide(["a"], config_of(held_out=0.9))
