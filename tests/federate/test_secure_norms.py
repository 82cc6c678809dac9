"""A bound on an update holds for what is sent of it; one client spoils its group's sum alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from secure_world import POLICY, VICTIM, World

from pfi.errors import FederationError
from pfi.federate.aggregate.combiners import Combining
from pfi.federate.compress import decompress
from pfi.federate.config import FederateConfig
from pfi.federate.message import Message
from pfi.federate.privacy.dp_fedavg import PrivacyConfig
from pfi.federate.privacy.private_mean import PrivateMean, clipped, faded, grain_of
from pfi.federate.secure import Policy, Rounds, SecureClient, SecureConfig, run
from pfi.federate.secure.quantise import quantise, rounded_within, signed, values
from pfi.federate.work import Client, Update, bound_of, pack

Floats = NDArray[np.float64]
CONFIG = SecureConfig(heaviest=1)
#: Numbers and bounds: well above a step each, near it, and below it.
SIZES = [(64_512, 1.0), (64_512, 0.1), (1_000_000, 1.0), (10_000_000, 1.0), (10_000_000, 0.1)]
SHAPES = ["normal", "even", "half a step", "few", "heavy tail", "beyond"]


def updates(width: int, bound: float, count: int, step: float = CONFIG.step) -> Any:
    """Updates of many kinds, as clients cut them to a bound."""
    rng = np.random.default_rng([width, count])
    for n in range(count):
        shape = SHAPES[n % len(SHAPES)]
        if shape == "normal":
            drawn = rng.standard_normal(width, np.float32)
        elif shape == "even":
            drawn = np.full(width, rng.uniform(0.1, 1), np.float32)
        elif shape == "half a step":  # all just beyond, so that nearest numbers all go up
            each = (math.floor(bound / math.sqrt(width) / step) + 0.5001) * step
            drawn = np.full(width, each, np.float32)
            drawn[min(width, int((bound / each) ** 2)) :] = 0
        elif shape == "few":
            drawn = np.where(rng.random(width) < 1e-3, np.float32(1), np.float32(0))
        elif shape == "heavy tail":
            drawn = rng.standard_cauchy(width).astype(np.float32)
        else:
            drawn = np.float32(50) * rng.standard_normal(width, np.float32)
        yield shape, clipped(drawn, bound)[0].astype(np.float32)


def norm_sent(vector: NDArray[Any], config: SecureConfig, **how: Any) -> float:
    return float(np.linalg.norm(values(signed(quantise(vector, 1, config, **how)), config)))


def check_bound(width: int, bound: float, count: int) -> None:
    rng = np.random.default_rng(0)
    for shape, vector in updates(width, bound, count):
        sent = norm_sent(vector, CONFIG, bound=bound, rng=rng)
        assert sent <= bound * (1 + 1e-9), shape


@pytest.mark.parametrize(("width", "bound"), [(600, 1.0), (600, 1e-3), (5, 1e-4), *SIZES[:2]])
def test_rounding_keeps_updates_within_the_bound(width: int, bound: float) -> None:
    check_bound(width, bound, 600 if width < 1000 else 24)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "bound"), SIZES)
def test_rounding_keeps_ten_thousand_updates_within_the_bound(width: int, bound: float) -> None:
    check_bound(width, bound, 10_000)


def test_without_a_bound_rounding_keeps_the_length_of_the_vector() -> None:
    for shape, vector in updates(2000, 0.05, 300):
        length = float(np.linalg.norm(vector.astype(np.float64)))
        assert norm_sent(vector, CONFIG) <= length * (1 + 1e-9), shape


def test_nearest_numbers_would_be_longer() -> None:
    """What the tests above would see if rounding did not look at the length."""
    _, vector = next(u for u in updates(64_512, 0.01, 6) if u[0] == "half a step")
    assert norm_sent(vector, CONFIG, bound=math.inf) > 1.9 * 0.01


def test_rounding_is_right_on_average() -> None:
    rng = np.random.default_rng(3)
    steps = np.array([0.3, -0.3, 2.7, -41.5, 0.0, 1.0])
    loose = np.array([rounded_within(steps, 100.0, rng) for _ in range(4000)])
    assert np.abs(loose - steps).max() < 1  # a neighbour
    np.testing.assert_allclose(loose.mean(axis=0), steps, atol=0.05)


def test_what_is_far_below_a_step_keeps_its_direction() -> None:
    """Rounded to the nearest step all of it would be lost, and rounded freely be too long."""
    width, bound = 200_000, 0.01
    vector = np.random.default_rng(0).choice([-1.0, 1.0], width)
    vector *= bound / np.linalg.norm(vector)
    assert not quantise(vector, 1, CONFIG, bound=math.inf)[:-1].any()
    sums = np.zeros(width)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sent = values(signed(quantise(vector, 1, CONFIG, bound=bound, rng=rng)), CONFIG)
        assert np.linalg.norm(sent) <= bound * (1 + 1e-9)
        sums += sent
    cosine = sums @ vector / np.linalg.norm(sums) / np.linalg.norm(vector)
    assert cosine > 0.7 and (sums != 0).mean() > 0.5


@pytest.mark.parametrize("weight", [1, 7])
def test_the_bound_is_on_the_update_and_its_weight_comes_on_top(weight: int) -> None:
    config = SecureConfig(heaviest=10)
    vector = np.full(100, 0.05, np.float32)
    entries = quantise(vector, weight, config, bound=0.2)
    sent = values(signed(entries), config) / weight
    assert 0.19 < np.linalg.norm(sent) <= 0.2 * (1 + 1e-9) and entries[-1] == weight


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_a_client_masks_what_is_within_the_bound(bound: float) -> None:
    """Also where one value is beyond the policy's range, while the whole is not."""
    world = World(4)
    policy = Policy(**{**POLICY.model_dump(), "length": 50, "clip": 1.0})
    client = SecureClient(world.identities[VICTIM], world.roster, policy, world.broadcast, Rounds())
    vector = np.zeros(50, np.float32)
    vector[:2] = 2.5, -0.1
    client.contribute(vector, 1, bound=bound)
    assert client._entries is not None
    sent = values(signed(client._entries), policy)
    assert np.linalg.norm(sent) <= bound * (1 + 1e-9) and 0.4 < np.abs(sent).max() <= 1
    for bad in (math.nan, math.inf):
        vector[3] = bad
        with pytest.raises(FederationError, match="not finite"):
            client.contribute(vector, 1, bound=bound)


# The sum --------------------------------------------------------------------------------


def silent(width: int, **changes: Any) -> PrivateMean:
    values: dict[str, Any] = {"clip": 1.0, "deviation": 500.0, "denominator": 1.0}
    return PrivateMean(width, **{**values, "noise": lambda: np.zeros(width), **changes})


@pytest.mark.parametrize("deviation", [1e-9, 0.3, 500.0])
def test_one_client_moves_the_sum_of_its_group_by_the_bound_at_most(deviation: float) -> None:
    """What the noise is for.  A grain coarser than the step would round sums apart."""
    width, step = 4000, 1e-4
    assert 4 * step < 500.0 / 2**20
    rng = np.random.default_rng(0)
    config = SecureConfig(heaviest=1, step=step)

    def entries(seed: int) -> NDArray[np.int64]:
        vector = clipped(np.random.default_rng(seed).standard_normal(width), 1.0)[0]
        return signed(quantise(vector, 1, config, bound=1.0, rng=rng))

    rest = np.sum([entries(n) for n in range(4)], axis=0)
    results = []
    for total in (rest, rest + entries(9)):
        mean = silent(width, deviation=deviation, step=step)
        mean.add_sum([str(n) for n in range(5)], values(total, config))
        results.append(mean.result().vector)
    assert np.linalg.norm(results[1] - results[0]) <= 1 + 1e-9
    assert np.linalg.norm(results[1] - results[0]) > 0.95


def test_rounds_of_secure_sums_add_noise_in_fractions_of_a_step() -> None:
    config = FederateConfig.model_validate(
        {
            "cohort": 8,
            "sampling": "poisson",
            "secure": {"smallest": 4, "step": 1e-4},
            "privacy": {"mechanism": "gaussian", "noise": 1e5},
        }
    )

    class Group:
        """One with a sum of so many steps in each number."""

        def __init__(self, steps: int) -> None:
            self.steps = steps

        def survivors(self) -> list[str]:
            return [f"c{n}" for n in range(4)]

        def total(self) -> Floats:
            return np.full(6, self.steps * 1e-4)

    names = [f"c{n}" for n in range(20)]
    results = []
    for steps in (0, 1):
        group: Any = Group(steps)
        combining = Combining(config, names, 6, simulated=True)  # the same noise in both
        results.append(combining.across([group], names, 0).vector * 8)
    np.testing.assert_allclose(results[1] - results[0], 1e-4, atol=1e-8)


def test_a_grain_is_fine_enough_and_divides_the_step() -> None:
    for finest in (1e-9, 3e-5, 0.2):
        assert finest / 2 < grain_of(finest, None) <= finest
        for step in (1e-4, 0.3):
            grain = grain_of(finest, step)
            assert grain <= max(finest, 0) or grain == step
            assert (step / grain).is_integer() and grain <= step


def test_fading_brings_no_two_sums_further_apart() -> None:
    rng = np.random.default_rng(1)
    ends = 0
    for _ in range(4000):
        one = rng.standard_normal(3) * rng.uniform(0, 1.5)
        other = one + rng.standard_normal(3) * rng.choice([1e-3, 0.1, 1])
        before, after = np.linalg.norm(one - other), np.linalg.norm(faded(one, 1) - faded(other, 1))
        assert after <= before * (1 + 1e-9)
        ends += not faded(one, 1.0).any()
    assert ends > 100
    whole = np.array([0.6, 0.8])
    assert faded(whole, 1.0) is whole and not faded(3 * whole, 1.0).any()
    np.testing.assert_allclose(faded(1.5 * whole, 1.0), 0.5 * whole)


def test_a_sum_that_is_too_long_is_left_out_and_its_clients_are_named() -> None:
    mean = silent(3, deviation=1e-9)
    mean.add_sum(["a", "b"], np.full(3, 0.5))
    mean.add_sum(["c", "d"], np.full(3, 40.0))
    result = mean.result()
    np.testing.assert_allclose(result.vector, 0.5, atol=1e-8)
    assert set(result.refused) == {"c", "d"}
    assert all("did not clip" in why for why in result.refused.values())


def test_clients_of_a_faded_sum_took_part() -> None:
    """With noise that cancels they may not be asked again at once: they show in the result."""
    mean = silent(3, deviation=1e-9)
    mean.add_sum(["a", "b"], np.full(3, 1.5))
    assert mean.result().vector.any() and mean.clients == ["a", "b"]
    again = silent(3)
    again.add_sum(["a", "b"], np.full(3, 1.5))
    with pytest.raises(FederationError, match="already"):
        again.add_sum(["b", "c"], np.zeros(3))


def _groups(place: int, entry: int) -> list[Any]:
    """Two groups with their sums; one client of the first masks another number."""
    found = []
    for number in range(2):
        world = World(4)
        world.start(1)
        if number == 0:
            client: Any = world.clients[VICTIM]
            client._entries[place] = entry % 2**32
        assert run(world.server, world.ask()) == {}
        found.append(world.server)
    return found


def test_a_group_whose_values_cannot_be_is_left_out_of_the_mean() -> None:
    config = FederateConfig.model_validate(
        {"cohort": 8, "secure": {"smallest": 4, "heaviest": 50, "largest": 40}}
    )
    combining = Combining(config, [f"c{n}" for n in range(8)], 5, simulated=True)
    spoiled, good = _groups(0, 2**29)
    combined = combining.across([spoiled, good], [], 0)
    np.testing.assert_allclose(combined.vector, good.mean())
    assert combined.clients == 4 and set(combined.refused) == set(spoiled.survivors())
    alone = combining.across([spoiled], [], 0)
    assert alone.clients == 0 and not alone.vector.any()


# In clear -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compress",
    [{}, {"bits": 16}, {"bits": 8}, {"bits": 2}, {"top_k": 0.1}, {"top_k": 0.1, "bits": 4}],
    ids=str,
)
def test_compression_keeps_updates_within_the_bound(compress: dict[str, Any]) -> None:
    """Rounding to few bits, and what waited for its turn, make updates longer."""
    privacy = PrivacyConfig(mechanism="gaussian", noise=1.0, clip=0.5)
    config = FederateConfig.model_validate({"compress": compress}).compress
    memory: dict[str, Any] = {}
    longest = 0.0
    for round, (shape, vector) in enumerate(updates(3000, 4.0, 12)):
        client = Client("c", round, 3, 1, 2, round)
        message = pack(Update(vector, 3.0), Message(), config, memory, client, privacy)
        arrays = {name.removeprefix("update."): a for name, a in message.arrays.items()}
        length = float(np.linalg.norm(decompress(arrays, 3000).astype(np.float64)))
        assert length <= 0.5 * (1 + 1e-6), shape
        longest = max(longest, length)
        assert message.values["weight"] == 1.0
    assert longest > 0.2
    assert bound_of(Message(), privacy) == 0.5
