"""The ledger: what leaves is written first, changes are found, crashes and crowds lose nothing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.errors import StorageError
from pfi.federate.message import Message
from pfi.privacy.ledger.entries import Entry, fingerprint
from pfi.privacy.ledger.ledger import Ledger, Verified, send_logged
from pfi.profile.erase.statement import lines, sent
from pfi.profile.home import Home
from pfi.profile.open import create_home

ABOUT: dict[str, Any] = {
    "device": "ana",
    "to": "api.example.com",
    "kind": "call",
    "policy": "redact",
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def filled(ledger: Ledger, count: int = 4) -> list[bytes]:
    for n in range(count):
        ledger.append(**ABOUT, payload=f"text {n} é\n\u2028\ud800")
    return ledger.path.read_bytes().splitlines(keepends=True)


def test_the_entry_is_on_disk_before_anything_leaves(ledger: Ledger) -> None:
    def send() -> str:
        assert [entry.payload for entry in Ledger(ledger.path).entries()] == ["hello"]
        return "answer"

    assert send_logged(ledger, **ABOUT, payload="hello", send=send) == "answer"


def test_nothing_leaves_without_a_ledger(tmp_path: Path) -> None:
    sent = []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "ledger.jsonl", tmp_path):
        with pytest.raises(StorageError, match="nothing was sent"):
            send_logged(Ledger(path), **ABOUT, payload="x", send=lambda: sent.append(1))
    assert not sent


def test_a_failed_send_stays_in_the_ledger(ledger: Ledger) -> None:
    def send() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        send_logged(ledger, **ABOUT, payload="x", send=send)
    assert ledger.verify() == 1


def test_entries_hold_what_left(ledger: Ledger) -> None:
    ledger.append(**ABOUT, payload={"b": [1, "é"], "a": None})
    ledger.append(**ABOUT, payload=b"\x00\x01")
    text, binary = ledger.entries()
    assert text.payload == '{"a":null,"b":[1,"\\u00e9"]}'
    assert (binary.payload, binary.bytes) == (None, 2)
    assert (text.n, binary.n, binary.previous) == (1, 2, text.hash)
    assert {k: getattr(text, k) for k in ABOUT} == ABOUT
    assert text.time.endswith("+00:00")


def test_a_missing_ledger_is_empty(ledger: Ledger) -> None:
    assert (list(ledger.entries()), ledger.verify(), ledger.path.exists()) == ([], 0, False)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_only_the_owner_reads_it(ledger: Ledger) -> None:
    filled(ledger, 1)
    assert ledger.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("payload", "other"), ("to", "elsewhere"), ("time", "2020-01-01T00:00:00+00:00"), ("n", 7)],
)
def test_every_change_is_found(ledger: Ledger, field: str, value: Any) -> None:
    lines = filled(ledger)
    entry = json.loads(lines[1]) | {field: value}
    lines[1] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    ledger.path.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match="line 2 "):
        ledger.verify()


def test_removed_swapped_and_added_lines_are_found(ledger: Ledger) -> None:
    lines = filled(ledger)
    assert ledger.verify() == 4
    for order, bad in [([0, 2, 3], 2), ([1, 2, 3], 1), ([0, 2, 1, 3], 2), ([0, 1, 1, 2, 3], 3)]:
        ledger.path.write_bytes(b"".join(lines[n] for n in order))
        with pytest.raises(StorageError, match=f"line {bad} "):
            ledger.verify()
    for junk in (b"\n", b"{}\n", b"[]\n", b"\xff\n", lines[1].replace(b'"n":2', b'"n": 2')):
        ledger.path.write_bytes(lines[0] + junk + lines[2])
        with pytest.raises(StorageError, match="line 2 "):
            ledger.verify()


def test_a_change_with_a_new_hash_breaks_the_chain(ledger: Ledger) -> None:
    lines = filled(ledger)
    forged = Ledger(ledger.path.with_name("forged.jsonl"))
    forged.append(**ABOUT, payload="nothing at all")
    ledger.path.write_bytes(forged.path.read_bytes() + b"".join(lines[1:]))
    with pytest.raises(StorageError, match="line 2 does not follow"):
        ledger.verify()


def test_a_damaged_end_stops_what_would_send_logged(ledger: Ledger) -> None:
    lines = filled(ledger, 2)
    ledger.path.write_bytes(lines[0] + lines[1].replace(b"text", b"TEXT"))
    sent = []
    with pytest.raises(StorageError, match="the last line was changed"):
        send_logged(ledger, **ABOUT, payload="x", send=lambda: sent.append(1))
    assert not sent


def test_a_line_torn_anywhere_is_dropped(ledger: Ledger) -> None:
    lines = filled(ledger, 3)
    for kept in range(0, len(lines[2]), 7):
        ledger.path.write_bytes(lines[0] + lines[1] + lines[2][:kept])
        assert (ledger.verify(), len(list(ledger.entries()))) == (2, 2)
        ledger.append(**ABOUT, payload="after")
        assert ledger.verify() == 3
    ledger.path.write_bytes(lines[0][:20])
    ledger.append(**ABOUT, payload="first")
    assert ledger.verify() == 1


def test_appending_reads_only_the_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        ledger.append(**ABOUT, payload="x" * 100_000 + str(n))
    read = 0
    true_read = os.read

    def counted(file: int, count: int) -> bytes:
        nonlocal read
        data = true_read(file, count)
        read += len(data)
        return data

    monkeypatch.setattr(os, "read", counted)
    ledger.append(**ABOUT, payload="y")
    assert 100_000 < read < 400_000 < ledger.path.stat().st_size
    assert ledger.verify() == 31


def test_a_full_disk_leaves_no_half_entry(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = filled(ledger, 2)
    true_write = os.write

    def half(file: int, data: bytes) -> int:
        true_write(file, bytes(data)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StorageError, match="No space left"):
        ledger.append(**ABOUT, payload="z")
    monkeypatch.undo()
    assert ledger.path.read_bytes() == b"".join(lines)


def append_many(path: Path, name: str, count: int) -> None:
    for n in range(count):
        Ledger(path).append(**ABOUT | {"device": name}, payload=f"{name} {n}")


def test_threads_and_processes_share_one_chain(ledger: Ledger) -> None:
    context = multiprocessing.get_context("spawn" if os.name != "posix" else "fork")
    workers: list[Any] = [
        *(context.Process(target=append_many, args=(ledger.path, f"p{n}", 25)) for n in range(3)),
        *(threading.Thread(target=append_many, args=(ledger.path, f"t{n}", 25)) for n in range(3)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert ledger.verify() == 150
    for name in ("p0", "p2", "t1"):
        own = [entry.payload for entry in ledger.entries() if entry.device == name]
        assert own == [f"{name} {n}" for n in range(25)]


KILLED = """
import sys
from pfi.privacy.ledger.ledger import Ledger, send_logged
ledger, n = Ledger(sys.argv[1]), 0
print("ready", flush=True)
while True:
    about = dict(device="d", to="h", kind="k", policy="none")
    send_logged(ledger, **about, payload=f"{n} " * 2000, send=lambda: print(n, flush=True))
    n += 1
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_while_writing_nothing_sent_is_missing(ledger: Ledger) -> None:
    rng = random.Random(3)
    sent, before = 0, 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(ledger.path)], stdout=subprocess.PIPE
        )
        assert process.stdout and process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.02, 0.15))
        process.send_signal(signal.SIGKILL)
        out = process.communicate()[0]
        sent += out.count(b"\n")
        entries = [entry.payload for entry in ledger.entries()]
        this_run = entries[before:]
        for line in out.splitlines():  # whatever was sent is there
            assert this_run[int(line)] == f"{int(line)} " * 2000
        assert len(this_run) <= out.count(b"\n") + 1
        before = len(entries)
        ledger.append(**ABOUT, payload="between")
        before += 1
        ledger.verify()
    assert sent > 0


# Erasing ------------------------------------------------------------------------------


def old_form(ledger: Ledger, count: int = 4) -> list[bytes]:
    """A ledger as it was written when hashes were taken of the text as well."""
    filled(ledger, count)
    lines, previous = [], "0" * 64
    for line in ledger.path.read_bytes().splitlines():
        entry = json.loads(line) | {"previous": previous}
        del entry["hash"]
        form = {"sort_keys": True, "separators": (",", ":")}
        previous = hashlib.sha256(json.dumps(entry, **form).encode()).hexdigest()
        lines.append(json.dumps({**entry, "hash": previous}, **form).encode() + b"\n")
    ledger.path.write_bytes(b"".join(lines))
    return lines


def text_2(entry: Entry) -> bool:
    return "text 2" in (entry.payload or "")


@pytest.mark.parametrize("write", [filled, old_form])
def test_erased_text_is_gone_and_all_else_stays(ledger: Ledger, write: Any) -> None:
    write(ledger)
    before = list(ledger.entries())
    assert ledger.check() == Verified(4, 0)
    assert ledger.erase(text_2, device="ana") == 1
    assert b"text 2" not in ledger.path.read_bytes()
    *after, last = ledger.entries()
    assert [e.to_dict() | {"payload": None} for e in after] == [
        e.to_dict() | {"payload": None} for e in before
    ]
    assert [e.payload is None for e in after] == [e.erased for e in after]
    assert [e.n for e in after if e.erased] == [3]
    assert (last.kind, last.device) == ("erasure", "ana")
    assert list(json.loads(last.payload or "")["entries"]) == ["3"]
    assert ledger.check() == Verified(5, 1)
    assert ledger.erase(text_2, device="ana") == 0  # nothing is left, nothing is noted
    assert ledger.check() == Verified(5, 1)
    assert os.name != "posix" or ledger.path.stat().st_mode & 0o077 == 0
    ledger.append(**ABOUT, payload="after")
    assert ledger.erase(lambda entry: True, device="ana") == 4
    assert ledger.check() == Verified(7, 5)


@pytest.mark.parametrize("write", [filled, old_form])
def test_a_text_taken_out_by_hand_is_found(ledger: Ledger, write: Any) -> None:
    lines = write(ledger)
    for bad in (1, 4):
        entry = json.loads(lines[bad - 1]) | {"payload": None}
        bare = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        ledger.path.write_bytes(b"".join([*lines[: bad - 1], bare, *lines[bad:]]))
        with pytest.raises(StorageError, match=f"line {bad} was changed"):
            ledger.check()


@pytest.mark.parametrize("write", [filled, old_form])
@pytest.mark.parametrize(("field", "value"), [("to", "else"), ("sha256", "0" * 64), ("bytes", 1)])
def test_what_is_left_of_an_erased_entry_cannot_be_changed(
    ledger: Ledger, write: Any, field: str, value: Any
) -> None:
    write(ledger)
    ledger.erase(text_2, device="ana")
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[2]) | {field: value}
    lines[2] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    ledger.path.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match="line 3 was changed"):
        ledger.check()


def test_a_text_put_back_has_to_be_the_one_that_left(ledger: Ledger) -> None:
    lines = filled(ledger)
    ledger.erase(text_2, device="ana")
    bare = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join([*bare[:2], lines[2], *bare[3:]]))
    assert ledger.check() == Verified(5, 0)
    forged = lines[2].replace(b"text 2", b"TEXT 2")
    ledger.path.write_bytes(b"".join([*bare[:2], forged, *bare[3:]]))
    with pytest.raises(StorageError, match="line 3 was changed"):
        ledger.check()


def test_erasing_drops_a_torn_end_and_what_a_killed_erasure_left(ledger: Ledger) -> None:
    lines = filled(ledger)
    torn = lines[0].replace(b"text 0", b"text 9")[:-20]
    ledger.path.write_bytes(b"".join(lines) + torn)
    left = ledger.path.with_name(".ledger.jsonl.0123.tmp")
    left.write_bytes(lines[2])
    assert ledger.erase(lambda entry: False, device="ana") == 0
    assert ledger.path.read_bytes() == b"".join(lines)
    assert not left.exists()


def test_a_failed_erasure_changes_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = filled(ledger)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="nothing was erased"):
        ledger.erase(text_2, device="ana")
    monkeypatch.undo()
    assert ledger.path.read_bytes() == b"".join(lines)
    assert list(ledger.path.parent.iterdir()) == [ledger.path]


def test_nothing_that_leaves_meanwhile_is_lost(ledger: Ledger) -> None:
    """An erasure puts another file in the place of the one that others wait for."""
    writers = [
        threading.Thread(target=append_many, args=(ledger.path, f"t{n}", 30)) for n in range(3)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        ledger.erase(lambda entry: (entry.payload or "").endswith("7"), device="ana")
    for writer in writers:
        writer.join()
    ledger.erase(lambda entry: (entry.payload or "").endswith("7"), device="ana")
    entries = [entry for entry in ledger.entries() if entry.kind != "erasure"]
    assert len(entries) == 90
    assert ledger.check().erased == 9  # 7, 17 and 27 of each
    assert {e.device for e in entries if e.erased} == {"t0", "t1", "t2"}


def test_entries_say_what_records_they_show(ledger: Ledger) -> None:
    ledger.append(**ABOUT, payload="x", shows=["r2", "r1", "r2"])
    ledger.append(**ABOUT, payload="x", shows=[])
    ledger.append(**ABOUT, payload="x")
    first, second, third = ledger.entries()
    assert first.shows == tuple(sorted((fingerprint("r1"), fingerprint("r2"))))
    assert (second.shows, third.shows) == ((), None)
    assert b"r1" not in ledger.path.read_bytes()
    assert ledger.verify() == 3
    changed = ledger.path.read_bytes().replace(fingerprint("r1").encode(), b"0" * 16)
    ledger.path.write_bytes(changed)
    with pytest.raises(StorageError, match="line 1 "):
        ledger.verify()


# Commands -----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "homes"))
    return create_home()


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["ledger", *words])


def test_an_empty_ledger_says_so(home: Home) -> None:
    assert "Nothing has left this device." in run("show").stdout
    assert "Nothing has left this device." in run("verify").stdout
    assert json.loads(run("show", "--json").stdout) == []


def test_show_prints_exactly_what_left(home: Home) -> None:
    ledger = Ledger(home.path / "ledger.jsonl")
    long = "word [EMAIL_1] [bold]x[/bold] \u001b[31m " + "y" * 3000
    ledger.append(**ABOUT, payload=long)
    ledger.append(**ABOUT | {"to": "other.example.org", "policy": "none"}, payload=b"123")
    shown = run("show").stdout
    assert "api.example.com" in shown and "redact" in shown and "[bold]x[/bold]" in shown
    assert "y" * 300 not in shown and "\u001b" not in shown
    full = run("show", "--full").stdout
    assert "y" * 3000 in full and "\u001b" not in full
    assert "3 bytes" in full and "sha256" in full
    only = run("show", "--to", "other.example.org").stdout
    assert "other.example.org" in only and "api.example.com" not in only
    [last] = json.loads(run("show", "--last", "1", "--json").stdout)
    assert last["n"] == 2
    [first] = json.loads(run("show", "--to", "api.example.com", "--json").stdout)
    assert first["payload"] == long
    assert run("show", "--to", "nobody.example").stdout.startswith("Nothing has left")


def test_verify_and_a_path(home: Home, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "study.jsonl")
    lines = filled(ledger)
    result = run("verify", "--path", str(ledger.path))
    assert result.exit_code == 0 and "4 entries" in result.stdout
    ledger.path.write_bytes(b"".join([lines[0], *lines[2:]]))
    result = run("verify", "--path", str(ledger.path))
    assert result.exit_code == 2 and "line 2" in result.output
    missing = run("show", "--path", str(tmp_path / "none.jsonl"))
    assert missing.exit_code == 2 and "none.jsonl" in missing.output


def test_erased_texts_are_told_of(home: Home) -> None:
    ledger = Ledger(home.ledger_file)
    filled(ledger)
    ledger.erase(text_2, device="ana")
    assert "5 entries are as written; 1 text was erased." in run("verify").stdout
    shown = run("show").stdout
    assert shown.count("the text was erased; sha256") == 1 and "text 2" not in shown
    assert "erasure" in shown


# Updates ------------------------------------------------------------------------------

#: What a device sends in a secure round, and how earlier versions noted each of it.
SECURE = ["ready", "secure keys", "secure shares", "update", "secure survivors", "secure unmask"]
OLD = ["update"] * len(SECURE)
EVER = datetime.min.replace(tzinfo=UTC)


def secure_round(ledger: Ledger, kinds: list[str], host: str = "h.example", stop: int = 6) -> None:
    """The entries of a round, up to where the device dropped out."""
    replies = [Message(values={"ready": True}), *(Message(values={"n": n}) for n in range(5))]
    for kind, reply in list(zip(kinds, replies, strict=True))[:stop]:
        about = ABOUT | {"to": host, "kind": kind, "policy": "secure sum"}
        ledger.append(**about, payload=reply.encode())


def clear(ledger: Ledger, kind: str, message: Message, host: str = "h.example") -> None:
    about = ABOUT | {"to": host, "kind": kind, "policy": "clear"}
    ledger.append(**about, payload=message.encode())


def updates(home: Home, since: datetime = EVER) -> dict[str, int]:
    ledger = home.open_ledger()
    assert ledger.verify() == len(list(ledger.entries()))
    found: dict[str, int] = sent(home, lambda shows: False, since)["updates"]
    return found


@pytest.mark.parametrize("kinds", [SECURE, OLD], ids=["now", "before"])
def test_a_secure_round_is_one_update(home: Home, kinds: list[str]) -> None:
    ledger = home.open_ledger()
    for _ in range(3):
        secure_round(ledger, kinds)
    assert updates(home) == {"h.example": 3}
    secure_round(ledger, kinds, stop=3)  # it dropped out before its update left
    assert updates(home) == {"h.example": 3}
    secure_round(ledger, kinds, stop=4)
    secure_round(ledger, kinds, host="other.example")
    assert updates(home) == {"h.example": 4, "other.example": 1}
    statement = {"time": "now", "public": "0", "sent": {"updates": updates(home)}}
    assert "- updates sent: 4 to h.example, 1 to other.example" in lines(statement)


def test_a_ledger_that_an_earlier_version_began(home: Home) -> None:
    ledger = home.open_ledger()
    clear(ledger, "update", Message(values={"weight": 1}))
    secure_round(ledger, OLD, stop=2)  # pfi was updated here
    middle = datetime.now(UTC)
    secure_round(ledger, SECURE)
    clear(ledger, "measure", Message(values={"loss": 1.0}))
    clear(ledger, "finish", Message())
    clear(ledger, "update", Message(values={"weight": 2}))
    clear(ledger, "update", Message(values={"weight": 3}))
    clear(ledger, "update", Message())  # after the last round, as it was noted before
    assert updates(home) == {"h.example": 4} and updates(home, middle) == {"h.example": 3}
    assert run("verify").exit_code == 0
    shown = run("show").stdout
    assert all(f"to h.example  {kind}  " in shown for kind in [*SECURE, "measure", "finish"])
