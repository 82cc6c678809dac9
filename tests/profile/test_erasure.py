"""Erasing: an erased record is found by no query and stands in no file of the device."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opened_files import opened

from pfi._util import sqlite
from pfi._util.sqlite import sqlite3
from pfi.augment.cache import TeacherStore
from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig, FilterConfig
from pfi.augment.forms import write_answer, write_records
from pfi.augment.pipeline import Augmenter
from pfi.augment.teachers.teacher import Call, Reply, Unusable, Usage
from pfi.errors import StorageError
from pfi.memory.embedders import HashEmbedder
from pfi.privacy.ledger.entries import fingerprint
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.memory import open_memory
from pfi.profile.answer.runtime import Runtime
from pfi.profile.erase.erasure import erase, finish_erasures
from pfi.profile.home import Home
from pfi.profile.open import create_home, open_home
from pfi.profile.vault.copies import Copies
from pfi.profile.vault.feedback import Feedback, Shown
from pfi.records import History, Record
from pfi.tasks import get_task

TASK = get_task("LaMP_4")
DAY = datetime(2024, 1, 1, tzinfo=UTC)
#: A stem that only the record to be erased has, with endings that stemming takes off.
SECRET = "quxblorft"
TOPICS = ["rain and tides", "a tea house", "cycle lanes", "a cup final", "the choir", "sourdough"]


def story(n: int) -> Record:
    """Record 2 is the secret one."""
    word = f"{SECRET}ing" if n == 2 else f"plain{n}"
    text = f"news of {TOPICS[n]}: the {word} of the harbour by night, as {word}s will"
    return Record(f"r{n}", "LaMP_4", {"text": text}, f"A {word} day", DAY + timedelta(n))


class NoJudge:
    """No filter asks it anything."""


class Parrot:
    """A teacher elsewhere that repeats words of what it is shown."""

    name, host, batch, concurrency = "parrot", "teacher.example", 1, 1

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        return [self._one(call) for call in calls]

    def _one(self, call: Call) -> Reply:
        text = " ".join(message.content for message in call.messages)
        word = f"{SECRET}ed" if SECRET in text else "nothing"
        if call.form is None:
            return Reply(f"Somebody who is {word}", Usage(9, 9))
        made = [({"text": f"{word} {n} {len(text)} over town"}, f"{word} {n}") for n in range(4)]
        return Reply(write_records(TASK, made), Usage(9, 9))

    def price(self, usage: Usage) -> Usage:
        return usage


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that imported, indexed, searched, augmented and was told what is wrong."""
    root = tmp_path_factory.mktemp("used")
    made = create_home(root=root)
    with made.open_vault() as vault:
        vault.add(story(n) for n in range(6))
        history = vault.history("LaMP_4", origin="real")
    off: dict[str, None] = dict.fromkeys(FilterConfig.model_fields)
    config = AugmentConfig(
        records=8,
        records_per_call=2,
        policy="none",
        strategies=["write", "vary", "profile"],
        filters=FilterConfig(**off),
    )
    with made.open_teacher_store() as store:
        client = TeacherClient(Parrot(), config, store, made.open_ledger())
        augmenter = Augmenter(TASK, config, client, NoJudge(), lambda text, count: text)
        (augmented,) = augmenter.augment([history])
    with made.open_vault() as vault:
        vault.add(augmented.records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pfi.memory.embedders.find_embedder", lambda name: HashEmbedder(64))
        runtime = Runtime(made)
        assert [r.id for r in runtime.memory(TASK).search(f"{SECRET}ing", 1)] == ["r2"]
        runtime.close()
    with made.open_vault() as vault:
        vault.feedback.remember(Shown("LaMP_4", DAY, {"text": "?"}, f"{SECRET}ing"), 5)
        about = {"batch": "b", "task": "LaMP_4", "time": DAY, "input": {"text": "what is new?"}}
        told = story(2).input["text"]
        entries = [
            Feedback(id="f1", answer=f"well, {told}", rating="bad", **about),
            Feedback(id="f2", answer="rain", rating="bad", **about),
        ]
        vault.feedback.add((entry, None) for entry in entries)
    return root


@pytest.fixture
def home(used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A copy of that device."""
    shutil.copytree(used, tmp_path / "root")
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.setattr("pfi.memory.embedders.find_embedder", lambda name: HashEmbedder(64))
    return open_home()


def traces(home: Home, word: str = SECRET) -> set[str]:
    """The files of the device that hold a word once decrypted, in any spelling that files have."""
    wanted = [word.encode(), word.encode("utf-16-le"), word.upper().encode()]
    files = opened(home).items()
    return {name for name, data in files if any(spelling in data for spelling in wanted)}


def connect(home: Home, file: Path) -> sqlite3.Connection:
    return sqlite.connect(file, key=home.keys.database(file.stem))


def names(paths: set[str]) -> set[str]:
    return {path.removesuffix("-wal") for path in paths}


MEMORY = "memory/memory.db"
EVERYWHERE = {"vault.db", "teacher.db", "ledger.jsonl", MEMORY}


def state(home: Home) -> dict[str, Any]:
    """All that a device holds, but the erased record and what tells of it."""
    with home.open_vault() as vault:
        records = [(r.id, dict(r.input), r.output) for r in vault.find()]
        feedback = [entry.id for entry in vault.feedback.entries()]
        answers = len(vault.feedback.answers())
    with open_memory(home) as store:
        found = store.memory(TASK, _history(home)).search("harbour", 9, how="hybrid")
    with home.open_teacher_store() as store:
        spent = store.spent()
    texts = [entry.payload is not None for entry in home.open_ledger().entries()]
    return {
        "records": records,
        "feedback": feedback,
        "last": answers,
        "found": [record.id for record in found],
        "spent": spent,
        "texts": texts,
        "erasing": [file.name for file in home.path.glob("*erasing*")],
    }


def _history(home: Home) -> Any:
    with home.open_vault() as vault:
        return vault.history("LaMP_4", origin="real")


def vacuum(home: Home) -> None:
    for file in (home.path / "vault.db", home.teacher_file, home.memory_file):
        db = connect(home, file)
        db.execute("VACUUM")
        db.close()


def test_an_erased_record_stands_in_no_file(home: Home) -> None:
    assert names(traces(home)) == EVERYWHERE  # the search can find it
    vector = HashEmbedder(64).embed([TASK.document_text(story(2))]).astype("<f2").tobytes()
    assert vector in opened(home)[MEMORY]
    with connect(home, home.memory_file) as db:
        blocks = b"".join(block for (block,) in db.execute("SELECT block FROM words_1_data"))
    assert SECRET.encode() in blocks  # the stem, as full-text search keeps it
    before = state(home)
    made = [id_ for id_, fields, _ in before["records"] if SECRET in str(fields) and id_ != "r2"]
    assert made
    erased = erase(home, ["r2"])
    assert traces(home) == set()
    assert vector not in opened(home)[MEMORY]
    assert traces(home, "plain3")  # and what was not asked for is there
    assert (erased.records, erased.missing) == (1, ())
    assert erased.synthetic >= len(made)
    assert erased.answers > 0 and erased.payloads > 0
    after = state(home)
    assert "r2" in before["found"] and "r2" not in after["found"]
    assert {"r0", "r1", "r3", "r4", "r5"} <= set(after["found"])
    assert after["feedback"] == ["f2"] and after["last"] == 0
    assert after["spent"] == before["spent"]
    checked = home.open_ledger().check()
    assert (checked.entries, checked.erased) == (len(before["texts"]) + 1, erased.payloads)
    assert 0 < erased.payloads < len(before["texts"])  # calls without it keep their text
    vacuum(home)
    assert traces(home) == set()
    assert state(home) == after


def test_logs_beside_the_databases_are_emptied(home: Home) -> None:
    # Connections that stay open keep the logs from being emptied when they close.
    others = [
        connect(home, file) for file in (home.vault_file, home.teacher_file, home.memory_file)
    ]
    for db in others:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    with home.open_vault() as vault:
        vault.add([replace(story(2), id="again", output=f"More {SECRET}ing")])
    open_memory(home).close()
    assert "vault.db-wal" in traces(home)
    erase(home, ["r2", "again"])
    assert traces(home) == set()
    assert (home.path / "vault.db-wal").exists()
    for db in others:
        db.close()


def test_a_reader_in_the_way_is_told_and_the_rest_follows(home: Home) -> None:
    reader = connect(home, home.vault_file)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM records").fetchone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pfi.profile.vault.vault.Vault.__init__.__kwdefaults__", {"busy_seconds": 0.05}
        )
        with pytest.raises(StorageError, match="in use"):
            erase(home, ["r2"])
        assert list(home.path.glob("erasing-*.json"))
        assert finish_erasures(home, strict=False) == 0
    reader.execute("ROLLBACK")
    reader.close()
    home.open_vault().close()
    assert traces(home) == set() and not list(home.path.glob("*erasing*"))


STAGES = [
    "pfi.profile.erase.erasure.write_json",
    "pfi.profile.vault.vault.Vault.delete",
    "pfi.profile.vault.vault.scrub",
    "pfi.memory.store.MemoryStore.delete",
    "pfi.memory.store.MemoryStore._remove",
    "pfi.augment.cache.TeacherStore.erase",
    "pfi.augment.cache.scrub",
    "pfi.privacy.ledger.ledger.Ledger.erase",
    "pfi.privacy.ledger.file.LedgerFile.rewrite",
    "pfi.privacy.ledger.file.sync_folder",
]


class Killed(BaseException):
    """What no code expects."""


def _outcome(home: Home) -> dict[str, Any]:
    found = state(home)
    found.pop("texts")
    return found


@pytest.mark.parametrize("after", [False, True])
def test_an_erasure_that_is_cut_off_anywhere_is_finished(
    home: Home, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(home.path, whole)
    erase(home, ["r2"])
    expected = _outcome(home)
    for stage in STAGES:
        shutil.rmtree(home.path)
        shutil.copytree(whole, home.path)
        before = {id_ for id_, *_ in state(home)["records"]}
        with monkeypatch.context() as patch:
            true = _looked_up(stage)

            def cut(*args: Any, _true: Any = true, **named: Any) -> Any:
                if after:
                    _true(*args, **named)
                raise Killed

            patch.setattr(stage, cut)
            with pytest.raises(Killed):
                erase(home, ["r2"])
        if stage == STAGES[0] and not after:  # nothing was begun, so nothing is lost
            assert {id_ for id_, *_ in state(home)["records"]} == before
            erase(home, ["r2"])
        home.open_vault().close()
        assert traces(home) == set(), stage
        assert _outcome(home) == expected, stage
        assert home.open_ledger().check().erased > 0, stage


def _looked_up(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        return getattr(getattr(__import__(module, fromlist=[kind]), kind), name)


KILLED = """
import os, signal, sys
from pathlib import Path
from pfi.profile.open import open_home
from pfi.profile.erase.erasure import erase
import {module} as module
target = module{attribute}
true = getattr(target, {name!r})
def kill(*args, **named):
    if {after}:
        true(*args, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(target, {name!r}, kill)
erase(open_home(), ["r2"])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("module", "attribute", "name", "after"),
    [
        ("pfi.profile.vault.vault", "", "scrub", False),
        ("pfi.privacy.ledger.file", ".os", "fdopen", True),
    ],
)
def test_killed_for_real(home: Home, module: str, attribute: str, name: str, after: bool) -> None:
    code = KILLED.format(module=module, attribute=attribute, name=name, after=after)
    run = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL
    home.open_vault().close()
    assert traces(home) == set()
    assert not list(home.path.glob(".*tmp"))
    assert {"r0", "r1", "r3", "r4", "r5"} <= {id_ for id_, *_ in state(home)["records"]}
    assert home.open_ledger().check().erased > 0


def test_many_random_records_leave_nothing(home: Home) -> None:
    """Pages that were divided and moved may hold copies; ones of all sizes are erased here."""
    import random

    rng = random.Random(5)
    many = [
        Record(
            f"m{n}",
            "LaMP_4",
            {"text": " ".join(f"zq{n}w{i}x" for i in range(rng.choice([3, 30, 300])))},
            f"Head zq{n}wx",
            DAY + timedelta(seconds=n),
        )
        for n in range(120)
    ]
    for start in range(0, 120, 30):  # the index grows by several writes
        with home.open_vault() as vault:
            vault.add(many[start : start + 30])
        open_memory(home).close()
    gone = rng.sample(range(120), 40)
    for part in (gone[:20], gone[20:]):
        erase(home, [f"m{n}" for n in part])
    data = opened(home)
    left = [n for n in gone for d in data.values() if f"zq{n}w".encode() in d]
    assert left == []
    kept = [n for n in range(120) if n not in gone]
    assert all(any(f"zq{n}w".encode() in d for d in data.values()) for n in kept)


def test_ids_that_the_vault_does_not_have_go_from_the_rest(home: Home) -> None:
    with connect(home, home.vault_file) as db:
        db.execute("DELETE FROM records WHERE id = 'r2'")
    erased = erase(home, ["r2", "never"])
    assert (erased.records, erased.missing) == (0, ("r2", "never"))
    assert erased.synthetic > 0 and erased.answers > 0
    assert names(traces(home)) <= {"vault.db"}  # what somebody else deleted without care


def test_erasing_a_synthetic_record_takes_the_answer_that_wrote_it(home: Home) -> None:
    with home.open_vault() as vault:
        made = [r for r in vault.find() if r.made and SECRET not in r.input["text"]]
    assert made and made[0].made
    text = made[0].input["text"]
    assert names(traces(home, text)) == {"vault.db", "teacher.db"}
    erased = erase(home, [made[0].id])
    assert erased.records == 1 and erased.answers > 0
    assert traces(home, text) == set()
    with home.open_vault() as vault:
        assert len(list(vault.find(ids={f"r{n}" for n in range(6)}))) == 6


def test_answers_and_texts_of_unknown_origin_go(home: Home) -> None:
    """Stores and ledgers of earlier versions do not say which records a call showed."""
    with connect(home, home.teacher_file) as db:
        answers = db.execute("SELECT count(*) FROM answers").fetchone()[0]
        db.execute("DROP TABLE shown")
        db.execute("PRAGMA user_version = 1")
    ledger = home.open_ledger()
    count = len(list(ledger.entries()))
    ledger.append(device="d", to="h", kind="old", policy="none", payload="anything")
    ledger.append(device="d", to="h", kind="round", policy="none", payload="{}", shows=())
    erased = erase(home, ["r3"])
    assert erased.answers == answers
    texts = {entry.n: entry.payload for entry in ledger.entries()}
    assert texts[count + 1] is None and texts[count + 2] == "{}"


def test_what_a_call_rests_on_is_known(home: Home) -> None:
    """Calls of the strategy `profile` show a summary of records beside other records."""
    entries = list(home.open_ledger().entries())
    told = [entry for entry in entries if SECRET in (entry.payload or "")]
    assert told and all(entry.shows for entry in entries)
    assert all(fingerprint("r2") in (entry.shows or ()) for entry in told)


def test_votes_rest_on_what_the_draft_was_made_from(tmp_path: Path) -> None:
    """They may show other records beside the draft."""
    task = get_task("LaMP_3")

    class Critic(Parrot):
        def _one(self, call: Call) -> Reply:
            if call.form is not None and "answer" in call.form.model_fields:
                return Reply(write_answer("5"), Usage(9, 9))
            seen = " ".join(message.content for message in call.messages)
            words = " ".join(re.findall(rf"{SECRET}\d", seen))
            return Reply(write_records(task, [({"text": f"so {words}"}, "4")]), Usage(9, 9))

    texts = [f"review of {TOPICS[n]} {SECRET}{n}" for n in range(6)]
    records = [Record(f"r{n}", "LaMP_3", {"text": text}, "5") for n, text in enumerate(texts)]
    off: dict[str, None] = dict.fromkeys(FilterConfig.model_fields)
    config = AugmentConfig(
        records=6,
        records_per_call=1,
        policy="none",
        strategies=["write"],
        votes=3,
        filters=FilterConfig(**off),
    )
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with TeacherStore(tmp_path / "teacher.db") as store:
        client = TeacherClient(Critic(), config, store, ledger)
        Augmenter(task, config, client, NoJudge(), lambda text, count: text).augment(
            [History("me", records)]
        )
    told = [
        (set(re.findall(rf"{SECRET}(\d)", entry.payload or "")), entry.shows or ())
        for entry in ledger.entries()
    ]
    assert any(len(numbers) > 1 for numbers, _ in told)
    assert all(fingerprint(f"r{n}") in shows for numbers, shows in told for n in numbers)


def test_adapters_that_may_have_learnt_from_it_are_named(home: Home) -> None:
    class Weights:
        def to_bytes(self) -> dict[str, bytes]:
            return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"{}"}

    info = AdapterInfo(task="LaMP_4", backbone="b", read=datetime.now(UTC))
    home.personal_adapters.add(Weights(), info)
    with home.open_vault() as vault:
        vault.add([replace(story(2), id="late", output="Late")])
    assert erase(home, ["late"]).learnt == ()
    assert erase(home, ["r1"]).learnt == ("0001",)


def test_copies() -> None:
    record = Record("a", "t", {"x": "One two three, four five six", "y": "big news today"}, "yes")
    copies = Copies([record])
    assert copies.repeated_in("so: TWO three four\nfive six!")
    assert copies.repeated_in("it was Big News today.")
    assert not copies.repeated_in("two three four and five six, big news, yes")
