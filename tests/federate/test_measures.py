"""What a device lets a server measure: seldom, not exactly, and nothing once it has trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.errors import FederationError
from pfi.federate.client import Clients, Memories
from pfi.federate.config import FederateConfig
from pfi.federate.measures import LARGEST_LOSS, Measures, blurred
from pfi.federate.message import Failure, Message
from pfi.federate.work import unpack
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import Example

DAY = 24 * 3600
PRIVATE: dict[str, Any] = {
    "sampling": "poisson", "privacy": {"mechanism": "gaussian", "noise": 1.0, "clip": 0.01},
}  # fmt: skip
SECURE: dict[str, Any] = {"secure": {"smallest": 4}}


class People:
    """Two people with a few examples each."""

    def clients(self) -> Sequence[str]:
        return ["a", "b"]

    def examples(self, client: str) -> Sequence[Example]:
        return [Example(f"quick {n} fox", f"{n % 3}", {}, str(n)) for n in range(5)]

    def rank(self, client: str) -> int | None:
        return None


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


def clients_of(backbone: Backbone, folder: Path, changes: Any, **how: Any) -> Clients:
    local = {"rank": 2, "max_length": 48, "steps": 1, "optimizer": "sgd", "learning_rate": 50.0}
    config = FederateConfig.model_validate({"strategy": "ffa", "local": local, **changes})
    return Clients(backbone, People(), config, Memories(folder), **how)


def ask(clients: Clients, kind: str, round: Any = 0, shift: float = 0, **told: Any) -> Any:
    """One client's reply: a message, or why not."""
    strategy = clients.strategy
    state = {k: v + np.asarray(shift, v.dtype) for k, v in strategy.start().items()}
    content = strategy.broadcast(state, "a", 0)
    values = {**content.values, **clients.terms, **told, "kind": kind, "round": round}
    (reply,) = clients.answer({"a": Message(content.arrays, values)}).values()
    return reply.why if isinstance(reply, Failure) else Message.decode(reply)


@pytest.mark.parametrize("changes", [{}, PRIVATE, SECURE], ids=["plain", "privacy", "secure"])
def test_one_model_a_round_is_measured(
    backbone: Backbone, tmp_path: Path, changes: dict[str, Any]
) -> None:
    clients = clients_of(backbone, tmp_path, changes)
    one = ask(clients, "evaluate")
    for shift in (0.01, 0.02):
        assert "measured another model in round 0" in ask(clients, "evaluate", 0, shift)
    assert ask(clients, "evaluate").values["loss"] == one.values["loss"], "the same question"
    assert ask(clients, "evaluate", 1, 0.01).values["loss"] > 0
    assert "another model in round 0" in ask(clients, "evaluate", 0, 0.03), "no way back"


def test_who_has_trained_measures_nothing(backbone: Backbone, tmp_path: Path) -> None:
    clients = clients_of(backbone, tmp_path, {})
    assert "loss" in ask(clients, "evaluate").values
    assert "update.vector" in ask(clients, "train", 1).arrays
    for round in (0, 2):
        assert "has trained" in ask(clients, "evaluate", round)


def test_a_device_wants_to_know_by_which_settings_it_is_asked(
    backbone: Backbone, tmp_path: Path
) -> None:
    clients = clients_of(backbone, tmp_path, {}, device=True)
    unsaid = dict.fromkeys(clients.terms, "")
    for kind in ("train", "evaluate"):
        assert "other settings" in ask(clients, kind, **unsaid)
    assert "loss" in ask(clients, "evaluate").values, "nothing was noted of those"


def test_where_nobody_is_held_out_nobody_measures(backbone: Backbone, tmp_path: Path) -> None:
    assert "nobody measures" in ask(clients_of(backbone, tmp_path, {"held_out": 0}), "evaluate")


@pytest.mark.parametrize("changes", [PRIVATE, SECURE], ids=["privacy", "secure"])
def test_counts_are_hidden_and_losses_blurred(
    backbone: Backbone, tmp_path: Path, changes: dict[str, Any]
) -> None:
    exact = ask(clients_of(backbone, tmp_path, {}), "evaluate").values
    assert exact["examples"] == 5
    found = set()
    for n in range(3):
        clients = clients_of(backbone, tmp_path / str(n), changes, device=True)
        values = ask(clients, "evaluate").values
        assert set(values) == {"loss"} and round(values["loss"], 2) == values["loss"]
        assert abs(values["loss"] - exact["loss"]) < 0.05 * 8
        found.add(values["loss"])
    assert len(found) > 1, "noise of the system's randomness"
    alike = [
        ask(clients_of(backbone, tmp_path / name, changes), "evaluate").values["loss"]
        for name in ("x", "y")
    ]
    assert alike[0] == alike[1], "a simulation can be repeated"
    exact_too = clients_of(backbone, tmp_path / "z", {**changes, "measure_noise": 0})
    assert ask(exact_too, "evaluate").values == {"loss": exact["loss"]}


def test_with_privacy_no_update_says_of_how_many_examples_it_is(
    backbone: Backbone, tmp_path: Path
) -> None:
    assert ask(clients_of(backbone, tmp_path, {}), "train").values["weight"] == 5
    assert ask(clients_of(backbone, tmp_path, PRIVATE), "train").values["weight"] == 1


# A device's own limits ------------------------------------------------------------------

TOLD: list[dict[str, Any]] = [{"clip": 0.01}, {"clip": 1e9}, {}, {"clip": 0.001}, {"clip": 3}]


@pytest.mark.parametrize("told", TOLD, ids=str)
@pytest.mark.parametrize("compress", [{}, {"bits": 4}], ids=str)
def test_a_device_holds_to_its_own_bound(
    backbone: Backbone, tmp_path: Path, told: dict[str, Any], compress: dict[str, Any]
) -> None:
    clients = clients_of(backbone, tmp_path, {**PRIVATE, "compress": compress})
    reply = ask(clients, "train", **told)
    vector, weight = unpack(reply, clients.strategy.size)  # type: ignore[attr-defined]
    bound = min(told.get("clip", 0.01), 0.01)
    assert 0.5 * bound < np.linalg.norm(vector.astype(float)) <= bound * (1 + 1e-6)
    assert weight == 1


def test_a_bound_that_follows_the_updates_ends_at_its_limit(
    backbone: Backbone, tmp_path: Path
) -> None:
    private = {"mechanism": "gaussian", "noise": 0.1, "clip": 0.001, "adaptive": {"largest": 5}}
    clients = clients_of(backbone, tmp_path, {**PRIVATE, "privacy": private})
    for told, bound in (({"clip": 0.004}, 0.004), ({"clip": 1e9}, 0.005), ({}, 0.001)):
        reply = ask(clients, "train", **told)
        norm = float(np.linalg.norm(reply.arrays["update.vector"].astype(float)))
        assert norm == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("clip", [0, -1, -1e9, math.nan, math.inf, "1", True])
def test_bounds_that_are_none_are_refused(backbone: Backbone, tmp_path: Path, clip: Any) -> None:
    """A negative one would turn an update round, and make it longer."""
    for changes in ({}, PRIVATE):
        reply = ask(clients_of(backbone, tmp_path, changes), "train", clip=clip)
        assert isinstance(reply, str) and ("bound" in reply or "clip" in reply)


@pytest.mark.parametrize("round", [-1, 0.5, 1e300, 2**31, math.inf, "1", True])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_rounds_that_are_none_are_refused(
    backbone: Backbone, tmp_path: Path, round: Any, kind: str
) -> None:
    assert isinstance(ask(clients_of(backbone, tmp_path, {}), kind, round), str)


# The list -------------------------------------------------------------------------------


def test_answers_are_remembered_for_a_day_also_after_a_restart(tmp_path: Path) -> None:
    now = [1e9]
    path = tmp_path / "home" / "measured.json"

    def measures() -> Measures:
        return Measures(path, most=3, clock=lambda: now[0])

    for round in range(3):
        assert measures().known("a", round, f"model {round}") is None
        measures().keep("a", round, f"model {round}", round / 7)
    assert measures().known("a", 2, "model 2") == 2 / 7
    with pytest.raises(FederationError, match="another model in round 1"):
        measures().known("a", 1, "model 2")
    with pytest.raises(FederationError, match="3 models within a day"):
        measures().known("a", 3, "model 3")
    assert measures().known("b", 3, "model 3") is None
    now[0] += DAY + 1
    assert measures().known("a", 1, "another") is None
    measures().train("a")
    now[0] += 365 * DAY
    with pytest.raises(FederationError, match="has trained"):
        measures().known("a", 9, "x")


def test_a_loss_that_is_no_number_is_kept(tmp_path: Path) -> None:
    measures = Measures(tmp_path / "m.json")
    measures.keep("a", 0, "x", math.nan)
    found = measures.known("a", 0, "x")
    assert found is not None and math.isnan(found)


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 1}', '{"a": {"trained": 3, "x": 1}}'])
def test_a_damaged_list_is_not_an_empty_one(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(damage, encoding="utf-8")
    with pytest.raises(FederationError, match="damaged"):
        Measures(path).known("a", 0, "x")


def test_the_list_holds_digests_and_no_models(tmp_path: Path) -> None:
    Measures(tmp_path / "m.json").keep("a", 0, "x" * 64, 1.5)
    (answer,) = json.loads((tmp_path / "m.json").read_text())["a"]["answers"].values()
    assert set(answer) == {"when", "question", "loss"}


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e9, -math.inf])
def test_losses_are_cut(loss: float) -> None:
    """A model made to have a huge loss where a record is would drown the noise."""
    sent = blurred(loss, 0.05, lambda: 1.0)
    assert sent == pytest.approx(0.05 if loss == -1e9 else LARGEST_LOSS + 0.05)
    assert blurred(1.23456, 0.05, lambda: -1.0) == 1.18
    assert blurred(1.23456, 0, lambda: -1.0) == 1.23456
