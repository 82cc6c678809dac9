"""A ledger whose texts are sealed: what the file shows, what opens it, and what is found out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfi.errors import StorageError
from pfi.privacy.ledger import entries as module
from pfi.privacy.ledger.entries import (
    FINISH,
    MEASURE,
    READY,
    UPDATE,
    Entry,
    Updates,
    digest,
    fault,
    line_of,
    next_entry,
    utf8,
)
from pfi.privacy.ledger.file import LedgerFile
from pfi.privacy.ledger.ledger import ERASURE, SEALING, Ledger, Verified

ABOUT: dict[str, Any] = {"device": "ana", "to": "x.example", "kind": "call", "policy": "redact"}
KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def filled(ledger: Ledger, count: int = 3) -> None:
    for n in range(count):
        ledger.append(**ABOUT, payload=f"secret {n}", shows=[f"r{n}", "r9", f"r{n}"])


def old(count: int = 2) -> list[bytes]:
    """Lines as earlier versions wrote them: the hash is of all values, the text too."""
    lines: list[bytes] = []
    last: Entry | None = None
    for n in range(count):
        text = f"secret {n}"
        about = {**ABOUT, "payload": text, "bytes": len(text), "sha256": digest(text.encode())}
        entry = next_entry(about, last)
        last = replace(entry, hash=module._hash(replace(entry, hash="").to_dict()))
        lines.append(line_of(last))
    return lines


# What is in the file ------------------------------------------------------------------


def test_the_file_shows_that_something_was_sent_and_not_what(path: Path) -> None:
    ledger = Ledger(path, key=KEY, context="ana|ledger")
    filled(ledger)
    assert b"secret" not in path.read_bytes() and b"x.example" in path.read_bytes()
    assert [entry.payload for entry in ledger.entries()] == ["secret 0", "secret 1", "secret 2"]
    assert ledger.check() == Verified(3, 0, 0) and ledger.verify() == 3
    first = next(ledger.entries())
    assert first.shows == tuple(sorted(module.fingerprint(name) for name in ("r0", "r9")))
    # Without the key the chain is checked and the texts are not read.
    bare = Ledger(path)
    assert [entry.payload for entry in bare.entries()] == [None] * 3
    assert bare.check() == Verified(3, 0, 3)


def test_another_key_and_another_profile_open_nothing(path: Path) -> None:
    filled(Ledger(path, key=KEY, context="ana|ledger"))
    for stranger in (
        Ledger(path, key=OTHER, context="ana|ledger"),
        Ledger(path, key=KEY, context="bob|ledger"),
    ):
        with pytest.raises(StorageError, match="line 1 holds a text that does not open"):
            list(stranger.entries())
        with pytest.raises(StorageError, match="the last line holds a text that does not open"):
            stranger.append(**ABOUT, payload="more")


def test_a_text_that_was_put_into_another_entry_does_not_open(path: Path) -> None:
    ledger = Ledger(path, key=KEY)
    filled(ledger)
    values = [json.loads(line) for line in path.read_bytes().splitlines()]
    values[0]["payload"], values[1]["payload"] = values[1]["payload"], values[0]["payload"]
    path.write_bytes(b"".join(module.canonical(one).encode() + b"\n" for one in values))
    with pytest.raises(StorageError, match="line 1 holds a text that does not open"):
        ledger.check()
    assert Ledger(path).check() == Verified(3, 0, 3)  # nobody can tell without the key


@pytest.mark.parametrize("sealed", ["", "AAAA", "not base64!", 5, None])
def test_a_sealed_text_that_is_none(path: Path, sealed: Any) -> None:
    ledger = Ledger(path, key=KEY)
    filled(ledger, 1)
    values = json.loads(path.read_bytes())
    values["payload"] = {"sealed": sealed}
    path.write_bytes(module.canonical(values).encode() + b"\n")
    with pytest.raises(StorageError, match="line 1 "):
        ledger.check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": "1"}, {"bytes": 1.5}, {"payload": 5}, {"shows": "abc"}, {"to": None}, {"time": 7},
        {"more": 1}, {"cipher": 5},
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_no_entry(path: Path, wrong: dict[str, Any]) -> None:
    ledger = Ledger(path)
    filled(ledger, 1)
    values = json.loads(path.read_bytes()) | wrong
    path.write_bytes(module.canonical(values).encode() + b"\n")
    with pytest.raises(StorageError, match=r"line 1 (is not an entry|has a value)") as caught:
        list(ledger.entries())
    assert caught.value.fix and "evidence" in caught.value.fix


# Sealing what is there ----------------------------------------------------------------


def test_texts_from_before_there_was_a_key_are_sealed_once(path: Path) -> None:
    filled(Ledger(path))
    hashes = [entry.hash for entry in Ledger(path).entries()]
    ledger = Ledger(path, key=KEY)
    assert [entry.payload for entry in ledger.entries()] == ["secret 0", "secret 1", "secret 2"]
    assert ledger.seal_texts(device="ana") == 3
    assert b"secret" not in path.read_bytes() and ledger.check() == Verified(3, 0, 0)
    assert [entry.hash for entry in ledger.entries()] == hashes  # no note is needed for these
    assert ledger.seal_texts(device="ana") == 0
    assert Ledger(path.with_name("none"), key=KEY).seal_texts(device="ana") == 0


def test_old_hashes_are_explained_by_a_note(path: Path) -> None:
    path.write_bytes(b"".join(old()))
    ledger = Ledger(path, key=KEY)
    assert ledger.check() == Verified(2, 0, 0)
    assert ledger.seal_texts(device="ana") == 2
    *texts, note = ledger.entries()
    assert note.kind == SEALING and note.to == "nobody" and note.device == "ana"
    assert [text.payload for text in texts] == ["secret 0", "secret 1"]
    assert ledger.check() == Verified(3, 0, 0) and Ledger(path).check() == Verified(3, 0, 2)
    # Without its note it is a change like any other; so is another line than the noted one.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(StorageError, match="line 1 was changed"):
        Ledger(path).check()
    path.write_bytes(lines[0].replace(b"x.example", b"y.example") + b"".join(lines[1:]))
    with pytest.raises(StorageError, match="line 1 "):
        Ledger(path).check()
    # The note is readable without the key, and says nothing of the texts.
    assert b"secret" not in b"".join(lines)


@pytest.mark.parametrize("key", [None, KEY])
def test_erasing_takes_the_chosen_texts_whatever_their_hash(path: Path, key: bytes | None) -> None:
    path.write_bytes(b"".join(old()))
    ledger = Ledger(path, key=key)
    filled(ledger, 2)
    gone = ledger.erase(lambda entry: entry.payload in ("secret 1",), device="ana")
    assert gone == 2  # one of either time
    assert ledger.check() == Verified(5, 2, 0)
    assert [entry.payload for entry in ledger.entries()][:4] == ["secret 0", None, "secret 0", None]
    assert [entry.erased for entry in ledger.entries()] == [False, True, False, True, False]
    *_, note = ledger.entries()
    noted = json.loads(note.payload or "")["entries"]
    lines = path.read_bytes().splitlines()
    assert noted == {"2": digest(lines[1]), "4": None} and note.kind == ERASURE
    assert ledger.erase(lambda entry: True, device="ana") == 2  # the two that are left
    assert ledger.erase(lambda entry: True, device="ana") == 0  # a note is never erased
    assert ledger.check() == Verified(6, 4, 0)


@pytest.mark.parametrize("payload", ["{}", "[]", "x", '{"entries": {"a": null}}'])
def test_a_note_that_says_nothing_is_a_damage(path: Path, payload: str) -> None:
    ledger = Ledger(path)
    ledger.append(**{**ABOUT, "kind": ERASURE, "to": "nobody"}, payload=payload)
    with pytest.raises(StorageError, match="line 1 is not a note"):
        ledger.check()


# Elsewhere ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, OTHER])
def test_a_ledger_moves_in_clear_and_is_sealed_anew(
    path: Path, tmp_path: Path, key: bytes | None
) -> None:
    path.write_bytes(b"".join(old(1)))
    ledger = Ledger(path, key=KEY, context="ana|ledger")
    filled(ledger, 2)
    lines = list(ledger.plain_lines())
    assert [json.loads(line)["payload"] for line in lines] == ["secret 0", "secret 0", "secret 1"]
    moved = Ledger(tmp_path / "moved.jsonl", key=key, context="new|ledger")
    assert moved.restore(iter(lines), device="ana") == 3
    assert [e.payload for e in moved.entries()][:3] == ["secret 0", "secret 0", "secret 1"]
    # Only what has an old hash needs a note.
    assert [e.kind for e in moved.entries()] == ["call"] * 3 + [SEALING]
    assert moved.verify() == 4
    assert (b"secret" in moved.path.read_bytes()) == (key is None)
    with pytest.raises(StorageError, match="not empty"):
        moved.restore(lines, device="ana")
    assert moved.verify() == 4
    with pytest.raises(StorageError, match="line 2 is not an entry"):
        Ledger(tmp_path / "third", key=key).restore([lines[0], b"{}"], device="ana")
    fourth = Ledger(tmp_path / "fourth", key=key)
    assert fourth.restore([], device="ana") == 0 and not fourth.path.exists()
    fresh = Ledger(tmp_path / "fifth", key=key)
    assert fresh.restore(lines[1:2], device="ana") == 1
    assert [entry.kind for entry in fresh.entries()] == ["call"]


# Entries by themselves ----------------------------------------------------------------


def test_an_entry_is_as_it_was_written_or_is_not() -> None:
    data = {**ABOUT, "payload": "hé", "bytes": 3, "sha256": digest("hé".encode())}
    entry = next_entry(data, None)
    assert (entry.n, entry.previous, entry.time[-6:]) == (1, "0" * 64, "+00:00")
    after = next_entry(data, entry)
    assert (after.n, after.previous) == (2, entry.hash)
    assert entry.intact and not entry.old and not entry.erased
    assert fault(entry, line_of(entry)[:-1]) is None
    for changed in (
        replace(entry, payload="ho"), replace(entry, bytes=4), replace(entry, sha256="0" * 64),
        replace(entry, to="y.example"), replace(entry, payload=None),
    ):  # fmt: skip
        assert fault(changed, line_of(changed)[:-1]) is not None, changed
    erased = replace(entry, payload=None)
    assert erased.erased and fault(erased, line_of(erased)[:-1], blank=True) is None
    sealed = replace(entry, payload=None, cipher="AAAA")
    assert not sealed.erased and sealed.intact and fault(sealed, line_of(sealed)[:-1]) is None
    other = replace(sealed, to="y.example")
    assert fault(other, line_of(other)[:-1]) is not None
    assert fault(other, line_of(other)[:-1], blank=True) is None
    assert fault(entry, line_of(entry)[:-1] + b" ") is not None
    binary = next_entry({**ABOUT, "payload": None, "bytes": 3, "sha256": "0" * 64}, None)
    assert not binary.erased and fault(binary, line_of(binary)[:-1]) is None
    assert utf8("\ud800") == b"\xed\xa0\x80"
    with pytest.raises(ValueError, match="JSON"):
        module.canonical({"a": float("nan")})


def test_the_hash_of_an_entry_is_of_all_but_the_text() -> None:
    """For what earlier versions wrote: the canonical JSON, with true where there was text."""
    about = {**ABOUT, "bytes": 2, "sha256": digest(b"hi"), "n": 1, "time": "t", "previous": "p"}
    for payload, stands in (("hi", True), (None, None)):
        entry = Entry(**about, payload=payload, hash="")
        data = json.dumps({**about, "payload": stands}, sort_keys=True, separators=(",", ":"))
        assert module.hash_of(entry, text=payload is not None) == digest(data.encode())


def test_which_messages_carried_an_update() -> None:
    """In a secure round of an earlier version the third message after being ready."""

    def entry(kind: str, sha: str = "", to: str = "a", policy: str = "p") -> Entry:
        return Entry(1, "", "d", to, kind, policy, 1, sha, None, "", "")

    ready, finish = entry(UPDATE, module._OLD_READY), entry(UPDATE, module._OLD_FINISH)
    old_round = [ready, *[entry(UPDATE, str(n)) for n in range(5)], finish]
    updates = Updates()
    assert [updates.carried(one) for one in old_round] == [False] * 3 + [True] + [False] * 3
    assert [updates.carried(one) for one in old_round] == [False] * 3 + [True] + [False] * 3
    # To another host, and under another policy, each message is one by itself.
    assert updates.carried(entry(UPDATE, to="b")) and updates.carried(entry(UPDATE, policy="q"))
    assert not updates.carried(entry(MEASURE)) and not updates.carried(entry(FINISH))
    # From a version on whose kinds say what they are, each update is one.
    assert not updates.carried(entry(READY))
    assert updates.carried(entry(UPDATE)) and updates.carried(entry(UPDATE))


# The file -----------------------------------------------------------------------------


def test_the_last_line_is_found_at_any_length(path: Path) -> None:
    for size in (1, 100, (1 << 16) - 2, 1 << 16, (1 << 17) + 5):
        path.write_bytes(b"first\n" + b"x" * size + b"\n" + b"torn")
        with LedgerFile(path).locked() as file:
            end, line = LedgerFile(path).last(file)
        assert (end, line) == (6 + size + 1, b"x" * size)
    for whole, expected in ((b"", (0, None)), (b"torn", (0, None)), (b"a\n", (2, b"a"))):
        path.write_bytes(whole)
        with LedgerFile(path).locked() as file:
            assert LedgerFile(path).last(file) == expected


def test_what_a_disk_takes_in_pieces_is_written_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data)[:7]))
    filled(Ledger(path))
    monkeypatch.undo()
    assert Ledger(path).verify() == 3


def test_a_file_that_was_replaced_meanwhile_is_opened_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening and the lock an erasure puts another file in its place."""
    from pfi.privacy.ledger import file as files

    filled(Ledger(path), 1)
    lock, replaced = files.lock, []

    def waits(file: int) -> Any:
        if not replaced:
            replaced.append(path.with_name("new").write_bytes(path.read_bytes()))
            path.with_name("new").replace(path)
        return lock(file)

    monkeypatch.setattr(files, "lock", waits)
    filled(Ledger(path), 1)
    assert Ledger(path).verify() == 2


def test_a_rewrite_that_fails_leaves_the_file_and_nothing_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(path)
    filled(ledger)
    before = path.read_bytes()

    def fails(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(StorageError, match="nothing was erased"):
        ledger.erase(lambda entry: True, device="ana")
    with pytest.raises(StorageError, match="nothing was sealed"):
        Ledger(path, key=KEY).seal_texts(device="ana")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_what_went_wrong_with_a_rewrite_is_said_though_nothing_was_begun(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, opened = Ledger(path), os.open
    filled(ledger)

    def full(name: Any, *given: Any) -> int:
        if str(name).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return opened(name, *given)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(StorageError, match="nothing was erased: No space left"):
        ledger.erase(lambda entry: True, device="ana")
