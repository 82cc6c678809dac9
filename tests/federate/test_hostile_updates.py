"""Nobody alone ends or poisons a run: what clients may send, and what a run may come to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.errors import FederationError
from pfi.federate.aggregate.bounds import LARGEST_NUMBER, LARGEST_WEIGHT
from pfi.federate.aggregate.mean import WeightedMean
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation
from pfi.federate.strategies import STRATEGIES
from pfi.federate.strategy import Strategy
from pfi.federate.work import Losses
from tests.helpers.federate_rounds import LAYOUT, make, members, play, work

Change = Callable[[str, Message], Message]
#: What a client may claim of itself, none of which may stay in a sum.
CLAIMS: list[Any] = [
    1e308, 1e300, 1e30, 1e12, -1e308, -1.0, 0.0, math.inf, -math.inf, math.nan,
    10**30, 10**400, -(10**400), True, "5", "",
]  # fmt: skip


class Stand:
    """A fleet of members without a model; a change alters what they send."""

    def __init__(self, strategy: Strategy, change: Change, count: int = 5) -> None:
        self.strategy, self.change = strategy, change
        self.members = {member.id: member for member in members(*range(3, 3 + count))}
        self.asked: list[str] = []

    def clients(self) -> Sequence[str]:
        return list(self.members)

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for name, data in messages.items():
            message = Message.decode(data)
            self.asked.append(str(message.values["kind"]))
            if message.values["kind"] == "evaluate":
                reply = Message(values={"loss": 1.0, "examples": 4})
            else:
                reply = work(self.strategy, self.members[name], message, round)
            changed = self.change(name, reply)
            yield name, changed if isinstance(changed, Failure) else changed.encode()


def federation(
    out: Path, change: Change, name: str = "average", **settings: Any
) -> tuple[Federation, Stand]:
    given = {"cohort": 5, "rounds": 3, "held_out": 0, "evaluate_every": 1, **settings}
    strategy = make(name, **given)
    fleet = Stand(strategy, change, given["cohort"] if not given["held_out"] else 12)
    return Federation(strategy.config, strategy, fleet, out), fleet


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]


def only(client: str, change: Callable[[Message], Any]) -> Change:
    """One client's change of its updates."""
    return lambda name, sent: change(sent) if name == client and sent.arrays else sent


def finite(state: Mapping[str, np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in state.values() if array.dtype.kind == "f")


# What enters a sum ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "claim"),
    [("average", claim) for claim in CLAIMS]
    + [(name, claim) for name in ("flora", "hetlora", "ifca") for claim in (1e308, 10**400)],
    ids=lambda value: str(value)[:12],
)
def test_a_claim_costs_its_sender_the_round_and_nobody_else(
    tmp_path: Path, name: str, claim: Any
) -> None:
    def lying(sent: Message) -> Message:
        stated = {key: claim for key in ("weight", "examples") if key in sent.values}
        return Message(sent.arrays, {**sent.values, **stated})

    bad = federation(tmp_path / "bad", only("client 0", lying), name)[0]
    without = federation(tmp_path / "ok", only("client 0", lambda _: Failure("gone")), name)[0]
    got, wanted = bad.run(), without.run()
    for event in events(tmp_path / "bad"):
        assert event["clients"] == 4 and event["kept"]
        assert {**event["failed"], **event["refused"]}.keys() == {"client 0"}
    assert all((got[key] == wanted[key]).all() for key in wanted)


@pytest.mark.parametrize(
    ("number", "everywhere"), [(-3e38, True), (1e5, False), (math.nan, False), (math.inf, True)]
)
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_numbers_beyond_all_sense_enter_no_sum(
    tmp_path: Path, name: str, number: float, everywhere: bool
) -> None:
    def lying(sent: Message) -> Message:
        arrays = {key: array.copy() for key, array in sent.arrays.items()}
        for array in arrays.values():
            array.reshape(-1)[slice(None) if everywhere else slice(1)] = number
        return Message(arrays, sent.values)

    run = federation(tmp_path, only("client 2", lying), name, rounds=2)[0]
    state = run.run()
    assert finite(state) and all(event["kept"] for event in events(tmp_path))
    assert all(event["clients"] == 4 for event in events(tmp_path))
    assert (
        max(float(np.abs(a).max()) for a in state.values() if a.dtype.kind == "f" and a.size) < 200
    )


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [("fedavg", None), ("fedadam", "mean"), ("fedyogi", "spectral"), ("fedadagrad", "median")],
)
def test_claims_at_the_bounds_leave_the_state_finite(
    tmp_path: Path, optimizer: str, rule: str | None
) -> None:
    def largest(sent: Message) -> Message:
        arrays = {key: np.full_like(a, LARGEST_NUMBER) for key, a in sent.arrays.items()}
        return Message(arrays, {**sent.values, "weight": LARGEST_WEIGHT})

    settings: dict[str, Any] = {"server": {"optimizer": optimizer}}
    if rule:
        settings["robust"] = {"rule": rule, "weights": "examples"}
    run = federation(tmp_path, only("client 1", largest), rounds=4, **settings)[0]
    assert finite(run.run())


def test_compressed_updates_are_bounded_as_they_are_unpacked(tmp_path: Path) -> None:
    def scaled(sent: Message) -> Message:
        arrays = dict(sent.arrays)
        arrays["update.scales"] = np.full_like(arrays["update.scales"], 3e38)
        return Message(arrays, sent.values)

    run = federation(tmp_path, only("client 0", scaled), compress={"bits": 4, "top_k": 0.5})[0]
    state = run.run()
    assert np.abs(state["row"]).max() < 9
    assert all("too large" in event["refused"]["client 0"] for event in events(tmp_path))


def test_honest_sizes_are_no_concern_of_the_bounds() -> None:
    mean = WeightedMean(3)
    mean.add("a", np.array([100.0, -100.0, 0.0], np.float32), 5e4)
    assert mean.result().clients == 1


# What a round comes to ---------------------------------------------------------------------


def test_a_round_that_is_not_finite_counts_for_nothing(tmp_path: Path) -> None:
    """As with a server's rate that is far too high."""
    run = federation(tmp_path, lambda _, sent: sent, server={"learning_rate": 1e45})[0]
    start = run.state["row"].copy()
    with pytest.raises(FederationError, match=r"none of the 3 rounds.*not finite \(3 times\)"):
        run.run()
    assert (run.state["row"] == start).all()
    assert all("not finite" in event["why"] for event in events(tmp_path))


def test_what_a_round_left_behind_is_forgotten_with_it(tmp_path: Path) -> None:
    """Centred clipping begins at the last round's result, but not at one that did not count."""
    settings = {"robust": {"rule": "centred-clipping"}, "least": 5}
    plain = federation(tmp_path / "a", lambda _, sent: sent, rounds=1, **settings)[0]
    plain.run()

    def thin(name: str, sent: Message) -> Any:
        return Failure("gone") if name == "client 0" and thinning["on"] else sent

    thinning = {"on": False}
    run = federation(tmp_path / "b", thin, rounds=2, **settings)[0]
    ask = run.fleet.ask

    def late(round: int, messages: Any, seconds: Any = None) -> Any:
        thinning["on"] = round == 1
        yield from ask(round, messages, seconds)

    run.fleet.ask = late  # type: ignore[method-assign]
    run.run()
    arrays = run._combining.arrays(), plain._combining.arrays()
    assert [event["kept"] for event in events(tmp_path / "b")] == [True, False]
    assert (arrays[0]["last"] == arrays[1]["last"]).all()


def test_losses_are_claims_too(tmp_path: Path) -> None:
    """One absurd loss is nobody's mean; many of them are a reason to go back."""
    rng = np.random.default_rng(0)

    def lying(name: str, sent: Message) -> Message:
        if "loss" not in sent.values:
            return sent
        claim = CLAIMS[int(rng.integers(len(CLAIMS)))] if name == liar else 1.0
        return Message(values={**sent.values, "loss": claim})

    liar = ""
    run, _ = federation(tmp_path / "a", lying, held_out=0.5, cohort=3)
    liar = run.held_out[0]
    run.run()
    assert all(event["loss"] == 1.0 or event["loss"] < 1e9 for event in events(tmp_path / "a"))

    def broken(name: str, sent: Message) -> Message:
        bad = "loss" in sent.values and rounds["asked"] > 0
        return Message(values={**sent.values, "loss": math.nan}) if bad else sent

    rounds = {"asked": 0}
    accept = {"least": 5, "patience": 9}
    run, fleet = federation(tmp_path / "b", broken, held_out=0.5, cohort=3, accept=accept)
    ask = fleet.ask

    def counted(round: int, messages: Any, seconds: Any = None) -> Any:
        rounds["asked"] = round
        yield from ask(round, messages, seconds)

    fleet.ask = counted  # type: ignore[method-assign]
    with pytest.raises(FederationError, match="none of the 3 rounds"):
        run.run()
    assert all("not finite" in event["why"] for event in events(tmp_path / "b"))


# Anything at all ---------------------------------------------------------------------------


def _mutated(sent: Message, rng: np.random.Generator) -> Message:
    """A message with one thing in it changed at random."""
    arrays, values = dict(sent.arrays), dict(sent.values)
    which = str(rng.choice([*arrays, *values]))
    if which in values:
        values[which] = CLAIMS[int(rng.integers(len(CLAIMS)))]
        if rng.random() < 0.2:
            del values[which]
        return Message(arrays, values)
    array = arrays[which]
    match int(rng.integers(6)):
        case 0:
            arrays[which] = array.reshape(-1)[: array.size // 2].copy()
        case 1:
            arrays[which] = array.astype(rng.choice(["f8", "f2", "i8", "u1", "b1"]))
        case 2:
            arrays[which] = array[None]
        case 3:
            del arrays[which]
        case 4:
            arrays[which] = np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(array.shape)
        case _:
            arrays[which] = np.zeros((), array.dtype)
    return Message(arrays, values)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("compress", [{}, {"bits": 4, "top_k": 0.3}, {"bits": 16}])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_any_change_of_a_reply_costs_at_most_that_reply(name: str, compress: Any) -> None:
    from pfi.federate.strategy import LinearStrategy

    if compress and (not issubclass(STRATEGIES[name], LinearStrategy) or name == "scaffold"):
        pytest.skip("not with this strategy")
    rng = np.random.default_rng(0)
    strategy = make(name, **({"compress": compress} if compress else {}))
    for _ in range(20):
        cohort, state = members(4, 2, 6), strategy.start()
        taking = strategy.aggregate(state, 0)
        taken = 0
        for place, member in enumerate(cohort):
            message = Message.decode(strategy.broadcast(state, member.id, 0).encode())
            sent = work(strategy, member, message, 0)
            if place == 0:
                sent = Message.decode(_mutated(sent, rng).encode())
            try:
                taking.add(member.id, sent)
                taken += 1
            except FederationError:
                assert place == 0
        following, combined = taking.result()
        assert finite(following)
        assert taken >= 2 and (combined is None or combined.clients >= 2)


def test_an_error_in_reading_an_update_is_the_updates(tmp_path: Path) -> None:
    """Also one that nobody thought of."""
    run = federation(tmp_path, lambda _, sent: sent, rounds=1)[0]
    real = run.strategy.aggregate

    class Brittle:
        def __init__(self, taking: Any) -> None:
            self.taking = taking

        def add(self, client: str, message: Message) -> None:
            if client == "client 3":
                raise TypeError("unhashable")
            self.taking.add(client, message)

        def result(self) -> Any:
            return self.taking.result()

    def aggregate(*args: Any) -> Any:
        return Brittle(real(*args))

    run.strategy.aggregate = aggregate  # type: ignore[method-assign]
    run.run()
    (event,) = events(tmp_path)
    assert event["clients"] == 4 and "unhashable" in event["failed"]["client 3"]


# A run of nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _, sent: Failure("out of memory"), "out of memory (15 times)"),
        (lambda _, sent: Message(sent.arrays, {"weight": -1}), "its weight is -1"),
        (lambda _, sent: Message(), "'vector' of an update is missing"),
    ],
)
def test_a_run_without_a_usable_round_says_so_and_gives_nothing(
    tmp_path: Path, change: Change, why: str
) -> None:
    run, fleet = federation(tmp_path, change)
    with pytest.raises(FederationError) as caught:
        run.run()
    assert "none of the 3 rounds was usable" in caught.value.what and why in caught.value.what
    assert not (tmp_path / "metrics.json").exists() and "finish" not in fleet.asked
    assert len(events(tmp_path)) == 3


def test_noise_alone_is_no_adapter(tmp_path: Path) -> None:
    privacy = {"mechanism": "gaussian", "noise": 1.0, "clip": 1.0}
    run = federation(tmp_path, lambda *_: Failure("gone"), privacy=privacy)[0]
    with pytest.raises(FederationError, match="none of the 3 rounds"):
        run.run()


def test_a_budget_that_allows_no_round_is_no_run(tmp_path: Path) -> None:
    privacy = {"mechanism": "gaussian", "noise": 0.5, "clip": 1.0, "budget": 1e-6}
    run = federation(tmp_path, lambda _, sent: sent, privacy=privacy)[0]
    with pytest.raises(FederationError, match="the privacy budget is spent"):
        run.run()


def test_one_usable_round_is_a_run_and_more_rounds_can_save_one(tmp_path: Path) -> None:
    def change(_: str, sent: Message) -> Any:
        return sent if trouble["over"] else Failure("gone")

    trouble = {"over": False}
    run, fleet = federation(tmp_path, change, rounds=2)
    with pytest.raises(FederationError):
        run.run()
    trouble["over"] = True
    config = run.config.model_copy(update={"rounds": 3})
    again = Federation(config, run.strategy, fleet, tmp_path, resume=True)
    again.run()
    assert [event["kept"] for event in events(tmp_path)] == [False, False, True]
    assert json.loads((tmp_path / "metrics.json").read_text())["rounds"] == 3


def test_the_helpers_rounds_are_rounds() -> None:
    """Else the tests above prove nothing: an honest round moves the state."""
    strategy = make("average", LAYOUT)
    state = strategy.start()
    moved = play(strategy, state, members(3, 4))
    assert np.abs(moved["row"] - state["row"]).max() > 0.1 and Losses([]) is not None
