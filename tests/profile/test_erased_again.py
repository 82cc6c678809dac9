"""What was erased does not come back with the next import of its source, unless it is wanted."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.profile.erase.erasure import erase, erase_everything, finish_erasures
from pfi.profile.erase.fingerprints import SETTING, ErasedRecords
from pfi.profile.home import Home
from pfi.profile.open import create_home, open_home
from pfi.profile.vault.imports import import_records
from pfi.records import Record

OPTIONS = {"task": "LaMP_3", "map": {"text": "text", "score": "score"}}
QUOKKA = "The quokka of Zanzibrook"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    made = create_home()
    made.config.embedder = "none"
    made.save_config()
    return made


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "r.csv"
    file.write_text(f"text,score\n{QUOKKA},5\nA dull book,2\nA tea house,4\n")
    return file


def texts(home: Home) -> set[str]:
    with home.open_vault() as vault:
        return {record.input["text"] for record in vault.find()}


def erase_text(home: Home, text: str) -> None:
    with home.open_vault() as vault:
        ids = [record.id for record in vault.find(text=text)]
    assert ids
    erase(home, ids)


def erased(home: Home) -> ErasedRecords:
    with home.open_vault() as vault:
        return ErasedRecords.of(vault)


def test_an_erased_record_is_left_out_and_counted(home: Home, table: Path) -> None:
    import_records(home, "table", table, OPTIONS)
    erase_text(home, "quokka")
    done = import_records(home, "table", table, OPTIONS)
    assert (done.added, done.already_there, done.erased) == (0, 2, 1)
    assert "erased here" in next(iter(done.report.skipped)) and QUOKKA not in texts(home)
    # Also from a copy of the file, beside records that are new.
    other = table.with_name("copy.csv")
    other.write_text(table.read_text() + "A new one,3\n")
    done = import_records(home, "table", other, OPTIONS)
    assert (done.added, done.erased) == (1, 1)


def test_it_comes_back_where_it_is_wanted_and_is_no_secret_then(home: Home, table: Path) -> None:
    import_records(home, "table", table, OPTIONS)
    erase_text(home, "quokka")
    done = import_records(home, "table", table, OPTIONS, again=True)
    assert (done.added, done.already_there, done.erased) == (1, 2, 0)
    assert QUOKKA in texts(home) and not len(erased(home))
    assert import_records(home, "table", table, OPTIONS).already_there == 3
    erase_text(home, "quokka")
    assert import_records(home, "table", table, OPTIONS).erased == 1


def test_everything_erased_is_forgotten_as_well(home: Home, table: Path) -> None:
    """Who begins anew is asked nothing."""
    import_records(home, "table", table, OPTIONS)
    erase_text(home, "quokka")
    erase_everything(home)
    with home.open_vault() as vault:
        assert vault.setting(SETTING) is None
    assert import_records(home, "table", table, OPTIONS).added == 3


def test_an_erasure_that_was_killed_remembers(
    home: Home, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the texts are gone nobody could say what they were."""
    import_records(home, "table", table, OPTIONS)

    class Killed(Exception):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr("pfi.profile.vault.vault.Vault.delete", kill)
        with pytest.raises(Killed):
            erase_text(home, "quokka")
    again = open_home("default")
    finish_erasures(again)
    assert import_records(again, "table", table, OPTIONS).erased == 1


def test_the_list_tells_nothing_without_its_key_and_is_in_the_vault_alone(
    home: Home, table: Path
) -> None:
    import_records(home, "table", table, OPTIONS)
    erase_text(home, "quokka")
    with home.open_vault() as vault:
        value = vault.setting(SETTING)
    assert set(value) == {"key", "prints"} and "uokka" not in str(value)
    record = Record("x", "LaMP_3", {"text": QUOKKA}, "5")
    one, two = ErasedRecords(b"1" * 32), ErasedRecords(b"2" * 32)
    one.add([record])
    two.add([record])
    assert one.has(record) and one.value()["prints"] != two.value()["prints"]  # type: ignore[index]
    files = [file for file in home.path.rglob("*") if file.is_file()]
    assert not any(value["prints"].encode() in file.read_bytes() for file in files)


DAY = datetime(2024, 5, 1, 12, tzinfo=UTC)
LONG = Record("a", "LaMP_4", {"text": "Rain over the harbour, all day and all night"}, "Wet", DAY)
SHORT = Record("b", "LaMP_4", {"text": "Can you come?"}, "Yes", DAY)


@pytest.mark.parametrize(
    ("record", "other", "known"),
    [
        (LONG, replace(LONG, id="z", source="elsewhere", task="LaMP_5"), True),
        (LONG, replace(LONG, time=DAY + timedelta(days=3)), True),
        (LONG, replace(LONG, time=None), True),
        (LONG, replace(LONG, input={"b": " Rain over the\nharbour, all day and all night"}), True),
        (LONG, replace(LONG, output=unicodedata.normalize("NFD", "Wét")), False),
        (LONG, replace(LONG, output="Dry"), False),
        (SHORT, replace(SHORT, id="z"), True),
        (SHORT, replace(SHORT, time=DAY.astimezone()), True),
        (SHORT, replace(SHORT, time=DAY + timedelta(days=3)), False),
        (SHORT, replace(SHORT, time=None), True),
        (replace(SHORT, time=None), replace(SHORT, time=None, id="z"), True),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(record: Record, other: Record, known: bool) -> None:
    """Other ids, sources, tasks and spaces do not matter; of short texts the time does."""
    erased = ErasedRecords(b"k" * 32)
    erased.add([record])
    kept = ErasedRecords._read(erased.value())
    assert kept.has(other) == known and kept.has(record)


def test_spellings_of_a_character_do_not_matter() -> None:
    erased = ErasedRecords(b"k" * 32)
    text = "Ein schöner Tag an der See, mit viel Wind und Möwen"
    erased.add([Record("a", "LaMP_4", {"text": text}, "")])
    assert erased.has(Record("b", "LaMP_4", {"text": unicodedata.normalize("NFD", text)}, ""))


def test_synthetic_records_are_not_listed(home: Home) -> None:
    with home.open_vault() as vault:
        vault.add([Record("m", "LaMP_4", {"text": "made"}, "M", None, "synthetic", "t")])
    erase(home, ["m"])
    assert not len(erased(home))


def _run(*args: str, answer: str | None = None) -> str:
    result = CliRunner().invoke(app, list(args), input=answer)
    assert result.exit_code == 0, result.output
    return result.output


def test_no_record_is_no_line_of_the_list(home: Home, table: Path) -> None:
    import_records(home, "table", table, OPTIONS)
    erase_text(home, "quokka")
    assert CliRunner().invoke(app, ["records", "--search", "quokka"]).stdout == ""


def test_the_command_says_so_and_asks(
    home: Home, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["import", "table", str(table), "--set", "task=LaMP_3"]
    line += ["--set", "map.text=text", "--set", "map.score=score"]
    _run(*line)
    erase_text(home, "quokka")
    said = _run(*line)  # nobody can be asked
    assert "Added 0, already there 2" in said and "1 because they were erased here" in said
    monkeypatch.setattr("pfi.cli.records._asked_at_terminal", lambda: True)
    said = _run(*line, answer="n\n")
    assert "1 record was erased here before" in said and QUOKKA not in texts(home)
    said = _run(*line, answer="y\n")
    assert "Added 1, already there 2" in said and QUOKKA in texts(home)
    erase_text(home, "quokka")
    assert "Added 1" in _run(*line, "--again") and QUOKKA in texts(home)
