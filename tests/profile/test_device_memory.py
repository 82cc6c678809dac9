"""The memory of a device: as the vault is, cheap where nothing changed, safe when killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pfi._util import sqlite
from pfi._util.sqlite import sqlite3
from pfi.errors import ConfigError
from pfi.memory.config import SearchConfig
from pfi.memory.embedders import HashEmbedder
from pfi.memory.index import Memory
from pfi.memory.store import ListedMemory, MemoryStore
from pfi.profile.answer import memory as module
from pfi.profile.answer.memory import (
    home_embedder,
    memory_status,
    open_memory,
    rebuild_memory,
    sync_memory,
)
from pfi.profile.answer.runtime import Runtime
from pfi.profile.home import Home
from pfi.profile.learn.feedback import give, trust
from pfi.profile.open import create_home
from pfi.profile.vault.vault import Vault
from pfi.records import Record
from pfi.tasks import get_task, read_task, tasks

TASK = get_task("LaMP_4")
DAY = datetime(2024, 1, 1, tzinfo=UTC)
WORDS = ["rain", "tea", "harbour", "storm", "mill", "town", "choir", "bread", "old", "new"]


def record(n: int, **changes: Any) -> Record:
    text = " ".join(random.Random(n).choices(WORDS, k=8))
    made = Record(f"r{n}", "LaMP_4", {"text": text}, f"Title {n}", DAY + timedelta(n))
    return replace(made, **changes)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A device with thirty records; its sentence model hashes words."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: HashEmbedder(32))
    made = create_home()
    with made.open_vault() as vault:
        vault.add(record(n) for n in range(30))
        vault.add([record(3, id="s", task="LaMP_4", origin="synthetic")])
        vault.add([Record("c", "LaMP_3", {"text": "rain"}, "5", DAY)])
    return made


def search(home: Home, query: str, k: int = 3, **named: Any) -> list[str]:
    runtime = Runtime(home)
    found = [r.id for r in runtime.memory(TASK).search(query, k, **named)]
    runtime.close()
    return found


def no_sync(*args: Any, **named: Any) -> None:
    raise AssertionError("nothing changed, and it was synced")


# As the vault is ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["bm25", "dense", "hybrid", "recent"])
def test_it_finds_what_a_memory_of_the_history_finds(home: Home, how: Any) -> None:
    home.config.search = {"how": how, "recency": 0.2, "diversity": 0.3}
    with home.open_vault() as vault:
        history = vault.history("LaMP_4", origin="real")
    config = SearchConfig(how=how, recency=0.2, diversity=0.3)
    embedder = HashEmbedder(32) if how in ("dense", "hybrid") else None
    plain = Memory(TASK, history, embedder=embedder, config=config)
    for query in ("rain at the harbour", "old choir", "tea", "nothing known"):
        wanted = [r.id for r in plain.search(query, 5, before=DAY + timedelta(20))]
        assert search(home, query, 5, before=DAY + timedelta(20)) == wanted


def test_nothing_is_read_again_where_nothing_changed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    open_memory(home, on_progress=lambda done, total: told.append((done, total))).close()
    assert told[-1] == (31, 31)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "sync", no_sync)
        open_memory(home).close()
        with home.open_vault() as vault:
            vault.add([record(3)])  # is there already
            vault.feedback.answers()
        open_memory(home).close()
    with home.open_vault() as vault:
        vault.add([record(30)])
    told.clear()
    open_memory(home, on_progress=lambda done, total: told.append((done, total))).close()
    assert told == [(1, 1)]


def test_every_change_of_the_vault_changes_its_mark(home: Home) -> None:
    marks = []
    with home.open_vault() as vault:

        def note() -> None:
            assert vault.mark not in marks
            marks.append(vault.mark)

        note()
        vault.add([record(31)])
        note()
        vault.delete(["r31"])
        note()
        vault.add([record(31)])  # as many and the same as before
        note()
        vault.replace_made("LaMP_4", None, [])
        assert vault.mark == marks[-1]
        give(home, TASK, {"text": "q"}, answer="a", correction="b", batch="x")
        note()
        vault.feedback.mark(["x"], "doubtful")
        note()
        list(vault.find())
        vault.delete(["unknown"])
        assert vault.mark == marks[-1]


def test_an_older_vault_that_was_put_back_is_noticed(home: Home, tmp_path: Path) -> None:
    open_memory(home).close()
    shutil.copy(home.vault_file, tmp_path / "backup")
    with home.open_vault() as vault:
        vault.add([record(40, input={"text": "zebra"})])
    assert search(home, "zebra", 1) == ["r40"]
    shutil.copy(tmp_path / "backup", home.vault_file)
    for file in home.path.glob("vault.db-*"):
        file.unlink()
    with home.open_vault() as vault:
        vault.add([record(41, input={"text": "yak"})])
    assert search(home, "zebra yak", 1) == ["r41"]
    with open_memory(home) as store:
        assert store.sizes() == {"LaMP_4": 31, "LaMP_3": 1}


def test_a_running_one_sees_new_records_and_loses_erased_ones(home: Home) -> None:
    from pfi.profile.erase.erasure import erase

    runtime = Runtime(home)
    assert "r50" not in [r.id for r in runtime.memory(TASK).search("quokka", 1)]
    with home.open_vault() as vault:
        vault.add([record(50, input={"text": "a quokka"})])
    memory = runtime.memory(TASK)
    assert [r.id for r in memory.search("quokka", 1)] == ["r50"]
    erase(home, ["r50"])
    assert "r50" not in [r.id for r in memory.search("quokka", 99)]
    assert "r50" not in [r.id for r in runtime.memory(TASK).search("quokka", 99)]
    runtime.close()


def test_doubtful_feedback_is_not_found_until_it_is_trusted(home: Home) -> None:
    give(home, TASK, {"text": "a walrus"}, answer="x", correction="Walrus", batch="b")
    assert search(home, "walrus", 1)[0].startswith("feedback-")
    with home.open_vault() as vault:
        vault.feedback.mark(["b"], "doubtful")
    assert not search(home, "walrus", 1)[0].startswith("feedback-")
    trust(home, "b")
    assert search(home, "walrus", 1)[0].startswith("feedback-")


@pytest.mark.parametrize("undated", [(), (1, 4), range(9)])
@pytest.mark.parametrize("how", ["bm25", "hybrid", "recent"])
def test_records_read_when_found_are_those_of_the_history(
    home: Home, how: Any, undated: Any
) -> None:
    home.config.search = {"how": how}
    with home.open_vault() as vault:
        vault.clear()
        vault.add(
            record(n, time=None) if n in undated else record(8 - n, id=f"r{n}") for n in range(9)
        )
        vault.add([record(20, origin="synthetic")])
        vault.excluded.add(["r2"])
    give(home, TASK, {"text": "old rain"}, answer="x", correction="y", batch="doubted")
    give(home, TASK, {"text": "new rain"}, answer="x", correction="y", batch="kept")
    with home.open_vault() as vault:
        vault.feedback.mark(["doubted"], "doubtful")
        history = vault.history("LaMP_4", origin="real")
        outlines = vault.outlines("LaMP_4")
        assert [(o.id, o.time, o.source) for o in outlines.records] == [
            (r.id, r.time, r.source) for r in history
        ]
        assert outlines.mark == vault.mark
        everything = [r.id for r in vault.find()]
        assert vault.outlined(outlines, everything) == {r.id: r for r in history}
        assert len(history) == 9
    plain = Memory(TASK, history, embedder=HashEmbedder(32), config=SearchConfig(how=how))
    runtime = Runtime(home)
    memory = runtime.memory(TASK)
    assert isinstance(memory, ListedMemory)
    for query in ("rain at the harbour", "old choir", ""):
        for before in (None, DAY + timedelta(5), datetime.now(UTC)):
            assert memory.search(query, 4, before=before) == plain.search(query, 4, before=before)
    runtime.close()


def test_another_definition_of_a_task_is_searched_by_its_own_texts(home: Home) -> None:
    titled = TASK.model_copy(update={"document": ["title"]})
    runtime = Runtime(home)
    assert isinstance(runtime.memory(TASK), ListedMemory)
    other = Runtime(home)
    assert [r.id for r in other.memory(titled).search("Title 17", 1, how="bm25")] == ["r17"]
    for one in (runtime, other):
        one.close()


def test_another_searched_text_of_a_task_is_indexed_anew(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_memory(home).close()
    titled = TASK.model_copy(update={"document": ["title"]})
    monkeypatch.setattr("pfi.profile.answer.memory.tasks", lambda: {**tasks(), "LaMP_4": titled})
    monkeypatch.setattr(
        "pfi.memory.store.get_task", lambda name: titled if name == "LaMP_4" else get_task(name)
    )
    module._all_texts.cache_clear()
    told: list[tuple[int, int]] = []
    open_memory(home, on_progress=lambda done, total: told.append((done, total))).close()
    module._all_texts.cache_clear()
    assert told[-1] == (30, 30)


def test_a_vault_that_changes_while_a_memory_is_made_is_searched_as_it_is_now(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Vault.outlines

    def late(vault: Vault, task: str) -> Any:
        vault.add([record(60, input={"text": "a zebra"})])
        return true(vault, task)

    monkeypatch.setattr(Vault, "outlines", late)
    runtime = Runtime(home)
    memory = runtime.memory(TASK)
    assert not isinstance(memory, ListedMemory)
    assert [r.id for r in memory.search("zebra", 1)] == ["r60"]
    runtime.close()


def test_synthetic_records_are_not_found(home: Home) -> None:
    assert "s" not in search(home, "rain", 99)
    assert memory_status(home)["indexed"] == 31


def test_a_task_from_a_file_has_a_memory(home: Home, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "src/pfi/tasks/definitions/LaMP_4.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("LaMP_4", "mine"))
    task = read_task(tmp_path / "mine.yaml")
    with home.open_vault() as vault:
        vault.add([record(n, id=f"m{n}", task=task.name) for n in range(3)])
    runtime = Runtime(home)
    assert len(runtime.memory(task).search("rain", 5)) == 3
    assert len(runtime.memory(TASK).search("rain", 99)) == 30
    runtime.close()


# Settings -----------------------------------------------------------------------------


def test_the_sentence_model_is_a_setting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    status = memory_status(home)
    assert (status["how"], status["embedder"]) == ("auto", "hash-32")
    home.config.embedder = "none"
    open_memory(home).close()
    assert memory_status(home)["embedder"] is None
    home.config.embedder = "minilm"
    open_memory(home).close()
    assert memory_status(home)["vectors"] == 31
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: HashEmbedder(8))
    open_memory(home).close()
    assert (memory_status(home)["embedder"], memory_status(home)["vectors"]) == ("hash-8", 31)
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        open_memory(home)
    home.config.embedder = "auto"
    assert home_embedder(home) is None
    assert search(home, "rain harbour", 2)  # by words
    home.config.search = {"how": "dense"}
    with pytest.raises(ConfigError, match="sentence model"):
        search(home, "rain", 1)


def test_search_by_words_needs_no_sentence_model(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", no_sync)
    for how in ("bm25", "recent"):
        home.config.search = {"how": how}
        assert len(search(home, "rain", 2)) == 2


@pytest.mark.parametrize("values", [{"how": "magic"}, {"recency": -1}, {"colour": "red"}])
def test_settings_without_sense_are_named(home: Home, values: dict[str, Any]) -> None:
    home.config.search = values
    with pytest.raises(ConfigError, match=f"search settings: {next(iter(values))}"):
        search(home, "rain", 1)


# Damage, kills and crowds -------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "noise", "cut", "other"])
def test_a_memory_that_is_missing_or_damaged_is_built_again(home: Home, harm: str) -> None:
    wanted = search(home, "storm in town", 4)
    file = home.memory_file
    for log in file.parent.glob("memory.db-*"):
        log.unlink()
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "noise":
        file.write_bytes(os.urandom(len(data)))
    elif harm == "cut":
        file.write_bytes(data[: len(data) // 3])
    else:
        file.unlink()
        db = sqlite3.connect(file)
        db.execute("CREATE TABLE other (x)")
        db.close()
    assert search(home, "storm in town", 4) == wanted
    assert memory_status(home)["indexed"] == 31


KILLED = """
import sys
from pfi.profile.open import open_home
import pfi.memory.embedders as embedders, pfi.memory.store as store
from pfi.profile.answer.memory import rebuild_memory
embedders.find_embedder = lambda name: embedders.HashEmbedder(32)
store.BATCH = 5
def tell(done, total):
    print(done, flush=True)
    sys.stdin.readline()
rebuild_memory(open_home(), on_progress=tell)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("batches", [1, 4])
def test_killed_while_indexing_nothing_is_lost(home: Home, batches: int) -> None:
    wanted = search(home, "storm in town", 4)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin and process.stdout
    for _ in range(batches):
        assert process.stdout.readline().strip().isdigit()
        process.stdin.write(b"\n")
        process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < memory_status(home)["indexed"] < 31
    told: list[int] = []
    open_memory(home, on_progress=lambda done, total: told.append(total)).close()
    assert told and told[0] < 31  # it went on, and did not begin anew
    assert search(home, "storm in town", 4) == wanted
    assert memory_status(home)["vectors"] == 31


def test_threads_that_sync_different_states_leave_the_last_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Vault.history

    def slow(*args: Any, **named: Any) -> Any:
        found = true(*args, **named)
        time.sleep(0.02)  # so that others may change the vault meanwhile
        return found

    monkeypatch.setattr(Vault, "history", slow)
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            with home.open_vault() as vault:
                vault.add([record(100 + n)])
                vault.delete([f"r{n}"])
            open_memory(home).close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with open_memory(home) as store, home.open_vault() as vault:
        assert set(store.entries("LaMP_4")) == {r.id for r in true(vault, "LaMP_4", origin="real")}
        assert sync_memory(home, store) == store.mark


def test_rebuild_makes_the_same_again(home: Home) -> None:
    wanted = search(home, "storm in town", 4)
    rebuild_memory(home)
    assert memory_status(home)["indexed"] == 31
    assert search(home, "storm in town", 4) == wanted


# The vault ----------------------------------------------------------------------------


def test_find_meets_all_conditions_newest_first(home: Home) -> None:
    with home.open_vault() as vault:
        vault.add([Record("u", "LaMP_6", {"text": "Straße", "title": "x"}, "y", source="git:a")])
        everything = [r.id for r in vault.find()]
        assert everything[0] == "u"  # undated: as of when it was added
        assert everything[1:4] == ["r29", "r28", "r27"] and len(everything) == 33
        assert [r.id for r in vault.find(task="LaMP_4", limit=2)] == ["r29", "r28"]
        old = [r.id for r in vault.find(before=DAY + timedelta(2))]
        assert old == ["r1", "c", "r0"] or old == ["r1", "r0", "c"]
        assert [r.id for r in vault.find(source="git:")] == ["u"]
        assert [r.id for r in vault.find(source="GIT:")] == []
        assert [r.id for r in vault.find(text="STRASSE")] == ["u"]
        assert [r.id for r in vault.find(text="title 2", limit=1)] == ["r29"]
        assert [r.id for r in vault.find(ids={"r1", "c", "no"}, task="LaMP_3")] == ["c"]
        assert next(vault.find(ids={"u"})).time is None


def test_a_vault_of_an_earlier_version_gets_a_mark(home: Home) -> None:
    with sqlite.connect(home.vault_file, key=home.keys.database("vault")) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            db.execute(f"DROP TRIGGER {name}")
        for table in ("marks", "settings", "excluded"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 3")
    with home.open_vault() as vault:
        first = vault.mark
        vault.add([record(60)])
        assert vault.mark != first
