"""Settings under which no sum could ever be, heavy devices, and what the ledger calls protected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from secure_world import POLICY, World

from pfi.errors import ConfigError, FederationError
from pfi.federate.aggregate.combiners import Combining
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.agent import runtime as module
from pfi.federate.message import Message
from pfi.federate.privacy.dp_fedavg import PrivacyConfig, PrivateRounds
from pfi.federate.secure import run
from pfi.federate.secure.quantise import signed

NOISE: dict[str, Any] = {"mechanism": "gaussian", "noise": 1.0}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"cohort": 6, "secure": {}}, "a `cohort` of 6 makes no secure sum"),
    ({"cohort": 6, "spare": 0.5, "secure": {}}, "a `cohort` of 6"),
    ({"cohort": 6, "sampling": "poisson", "secure": {}}, "a `cohort` of 6"),
    ({"cohort": 6, "privacy": NOISE, "secure": {}}, "a `cohort` of 6"),
    ({"cohort": 3, "secure": {"smallest": 4}}, "a `cohort` of 3"),
    ({"cohort": 16, "secure": {"largest": 10}}, "a group can have 15"),
    ({"cohort": 9, "spare": 0.3, "secure": {"largest": 10}}, "a group can have 15"),
    ({"cohort": 9, "sampling": "poisson", "secure": {"largest": 10}}, "a group can have 15"),
    ({"cohort": 8, "least": 9}, "`least` 9"),
    ({"cohort": 8, "least": 9, "spare": 1.0}, "`least` 9"),
    (
        {"cohort": 8, "secure": {"step": 0.01}, "privacy": {**NOISE, "clip": 0.005}},
        "`secure.step` above `privacy.clip`",
    ),
]


@pytest.mark.parametrize(("settings", "why"), REFUSED)
def test_settings_under_which_no_round_is_usable_are_refused(
    settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        FederateConfig.model_validate({"strategy": "ffa", **settings})


def test_settings_at_the_edge_are_taken() -> None:
    for settings in (
        {"cohort": 8, "secure": {}},
        {"cohort": 9, "secure": {"largest": 10}},
        {"cohort": 64, "secure": {"largest": 15}},
        {"cohort": 8, "least": 8},
        {"cohort": 4, "least": 5, "sampling": "poisson"},
        {"cohort": 4, "least": 5, "privacy": NOISE},
    ):
        FederateConfig.model_validate(settings)


def test_a_fleet_too_small_for_a_secure_sum_is_refused() -> None:
    config = FederateConfig.model_validate({"cohort": 8, "secure": {}})
    Combining(config, [f"c{n}" for n in range(8)], 4, simulated=True)
    with pytest.raises(ConfigError, match="7 clients make no secure sum of 8"):
        Combining(config, [f"c{n}" for n in range(7)], 4, simulated=True)


def test_a_bound_that_follows_updates_has_a_limit_for_the_server_too() -> None:
    config = PrivacyConfig(**NOISE, clip=0.5, adaptive={"largest": 3})  # type: ignore[arg-type]
    assert config.limit == 1.5 and PrivacyConfig(**NOISE, clip=0.5).limit == 0.5
    names = [str(n) for n in range(50)]
    private = PrivateRounds(
        config, fleet=50, cohort=50, sampling="fixed", rounds=40, width=3, seed=0
    )
    for _ in range(40):  # all updates are longer than any bound
        mean = private.combiner(names)
        for name in names:
            mean.add(name, np.full(3, 9.0, np.float32), 1.0)
        mean.result()
    assert private.clip == 1.5


# Heavy devices --------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [51, 1001, 10**9])
def test_a_device_with_many_examples_counts_as_the_heaviest(weight: int) -> None:
    """It was left out of every round."""
    world = World(4)
    heavy, light = world.names[0], world.names[1]
    world.clients[heavy].contribute(world.vectors[heavy], weight)
    world.clients[light].contribute(world.vectors[light], POLICY.heaviest)
    assert run(world.server, world.ask()) == {}
    others = sum(world.weights[name] for name in world.names[2:])
    assert world.server.weight() == 2 * POLICY.heaviest + others


@pytest.mark.parametrize("weight", [0, -5, 0.5, float("nan"), float("-inf")])
def test_weights_that_are_none_are_still_refused(weight: float) -> None:
    world = World(4)
    with pytest.raises(FederationError, match="weight"):
        world.clients[world.names[0]].contribute(world.vectors[world.names[0]], weight)


def test_why_an_update_is_refused_tells_no_value_of_it() -> None:
    """The server is told in clear."""
    world = World(4)
    with pytest.raises(FederationError, match="out of the policy's range") as refusal:
        world.clients[world.names[0]].contribute(np.full(5, 7.654321, np.float32), 1)
    assert "7.65" not in str(refusal.value)


def test_weights_travel_as_they_count() -> None:
    world = World(4)
    client = world.clients[world.names[0]]
    client.contribute(np.full(5, 0.5, np.float32), 10**6)
    assert client._entries is not None
    entries = signed(client._entries)
    assert entries[-1] == 50 and (entries[:-1] == 0.5 * 50 / POLICY.step).all()


# The ledger -----------------------------------------------------------------------------

#: What the server asks, and what the ledger says of the reply: its kind and protection.
SAID = [
    ({"kind": "evaluate", "round": 0}, "measure", "clear"),
    ({"kind": "train", "round": 0}, "ready", "clear"),
    ({"kind": "finish", "round": 0}, "finish", "clear"),
    ({"kind": "secure", "stage": "keys"}, "secure keys", "secure sum"),
    ({"kind": "secure", "stage": "masked"}, "update", "secure sum"),
]


@pytest.mark.parametrize(("values", "kind", "policy"), SAID)
@pytest.mark.parametrize("secure", [True, False])
def test_the_ledger_calls_secure_what_is_masked_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, values: Any, kind: str, policy: str, secure: bool
) -> None:
    if not secure:
        if values["kind"] == "secure":
            return
        kind = "update" if kind == "ready" else kind
    seen: list[tuple[str, str]] = []

    def send_logged(ledger: Any, **entry: Any) -> Any:
        seen.append((entry["kind"], entry["policy"]))
        return entry["send"]()

    monkeypatch.setattr(module, "send_logged", send_logged)
    home: Any = SimpleNamespace(open_ledger=lambda: None, profile="p")
    there: Any = SimpleNamespace(client="c", server="h:1")
    config = FederateConfig.model_validate({"secure": {} if secure else None})
    runtime = module.DeviceRuntime(home, None, there, config)  # type: ignore[arg-type]
    monkeypatch.setattr(module.DeviceRuntime, "_reply", lambda *_: b"reply")
    assert runtime(Message(values=values).encode()) == b"reply"
    assert seen == [(kind, policy)]
