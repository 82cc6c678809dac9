"""Devices that hang, are away or send too much: a fleet's patience, who is asked, size limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from federate_rounds import Member, make, work
from typer.testing import CliRunner

pytest.importorskip("flwr", reason="the extra `federate` is not installed")

from flwr.app import Message as FlowerMessage
from flwr.proto.message_pb2 import ObjectTree

from pfi.cli.app import app
from pfi.errors import FederationError
from pfi.federate.aggregate.combiners import Combining
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.agent import client_app
from pfi.federate.deploy.records import pack, unpack
from pfi.federate.deploy.server.fleet import FlowerFleet
from pfi.federate.deploy.server.limits import LARGEST_REPLY, ReplyLimits, group_of, limit_in
from pfi.federate.deploy.server.now import FILE, Now, read_now
from pfi.federate.deploy.server.patience import Patience
from pfi.federate.deploy.server.server_app import expected_reply
from pfi.federate.events import read_rounds
from pfi.federate.message import Failure, Message
from pfi.federate.rounds import Federation

# Patience -------------------------------------------------------------------------------


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _asking(patience: Patience, times: Sequence[float], asked: int, kind: str = "train") -> float:
    """The limit after replies at these seconds; the rest of those asked hang."""
    clock = patience.clock
    assert isinstance(clock, Clock)
    start, wait = clock.now, patience.start(kind, asked)
    for at in times:
        clock.now = start + at
        assert not wait.over
        wait.reply()
    return wait.limit


def test_a_hung_device_holds_the_first_round_no_longer_than_most_need() -> None:
    patience = Patience(clock=Clock())
    assert _asking(patience, [30.0, 40.0], 5) == 3600, "less than half say nothing"
    assert _asking(patience, [30.0, 40.0, 50.0], 5) == 200
    assert _asking(patience, [1.0], 2, "evaluate") == 60, "not below a minute"
    assert _asking(patience, [2000.0], 2, "finish") == 3600, "nor beyond an hour"


def test_what_is_usual_is_the_limit_by_kind() -> None:
    patience = Patience(clock=Clock())
    for slowest in (50.0, 100.0, 300.0):  # one bad round moves no median
        _asking(patience, [slowest], 1)
    assert _asking(patience, [], 9) == 400, "also where nobody replies"
    assert _asking(patience, [2.0] * 5, 9) == 400, "some that are fast make nobody late"
    assert _asking(patience, [], 9, "evaluate") == 3600


def test_a_limit_that_is_given_is_kept_and_time_runs_out() -> None:
    clock = Clock()
    wait = Patience(clock=clock).start("train", 2, 5.0)
    wait.reply()
    assert wait.limit == 5
    clock.now += 5.1
    assert wait.over
    assert Patience(10, 60, clock).shortest == 10


# What a run does now --------------------------------------------------------------------


def test_status_shows_the_round_in_work(tmp_path: Path) -> None:
    def status(*more: str) -> str:
        result = CliRunner().invoke(app, ["federate", "status", str(tmp_path), *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    now = Now(tmp_path)
    names = [f"phone-{n}" for n in range(7)]
    now.show("train", round=2, asked=9, waiting=names, elapsed=31.0, limit=240)
    said = "round 3, train: 2 of 9 replied in 31 s; waiting for phone-0, phone-1, phone-2, phone-3"
    assert said in status()
    assert "and 2 more, at most 240 s" in status()
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    assert json.loads(status("--json"))[-1]["for"] == names
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**values, "written": values["written"] - 500}))
    assert "the server is stopped, or was killed" in status()
    for text in ("", "[]", "{}", '{"asked": 1}', "nonsense"):
        (tmp_path / FILE).write_text(text)
        assert read_now(tmp_path) is None
    now.clear()
    assert not (tmp_path / FILE).exists()


class Grid:
    """Nodes that reply after some looks, or never; who is there may change."""

    def __init__(self, replies: Mapping[str, Any], there: Sequence[str] | None = None) -> None:
        self.replies, self.there = dict(replies), list(there or replies)
        self.sent: list[Any] = []
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None
        self.run = SimpleNamespace(run_id=7)
        self._names = sorted(replies)

    def get_nodes(self) -> Sequence[Any]:
        numbers = {name: number for number, name in enumerate(self._names, 1)}
        return [SimpleNamespace(name=n, node_id=numbers[n]) for n in self.there]

    def push_messages(self, messages: Sequence[Any]) -> list[str]:
        self.sent += messages
        return [self._names[m.metadata.dst_node_id - 1] for m in messages]

    def pull_messages(self, numbers: Sequence[str]) -> list[Any]:
        self.looks += 1
        self.on_look()
        return [
            SimpleNamespace(
                has_error=lambda: False,
                content=pack(self.replies[name], id="x"),
                metadata=SimpleNamespace(reply_to_message_id=name),
            )
            for name in numbers
            if self.replies[name] is not None
        ]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 7)


def _fleet(grid: Grid, **more: Any) -> FlowerFleet:
    return FlowerFleet(grid, sorted(grid.replies), poll=0.01, **more)  # type: ignore[arg-type]


def test_a_fleet_gives_a_hung_device_up_and_says_meanwhile_who_it_is(tmp_path: Path) -> None:
    grid = Grid({"a": b"r", "b": b"r", "hung": None})
    seen: list[Any] = []
    grid.on_look = lambda: seen.append(read_now(tmp_path))
    fleet = _fleet(grid, folder=tmp_path, patience=Patience(9.0, 0.3))
    question = Message(values={"kind": "train"}).encode()
    got = dict(fleet.ask(4, dict.fromkeys("ab", question) | {"hung": question}))
    assert got["hung"] == Failure("it was late: no reply in 0.3 s")
    assert got["a"] == got["b"] == b"r"
    assert (seen[0]["kind"], seen[0]["round"], seen[0]["for"]) == ("train", 4, ["a", "b", "hung"])
    assert read_now(tmp_path) is None, "nothing is waited for any more"


def test_a_fleet_waits_until_enough_are_back() -> None:
    grid = Grid(dict.fromkeys("abcd", b"r"), there=["a"])
    fleet = _fleet(grid, wait=0.05)
    with pytest.raises(FederationError, match=r"1 of 2 clients are connected.*--resume"):
        fleet.available(["a", "b", "c"], 2)
    grid.there = ["d", "b", "a"]
    assert fleet.available(["a", "b", "c"], 2) == ["a", "b"], "d is not of those that train"
    assert fleet.available(["c"], 0) == []


# Who is asked ---------------------------------------------------------------------------


def test_a_cohort_is_of_those_who_are_there() -> None:
    names = [f"away-{n:02}" for n in range(35)] + [f"phone-{n}" for n in range(5)]
    there = [name for name in names if name.startswith("phone")]
    for sampling in ("fixed", "poisson"):
        config = FederateConfig(cohort=4, rounds=50, sampling=sampling)  # type: ignore[arg-type]
        combining = Combining(config, names, 10, simulated=False)
        cohorts = [combining.cohort(number, there) for number in range(50)]
        assert all(set(cohort) <= set(there) for cohort in cohorts)
        assert {name for cohort in cohorts for name in cohort} == set(there)
        assert 3 < sum(map(len, cohorts)) / 50 < 5
        # With all of them there it is what a simulation draws.
        assert combining.cohort(3, names) == combining.cohort(3)
    assert combining.cohort(3, there) != combining.cohort(3, there, again=1)


def test_with_privacy_lots_are_over_the_whole_fleet() -> None:
    settings = {"mechanism": "gaussian", "noise": 1.0}
    config = FederateConfig(cohort=20, sampling="poisson", privacy=settings)  # type: ignore[arg-type]
    names = [f"n{n:02}" for n in range(40)]
    combining = Combining(config, names, 10, simulated=True)
    cohort = combining.cohort(0, ["n00"])
    assert len(cohort) > 5 and set(cohort) <= set(names)


class Phones:
    """A fleet of which some are away, as time goes on: a set of names for each asking."""

    def __init__(self, strategy: Any, names: Sequence[str], answering: Sequence[set[str]]) -> None:
        self.strategy, self.names, self.answering = strategy, names, list(answering)
        self.asked: list[set[str]] = []
        self.waited: list[tuple[int, int]] = []

    def clients(self) -> Sequence[str]:
        return self.names

    def available(self, clients: Sequence[str], least: int, again: int = 0) -> Sequence[str]:
        self.waited.append((least, again))
        return clients

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        here = self.answering.pop(0) if self.answering else set(self.names)
        self.asked.append(set(messages))
        for name, data in messages.items():
            if name in here:
                reply = work(self.strategy, Member(name), Message.decode(data), round)
                yield name, reply.encode()
            else:
                yield name, Failure("it is not connected")


def _federate(out: Path, answering: Sequence[set[str]], **more: Any) -> tuple[Federation, Phones]:
    settings = {"rounds": 3, "cohort": 4, "held_out": 0.0, **more}
    strategy = make("average", **settings)
    fleet = Phones(strategy, ["a", "b", "c", "d"], answering)
    return Federation(strategy.config, strategy, fleet, out, simulated=False), fleet


def test_rounds_in_which_nobody_answers_are_asked_again_and_not_counted(tmp_path: Path) -> None:
    full = set("abcd")
    federation, fleet = _federate(tmp_path / "run", [full, set(), set(), {"a"}, full])
    federation.run()
    rounds = list(read_rounds(tmp_path / "run"))
    assert [(r["number"], r["clients"]) for r in rounds] == [(0, 4), (1, 1), (2, 4)]
    assert fleet.waited == [(1, 0), (1, 0), (1, 1), (1, 2), (1, 0)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    assert [line["event"] for line in lines] == ["round", "empty", "empty", "round", "round"]
    # The same adapter as where nobody was missing but in the second round.
    other, _ = _federate(tmp_path / "other", [full, {"a"}, full])
    expected = other.run()
    assert (federation.state["row"] == expected["row"]).all()


def test_too_few_answers_are_none_and_the_run_ends_when_they_stay_away(tmp_path: Path) -> None:
    federation, fleet = _federate(tmp_path / "run", [{"a"}] * 99, least=2)
    with pytest.raises(FederationError, match="too few devices answered 8 times: it is not conn"):
        federation.run()
    assert [again for _, again in fleet.waited] == list(range(8))
    assert {least for least, _ in fleet.waited} == {2}
    assert list(read_rounds(tmp_path / "run")) == []


# Sizes ----------------------------------------------------------------------------------


def test_a_question_says_how_large_its_reply_may_be() -> None:
    grid = Grid({"a": b"r"})
    fleet = _fleet(grid)
    for largest, sent in ((0, 10), (0, 3 << 20), (5 << 20, 10)):
        fleet.largest = largest
        dict(fleet.ask(6, {"a": b"q" * sent}, 5))
        limit = limit_in(grid.sent[-1].metadata.group_id)
        assert limit == (1 << 20) + 2 * max(largest, sent)
    assert limit_in(group_of(3, 123)) == 123
    assert limit_in("3") == limit_in("x/y") == LARGEST_REPLY
    strategy = make("average")
    assert expected_reply(strategy) >= 8 * strategy.layout.width


def test_an_honest_device_refuses_to_send_what_would_not_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_app, "forward", lambda path, data, seconds, id: b"r" * 1000)
    for largest, fits in ((0, True), (1000, True), (999, False)):
        question = FlowerMessage(pack(b"q", id="1", largest=largest), 1, "query")
        reply = FlowerMessage(client_app.answer(question, Path("x")), 1, "query")
        if fits:
            assert unpack(reply) == ("1", b"r" * 1000)
        else:
            with pytest.raises(FederationError, match="has 1000 bytes, at most 999 are taken"):
                unpack(reply)


class State:
    """Of Flower's state what replies go through."""

    def __init__(self, limit: int) -> None:
        metadata = SimpleNamespace(group_id=group_of(0, limit))
        self.message_ins_store = {"question": SimpleNamespace(metadata=metadata)}
        self._object_push_sessions: dict[str, Any] = {}
        self.kept: list[bytes] = []
        self.dropped: list[str] = []

    def store_message_and_object_tree(
        self, message: Any, tree: ObjectTree, session: str
    ) -> tuple[bool, list[str]]:
        self._object_push_sessions[session] = tree
        return True, ["part"]

    def store_object(self, run: int, session: str, part: str, content: bytes) -> bool:
        self.kept.append(content)
        return True

    def _cleanup_push_session(self, session: str, *, cleanup_messages: bool) -> None:
        assert cleanup_messages
        self._object_push_sessions.pop(session, None)
        self.dropped.append(session)


def _reply(to: str = "question") -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=to))


def _tree(parts: int = 3) -> ObjectTree:
    return ObjectTree(object_id="m", children=[ObjectTree(object_id=f"{n}") for n in range(parts)])


def test_parts_beyond_the_limit_are_not_kept() -> None:
    state = State(1 << 20)
    ReplyLimits(state)
    assert state.store_message_and_object_tree(_reply(), _tree(), "s1") == (True, ["part"])
    piece = bytes(400_000)
    assert [state.store_object(1, "s1", "p", piece) for _ in range(4)] == [True, True, False, False]
    assert state.kept == [piece] * 2
    assert state.dropped[0] == "s1"
    # Another session for the same question has no more room, nor is there a way without one.
    assert state.store_message_and_object_tree(_reply(), _tree(), "s2")[0]
    assert not state.store_object(1, "s2", "p", piece)
    assert not state.store_object(1, "", "p", piece)
    # The round loop's own messages are no replies.
    assert state.store_message_and_object_tree(_reply(""), _tree(5000), "s3")[0]
    assert all(state.store_object(1, "s3", "p", piece) for _ in range(9))


def test_a_reply_of_too_many_parts_or_to_no_question_is_refused() -> None:
    state = State(1 << 20)
    limits = ReplyLimits(state)
    assert state.store_message_and_object_tree(_reply(), _tree(500), "s") == (False, [])
    assert state.store_message_and_object_tree(_reply("other"), _tree(), "s") == (False, [])
    assert state.store_message_and_object_tree(_reply(), _tree(), "s")[0]
    assert state.store_object(1, "s", "p", b"x")
    # Flower forgets a question with the first sign of its reply, whose parts still come.
    state.message_ins_store.clear()
    assert state.store_object(1, "s", "p", bytes(900_000))
    assert not state.store_object(1, "s", "p", bytes(900_000))
    assert state.store_message_and_object_tree(_reply(), _tree(), "s") == (False, [])
    state.message_ins_store["next"] = SimpleNamespace(metadata=SimpleNamespace(group_id="1/9"))
    state.store_message_and_object_tree(_reply("next"), _tree(), "u")
    assert limits._questions == {"u": ("next", 9)} and limits._bytes == {}
