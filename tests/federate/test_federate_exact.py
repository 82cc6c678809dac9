"""Every strategy against averaging full matrices in float64; what the naive average loses.

Training is a random move of the factors: exactness is algebra and needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from federate_rounds import (
    LAYOUT,
    Member,
    averaged,
    changes,
    error,
    make,
    members,
    moved,
    play,
    products_of,
    stacked,
    whole,
    work,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import FederationError
from pfi.federate.layout import Layer, Layout
from pfi.federate.message import Message
from pfi.federate.strategies import STRATEGIES
from pfi.federate.strategies.svd import factors_of
from pfi.federate.strategy import Strategy
from pfi.federate.work import Client, State, Trained

#: Rules whose new state is the mean of the clients' whole products, and that say so.
EXACT = ["fedex", "ffa", "flexlora", "flora", "rolora"]
#: Those of them whose state moves by the mean of the clients' moves, round after round.
STEADY = [name for name in EXACT if name != "flexlora"]
#: Rules that average by examples, whatever else.
BY_EXAMPLES = ["average", *EXACT]
MIXED = ["fedex", "flexlora", "flora"]
SENDS_FACTORS = ["fedex", "flexlora", "flora", "hetlora"]
LIMIT = 1e-6


# Exactness ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_the_state_is_the_mean_of_full_matrices(name: str) -> None:
    strategy = make(name)
    state = strategy.start()
    for number in range(4):
        cohort = members(5, 1, 20, 3)
        state = play(strategy, state, cohort, number)
        assert error(products_of(strategy, state), averaged(cohort)) <= LIMIT


def test_the_naive_average_fails_the_same_test() -> None:
    strategy = make("average")
    cohort = members(5, 1, 20, 3)
    state = play(strategy, strategy.start(), cohort)
    assert error(products_of(strategy, state), averaged(cohort)) > 0.1


def test_what_strategies_say_of_themselves() -> None:
    for name, kind in STRATEGIES.items():
        assert kind.computes and len(kind.computes) < 200
        if name in EXACT:
            assert "exactly" in kind.computes
    assert "not the mean of the BA" in STRATEGIES["average"].computes
    assert "not the mean of the BA" in STRATEGIES["hetlora"].computes


@pytest.mark.parametrize("name", STEADY)
def test_rounds_go_on_as_full_matrices_would(name: str) -> None:
    """The full matrices never see the state, so nothing may get lost between rounds."""
    strategy = make(name)
    state, full = strategy.start(), [np.zeros((x.outputs, x.inputs)) for x in LAYOUT.layers]
    for number in range(3):
        cohort = members(7, 2, 30)
        before = full
        state = play(strategy, state, cohort, number)
        full = [a + b for a, b in zip(full, changes(cohort), strict=True)]
        assert error(products_of(strategy, state), full) <= LIMIT
        if number:
            assert all(error(member.start, before) <= LIMIT for member in cohort)
    assert error(strategy.model(state).products(), full) <= LIMIT


def test_the_naive_average_goes_astray_over_rounds() -> None:
    strategy = make("average")
    state, full = strategy.start(), [np.zeros((x.outputs, x.inputs)) for x in LAYOUT.layers]
    for number in range(3):
        cohort = members(7, 2, 30)
        state = play(strategy, state, cohort, number)
        full = [a + b for a, b in zip(full, changes(cohort), strict=True)]
    assert error(products_of(strategy, state), full) > 0.1


@pytest.mark.parametrize("name", MIXED)
def test_clients_of_mixed_ranks(name: str) -> None:
    strategy = make(name)
    state = strategy.start()
    for number in range(3):
        cohort = members(4, 9, 2, 6, ranks=[1, 4, 2, 3])
        state = play(strategy, state, cohort, number)
        assert error(products_of(strategy, state), averaged(cohort)) <= LIMIT
        for member in cohort:
            sent = member.sent.array("row", np.float32)
            assert sent.size == LAYOUT.with_rank(member.rank).width


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_rounds_of_mixed_ranks_lose_nothing(name: str) -> None:
    steady_rounds(make(name))


def test_flexlora_loses_nothing_when_it_keeps_what_was_cut() -> None:
    steady_rounds(make("flexlora", flexlora={"keep": True}))
    with pytest.raises(AssertionError):
        steady_rounds(make("flexlora"))


def steady_rounds(strategy: Strategy) -> None:
    state, full = strategy.start(), [np.zeros((x.outputs, x.inputs)) for x in LAYOUT.layers]
    for number in range(3):
        cohort = members(4, 9, 2, 6, ranks=[1, 4, 2, 3])
        state = play(strategy, state, cohort, number)
        full = [a + b for a, b in zip(full, changes(cohort), strict=True)]
        assert error(products_of(strategy, state), full) <= LIMIT


def test_flexlora_sends_the_best_approximation_of_each_rank() -> None:
    strategy = make("flexlora")
    state = play(strategy, strategy.start(), members(3, 3, 3, ranks=[2, 3, 4]))
    cohort = members(3, 3, 3, ranks=[2, 3, 4])
    play(strategy, state, cohort, 1)
    for member in cohort:
        for got, mean in zip(member.start, strategy.mean(state), strict=True):
            values = np.linalg.svd(mean, compute_uv=False)
            best = np.sqrt(np.square(values[member.rank :]).sum())
            assert np.linalg.norm(mean - got) == pytest.approx(best, rel=1e-5)
            assert np.linalg.matrix_rank(got, tol=1e-5) == member.rank


def test_fedsa_averages_a_and_never_sees_b() -> None:
    """A client's product moves by the mean A under its own B: full matrices, given that B."""
    strategy = make("fedsa")
    cohort, state = members(5, 1, 20), strategy.start()
    for number in range(3):
        state = play(strategy, state, cohort, number)
        shares = np.array([5, 1, 20]) / 26
        for member in cohort:
            assert sum(array.size for array in member.sent.arrays.values()) == LAYOUT.split
            message = strategy.broadcast(state, member.id, number)
            own = strategy.own_model(message, member.memory).products()
            b = np.concatenate([np.zeros(LAYOUT.split, np.float32), member.memory["b"]])
            for i in range(len(LAYOUT.layers)):
                a = sum(s * LAYOUT.a(m.row, i) for s, m in zip(shares, cohort, strict=True))
                full = LAYOUT.scale * LAYOUT.b(b, i).T @ np.float64(a)
                assert error([own[i]], [full]) <= LIMIT


def test_a_server_rate_scales_the_step_along_the_mean() -> None:
    for name in ("flora", "flexlora", "ffa"):
        strategy = make(name, server={"learning_rate": 0.5})
        cohort = members(5, 1)
        state = play(strategy, strategy.start(), cohort)
        half = [0.5 * full for full in averaged(cohort)]
        assert error(products_of(strategy, state), half) <= LIMIT


@pytest.mark.parametrize("name", SENDS_FACTORS)
@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam", "fedyogi", "fedadagrad"])
def test_server_optimisers_go_with_every_rule(name: str, optimizer: str) -> None:
    server = {"optimizer": optimizer, "learning_rate": 0.1, "momentum": 0.5}
    strategy = make(name, server=server)
    state = strategy.start()
    for number in range(2):
        state = play(strategy, state, members(5, 1), number)
    assert all(np.isfinite(array).all() for array in state.values())
    products = strategy.model(state).products()
    assert max(np.abs(product).max() for product in products) > 0


# Weights, order, who sent what ------------------------------------------------------------


@pytest.mark.parametrize("name", BY_EXAMPLES)
def test_clients_weigh_by_examples(name: str) -> None:
    """A client with three times the examples counts as three clients do."""
    strategy = make(name)
    state = strategy.start()
    cohort = members(30, 10)
    once = play(strategy, state, cohort)
    copies = [replace(cohort[0], examples=10) for _ in range(3)]

    taking = strategy.aggregate(state, 0)
    for n, member in enumerate([*copies, cohort[1]]):
        message = Message.decode(strategy.broadcast(state, member.id, 0).encode())
        taking.add(f"{member.id} {n}", work(strategy, member, message, 0))
    thrice = taking.result()[0]
    assert error(products_of(strategy, thrice), products_of(strategy, once)) <= LIMIT

    equal = play(strategy, state, [replace(member, examples=10) for member in cohort])
    assert error(products_of(strategy, equal), products_of(strategy, once)) > 0.1


@pytest.mark.parametrize("name", [*BY_EXAMPLES, "hetlora"])
def test_the_order_of_updates_does_not_matter(name: str) -> None:
    strategy = make(name)
    cohort = members(5, 1, 20, 3, 8)
    state = play(strategy, strategy.start(), cohort)
    for order in ([4, 2, 0, 1, 3], [1, 0, 3, 4, 2]):
        other = play(strategy, strategy.start(), [cohort[i] for i in order])
        for array in state:
            assert array == "ranks" or np.allclose(state[array], other[array], atol=1e-5)
        assert error(products_of(strategy, other), products_of(strategy, state)) <= LIMIT


@pytest.mark.parametrize("name", BY_EXAMPLES)
def test_ids_that_end_alike_are_different_clients(name: str) -> None:
    strategy = make(name)
    cohort = [Member("1", 5), Member("11", 40), Member("21", 3), Member("01", 9)]
    state = play(strategy, strategy.start(), cohort)
    by_digit = {member.id[-1]: member for member in cohort}
    if name != "average":
        assert error(products_of(strategy, state), averaged(cohort)) <= LIMIT
        assert error(products_of(strategy, state), averaged(list(by_digit.values()))) > 0.1


def test_ranks_are_remembered_by_whole_ids() -> None:
    strategy = make("flexlora")
    state = play(strategy, strategy.start(), [Member("1", 5, 1), Member("11", 5, 3)])
    widths = {
        name: strategy.broadcast(state, name, 1).array("row", np.float32).size
        for name in ("1", "11", "21")
    }
    wanted = {"1": 1, "11": 3, "21": 4}
    assert widths == {name: LAYOUT.with_rank(rank).width for name, rank in wanted.items()}


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"fedkseed"}))
def test_what_is_sent_is_what_training_gave(name: str) -> None:
    """Weights captured before training would not depend on it (fedkseed sends no weights)."""
    strategy = make(name)
    state = play(strategy, strategy.start(), members(5, 5))
    message = strategy.broadcast(state, "client 0", 1)
    one, two = members(5)[0], members(5)[0]
    first = work(strategy, one, message, 1)
    second = work(strategy, two, message, 1, lambda *a: moved(*a[:3], a[3] + 1))
    assert any((first.arrays[key] != second.arrays[key]).any() for key in first.arrays)


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_factors_are_sent_whole_and_as_trained(name: str) -> None:
    strategy = make(name)
    message = strategy.broadcast(strategy.start(), "a", 0)
    asking = strategy.work(message, {}, Client("a", 0, 5, 1, 3, 9))
    request = next(asking)
    row = moved(LAYOUT, request, 3, 1)
    with pytest.raises(StopIteration) as end:
        asking.send(Trained(row, 5, 1, 0.0))
    cut = LAYOUT.with_rank(3)
    assert (end.value.value.array("row", np.float32) == LAYOUT.resized(row, cut)).all()
    assert end.value.value.number("examples") == 5


# Published slips ----------------------------------------------------------------------------


def before_training(strategy: Strategy, state: State) -> State:
    """Uploads the factors that training began with."""
    return play(strategy, state, members(5, 1, 20), train=lambda _, request, *__: request.row)


@pytest.mark.parametrize("name", EXACT)
def test_weights_captured_before_training_would_be_seen(name: str) -> None:
    strategy = make(name)
    cohort = members(5, 1, 20)
    play(strategy, strategy.start(), cohort)
    slip = before_training(strategy, strategy.start())
    assert error(products_of(strategy, slip), averaged(cohort)) > 0.9


def test_stacking_with_the_weight_on_both_factors_would_be_seen() -> None:
    """``stacked`` and ``flora`` weigh one factor; weighing both is off by a wide margin."""
    strategy = make("flora")
    cohort = members(5, 1, 20)
    state = play(strategy, strategy.start(), cohort)
    rows = [member.sent.array("row", np.float32) for member in cohort]
    shares = np.array([5, 1, 20]) / 26
    layout, row = stacked(LAYOUT, list(zip(shares, rows, strict=True)))
    assert error(layout.products(row), averaged(cohort)) <= LIMIT
    assert error(products_of(strategy, state), averaged(cohort)) <= LIMIT
    twice = np.where(layout.mask("A"), 0, row)
    for n, share in enumerate(shares):
        ranks = slice(n * LAYOUT.rank, (n + 1) * LAYOUT.rank)
        twice += np.where(layout.mask("A", ranks), share * row, 0)
    assert error(layout.products(twice), averaged(cohort)) > 0.2


def test_a_transposed_svd_would_be_seen() -> None:
    """Known singular vectors, a square layer: transposing would fit, and be wrong."""
    rng = np.random.default_rng(0)
    layout = Layout((Layer("k", 6, 6),), 3, 2.0)
    left, right = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    values = np.array([8.0, 4, 2, 1, 0.5, 0.25])
    matrix = left * values @ right.T
    row = factors_of(layout, [matrix], 6, rng)
    best = left[:, :3] * values[:3] @ right[:, :3].T
    assert error(layout.products(row), [best]) <= LIMIT
    assert error(layout.products(row), [best.T]) > 0.5


@pytest.mark.parametrize("name", SENDS_FACTORS)
def test_another_scale_on_the_client_is_refused(name: str) -> None:
    server, client = make(name), make(name, replace(LAYOUT, scale=4.0))
    state = server.start()
    reply = work(client, members(5)[0], server.broadcast(state, "client 0", 0), 0)
    with pytest.raises(FederationError, match="scale 4"):
        server.aggregate(state, 0).add("client 0", reply)


def test_the_scale_is_the_same_for_all_ranks() -> None:
    """With ``alpha / rank`` of each client's own rank the mean would be another one."""
    strategy = make("flora")
    cohort = members(5, 5, ranks=[1, 4])
    state = play(strategy, strategy.start(), cohort)
    wrong = [[LAYOUT.rank / m.rank * product for product in m.end] for m in cohort]
    own = averaged([replace(m, end=end) for m, end in zip(cohort, wrong, strict=True)])
    assert error(products_of(strategy, state), averaged(cohort)) <= LIMIT
    assert error(products_of(strategy, state), own) > 0.2


# Properties -----------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(MIXED),
    keep=st.booleans(),
    sizes=st.lists(SIZES, min_size=1, max_size=3),
    rank=st.integers(1, 4),
    scale=st.floats(0.1, 10),
    clients=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 4)), min_size=1, max_size=5),
    rounds=st.integers(1, 2),
)
def test_exact_for_all_shapes_ranks_and_weights(
    name: str,
    keep: bool,
    sizes: Sequence[tuple[int, int]],
    rank: int,
    scale: float,
    clients: Sequence[tuple[int, int]],
    rounds: int,
) -> None:
    layers = tuple(Layer(f"layer {i}", *size) for i, size in enumerate(sizes))
    layout = Layout(layers, rank, scale)
    strategy = make(name, layout, flexlora={"keep": keep})
    state, full = strategy.start(), [np.zeros((x.outputs, x.inputs)) for x in layers]
    for number in range(rounds):
        counts = [count for count, _ in clients]
        cohort = members(*counts, ranks=[min(own, rank) for _, own in clients])
        state = play(strategy, state, cohort, number)
        if name == "flexlora" and not keep:
            full = averaged(cohort)
        else:
            full = [a + b for a, b in zip(full, changes(cohort), strict=True)]
        # What cancels out leaves the rounding of what was added, so that is the measure.
        size = max(np.linalg.norm(product) for member in cohort for product in member.end)
        for found, wanted in zip(products_of(strategy, state), full, strict=True):
            assert np.linalg.norm(found - wanted) <= 2 * LIMIT * max(size, 1e-3)


def test_whole_products_are_what_layout_says() -> None:
    """The measure itself, against a loop over numbers."""
    row = np.random.default_rng(0).normal(size=LAYOUT.width).astype(np.float32)
    for i, product in enumerate(whole(LAYOUT, row, None)):
        a, b = LAYOUT.a(row, i).astype(float), LAYOUT.b(row, i).astype(float)
        for y in range(product.shape[0]):
            for x in range(product.shape[1]):
                each = sum(b[r, y] * a[r, x] for r in range(LAYOUT.rank))
                assert product[y, x] == pytest.approx(2.0 * each, rel=1e-9, abs=1e-12)
