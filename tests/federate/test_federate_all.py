"""Every strategy on a real, tiny model: rounds run, lower the loss, and go on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.federate.config import FederateConfig
from pfi.federate.message import Message
from pfi.federate.rounds import Federation
from pfi.federate.simulate import SimulatedFleet
from pfi.federate.strategies import STRATEGIES
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import Example

ROUNDS = 3


class Few:
    """Five clients of two kinds."""

    def clients(self) -> Sequence[str]:
        return [f"user {n}" for n in range(5)]

    def examples(self, client: str) -> Sequence[Example]:
        n = int(client[-1])
        answer = "good book" if n % 2 else "bad film"
        return [Example(f"quick {n} fox {i}", answer, {}, str(i)) for i in range(3 + n)]

    def rank(self, client: str) -> int | None:
        return None


def config_of(name: str) -> FederateConfig:
    local: dict[str, Any] = {"rank": 2, "alpha": 4, "learning_rate": 0.02, "steps": 2}
    if name == "scaffold":
        local |= {"optimizer": "sgd", "learning_rate": 0.3}
    if name == "fedkseed":
        local |= {"epochs": 8, "steps": 8}
    return FederateConfig.model_validate(
        {
            "strategy": name,
            "rounds": ROUNDS,
            "cohort": 4,
            "held_out": 0.01,  # nobody of five, but devices may measure
            "local": {**local, "batch_size": 3},
            "clusters": {"together": 1},
            "dual": {"rank": 1, "when": "F" if name == "feddpa" else "T"},
            "scaffold": {"clients": 5},
        }
    )


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


def fleet_of(config: FederateConfig, backbone: Backbone, out: Path) -> SimulatedFleet:
    return SimulatedFleet(backbone, Few(), config, out / "clients")


def own_losses(run: Federation, number: int, backbone: Backbone) -> list[float]:
    """The loss of every client with its own model, of devices that do not know what they did."""
    messages = run._messages(run.train, "evaluate", number)
    replies = dict(fleet_of(run.config, backbone, run.out).ask(number, messages))
    assert all(isinstance(reply, bytes) for reply in replies.values()), replies
    return [Message.decode(reply).number("loss") for reply in replies.values()]  # type: ignore[arg-type]


class Killed(Exception):
    """Stands for a kill in the middle of a round."""


class Dying(SimulatedFleet):
    """A fleet whose server is killed in its last round, after one reply."""

    def ask(self, round: int, *given: Any) -> Any:
        for n, reply in enumerate(super().ask(round, *given)):
            if round == ROUNDS - 1 and n == 1:
                raise Killed
            yield reply


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_rounds_lower_the_loss_and_a_killed_run_ends_alike(
    name: str, backbone: Backbone, tmp_path: Path
) -> None:
    config = config_of(name)
    fleet = fleet_of(config, backbone, tmp_path / "whole")
    run = Federation(config, fleet.strategy, fleet, tmp_path / "whole")
    before = own_losses(run, 0, backbone)
    whole = run.run()
    done = list(run._store.rounds())
    assert [event["clients"] for event in done] == [4] * ROUNDS and not done[-1]["refused"]
    assert np.mean(own_losses(run, ROUNDS + 1, backbone)) < np.mean(before) - 1e-3

    dying = Dying(backbone, Few(), config, tmp_path / "killed" / "clients")
    with pytest.raises(Killed):
        Federation(config, dying.strategy, dying, tmp_path / "killed").run()
    fleet = fleet_of(config, backbone, tmp_path / "killed")
    resumed = Federation(config, fleet.strategy, fleet, tmp_path / "killed", resume=True)
    assert resumed._next == ROUNDS - 1
    again = resumed.run()
    assert whole.keys() == again.keys()
    for key, array in whole.items():
        np.testing.assert_array_equal(array, again[key], key)
    files = {
        kind: {p.relative_to(tmp_path / kind): p for p in (tmp_path / kind / "clients").rglob("*")}
        for kind in ("whole", "killed")
    }
    assert files["whole"].keys() == files["killed"].keys()
    assert fleet.strategy.stateful == bool(files["whole"])
    for place, path in files["whole"].items():
        if path.is_file():
            assert path.read_bytes() == files["killed"][place].read_bytes()
