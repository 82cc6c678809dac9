"""What an erasure decides, by hand: what tells of a record, and what may have learnt from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfi.errors import StorageError
from pfi.privacy.ledger.entries import UPDATE, fingerprint
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.erase import erasure, statement
from pfi.profile.erase.erased import ERASED, refuse_erased
from pfi.profile.erase.excluding import exclude, include
from pfi.profile.erase.retrain_settings import SETTING, note_retraining, settings_of
from pfi.records import Provenance, Record

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
TASK = "LaMP_4"


def prints(*names: str) -> list[str]:
    return [fingerprint(name) for name in names]


def record(name: str, task: str = TASK) -> Record:
    return Record(name, task, {"text": name}, "x", NOON)


# What tells of a record ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("shows", "tells"),
    [
        (None, True),  # of which records it tells is not known
        ([], False),
        (prints("r1"), True),
        (prints("r2", "r1"), True),
        (prints("r2"), False),
        (prints("s1"), True),  # what the synthetic record was made from, all or some of it
        (prints("s1", "s2"), True),
        (prints("s1", "s2", "r2"), False),  # another call, which wrote it not
    ],
)
def test_what_shows_a_record_or_wrote_it_tells_of_it(shows: list[str] | None, tells: bool) -> None:
    intent = erasure._Intent(ids=["r1"], made=[["s1", "s2", ""]])
    assert erasure._tells(intent)(shows) == tells
    everything = erasure._Intent(ids=[], everything=True)
    assert erasure._tells(everything)(shows)


# What may have learnt from it ---------------------------------------------------------


def manifest(version: str, task: str = TASK, **more: Any) -> Any:
    values = {"read": NOON, "created": NOON + timedelta(hours=9), "held_back": [], **more}
    return SimpleNamespace(version=version, task=task, **values)


def learnt(
    *manifests: Any, records: dict[str, datetime], broken: tuple[str, ...] = ()
) -> list[str]:
    versions = [*(one.version for one in manifests), *broken]
    store = SimpleNamespace(sound=lambda: list(manifests), versions=lambda: versions)
    home: Any = SimpleNamespace(personal_adapters=store)
    return erasure._learnt(home, [record(name) for name in records], records)


def test_which_versions_may_have_learnt_from_a_record() -> None:
    before, after = NOON - timedelta(hours=1), NOON + timedelta(hours=1)
    one = manifest("0001")
    assert learnt(one, records={"r1": before}) == ["0001"]
    assert learnt(one, records={"r1": NOON}) == ["0001"]  # at the very time that it was read
    assert learnt(one, records={"r1": after}) == []
    assert learnt(one, records={"r1": after, "r2": before}) == ["0001"]
    # When a version was made counts where it does not say when it read.
    assert learnt(manifest("0001", read=None), records={"r1": after}) == ["0001"]
    # What it held back it did not learn from, if that is all of it.
    held = manifest("0001", held_back=prints("r1"))
    assert learnt(held, records={"r1": before}) == []
    assert learnt(held, records={"r1": before, "r2": before}) == ["0001"]
    assert learnt(manifest("0001", task="LaMP_3"), records={"r1": before}) == []
    # One whose manifest does not hold may have learnt from anything, if there is anything.
    assert learnt(held, records={"r1": before}, broken=("0002",)) == ["0002"]
    assert learnt(one, records={}, broken=("0002",)) == []


def test_which_choices_of_the_gate_rest_on_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = {
        TASK: SimpleNamespace(personal="0001", date=NOON),
        "LaMP_3": SimpleNamespace(personal=None, date=NOON),
    }
    monkeypatch.setattr(erasure, "read_gate", lambda home: fitted)
    home: Any = None

    def gates(added: datetime, *dropped: str, task: str = TASK) -> list[str]:
        return erasure._gates(home, [record("r1", task)], {"r1": added}, dropped)

    late = NOON + timedelta(seconds=1)
    assert gates(NOON) == [TASK] and gates(late) == [] and gates(NOON, task="LaMP_3") == ["LaMP_3"]
    assert gates(late, "0001") == [TASK] and gates(late, "0002") == []

    def damaged(home: Any) -> Any:
        raise StorageError("damaged")

    monkeypatch.setattr(erasure, "read_gate", damaged)
    assert gates(NOON) == []


# What was read before -----------------------------------------------------------------


@dataclass
class Vault:
    """Settings and records out of use, in memory."""

    settings: dict[str, Any] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)
    synthetic: list[Record] = field(default_factory=list)

    @contextmanager
    def open_vault(self) -> Iterator[Vault]:
        yield self

    def setting(self, name: str) -> Any:
        return self.settings.get(name)

    @contextmanager
    def change_setting(self, name: str) -> Iterator[Any]:
        setting = SimpleNamespace(value=self.settings.get(name))
        yield setting
        self.settings[name] = setting.value

    @property
    def excluded(self) -> Vault:
        return self

    def ids(self) -> set[str]:
        return set(self.out)

    def add(self, ids: Any) -> int:
        before = len(self.out)
        self.out |= {*ids}
        return len(self.out) - before

    def remove(self, ids: Any) -> int:
        before = len(self.out)
        self.out -= {*ids}
        return before - len(self.out)

    def made_from(self, ids: Any) -> list[Record]:
        return [r for r in self.synthetic if r.made and {*r.made.seeds, r.made.source} & {*ids}]


def test_what_was_read_before_an_erasure_is_refused() -> None:
    home: Any = Vault({ERASED: {TASK: NOON.isoformat()}})
    with pytest.raises(StorageError, match="erased during the training"):
        refuse_erased(home, TASK, NOON - timedelta(microseconds=1))
    refuse_erased(home, TASK, NOON)
    refuse_erased(home, "LaMP_3", NOON - timedelta(days=9))
    nothing: Any = Vault()
    refuse_erased(nothing, TASK, NOON - timedelta(days=9))


def test_what_was_made_of_records_is_kept_out_with_them_and_let_in_with_the_last() -> None:
    def made(name: str, seeds: tuple[str, ...], source: str = "") -> Record:
        by = Provenance("t", "s", "p", seeds, source)
        return Record(name, TASK, {"text": name}, "x", None, "synthetic", made=by)

    vault = Vault(synthetic=[made("m1", ("a", "b")), made("m2", ("c",), "a"), made("m3", ("c",))])
    home: Any = vault
    done = exclude(home, {"a", "m1"})
    assert (done.records, done.synthetic) == (2, 1) and vault.out == {"a", "m1", "m2"}
    exclude(home, {"b"})
    done = include(home, {"a"})
    assert (done.records, done.synthetic) == (1, 1) and vault.out == {"b", "m1"}
    exclude(home, {"z"})
    done = include(home, {"b", "z"})
    assert (done.records, done.synthetic) == (2, 1) and vault.out == set()


def test_how_a_version_is_trained_anew() -> None:
    told = {"epochs": 3, "rank": 4, "mix": {"share": 0.5}, "synthetic": 7, "seed": 9, "pairs": 2}
    one: Any = SimpleNamespace(config=told, held_back=["h"] * 3, records=9)
    assert settings_of(one) == {
        "settings": {"epochs": 3, "rank": 4}, "mix": {"share": 0.5}, "real_only": False,
        "holdout": 0.25, "seed": 9,
    }  # fmt: skip
    bare: Any = SimpleNamespace(config={"synthetic": 0}, held_back=["h"], records=0)
    assert settings_of(bare) == {
        "settings": {}, "mix": {}, "real_only": True, "holdout": 0.0, "seed": 0
    }  # fmt: skip
    vault: Any = Vault({SETTING: {"first": {"x": {}}}})
    note_retraining(vault, "second", {TASK: {"seed": 1}})
    assert vault.settings[SETTING] == {"first": {"x": {}}, "second": {TASK: {"seed": 1}}}
    empty: Any = Vault()
    note_retraining(empty, "first", {})
    assert empty.settings[SETTING] == {"first": {}}


# The statement ------------------------------------------------------------------------


def test_more_than_a_thousand_fingerprints_are_not_written_down() -> None:
    many = {f"{n:016x}" for n in range(1000)}
    assert statement.asked("records", many) == {
        "by": "records", "records": 1000, "fingerprints": sorted(many)
    }  # fmt: skip
    assert statement.asked("all", {*many, "more"}) == {"by": "all", "records": 1001}


def test_what_cannot_be_called_back_is_counted_by_host(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    about = {"device": "ana", "policy": "redact"}
    for host, shows in (("a", ["r1"]), ("a", ["r2"]), ("a", None), ("b", ["r1"])):
        ledger.append(**about, to=host, kind="teacher", payload="x", shows=shows)
    ledger.append(**about, to="a", kind="other", payload="x", shows=["r1"])
    for host in ("c", "c", "d"):
        ledger.append(**about, to=host, kind=UPDATE, payload=b"x")
    times = [datetime.fromisoformat(entry.time) for entry in ledger.entries()]
    home: Any = SimpleNamespace(open_ledger=lambda: ledger)

    def tells(shows: Any) -> bool:
        return shows is None or fingerprint("r1") in shows

    whole = statement.sent(home, tells, times[0])
    assert whole["texts to teachers"] == {"a": 2, "b": 1}
    assert whole["updates"] == {"c": 2, "d": 1} and "copies" in whole["beyond"]
    assert statement.sent(home, tells, times[6])["updates"] == {"c": 1, "d": 1}
    assert statement.sent(home, tells, None)["updates"] == {}


def test_a_statement_in_words() -> None:
    told = {
        "time": "2030", "public": "ab" * 32,
        "erased": {"records": 2, "fingerprints": ["x"]},
        "adapters": {"dropped": ["0001", "0002"], "kept": [], "in use": {TASK: None, "b": "0003"},
                     "retrained": {"c": "0004"}},
        "sent": {"texts to teachers": {"b.example": 2, "a.example": 1}, "updates": {}},
    }  # fmt: skip
    words = statement.lines(told)
    assert words == [
        "Erased on 2030 by the device with key abababababababab:",
        "- records: 2",
        "- personal adapters 0001, 0002 removed",
        f"- task {TASK} now uses no adapter",
        "- task b now uses adapter 0003",
        "- adapter 0004 of task c was trained anew from what is left",
        "Cannot be undone:",
        "- texts sent to teachers: 1 to a.example, 2 to b.example",
        "- updates sent: none",
        f"- out of reach: {statement._BEYOND}",
    ]
    kept = {**told, "adapters": {"kept": ["0001"]}, "sent": {"beyond": "the moon"}}
    assert "- personal adapters 0001 kept although they learnt from it" in statement.lines(kept)
    assert statement.lines(kept)[-1] == "- out of reach: the moon"
    assert statement.without({**told, "format": 1, "signature": "s"}).keys() == {
        "erased", "adapters", "sent"
    }  # fmt: skip


# A profile ----------------------------------------------------------------------------


def test_removing_a_profile_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[Path] = []
    monkeypatch.setattr(erasure, "drop_keys", dropped.append)
    path, other = tmp_path / "ann", tmp_path / "bob"
    for folder in (path, other, tmp_path / ".bob.1.gone"):
        folder.mkdir()
    assert not erasure.finish_removal(path) and path.exists()  # nobody has begun it
    (path / "removing").touch()
    assert erasure.finish_removal(path) and not path.exists() and not dropped
    assert other.exists() and (tmp_path / ".bob.1.gone").exists()
    path.mkdir()
    for name in ("removing", erasure.KEYS):
        (path / name).touch()
    assert erasure.finish_removal(path) and dropped == [path]
    (tmp_path / ".ann.2.gone").mkdir()  # renamed, and not removed yet
    assert erasure.finish_removal(path) and not (tmp_path / ".ann.2.gone").exists()
    assert not erasure.finish_removal(path)

    def fails(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(erasure.shutil, "rmtree", fails)
    (tmp_path / ".ann.3.gone").mkdir()
    with pytest.raises(StorageError, match="nobody can read them"):
        erasure.finish_removal(path)


def test_an_erasure_that_cannot_be_read_is_told_of_or_left(tmp_path: Path) -> None:
    home: Any = SimpleNamespace(path=tmp_path)
    assert erasure.finish_erasures(home) == 0
    (tmp_path / f"{erasure.ERASING}1.json").write_text('{"ids": 5}')
    with pytest.raises(StorageError, match="what to erase is damaged"):
        erasure.finish_erasures(home)
    assert erasure.finish_erasures(home, strict=False) == 0
    assert (tmp_path / f"{erasure.ERASING}1.json").exists()
    assert erasure._read(tmp_path / "none").ids == []
    assert asdict(erasure.erase(home, [])) == {
        **dict.fromkeys(("records", "synthetic", "answers", "payloads"), 0),
        **dict.fromkeys(("missing", "learnt", "dropped"), ()),
        "in_use": {},
        "statement": {},
    }
