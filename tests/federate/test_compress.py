"""Compression of updates: what is claimed of its mean, its memory, its bytes and its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import FederationError
from pfi.federate.compress import RESIDUAL, CompressConfig, compress, decompress
from pfi.federate.message import Array, Message

FORMS = [
    CompressConfig(),
    CompressConfig(bits=16),
    CompressConfig(bits=4, block=16),
    CompressConfig(top_k=0.1),
    CompressConfig(top_k=0.1, feedback=False),
    CompressConfig(top_k=0.25, bits=16, block=8),
    CompressConfig(top_k=0.25, bits=3, block=8),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def update(size: int = 200, seed: int = 1) -> np.ndarray:
    return (rng(seed).standard_t(2, size) * 0.01).astype(np.float32)


def sent(vector: np.ndarray, config: CompressConfig, memory: dict[str, Array], seed: int = 0):
    """What the server reads, after the message was really encoded."""
    data = Message(compress(vector, config, memory, rng(seed))).encode()
    return decompress(Message.decode(data).arrays, vector.size)


# What is sent ---------------------------------------------------------------------------


def test_without_compression_it_is_the_update() -> None:
    vector = update()
    np.testing.assert_array_equal(sent(vector, CompressConfig(), {}), vector)
    assert set(compress(vector, CompressConfig(), {}, rng())) == {"vector"}


def test_half_precision_is_of_shares_of_the_largest() -> None:
    """Numbers far below and beyond what float16 holds keep their digits."""
    for scale in (1e-9, 1.0, 1e9):
        vector = (update() * scale).astype(np.float32)
        found = sent(vector, CompressConfig(bits=16), {})
        spread = np.abs(vector).max()
        np.testing.assert_allclose(found, vector, rtol=2**-10, atol=spread * 1e-7)


def test_top_k_sends_the_largest_as_they_are() -> None:
    vector = update()
    found = sent(vector, CompressConfig(top_k=0.1), {})
    largest = np.argsort(-np.abs(vector))[:20]
    assert set(np.flatnonzero(found)) == set(largest)
    np.testing.assert_array_equal(found[largest], vector[largest])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_unbiased_and_as_noisy_as_claimed(bits: int) -> None:
    """Mean and variance over draws against ``p (1 - p) (norm / levels)²`` of the paper."""
    config, draws = CompressConfig(bits=bits, block=8), 4000
    vector = update(24)
    found = np.stack([sent(vector, config, {}, seed) for seed in range(draws)]).astype(float)
    levels = 2 ** (bits - 1) - 1
    norms = np.repeat(np.abs(vector.astype(float)).reshape(3, 8).max(1), 8)
    part = np.abs(vector) / norms * levels % 1
    deviation = np.sqrt(part * (1 - part)) * norms / levels
    assert np.abs(found.mean(0) - vector).max() < (4.5 * deviation / math.sqrt(draws)).max()
    # each number on its own
    assert (np.abs(found.mean(0) - vector) <= 4.5 * deviation / math.sqrt(draws) + 1e-8).all()
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.12, atol=norms.max() / levels / 30)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [2, 8, 16, 32])
def test_zeros_stay_zeros(bits: int) -> None:
    vector = np.concatenate([np.zeros(8), update(8), np.zeros(3)]).astype(np.float32)
    found = sent(vector, CompressConfig(bits=bits, block=8), {})
    assert not found[:8].any() and found[8:16].any() and not found[16:].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_every_number_is_a_level_next_to_it(bits: int) -> None:
    vector, levels = update(100), 2 ** (bits - 1) - 1
    found = sent(vector, CompressConfig(bits=bits, block=100), {})
    step = np.abs(vector).max() / levels
    assert np.abs(found - vector).max() < step
    np.testing.assert_allclose(found / step, np.round(found / step), atol=1e-4)
    assert len(np.unique(found)) <= 2 * levels + 1


# Bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "share"), [(2, 1), (4, 1), (7, 1), (16, 1), (32, 0.01), (4, 0.01)]
)
def test_bytes_are_those_of_the_bits(bits: int, share: float) -> None:
    size, block = 100_000, 256
    vector = update(size)
    config = CompressConfig(bits=bits, top_k=share, block=block)
    arrays = compress(vector, config, {}, rng())
    count = math.ceil(share * size)
    expected = math.ceil(count * bits / 8) + 16
    expected += 4 * math.ceil(count / block) if bits < 32 else 0
    if share < 1:
        places = np.flatnonzero(decompress(compress(vector, config.model_copy(update={"bits": 32}),
                                                    {}, rng()), size))  # fmt: skip
        longest = int(np.diff(places, prepend=-1).max()) - 1
        expected += math.ceil(count * longest.bit_length() / 8)
    assert sum(array.nbytes for array in arrays.values()) == expected
    whole = Message({"vector": vector}).size
    assert expected <= Message(arrays).size < expected + 600
    assert whole / Message(arrays).size > 0.9 * whole / expected * (0.8 if share < 1 else 1)


# Memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [c for c in FORMS if c.remembers and c.bits >= 16])
def test_what_was_sent_and_what_is_left_is_what_was_to_be_sent(config: CompressConfig) -> None:
    memory: dict[str, Array] = {}
    wanted, found = np.zeros(200), np.zeros(200)
    for seed in range(30):
        vector = update(seed=seed)
        wanted += vector
        found += sent(vector, config, memory, seed)
        assert memory[RESIDUAL].dtype == np.float32
        np.testing.assert_allclose(found + memory[RESIDUAL], wanted, atol=2e-6)
    assert np.linalg.norm(memory[RESIDUAL]) > 0.01  # something was left indeed


def test_the_noise_of_rounding_is_not_remembered() -> None:
    config, memory = CompressConfig(top_k=0.25, bits=2, block=8), dict[str, Array]()
    vector = update()
    exact: dict[str, Array] = {}
    sent(vector, config.model_copy(update={"bits": 32}), exact)
    sent(vector, config, memory)
    np.testing.assert_allclose(memory[RESIDUAL], exact[RESIDUAL], atol=1e-9)


@pytest.mark.parametrize("config", [c for c in FORMS if not c.remembers])
def test_nothing_is_remembered_without_need(config: CompressConfig) -> None:
    memory: dict[str, Array] = {}
    sent(update(), config, memory)
    assert not memory


def test_memory_of_another_size_is_not_used() -> None:
    memory = {RESIDUAL: np.ones(7, np.float32)}
    found = sent(update(), CompressConfig(top_k=0.1), memory)
    np.testing.assert_array_equal(found, sent(update(), CompressConfig(top_k=0.1), {}))
    assert memory[RESIDUAL].shape == (200,)


def test_an_update_that_is_not_finite_is_not_remembered() -> None:
    vector = update()
    vector[3] = np.nan
    memory: dict[str, Array] = {}
    with pytest.raises(FederationError, match="not finite"):
        compress(vector, CompressConfig(top_k=0.1), memory, rng())
    assert not memory


def descend(config: CompressConfig, steps: int = 800) -> float:
    """Distance to the least of a sum of two clients' quadratics, of which neither's is the least.

    Both have large gradients that cancel out, and small ones that do not: what is always the
    largest says nothing of the way down.
    """
    width = 40
    pull = np.zeros((2, width))
    pull[0, :4], pull[1, :4] = 9, -9
    pull[:, 4:] = rng(5).normal(size=width - 4)
    least, x = pull.mean(0), np.zeros(width)
    memories: list[dict[str, Array]] = [{}, {}]
    for step in range(steps):
        updates = [
            sent((0.01 * (p - x)).astype(np.float32), config, memory, step)
            for p, memory in zip(pull, memories, strict=True)
        ]
        x = x + np.mean(updates, axis=0)
    return float(np.linalg.norm(x - least) / np.linalg.norm(least))


def test_error_feedback_converges_and_its_lack_does_not() -> None:
    config = CompressConfig(top_k=0.1)
    assert descend(CompressConfig()) < 1e-3
    assert descend(config) < 0.15
    assert descend(config.model_copy(update={"feedback": False})) > 0.9


# Round trips ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=80),
    top_k=st.sampled_from([0.01, 0.3, 0.99, 1.0]),
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16, 32]),
    block=st.integers(8, 40),
    feedback=st.booleans(),
)
def test_what_is_read_is_what_was_sent(numbers, top_k, bits, block, feedback) -> None:
    vector = np.array(numbers, np.float32)
    config = CompressConfig(top_k=top_k, bits=bits, block=block, feedback=feedback)
    found = sent(vector, config, {})
    assert found.dtype == np.float32 and found.shape == vector.shape
    assert np.count_nonzero(found) <= math.ceil(top_k * vector.size)
    kept = np.flatnonzero(found)
    step = np.abs(vector).max() / (2 ** (min(bits, 11) - 1) - 1) if bits < 32 else 0
    assert (np.abs(found[kept].astype(float) - vector[kept]) <= step * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found, sent(vector, config, {}))  # the same generator, the same


# Refusals -------------------------------------------------------------------------------

SIZE = 200
SPARSE = CompressConfig(top_k=0.1, bits=4, block=8)


def broken(config: CompressConfig, **changes: object) -> dict[str, Array]:
    arrays = compress(update(), config, {}, rng())
    for name, change in changes.items():
        if change is None:
            del arrays[name]
        else:
            arrays[name] = change(arrays[name].copy())  # type: ignore[operator]
    return arrays


def put(value: object, place: int = 0):
    def change(array: Array) -> Array:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (CompressConfig(), {"vector": lambda a: a[:-1]}),
        (CompressConfig(), {"vector": lambda a: a.astype(np.float64)}),
        (CompressConfig(), {"vector": put(np.nan)}),
        (CompressConfig(), {"vector": None}),
        (SPARSE, {"how": lambda a: a[:3]}),
        (SPARSE, {"how": lambda a: a.astype(np.int64)}),
        (SPARSE, {"how": put(0, 0)}),
        (SPARSE, {"how": put(SIZE + 1, 0)}),
        (SPARSE, {"how": put(SIZE, 0)}),
        (SPARSE, {"how": put(9, 1)}),
        (SPARSE, {"how": put(1, 1)}),
        (SPARSE, {"how": put(0, 2)}),
        (SPARSE, {"how": put(7, 2)}),
        (SPARSE, {"how": put(2**32 - 1, 2)}),
        (SPARSE, {"how": put(33, 3)}),
        (SPARSE, {"how": put(2**32 - 1, 3)}),
        (SPARSE, {"gaps": None}),
        (SPARSE, {"gaps": lambda a: a[:-1]}),
        (SPARSE, {"gaps": lambda a: np.full_like(a, 255)}),
        (SPARSE, {"codes": None}),
        (SPARSE, {"codes": lambda a: a[:-1]}),
        (SPARSE, {"codes": put(255)}),
        (SPARSE, {"scales": None}),
        (SPARSE, {"scales": lambda a: a[:-1]}),
        (SPARSE, {"scales": put(np.nan)}),
        (SPARSE, {"scales": put(np.inf, -1)}),
        (SPARSE, {"scales": put(-1.0)}),
        (CompressConfig(bits=16), {"vector": put(np.inf)}),
        (CompressConfig(bits=16), {"vector": put(1.5)}),
        (CompressConfig(bits=16), {"vector": lambda a: a.astype(np.float32)}),
        (CompressConfig(bits=16), {"scales": put(np.nan)}),
        (CompressConfig(top_k=0.1), {"vector": put(np.inf)}),
        (CompressConfig(top_k=0.1), {"vector": lambda a: a[:-1]}),
    ],
)
def test_malformed_updates_are_refused(config: CompressConfig, changes: dict) -> None:
    decompress(broken(config), SIZE)
    with pytest.raises(FederationError):
        decompress(broken(config, **changes), SIZE)


def test_places_can_neither_be_repeated_nor_lie_outside() -> None:
    """The last place is the largest, so that one check holds for all; sums cannot wrap around."""
    numbers = np.ones(3, np.float32)
    for gaps in ([198, 0, 0], [2**32 - 1, 0, 0], [2**32 - 1, 2**32 - 1, 2**32 - 1]):
        arrays = {
            "how": np.array([3, 32, 256, 32], np.uint32),
            "gaps": np.array(gaps, "<u4").view(np.uint8),
            "vector": numbers,
        }
        with pytest.raises(FederationError, match="beyond"):
            decompress(arrays, 200)
    arrays["gaps"] = np.array([197, 0, 0], "<u4").view(np.uint8)
    assert np.flatnonzero(decompress(arrays, 200)).tolist() == [197, 198, 199]


@pytest.mark.parametrize(
    ("count", "bits", "block", "width"),
    [(0, 32, 256, 2), (0, 4, 256, 2), (3, 1, 8, 2), (3, 9, 8, 2), (3, 0, 8, 2), (3, 4, 8, 40)],
)
def test_senseless_sizes_are_refused_though_the_arrays_fit(
    count: int, bits: int, block: int, width: int
) -> None:
    arrays = {
        "how": np.array([count, bits, block, width], np.uint32),
        "gaps": np.zeros(-(-count * width // 8), np.uint8),
        "codes": np.zeros(-(-count * bits // 8), np.uint8),
        "vector": np.zeros(count, np.float32),
        "scales": np.ones(-(-count // block), np.float32),
    }
    with pytest.raises(FederationError):
        decompress(arrays, SIZE)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data) -> None:
    arrays = {
        "how": np.array(
            [data.draw(st.integers(0, 12)), data.draw(st.sampled_from([3, 8, 16, 32, 99])),
             data.draw(st.sampled_from([0, 8, 64])), data.draw(st.integers(0, 34))], np.uint32,
        )
    }  # fmt: skip
    for name in ("gaps", "codes"):
        if data.draw(st.booleans()):
            arrays[name] = np.frombuffer(data.draw(st.binary(max_size=40)), np.uint8)
    for name, kind in (("vector", np.float32), ("vector", np.float16), ("scales", np.float32)):
        if data.draw(st.booleans()):
            size = np.dtype(kind).itemsize * data.draw(st.integers(0, 12))
            arrays[name] = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), kind)
    try:
        found = decompress(arrays, 10)
    except FederationError:
        return
    assert found.shape == (10,) and np.isfinite(found).all()
