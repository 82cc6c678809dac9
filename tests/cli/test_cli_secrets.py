"""What help says about secrets is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.profile.keys import unlock
from pfi.profile.keys.keys import read_keys_file

LONG, NEW = "several words of a sentence", "other words of a sentence"
_VARIABLES = ("PFI_PASSPHRASE", "PFI_NEW_PASSPHRASE", "PFI_ARCHIVE_PASSPHRASE", "PFI_KEY")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for profiles; Argon2 that takes no time; no keyring and nothing typed before."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(unlock, "MEMORY_KIB", 64)
    monkeypatch.setattr(unlock, "ITERATIONS", 1)
    monkeypatch.setattr(unlock, "_TYPED", {})
    monkeypatch.setattr(unlock, "find_keyring", lambda: None)
    return tmp_path / "home"


def pfi(*arguments: str) -> Result:
    unlock._TYPED.clear()  # as in a process of its own
    return CliRunner().invoke(app, list(arguments))


def held(home: Path, profile: str = "default") -> str:
    return read_keys_file(home / profile).held


def test_init_takes_the_passphrase_that_is_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    result = pfi("init")
    assert result.exit_code == 0, result.output
    assert held(home) == "passphrase" and not (home / ".keys").exists()
    assert LONG not in result.output
    monkeypatch.setenv("PFI_PASSPHRASE", NEW)
    assert pfi("status").exit_code == 2, "another passphrase opens nothing"
    monkeypatch.delenv("PFI_PASSPHRASE")
    assert "PFI_PASSPHRASE" in pfi("status").output
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    assert pfi("status").exit_code == 0


def test_init_without_one_takes_a_file_and_what_is_said_wins(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFI_PASSPHRASE", "")
    assert pfi("init").exit_code == 0 and held(home) == "file"
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    result = pfi("init", "--key", "file", "--profile", "said")
    assert held(home, "said") == "file" and "PFI_PASSPHRASE is not used" in result.output
    monkeypatch.setenv("PFI_KEY", "file")
    assert pfi("init", "--profile", "other").exit_code == 0 and held(home, "other") == "file"
    monkeypatch.delenv("PFI_KEY")
    monkeypatch.setenv("PFI_PASSPHRASE", "short")
    result = pfi("init", "--profile", "short")
    assert result.exit_code == 2 and "shorter than 8" in result.output
    assert not (home / "short" / "keys.json").exists()


def test_key_change_takes_both_passphrases(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    assert pfi("init").exit_code == 0
    monkeypatch.setenv("PFI_NEW_PASSPHRASE", NEW)
    result = pfi("key", "change", "--to", "passphrase")
    assert result.exit_code == 0 and LONG not in result.output and NEW not in result.output
    assert pfi("status").exit_code == 2
    monkeypatch.setenv("PFI_PASSPHRASE", NEW)
    assert pfi("status").exit_code == 0
    shown = pfi("key", "show")
    assert shown.exit_code == 0 and NEW not in shown.output and "wrapped" not in shown.output


def test_an_archive_takes_its_own_passphrase(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    assert pfi("init").exit_code == 0
    monkeypatch.setenv("PFI_ARCHIVE_PASSPHRASE", NEW)
    file = str(tmp_path / "a.age")
    result = pfi("export", "archive", file)
    assert result.exit_code == 0, result.output
    result = pfi("restore", file, "--profile", "back")
    assert result.exit_code == 0 and held(home, "back") == "passphrase", result.output
    monkeypatch.setenv("PFI_ARCHIVE_PASSPHRASE", LONG)
    assert pfi("restore", file, "--profile", "wrong").exit_code == 2


@pytest.mark.parametrize("command", [("init",), ("restore",), ("export", "archive"),
                                     ("key", "change")])  # fmt: skip
def test_help_names_the_variables(command: tuple[str, ...]) -> None:
    assert "_PASSPHRASE" in pfi(*command, "--help").output
