"""The mails of `pfi demo --real`: small, licensed, without names, and divided without leaks."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from pfi.datasets.lamp import read_users
from pfi.datasets.patch_mails import ABOUT, TASK, holds_mails, mail_files, read_people, write_mails
from pfi.errors import ConfigError, StorageError
from pfi.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "src/pfi/datasets/openvswitch"
PATTERNS = {
    "address": r"[\w.+-]+\s?(@| at )\s?[\w-]+\.\w+|@",
    "link": r"://|www\.",
    "trailer": r"(?i)[a-z]-(by|at):|\bcc:",
    "quotation": r"(?i)\bwrote\b|^> |> >",
    "hash": r"\b[0-9a-f]{7,40}\b",
    "line": r"[^ -~]",
}


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "sample_patch_mails.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()


def commit(message: str, *, name: str = "Ada Quill", files: tuple[str, ...] = ("lib/a.c",)):  # type: ignore[no-untyped-def]
    return script.Commit(name, "ada@example.org", "2020-01-02", message, files)


TEXT = (
    "The table is read twice when a bridge is added, since nobody says that it is there already.\n"
    "This looks for it first, so that a bridge with many ports comes up sooner.\n"
)


# What is shipped ------------------------------------------------------------------------


def test_it_is_small_and_has_its_licence_and_source_beside_it() -> None:
    files = {path.name: path for path in FOLDER.iterdir()}
    assert set(files) == {"mails.json", "LICENSE", "NOTICE", "README.md"}
    assert sum(path.stat().st_size for path in files.values()) < 300_000
    assert "Apache License" in files["LICENSE"].read_text()
    assert "Version 2.0, January 2004" in files["LICENSE"].read_text()
    assert "Copyright (c) 2007" in files["NOTICE"].read_text()
    source = files["README.md"].read_text()
    for part in ("openvswitch/ovs", "Apache License 2.0", script.LAST, "sample_patch_mails.py"):
        assert part in source
    people = read_people()
    assert f"{sum(map(len, people.values()))} mails of {len(people)} developers" in source


def test_it_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["pfi"]
    for path in FOLDER.iterdir():
        name = str(path.relative_to(ROOT / "src/pfi"))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize("what", PATTERNS)
def test_no_mail_has_an_address_a_link_or_words_of_others(what: str) -> None:
    texts = [f"{m.subject}\n{m.text}" for mails in read_people().values() for m in mails]
    found = [text for text in texts for line in text.split("\n") if re.search(PATTERNS[what], line)]
    assert not found


def test_people_are_numbers_and_have_dated_mails_in_order() -> None:
    people = read_people()
    assert list(people) == [f"p{number:02}" for number in range(1, 25)]
    for mails in people.values():
        assert 24 <= len(mails) <= 40
        assert [mail.date for mail in mails] == sorted(mail.date for mail in mails)
        assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", mail.date) for mail in mails)
        assert all(100 <= len(mail.text) <= 900 for mail in mails)
        assert all("\n" not in mail.text and len(mail.subject.split()) >= 3 for mail in mails)
        assert len({mail.subject.lower() for mail in mails}) == len(mails)


# As LaMP files --------------------------------------------------------------------------


def test_it_loads_as_lamp_users_that_are_in_one_split(tmp_path: Path) -> None:
    write_mails(tmp_path, mail_files())
    people = read_people()
    train, test = (read_users(tmp_path, get_task(TASK), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (14, 10)
    assert not {user.id for user in train} & {user.id for user in test}
    for user in [*train, *test]:
        assert len(user.history) + len(user.questions) == len(people[user.id])
        newest = max(record.time for record in user.history if record.time)
        assert all(question.time and question.time > newest for question in user.questions)
        subjects = [mail.subject for mail in people[user.id]]
        assert [record.output for record in user.history] == subjects[: len(user.history)]
        assert [question.gold for question in user.questions] == subjects[len(user.history) :]
    assert min(len(user.history) for user in test) >= 24
    assert min(len(user.questions) for user in test) >= 5
    assert len({q.id for user in [*train, *test] for q in user.questions}) == sum(
        len(user.questions) for user in [*train, *test]
    )


def test_the_licence_goes_with_the_files(tmp_path: Path) -> None:
    write_mails(tmp_path, mail_files(people=1, users=1))
    for name, source in {
        "LICENSE": "LICENSE",
        "NOTICE": "NOTICE",
        "SOURCE.md": "README.md",
    }.items():
        assert (tmp_path / name).read_text() == (FOLDER / source).read_text()


def test_the_seed_decides_the_people() -> None:
    assert mail_files(seed=3) == mail_files(seed=3)
    outputs = f"{TASK}/test_outputs.json"
    assert mail_files(seed=3)[outputs] != mail_files(seed=4)[outputs]
    assert len(mail_files(people=14, users=10)) == 8


@pytest.mark.parametrize(("people", "users"), [(0, 1), (1, 0), (14, 11), (24, 1)])
def test_more_people_than_there_are_cannot_be_had(people: int, users: int) -> None:
    with pytest.raises(ConfigError, match=r"at most 24 in all"):
        mail_files(people=people, users=users)


def test_only_a_folder_of_such_mails_is_written_over(tmp_path: Path) -> None:
    first, second = mail_files(people=2, users=1), mail_files(people=1, users=2)
    write_mails(tmp_path, first)
    assert holds_mails(tmp_path, first) and not holds_mails(tmp_path, second)
    write_mails(tmp_path, second)
    assert holds_mails(tmp_path, second)
    (tmp_path / "README.md").write_text("my own mails")
    with pytest.raises(StorageError, match="holds no demo"):
        write_mails(tmp_path, first)
    assert ABOUT not in (tmp_path / "README.md").read_text()


# How it is made -------------------------------------------------------------------------


def test_prose_is_kept_and_the_rest_is_cut_off() -> None:
    block = "\n    if (bridge) {\n        return;\n    }\n"
    trailers = '\nFixes: 0123456789ab ("bridge: A title.")\nSigned-off-by: A B <a@b.example>\n'
    mail = script.clean(commit(f"bridge: Look for the table first.\n\n{TEXT}{block}{trailers}"))
    assert mail == script.Mail(
        "2020-01-02", "bridge: Look for the table first.", " ".join(TEXT.split())
    )


@pytest.mark.parametrize(
    "more",
    [
        "See https://example.org/bug for more.",
        "It was seen by ada@example.org too.",
        "Ada wrote that it is slow.",
        "Since commit 0123456789ab it is slow.",
        "This is backported from upstream.",
        "Это медленно.",
    ],
)
def test_mails_with_words_of_others_are_left_out(more: str) -> None:
    subject = "bridge: Look for the table first.\n\n"
    assert script.clean(commit(f"{subject}{TEXT}")) is not None
    assert script.clean(commit(f"{subject}{TEXT}\n{more}")) is None


@pytest.mark.parametrize("file", ["datapath/flow.c", "xenserver/README", "utilities/bugtool/a"])
def test_what_has_another_licence_is_left_out(file: str) -> None:
    message = f"bridge: Look for the table first.\n\n{TEXT}"
    assert script.clean(commit(message, files=("lib/a.c", "datapath-windows/b.c"))) is not None
    assert script.clean(commit(message, files=("lib/a.c", file))) is None


def test_names_are_found_and_words_are_none() -> None:
    words = [commit("a b c\n\nthe page is read", name="Page Turner") for _ in range(12)]
    names = script.Names([*words, commit("a b c\n\nx\n\nAcked-by: Bo Ng-Lee <bo@x.example>")])
    for text in ("as Ada said", "as Quill said", "as Ng-Lee said", "seen by ada"):
        assert names.inside(text)
    assert not names.inside("the Page is read")


def test_a_name_that_is_left_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path / "made")
    monkeypatch.setattr(script, "PEOPLE", 1)
    monkeypatch.setattr(script, "MAILS", 1)
    monkeypatch.setattr(script, "git", lambda clone, *words: "a licence")
    monkeypatch.setattr(sys, "argv", ["sample_patch_mails.py", str(tmp_path)])
    clean = commit(f"bridge: Look for the table first.\n\n{TEXT}")
    monkeypatch.setattr(script, "read_commits", lambda clone: [clean])
    assert script.main() == 0 and "1 people, 1 mails" in capsys.readouterr().out
    (mails,) = json.loads((tmp_path / "made" / "mails.json").read_text()).values()
    assert mails == [["2020-01-02", "bridge: Look for the table first.", " ".join(TEXT.split())]]
    monkeypatch.setattr(script.Names, "inside", lambda names, text: False)
    named = commit(f"bridge: Look for the table first.\n\n{TEXT}Quill found it.")
    monkeypatch.setattr(script, "read_commits", lambda clone: [named])
    assert script.main() == 1 and "names are left: Quill" in capsys.readouterr().out
    monkeypatch.setattr(script, "LIMIT", 10)
    monkeypatch.setattr(script, "read_commits", lambda clone: [clean])
    assert script.main() == 1 and "more than 10 bytes" in capsys.readouterr().out


def test_one_person_with_several_addresses_is_one() -> None:
    several = [
        script.Commit("Ada Quill", "ada@example.org", "2020-01-01", "", ()),
        script.Commit("Ada Quill", "ada@example.com", "2020-01-02", "", ()),
        script.Commit("Bo Ng", "bo@example.com", "2020-01-03", "", ()),
        script.Commit("A. Quill", "ada@example.com", "2020-01-04", "", ()),
    ]
    assert sorted(map(len, script.people_of(several).values())) == [1, 3]


def test_series_and_near_duplicates_do_not_fill_a_sample() -> None:
    subjects = ["one", "two", "three", "four", "five", "six", "seven"]
    mails = [script.Mail("2020-01-02", f"{s}: {s * 2} {s * 3}", f"{s} {s}s") for s in subjects]
    assert len(script.latest(mails)) == script.A_DAY
    twice = [mails[0], script.Mail("2020-01-01", mails[0].subject + " again", "all else here")]
    assert script.latest(twice) == mails[:1]
