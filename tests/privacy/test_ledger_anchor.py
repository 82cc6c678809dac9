"""A profile's ledger whose tail was cut, or that was written anew, is noticed by its owner."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.errors import StorageError
from pfi.privacy.ledger.anchor import Head
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.home import Home
from pfi.profile.ledger_head import SETTING, VaultAnchor
from pfi.profile.open import create_home, open_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    return create_home()


def send(ledger: Ledger, count: int = 1, text: str = "x") -> None:
    for n in range(count):
        ledger.append(device="d", to="host", kind="teacher", policy="p", payload=f"{text}{n}")


def lines(home: Home) -> list[bytes]:
    return home.ledger_file.read_bytes().splitlines(keepends=True)


def rewritten(home: Home, texts: list[str]) -> bytes:
    """A whole chain of others, made with the profile's key even."""
    file = home.path / "other.jsonl"
    other = Ledger(file, key=home.keys.files, context=f"{home.keys.profile}|ledger")
    for text in texts:
        other.append(device="d", to="host", kind="teacher", policy="p", payload=text)
    data = file.read_bytes()
    file.unlink()
    return data


def test_as_written_is_as_written(home: Home) -> None:
    send(home.open_ledger(), 5)
    assert open_home("default").open_ledger().check().entries == 5
    send(open_home("default").open_ledger(), 2)
    assert home.open_ledger().check().entries == 7


@pytest.mark.parametrize("left", [0, 1, 2, 4])
def test_a_tail_that_was_cut_is_noticed(home: Home, left: int) -> None:
    send(home.open_ledger(), 5)
    home.ledger_file.write_bytes(b"".join(lines(home)[:left]))
    assert Ledger(home.ledger_file).verify() == left  # the chain alone is content
    with pytest.raises(StorageError, match=f"has {left} entries, and 5 were written"):
        home.open_ledger().check()


def test_a_file_that_is_gone_is_noticed(home: Home) -> None:
    send(home.open_ledger(), 2)
    home.ledger_file.unlink()
    with pytest.raises(StorageError, match="has 0 entries, and 2 were written"):
        home.open_ledger().check()


@pytest.mark.parametrize("texts", [["x0", "x1", "x3", "x4", "new"], list("abcdefgh")])
def test_a_chain_written_anew_is_noticed(home: Home, texts: list[str]) -> None:
    """As many entries or more, all of them sound by themselves."""
    send(home.open_ledger(), 5)
    home.ledger_file.write_bytes(rewritten(home, texts))
    assert Ledger(home.ledger_file).verify() == len(texts)
    with pytest.raises(StorageError, match="written anew: entry 5"):
        home.open_ledger().check()


def test_nothing_is_sent_over_a_cut(home: Home) -> None:
    """Else the next entries would make up for those that are missing."""
    send(home.open_ledger(), 3)
    whole = home.ledger_file.read_bytes()
    home.ledger_file.write_bytes(b"".join(lines(home)[:1]))
    with pytest.raises(StorageError, match="the newest are missing"):
        send(home.open_ledger())
    home.ledger_file.write_bytes(rewritten(home, list("abcd")))
    with pytest.raises(StorageError, match="written anew"):
        send(home.open_ledger())
    home.ledger_file.write_bytes(whole)
    send(home.open_ledger())
    assert home.open_ledger().check().entries == 4


def test_erasing_goes_on_after_a_cut_and_hides_nothing(home: Home) -> None:
    send(home.open_ledger(), 6)
    home.ledger_file.write_bytes(b"".join(lines(home)[:3]))
    for number in (1, 2, 3):
        one = home.open_ledger()
        assert one.erase(lambda entry, n=number: entry.n == n, device="d") == 1  # type: ignore[misc]
    with pytest.raises(StorageError, match="written anew: entry 6"):
        home.open_ledger().check()


def test_erased_texts_are_no_departure(home: Home) -> None:
    send(home.open_ledger(), 3)
    home.open_ledger().erase(lambda entry: entry.n == 3, device="d")
    assert home.open_ledger().check().erased == 1
    send(home.open_ledger())
    assert home.open_ledger().check().entries == 5


def test_a_kill_before_the_vault_was_told_costs_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(home.open_ledger(), 2)
    with monkeypatch.context() as killed:
        killed.setattr(VaultAnchor, "tell", lambda *_: None)
        send(home.open_ledger(), 2)
    with home.open_vault() as vault:
        assert vault.setting(SETTING)["count"] == 2
    send(home.open_ledger())
    assert home.open_ledger().check().entries == 5
    home.ledger_file.write_bytes(b"".join(lines(home)[:4]))
    with pytest.raises(StorageError, match="5 were written"):
        home.open_ledger().check()


def test_a_ledger_of_an_earlier_version_is_anchored_when_it_is_first_read(home: Home) -> None:
    send(Ledger(home.ledger_file, key=home.keys.files, context=f"{home.keys.profile}|ledger"), 3)
    assert home.open_ledger().check().entries == 3
    home.ledger_file.write_bytes(b"".join(lines(home)[:2]))
    with pytest.raises(StorageError, match="3 were written"):
        home.open_ledger().check()


def test_an_older_head_never_takes_the_place_of_a_newer_one(home: Home) -> None:
    anchor = VaultAnchor(home.open_vault_as_it_is)
    assert anchor.read() is None
    anchor.tell(Head(5, "e"))
    anchor.tell(Head(4, "d"))
    assert anchor.read() == Head(5, "e")
    anchor.replace(Head(1, "a"))
    assert anchor.read() == Head(1, "a")


def test_threads_append_together(home: Home) -> None:
    threads = [threading.Thread(target=send, args=(home.open_ledger(), 4)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert home.open_ledger().check().entries == 16
    with home.open_vault() as vault:
        last = json.loads(lines(home)[-1])
        assert vault.setting(SETTING) == {"count": 16, "hash": last["hash"]}


def test_the_owner_can_go_on_after_a_loss_and_only_by_saying_so(home: Home) -> None:
    send(home.open_ledger(), 5)
    home.ledger_file.write_bytes(b"".join(lines(home)[:2]))
    run = CliRunner()
    refused = run.invoke(app, ["ledger", "verify"])
    assert refused.exit_code != 0 and "--accept" in refused.stderr
    accepted = run.invoke(app, ["ledger", "verify", "--accept"])
    assert accepted.exit_code == 0 and "2 entries are as written" in accepted.stdout
    send(home.open_ledger())
    assert home.open_ledger().check().entries == 3
    home.ledger_file.unlink()
    assert run.invoke(app, ["ledger", "verify", "--accept"]).exit_code == 0
    send(home.open_ledger())
    assert home.open_ledger().check().entries == 1
    home.ledger_file.write_bytes(home.ledger_file.read_bytes().replace(b'"host"', b'"hast"'))
    damaged = run.invoke(app, ["ledger", "verify", "--accept"])
    assert damaged.exit_code != 0 and "damaged" in damaged.stderr
