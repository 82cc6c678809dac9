"""Feedback: what becomes a record or a preference; a batch is stored and undone whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pfi._util.sqlite import sqlite3
from pfi.errors import ConfigError, DataError
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn import feedback
from pfi.profile.learn.pairs import preferences
from pfi.profile.open import create_home
from pfi.profile.vault.vault import SCHEMA_VERSION, Vault
from pfi.records import Record
from pfi.tasks import Task, get_task

HEADLINE, SCORE = get_task("LaMP_4"), get_task("LaMP_3")
ASKED = {"text": "It rained for a week."}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(root=tmp_path, config=HomeConfig(embedder="none"))


def records(home: Home, task: Task = HEADLINE) -> list[Record]:
    with home.open_vault() as vault:
        return list(vault.history(task.name))


def entries(home: Home) -> list[feedback.Feedback]:
    with home.open_vault() as vault:
        return vault.feedback.entries()


def pairs(home: Home) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in preferences(entries(home))]


# What becomes of it -------------------------------------------------------------------


def test_correction_is_a_record_and_a_preference(home: Home) -> None:
    before = datetime.now(UTC)
    said = feedback.give(home, HEADLINE, ASKED, answer="Rain", correction="Flood ahead", batch="b")
    (record,) = records(home)
    assert (record.id, record.source, record.origin) == (said.record, "feedback:b", "real")
    assert (dict(record.input), record.output) == (ASKED, "Flood ahead")
    assert record.time is not None and before <= record.time <= datetime.now(UTC)
    assert pairs(home) == [("Flood ahead", "Rain")]
    (example,) = HEADLINE.examples(records(home), None)  # type: ignore[arg-type]
    assert (example.prompt, example.target) == (HEADLINE.prompt(ASKED), "Flood ahead")


def test_good_answer_is_a_record_and_bad_one_waits_for_a_correction(home: Home) -> None:
    feedback.give(home, HEADLINE, ASKED, answer="Rain", rating="good")
    assert [record.output for record in records(home)] == ["Rain"]
    other = {"text": "The sun came back."}
    feedback.give(home, HEADLINE, other, answer="Sun", rating="bad")
    assert len(records(home)) == 1 and pairs(home) == []
    feedback.give(home, HEADLINE, other, answer="Light", correction="Sun at last", batch="later")
    assert pairs(home) == [("Sun at last", "Sun"), ("Sun at last", "Light")]
    feedback.give(home, HEADLINE, other, answer="Light", correction="At last, sun", batch="last")
    # The latest correction is the one that a bad answer is compared with.
    assert pairs(home)[0] == ("At last, sun", "Sun")


def test_comparison_is_a_preference_only(home: Home) -> None:
    said = feedback.give(home, HEADLINE, ASKED, answer="Flood", better_than="Rain")
    assert said.record is None and records(home) == [] and pairs(home) == [("Flood", "Rain")]
    liked = feedback.give(
        home, HEADLINE, ASKED, answer="Flood", rating="good", better_than="Wet", batch="b"
    )
    assert liked.record and pairs(home) == [("Flood", "Rain"), ("Flood", "Wet")]


def test_correction_without_an_answer_is_a_record_only(home: Home) -> None:
    feedback.give(home, HEADLINE, ASKED, answer="", correction="Flood")
    assert len(records(home)) == 1 and pairs(home) == []


@pytest.mark.parametrize(
    ("name", "fields", "wanted", "output"),
    [
        ("LaMP_7", {"text": "it rains."}, "RAIN!!", "RAIN!!"),
        (
            "continuation",
            {"start": "It rained for "},
            "a week or two.",
            "It rained for a week or two.",
        ),
        ("LaMP_3", {"text": "Cold food."}, " 2 ", "2"),
    ],
)
def test_record_of_tasks_whose_records_are_no_questions(
    home: Home, name: str, fields: dict[str, str], wanted: str, output: str
) -> None:
    task = get_task(name)
    feedback.give(home, task, fields, answer="", correction=wanted)
    (record,) = records(home, task)
    assert record.output == output
    assert {*record.input} <= {*task.inputs}


def test_papers_are_no_questions_so_a_citation_is_a_preference_only(home: Home) -> None:
    task = get_task("LaMP_1")
    fields = {"title": "A", "option_1": "B", "option_2": "C"}
    said = feedback.give(home, task, fields, answer="[1]", correction="[2]")
    assert said.record is None and pairs(home) == [("[2]", "[1]")]


@pytest.mark.parametrize(
    ("task", "said", "says"),
    [
        (HEADLINE, {}, "nothing is said"),
        (HEADLINE, {"correction": "Rain"}, "is the answer itself"),
        (HEADLINE, {"correction": "  "}, "correction is empty"),
        (HEADLINE, {"correction": "X", "rating": "good"}, "neither good nor"),
        (HEADLINE, {"correction": "X", "better_than": "Y"}, "neither good nor"),
        (HEADLINE, {"rating": "bad", "better_than": "Y"}, "compared with a worse"),
        (HEADLINE, {"better_than": "Rain"}, "are the same"),
        (HEADLINE, {"answer": "", "rating": "good"}, "answer that this is about is missing"),
        (SCORE, {"answer": "4", "correction": "six"}, "'six' is no answer of task LaMP_3"),
        (SCORE, {"answer": "six", "rating": "good"}, "'six' is no answer of task LaMP_3"),
        (HEADLINE, {"rating": "good", "batch": "a\nb"}, "not the name of a batch"),
        (HEADLINE, {"rating": "good", "fields": {}}, "question is missing"),
        (HEADLINE, {"rating": "good", "fields": {"title": "x"}}, "has no field 'title'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_stores_nothing(
    home: Home, task: Task, said: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {"answer": "Rain", "fields": ASKED, **said}
    with pytest.raises(ConfigError, match=says):
        feedback.give(home, task, given.pop("fields"), **given)
    assert entries(home) == [] and records(home) == []


# Batches ------------------------------------------------------------------------------


def test_record_and_feedback_are_one_transaction(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fields: Mapping[str, str]) -> str:
        raise RuntimeError("between the record and its feedback")

    monkeypatch.setattr("pfi.profile.vault.feedback.FeedbackTables._has", lambda *_: False)
    monkeypatch.setattr("pfi.profile.vault.feedback._json", broken)
    with pytest.raises(RuntimeError):
        feedback.give(home, HEADLINE, ASKED, answer="Rain", correction="Flood")
    monkeypatch.undo()
    assert entries(home) == [] and records(home) == []


def lines(path: Path, *said: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in said))
    return path


def test_file_is_one_batch_and_again_adds_nothing(home: Home, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "my corrections.jsonl",
        {"text": "One.", "answer": "A", "correction": "B", "time": "2024-05-01"},
        {"task": "LaMP_3", "text": "Two.", "answer": "4", "rating": "good"},
        {"fields": {"text": "Three."}, "answer": "C", "better_than": "D"},
    )
    stored = feedback.give_file(home, file, task=HEADLINE)
    assert {entry.batch for entry in stored} == {"my-corrections"}
    assert [record.time for record in records(home)] == [datetime(2024, 5, 1, tzinfo=UTC)]
    assert len(records(home, SCORE)) == 1 and len(entries(home)) == 3
    assert feedback.give_file(home, file, task=HEADLINE) == []
    (batch,) = feedback.batches(home)
    assert (batch.entries, batch.records, {*batch.tasks}) == (3, 2, {"LaMP_3", "LaMP_4"})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "x", "answer": "a"}', "line 2.*nothing is said"),
        ('{"text": "x", "answr": "a"}', "line 2.*answr"),
        ("{", "line 2.*not JSON"),
        ('{"text": "x", "answer": "a", "rating": "great"}', "line 2.*rating"),
        ('{"text": "x", "answer": "a", "rating": "good", "time": "noon"}', "line 2.*time"),
        ('{"task": "nope", "text": "x", "answer": "a", "rating": "good"}', "line 2.*nope"),
    ],
)
def test_wrong_line_is_named_and_nothing_is_stored(
    home: Home, tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('{"text": "One.", "answer": "A", "rating": "good"}\n' + line)
    with pytest.raises(DataError, match=says):
        feedback.give_file(home, file, task=HEADLINE)
    assert entries(home) == [] and records(home) == []


def test_file_that_is_missing_empty_or_without_a_task(home: Home, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        feedback.give_file(home, tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no feedback in the file"):
        feedback.give_file(home, lines(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="no task is named"):
        said = {"text": "x", "answer": "a", "rating": "good"}
        feedback.give_file(home, lines(tmp_path / "f.jsonl", said))


def test_undo_erases_the_batch_its_records_and_their_text(home: Home) -> None:
    from pfi.profile.answer.memory import open_memory

    secret = "zebrafish"
    fields = {"text": f"A story of the {secret}."}
    with home.open_vault() as vault:
        vault.add([Record("mine", HEADLINE.name, ASKED, "Own title")])
    feedback.give(home, HEADLINE, fields, answer=f"{secret} a", correction=f"{secret} b", batch="b")
    feedback.give(home, HEADLINE, fields, answer=f"{secret} c", rating="bad", batch="b")
    feedback.give(home, HEADLINE, ASKED, answer="x", correction="y", batch="kept")
    open_memory(home).close()
    undone = feedback.undo(home, "b")
    assert (undone.entries, len(undone.records), undone.learnt) == (2, 1, {})
    assert [entry.batch for entry in entries(home)] == ["kept"]
    assert [record.output for record in records(home)] == ["Own title", "y"]
    files = [file for file in home.path.rglob("*") if file.is_file()]
    assert len(files) > 2 and not [f for f in files if secret.encode() in f.read_bytes()]
    with pytest.raises(ConfigError, match="no batch 'b'"):
        feedback.undo(home, "b")


def test_undo_that_was_stopped_can_be_done_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    feedback.give(home, HEADLINE, ASKED, answer="x", correction="y", batch="b")
    feedback.give(home, HEADLINE, {"text": "Else."}, answer="z", rating="bad", batch="b")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pfi.profile.vault.feedback.FeedbackTables.remove", stop)
        with pytest.raises(KeyboardInterrupt):
            feedback.undo(home, "b")
    feedback.undo(home, "b")
    assert entries(home) == [] and records(home) == []


def test_doubtful_feedback_is_in_no_history_and_no_preference_until_trusted(home: Home) -> None:
    feedback.give(home, HEADLINE, ASKED, answer="x", correction="y", batch="b")
    (record,) = records(home)
    later = datetime.now(UTC)
    with home.open_vault() as vault:
        vault.feedback.mark(["b"], "doubtful")
        assert vault.added_since(HEADLINE.name, later - timedelta(days=1)) == set()
        assert vault.count() == 1
    assert records(home) == [] and pairs(home) == []
    # More of the same batch is doubtful, too.
    assert feedback.give(home, HEADLINE, ASKED, answer="u", correction="v", batch="b").trust
    assert records(home) == []
    feedback.trust(home, "b")
    assert len(records(home)) == 2 and len(pairs(home)) == 2
    with home.open_vault() as vault:  # what was left out until now is new now
        assert record.id in vault.added_since(HEADLINE.name, later)


def test_the_days_batch_is_left_alone_once_it_is_doubtful(home: Home) -> None:
    first = feedback.give(home, HEADLINE, ASKED, answer="x", correction="y")
    assert first.batch == datetime.now(UTC).date().isoformat() == feedback.default_batch(home)
    with home.open_vault() as vault:
        vault.feedback.mark([first.batch], "doubtful")
    assert feedback.default_batch(home) == f"{first.batch}-2"


def test_erasing_a_record_erases_what_was_said_of_it(home: Home) -> None:
    said = feedback.give(home, HEADLINE, ASKED, answer="x", correction="zebrafish", batch="b")
    feedback.remember(home, HEADLINE, ASKED, "x")
    with home.open_vault() as vault:
        assert vault.delete([said.record or ""]) == 1
        assert vault.feedback.entries() == [] and vault.feedback.answers() == []
    for file in home.path.glob("vault.db*"):
        assert b"zebrafish" not in file.read_bytes()


# The last answers ---------------------------------------------------------------------


def test_last_answers_are_kept_up_to_the_setting_and_older_ones_erased(home: Home) -> None:
    home.config.answers = 3
    for n in range(5):
        feedback.remember(home, HEADLINE, {"text": f"question{n}"}, f"answer{n}")
    assert feedback.last_answer(home).answer == "answer4"
    shown = feedback.last_answer(home, 2)
    assert (shown.answer, shown.task, dict(shown.input)) == (
        "answer2",
        "LaMP_4",
        {"text": "question2"},
    )
    with pytest.raises(ConfigError, match="only 3 answers"):
        feedback.last_answer(home, 3)
    for file in home.path.glob("vault.db*"):
        assert b"question1" not in file.read_bytes()


def test_answers_are_not_kept_when_the_setting_is_zero(home: Home) -> None:
    with pytest.raises(ConfigError, match="nothing was answered"):
        feedback.last_answer(home)
    feedback.remember(home, HEADLINE, ASKED, "kept")
    home.config.answers = 0
    feedback.remember(home, HEADLINE, ASKED, "unkept")
    with pytest.raises(ConfigError, match="keeps no answers"):
        feedback.last_answer(home)
    for file in home.path.glob("vault.db*"):
        assert b"kept" not in file.read_bytes()


# The vault ----------------------------------------------------------------------------


def test_vault_of_the_version_before_gets_the_tables_and_keeps_its_records(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    with Vault(path) as vault:
        vault.add([Record("a", "LaMP_4", ASKED, "Rain")])
    db = sqlite3.connect(path)
    names = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite%' AND type = ?"
    for kind in ("trigger", "table"):
        for _, name in db.execute(names, (kind,)).fetchall():
            if name != "records":
                db.execute(f"DROP {kind} {name}")
    db.execute("PRAGMA user_version = 2")
    db.commit()
    db.close()
    with Vault(path) as vault:
        assert vault.feedback.entries() == [] and vault.feedback.answers() == []
        assert [record.output for record in vault.history("LaMP_4")] == ["Rain"]
        assert vault._version() == SCHEMA_VERSION
