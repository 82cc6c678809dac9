"""A device answers a broadcast with one cohort: no two sums differ in one client's update alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from secure_world import World

from pfi.errors import FederationError
from pfi.federate.secure import Rounds, SecureServer, run
from pfi.federate.secure import history as module
from pfi.federate.secure.history import alike, sketch

OTHER = "cd" * 32


def ask_again(
    world: World, names: Sequence[str], broadcast: str = "", lost: Any = None
) -> SecureServer:
    """A second sum that the server asks some of the same devices for."""
    world.broadcast = broadcast or world.broadcast
    world.start(world.round + 1)
    world.server = SecureServer(world.policy, world.roster, world.round, names, world.broadcast)
    run(world.server, ask_of(world, lost))
    return world.server


def ask_of(world: World, lost: Any = None) -> Any:
    """As ``World.ask``; a device that refuses has dropped out, and the server is told why."""

    def ask(messages: Any) -> Any:
        for name, message in messages.items():
            if lost and name in lost.get(message.values["stage"], ()):
                continue
            try:
                yield name, world.handle(name, message)
            except FederationError as error:
                yield name, error

    return ask


def first(count: int = 9) -> World:
    """Devices that were in one sum."""
    world = World(count)
    run(world.server, ask_of(world))
    return world


def test_the_same_broadcast_with_a_client_fewer() -> None:
    world = first()
    target = world.names[4]
    with pytest.raises(FederationError, match="answered with another cohort"):
        ask_again(world, [name for name in world.names if name != target])


def test_the_same_broadcast_with_a_client_more() -> None:
    """Eight first and then nine, of whom the ninth does not know."""
    world = World(9)
    world.server = SecureServer(world.policy, world.roster, 1, world.names[:8], world.broadcast)
    run(world.server, ask_of(world))
    with pytest.raises(FederationError, match="answered with another cohort"):
        ask_again(world, world.names)


def test_the_same_cohort_of_which_one_is_said_to_have_dropped_out() -> None:
    world = first()
    with pytest.raises(FederationError, match="summed with other clients"):
        ask_again(world, world.names, lost={"masked": [world.names[4]]})


def test_one_that_dropped_out_may_not_come_back_into_a_second_sum() -> None:
    world = World(9)
    run(world.server, ask_of(world, {"masked": ["device-04"]}))
    with pytest.raises(FederationError, match="summed with other clients"):
        ask_again(world, world.names)


def test_the_same_sum_may_be_asked_for_again() -> None:
    """As by a server that was killed before it wrote it down: it tells nothing new."""
    world = first()
    before = world.server.sum()
    assert (ask_again(world, world.names).sum() == before).all()


def test_a_round_that_failed_before_anything_was_sent_may_have_another_cohort() -> None:
    world = World(9)
    lost = {"shares": world.names[:6]}
    with pytest.raises(FederationError, match="3 clients are left"):
        run(world.server, ask_of(world, lost))
    assert ask_again(world, world.names[:8]).survivors() == world.names[:8]


def _a_bit(vector: Any) -> Any:
    return vector * (1 + 1e-3 * np.random.default_rng(1).standard_normal(vector.shape))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "the same": lambda vector: vector,
    "a bit": _a_bit,
    "scaled, as by another bound": lambda vector: vector / 3,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_another_broadcast_that_gives_almost_the_same_updates(change: Callable[[Any], Any]) -> None:
    """The state a bit changed, or its round renamed: the digest alone would not tell."""
    world = first()
    world.vectors = {n: change(v).astype(np.float32) for n, v in world.vectors.items()}
    # Before anything of it is sent.
    with pytest.raises(FederationError, match=r"stage masked.*almost this update"):
        ask_again(world, world.names[:8], OTHER)


def test_almost_the_same_updates_of_all_that_then_drop_out() -> None:
    """Refused when survivors are signed, so that nobody unmasks."""
    world = first()
    with pytest.raises(FederationError, match=r"stage survivors.*almost this update"):
        ask_again(world, world.names, OTHER, lost={"masked": ["device-04"]})


def test_sums_far_back_are_remembered_too() -> None:
    world = first()
    vectors = world.vectors
    for number in range(5):
        rng = np.random.default_rng(number + 10)
        world.vectors = {n: rng.uniform(-1, 1, 5).astype(np.float32) for n in world.names}
        ask_again(world, world.names, f"{number:064x}")
    world.vectors = vectors
    with pytest.raises(FederationError, match="almost this update"):
        ask_again(world, world.names[:8], OTHER)


def test_what_is_learnt_changes_and_clients_come_and_go() -> None:
    """The ordinary case: other updates, whoever is there."""
    world = first()
    for number in range(4):
        rng = np.random.default_rng(number + 10)
        world.vectors = {n: rng.uniform(-1, 1, 5).astype(np.float32) for n in world.names}
        names = [name for name in world.names if name != world.names[number]]
        assert ask_again(world, names, f"{number:064x}").survivors() == names


def test_sets_that_differ_by_many_may_sum_almost_the_same() -> None:
    world = first(16)
    server = ask_again(world, world.names[4:], OTHER)
    assert server.survivors() == world.names[4:]


@pytest.mark.parametrize("restart", [True, False])
def test_a_device_remembers_after_a_restart(tmp_path: Path, restart: bool) -> None:
    world = World(5)

    def start_devices() -> None:
        world.rounds = {name: Rounds(tmp_path / name) for name in world.names}

    start_devices()
    world.start(1)
    run(world.server, ask_of(world))
    if restart:
        start_devices()
    with pytest.raises(FederationError, match="answered with another cohort"):
        ask_again(world, world.names[:4])
    written = json.loads((tmp_path / world.names[0]).read_text(encoding="utf-8"))
    (entry,) = written["test"]["sums"]
    assert entry["left"] == world.names and len(entry["sketch"]) == 32


def test_it_is_written_down_before_the_masked_update_is_sent(tmp_path: Path) -> None:
    """A device that is killed then has sent nothing that it does not know of."""
    world = World(5)
    world.rounds = {name: Rounds(tmp_path / name) for name in world.names}
    world.start(1)
    world.until("masked")
    (tmp_path / world.names[0]).unlink()
    (tmp_path / world.names[0]).mkdir()
    with pytest.raises(OSError):
        world.handle(world.names[0], world.server.requests("masked")[world.names[0]])


def test_only_so_many_sums_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    rounds = Rounds()
    for number in range(5):
        rounds.join("f", number, str(number), ["a", "b"])
        rounds.send("f", str(number), ["a", "b"], [], 4)
    assert [entry.broadcast for entry in rounds._past._entries["f"].sums] == ["2", "3", "4"]


def test_a_fast_clock_costs_one_round(tmp_path: Path) -> None:
    """Rounds are numbered by the server's clock; one far ahead would shut out all that follow."""
    now = time.time() * 1000
    rounds = Rounds(tmp_path / "rounds.json", clock=lambda: now)
    rounds.join("f", int(now), "a", ["x"])
    with pytest.raises(FederationError, match="a day ahead"):
        rounds.join("f", int(now) + 13 * 365 * 24 * 3600 * 1000, "b", ["x"])
    rounds.join("f", int(now) + 1, "b", ["x"])


# Sketches -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 40, 300_001])
def test_sketches_tell_the_same_update_from_another(width: int) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, width)).astype(np.float32)
    for key in range(5):
        base = sketch(one, key)
        assert len(base) == 32 and alike(base, sketch(4 * one, key))
        assert alike(base, sketch(one + 0.01 * other, key)) or width == 3
        assert not alike(base, sketch(other, key))
        assert not alike(base, sketch(-one, key))
        assert not alike(base, sketch(one + other, key))
    assert sketch(one, 1) == sketch(one, 1) != sketch(one, 2)


def test_an_update_of_zeros_is_like_none() -> None:
    assert sketch(np.zeros(5), 1) == [] and not alike([], [])
    assert not alike(sketch(np.ones(5), 1), [])
