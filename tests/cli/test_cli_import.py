"""`pfi import`: what it says it believes, `--check`, and warnings about suspicious sources."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.readers.report import ImportReport
from pfi.readers.self_check import SelfCheck
from pfi.records import Record

START = datetime(2024, 3, 5, 10, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PFI_PASSPHRASE", raising=False)
    yield tmp_path / "home"


def pfi(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def reply(number: int, time: datetime | None, chat: str = "?", mine: str = "") -> Record:
    return Record(f"r{number}", "chat_reply", {"chat": chat}, mine or f"mine {number}", time)


def checked(records: list[Record], report: ImportReport | None = None) -> list[str]:
    check, report = SelfCheck(), report or ImportReport()
    report.read = sum(1 for _ in check.watch(records))
    return check.warnings(report)


def test_it_says_what_it_believes_and_checks_without_storing(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"ask {n};tell {n};{n + 1:02}.03.2024" for n in range(20)]
    path.write_text("\n".join(["instruction;answer;date", *rows, "ask 0;tell 0;01.03.2024", "x"]))
    result = pfi("import", "auto", str(path), "--check")  # no profile is needed
    assert result.exit_code == 0, result.output
    assert not home.exists()
    assert "Nothing is stored, skipped 2: " in result.stdout
    assert "20 records from 2024-03-01 to 2024-03-20 (20 instruction)." in result.stderr
    assert "The file is read with ';' between cells." in result.stderr
    assert result.stderr.count("yours:") == 10 and result.stderr.count("theirs: ask") == 10
    assert pfi("init", "--key", "file").exit_code == 0
    result = pfi("import", "auto", str(path))
    assert "Added 20, already there 0, skipped 2" in result.stdout
    assert result.stderr.count("yours:") == result.stderr.count("theirs:") == 3
    assert "theirs: ask 0\n  yours:  tell 0" in result.stderr


def test_copies_within_a_source_were_not_there_before(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,answer,id\nask,tell,1\nask,tell,2\nbeg,yes,3\n")
    assert pfi("init", "--key", "file").exit_code == 0
    assert "Added 2, already there 0, repeated in the source 1." in (
        pfi("import", "table", str(path)).stdout
    )
    assert "Added 0, already there 2, repeated in the source 1." in (
        pfi("import", "table", str(path)).stdout
    )


def test_texts_cannot_steer_the_terminal(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "a\\u001b[2J", "answer": "b\\u001b]0;x\\u0007"}\n')
    result = pfi("import", "auto", str(path), "--check")
    assert "\x1b" not in result.output and "\\x1b[2J" in result.output


def test_who_one_is_taken_for() -> None:
    report = ImportReport()
    report.identify(["Sam"], {"Sam": 3, "Nora": 5})
    check = SelfCheck()
    list(check.watch([reply(1, START), reply(2, START + timedelta(days=400))]))
    assert check.facts(report) == [
        'You are "Sam": 3 of 8 messages are yours.',
        "2 records from 2024-03-05 to 2025-04-09 (2 chat_reply).",
    ]


def test_a_plain_source_gives_no_warning() -> None:
    assert checked([reply(n, START + timedelta(hours=n)) for n in range(200)]) == []
    assert checked([reply(n, None) for n in range(200)]) == []


def test_what_is_suspicious_is_named_with_its_place() -> None:
    hours = [timedelta(hours=n) for n in range(100)]
    report = ImportReport()
    for n in range(3):
        report.skip("the line is not JSON", f"a, line {n + 7}")
    [warning] = checked([reply(n, START + hours[n]) for n in range(100)], report)
    assert warning == "3 % could not be understood: the line is not JSON (first: a, line 7)"
    report = ImportReport()
    report.skip("it is only a link", "a, line 1")
    assert checked([reply(1, START)], report) == [], "left out by rule"
    [warning] = checked([reply(n, START - hours[n % 9] * 24) for n in range(100)])
    assert "messages are older than the one before them" in warning and "(first: r1)" in warning
    [warning] = checked([reply(n, START if n > 9 else START - hours[10 - n]) for n in range(60)])
    assert "50 of 60 records are of one moment" in warning and "(first: r10)" in warning
    report = ImportReport()
    report.identify(["Sam"], {"Sam": 10})
    [warning] = checked([reply(1, START)], report)
    assert 'everything is by one author, "Sam"' in warning
    report.identify([], {"Sam": 400, "Nora": 1})
    [warning] = checked([reply(1, START)], report)
    assert warning == "100 % of the messages are taken as yours"


def test_examples_are_spread_over_the_source_in_little_room() -> None:
    check = SelfCheck()
    list(check.watch(reply(n, START) for n in range(10_000)))
    numbers = [int(example.place[1:]) for example in check.examples(3)]
    assert numbers[0] == 0 and numbers[1] > 1000 and numbers[2] > 4000
    assert len(check._examples) <= check.room
