"""Reading and writing LaMP files: good ones, every kind of bad one, and the real data."""

from __future__ import annotations

import json
import os
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi._util.files import sha256_file, write_atomic, write_json
from pfi.datasets.lamp import (
    available_tasks,
    read_history,
    read_outputs,
    read_users,
    write_predictions,
)
from pfi.errors import ConfigError, DataError, PfiError
from pfi.readers.pieces import CHUNK, JsonArray
from pfi.readers.report import ImportReport
from pfi.sources.connectors import get_connector
from pfi.tasks import get_task

TASK = get_task("LaMP_3")
REAL = Path(__file__).resolve().parents[3] / "shared/data/lamp"


def item(
    key: object, text: object = "a book", score: object = "4", **more: object
) -> dict[str, Any]:
    return {"id": key, "text": text, "score": score, **more}


def question(key: object, user: object, *items: dict[str, Any], **more: object) -> dict[str, Any]:
    prompt = TASK.prompt({"text": f"review {key}"})
    return {"id": key, "user_id": user, "input": prompt, "profile": list(items), **more}


def save(folder: Path, questions: object, outputs: dict[str, object] | None = None) -> Path:
    """A LaMP_3 test split inside `folder`; text and bytes are written as they are."""
    path = folder / "LaMP_3" / "test_questions.json"
    if isinstance(questions, str | bytes):
        write_atomic(path, questions)
    else:
        write_json(path, questions)
    if outputs is not None:
        golds = [{"id": key, "output": value} for key, value in outputs.items()]
        write_json(path.with_name("test_outputs.json"), {"task": "LaMP_3", "golds": golds})
    return path


def fails(folder: Path) -> str:
    """The message of the error that reading the split gives."""
    with pytest.raises(DataError) as caught:
        read_users(folder, TASK, "test")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_users_histories_and_answers(tmp_path: Path) -> None:
    items = [item("b", date="2020-01-02", score=5), item("a", date="2020-01-01", score=4.0)]
    later = item("c", date="2021-01-01")
    data = [
        question(1, 7, *items, date="2020-01-02"),
        question(2, "8", item("a", "other")),
        question(3, 7, *items, later),
    ]
    save(tmp_path, data, {"1": 3, "2": "2", "3": "1"})
    report = ImportReport()
    first, second = read_users(tmp_path, TASK, "test", report=report)
    assert (first.id, second.id) == ("7", "8")
    assert [record.id for record in first.history] == ["a", "b", "c"]
    assert [record.output for record in first.history] == ["4", "5", "4"]
    assert [(q.id, q.gold) for q in first.questions] == [("1", "3"), ("3", "1")]
    assert first.questions[0].fields == {"text": "review 1"}
    assert [r.id for r in first.history.before(first.questions[0].time)] == ["a"]
    assert not second.history.dated
    assert report.read == 4 and not report.skipped
    assert read_users(tmp_path / "LaMP_3", TASK, "test") == [first, second]


@pytest.mark.parametrize(
    ("name", "values", "fields", "output"),
    [
        ("LaMP_1", {"title": "T", "abstract": "A"}, {"title": "T", "abstract": "A"}, ""),
        ("LaMP_1", {"title": "T", "abstract": None}, {"title": "T"}, ""),
        ("LaMP_2N", {"title": "T", "text": "X", "category": "C"}, {"title": "T", "text": "X"}, "C"),
        ("LaMP_5", {"title": "T", "abstract": "A"}, {"abstract": "A"}, "T"),
        ("LaMP_7", {"text": "X"}, {}, "X"),
    ],
)
def test_keys_of_tasks(
    tmp_path: Path, name: str, values: dict[str, str], fields: dict[str, str], output: str
) -> None:
    data = [{"id": "1", "input": "?", "profile": [{"id": "9", **values}]}]
    write_json(tmp_path / name / "dev_questions.json", data)
    (user,) = read_users(tmp_path, get_task(name), "dev")
    assert user.id == "1", "without user_id a question is its own user"
    assert (dict(user.history[0].input), user.history[0].output) == (fields, output)
    assert user.questions[0].gold is None
    assert available_tasks(tmp_path, "dev") == [name]
    assert available_tasks(tmp_path, "test") == []


def test_empty_and_single_histories(tmp_path: Path) -> None:
    save(tmp_path, [question(1, "a"), question(2, "b", item(1))])
    assert [len(user.history) for user in read_users(tmp_path, TASK, "test")] == [0, 1]


def test_harmless_items_are_skipped_and_counted_once(tmp_path: Path) -> None:
    future = (datetime.now(UTC) + timedelta(days=3)).date().isoformat()
    items = [
        item(1, date="2020-01-01"),
        item(2, "  ", date="2020-01-01"),
        item(3, score=None, date="2020-01-01"),
        item(1, "again", date="2020-01-01"),
        item(4, date=future),
        item(5, date="yesterday"),
        item(8, date="0001-01-01T00:00+14:00"),
        item(6),
        item(7, date="2022-01-01"),
    ]
    save(tmp_path, [question(1, "u", *items, date="2021-01-01"), question(2, "u", *items)])
    report = ImportReport()
    (user,) = read_users(tmp_path, TASK, "test", report=report)
    assert [record.id for record in user.history] == ["1", "7"]
    assert [r.id for r in user.history.before(user.questions[0].time)] == ["1"]
    assert report.read == 2 and report.skipped.total() == 7
    assert report.skipped["date is not understood"] == 2
    assert set(report.skipped) == {
        "text is empty",
        "score is empty",
        "the item's id comes twice in the profile",
        "date is in the future",
        "date is not understood",
        "it has no date although the user's other items have one",
    }
    assert report.examples["text is empty"] == "test_questions.json, question 1, item 2"
    assert "2 records read, 7 skipped" in report.summary() and "\n" not in report.summary()


def test_profiles_that_differ_are_united(tmp_path: Path) -> None:
    save(tmp_path, [question(1, "u", item(1)), question(2, "u", item(1, "x"), item(2))])
    report = ImportReport()
    (user,) = read_users(tmp_path, TASK, "test", report=report)
    assert [(r.id, r.input["text"]) for r in user.history] == [("1", "a book"), ("2", "a book")]
    assert list(report.skipped) == ["another profile has a different item of the same id"]


def test_limit_samples_users(tmp_path: Path) -> None:
    # Every user comes twice, far apart: a user of the sample must keep both questions.
    names = [f"u{n}" for n in range(20)]
    data = [question(f"{n}{part}", n, item(1, "")) for part in "ab" for n in names]
    save(tmp_path, data)
    samples = set()
    for seed in range(30):
        report = ImportReport()
        users = read_users(tmp_path, TASK, "test", limit=5, seed=seed, report=report)
        assert users == read_users(tmp_path, TASK, "test", limit=5, seed=seed)
        found = [user.id for user in users]
        assert found == sorted(found, key=names.index)
        assert all(len(user.questions) == 2 for user in users) and len(users) == 5
        assert report.skipped.total() == 5, "only the sample is counted"
        samples.add(tuple(found))
    assert len(samples) > 25
    assert {name for sample in samples for name in sample} == set(names)
    assert len(read_users(tmp_path, TASK, "test", limit=99)) == 20
    assert read_users(tmp_path, TASK, "test", limit=0) == []
    with pytest.raises(ConfigError, match="negative"):
        read_users(tmp_path, TASK, "test", limit=-1)


GOOD = [question(1, "u", item(1)), question(2, "u", item(1))]
TEXT = json.dumps(GOOD, indent=1)
BROKEN = [
    (b"", "the file is empty"),
    (b" \n\n  ", "the file is cut off"),
    (b"{}", "does not hold a JSON list"),
    (b"[]", "holds no questions"),
    (b"[1]", "entry 1 is not a JSON object"),
    (TEXT[:-9], "entry 2 is cut off"),
    (TEXT[:-2], "the file is cut off: there is no ']'"),
    (TEXT[: TEXT.index(" },\n {") + 3], "entry 2 is cut off"),
    (TEXT + "x", "line 2[0-9].*followed by more text"),
    (TEXT.replace('"user_id"', "user_id", 1), "line 4.*entry 1 is not valid JSON"),
    (TEXT.encode("utf-16"), "looks like UTF-16"),
    (TEXT.encode("utf-16-le"), "looks like UTF-16"),
    (TEXT.replace("a book", "caf\xe9").encode("latin-1"), "line 9: the text .* is not UTF-8"),
    (TEXT.replace('"4"', "9" * 5000), "number that is not allowed"),
    (TEXT.replace('"4"', "NaN"), "number that is not allowed"),
    (TEXT.replace('"4"', "[" * 100_000), "nests too deeply"),
    (TEXT.replace('"id": 2', '"id": 1'), "question 1: the question id comes twice"),
    (TEXT.replace('"id": 2', '"key": 2'), "question no. 2: id is empty"),
    (TEXT.replace('"id": 2', '"id": [2]'), "question no. 2: id is not text"),
    (TEXT.replace('"input"', '"question"', 1), "question 1: input is missing or empty"),
    (TEXT.replace('"profile"', '"items"', 1), "question 1: profile is missing"),
    (TEXT.replace('"profile": [', '"profile": [7, ', 1), "item no. 1: the item is not an object"),
    (TEXT.replace('"text"', '"review"'), "item 1: text is missing.*LaMP_3.*'id', 'review'"),
    (TEXT.replace('"a book"', '["a"]'), "question 1, item 1: text is not text"),
    (TEXT.replace('"4"', "true"), "question 1, item 1: score is not text"),
    (TEXT.replace('"a book"', r'"\ud800"'), "item 1: text is not valid Unicode"),
    (TEXT.replace('"u"', '"u", "date": "soon"', 1), "question 1: date is not understood"),
]


@pytest.mark.parametrize(("content", "expected"), BROKEN, ids=[e[:40] for _, e in BROKEN])
def test_broken_questions_give_one_clear_line(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    path = save(tmp_path, content)
    message = fails(tmp_path)
    assert str(path) in message
    assert re.search(expected, message), message


def test_missing_files(tmp_path: Path) -> None:
    assert "give the folder that holds LaMP_3/test_questions.json" in fails(tmp_path)
    write_json(tmp_path / "LaMP_4" / "test_questions.json", [])
    assert "the tasks there are LaMP_4" in fails(tmp_path)
    write_json(tmp_path / "LaMP_3" / "dev_questions.json", [])
    assert "the splits there are dev" in fails(tmp_path)
    (tmp_path / "LaMP_3" / "test_questions.json").mkdir()
    fails(tmp_path)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"1": "4"}, "question 2: test_outputs.json has no output"),
        ({"1": "4", "2": "4", "3": "4"}, "record 3: 1 outputs belong to no question"),
        ({"1": "4", "2": ["4"]}, "record 2: output is not text"),
        ({"1": "4", "2": True}, "record 2: output is not text"),
    ],
)
def test_outputs_that_do_not_fit(tmp_path: Path, outputs: dict[str, object], expected: str) -> None:
    save(tmp_path, GOOD, outputs)
    assert expected in fails(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"task": "LaMP_3", "golds": [', "cut off"),
        ("[]", "no task name and list of golds"),
        ('{"task": "LaMP_3"}', "no task name and list of golds"),
        ('{"task": "LaMP_3", "golds": [{"id": 1}]}', "record no. 1: it has no id and output"),
        ('{"golds": [{"id": 1, "output": 1}, {"id": "1", "output": 1}]}', "the id comes twice"),
        ('{"task": "LaMP_4", "golds": []}', "the outputs are of LaMP_4, not LaMP_3"),
        ('{"golds": ' + "[" * 100_000, "nests too deeply"),
    ],
)
def test_broken_outputs(tmp_path: Path, text: str, expected: str) -> None:
    path = save(tmp_path, GOOD).with_name("test_outputs.json")
    write_atomic(path, text)
    message = fails(tmp_path)
    assert expected in message and "test_outputs.json" in message
    write_atomic(path, "caf\xe9".encode("latin-1"))
    assert "not UTF-8" in fails(tmp_path)


def test_large_objects_and_file_borders(tmp_path: Path) -> None:
    # Objects around and over the size of a read, with multi-byte text and escapes at the borders.
    path = tmp_path / "list.json"
    values = [{"n": n, "text": '\u00e9\\"\n' * (CHUNK // 12 + n)} for n in range(7)]
    values += [{"text": "x" * 5 * CHUNK}, {}]
    for ascii_only in (True, False):
        path.write_text("\ufeff" + json.dumps(values, indent=2, ensure_ascii=ascii_only), "utf-8")
        found = list(JsonArray(path))
        assert [value for _, value in found] == values
        lines = path.read_text("utf-8").split("\n")
        assert all(lines[line - 1].strip().startswith("{") for line, _ in found)


def test_connector_reads_one_user(tmp_path: Path) -> None:
    path = save(tmp_path, [question(1, "u", item(1)), question(2, "v", item(1, "x"), item(2))])
    lamp = get_connector("lamp")
    report = ImportReport()
    records = list(lamp.read(path, lamp.configure({"user": "v"}), report))
    assert [(r.id, r.task, r.source) for r in records] == [
        ("1", "LaMP_3", "lamp:test_questions.json"),
        ("2", "LaMP_3", "lamp:test_questions.json"),
    ]
    assert report.read == 2
    assert records == list(lamp.read(path, lamp.configure({"user": "v"}), ImportReport()))
    for user in (None, "w"):
        with pytest.raises(ConfigError, match=r"u, v"):
            list(lamp.read(path, lamp.configure({"user": user}), ImportReport()))
    moved = tmp_path / "questions.json"
    write_json(moved, [question(1, "u") | {"input": "?"}])
    with pytest.raises(ConfigError, match="task is not clear"):
        list(lamp.read(moved, lamp.configure({}), ImportReport()))
    write_json(moved, [question(1, "u", item(1))])
    assert len(list(lamp.read(moved, lamp.configure({"task": "LaMP_3"}), ImportReport()))) == 1


def test_predictions_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.json"
    write_predictions(path, "LaMP_3", {"1": "4", "2": 'caf\u00e9 "x"'})
    expected = {
        "task": "LaMP_3",
        "golds": [{"id": "1", "output": "4"}, {"id": "2", "output": 'caf\u00e9 "x"'}],
    }
    assert json.loads(path.read_text("utf-8")) == expected
    before = path.read_bytes()
    for bad in ([("1", "a"), ("1", "b")], [("1", 4)], [("1", "\ud800")]):
        with pytest.raises(DataError):
            write_predictions(path, "LaMP_3", bad)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXTS.filter(str.strip).map(str.strip), TEXTS, max_size=5))
def test_outputs_round_trip(answers: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        write_predictions(path, "LaMP_4", list(answers.items()))
        assert read_outputs(path) == ("LaMP_4", answers)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS.filter(str.strip), max_size=5), st.booleans(), st.integers(0, 3))
def test_questions_round_trip(texts: list[str], ascii_only: bool, indent: int) -> None:
    data = [question(1, "u", *(item(n, text) for n, text in enumerate(texts)))]
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), json.dumps(data, ensure_ascii=ascii_only, indent=indent or None))
        (user,) = read_users(Path(folder), TASK, "test")
    assert [record.input["text"] for record in user.history] == texts


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "text", "score", "date", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
ITEMS = st.fixed_dictionaries(
    {"id": st.integers(0, 3) | VALUES, "text": st.text(max_size=5) | VALUES, "score": VALUES},
    optional={"date": st.sampled_from(["2020", "0001-01-01T00:00+14:00", "9999", ""]) | VALUES},
)
ENTRIES = st.fixed_dictionaries(
    {
        "id": st.integers(0, 9),
        "input": st.just("?") | VALUES,
        "profile": st.lists(ITEMS, max_size=4),
    },
    optional={"user_id": VALUES, "date": VALUES},
)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60)
    | st.binary(max_size=30).map(lambda data: TEXT[:200].encode() + data)
    | (st.lists(ENTRIES, max_size=3) | VALUES).map(lambda value: json.dumps(value).encode()),
    st.none()
    | st.binary(max_size=30)
    | VALUES.map(lambda value: json.dumps({"golds": value}).encode()),
)
def test_any_bytes_give_users_or_a_clear_error(questions: bytes, outputs: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder), questions)
        if outputs is not None:
            path.with_name("test_outputs.json").write_bytes(outputs)
        try:
            for user in read_users(Path(folder), TASK, "test"):
                assert all(record.content_hash for record in user.history)
        except PfiError as error:
            assert "\n" not in str(error).replace(folder, "")


def test_write_atomic_leaves_the_old_file_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "file.txt"
    write_atomic(path, "caf\u00e9")
    assert path.read_bytes() == b"caf\xc3\xa9"
    assert sha256_file(path) == "850f7dc43910ff890f8879c0ed26fe697c93a067ad93a7d50f466a7028a9bf4e"

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"caf\xc3\xa9" and list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})


def test_real_data() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no data in {REAL}")
    names = available_tasks(REAL, "dev")
    assert names == [f"LaMP_{n}" for n in ("1", "2M", "2N", "3", "4", "5", "6", "7")]
    for name in names:
        task, report = get_task(name), ImportReport()
        users = read_users(REAL, task, "dev", report=report)
        assert not report.skipped, report.summary()
        raw = json.loads((REAL / name / "dev_questions.json").read_text("utf-8"))
        assert sum(len(user.questions) for user in users) == len(raw)
        assert {u.id: len(u.history) for u in users} == {
            q["user_id"]: len(q["profile"]) for q in raw
        }
        question_ = users[0].questions[0]
        assert task.prompt(question_.fields).split() == question_.prompt.split()
        assert all(q.gold for user in users for q in user.questions)
        assert (
            read_history(REAL / name / "dev_questions.json", task, users[0].id) == users[0].history
        )


def test_an_expected_answer_that_is_no_label_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "LaMP_3"
    folder.mkdir()
    question = {"id": "1", "input": get_task("LaMP_3").prompt({"text": "good"}), "profile": []}
    (folder / "dev_questions.json").write_text(json.dumps([question]))
    golds = {"task": "LaMP_3", "golds": [{"id": "1", "output": "good"}]}
    (folder / "dev_outputs.json").write_text(json.dumps(golds))
    with pytest.raises(DataError, match=r"record 1: the expected answer 'good' is no label"):
        read_users(folder, get_task("LaMP_3"), "dev")
