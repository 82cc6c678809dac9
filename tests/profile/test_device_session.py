"""One question opens the vault once and reads what it uses; sessions of threads are their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pfi._util.sqlite import sqlite3
from pfi.cli.app import app
from pfi.gate.choices import Choice, GateConfig
from pfi.models.adapters import AdapterConfig
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.floors import task_floor
from pfi.profile.answer.gate_file import Fitted, write_gate
from pfi.profile.answer.memory import open_memory, task_memory
from pfi.profile.answer.runtime import Runtime, ask
from pfi.profile.config import HomeConfig
from pfi.profile.erase.erasure import erase
from pfi.profile.home import Home
from pfi.profile.learn.feedback import last_answer
from pfi.profile.open import create_home, open_home
from pfi.profile.vault import vault as module
from pfi.profile.vault.vault import Vault
from pfi.records import Record
from pfi.tasks import get_task

TASK = get_task("LaMP_4")
START = datetime(2024, 1, 1, tzinfo=UTC)
RECORDS, USED = 40, 2
QUESTION = "the quick fox"


@dataclass
class Use:
    """How often the vault was opened, and of which records content was parsed."""

    opened: int = 0
    parsed: list[str] = field(default_factory=list)


@contextmanager
def counted() -> Iterator[Use]:
    """Counts what this process does with vaults."""
    use, begin, parse = Use(), Vault.__init__, module.record_of

    def opening(*args: object, **named: object) -> None:
        use.opened += 1
        begin(*args, **named)  # type: ignore[arg-type]

    def parsing(row: list[str], **named: bool) -> Record:
        use.parsed.append(row[0])
        return parse(row, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vault, "__init__", opening)
        patch.setattr(module, "record_of", parsing)
        yield use


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(backbone_folder("llama"))


@pytest.fixture
def home(tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A device with a personal adapter over a shared one, a fitted gate, a memory in sync."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    made = create_home(config=HomeConfig(backbone=str(backbone.name), embedder="none"))
    with made.open_vault() as vault:
        vault.add(
            Record(f"r{n}", TASK.name, {"text": f"quick fox {n}"}, f"dog {n}", START + timedelta(n))
            for n in range(RECORDS)
        )
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 1)
    slot = bank.new(1, rank=2, alpha=4.0)
    bank.weights[slot].normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    info = AdapterInfo(task=TASK.name, backbone=str(backbone.name))
    shared = made.shared_adapters.add(bank.adapter(slot), info).version
    made.shared_adapters.use(shared)
    info = info.model_copy(update={"shared": shared})
    personal = made.personal_adapters.add(bank.adapter(slot), info).version
    made.personal_adapters.use(personal)
    fitted = Fitted(
        task=TASK.name,
        choice=Choice(0.5, USED),
        sure=1.0,
        gain=0.1,
        tried=8,
        users=0,
        settings=GateConfig(),
        date=START,
        backbone=str(backbone.name),
        personal=personal,
        shared=shared,
    )
    write_gate(made, {TASK.name: fitted})
    with open_memory(made) as store:
        task_floor(made, TASK, task_memory(made, store, TASK))
    return open_home()  # which has read nothing yet


# One question -------------------------------------------------------------------------


def test_asking_opens_the_vault_once_and_reads_the_records_it_retrieves(home: Home) -> None:
    with counted() as use:
        result = CliRunner().invoke(app, ["ask", QUESTION, "--why"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "personal adapter: 0001, weight 0.5" in result.stderr
    assert f"retrieved records: {USED}" in result.stderr
    assert (use.opened, len(use.parsed)) == (1, USED)
    assert last_answer(home).input == {"text": QUESTION}


def test_so_does_asking_from_python(home: Home) -> None:
    with counted() as use:
        answer = ask(home, QUESTION)
    assert {r.id for r in answer.why.records} == {*use.parsed} and len(use.parsed) == USED
    assert use.opened == 1
    with counted() as use:
        assert ask(home, QUESTION, k=0).why.records == ()
    assert (use.opened, use.parsed) == (1, [])


def test_a_runtime_opens_the_vault_once_a_question_and_not_between_them(home: Home) -> None:
    runtime = Runtime(home)
    for _ in range(3):
        with counted() as use:
            runtime.prepare(QUESTION, TASK)
        assert (use.opened, len(use.parsed)) == (1, USED)
        assert home._session.vault is None
    with counted() as use:
        runtime.answer(runtime.prepare(QUESTION, TASK, k=0))
    assert (use.opened, use.parsed) == (0, [])  # which adapters are in use is known by now
    runtime.close()


def test_new_records_are_read_once_to_be_indexed(home: Home) -> None:
    with home.open_vault() as vault:
        vault.add([Record("new", TASK.name, {"text": "a zebra"}, "stripes", START)])
    with counted() as use:
        answer = ask(home, "zebra", k=1)
    assert [r.id for r in answer.why.records] == ["new"]
    assert (use.opened, len(use.parsed)) == (1, RECORDS + 1 + 1)


def test_what_is_found_is_looked_up_by_its_id_and_rows_without_their_texts(home: Home) -> None:
    asked: list[str] = []
    with home.open_vault() as vault, open_memory(home) as store:
        for db, use in (
            (vault._db, lambda: vault.outlined(vault.outlines(TASK.name), ["r1"])),
            (store._db, lambda: store.snapshot(TASK.name)),
        ):
            db.set_trace_callback(asked.append)
            use()
            db.set_trace_callback(None)
            query = next(q for q in reversed(asked) if q.startswith("SELECT"))
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()]
            assert any("records_1" in step for step in plan), plan  # the index of ids
            assert not any("records_by_task" in step for step in plan), plan


# Sessions -----------------------------------------------------------------------------


def test_a_session_opens_at_first_use_and_closes_at_its_outer_end(home: Home) -> None:
    with counted() as use:
        with home.vault_session():
            assert use.opened == 0
            with home.vault_session(), home.open_vault() as vault:
                pass
            with home.open_vault_as_it_is() as again, home.open_vault() as third:
                assert again is vault and third is vault
            assert vault.count() == RECORDS  # closed by nobody yet
        assert use.opened == 1
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            vault.count()
        with home.open_vault() as other:
            assert other is not vault and other.count() == RECORDS
        assert use.opened == 2


def test_a_session_that_fails_is_over(home: Home) -> None:
    with pytest.raises(KeyError), home.vault_session():
        vault = home.open_vault()
        raise KeyError
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        vault.count()
    with counted() as use:
        home.open_vault().close()
        home.open_vault().close()
    assert use.opened == 2


def test_threads_have_sessions_of_their_own(home: Home) -> None:
    seen: dict[str, list[Vault]] = {}
    met = threading.Barrier(3)

    def work(name: str, within: bool) -> None:
        if not within:
            met.wait()
            seen[name] = [home.open_vault(), home.open_vault()]
            assert seen[name][0].count() == RECORDS
            met.wait()
            for vault in seen[name]:
                vault.close()
            return
        with home.vault_session():
            seen[name] = [home.open_vault()]
            met.wait()
            seen[name].append(home.open_vault())
            assert seen[name][1].count() == RECORDS
            met.wait()

    threads = [threading.Thread(target=work, args=(name, name != "c")) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len({id(v) for v in seen[name]}) for name in "abc"] == [1, 1, 2]
    assert len({id(v) for vaults in seen.values() for v in vaults}) == 4


def test_what_is_erased_while_another_thread_is_in_a_session_is_gone_for_it(home: Home) -> None:
    runtime = Runtime(home)
    with home.vault_session():
        found = runtime.prepare(QUESTION, TASK).records[0].id
        memory = runtime.memory(TASK)
        failed: list[BaseException] = []

        def elsewhere() -> None:
            try:
                assert erase(open_home(), [found]).records == 1
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(20)  # it does not wait for the session to end
        assert not thread.is_alive() and not failed
        assert found not in [r.id for r in memory.search(QUESTION, RECORDS)]
        assert found not in [r.id for r in runtime.prepare(QUESTION, TASK, k=RECORDS).records]
    runtime.close()


def test_an_erasure_within_a_session_is_carried_out(home: Home) -> None:
    runtime = Runtime(home)
    with home.vault_session():
        found = [r.id for r in runtime.prepare(QUESTION, TASK).records]
        assert erase(home, found).records == USED
        left = runtime.prepare(QUESTION, TASK, k=RECORDS)
    assert len(left.records) + left.dropped == RECORDS - USED
    assert not {*found} & {r.id for r in left.records}
    runtime.close()


def test_an_interrupted_erasure_is_finished_first_in_a_session_too(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfi.profile.erase import erasure

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_carry_out", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            erase(home, ["r1"])
    with home.vault_session(), home.open_vault_as_it_is() as vault:
        assert vault.count() == RECORDS
        assert home.open_vault().count() == RECORDS - 1


def test_a_server_that_asks_in_threads_while_records_go_answers_from_what_is_left(
    home: Home,
) -> None:
    runtime = Runtime(home)
    _ = runtime.engine
    stop, failed = threading.Event(), []

    def asking() -> None:
        try:
            while not stop.is_set():
                runtime.prepare(QUESTION, TASK, k=5)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(8):
        erase(home, [f"r{n}"])
        asked = runtime.prepare(QUESTION, TASK, k=RECORDS)
        assert len(asked.records) + asked.dropped == RECORDS - n - 1
        assert not {f"r{m}" for m in range(n + 1)} & {r.id for r in asked.records}
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    runtime.close()
