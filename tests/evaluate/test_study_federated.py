"""Federated shared adapters in studies: the same data as central training, the federation's own
model, what is logged of it, and resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi._util.events import Event
from pfi.datasets.demo import write_demo
from pfi.errors import ConfigError
from pfi.evaluate.statistics import UserAnswers, summarise
from pfi.evaluate.study import federation, task_run, workers
from pfi.evaluate.study.arms import central, get_arm
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.study import Study
from pfi.evaluate.study.task_setup import TaskSetup
from pfi.federate.rounds import Federation
from pfi.federate.simulate import SimulatedFleet
from pfi.models.adapters import Adapter
from pfi.models.backbone import load_backbone
from pfi.tasks import Example, get_task
from pfi.train.config import TrainConfig

TASK = "LaMP_3"
QUICK = TrainConfig(rank=2, epochs=1, batch_size=8, learning_rate=1e-2, max_length=96)
ARMS = [
    *("generic", "shared", "rag", "shared-fed:average", "shared-fed:fedex"),
    *("shared-fed:fedex+rag", "shared-fed:average+rag@1"),
]
KINDS = ["shared-fed:average", "shared-fed:fedex"]
ROUNDS = 3

#: Makes a study's settings; keyword arguments change them.
Make = Callable[..., StudyConfig]
#: A run's folder and its figures.
Whole = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]) -> Make:
    data = tmp_path_factory.mktemp("demo")
    write_demo(data, seed=1, train_users=5, users=3)
    values: dict[str, Any] = {
        "data": data,
        "tasks": [TASK],
        "arms": ARMS,
        "split": "test",
        "backbone": str(backbone_folder("llama")),
        "shared": QUICK,
        "personal": QUICK,
        "bootstrap": 20,
        "max_prompt": 96,
        "retrieval_budget": 32,
        "working_set": 2,
        "federation": {
            "rounds": ROUNDS,
            "cohort": 3,
            "held_out": 0.2,
            "evaluate_every": 2,
            "local": {**QUICK.model_dump(), "steps": 2},
        },
    }
    return lambda **changes: StudyConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, Study(make(), run).run()


@pytest.fixture(autouse=True)
def no_page(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other runs write no report: it takes a good part of their time."""
    monkeypatch.setattr("pfi.evaluate.report.report.write_report", lambda run: None)


def events(run: Path, kind: str) -> list[Event]:
    found = (event for event in EventLog(run / "events.jsonl") if event["event"] == kind)
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


def rounds(run: Path) -> dict[tuple[str, int], Event]:
    """The rounds of a run by arm and number, each logged once, without the time they took."""
    found = {(event["arm"], event["round"]): event for event in events(run, "round")}
    assert len(found) == len(events(run, "round"))
    return {key: {k: v for k, v in e.items() if k != "seconds"} for key, e in found.items()}


def answers(run: Path, arm: str) -> dict[str, Any]:
    return {e["user"]: e["answers"] for e in events(run, "answered") if e["arm"] == arm}


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    """Figures without the times, which differ from run to run."""
    return {
        arm: {key: value for key, value in cells[TASK].items() if key != "seconds"}
        for arm, cells in metrics["arms"].items()
    }


def products(adapter: Adapter) -> list[np.ndarray]:
    """Every layer's update ``alpha / r B A``, by the layers' names."""
    scale = adapter.settings["lora_alpha"] / adapter.settings["r"]
    found = []
    for name in sorted(name for name in adapter.weights if ".lora_A." in name):
        a = adapter.weights[name].double().numpy()
        b = adapter.weights[name.replace(".lora_A.", ".lora_B.")].double().numpy()
        found.append(scale * b @ a)
    return found


# What a study is given and gives ----------------------------------------------------------


def test_arms_have_figures_against_the_central_ones(whole: Whole) -> None:
    run, metrics = whole
    assert list(metrics["arms"]) == ARMS
    cells = {arm: tasks[TASK] for arm, tasks in metrics["arms"].items()}
    for arm in ("generic", "shared", "rag", "shared-fed:average+rag@1"):
        assert cells[arm]["gain_over_central"] is None
    for arm in KINDS:
        assert cells[arm]["gain_over_central"] == cells[arm]["gain"] is not None
    mae = {arm: cell["metrics"]["mae"]["mean"] for arm, cell in cells.items()}
    gain = cells["shared-fed:fedex+rag"]["gain_over_central"]
    assert gain["mean"] == pytest.approx(mae["rag"] - mae["shared-fed:fedex+rag"])
    page = (run / "report.html").read_text()
    assert 'id="federation"' in page and "shared-fed:fedex+rag" in page


def test_every_round_is_logged_with_its_bytes(whole: Whole) -> None:
    run, _ = whole
    logged = rounds(run)
    assert sorted(logged) == [(kind, n) for kind in KINDS for n in range(1, ROUNDS + 1)]
    for (_, number), event in logged.items():
        assert (event["asked"], event["clients"], event["failed"]) == (3, 3, 0)
        assert ("loss" in event) is (number in (2, ROUNDS))
        assert "epsilon" not in event
    average = [logged[KINDS[0], number] for number in (1, 2, 3)]
    layout_bytes = 4 * sum(p.numel() for p in Adapter.load(
        run / "checkpoints" / KINDS[0] / TASK).weights.values())  # fmt: skip
    for event in average:
        for way in ("bytes_down", "bytes_up"):
            assert 3 * layout_bytes < event[way] < 3 * (layout_bytes + 400)
    # The residual travels with the factors from the second round on.
    assert logged[KINDS[1], 2]["bytes_down"] > 2 * logged[KINDS[1], 1]["bytes_down"]


def test_each_strategy_is_trained_once(whole: Whole) -> None:
    run, _ = whole
    trained = {e["adapter"]: e for e in events(run, "trained")}
    assert list(trained) == ["shared", *KINDS] and len(events(run, "trained")) == 3
    for kind in KINDS:
        assert trained[kind]["examples"] == trained["shared"]["examples"]
        assert (trained[kind]["steps"], trained[kind]["user"]) == (ROUNDS, None)
    assert not list((run / "checkpoints").glob("state-*"))


def test_clients_learn_from_what_central_training_learns_from(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    seen: list[Any] = []

    def take(*given: Any, **_: Any) -> Any:
        seen.append(given)
        raise Enough

    monkeypatch.setattr(task_run, "train_one", take)
    monkeypatch.setattr("pfi.federate.simulate.SimulatedFleet", take)
    for name, arm in (("central", "shared"), ("federated", KINDS[0])):
        with pytest.raises(Enough):
            Study(make(arms=[arm]), tmp_path / name).run()
    examples: Sequence[Example] = seen[0][2]
    users = seen[1][1]
    assert len(users.clients()) == 5
    assert [e for user in users.clients() for e in users.examples(user)] == examples
    # A share carries retrieved records, and answered questions are among them.
    assert len({len(e.prompt.split()) for e in examples}) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_what_the_federation_gives_new_users(
    make: Make, whole: Whole, tmp_path: Path, kind: str
) -> None:
    """A federation run by hand on the same clients; the answers are those of its model."""
    run, _ = whole
    config, task = make(), get_task(TASK)
    backbone = load_backbone(config.backbone)
    strategy = kind.removeprefix("shared-fed:")
    settings = federation._settings(config, strategy, TASK)
    assert (settings.strategy, settings.rounds) == (strategy, ROUNDS)
    study = Study(make(), tmp_path / "other")
    people = TaskSetup(config, tmp_path, task, backbone, None)
    by_hand = task_run.TaskRun(study._context(), task, backbone, people.train_users())
    users = federation.TrainUsers(dict(by_hand._train_examples()))
    fleet = SimulatedFleet(backbone, users, settings, tmp_path / "clients")
    model = fleet.strategy.model(Federation(settings, fleet.strategy, fleet, tmp_path / "f").run())
    expected = dict(zip((x.name for x in model.layout.layers), model.products(), strict=True))
    adapter = Adapter.load(run / "checkpoints" / kind / TASK)
    found = products(adapter)
    assert sum(np.abs(part).max() > 1e-4 for part in found) == len(found)
    for part, name in zip(found, sorted(expected), strict=True):
        np.testing.assert_allclose(part, expected[name], atol=1e-6)
    setup = TaskSetup(config, run, task, backbone, None)
    other = setup.adapter(get_arm(KINDS[1 - KINDS.index(kind)]))
    for arm in (kind, f"{kind}+rag"):
        asked = setup.adapter(get_arm(arm))
        assert asked is not None and other is not None and asked.key != other.key
        merged = dict(backbone.with_adapters([asked.load()]).model.named_modules())
        plain = dict(backbone.model.named_modules())
        for name, delta in expected.items():
            change = (merged[name].weight - plain[name].weight).numpy()
            np.testing.assert_allclose(change, delta, atol=1e-6)
    assert setup.adapter(get_arm("generic")) is None


def test_all_strategies_have_the_same_cohorts_and_a_seed_changes_them(make: Make) -> None:
    seeds = {federation._settings(make(), name, TASK).seed for name in ("average", "fedex")}
    other = federation._settings(make(seed=1), "average", TASK).seed
    more = make().federation.model_copy(update={"seed": 5})
    third = federation._settings(make(federation=more.model_dump()), "average", TASK).seed
    assert len(seeds) == 1 and len({*seeds, other, third}) == 3


def test_the_gain_over_central_by_hand() -> None:
    gold = {"a": ["1", "2"], "b": ["3"]}
    users = {
        how: {user: UserAnswers(given, gold[user]) for user, given in by_user.items()}
        for how, by_user in {
            "federated": {"a": ["1", "4"], "b": ["3"]},
            "central": {"a": ["2", "2"], "b": ["5"]},
        }.items()
    }
    task = get_task(TASK)
    cell = summarise(task, users["federated"], None, central=users["central"], rounds=50, seed=0)
    # Errors 2 / 3 against 3 / 3; less error is the better one. Users: 0.5 and 2, or one alone.
    assert cell["gain_over_central"]["mean"] == pytest.approx(1 / 3)
    assert cell["gain_over_central"]["ci95"] == pytest.approx([-0.5, 2.0])
    assert cell["gain"] is None


# Resuming -------------------------------------------------------------------------------


class _Stop(Exception):
    """Stands for a kill at one moment of a run."""


@pytest.mark.parametrize("moment", ["round", "adapter"])
def test_a_stopped_federation_goes_on_at_its_last_round(
    make: Make, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run, metrics = whole
    arms, out = ["shared-fed:fedex"], tmp_path / "run"

    def stop(text: str, *_: int) -> None:
        if "fedex 2/3" in text:
            raise _Stop

    def put(self: Any, adapter: Adapter, event: Event) -> None:
        write(self, adapter, event)
        raise _Stop

    with monkeypatch.context() as patch:
        if moment == "adapter":
            write = federation.Checkpoints.put
            patch.setattr(federation.Checkpoints, "put", put)
        with pytest.raises(_Stop):
            on_progress = stop if moment == "round" else None
            Study(make(arms=arms), out, on_progress=on_progress).run()
    assert len(rounds(out)) == (2 if moment == "round" else 3)
    asked: list[int] = []
    ask = SimulatedFleet.ask
    monkeypatch.setattr(
        SimulatedFleet,
        "ask",
        lambda self, round, *a: (asked.append(round), ask(self, round, *a))[1],
    )
    resumed = Study(make(arms=arms), out, resume=True).run()
    assert asked == ([2, 3] if moment == "round" else [])  # the last one measures
    mine = comparable(resumed)[arms[0]]
    assert mine["metrics"] == comparable(metrics)[arms[0]]["metrics"]
    assert answers(out, arms[0]) == answers(run, arms[0])
    assert rounds(out) == {key: e for key, e in rounds(run).items() if key[0] == arms[0]}
    assert [e["adapter"] for e in events(out, "trained")] == arms


def test_processes_change_no_result(make: Make, whole: Whole) -> None:
    settings = make(workers=3)
    assert federation._settings(settings, "average", TASK).simulate.workers == 3
    more = make().federation.model_dump()
    more["simulate"]["workers"] = 2
    assert make().same_results(make(federation=more))
    assert not make().same_results(make(federation={**more, "rounds": 9}))


# Other arms over it ---------------------------------------------------------------------


def test_all_arms_can_rest_on_a_federated_shared_adapter(
    make: Make, whole: Whole, tmp_path: Path
) -> None:
    run, _ = whole
    arms = ["shared", "shared-fed:average", "personal"]
    out = tmp_path / "run"
    metrics = Study(make(arms=arms, shared_how="fed:average", shared_from=run), out).run()
    assert answers(out, "shared") == answers(out, "shared-fed:average")
    assert not (out / "checkpoints" / "shared").exists()
    trained = {event["adapter"]: event for event in events(out, "trained")}
    assert set(trained) == {"shared-fed:average", "personal"}
    assert metrics["arms"]["shared-fed:average"][TASK]["gain_over_central"] is None
    # Rounds come along with the adapter that was taken from the other run.
    assert trained["shared-fed:average"]["copied_from"] == run.name
    taken = {key: e for key, e in rounds(run).items() if key[0] == arms[1]}
    assert rounds(out) == {key: {**e, "copied_from": run.name} for key, e in taken.items()}
    over = TaskSetup(make(), run, get_task(TASK), load_backbone(make().backbone),
                     Adapter.load(run / "checkpoints" / "shared-fed:average" / TASK))  # fmt: skip
    expected = {name: p.clone() for name, p in over.with_shared.model.named_parameters()}
    seen: list[dict[str, Any]] = []

    class Engine:
        together = True

        def train_many(self, backbone: Any, *_: Any, **__: Any) -> Any:
            seen.append(dict(backbone.model.named_parameters()))
            raise _Stop

    again = Study(
        make(arms=["personal"], shared_how="fed:average", shared_from=run), tmp_path / "again"
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Stop):
        patch.setattr("pfi.evaluate.study.task_setup.get_trainer", lambda *_: Engine())
        again.run()
    assert all(bool((seen[0][name] == p).all()) for name, p in expected.items())


def test_a_process_takes_the_federated_adapter(make: Make, whole: Whole) -> None:
    run, _ = whole
    kind = "shared-fed:average"
    config = make(workers=2, shared_how="fed:average")
    setup = workers._set_up(config, run, get_task(TASK), shared=True)
    expected = products(Adapter.load(run / "checkpoints" / kind / TASK))
    assert setup._shared is not None
    for found, part in zip(products(setup._shared), expected, strict=True):
        np.testing.assert_array_equal(found, part)
    central_one = products(Adapter.load(run / "checkpoints" / "shared" / TASK))
    assert not np.array_equal(central_one[0], expected[0])


def test_a_run_without_that_federation_lends_its_central_adapter_only(
    make: Make, whole: Whole, tmp_path: Path
) -> None:
    """With noise and compression, of which the rounds tell."""
    out = tmp_path / "run"
    privacy = {"mechanism": "gaussian", "noise": 1.0, "smallest_fleet": 1, "most_noise": 1e9}
    given = make().federation.model_dump() | {"privacy": privacy, "compress": {"bits": 4}}
    arms = ["shared", "shared-fed:ffa"]
    Study(make(arms=arms, shared_from=whole[0], federation=given), out).run()
    trained = {event["adapter"]: event for event in events(out, "trained")}
    assert "copied_from" in trained["shared"] and "copied_from" not in trained["shared-fed:ffa"]
    logged = [event for _, event in sorted(rounds(out).items())]
    assert [event["round"] for event in logged] == [1, 2, 3]
    spent = [event["epsilon"] for event in logged]
    assert 0 < spent[0] < spent[1] < spent[2]
    assert all(4 * event["bytes_up"] < 3 * event["bytes_down"] for event in logged)


def test_a_part_of_the_settings_leaves_the_adapters_size(make: Make) -> None:
    for given in ({"rounds": 2}, {"local": {"steps": 3}}):
        local = make(federation=given).federation.local
        assert (local.rank, local.alpha) == (16, 32)
    assert make(federation={"local": {"rank": 4}}).federation.local.rank == 4
    with pytest.raises(ValueError):
        make(federation={"local": 3})


@pytest.mark.parametrize(
    ("change", "arms", "says"),
    [
        ({"compress": {"bits": 4}}, ["shared-fed:fedex"], "compress"),
        ({"privacy": {"mechanism": "gaussian", "noise": 1.0}}, ["shared-fed:flora+rag"], "privacy"),
        ({"secure": {"smallest": 4}, "cohort": 4}, ["shared-fed:average"], "keys"),
    ],
)
def test_settings_that_a_strategy_cannot_have(
    make: Make, change: dict[str, Any], arms: list[str], says: str
) -> None:
    given = make().federation.model_dump(exclude_none=True) | change
    make(arms=["shared"], federation=given)
    for how in (
        {"arms": arms},
        {"arms": ["shared"], "shared_how": f"fed:{arms[0][11:].split('+')[0]}"},
    ):
        with pytest.raises(ValueError, match=says):
            make(**how, federation=given)


# Names ----------------------------------------------------------------------------------


def test_names_of_arms() -> None:
    arm = get_arm("shared-fed:fedex+rag@3")
    assert (arm.federated, arm.shared, arm.memory, arm.k) == ("fedex", True, True, 3)
    plain = get_arm("shared-fed:fedex")
    assert (plain.name, plain.memory, plain.kind) == ("shared-fed:fedex", False, None)
    assert central("shared-fed:new+rag@3") == "rag@3" and central("shared-fed:new") == "shared"
    assert central("shared") == central("personal+rag") == ""


@pytest.mark.parametrize(
    "name",
    ["shared-fed:", "shared-fed:nope", "shared-fed:+rag", "shared-fed:fedex@2",
     "shared-fed:fedex+pfi", "fed:fedex", "shared-fed:fedex+rag@0"],
)  # fmt: skip
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(ConfigError):
        get_arm(name)


@pytest.mark.parametrize("how", ["fed:nope", "fed", "federated", "fed:", "shared-fed:fedex"])
def test_unknown_ways_to_learn_the_shared_adapter(make: Make, how: str) -> None:
    with pytest.raises((ConfigError, ValueError)):
        make(shared_how=how)
