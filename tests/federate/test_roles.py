"""Who is held out stays so, whoever comes and goes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pfi.errors import ConfigError
from pfi.federate.config import FederateConfig
from pfi.federate.message import Message
from pfi.federate.roles import Roles
from pfi.federate.rounds import divide


def config(held_out: float, seed: int = 0) -> FederateConfig:
    return FederateConfig(held_out=held_out, seed=seed)


def names(count: int) -> list[str]:
    return [f"phone-{n:04}" for n in range(count)]


def kept(roles: Roles) -> Message:
    """A checkpoint with the roles, as it is read again."""
    arrays = {f"roles.{name}": array for name, array in roles.arrays().items()}
    return Message.decode(Message(arrays).encode())


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_fleet_that_changes_moves_nobody(share: float) -> None:
    """Without a checkpoint even: half of the devices go, as many come, in any order."""
    rng = random.Random(1)
    for seed in range(20):
        before = names(150)
        held = set(divide(before, config(share, seed))[1])
        after = rng.sample(before, 75) + [f"new-{n}" for n in range(75)]
        rng.shuffle(after)
        train, measure = divide(after, config(share, seed))
        assert held.isdisjoint(train) and set(before) - held > set(measure) & (set(before) - held)
        assert not (set(before) - held) & set(measure)


def test_the_share_is_held_out_and_the_seed_decides_whom() -> None:
    first, second = (divide(names(4000), config(0.1, seed))[1] for seed in (0, 1))
    assert 340 < len(first) < 460 and len(set(first) & set(second)) < 80


@pytest.mark.parametrize(("count", "share", "wanted"), [(4, 0.25, 1), (8, 0.25, 2), (6, 0.5, 3)])
def test_a_small_fleet_has_somebody_to_train_and_to_measure(
    count: int, share: float, wanted: int
) -> None:
    for seed in range(50):
        train, held = divide(names(count), config(share, seed))
        assert len(held) >= wanted and len(train) >= min(5, count - wanted)
        assert sorted(train + held) == names(count)


def test_nobody_is_held_out_unless_asked_and_somebody_trains() -> None:
    assert divide(names(30), config(0)) == (names(30), [])
    with pytest.raises(ConfigError, match="no client is left"):
        divide(["a"], config(0.9))


def test_roles_outlast_a_checkpoint_also_those_that_hashes_did_not_give() -> None:
    """Small fleets, where the nearest hashes decide, and devices that return after a while."""
    for seed in range(20):
        settings = config(0.3, seed)
        roles = Roles(settings)
        train, held = roles.divide(names(9))
        for clients in (names(9)[2:], [*names(4), "new-1", "new-2"], names(9)):
            roles = Roles.of(kept(roles), settings)
            now_train, now_held = roles.divide(clients)
            assert not set(now_held) & set(train) and not set(now_train) & set(held)
        assert (now_train, now_held) == (train, held)


def test_held_out_devices_alone_cannot_go_on() -> None:
    settings = config(0.3)
    roles = Roles(settings)
    held = roles.divide(names(9))[1]
    with pytest.raises(ConfigError, match="no client is left"):
        Roles.of(kept(roles), settings).divide(held)


def test_a_run_of_an_earlier_version_goes_on_with_its_division() -> None:
    """It was drawn by a shuffle, and is kept from then on."""
    from pfi._util.seeds import generator

    order = names(40)
    generator(3, "held out").shuffle(order)
    settings = config(0.25, 3)
    roles = Roles.of(Message({"state.row": np.zeros(1)}), settings)
    assert set(roles.divide(names(40))[1]) == set(order[:10])
    later = Roles.of(kept(roles), settings).divide(names(39))
    assert set(later[1]) == set(order[:10]) & set(names(39))
