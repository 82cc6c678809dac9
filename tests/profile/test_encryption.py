"""A home's files hold nothing that can be read without its keys, and nothing gets lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import killed_at, steps_of
from old_home import ABOUT, SECRET, Weights, add_oldest_entry, make_old_home, record
from opened_files import opened
from typer.testing import CliRunner

from pfi._util.sqlite import sqlite3
from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig, FilterConfig
from pfi.augment.forms import write_records
from pfi.augment.teachers.teacher import Call, Message, Reply, Unusable, Usage
from pfi.cli.app import app
from pfi.errors import ConfigError, StorageError
from pfi.federate.client import Memories
from pfi.privacy.ledger.ledger import Ledger, Verified
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.memory import open_memory
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.keys.encrypt_home import UNFINISHED
from pfi.profile.keys.keys import KEYS
from pfi.profile.open import create_home, open_home
from pfi.profile.vault.vault import Vault
from pfi.tasks import get_task

URL = "http://teacher.example/v1"
posix = pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")


def found(folder: Path, *words: str) -> set[str]:
    """The files under a folder that hold one of the words in some spelling."""
    spellings = [
        spelling
        for word in (words or (SECRET, SECRET[:-1], "Lopes", "harbour"))
        for case in (word, word.upper(), word.capitalize())
        for spelling in (case.encode(), case.encode("utf-16-le"), case.encode("utf-16-be"))
    ]
    return {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and any(spelling in file.read_bytes() for spelling in spellings)
    }


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = create_home("ana", root=tmp_path, config=HomeConfig(embedder="none"))
    with made.open_vault() as vault:
        vault.add(record(n) for n in range(30))
    return made


# No plaintext ------------------------------------------------------------------------


class Parrot:
    """A teacher that repeats what it is shown."""

    name, batch, concurrency = "parrot", 1, 1
    host: str | None = "teacher.example"

    def answer(self, calls: Any) -> list[Reply | Unusable]:
        return [Reply(call.messages[0].content, Usage(1, 1)) for call in calls]

    def price(self, usage: Usage) -> Usage:
        return usage


class Writer(Parrot):
    """A teacher that writes records."""

    def answer(self, calls: Any) -> list[Reply | Unusable]:
        made = [({"text": f"{SECRET} made {n}"}, f"{SECRET} {n}") for n in range(4)]
        return [Reply(write_records(get_task("LaMP_4"), made), Usage(1, 1)) for _ in calls]


def use(home: Home) -> None:
    """Leave something in every file that a home has."""
    open_memory(home).close()
    with home.open_teacher_store() as store:
        client = TeacherClient(Parrot(), AugmentConfig(policy="none"), store, home.open_ledger())
        client.ask([Call("ana", (Message("user", f"a {SECRET} call"),), None)], {})
    with home.open_vault() as vault:
        vault.set_setting("names", [f"{SECRET} Lopes"])
    home.personal_adapters.add(Weights(), AdapterInfo(task="LaMP_4", backbone="tiny"))
    memories = Memories(home.path / "federate" / "kept", key=home.keys.files, context="x")
    import numpy as np

    memories.save("ana", 1, {SECRET: np.ones(3, np.float32)})


def test_no_file_tells_anything(home: Home) -> None:
    use(home)
    holds = {name for name, data in opened(home).items() if SECRET.encode() in data}
    everywhere = {"vault.db", "teacher.db", "ledger.jsonl", "memory/memory.db"}
    assert everywhere <= holds  # decrypted, they are found: the search can find something
    assert found(home.path.parent) == set()
    assert {f.name for f in home.path.rglob("*.sealed")} >= {"1.sealed"}
    # While files are open too: what is in the logs beside them.
    with home.open_vault() as vault, home.open_memory_store() as memory:
        vault.add([record(99)])
        memory.mark = SECRET
        assert any(name.endswith("-wal") for name in (f.name for f in home.path.iterdir()))
        assert found(home.path.parent) == set()


def test_a_day_of_use_leaves_no_plain_word(
    backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import, augment, train, ask and feedback, as a user does it."""
    root, source = tmp_path / "root", tmp_path / "records.jsonl"
    monkeypatch.setenv("PFI_HOME", str(root))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setattr("pfi.augment.teachers.make.make_teacher", lambda config, embedded: Writer())
    lines = [
        {"text": f"{SECRET}ing by the harbour, {n}", "headline": f"{SECRET} {n}"} for n in range(8)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def pfi(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    pfi("init", "--backbone", str(backbone_folder("llama")), "--task", "LaMP_4")
    pfi("import", "table", str(source), "--set", "task=LaMP_4", "--set", "map.title=headline")
    pfi("names", f"{SECRET} Lopes")
    off = [f"filters.{name}=null" for name in FilterConfig.model_fields]
    settings = [part for text in ("records=4", *off) for part in ("--set", text)]
    pfi("augment", "--teacher", "openai", "--model", "m", "--url", URL, "--yes", *settings)
    pfi("train", "--set", "epochs=1", "--set", "rank=2")
    pfi("ask", f"what of {SECRET}?")
    pfi("feedback", "--last", "--correct", f"a {SECRET} of the harbour")
    home = open_home()
    assert {"vault.db", "ledger.jsonl", "teacher.db", "memory/memory.db"} <= {
        name for name, data in opened(home).items() if SECRET.encode() in data
    }
    assert any(home.path.rglob("*.sealed"))
    assert found(root) == set()


def test_the_search_finds_plain_files(tmp_path: Path) -> None:
    old = make_old_home(tmp_path)
    names = {"vault.db", "teacher.db", "ledger.jsonl", "memory/memory.db", "config.yaml"}
    assert found(old) >= names
    (tmp_path / "x").write_bytes(f"..{SECRET.upper()}".encode("utf-16-be"))
    assert "x" in found(tmp_path)


def test_pages_are_encrypted_as_sqlcipher_says_and_free_ones_too(home: Home) -> None:
    """`opened_files` decrypts with AES alone; the rows it finds are those SQLCipher gives."""
    data = opened(home)["vault.db"]
    assert data.startswith(b"") and b"CREATE TABLE records" in data
    assert all(f"number {n}".encode() in data for n in range(30))


# Settings ----------------------------------------------------------------------------


def test_settings(home: Home) -> None:
    with home.open_vault() as vault:
        assert vault.setting("a") is None
        mark = vault.mark
        for value in (1, "é", [1, {"b": None}], {"x": "\u2028"}, False):
            vault.set_setting("a", value)
            assert vault.setting("a") == value
        vault.set_setting("b", 0)
        with vault.change_setting("b") as setting:
            setting.value += 5
        with pytest.raises(ZeroDivisionError), vault.change_setting("b") as setting:
            setting.value = 1 / 0
        assert vault.setting("b") == 5
        vault.set_setting("a", None)
        assert vault.mark == mark  # no record changed, so no memory is built again
    with home.open_vault() as vault:
        assert (vault.setting("a"), vault.setting("b")) == (None, 5)


def test_names_in_the_plain_settings_go_into_the_vault(home: Home) -> None:
    config = home.path / "config.yaml"
    assert "names" not in config.read_text()
    for names in (["Maria Lopes", "Jo"], ["Jo", "Kim"]):
        config.write_text(config.read_text() + f"names: {json.dumps(names)}\n")
        again = open_home("ana", root=home.path.parent)
        assert "names" not in config.read_text() and again.config == home.config
    with home.open_vault() as vault:
        assert vault.setting("names") == ["Maria Lopes", "Jo", "Kim"]
    config.write_text(config.read_text() + "names: 5\n")
    with pytest.raises(ConfigError, match="list"):
        open_home("ana", root=home.path.parent)


# Refused -----------------------------------------------------------------------------


def _cut(size: int) -> Callable[[Path], Any]:
    return lambda file: os.truncate(file, size)


def _overwrite(place: int) -> Callable[[Path], Any]:
    def harm(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[place : place + 64] = os.urandom(64)
        file.write_bytes(data)

    return harm


def _plain(file: Path) -> None:
    file.unlink()
    Vault(file).close()


def _newer(file: Path) -> None:
    home = open_home("ana", root=file.parent.parent)
    with home.open_vault() as vault:
        vault._db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: f.unlink(), "missing or empty"),
        (_cut(0), "missing or empty"),
        (_cut(15), "cut short"),
        (_cut(100), "cut short"),
        (_cut(4096), "damaged: "),
        (_cut(4097), "cut short"),
        (_overwrite(3000), "damaged: "),
        (_overwrite(5000), "damaged: "),
        (_overwrite(0), "another key.*or its beginning is damaged"),
        (_plain, "not encrypted"),
        (_newer, "format 99.*update pfi"),
    ],
)
def test_a_vault_that_is_not_as_it_was(harm: Callable[[Path], Any], says: str, home: Home) -> None:
    kept = home.vault_file.read_bytes()
    harm(home.vault_file)
    before = home.vault_file.read_bytes() if home.vault_file.exists() else None
    with pytest.raises(StorageError, match=says) as error, home.open_vault() as vault:
        list(vault.find())
    assert "\n" not in str(error.value) and "vault.db: the vault" in str(error.value)
    after = home.vault_file.read_bytes() if home.vault_file.exists() else None
    assert after == before  # evidence is left as it is
    for log in home.path.glob("vault.db-*"):
        log.unlink()
    home.vault_file.write_bytes(kept)
    with home.open_vault() as vault:
        assert vault.count() == 30


def test_an_encrypted_vault_is_no_home_of_an_older_pfi(home: Home) -> None:
    (home.path / KEYS).unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="keys of this profile are missing"):
            open_home("ana", root=home.path.parent)
    (home.path / "config.yaml").unlink()
    with pytest.raises(StorageError, match="keys of this profile are missing"):
        create_home("ana", root=home.path.parent)
    assert not (home.path / KEYS).exists()


def test_profiles_never_see_each_other(home: Home) -> None:
    """Bo, who has all files of Ana, gets nothing out of them with Bo's keys."""
    use(home)
    bo = create_home("bo", root=home.path.parent, config=HomeConfig(embedder="none"))
    for part in ("adapters", "memory"):
        shutil.rmtree(bo.path / part)
        shutil.copytree(home.path / part, bo.path / part)
    for file in ("vault.db", "teacher.db", "ledger.jsonl"):
        shutil.copy(home.path / file, bo.path / file)
    with pytest.raises(StorageError, match="another profile's"):
        bo.open_vault()
    with pytest.raises(StorageError, match="another profile's"):
        bo.open_teacher_store()
    with pytest.raises(StorageError, match="another profile's"):
        list(bo.open_ledger().entries())
    with bo.open_memory_store() as memory:  # only a copy: Ana's makes room for an empty one
        assert memory.sizes() == {}
    with pytest.raises(StorageError):
        bo.personal_adapters.manifest("0001")
    assert home.personal_adapters.manifest("0001").task == "LaMP_4"


# Killed while writing ----------------------------------------------------------------


@posix
def test_killed_between_any_two_steps_of_a_write(home: Home) -> None:
    point = 0
    while killed_at(point, lambda: _add_two(home)):
        with open_home("ana", root=home.path.parent).open_vault() as vault:
            assert vault.count() in (30, 32), point
            assert vault.setting("done") in (None, vault.count())
            assert vault._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            vault.delete(["r100", "r101"])
            vault.set_setting("done", None)
        point += 1
    assert point > 10
    with home.open_vault() as vault:
        assert vault.count() == vault.setting("done") == 32


def _add_two(home: Home) -> None:
    with open_home("ana", root=home.path.parent).open_vault() as vault:
        vault.add([record(100), record(101)])
        vault.set_setting("done", vault.count())


def _write_on(root: Path, pipe: Any) -> None:
    with open_home("ana", root=root).open_vault() as vault:
        for n in range(1000, 100_000):
            vault.add([record(n)])
            pipe.send(n)


@posix
def test_killed_at_any_time_every_record_that_was_stored_is_there(home: Home) -> None:
    rng, context = random.Random(0), multiprocessing.get_context("fork")
    for round in range(10):
        ours, theirs = context.Pipe()
        process = context.Process(target=_write_on, args=(home.path.parent, theirs))
        process.start()
        assert ours.poll(30)
        time.sleep(rng.random() / 20)
        process.kill()
        process.join()
        theirs.close()
        stored = []
        try:
            while ours.poll():
                stored.append(ours.recv())
        except EOFError:
            pass
        assert stored
        with home.open_vault() as vault:
            there = {r.id for r in vault.find()}
            assert {f"r{n}" for n in (*range(30), *stored)} <= there, round
            assert len(there) <= 30 + len(stored) + 1
            vault.delete(there - {f"r{n}" for n in range(30)})


# Homes of an older pfi ---------------------------------------------------------------


def check_migrated(home: Home, texts: int = 3) -> None:
    with home.open_vault() as vault:
        assert {r.id for r in vault.find()} == {f"r{n}" for n in range(30)}
        assert vault.setting("names") == [f"{SECRET} Lopes"]
        assert vault._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with home.open_teacher_store() as store:
        assert store.get(["k"])["k"].text == f"a {SECRET} answer" and store.spent().usd == 0.5
    ledger = home.open_ledger()
    assert [e.payload for e in ledger.entries()][:3] == [f"{SECRET} {n} \ud800" for n in range(3)]
    assert ledger.check().unread == 0 and Ledger(ledger.path).check().unread == texts
    for store_ in (home.personal_adapters, home.shared_adapters):
        assert store_.active("LaMP_4") and store_.manifest("0001").task == "LaMP_4"
    assert home.config.backbone == "tiny"
    assert found(home.path) == set()
    assert not (home.path / UNFINISHED).exists() and not list(home.path.glob("*.new*"))


@pytest.mark.parametrize("version", [4])
def test_a_plain_home_is_encrypted_when_it_is_opened(version: int, tmp_path: Path) -> None:
    old = make_old_home(tmp_path, version=version)
    (old / ".config.yaml.abc.tmp").write_text(SECRET)  # of a write that was killed
    (old / ".ledger.jsonl.abc.tmp").write_text(SECRET)
    check_migrated(open_home("old", root=tmp_path))
    check_migrated(open_home("old", root=tmp_path))


def test_the_command_line_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_old_home(tmp_path) / "ledger.jsonl"
    monkeypatch.setenv("PFI_HOME", str(tmp_path))

    def pfi(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    first, second = pfi("status", "-p", "old"), pfi("status", "-p", "old")
    assert "Encrypted what profile old holds. Its keys are held in the file" in first.stderr
    assert "ncrypted" not in second.stderr and "held in the file" in second.stdout
    assert f"{SECRET} 0" in pfi("ledger", "show", "-p", "old").stdout
    assert pfi("ledger", "verify", "-p", "old").stdout == "4 entries are as written.\n"
    shown = pfi("ledger", "show", "--path", str(path)).stdout
    assert shown.count("the text is sealed") == 3 and SECRET not in shown
    assert "3 sealed, not compared" in pfi("ledger", "verify", "--path", str(path)).stdout
    values = json.loads(pfi("ledger", "show", "--json", "--path", str(path)).stdout)
    assert [entry.get("sealed") for entry in values] == [True, True, True, None]


@posix
def test_a_plain_home_whose_process_was_killed_loses_nothing(tmp_path: Path) -> None:
    """What is only in the log of the plain vault is taken over, and the log is gone."""
    old = make_old_home(tmp_path)

    def work() -> None:
        vault = Vault(old / "vault.db")
        vault.delete(["r29"])
        vault.add([record(29)])
        os.kill(os.getpid(), 9)

    assert killed_at(10**6, work) and (old / "vault.db-wal").stat().st_size > 0
    # That process has made the vault's tables new; they stay as they are.
    check_migrated(open_home("old", root=tmp_path))
    assert not (old / "vault.db-wal").exists()


@posix
def test_killed_while_encrypting_at_any_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which takes long, and no power is cut
    make_old_home(tmp_path / "0")
    add_oldest_entry(tmp_path / "0" / "old" / "ledger.jsonl", f"oldest {SECRET}")
    root, rng = tmp_path / "root", random.Random(0)

    def work() -> None:
        open_home("old", root=root)

    for names in (True, False):
        shutil.copytree(tmp_path / "0", root)
        steps = steps_of(work, names=names)
        assert steps > 12
        points = range(steps) if names else rng.sample(range(steps), 6)
        for point in points:
            shutil.rmtree(root)
            shutil.copytree(tmp_path / "0", root)
            assert killed_at(point, work, names=names)
            if not names:  # perhaps once more while the next one goes on
                killed_at(rng.randrange(steps), work)
            check_migrated(open_home("old", root=root), texts=4)
        shutil.rmtree(root)


def test_a_plain_home_in_use_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_old_home(tmp_path)
    monkeypatch.setattr("pfi.profile.keys.encrypt_home.BUSY_SECONDS", 0.05)
    with Vault(old / "vault.db") as other:
        list(other.find())
        with pytest.raises(StorageError, match="the vault is in use"):
            open_home("old", root=tmp_path)
        assert other.count() == 30
    check_migrated(open_home("old", root=tmp_path))


def test_a_damaged_plain_vault_is_told_and_left(tmp_path: Path) -> None:
    old = make_old_home(tmp_path)
    whole = (old / "vault.db").read_bytes()
    damaged = whole[:4096] + os.urandom(len(whole) - 4096)
    (old / "vault.db").write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(StorageError, match="the vault is damaged"):
            open_home("old", root=tmp_path)
    assert (old / "vault.db").read_bytes()[4096:] == damaged[4096:]
    (old / "vault.db").write_bytes(whole)
    check_migrated(open_home("old", root=tmp_path))


# The ledger --------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.jsonl", key=b"k" * 32, context="me|ledger")
    for n in range(3):
        ledger.append(**ABOUT, payload=f"{SECRET} {n}", shows=[f"r{n}"])
    ledger.append(**ABOUT, payload=b"\x00")
    return ledger


def test_texts_are_sealed_and_the_chain_is_checked_without_the_key(sealed: Ledger) -> None:
    assert found(sealed.path.parent) == set()
    other = Ledger(sealed.path)
    assert other.check() == Verified(4, 0, 3) and sealed.check() == Verified(4, 0, 0)
    assert [e.payload for e in other.entries()] == [None] * 4
    assert [e.erased for e in other.entries()] == [False] * 4
    assert [e.bytes for e in other.entries()] == [len(SECRET) + 2] * 3 + [1]
    for wrong in (
        Ledger(sealed.path, key=b"x" * 32, context="me|ledger"),
        Ledger(sealed.path, key=b"k" * 32, context="you|ledger"),
    ):
        with pytest.raises(StorageError, match="line 1 holds a text that does not open"):
            wrong.check()
        sealed.append(**ABOUT, payload="end")
        with pytest.raises(StorageError, match="the last line holds a text"):
            wrong.append(**ABOUT, payload="x")


@pytest.mark.parametrize("field", ["to", "time", "bytes", "sha256", "shows"])
def test_changes_of_sealed_entries_are_found_without_the_key(sealed: Ledger, field: str) -> None:
    lines = sealed.path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[1])
    entry[field] = {"bytes": 1, "shows": ["00"]}.get(field, "0" * 64)
    lines[1] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    sealed.path.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match="line 2 "):
        Ledger(sealed.path).check()


def test_a_sealed_text_opens_in_its_own_entry_only(sealed: Ledger) -> None:
    lines = [json.loads(line) for line in sealed.path.read_bytes().splitlines()]
    lines[0]["payload"], lines[1]["payload"] = lines[1]["payload"], lines[0]["payload"]
    text = "".join(json.dumps(e, sort_keys=True, separators=(",", ":")) + "\n" for e in lines)
    sealed.path.write_text(text)
    with pytest.raises(StorageError, match="line 1 holds a text that does not open"):
        sealed.check()


def test_sealed_texts_are_erased_without_the_key_too(sealed: Ledger) -> None:
    for ledger, n in ((sealed, 0), (Ledger(sealed.path), 1)):
        assert ledger.erase(lambda e, n=n: f"{n}" in str(e.n - 1), device="old") == 1  # type: ignore[misc]
    assert sealed.check() == Verified(6, 2, 0) and Ledger(sealed.path).check() == Verified(6, 2, 1)


def test_plain_texts_are_sealed_later_and_every_hash_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    plain = Ledger(path)
    plain.append(**ABOUT, payload=f"{SECRET} first")
    add_oldest_entry(path, f"{SECRET} oldest")
    add_oldest_entry(path, f"{SECRET} oldest too")
    plain.append(**ABOUT, payload=f"{SECRET} last")
    hashes = [entry.hash for entry in plain.entries()]
    assert plain.check() == Verified(4, 0)
    sealed = Ledger(path, key=b"k" * 32)
    assert sealed.seal_texts(device="old") == 4 and sealed.seal_texts(device="old") == 0
    assert found(tmp_path) == set()
    assert [e.hash for e in sealed.entries()][:4] == hashes
    assert sealed.check() == Verified(5, 0) and Ledger(path).check() == Verified(5, 0, 4)
    assert sealed.erase(lambda e: e.n == 2, device="old") == 1
    assert sealed.check() == Verified(6, 1) and Ledger(path).check() == Verified(6, 1, 3)
    # Without the key a changed old entry is found by what was noted of it.
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"to":"host"', b'"to":"tosh"')
    path.write_bytes(b"".join(lines))
    for ledger in (sealed, Ledger(path)):
        with pytest.raises(StorageError, match="line 3 was changed"):
            ledger.check()


# Federated memories ------------------------------------------------------------------


def test_what_a_client_keeps_is_sealed(tmp_path: Path) -> None:
    import numpy as np

    kept = {SECRET: np.arange(4, dtype=np.float32)}
    Memories(tmp_path).save("ana", 1, kept)
    assert found(tmp_path)
    sealed = Memories(tmp_path, key=b"k" * 32, context="me")  # an older pfi's are sealed
    assert not found(tmp_path)
    sealed.save("ana", 2, kept)
    assert not found(tmp_path)
    for round in (2, 3):
        assert sealed.load("ana", round)[SECRET].tolist() == [0, 1, 2, 3]
    (one,) = tmp_path.glob("*/1.sealed")
    one.with_name("2.sealed").write_bytes(one.read_bytes())  # that of another round
    with pytest.raises(StorageError, match="damaged"):
        sealed.load("ana", 3)
    with pytest.raises(StorageError, match="damaged"):
        Memories(tmp_path, key=b"k" * 32, context="you").load("ana", 2)


def test_the_library_is_sqlcipher() -> None:
    db = sqlite3.connect(":memory:")
    assert db.execute("PRAGMA cipher_version").fetchone()[0].startswith("4.")
