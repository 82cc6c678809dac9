"""`pfi feedback` and `pfi refresh`, over a tiny random backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.profile.home import Home
from pfi.profile.open import open_home
from pfi.records import Record

LEARN = {"learning_rate": 0.02, "rank": 2, "batch_size": 4, "layers": "last:1"}


def pfi(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_folder: Callable[[str], Path]
) -> Home:
    """A profile for headlines that searches by words and learns fast."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setattr("pfi.cli.talk._said", set())
    pfi("init", "--backbone", str(backbone_folder("llama")), "--task", "LaMP_4")
    opened = open_home()
    opened.config.embedder, opened.config.train = "none", LEARN
    opened.config.refresh = {"least": 3, "steps": 6}
    opened.save_config()
    return opened


def add(home: Home, start: int, stop: int, output: str = "good film") -> None:
    with home.open_vault() as vault:
        vault.add(
            Record(
                f"r{n}",
                "LaMP_4",
                {"text": f"a brown fox {n}"},
                output,
                datetime(2024, 1, 1, n, tzinfo=UTC),
            )
            for n in range(start, stop)
        )


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pfi("feedback", "list", "--json").stdout)
    return found


# Giving -------------------------------------------------------------------------------


def test_feedback_on_the_last_answer_and_the_one_before(home: Home) -> None:
    first = pfi("ask", "a quick fox", "--no-memory").stdout.removesuffix("\n").strip()
    pfi("ask", "a lazy dog", "--no-memory")
    result = pfi("feedback", "--last", "--correct", "Dog sleeps")
    assert "a record and a preference" in result.stdout and "a lazy dog" in result.stderr
    pfi("feedback", "--back", "1", "--better-than", "nothing much")
    said = listed()
    assert [entry["input"] for entry in said] == [{"text": "a lazy dog"}, {"text": "a quick fox"}]
    assert said[0]["correction"] == "Dog sleeps" and said[1]["answer"] == first
    with home.open_vault() as vault:
        assert [r.output for r in vault.history("LaMP_4")] == ["Dog sleeps"]


def test_feedback_on_a_question_of_its_own(home: Home) -> None:
    arguments = ["--text", "Cold food", "--task", "LaMP_3", "--answer", "4"]
    pfi("feedback", *arguments, "--correct", "2", "--batch", "mine")
    pfi("feedback", *arguments, "--bad", "--batch", "mine")
    lines = pfi("feedback", "list", "--entries").stdout.splitlines()
    assert lines[0].startswith("mine ") and "2 answers  1 records" in lines[0]
    assert lines[1].strip() == "Cold food -> 4; should be: 2"


def test_chat_takes_feedback(home: Home) -> None:
    lines = "/good\na quick fox\n/correct Fox runs\n/bad\n/correct\n/quit\n"
    result = pfi("chat", "--no-memory", stdin=lines)
    assert "Nothing was answered yet." in result.stderr
    assert result.stderr.count("Noted, batch") == 2
    assert "correction is empty" in result.stderr
    said = [(entry["correction"], entry["rating"]) for entry in listed()]
    assert said == [("Fox runs", None), (None, "bad")]
    # `pfi feedback` knows the answers of a chat as well.
    assert "a quick fox" in pfi("feedback", "--last", "--bad", "--batch", "x").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing is said of the answer"),
        (["--last"], "nothing is said of the answer"),
        (["--last", "--good"], "nothing was answered yet"),
        (["--good"], "not clear which answer"),
        (["--last", "--good", "--bad"], "not good and bad"),
        (["--text", "x", "--good"], "answer that this is about is missing"),
        (["--file", "f.jsonl", "--good"], "--good does not go with --file"),
        (["--file", "f.jsonl", "--last"], "--last does not go with --file"),
        (["undo", "nope"], "no batch 'nope'"),
        (["trust", "nope"], "no batch 'nope'"),
    ],
)
def test_errors_are_one_line(home: Home, arguments: list[str], says: str) -> None:
    result = pfi("feedback", *arguments, code=2)
    assert says in result.stderr and len(result.stderr.splitlines()) == 1


def test_last_answer_brings_its_task_and_fields(home: Home) -> None:
    pfi("ask", "a quick fox", "--no-memory")
    result = pfi("feedback", "--last", "--good", "--task", "LaMP_3", code=2)
    assert "are known of the last answer" in result.stderr


def test_file_list_undo(home: Home, tmp_path: Path) -> None:
    assert "no feedback yet" in pfi("feedback", "list").stdout
    file = tmp_path / "week.jsonl"
    said = [{"text": f"story {n}", "answer": "a", "correction": f"b{n}"} for n in range(3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in said))
    assert "Stored 3 answers as batch week, which make 3 records." in (
        pfi("feedback", "--file", str(file)).stdout
    )
    assert "Stored 0" in pfi("feedback", "--file", str(file)).stdout
    file.write_text(file.read_text() + "{}\n")
    assert "line 4" in pfi("feedback", "--file", str(file), "--batch", "b", code=2).stderr
    assert "Erased 3 answers and 3 records of batch week." in pfi("feedback", "undo", "week").stdout
    with home.open_vault() as vault:
        assert vault.count() == 0
    assert listed() == []


# Learning -----------------------------------------------------------------------------


def test_refresh_trains_checks_and_can_be_undone(home: Home) -> None:
    add(home, 0, 5)
    result = pfi("refresh")
    assert "does not train: 5 new records are too few" in result.stdout
    assert home.memory_file.exists()
    add(home, 5, 12)
    assert "LaMP_4: would train: no adapter is in use" in pfi("refresh", "--dry-run").stdout
    result = pfi("refresh")
    assert "Adapter 0001 for LaMP_4 is active" in result.stdout, result.output
    assert "4 held-back new records: loss" in result.stderr
    manifest = home.personal_adapters.manifest("0001")
    assert manifest.records == 8 and len(manifest.held_back_losses) == 4
    assert manifest.metrics["loss"] < manifest.metrics["loss_before"]
    again = pfi("refresh", "--set", "growth=null")
    assert "does not train: 4 new records are too few" in again.stdout
    assert "uses no adapter" in pfi("adapters", "rollback").stdout


def test_same_seed_makes_the_same_adapter(home: Home) -> None:
    add(home, 0, 12)
    pfi("refresh", "--seed", "3")
    pfi("adapters", "rollback")
    pfi("refresh", "--seed", "3")
    store = home.personal_adapters
    assert store.manifest("0001").sha256 == store.manifest("0002").sha256


def test_preferences_are_learnt_on_top(home: Home) -> None:
    add(home, 0, 12)
    for n in range(9):
        pfi("feedback", "--text", f"tale {n}", "--answer", "good film", "--better-than", "bad dog")
    result = pfi("refresh", "--set", "preferences.learning_rate=0.01", "--set", "min_preferences=9")
    assert "Adapter 0001" in result.stdout, result.output
    assert home.personal_adapters.manifest("0001").config["pairs"] == 9


def test_refresh_runs_by_itself_after_enough_new_records(home: Home) -> None:
    home.config.refresh_after = 8
    home.save_config()
    add(home, 0, 7)
    text = ["feedback", "--text", "a lazy dog", "--answer", "x", "--correct"]
    result = pfi(*text, "good film")
    assert "Refreshing LaMP_4, as refresh_after is 8." in result.stderr
    assert "Adapter 0001" in result.stdout, result.output
    assert "Refreshing" not in pfi(*text, "good dog").stderr


def test_undo_names_the_version_that_learnt_from_it(home: Home) -> None:
    add(home, 0, 12)
    file = home.path / "b.jsonl"
    said = [{"text": f"tale {n}", "correction": "good film"} for n in range(4)]
    file.write_text("".join(json.dumps(line) + "\n" for line in said))
    pfi("feedback", "--file", str(file))
    pfi("refresh")
    result = pfi("feedback", "undo", "b")
    assert "Adapter 0001 for LaMP_4 may have learnt from it" in result.stderr


@pytest.mark.parametrize(
    ("setting", "says"), [("alpha=2", "alpha"), ("nope=1", "nope"), ("train.rank=0", "rank")]
)
def test_wrong_settings_are_refused(home: Home, setting: str, says: str) -> None:
    add(home, 0, 12)
    assert says in pfi("refresh", "--set", setting, code=2).stderr
    assert home.personal_adapters.versions() == []
