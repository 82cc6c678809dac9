"""Strategies with memory, turns, clusters or seeds, each against a plain reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federate_problem import Problem, Quadratic, Run, drive, quadratics, strategy_of

from pfi.errors import ConfigError, FederationError
from pfi.federate.message import Message
from pfi.federate.strategies.clusters import Sketch
from pfi.federate.strategies.kseed import Directions
from pfi.federate.work import Train, unpack

WIDTH, SPLIT = 36, 16
UPDATE = "update.vector"
OURS = ["ditto", "feddpa", "fedkseed", "fedsa", "ifca", "rolora", "scaffold", "similarity"]


def run_of(
    name: str,
    config: dict[str, Any] | None = None,
    clients: dict[str, Quadratic] | None = None,
    steps: int = 5,
) -> Run:
    strategy = strategy_of(name, config)
    found = clients or quadratics(strategy.layout.width, 4)
    return Run(strategy, Problem(found, 0.05, steps))


def trained_rows(run: Run, purpose: str = "shared") -> dict[str, np.ndarray]:
    """What clients' training ended with in the last round."""
    log = run.problem.log
    return {n: t.row for n, r, t in log if isinstance(r, Train) and r.purpose == purpose}


def mean_products(run: Run) -> list[np.ndarray]:
    """The mean of the clients' whole products, by examples."""
    rows, layout = trained_rows(run), run.strategy.layout
    weights = np.array([run.problem.clients[name].examples for name in rows], float)
    products = [layout.products(row) for row in rows.values()]
    shares = weights / weights.sum()
    return [sum(s * p[i] for s, p in zip(shares, products, strict=True)) for i in range(2)]


def off(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The relative error of products."""
    apart = sum(float(np.sum((f - w) ** 2)) for f, w in zip(found, wanted, strict=True))
    return (apart / sum(float(np.sum(w**2)) for w in wanted)) ** 0.5


# One factor at a time -----------------------------------------------------------------


def test_rolora_is_exact_in_every_round_and_the_average_is_not() -> None:
    run, naive = run_of("rolora"), run_of("average")
    for _ in range(4):
        run.go()
        assert off(run.strategy.model(run.state).products(), mean_products(run)) < 1e-6
    naive.go(2)
    assert off(naive.strategy.model(naive.state).products(), mean_products(naive)) > 1e-2


@pytest.mark.parametrize("server", [{}, {"momentum": 0.9}, {"optimizer": "fedadam"}])
def test_rolora_moves_one_factor_a_round_whatever_the_server_optimizer(
    server: dict[str, Any],
) -> None:
    run = run_of("rolora", {"server": server})
    for number in range(4):
        before = run.strategy.model(run.state).row
        run.go()
        moved = run.strategy.model(run.state).row != before
        a, b = np.split(moved, [SPLIT])
        moves, rests = (a, b) if number % 2 else (b, a)
        assert moves.all() and not rests.any()
        for reply in run.up[-4:]:  # of one size, so that whatever combines them need not know
            update = Message.decode(reply).arrays[UPDATE]
            assert update.size == 20 and np.count_nonzero(update) == (16 if number % 2 else 20)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"privacy": {"mechanism": "banded", "noise": 1.0}}, "privacy.mechanism"),
        ({"robust": {"rule": "centred-clipping"}}, "robust.rule"),
    ],
)
def test_rolora_refuses_what_leans_on_the_round_before(config: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        strategy_of("rolora", config)


def test_rolora_remembers_what_compression_left_out_for_each_factor() -> None:
    run = run_of("rolora", {"compress": {"top_k": 0.25}})
    whole = {part: np.zeros(20) for part in "BA"}
    sent = {part: np.zeros(20) for part in "BA"}
    for number in range(6):
        part, before = "BA"[number % 2], run.strategy.model(run.state).row
        run.go()
        change = trained_rows(run)["c0"] - before
        change = change[:SPLIT] if part == "A" else change[SPLIT:]
        whole[part][: len(change)] += change
        sent[part] += unpack(Message.decode(run.up[-4]), 20)[0]
    for part in "BA":
        left = run.memories["c0"][f"compress.residual{part}"]
        assert np.count_nonzero(left) >= 8
        np.testing.assert_allclose(sent[part] + left, whole[part], atol=1e-5)


def test_fedsa_equals_a_plain_loop() -> None:
    run = run_of("fedsa")
    a = run.state["a"].astype(np.float64)
    bs = {name: np.zeros(WIDTH - SPLIT) for name in run.problem.clients}
    for _ in range(3):
        run.go()
        total, weights = np.zeros(SPLIT), 0
        for name, problem in run.problem.clients.items():
            x = np.concatenate([a, bs[name]])
            for _ in range(5):
                x = x - 0.05 * problem.gradient(x)
            bs[name] = x[SPLIT:]
            total, weights = total + problem.examples * x[:SPLIT], weights + problem.examples
        a = total / weights
    np.testing.assert_allclose(run.state["a"], a, atol=1e-5)
    for name, b in bs.items():
        own = run.strategy.own_model(run.sent(name), run.memories[name]).row
        np.testing.assert_allclose(own, np.concatenate([a, b]), atol=1e-5)


def test_fedsa_b_never_leaves_its_client() -> None:
    run = run_of("fedsa")
    homely: set[float] = set()
    for _ in range(3):
        before = {name: m["b"] for name, m in run.memories.items()}
        run.go()
        for name, row in trained_rows(run).items():
            own = row[SPLIT:]
            homely |= {*own.tolist(), *(own - before.get(name, np.zeros_like(own))).tolist()}
    sent = [Message.decode(data) for data in [*run.up, *run.down]]
    seen = {value for m in sent for array in m.arrays.values() for value in array.ravel().tolist()}
    assert len(homely) > 200 and not homely & seen
    assert all(array.size == SPLIT for m in sent for array in m.arrays.values())
    assert set(run.state) == {"a"}  # the server has no B, and so none for newcomers
    assert not any(product.any() for product in run.strategy.model(run.state).products())


# Control variates ---------------------------------------------------------------------


def textbook_scaffold(
    run: Run, cohorts: list[list[str]], clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of 1910.06378 with option II, in the paper's units."""
    rate, steps = run.problem.rate, run.problem.steps
    x = run.strategy.start()["row"].astype(np.float64)
    c, own = np.zeros_like(x), {name: np.zeros_like(x) for name in run.problem.clients}
    for cohort in cohorts:
        moves, changes = [], []
        for name in cohort:
            y = x.copy()
            for _ in range(steps):
                y -= rate * (run.problem.clients[name].gradient(y) - own[name] + c)
            renewed = own[name] - c + (x - y) / (steps * rate)
            moves.append(y - x)
            changes.append(renewed - own[name])
            own[name] = renewed
        x = x + np.mean(moves, axis=0)
        c = c + len(cohort) / clients * np.mean(changes, axis=0)
    return x, c


def test_scaffold_equals_the_textbook() -> None:
    clients = quadratics(WIDTH, 6)
    run = run_of("scaffold", {"scaffold": {"clients": 6}, "cohort": 4}, clients)
    rng = np.random.default_rng(1)
    # Cohorts differ in size: the share of clients is of those that really took part.
    cohorts = [sorted(rng.choice(list(clients), 2 + n % 3, replace=False)) for n in range(8)]
    run.go(8, lambda n: cohorts[n])
    x, c = textbook_scaffold(run, cohorts, 6)
    np.testing.assert_allclose(run.state["row"], x, atol=2e-5)
    np.testing.assert_allclose(run.state["control"] / 0.05, c, atol=2e-4)


def test_scaffold_finds_the_optimum_that_drift_keeps_average_from() -> None:
    clients = quadratics(WIDTH, 4)
    clients = {n: Quadratic(c.hessian, c.best) for n, c in clients.items()}
    best = Problem(clients, 0.05, 20).optimum(equal=True)
    ends = {}
    for name in ("scaffold", "average"):
        run = run_of(name, {"scaffold": {"clients": 4}, "cohort": 4}, clients, steps=20)
        run.go(150)
        ends[name] = float(np.linalg.norm(run.state["row"] - best) / np.linalg.norm(best))
    assert ends["scaffold"] < 1e-4 and ends["average"] > 0.1
    # And with half of the clients a round.
    run = run_of("scaffold", {"scaffold": {"clients": 4}, "cohort": 2}, clients, steps=20)
    rng = np.random.default_rng(0)
    run.go(600, lambda _: sorted(rng.choice(list(clients), 2, replace=False)))
    assert np.linalg.norm(run.state["row"] - best) / np.linalg.norm(best) < 1e-3


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"local": {"optimizer": "adamw"}}, "local.optimizer"),
        ({"local": {"optimizer": "sgd", "prox": 0.1}}, "local.prox"),
        ({"spare": 0.2}, "spare"),
        ({"compress": {"bits": 8}}, "compress"),
        ({"privacy": {"mechanism": "gaussian", "noise": 1.0}}, "privacy"),
        ({"robust": {"rule": "median"}}, "robust"),
        ({"scaffold": {"clients": 3}}, "scaffold.clients"),
    ],
)
def test_scaffold_refuses_what_it_is_not_made_for(config: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        strategy_of("scaffold", config)


# Two adapters -------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 5.0])
def test_ditto_personal_rows_are_those_of_the_closed_form(strength: float) -> None:
    run = run_of("ditto", {"ditto": {"strength": strength}}, steps=50)
    run.go(10)
    shared = run.sent("c0").arrays["row"]
    run.go(1)
    for name, problem in run.problem.clients.items():
        hessian = problem.hessian + strength * np.eye(WIDTH)
        side = problem.hessian @ problem.best + strength * shared
        own = run.strategy.own_model(run.sent(name), run.memories[name]).row
        np.testing.assert_allclose(own, np.linalg.solve(hessian, side), atol=1e-3)


def test_ditto_shares_what_average_does() -> None:
    ditto, average = run_of("ditto"), run_of("average")
    ditto.go(3)
    average.go(3)
    np.testing.assert_array_equal(ditto.state["row"], average.state["row"])
    newcomer = ditto.strategy.own_model(ditto.sent("c0"), {}).row
    np.testing.assert_array_equal(newcomer, ditto.state["row"])


DUAL = {"dual": {"rank": 1, "when": "T"}}


def test_feddpa_shares_what_average_does_without_the_personal_half() -> None:
    run = run_of("feddpa", DUAL)
    layout, shared = run.strategy.layout, run.strategy.layout.with_rank(2)
    assert (layout.rank, shared.width, layout.width) == (3, 36, 54)
    mask = layout.mask(ranks=slice(0, 2))
    # The same problems seen from the shared half alone, the rest of the row being zero.
    places = layout.resized(np.arange(layout.width), shared)
    cut = {
        name: Quadratic(p.hessian[np.ix_(places, places)], np.zeros(36), p.examples)
        for name, p in run.problem.clients.items()
    }
    for name, p in run.problem.clients.items():
        pull = p.hessian[np.ix_(places, np.flatnonzero(~mask))] @ p.best[~mask]
        cut[name].best = p.best[places] + np.linalg.solve(cut[name].hessian, pull)
    alone = run_of("average", None, cut)
    alone.state = {"row": run.state["row"]}
    run.go(4)
    alone.go(4)
    np.testing.assert_allclose(run.state["row"], alone.state["row"], atol=1e-5)
    assert run.strategy.model(run.state).layout == shared


@pytest.mark.parametrize("when", ["T", "F"])
def test_feddpa_personal_half_is_trained_on_top_and_never_shows(when: str) -> None:
    run = run_of("feddpa", {"dual": {"rank": 1, "when": when}}, steps=200)
    other = run_of("feddpa", {"dual": {"rank": 1, "when": "F"}}, steps=200)
    run.go(3)
    shared = run.sent("c1")
    run.go(1)
    other.go(4)
    np.testing.assert_array_equal(run.state["row"], other.state["row"])
    assert run.strategy.finishes == (when == "F")
    if when == "F":
        shared = run.sent("c1")
        assert not any(run.memories.values())
        work = run.strategy.finish(shared, run.memories["c1"], run.client("c1"))
        drive(work, lambda request: run.problem.reply("c1", request))
    # The best that the third rank can do on top of the shared row as it was received.
    layout, problem = run.strategy.layout, run.problem.clients["c1"]
    row = run.strategy.own_model(shared, run.memories["c1"]).row
    own = layout.mask(ranks=slice(2, 3))
    bare = run.strategy.own_model(shared, {}).row
    np.testing.assert_array_equal(row[~own], bare[~own])
    assert not bare[own].any() and row[own].all()
    np.testing.assert_allclose(problem.gradient(row)[own], 0, atol=1e-2)


def test_feddpa_update_does_not_depend_on_what_is_at_home() -> None:
    run, other = run_of("feddpa", DUAL), run_of("feddpa", DUAL)
    other.memories["c0"] = {"personal": np.full(18, 7, np.float32)}
    replies = [r.work("c0", r.sent("c0")).encode() for r in (run, other)]
    assert replies[0] == replies[1]
    assert (run.memories["c0"]["personal"] != other.memories["c0"]["personal"]).any()


# Clusters -----------------------------------------------------------------------------


def planted(kinds: int, each: int, seed: int = 0) -> tuple[dict[str, Quadratic], np.ndarray]:
    """Clients of several kinds, in mixed order, and their kinds."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((kinds, WIDTH))
    kind = rng.permutation(np.repeat(np.arange(kinds), each))
    made = {}
    for n, k in enumerate(kind):
        best = centres[k] + 0.3 * rng.standard_normal(WIDTH)
        made[f"c{n}"] = Quadratic(np.diag(rng.uniform(0.5, 1.5, WIDTH)), best, 1 + n % 3)
    return made, kind


def same_groups(found: list[Any], kind: np.ndarray) -> bool:
    """Whether two divisions of clients are the same but for the names of the groups."""
    pairs = set(zip(found, kind.tolist(), strict=True))
    return len(pairs) == len(set(found)) == len(set(kind.tolist()))


@pytest.mark.parametrize("kinds", [2, 3])
def test_ifca_recovers_planted_clusters(kinds: int) -> None:
    clients, kind = planted(kinds, 5)
    run = run_of("ifca", {"clusters": {"count": kinds}}, clients, steps=20)
    run.go(30)
    found = [int(run.memories[name]["cluster"][0]) for name in clients]
    assert same_groups(found, kind)
    for cluster in range(kinds):
        names = [name for name, c in zip(clients, found, strict=True) if c == cluster]
        best = run.problem.optimum(names)
        row = run.state[f"row.{cluster}"]
        assert np.linalg.norm(row - best) < 0.1 * np.linalg.norm(best)
        own = run.strategy.own_model(run.sent(names[0]), run.memories[names[0]]).row
        np.testing.assert_array_equal(own, row)
    assert run.state["sizes"].tolist() == [5] * kinds


def test_ifca_clusters_are_averages_of_their_own_clients() -> None:
    clients, _ = planted(2, 4)
    run = run_of("ifca", None, clients)
    start = dict(run.state)
    run.go(1)
    for cluster in range(2):
        names = [n for n in clients if run.memories[n]["cluster"][0] == cluster]
        alone = run_of("average", None, {n: clients[n] for n in names} or clients)
        alone.state = {"row": start[f"row.{cluster}"]}
        alone.go(1 if names else 0)
        np.testing.assert_array_equal(alone.state["row"], run.state[f"row.{cluster}"])


def test_ifca_equal_losses_are_decided_by_name_so_that_every_row_is_trained() -> None:
    run = run_of("ifca", {"clusters": {"count": 3}})
    rows = [run.state[f"row.{n}"] for n in range(3)]
    assert all((rows[i] != rows[j]).any() for i, j in [(0, 1), (0, 2), (1, 2)])
    problem = Quadratic(np.zeros((WIDTH, WIDTH)), np.zeros(WIDTH))
    run.problem.clients = {f"c{n}": problem for n in range(30)}
    run.go(1)
    first = {name: int(m["cluster"][0]) for name, m in run.memories.items()}
    assert set(first.values()) == {0, 1, 2}
    run.go(1)
    assert first == {name: int(m["cluster"][0]) for name, m in run.memories.items()}


@pytest.mark.parametrize("cluster", [2, -1, 0.5, True, "0", None])
def test_ifca_refuses_a_cluster_that_there_is_none_of(cluster: Any) -> None:
    run = run_of("ifca")
    taking = run.strategy.aggregate(run.state, 0)
    values = {"weight": 1.0} | ({} if cluster is None else {"cluster": cluster})
    with pytest.raises(FederationError):
        taking.add("c0", Message({UPDATE: np.ones(WIDTH, np.float32)}, values))
    state, _ = taking.result()
    assert all((state[key] == array).all() for key, array in run.state.items())


def test_ifca_without_a_finite_loss_is_refused() -> None:
    run = run_of("ifca")
    work = run.strategy.work(run.sent("c0"), {}, run.client("c0"))
    with pytest.raises(FederationError, match="not finite"):
        drive(work, lambda request: [float("nan")] * 2)


@pytest.mark.parametrize("kinds", [2, 3])
def test_similarity_recovers_planted_clusters_and_places_who_joins_later(kinds: int) -> None:
    clients, kind = planted(kinds, 6, seed=3)
    late = {f"c{int(np.flatnonzero(kind == k)[-1])}" for k in range(kinds)}
    run = run_of("similarity", {"clusters": {"count": kinds, "together": 3}}, clients)
    early = [name for name in clients if name not in late]
    run.go(3, lambda _: early)
    alone = run_of("average", None, {n: clients[n] for n in early})
    alone.go(3)
    np.testing.assert_array_equal(run.state["row"], alone.state["row"])
    together = run.state["row"]
    names = lambda: dict(zip(_known(run), run.state["clusters"].tolist(), strict=True))  # noqa: E731
    assert same_groups([names()[n] for n in early], kind[[int(n[1:]) for n in early]])
    newcomer = sorted(late)[0]
    np.testing.assert_array_equal(run.sent(newcomer).arrays["row"], together)
    sketches = run.state["sketches"]
    run.go(20)
    np.testing.assert_array_equal(run.state["sketches"][: len(early)], sketches)
    assert same_groups([names()[n] for n in clients], kind)
    for k in range(kinds):
        members = [n for n, own in zip(clients, kind, strict=True) if own == k]
        row = run.sent(members[0]).arrays["row"]
        best = run.problem.optimum(members)
        assert np.linalg.norm(row - best) < 0.1 * np.linalg.norm(best)
        assert all((run.sent(n).arrays["row"] == row).all() for n in members)


def _known(run: Run) -> list[str]:
    import json

    return json.loads(run.state["clients"].tobytes())


def test_similarity_does_not_depend_on_the_order_of_replies() -> None:
    clients, _ = planted(2, 5)
    ends = []
    for turn in (1, -1):
        run = run_of("similarity", {"clusters": {"together": 2}}, clients)
        run.go(4, lambda _, turn=turn: list(clients)[::turn])
        ends.append(run.state)
    assert ends[0].keys() == ends[1].keys()
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-6)


def test_similarity_waits_until_it_knows_two_clients_for_each_cluster() -> None:
    run = run_of("similarity", {"clusters": {"together": 1}})
    run.go(2, lambda _: ["c0", "c1", "c2"])
    assert "row.0" not in run.state and run.state["clusters"].tolist() == [-1] * 3
    run.go(1, lambda _: ["c0", "c3"])
    assert "row.1" in run.state and set(run.state["clusters"].tolist()) == {0, 1}


def test_similarity_sketches_preserve_cosines() -> None:
    sketch = Sketch(20_000, 1024, seed=0)
    rng = np.random.default_rng(0)
    one = rng.standard_normal(20_000).astype(np.float32)
    for wanted in (-0.9, 0.0, 0.5, 1.0):
        other = wanted * one + (1 - wanted**2) ** 0.5 * rng.standard_normal(20_000)
        found = sketch.of(one) @ sketch.of(other.astype(np.float32))
        assert abs(found - wanted) < 0.12


# Seeds --------------------------------------------------------------------------------


def test_fedkseed_sums_directions_as_a_loop_does() -> None:
    directions = Directions(1001, 37, seed=5)
    coefficients = np.random.default_rng(0).standard_normal(37)
    coefficients[8:16] = 0
    looped = sum(c * directions.one(k).astype(np.float64) for k, c in enumerate(coefficients))
    np.testing.assert_allclose(directions.sum(coefficients), looped, atol=1e-12)


def test_fedkseed_directions_are_random_signs_that_differ_by_seed() -> None:
    drawn = np.stack([Directions(4000, 40, seed=5).one(k) for k in range(40)])
    assert set(drawn.ravel().tolist()) == {-1.0, 1.0}
    alike = drawn @ drawn.T / 4000 - np.eye(40)
    assert abs(alike).max() < 5 / 4000**0.5 and abs(drawn.mean()) < 5 / 160_000**0.5
    assert (Directions(4000, 40, seed=6).one(0) != drawn[0]).any()


def test_fedkseed_replay_equals_averaging_whole_rows() -> None:
    config = {"kseed": {"seeds": 64, "learning_rate": 0.01 * WIDTH}}
    run = run_of("fedkseed", config, steps=20)
    for _ in range(3):
        run.go()
        total, weights = np.zeros(WIDTH), 0
        for name, problem in run.problem.clients.items():
            *_, (_, request, (up, down)) = [entry for entry in run.problem.log if entry[0] == name]
            middle = (request.rows[0].astype(np.float64) + request.rows[1]) / 2
            apart = (request.rows[0].astype(np.float64) - request.rows[1]) / 2
            end = middle - 0.01 * (up - down) / 2e-3 * np.sign(apart)
            total, weights = total + problem.examples * end, weights + problem.examples
        mean = total / weights
        row = run.strategy.model(run.state).row
        assert np.linalg.norm(row - mean) / np.linalg.norm(mean) < 1e-6


def test_fedkseed_learns_by_slopes_alone() -> None:
    run = run_of("fedkseed", {"kseed": {"seeds": 256, "learning_rate": 0.15}}, steps=50)

    def loss() -> float:
        row = run.strategy.model(run.state).row
        return sum(p.examples * p.loss(row) for p in run.problem.clients.values())

    before = loss()
    run.go(10)
    best = sum(p.examples * p.loss(run.problem.optimum()) for p in run.problem.clients.values())
    assert loss() - best < 0.2 * (before - best)


def test_fedkseed_without_a_finite_loss_is_refused() -> None:
    run = run_of("fedkseed")
    work = run.strategy.work(run.sent("c0"), {}, run.client("c0"))
    with pytest.raises(FederationError, match="not finite"):
        drive(work, lambda request: [float("inf"), 1.0])


# All of them --------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_round_that_is_repeated_gives_the_same_reply_from_the_same_memory(name: str) -> None:
    run = run_of(name)
    run.go(2)
    before = {client: dict(memory) for client, memory in run.memories.items()}
    # What is kept and what is sent is read-only here, so work that changes it in place fails.
    for client in run.problem.clients:
        message = run.sent(client)
        first = run.work(client, message).encode()
        after = run.memories[client]
        run.memories[client] = dict(before[client])
        assert run.work(client, message).encode() == first
        for kept, array in after.items():
            np.testing.assert_array_equal(array, run.memories[client][kept])
    assert run.strategy.stateful == any(run.memories.values())


# Numbers of float32 that a client is sent and sends, for a row of 36 with a split at 16.
NUMBERS = {
    "average": (36, 36),
    "ditto": (36, 36),
    "feddpa": (36, 36),
    "fedkseed": (4096, 4096),
    "fedsa": (16, 16),
    "ifca": (2 * 36, 36),
    "rolora": (36, 20),
    "scaffold": (2 * 36, 2 * 36),
    "similarity": (36, 36),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_bytes_up_and_down_are_as_few_as_stated(name: str) -> None:
    run = run_of(name)
    run.go(1)
    down, up = NUMBERS[name]
    assert all(0 <= len(data) - 4 * down <= 240 for data in run.down)
    assert all(0 <= len(data) - 4 * up <= 240 for data in run.up)
    assert run.strategy.broadcast(run.state, "c0", 1) is run.strategy.broadcast(run.state, "c0", 1)


@pytest.mark.parametrize("name", OURS)
def test_malformed_messages_are_refused_on_both_sides(name: str) -> None:
    run = run_of(name)
    good = run.sent("c0")
    for key, array in good.arrays.items():
        for bad in (array[..., :-1], array.astype(np.float64), None):
            arrays = {k: a for k, a in good.arrays.items() if k != key}
            message = Message(arrays | ({} if bad is None else {key: bad}), good.values)
            with pytest.raises(FederationError):
                run.work("c0", message)
    assert not run.memories["c0"]
    reply = run.work("c0", good)
    taking = run.strategy.aggregate(run.state, 0)
    update = reply.arrays[UPDATE]
    for bad in (update[:-1], update.astype(np.float64), np.append(update, update[:1])):
        with pytest.raises(FederationError):
            taking.add("c0", Message({UPDATE: bad}, reply.values))
    with pytest.raises(FederationError):
        taking.add("c0", Message({}, reply.values))


@pytest.mark.parametrize("name", ["ditto", "feddpa", "fedsa", "ifca", "scaffold"])
def test_what_was_kept_under_other_settings_is_refused(name: str) -> None:
    run = run_of(name)
    run.go(1)
    run.memories["c0"] = {key: array[:-1] for key, array in run.memories["c0"].items()}
    with pytest.raises(FederationError, match="what a client kept"):
        if name == "ifca":  # only read to answer, as every round chooses anew
            run.strategy.own_model(run.sent("c0"), run.memories["c0"])
        else:
            run.work("c0", run.sent("c0"))


@pytest.mark.parametrize("name", ["ifca", "similarity"])
def test_a_bad_update_is_left_out_of_its_cluster(name: str) -> None:
    run, clean = run_of(name), run_of(name)
    states = []
    for r, names in ((run, ["c0", "c1", "c2", "c3"]), (clean, ["c0", "c1", "c2"])):
        taking = r.strategy.aggregate(r.state, 0)
        for client in names:
            reply = r.work(client, r.sent(client))
            if client == "c3":
                bad = np.full(WIDTH, np.nan, np.float32)
                with pytest.raises(FederationError, match="not finite"):
                    taking.add(client, Message({UPDATE: bad}, reply.values))
                reply = Message(reply.arrays, {**reply.values, "weight": 0.0})
            taking.add(client, reply)
        state, combined = taking.result()
        assert combined is not None and combined.clients == 3
        assert list(combined.refused) == names[3:]
        states.append(state)
    for key, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][key])
