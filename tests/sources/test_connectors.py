"""The connector framework, and the table and git connectors on good and bad sources."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import tempfile
import tracemalloc
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pfi.sources.connectors as package
from pfi.errors import ConfigError, DataError, PfiError
from pfi.readers.report import ImportReport
from pfi.records import History, Record
from pfi.sources.connectors import candidates, connectors, get_connector
from pfi.tasks import get_task

GOOD = '{"instruction": "ask", "answer": "tell"}'


def read(
    name: str, path: Path, options: Mapping[str, object] | None = None
) -> tuple[list[Record], ImportReport]:
    """Everything that a connector yields, twice: the ids must be the same."""
    connector, report = get_connector(name), ImportReport()
    records = list(connector.read(path, connector.configure(options or {}), report))
    again = list(connector.read(path, connector.configure(options or {}), ImportReport()))
    assert [record.id for record in again] == [record.id for record in records]
    assert report.read == len(records)
    return records, report


def table(
    folder: Path, name: str, content: str | bytes, **options: object
) -> tuple[list[Record], ImportReport]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read("table", path, options)


# The framework --------------------------------------------------------------------------


def test_a_connector_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"git", "lamp", "table"} <= set(connectors())
    assert all(connector.summary for connector in connectors().values())
    for connector in connectors().values():
        for field in connector.options.model_fields.values():
            assert field.description, "descriptions are the help of the CLI"
    code = """
from pfi.sources.connectors import Connector, Options
from pfi.records import Record
class Diary(Connector[Options]):
    name, summary, options = "diary", "a diary", Options
    def read(self, path, options, report):
        yield Record("1", "continuation", {}, "Dear diary")
"""
    (tmp_path / "diary_for_test.py").write_text(code)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(package, "_REGISTERED", dict(package._REGISTERED))
    assert list(connectors()) == sorted(connectors())
    diary = get_connector("diary")
    assert [r.output for r in diary.read(tmp_path, diary.configure({}), ImportReport())] == [
        "Dear diary"
    ]


def test_one_that_fails_at_a_glance_keeps_no_other_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD)
    assert candidates(path) == ["table"]

    def fail(path: Path) -> bool:
        raise RecursionError(path)

    monkeypatch.setattr(connectors()["browser"], "recognises", fail)
    assert candidates(path) == ["table"]


def test_unknown_connectors_and_options() -> None:
    with pytest.raises(ConfigError, match="git, lamp, mail"):
        get_connector("pigeon")
    with pytest.raises(ConfigError, match="the options are author, revision"):
        get_connector("git").configure({"autor": "x"})
    bad: list[tuple[dict[str, object], str]] = [
        ({"map": "instruction"}, "not of the form field=column"),
        ({"map": "a=b,a=c"}, "mapped twice"),
        ({"encoding": "utf-9"}, "no text encoding"),
        ({"delimiter": ";;"}, "delimiter"),
        ({"line_limit": 0}, "line_limit"),
    ]
    for options, expected in bad:
        with pytest.raises(ConfigError, match=expected):
            get_connector("table").configure(options)


def test_report() -> None:
    report, other = ImportReport(), ImportReport()
    assert report.summary() == "0 records read"
    report.read = 1
    report.skip("it is empty", "a.csv, line 2")
    other.skip("it is empty", "b.csv, line 9")
    other.skip("it is old", "b.csv, line 8")
    report.merge(other)
    assert report.summary() == (
        "1 record read, 3 skipped: 2 because it is empty (first: a.csv, line 2); "
        "1 because it is old (first: b.csv, line 8)"
    )


# Tables ---------------------------------------------------------------------------------


def test_jsonl_with_own_and_mapped_names(tmp_path: Path) -> None:
    records, report = table(tmp_path, "a.jsonl", f'\ufeff{GOOD}\n\n{GOOD[:-1]}, "x": [1]}}')
    assert len(records) == 1 and list(report.skipped) == ["it repeats a row"]
    assert dict(records[0].input) == {"instruction": "ask"} and records[0].output == "tell"
    assert (records[0].task, records[0].source) == ("instruction", "table:a.jsonl")
    assert records[0].id == records[0].content_hash[:16]
    text = '{"q": "ask", "a": 4.0, "when": 1577836800, "key": 12}\n'
    mapped = "instruction=q, answer=a, time=when, id=key"
    for value in (mapped, mapped.split(","), dict(p.strip().split("=") for p in mapped.split(","))):
        ((record,), _) = table(tmp_path, "b.ndjson", text, map=value)
        assert (record.id, record.output) == ("12", "4")
        assert record.time == datetime(2020, 1, 1, tzinfo=UTC)


def test_csv_and_tsv(tmp_path: Path) -> None:
    text = (
        'instruction,answer,time,id\n"ask, or\nnot",tell,2020-01-01,a\nmore,"""x""",1577836801,b\n'
    )
    records, report = table(tmp_path, "a.csv", text)
    assert [(r.id, r.input["instruction"], r.output) for r in records] == [
        ("a", "ask, or\nnot", "tell"),
        ("b", "more", '"x"'),
    ]
    assert records[1].time == datetime(2020, 1, 1, 0, 0, 1, tzinfo=UTC) and not report.skipped
    tabs = "text\tscore\nbook\t5\n"
    ((record,), _) = table(tmp_path, "a.tsv", tabs, task="LaMP_3")
    assert (record.task, record.output) == ("LaMP_3", "5")
    for name, delimiter in (("b.csv", ";"), ("b.txt", ";"), ("c.csv", "\\t")):
        mark = "\t" if delimiter == "\\t" else delimiter
        assert table(tmp_path, name, tabs.replace("\t", mark), task="LaMP_3", delimiter=delimiter)[
            0
        ]
    wide = text.encode("utf-16")
    assert [r.id for r in table(tmp_path, "d.csv", wide, encoding="utf-16")[0]] == ["a", "b"]


def test_unusable_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    lines = [
        b'{"instruction": "ask", "answer": "tell", "time": "2020", "id": 1}',
        b'{"instruction": "ask", "answer": "tell"',
        b"[1]",
        b'{"instruction": "caf\xe9", "answer": "tell", "time": "2020", "id": 2}',
        b'{"instruction": "ask", "time": "2020", "id": 3}',
        b'{"instruction": "ask", "answer": " ", "time": "2020", "id": 4}',
        b'{"instruction": "ask", "answer": ["x"], "time": "2020", "id": 5}',
        b'{"instruction": "ask", "answer": "x", "time": "2999", "id": 6}',
        b'{"instruction": "ask", "answer": "x", "time": "then", "id": 7}',
        b'{"instruction": "ask", "answer": "x", "id": 8}',
        b'{"instruction": "ask", "answer": "x", "time": "2020", "id": 1}',
        b'{"instruction": "ask", "answer": "\\ud800", "time": "2020", "id": 9}',
        b'{"instruction": "ask", "answer": NaN, "time": "2020", "id": 10}',
        b'{"instruction": "ask", "answer": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"instruction": "' + b"x" * 200_000 + b'", "answer": "x", "time": "2020", "id": 11}',
        '{"instruction": "café", "answer": "x", "time": "2021", "id": 12}'.encode(),
    ]
    records, report = table(tmp_path, "a.jsonl", b"\n".join(lines), line_limit=150_000)
    assert [record.id for record in records] == ["1", "12"]
    assert report.examples == {
        "the line is not JSON": "a.jsonl, line 2",
        "the line is not a JSON object": "a.jsonl, line 3",
        "the line is not utf-8-sig": "a.jsonl, line 4",
        "answer is missing": "a.jsonl, line 5",
        "answer is empty": "a.jsonl, line 6",
        "answer is not text": "a.jsonl, line 7",
        "time is in the future": "a.jsonl, line 8",
        "time is not understood": "a.jsonl, line 9",
        "it has no time although other rows have one": "a.jsonl, line 10",
        "an earlier row has its id": "a.jsonl, line 11",
        "answer is not valid Unicode": "a.jsonl, line 12",
        "the line is longer than 150000 characters": "a.jsonl, line 16",
    }
    assert report.skipped.total() == len(lines) - 2
    History("u", records)


def test_unusable_csv_rows(tmp_path: Path) -> None:
    text = (
        'instruction,answer,id\n"a\nb",c,1\nd,e,2,f\ng,,3\nh\n"i"j,k,4\n'
        f'{"x" * 300},y,5\n"p\n{"q" * 300}\n",r,6\nl,caf\u00e9,7\nm,\u00f1,8\n"o,p,9\n'
    )
    data = text.encode().replace("caf\u00e9".encode(), b"caf\xe9")
    records, report = table(tmp_path, "a.csv", data, line_limit=200)
    assert [record.id for record in records] == ["1", "8"]
    places = {place.removeprefix("a.csv, line ") for place in report.examples.values()}
    assert report.skipped["answer is empty"] == 2, "of rows 3 and h"
    assert report.skipped["the line is longer than 200 characters"] == 2
    assert places == {"4", "5", "7", "8", "12", "14"}
    assert any("a quote is never closed" in reason for reason in report.skipped)


def test_a_huge_line_takes_little_memory(tmp_path: Path) -> None:
    for name, head in (("a.jsonl", ""), ("a.csv", "instruction,answer\n")):
        path = tmp_path / name
        row = GOOD if name == "a.jsonl" else "ask,tell"
        with path.open("w") as file:
            file.write(f'{head}{row}\n"')
            for _ in range(50):
                file.write("x" * 1_000_000)
            file.write(f"\n{row.replace('ask', 'beg')}\n")
        connector, report = get_connector("table"), ImportReport()
        tracemalloc.start()
        records = list(connector.read(path, connector.configure({"line_limit": 1_000_000}), report))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8_000_000
        assert "longer than 1000000" in report.summary() and records[0].output == "tell"
        if name == "a.jsonl":
            assert len(records) == 2


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.jsonl", "", {}, "the file is empty"),
        ("a.jsonl", "\n\n", {}, "holds no records"),
        (
            "a.jsonl",
            "{}\n{",
            {},
            r"none of 2 .*1 because instruction is missing \(a.jsonl, line 1\)",
        ),
        ("a.jsonl", '{"prompt": "a", "response": "b"}', {}, "needs instruction, answer .*'prompt'"),
        ("a.jsonl", GOOD, {"map": "time=when"}, "time is missing"),
        ("a.jsonl", GOOD, {"map": "score=when"}, "has no field 'score'"),
        ("a.jsonl", GOOD, {"task": "LaMP_9"}, "unknown task 'LaMP_9'"),
        ("a.jsonl", GOOD.encode("utf-16"), {"encoding": "utf-8"}, "looks like UTF-16"),
        ("a.jsonl", GOOD, {"encoding": "utf-16"}, "line 1: the text is not utf-16"),
        ("a.jsonl", GOOD, {"encoding": "hex"}, "unknown encoding 'hex'"),
        ("a.json", GOOD, {}, "unknown kind of table '.json'"),
        ("a.csv", "prompt,answer\na,b\n", {}, "line 1: there is no column 'instruction'.*'prompt'"),
        (
            "a.csv",
            "instruction;answer\na;b\n",
            {"delimiter": ","},
            "there is no column 'instruction'.*divided by ';': --set delimiter=';'",
        ),
        ("a.csv", "instruction,answer,answer\n", {}, "column 'answer' comes twice"),
        ("a.csv", "instruction,answer\n", {}, "holds no records"),
        ("a.csv", 'instruction,"answer\n', {}, "line 1: the row is not valid CSV"),
        ("a.csv", "instruction,answer\na,b", {"map": "id=key"}, "there is no column 'key'"),
        ("a.csv", "instruction,answer\na,b", {"delimiter": "\n"}, "cannot|no column"),
    ],
)
def test_unusable_tables_give_one_clear_line(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(PfiError, match=expected) as caught:
        table(tmp_path, name, content, **options)
    assert "\n" not in str(caught.value)


def test_missing_tables(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for options in ({}, {"encoding": "latin-1"}):
        for name in ("no.csv", "folder.csv"):
            with pytest.raises(DataError, match=f"{name}: "):
                read("table", tmp_path / name, options)


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5, unique=True), st.booleans())
def test_tables_round_trip(rows: list[tuple[str, str]], as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if as_json:
            lines = [
                json.dumps({"instruction": a, "answer": b}, ensure_ascii=False) for a, b in rows
            ]
            records, _ = table(Path(folder), "a.jsonl", "\n".join(lines))
        else:
            out = io.StringIO()
            csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("instruction", "answer"), *rows])
            records, _ = table(Path(folder), "a.csv", out.getvalue())
    assert [(record.input["instruction"], record.output) for record in records] == rows


CELLS = st.sampled_from(
    [b"{", b"}", b'"', b'"instruction"', b'"answer"', b":", b",", b"\n", b"\r", b"\0", b"\xff",
     b"instruction,answer\n", b"1", b"\\ud800", b"x", b";", b"[", b"\xc3\xa9",
     GOOD.encode() + b"\n",
     b'"time":"0001-01-01T00:00+14:00"', b'"id":1e999,', b"\xef\xbb\xbf", b"\xff\xfe"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60) | st.lists(CELLS, max_size=25).map(b"".join),
    st.booleans(),
    st.sampled_from(["a.jsonl", "a.csv", "a.tsv"]),
    st.sampled_from(["utf-8-sig", "utf-8", "latin-1", "utf-16", "utf-7", "ascii", "cp1252"]),
)
def test_any_bytes_give_records_or_a_clear_error(
    data: bytes, headed: bool, name: str, encoding: str
) -> None:
    if headed and name != "a.jsonl":
        data = (
            b"instruction,answer,time,id\n".replace(b",", b"," if name == "a.csv" else b"\t") + data
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            records, _ = table(Path(folder), name, data, encoding=encoding)
        except PfiError as error:
            assert "\n" not in str(error)
        else:
            assert records
            assert all(record.content_hash for record in History("u", records))


# Git ------------------------------------------------------------------------------------

ME, OTHER = "me@example.org", "other@example.org"


class Repository:
    """A git repository with commits at given times, apart from the machine's settings."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for key in [key for key in os.environ if key.startswith("GIT_")]:
            monkeypatch.delenv(key)
        empty = path.parent / "gitconfig"
        empty.write_text("")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(empty))
        monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        self.path, self.seconds = path, 1_600_000_000
        path.mkdir()
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", ME)
        self.git("config", "user.name", "Me")

    def git(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments],
            env={**os.environ, **environment}, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, message: str, email: str = ME, name: str = "Me", **files: str | bytes) -> str:
        """Commit files (`x_py` is written as x.py) and give the hash."""
        for file, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (self.path / file.replace("_", ".")).write_bytes(data)
        self.git("add", "-A")
        self.seconds += 60
        when = {
            "GIT_AUTHOR_DATE": f"{self.seconds} +0200",
            "GIT_COMMITTER_DATE": f"{self.seconds} +0200",
        }
        self.git(
            "commit", "-q", "--allow-empty", "--allow-empty-message", "--cleanup=verbatim",
            f"--author={name} <{email}>", "-m", message, **when,
        )  # fmt: skip
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path / "work", monkeypatch)


def test_git_reads_one_authors_commits(repository: Repository) -> None:
    first = repository.commit("Add a", a_py="one\ntwo\n")
    theirs = repository.commit("Add b", OTHER, "Other", b_py="x\n")
    second = repository.commit(
        "Change a,\nand c\n\nTwo is wrong.\nSigned-off-by: Me <me@example.org>\n\nMore.",
        a_py="one\n-- three\n", c_bin=b"\0\1",
    )  # fmt: skip
    records, report = read("git", repository.path)
    assert [record.id for record in records] == [first, second] and not report.skipped
    assert [record.output for record in records] == ["Add a", "Change a, and c\n\nTwo is wrong."]
    assert records[0].input["change"] == "a.py (+2 -0)\na.py\n+one\n+two"
    assert records[1].input["change"] == "a.py (+1 -1), c.bin (binary)\na.py\n-two\n+-- three"
    assert records[0].time == datetime.fromtimestamp(1_600_000_060, UTC)
    assert (records[0].task, records[0].source) == ("commit_message", "git:work")
    assert [r.id for r in read("git", repository.path, {"author": OTHER.upper()})[0]] == [theirs]
    assert [r.id for r in read("git", repository.path, {"revision": "HEAD~1"})[0]] == [first]
    history = History("me", records)
    assert get_task("commit_message").examples(history, None)[0].target == "Add a"  # type: ignore[arg-type]


def test_git_keeps_the_lines_of_files_apart(repository: Repository) -> None:
    repository.commit("Add", a_py="a\nb\nc\n", b_py="d\n", c_py="e\n")
    repository.git("rm", "-q", "c.py")
    repository.commit("Change", a_py="a\n++ b/x\nc\nend", b_py="f\n")
    change = read("git", repository.path)[0][1].input["change"]
    assert change.split("\n") == [
        "a.py (+2 -1), b.py (+1 -1), c.py (+0 -1)",
        "a.py", "-b", "+++ b/x", "+end", "b.py", "-d", "+f", "c.py", "-e",
    ]  # fmt: skip


def test_git_skips_and_counts(repository: Repository) -> None:
    kept = repository.commit("Add a", a_py="1\n")
    repository.commit("Nothing")
    repository.commit("Bump x", ME, "dependabot[bot]", a_py="2\n")
    repository.commit('Revert "Add a"\n\nThis reverts commit 123.', a_py="3\n")
    repository.commit("", a_py="4\n")
    repository.git("checkout", "-q", "-b", "side")
    side = repository.commit("Side", b_py="1\n")
    repository.git("checkout", "-q", "main")
    main = repository.commit("Main", a_py="5\n")
    repository.git("merge", "-q", "--no-ff", "-m", "Bring both", "side")
    repository.seconds = 4_000_000_000
    late = repository.commit("From the future", a_py="6\n")
    records, report = read("git", repository.path)
    assert [record.id for record in records[:1]] == [kept]
    assert {record.id for record in records[1:]} == {side, main}
    assert report.skipped == {
        "it changes nothing": 1,
        "it is a bot's commit": 1,
        "it is a revert": 1,
        "it has no message": 1,
        "it is a merge": 1,
        "time is in the future": 1,
    }
    assert report.examples["time is in the future"] == f"commit {late[:12]}"


def test_git_bounds_what_it_keeps(repository: Repository) -> None:
    files = {f"f{n}_txt": f"line {n}\n" * 50 for n in range(60)}
    repository.commit("Add many", **files, long_txt="\0x" * 10 + "y" * 3_000_000)  # type: ignore[arg-type]
    repository.commit("Long line", **{"min_js": "z" * 3_000_000 + "\nafter\n"})  # type: ignore[arg-type]
    repository.commit("Rename", **{"caf\u00e9_txt": "line 1\n" * 50})  # type: ignore[arg-type]
    connector = get_connector("git")
    tracemalloc.start()
    many, long, named = connector.read(repository.path, connector.configure({}), ImportReport())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    change = many.input["change"]
    assert len(change) <= 1200 and " more\n" in change and change.count("+line 0") == 8
    assert long.input["change"].endswith("z\n+after") and len(long.input["change"]) < 200
    assert named.input["change"].startswith("caf\u00e9.txt (+50 -0)")


def test_git_ignores_the_repositorys_programs_and_settings(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.path / ".gitattributes").write_text("*.py diff=evil\n")
    repository.commit("Add a", a_py="one\n")
    plain, _ = read("git", repository.path)
    mark = tmp_path / "ran"
    for key, value in {
        "diff.external": f"touch {mark}",
        "diff.evil.textconv": f"touch {mark}; cat",
        "diff.evil.command": f"touch {mark}",
        "core.fsmonitor": f"touch {mark}",
        "gpg.program": f"touch {mark}",
        "log.showSignature": "true",
        "log.showRoot": "false",
        "diff.noprefix": "true",
        "color.ui": "always",
        "diff.context": "9",
    }.items():
        repository.git("config", key, value)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert read("git", repository.path)[0] == plain
    assert not mark.exists()


def test_git_errors(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"no commit 'HEAD'.*before its first"):
        read("git", repository.path)
    repository.commit("Add a", OTHER, "Other", a_py="1\n")
    with pytest.raises(DataError, match=f"no commit is by {ME}. name one with author: {OTHER}"):
        read("git", repository.path)
    with pytest.raises(DataError, match=r"no commit is by example\.org"):
        read("git", repository.path, {"author": "example.org"})
    for revision in ("nowhere", "--all"):
        with pytest.raises(DataError, match=f"no commit '{revision}'"):
            read("git", repository.path, {"revision": revision})
    repository.commit("Nothing")
    with pytest.raises(DataError, match=r"none of 1 .*it changes nothing \(commit"):
        read("git", repository.path)
    repository.git("config", "--unset", "user.email")
    with pytest.raises(ConfigError, match=r"whose commits.*author"):
        read("git", repository.path)
    with pytest.raises(DataError, match="no such folder"):
        read("git", tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(DataError, match="not a git repository"):
        read("git", tmp_path / "plain")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git is not installed"):
        read("git", repository.path)


def test_git_reports_a_damaged_repository(repository: Repository) -> None:
    repository.commit("Add a", a_py="1\n")
    repository.commit("Change a", a_py="2\n")
    blob = repository.git("rev-parse", "HEAD~1:a.py")
    (repository.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(DataError, match=r"git log failed.*git fsck"):
        read("git", repository.path)
