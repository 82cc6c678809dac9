"""What strategies send that cut, stack or add to a base: what is refused, kept and counted.

That their means are exact is in ``test_federate_exact.py``.
"""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from federate_rounds import LAYOUT, error, make, members, play, work
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import FederationError
from pfi.federate.aggregate.products import pack_base, thin, unpack_base
from pfi.federate.layout import Layer, Layout
from pfi.federate.message import Message
from pfi.federate.strategies.hetero import product_norm
from pfi.federate.work import Client

SENDS_FACTORS = ["fedex", "flexlora", "flora", "hetlora"]
LIMIT = 1e-6


# HetLoRA ------------------------------------------------------------------------------------


def test_hetlora_weighs_padded_factors_by_the_norm_of_their_product() -> None:
    strategy = make("hetlora")
    cohort = members(5, 1, 20, ranks=[2, 4, 3])
    state = play(strategy, strategy.start(), cohort)
    total, norms = np.zeros(LAYOUT.width), 0.0
    for member in cohort:
        cut = LAYOUT.with_rank(member.rank)
        row = member.sent.array("row", np.float32)
        norm = float(np.sqrt(sum(np.square(product).sum() for product in cut.products(row))))
        assert product_norm(cut, row) == pytest.approx(norm, rel=1e-9)
        total, norms = total + norm * cut.resized(row, LAYOUT), norms + norm
    assert np.allclose(state["row"], total / norms, atol=1e-6)
    by_examples = make("hetlora", hetlora={"weights": "examples"})
    other = play(by_examples, strategy.start(), cohort)
    assert not np.allclose(state["row"], other["row"], atol=1e-3)


def test_hetlora_cuts_to_the_client_and_leaves_ranks_that_nobody_sent() -> None:
    strategy = make("hetlora")
    start = strategy.start()
    cohort = members(5, 5, ranks=[2, 1])
    state = play(strategy, start, cohort)
    beyond = LAYOUT.mask(ranks=slice(2, None))
    assert (state["row"][beyond] == start["row"][beyond]).all()
    assert (state["row"][~beyond] != start["row"][~beyond]).any()
    cut = LAYOUT.with_rank(2)
    sent = strategy.broadcast(state, "client 0", 1).array("row", np.float32)
    assert (sent == LAYOUT.resized(state["row"], cut)).all()


def test_hetlora_prunes_ranks_that_shrink() -> None:
    strategy = make("hetlora", hetlora={"keep": 0.5})
    state = play(strategy, strategy.start(), members(5, 5))

    def shrink(layout: Layout, request: object, *_: object) -> np.ndarray:
        row = request.row.copy()  # type: ignore[attr-defined]
        row[layout.mask(ranks=slice(2, None))] *= 0.9
        return row

    def grow(layout: Layout, request: object, *_: object) -> np.ndarray:
        return request.row * 1.1  # type: ignore[attr-defined]

    message = strategy.broadcast(state, "client 0", 1)
    assert work(strategy, members(5)[0], message, 1, grow).number("rank") == 4
    assert work(strategy, members(5)[0], message, 1, shrink).number("rank") == 2
    never = make("hetlora")
    assert work(never, members(5)[0], message, 1, shrink).number("rank") == 4

    state = play(strategy, state, members(5), 1, train=shrink)
    assert strategy.broadcast(state, "client 0", 2).number("rank") == 2
    assert strategy.broadcast(state, "client 1", 2).number("rank") == 4


def test_hetlora_adds_the_gradient_of_its_penalty() -> None:
    strategy = make("hetlora", hetlora={"keep": 0.5, "penalty": 0.3})
    state = play(strategy, strategy.start(), members(5, 5))
    row = state["row"].astype(np.float64)

    def penalty(row: np.ndarray) -> float:
        parts = ((LAYOUT.a(row, i)[2:], LAYOUT.b(row, i)[2:]) for i in range(len(LAYOUT.layers)))
        return sum(0.3 * np.linalg.norm(a) * np.linalg.norm(b) for a, b in parts)

    request = next(strategy.work(strategy.broadcast(state, "a", 1), {}, Client("a", 1, 5, 1, 4, 0)))
    for at in np.random.default_rng(0).choice(LAYOUT.width, 60, replace=False):
        up, down = row.copy(), row.copy()
        up[at] += 1e-5
        down[at] -= 1e-5
        slope = (penalty(up) - penalty(down)) / 2e-5
        assert request.correction[at] == pytest.approx(slope, abs=1e-5)


# Messages -----------------------------------------------------------------------------------


def ones(rank: int) -> np.ndarray:
    """A row of that rank, so that nothing but the rank is wrong."""
    return np.ones(LAYOUT.with_rank(rank).width, np.float32)


BAD = {
    "no row": lambda a, v: (a.pop("row"), None),
    "too wide": lambda a, v: (a.update(row=np.zeros(LAYOUT.width + 1, np.float32)), None),
    "of another type": lambda a, v: (a.update(row=a["row"].astype(np.float64)), None),
    "not finite": lambda a, v: (a.update(row=np.full_like(a["row"], np.nan)), None),
    "of a rank beyond": lambda a, v: (a.update(row=ones(5)), v.update(rank=5)),
    "of no rank": lambda a, v: (a.update(row=ones(0)), v.update(rank=0)),
    "of half a rank": lambda a, v: (a.update(row=ones(1)), v.update(rank=1.5)),
    "of another rank than it says": lambda a, v: v.update(rank=2),
    "without a rank": lambda a, v: v.pop("rank"),
    "without examples": lambda a, v: v.update(examples=0),
    "of negative examples": lambda a, v: v.update(examples=-3),
    "of endless examples": lambda a, v: v.update(examples=float("inf")),
    "of far too many examples": lambda a, v: v.update(examples=1e300),
    "of another scale": lambda a, v: v.update(scale=1.0),
    "without a scale": lambda a, v: v.pop("scale"),
}


@pytest.mark.parametrize("name", SENDS_FACTORS)
@pytest.mark.parametrize("what", BAD)
def test_a_malformed_update_is_refused_and_leaves_nothing_behind(name: str, what: str) -> None:
    strategy = make(name)
    state = strategy.start()
    good, bad = members(5, 7)
    message = strategy.broadcast(state, good.id, 0)
    sent = work(strategy, bad, message, 0)
    arrays, values = dict(sent.arrays), dict(sent.values)
    BAD[what](arrays, values)
    taking = strategy.aggregate(state, 0)
    taking.add(good.id, work(strategy, good, message, 0))
    with pytest.raises(FederationError):
        taking.add(bad.id, Message(arrays, values))
    alone = play(strategy, strategy.start(), [good])
    found = taking.result()[0]
    assert set(found) == set(alone)
    assert all((found[key] == alone[key]).all() for key in alone)


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_a_client_trains_within_its_rank(name: str) -> None:
    strategy = make(name)
    message = strategy.broadcast(strategy.start(), "a", 0)
    request = next(strategy.work(message, {}, Client("a", 0, 5, 1, 2, 7)))
    beyond = LAYOUT.mask(ranks=slice(2, None))
    if name == "fedex":
        assert not request.mask[beyond].any() and request.mask[~beyond].all()
    else:
        assert request.row[~beyond].any() and not request.row[beyond].any()


@pytest.mark.parametrize("name", ["flexlora", "hetlora"])
@pytest.mark.parametrize("rank", [0, 1.5, 5])
def test_a_client_refuses_a_broadcast_of_a_rank_that_there_is_none_of(
    name: str, rank: float
) -> None:
    message = Message({"row": ones(int(rank))}, {"rank": rank})
    with pytest.raises(FederationError, match="rank"):
        next(make(name).work(message, {}, Client("a", 0, 5, 1, 4, 0)))


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_a_second_update_of_a_client_is_refused(name: str) -> None:
    strategy = make(name)
    state = strategy.start()
    taking = strategy.aggregate(state, 0)
    sent = work(strategy, members(5)[0], strategy.broadcast(state, "a", 0), 0)
    taking.add("a", sent)
    taking.add("b", sent)
    with pytest.raises(FederationError, match="second update"):
        taking.add("a", sent)


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_a_round_without_updates_leaves_the_state(name: str) -> None:
    strategy = make(name)
    state = play(strategy, strategy.start(), members(5))
    assert strategy.aggregate(state, 1).result()[0] is state


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_no_clients_factors_are_kept(name: str) -> None:
    strategy = make(name)
    state = strategy.start()
    taking = strategy.aggregate(state, 0)
    row = np.array(
        work(strategy, members(5)[0], strategy.broadcast(state, "a", 0), 0).arrays["row"]
    )
    gone = weakref.ref(row)
    values = {"rank": 4, "scale": LAYOUT.scale, "examples": 5}
    taking.add("a", Message({"row": row}, values))
    del row
    assert gone() is None


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_clients_that_are_sent_the_same_get_one_message(name: str) -> None:
    strategy = make(name)
    state = play(strategy, strategy.start(), members(5, 5))
    assert strategy.broadcast(state, "client 0", 1) is strategy.broadcast(state, "client 1", 1)
    other = play(strategy, state, members(5, 5), 1)
    assert strategy.broadcast(other, "client 0", 2) is not strategy.broadcast(state, "client 0", 1)


def test_a_state_lives_on_as_a_checkpoint() -> None:
    for name in SENDS_FACTORS:
        strategy = make(name)
        state = play(strategy, strategy.start(), members(5, 3))
        again = dict(Message.decode(Message(state).encode()).arrays)
        one = play(strategy, state, members(5, 3), 1)
        two = play(make(name), again, members(5, 3), 1)
        assert set(one) == set(two) and all((one[key] == two[key]).all() for key in one)


# A base in a message --------------------------------------------------------------------------

WIDE = Layout((Layer("a", 40, 60), Layer("b", 50, 30)), 2, 1.0)


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_a_base_is_sent_in_the_smaller_form(name: str) -> None:
    strategy = make(name, WIDE)
    state, sizes = strategy.start(), []
    assert strategy.base(strategy.broadcast(state, "a", 0)) is None
    full = 4 * sum(layer.inputs * layer.outputs for layer in WIDE.layers)
    for number in range(14):
        state = play(strategy, state, members(5, 3, ranks=[2, 2]), number)
        message = Message.decode(strategy.broadcast(state, "a", 1).encode())
        base = strategy.base(message)
        assert error(base, strategy.model(state).base) <= LIMIT
        sizes.append(sum(v.nbytes for k, v in message.arrays.items() if k.startswith("base")))
    added = {"flora": 2 + 2, "fedex": 2}[name]
    assert sizes[0] == 4 * added * sum(layer.inputs + layer.outputs for layer in WIDE.layers)
    assert sizes == sorted(sizes) and sizes[-1] == full


def test_a_single_client_adds_nothing_to_the_base_of_fedex() -> None:
    strategy = make("fedex", WIDE)
    state = play(strategy, strategy.start(), members(5, ranks=[2]))
    assert strategy.held(state) is None
    state = play(strategy, state, members(5, 3, ranks=[2, 2]), 1)
    after = play(strategy, state, members(5, ranks=[2]), 2)
    assert all(
        (a == b).all() for a, b in zip(strategy.held(state), strategy.held(after), strict=True)
    )


@pytest.mark.parametrize("ranks", [[2, 2, 2], [4, 1, 1], [3, 4, 2], [4, 4, 1], [1, 1, 1]])
@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_no_layer_of_a_base_exceeds_its_rank(name: str, ranks: list[int]) -> None:
    layout = Layout((Layer("a", 40, 60), Layer("b", 50, 40)), 4, 1.0)
    strategy = make(name, layout)
    state = strategy.start()
    for number in range(2):
        state = play(strategy, state, members(5, 3, 9, ranks=ranks), number)
        for matrix in strategy.held(state):
            assert np.linalg.matrix_rank(matrix, tol=1e-5) == state["rank"][0]


def test_thin_factors_are_never_a_guess() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 30))
    left, right = thin(matrix, 5)
    assert np.abs(left @ right - matrix).max() < 1e-12
    assert thin(matrix, 4) is None  # its rank is larger
    assert thin(matrix, 18) is None  # no smaller than the matrix
    left, right = thin(np.zeros((40, 30)), 2)
    assert not (left @ right).any()


@pytest.mark.parametrize(
    "arrays",
    [
        {"base.0": np.zeros((60, 40), np.float32)},  # the second layer is missing
        {"base.0": np.zeros((40, 60), np.float32), "base.1": np.zeros((30, 50), np.float32)},
        {"base.0": np.zeros((60, 40), np.float64), "base.1": np.zeros((30, 50), np.float32)},
        {"base.0": np.full((60, 40), np.inf, np.float32), "base.1": np.zeros((30, 50), np.float32)},
        {
            "base.0.left": np.zeros((60, 3), np.float32),
            "base.0.right": np.zeros((2, 40), np.float32),
            "base.1": np.zeros((30, 50), np.float32),
        },
        {
            "base.0.left": np.zeros((60, 3), np.float32),
            "base.0.right": np.zeros((3, 41), np.float32),
            "base.1": np.zeros((30, 50), np.float32),
        },
        {
            "base.0.left": np.zeros((60, 3), np.float32),
            "base.1": np.zeros((30, 50), np.float32),
        },
    ],
)
def test_a_malformed_base_is_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(FederationError):
        unpack_base(Message(arrays), WIDE)


def test_a_base_of_zeros_and_one_of_noise_survive_sending() -> None:
    rng = np.random.default_rng(0)
    for base in (
        [np.zeros((60, 40), np.float32), np.zeros((30, 50), np.float32)],
        [rng.normal(size=(60, 40)).astype(np.float32), np.zeros((30, 50), np.float32)],
    ):
        sent = unpack_base(Message.decode(Message(pack_base(base, 3)).encode()), WIDE)
        assert all((a == b).all() for a, b in zip(base, sent, strict=True))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    outputs=st.integers(1, 30),
    inputs=st.integers(1, 30),
    rank=st.integers(1, 12),
    size=st.floats(1e-12, 1e12),
    seed=st.integers(0, 99),
)
def test_thin_factors_are_exact_or_none(
    outputs: int, inputs: int, rank: int, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = size * rng.normal(size=(outputs, rank)) @ rng.normal(size=(rank, inputs))
    found = thin(matrix, rank)
    small = rank * (outputs + inputs) < outputs * inputs
    assert (found is not None) == small
    if found:
        assert error([found[0] @ found[1]], [matrix]) < 1e-10
