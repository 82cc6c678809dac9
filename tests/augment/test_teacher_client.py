"""The client: policy, ledger, cache, budget, concurrency; and the store behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pfi._util.sqlite import sqlite3
from pfi.augment import client as client_module
from pfi.augment.budget import Budget, most
from pfi.augment.cache import Answer, TeacherStore
from pfi.augment.client import ClientReport, TeacherClient
from pfi.augment.config import AugmentConfig, TeacherConfig
from pfi.augment.teachers.teacher import (
    Call,
    Material,
    Message,
    Reply,
    TeacherError,
    Unusable,
    Usage,
)
from pfi.errors import ConfigError, StorageError
from pfi.privacy.ledger.ledger import Ledger
from pfi.privacy.redaction.redactor import Redactor
from pfi.records import Record
from pfi.tasks import get_task

PRICED = TeacherConfig(usd_per_million_prompt=1.0, usd_per_million_completion=3.0)


class FakeTeacher:
    """Answers with the last message in capitals; counts, and watches how it is called."""

    name = "fake"

    def __init__(
        self,
        host: str | None = None,
        batch: int = 1,
        concurrency: int = 1,
        answer: Callable[[Call], Reply | Unusable] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.host, self.batch, self.concurrency = host, batch, concurrency
        self.calls: list[Call] = []
        self.now = self.most_at_once = 0
        self._answer, self._seconds, self._lock = answer, seconds, threading.Lock()

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        assert 0 < len(calls) <= self.batch
        with self._lock:
            self.calls += calls
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(self._seconds)
        try:
            return [(self._answer or echo)(call) for call in calls]
        finally:
            with self._lock:
                self.now -= 1

    def price(self, usage: Usage) -> Usage:
        usd = (usage.prompt_tokens * 1.0 + usage.completion_tokens * 3.0) / 1e6
        return replace(usage, usd=usd)


def echo(call: Call) -> Reply:
    return Reply(f"{call.messages[-1].content.upper()} {call.seed}", Usage(10, 5))


def a_call(text: str, **values: Any) -> Call:
    return Call(values.pop("user", "ada"), (Message("user", text),), **values)


def some_calls(count: int, **values: Any) -> list[Call]:
    return [a_call(f"text {i}", **values) for i in range(count)]


def a_record(id_: str) -> Record:
    return Record(id_, "LaMP_3", {"text": "good film"}, "4")


def texts(replies: Sequence[Reply | None]) -> list[str | None]:
    return [reply and reply.text for reply in replies]


class SwapRedactor:
    """Swaps given identifiers for placeholders, numbered as they come."""

    def __init__(self, *secrets: str) -> None:
        self.secrets, self.found = secrets, dict[str, str]()

    def redact(self, text: str) -> str:
        for secret in self.secrets:
            if secret in text:
                mark = self.found.setdefault(secret, f"[NAME_{len(self.found) + 1}]")
                text = text.replace(secret, mark)
        return text

    def restore(self, text: str) -> str:
        for secret, mark in self.found.items():
            text = text.replace(mark, secret)
        return text


@pytest.fixture
def store(tmp_path: Path):
    with TeacherStore(tmp_path / "teacher.db") as made:
        yield made


# Cache ----------------------------------------------------------------------------------


def test_replies_come_in_order_and_equal_calls_are_paid_once(store: TeacherStore) -> None:
    teacher = FakeTeacher()
    client = TeacherClient(teacher, AugmentConfig(), store)
    calls = [a_call("b"), a_call("a"), a_call("b"), a_call("b", seed=1)]
    assert texts(client.ask(calls, {})) == ["B 0", "A 0", "B 0", "B 1"]
    assert len(teacher.calls) == 3
    report = client.report
    assert (report.calls, report.paid, report.cached, report.unusable) == (4, 3, 1, 0)
    assert report.usage == report.spent == Usage(30, 15, 75 / 1e6)


def test_a_later_client_pays_nothing_and_gets_equal_replies(tmp_path: Path) -> None:
    path = tmp_path / "teacher.db"
    with TeacherStore(path) as store:
        first = TeacherClient(FakeTeacher(), AugmentConfig(), store).ask(some_calls(5), {})
    teacher = FakeTeacher()
    with TeacherStore(path) as store:
        client = TeacherClient(teacher, AugmentConfig(), store)
        again = client.ask(some_calls(6), {})
        report = client.report
    assert again[:5] == first
    assert [call.messages[0].content for call in teacher.calls] == ["text 5"]
    assert (report.paid, report.cached, report.usage.tokens, report.spent.tokens) == (1, 5, 15, 90)


def test_another_teacher_has_another_cache(store: TeacherStore) -> None:
    TeacherClient(FakeTeacher(), AugmentConfig(), store).ask(some_calls(1), {})
    other = FakeTeacher()
    other.name = "other"
    TeacherClient(other, AugmentConfig(), store).ask(some_calls(1), {})
    assert len(other.calls) == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_concurrency_changes_no_reply(tmp_path: Path, batch: int) -> None:
    def answer(call: Call) -> Reply | Unusable:
        number = int(call.messages[0].content.split()[1])
        if number % 7 == 3 and call.seed == 0:
            return Unusable("cut off", Usage(4, 4))
        return Unusable("cut off") if number == 5 else echo(call)

    got: list[list[Reply | None]] = []
    reports: list[ClientReport] = []
    for concurrency in (1, 8):
        teacher = FakeTeacher(
            batch=batch, concurrency=concurrency, answer=answer, seconds=0.002 * (concurrency > 1)
        )
        with TeacherStore(tmp_path / f"{concurrency}.db") as store:
            client = TeacherClient(teacher, AugmentConfig(), store)
            got.append(client.ask(some_calls(60), {}))
            reports.append(client.report)
        assert teacher.most_at_once <= concurrency
        assert concurrency == 1 or teacher.most_at_once > 1
    assert got[0] == got[1]
    assert reports[0] == reports[1]
    assert got[0][5] is None and None not in got[0][:5] + got[0][6:]


# Unusable answers -----------------------------------------------------------------------


def test_unusable_answers_are_asked_again_with_another_seed_and_paid(store: TeacherStore) -> None:
    def answer(call: Call) -> Reply | Unusable:
        return Unusable("cut off", Usage(10, 7)) if call.seed == 4 else echo(call)

    teacher = FakeTeacher(answer=answer)
    client = TeacherClient(teacher, AugmentConfig(), store)
    (reply,) = client.ask([a_call("a", seed=4)], {})
    assert reply is not None and reply.text.startswith("A ") and reply.text != "A 4"
    assert len({call.seed for call in teacher.calls}) == 2
    assert client.report.spent.tokens == 17 + 15
    assert client.ask([a_call("a", seed=4)], {}) == [reply]
    assert len(teacher.calls) == 2


def test_after_all_attempts_it_is_unusable_and_stays_so_for_free(tmp_path: Path) -> None:
    path = tmp_path / "teacher.db"
    config = AugmentConfig(attempts=3)
    teacher = FakeTeacher(answer=lambda call: Unusable("nonsense", Usage(1, 1)))
    for _ in range(2):
        with TeacherStore(path) as store:
            client = TeacherClient(teacher, config, store)
            assert client.ask([a_call("a")], {}) == [None]
            assert client.report.unusable == 1
            assert client.report.problems == {"nonsense": 1}
    assert len(teacher.calls) == 3
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT attempt, text, problem FROM answers ORDER BY attempt").fetchall()
    assert rows == [(n, None, "nonsense") for n in range(3)]


# Budget ---------------------------------------------------------------------------------


@given(
    costs=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 40)), min_size=1, max_size=14),
    share=st.floats(0, 1.2),
    money=st.booleans(),
    shape=st.sampled_from([(1, 1), (3, 1), (8, 1), (2, 3)]),
    unusable=st.sets(st.integers(0, 13)),
)
@settings(max_examples=40, deadline=None)
def test_the_budget_is_kept_and_what_is_paid_is_no_matter_of_luck(
    costs: list[tuple[int, int]],
    share: float,
    money: bool,
    shape: tuple[int, int],
    unusable: set[int],
) -> None:
    """Costs are (length of the message, completion tokens of at most 40)."""
    calls = [
        a_call(f"{i:02}".ljust(length, "x"), max_tokens=40) for i, (length, _) in enumerate(costs)
    ]

    def answer(call: Call) -> Reply | Unusable:
        text = call.messages[0].content
        usage = Usage(len(text), costs[int(text[:2])][1])
        time.sleep(len(text) % 3 / 3000)
        if int(text[:2]) in unusable and call.seed == 0:
            return Unusable("no", usage)
        return Reply(text, usage)

    worst = [most(call, FakeTeacher()) for call in calls]
    total = sum(cost.usd if money else cost.tokens for cost in worst)
    limit: dict[str, Any] = (
        {"budget_usd": max(total * share, 1e-9)}
        if money
        else {"budget_tokens": max(round(total * share), 1)}
    )
    config = AugmentConfig(teacher=PRICED, **limit)

    def run(concurrency: int, batch: int) -> tuple[list[Reply | None], ClientReport, list[Call]]:
        teacher = FakeTeacher(answer=answer, concurrency=concurrency, batch=batch)
        with (
            tempfile.TemporaryDirectory() as folder,
            TeacherStore(Path(folder, "teacher.db")) as store,
        ):
            client = TeacherClient(teacher, config, store)
            return client.ask(calls, {}), client.report, teacher.calls

    replies, report, made = run(*shape)
    really = [FakeTeacher().price(answer(call).usage) for call in made]
    spent = sum(cost.usd if money else cost.tokens for cost in really)
    assert spent <= next(iter(limit.values())) * (1 + 1e-12)
    assert report.spent.tokens == sum(cost.tokens for cost in really)
    assert report.calls == len(calls) == report.unpaid + sum(r is not None for r in replies)
    # Exactly what one call at a time would have paid.
    alone, report_alone, _ = run(1, 1)
    assert (replies, report) == (alone, report_alone)
    if share >= 1 and not unusable:
        assert None not in replies


def test_after_the_first_unpaid_call_no_later_one_starts(store: TeacherStore) -> None:
    teacher = FakeTeacher(concurrency=4)
    client = TeacherClient(teacher, AugmentConfig(budget_tokens=400), store)
    TeacherClient(FakeTeacher(), AugmentConfig(), store).ask([a_call("old", max_tokens=10)], {})
    calls = [a_call("long", max_tokens=900), a_call("short", max_tokens=10)]
    old = a_call("old", max_tokens=10)
    assert texts(client.ask([*calls, old], {})) == [None, None, "OLD 0"]
    assert teacher.calls == [] and client.report.unpaid == 2
    assert texts(client.ask(calls[1:], {})) == ["SHORT 0"]


def test_the_budget_counts_what_earlier_runs_spent(tmp_path: Path) -> None:
    config = AugmentConfig(budget_tokens=800)
    paid = 0
    for _ in range(3):
        teacher = FakeTeacher()
        with TeacherStore(tmp_path / "teacher.db") as store:
            client = TeacherClient(teacher, config, store)
            client.ask(some_calls(100, max_tokens=200), {})
            paid += len(teacher.calls)
            assert client.report.unpaid == 100 - paid
    # Of 800 tokens 286 are for one call that may be the longest (bytes, overhead, answer).
    assert paid == (800 - 286) // 15 + 1


def test_an_endpoint_that_tells_no_usage_is_taken_to_have_charged_the_most(
    tmp_path: Path, store: TeacherStore
) -> None:
    teacher = FakeTeacher(host="far.example", answer=lambda call: Reply("x"))
    client = TeacherClient(
        teacher, AugmentConfig(policy="none"), store, Ledger(tmp_path / "ledger.jsonl")
    )
    call = a_call("a", max_tokens=100)
    client.ask([call], {})
    assert client.report.spent == most(call, teacher) != Usage()


def test_the_most_that_a_call_can_cost_counts_bytes_and_the_schema() -> None:
    class Form(BaseModel):
        label: str

    short = most(a_call("é" * 50, max_tokens=7), FakeTeacher())
    assert short.completion_tokens == 7 and 100 < short.prompt_tokens < 200
    formed = most(a_call("é" * 50, max_tokens=7, form=Form), FakeTeacher())
    twice = 2 * len(json.dumps(Form.model_json_schema()))
    assert twice <= formed.prompt_tokens - short.prompt_tokens < twice + 300


def test_a_budget_in_dollars_needs_prices(store: TeacherStore) -> None:
    with pytest.raises(ConfigError, match=r"budget_usd.*usd_per_million_prompt"):
        TeacherClient(FakeTeacher(), AugmentConfig(budget_usd=1.0), store)
    half = TeacherConfig(usd_per_million_prompt=1.0)
    with pytest.raises(ConfigError):
        TeacherClient(FakeTeacher(), AugmentConfig(budget_usd=1.0, teacher=half), store)


def test_processes_keep_one_budget_together(tmp_path: Path) -> None:
    path = tmp_path / "teacher.db"
    budget = Budget(tokens=100)
    with TeacherStore(path) as here, TeacherStore(path) as there:
        first = here.take([Usage(60, 0)], budget)
        assert (first.count, first.wait) == (1, False)
        held = there.take([Usage(60, 0)], budget)
        assert (held.count, held.wait) == (0, True)  # if the first one turns out cheaper
        assert not there.take([Usage(101, 0)], budget).wait
        here.pay([Answer("a", 0, "x", "", Usage(40, 0))], first.flight)
        assert there.take([Usage(60, 0), Usage(1, 0)], budget).count == 1
        assert here.take([Usage(1, 0)], budget).wait
    # A store that was closed, or whose process was killed, has nothing in flight any more.
    with TeacherStore(path) as store:
        assert store.take([Usage(60, 0)], budget).count == 1
    script = f"""
import os, signal
from pathlib import Path
from pfi.augment.budget import Budget
from pfi.augment.cache import TeacherStore, Usage
store = TeacherStore(Path({str(path)!r}))
print(store.take([Usage(60, 0)], Budget(tokens=100)).count, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (killed.returncode, killed.stdout) == (-9, "1\n")
    with TeacherStore(path) as store:
        assert store.take([Usage(60, 0)], budget).count == 1


def test_two_clients_at_the_same_time_share_a_store_and_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "teacher.db"
    calls = some_calls(40, max_tokens=200)
    teacher = FakeTeacher(concurrency=4, seconds=0.001)
    got: dict[int, list[str | None]] = {}

    def work(number: int) -> None:
        with TeacherStore(path) as store:
            client = TeacherClient(teacher, AugmentConfig(budget_tokens=700), store)
            got[number] = texts(client.ask(calls[number * 10 :], {}))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with TeacherStore(path) as store:
        assert store.spent().tokens == 15 * len(teacher.calls) <= 700
        # None waited for ever, and none stopped while there was room.
        assert store.spent().tokens > 700 - 286 - 15
    for number, mine in got.items():
        for call, text in zip(calls[number * 10 :], mine, strict=True):
            assert text in (None, f"{call.messages[0].content.upper()} 0")


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    script = f"""
import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_teacher_client_kill import job
folder = Path({str(tmp_path)!r})
print(json.dumps(json.loads(job(folder, calls=60, concurrency=4))[0]))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    out = [child.communicate()[0] for child in running]
    assert [child.returncode for child in running] == [0, 0]
    assert out[0] == out[1] and "text 59" in out[0]
    paid = Counter((tmp_path / "paid").read_text().split())
    with TeacherStore(tmp_path / "teacher.db") as store:
        assert store.spent().completion_tokens == 5 * sum(paid.values())
        assert set(store.get(paid)) == set(paid)


# Policy ---------------------------------------------------------------------------------


def test_local_refuses_a_teacher_elsewhere(store: TeacherStore, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ConfigError, match=r"far\.example.*--policy redact"):
        TeacherClient(FakeTeacher(host="far.example"), AugmentConfig(policy="local"), store, ledger)
    TeacherClient(FakeTeacher(), AugmentConfig(policy="local"), store)


def test_a_teacher_elsewhere_needs_a_ledger(store: TeacherStore) -> None:
    with pytest.raises(ValueError, match="ledger"):
        TeacherClient(FakeTeacher(host="far.example"), AugmentConfig(policy="none"), store)


SECRET = 'Zoë "Zed" Q'


@pytest.mark.parametrize("batch", [1, 2])
def test_redact_hides_restores_and_logs(store: TeacherStore, tmp_path: Path, batch: int) -> None:
    class Form(BaseModel):
        label: str

    def answer(call: Call) -> Reply:
        text = call.messages[0].content
        return Reply(
            json.dumps({"label": f"to {text}"}) if call.form else f"to {text}", Usage(9, 9)
        )

    ledger = Ledger(tmp_path / "ledger.jsonl")
    teacher = FakeTeacher(host="far.example", answer=answer, batch=batch, concurrency=2)
    client = TeacherClient(teacher, AugmentConfig(), store, ledger)
    redactors: Mapping[str, Any] = {"ada": SwapRedactor(SECRET), "bob": SwapRedactor("Bobby")}
    material = Material("answer", get_task("LaMP_3"), (a_record("1"),))
    calls = [
        a_call(f"about {SECRET}", material=material),
        a_call(f"about {SECRET}", material=material, form=Form),
        a_call("about Bobby", user="bob"),  # the same as the first once it is redacted
        a_call("about nobody", user="bob"),
    ]
    replies = texts(client.ask(calls, redactors))
    assert replies[0] == f"to about {SECRET}" and replies[2] == "to about Bobby"
    assert json.loads(replies[1] or "") == {"label": f"to about {SECRET}"}
    assert len(teacher.calls) == 3
    assert all(call.material is None and call.user == "" for call in teacher.calls)
    # Nobody but the two of them has seen the names: no teacher, no ledger, no cache.
    seen = repr(teacher.calls) + (tmp_path / "ledger.jsonl").read_text()
    seen += repr(store.get(call.key("fake") for call in teacher.calls))
    for planted in ("Zoë", "Zo\\u00eb", "Zed", "Bobby"):
        assert planted not in seen
    entries = list(ledger.entries())
    assert ledger.verify() == 3
    assert {(e.to, e.kind, e.policy) for e in entries} == {("far.example", "teacher", "redact")}
    assert sorted(e.device for e in entries) == ["ada", "ada", "bob"]
    logged = [json.loads(e.payload or "")["messages"][0]["content"] for e in entries]
    assert Counter(logged) == Counter(call.worded[0].content for call in teacher.calls)
    assert texts(client.ask(calls, redactors)) == replies and len(teacher.calls) == 3


def test_the_real_redactor_lets_nothing_planted_out(store: TeacherStore, tmp_path: Path) -> None:
    planted = [
        "mara.lind@mail.example",
        "DE89 3704 0044 0532 0130 00",
        "+49 30 901820",
        "Mara Lind",
    ]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    teacher = FakeTeacher(
        host="far.example",
        concurrency=4,
        answer=lambda call: Reply(call.messages[0].content, Usage(1, 1)),
    )
    calls = [a_call(f"Note {i}: please tell {text} today") for i, text in enumerate(planted * 3)]
    redactors = {"ada": Redactor(["Mara Lind"])}
    client = TeacherClient(teacher, AugmentConfig(), store, ledger)
    assert texts(client.ask(calls, redactors)) == [call.messages[0].content for call in calls]
    seen = repr(teacher.calls) + (tmp_path / "ledger.jsonl").read_text()
    assert len(teacher.calls) == ledger.verify() == len(calls)
    for text in planted:
        assert text not in seen


def test_none_sends_as_it_is_and_logs(store: TeacherStore, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    teacher = FakeTeacher(host="far.example")
    TeacherClient(teacher, AugmentConfig(policy="none"), store, ledger).ask([a_call(SECRET)], {})
    assert teacher.calls[0].messages[0].content == SECRET
    (entry,) = ledger.entries()
    assert entry.policy == "none" and SECRET in json.loads(entry.payload or "")["messages"][0][
        "content"
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["local", "redact", "none"])
def test_on_this_device_nothing_is_redacted_or_logged(
    policy: Any, store: TeacherStore, tmp_path: Path
) -> None:
    teacher = FakeTeacher()
    material = Material("answer", get_task("LaMP_3"), (a_record("1"),))
    call = a_call(SECRET, material=material)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    TeacherClient(teacher, AugmentConfig(policy=policy), store, ledger).ask([call], {})
    assert teacher.calls == [call] and not (tmp_path / "ledger.jsonl").exists()


def test_the_ledger_is_written_before_anything_is_sent(
    store: TeacherStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def answer(call: Call) -> Reply:
        sent = [json.loads(e.payload or "")["messages"][0]["content"] for e in ledger.entries()]
        assert call.messages[0].content in sent
        raise TeacherError("the line is dead")

    teacher = FakeTeacher(host="far.example", answer=answer, batch=2)
    client = TeacherClient(teacher, AugmentConfig(policy="none"), store, ledger)
    with pytest.raises(TeacherError, match="dead"):
        client.ask(some_calls(3), {})
    assert [json.loads(e.payload or "")["messages"][0]["content"] for e in ledger.entries()] == [
        "text 0",
        "text 1",
    ]

    def full(*args: Any, **named: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(client_module, "send_logged", full)
    before = len(teacher.calls)
    with pytest.raises(StorageError):
        client.ask(some_calls(3), {})
    assert len(teacher.calls) == before


def test_a_call_may_not_show_more_records_than_allowed(store: TeacherStore) -> None:
    teacher = FakeTeacher()
    client = TeacherClient(teacher, AugmentConfig(records_per_call=2), store)
    two = (a_record("1"), a_record("2"))
    task = get_task("LaMP_3")
    client.ask([a_call("a", material=Material("answer", task, two))], {})
    with pytest.raises(ValueError, match="3 records"):
        client.ask([a_call("b", material=Material("vary", task, two, source=a_record("3")))], {})
    assert len(teacher.calls) == 1


# Errors, progress, estimates ------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_teacher_that_breaks_down_loses_nothing(store: TeacherStore, concurrency: int) -> None:
    def answer(call: Call) -> Reply:
        if call.messages[0].content == "text 9":
            raise TeacherError("no more credit")
        time.sleep(0.001)
        return echo(call)

    before = set(threading.enumerate())
    broken = FakeTeacher(answer=answer, concurrency=concurrency)
    config = AugmentConfig(budget_tokens=100_000)
    with pytest.raises(TeacherError, match="credit"):
        TeacherClient(broken, config, store).ask(some_calls(20), {})
    assert set(threading.enumerate()) == before
    answered = {call.messages[0].content for call in broken.calls} - {"text 9"}
    assert {f"text {i}" for i in range(9)} <= answered and len(answered) < 19
    mended = FakeTeacher(concurrency=concurrency)
    assert None not in TeacherClient(mended, config, store).ask(some_calls(20), {})
    assert len(mended.calls) == 20 - len(answered)
    # Nothing is left in flight that would take from the budget.
    assert store.take([Usage(100_000 - 15 * 20, 0)], Budget(tokens=100_000)).count == 1


def test_progress_is_told_after_every_answer(store: TeacherStore) -> None:
    seen: list[ClientReport] = []
    client = TeacherClient(FakeTeacher(), AugmentConfig(), store, on_progress=seen.append)
    client.ask(some_calls(3), {})
    assert [report.paid for report in seen] == [1, 2, 3, 3]
    assert [report.spent.tokens for report in seen] == [15, 30, 45, 45]
    assert seen[-1] == client.report and seen[-1].calls == 3


def all_rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(path) as db:
        names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for (name,) in names}


def test_an_estimate_sends_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "teacher.db"
    ledger = Ledger(tmp_path / "ledger.jsonl")
    teacher = FakeTeacher(
        host="far.example",
        answer=lambda call: Unusable("no") if call.messages[0].content == "bad" else echo(call),
    )
    with TeacherStore(path) as store:
        config = AugmentConfig(policy="none", teacher=PRICED)
        TeacherClient(teacher, config, store, ledger).ask([a_call("old"), a_call("bad")], {})
        made, entries = len(teacher.calls), len(list(ledger.entries()))
        dump = all_rows(path)
        calls = [a_call("old"), a_call("bad"), *[a_call("x" * 40, max_tokens=100)] * 2]
        estimate = TeacherClient(teacher, config, store, ledger).estimate(calls, {})
        assert (estimate.calls, estimate.cached) == (4, 3)
        assert (estimate.prompt_tokens, estimate.completion_tokens) == (10, 100)
        assert estimate.usd == pytest.approx(310 / 1e6)
        # One more attempt is allowed: the unusable one would be asked again.
        more = config.model_copy(update={"attempts": 3})
        assert TeacherClient(teacher, more, store, ledger).estimate(calls, {}).cached == 2
        unknown = AugmentConfig(policy="none")
        assert TeacherClient(teacher, unknown, store, ledger).estimate(calls, {}).usd is None
        assert all_rows(path) == dump
    assert (len(teacher.calls), len(list(ledger.entries()))) == (made, entries)


# Store ----------------------------------------------------------------------------------


def test_the_store_is_private_and_keeps_any_text(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "teacher.db"
    old = os.umask(0)
    try:
        with TeacherStore(path) as store:
            odd = "nul \0, quote ', emoji \U0001f600, half \ud83d"
            teacher = FakeTeacher(answer=lambda call: Reply(odd, Usage(1, 1)))
            replies = TeacherClient(teacher, AugmentConfig(), store).ask([a_call("a")], {})
            assert texts(replies) == [odd.replace("\ud83d", "?")]
            modes = {file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == {0o600}


def test_sums_are_exact_whatever_their_order(store: TeacherStore) -> None:
    answers = [Answer(f"{i}", 0, "", "", Usage(1, 0, 0.1)) for i in range(10)]
    store.pay(answers)
    assert store.spent() == Usage(10, 0, 1.0)
    assert sum(answer.usage.usd for answer in answers) != 1.0  # as floats they are not


def test_the_first_answer_to_a_key_stays_and_both_are_paid(store: TeacherStore) -> None:
    first = Answer("k", 0, "one", "", Usage(1, 0))
    assert store.pay([first]) == {"k": first}
    assert store.pay([replace(first, text="two")]) == {"k": first}
    assert store.spent().tokens == 2


def test_a_damaged_foreign_newer_or_locked_store_is_told(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError, match=r"damaged\.db.*is damaged.*move it away"):
        TeacherStore(damaged)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE other (a)")
    with pytest.raises(StorageError, match="not a store"):
        TeacherStore(foreign)
    path = tmp_path / "teacher.db"
    TeacherStore(path).close()
    with TeacherStore(path, busy_seconds=0.05) as store, sqlite3.connect(path) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"in use.*wait for the other pfi process"):
            store.pay([Answer("k", 0, "", "", Usage())])
        db.rollback()
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match=r"format 99.*update pfi"):
        TeacherStore(path)
    with pytest.raises(StorageError, match="cannot be opened"):
        TeacherStore(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_may_not_use_its_parents_store(store: TeacherStore) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            store.spent()
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_servers_trouble_is_not_kept_as_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "teacher.db"
    calls = [a_call("a"), a_call("b")]

    def troubled(call: Call) -> Reply | Unusable:
        down = call.messages[-1].content == "a"
        return Unusable("the server is down", passing=True) if down else echo(call)

    for answer, expected in ((troubled, [None, "B 0"]), (echo, ["A 0", "B 0"])):
        teacher = FakeTeacher(answer=answer)
        with TeacherStore(path) as store:
            client = TeacherClient(teacher, AugmentConfig(attempts=3), store)
            assert texts(client.ask(calls, {})) == expected
            assert client.report.unusable == expected.count(None)
    # The first run did not try another seed, which the second one would not have known of.
    assert [call.messages[-1].content for call in teacher.calls] == ["a"]
