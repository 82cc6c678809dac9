"""The memory on disk: it answers as the one in memory does, survives kills, and forgets."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pfi.memory.store as store_module
from pfi._util.sqlite import sqlite3
from pfi.errors import ConfigError, StorageError
from pfi.memory.config import SearchConfig
from pfi.memory.embedders import HashEmbedder
from pfi.memory.index import Memory
from pfi.memory.store import MemoryStore, Synced
from pfi.memory.vectors import PATIENCE, STORED, Neighbours
from pfi.memory.words import COLUMNS
from pfi.records import History, Record
from pfi.tasks import get_task

TASK, OTHER = get_task("LaMP_3"), get_task("LaMP_7")
START = datetime(2024, 1, 1, tzinfo=UTC)
BM25 = SearchConfig(how="bm25")
WORDS = ["sea", "ship", "ships", "dog", "the", "garden", "running", "x_y"]


def record(key: str, text: str, day: int | None = None, source: str = "") -> Record:
    time = None if day is None else START + timedelta(days=day)
    return Record(key, "LaMP_3", {"text": text}, "4", time, source=source)


def history(*texts: str) -> History:
    return History("me", [record(str(n), text) for n, text in enumerate(texts)])


def ids(found: list[Record]) -> list[str]:
    return [r.id for r in found]


def contents(path: Path) -> list[object]:
    """All that a store answers from, by record id and not by row number."""
    with closing(sqlite3.connect(path)) as db:
        rows: list[object] = []
        for number, name in db.execute("SELECT number, name FROM tasks").fetchall():
            rows += db.execute(
                """SELECT ?, id, digest, text, vector FROM records
                   LEFT JOIN vectors USING (number) WHERE task = ? ORDER BY id""",
                (name, number),
            ).fetchall()
            vocabulary = f"vocabulary_{number}"
            db.execute(
                f"CREATE VIRTUAL TABLE temp.{vocabulary} "
                f"USING fts5vocab(main, words_{number}, instance)"
            )
            rows += db.execute(
                f"""SELECT ?, term, id, "offset" FROM {vocabulary}
                    JOIN records ON doc = records.number ORDER BY term, id, "offset" """,
                (name,),
            ).fetchall()
            missing = f"SELECT doc FROM {vocabulary} WHERE doc NOT IN (SELECT number FROM records)"
            assert not db.execute(missing).fetchall()
            check = f"INSERT INTO words_{number}(words_{number}) VALUES ('integrity-check')"
            db.execute(check)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return rows


# The same answers -----------------------------------------------------------------------

TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), max_size=10)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("small", [0, 200])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_answers_as_the_memory_in_memory(
    tmp_path_factory: pytest.TempPathFactory, small: int, listed: bool, data: st.DataObject
) -> None:
    texts = data.draw(TEXTS)
    days = data.draw(st.lists(st.integers(0, 4), min_size=len(texts), max_size=len(texts)))
    dated = data.draw(st.booleans())
    made = [
        record(str(n), " ".join(text), day if dated else None, data.draw(st.sampled_from("ab")))
        for n, (text, day) in enumerate(zip(texts, days, strict=True))
    ]
    embedder = data.draw(st.sampled_from([None, HashEmbedder(32)]))
    ways = ["recent", "bm25", "auto"] + (["dense", "hybrid"] if embedder else [])
    path = tmp_path_factory.mktemp("memory") / "memory.db"
    with pytest.MonkeyPatch.context() as patch, MemoryStore(path, embedder) as store:
        patch.setattr("pfi.memory.words.SMALL", small)
        # In two portions and not in the order of time, among records of another task.
        half = data.draw(st.integers(0, len(made)))
        noise = History("me", [Record(str(n), "LaMP_7", {}, "sea dog") for n in range(3)])
        passing = record("passing", data.draw(st.sampled_from(WORDS)), 2 if dated else None)
        store.sync({"LaMP_3": History("me", [*made[half:], passing]), "LaMP_7": noise})
        everything = History("me", made)
        store.sync({"LaMP_3": everything, "LaMP_7": noise})
        store.mark = "now"
        asked = everything
        if not listed:
            asked = History("me", data.draw(st.sampled_from([made, made, made[1:]])))
        for how in ways:
            config = SearchConfig(
                how=how,
                recency=data.draw(st.sampled_from([0.0, 0.5])),
                diversity=data.draw(st.sampled_from([0.0, 0.5])),
                depth=data.draw(st.sampled_from([2, 50])),
            )
            if listed:
                shelf = Shelf(everything)
                stored = shelf.memory(store, config)
            else:
                stored = store.memory(TASK, asked, config)
            plain = Memory(TASK, asked, embedder=embedder, config=config)
            assert len(stored) == len(plain)
            for _ in range(3):
                query = " ".join(data.draw(st.lists(st.sampled_from([*WORDS, "cow"]), max_size=5)))
                k = data.draw(st.integers(0, 11))
                filters = {
                    "before": data.draw(
                        st.none() | st.integers(0, 5).map(lambda d: START + timedelta(days=d))
                    ),
                    "exclude": data.draw(st.sets(st.sampled_from("0123"), max_size=3)),
                }
                source = data.draw(st.sampled_from([None, "", "a", "c"]))
                budget = data.draw(st.none() | st.integers(0, 20))
                one = stored.search(query, k, source=source, budget=budget, **filters)
                assert one == plain.search(query, k, source=source, budget=budget, **filters)
                if listed and not (config.diversity and embedder is None):
                    assert len(shelf.fetched) <= k  # those that are found, and no other
                    shelf.fetched.clear()
                assert stored.similarity(query, **filters) == plain.similarity(query, **filters)
            assert stored.typical(**filters) == plain.typical(**filters)


class Shelf:
    """Records of which a memory is given a list only, and which of them it has fetched."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = {r.id: r for r in records}
        self.listed = [Line(r.id, r.time, r.source) for r in records]
        self.fetched: list[str] = []

    def fetch(self, wanted: Sequence[str]) -> dict[str, Record]:
        self.fetched += wanted
        return {id_: self.records[id_] for id_ in wanted if id_ in self.records}

    def memory(self, store: MemoryStore, config: SearchConfig = BM25) -> Memory:
        made = store.listed_memory(TASK, self.listed, self.fetch, config, mark="now")
        assert made is not None
        return made


class Line(NamedTuple):
    id: str
    time: datetime | None
    source: str


def test_a_list_needs_the_very_records_that_the_store_was_synced_with(tmp_path: Path) -> None:
    records = history("the sea", "a ship")
    with MemoryStore(tmp_path / "m.db") as store:
        store.sync({"LaMP_3": records})
        store.mark = "now"
        shelf = Shelf(records)
        assert ids(shelf.memory(store).search("ships", 2)) == ["1", "0"]
        for listed, mark in ((shelf.listed, "other"), (shelf.listed[:1], "now"), ([], "now")):
            found = store.listed_memory(TASK, listed, shelf.fetch, BM25, mark=mark)
            assert found is None
        assert store.listed_memory(OTHER, [], shelf.fetch, BM25, mark="now") is not None
        with pytest.raises(ConfigError, match="sentence"):
            shelf.memory(store, SearchConfig(how="dense"))


def test_a_list_reads_only_the_records_that_are_found(tmp_path: Path) -> None:
    records = history(*(f"ship {n} sea" for n in range(300)))
    with MemoryStore(tmp_path / "m.db", HashEmbedder()) as store:
        store.sync({"LaMP_3": records})
        store.mark = "now"
        for how in ("recent", "bm25", "dense", "hybrid"):
            shelf = Shelf(records)
            memory = shelf.memory(store, SearchConfig(how=how))
            found = memory.search("ship 7", 2)
            assert len(found) == 2 and shelf.fetched == ids(found)
            assert memory.likeness("ship 7") > 0 and shelf.fetched == ids(found)


def test_a_list_finds_no_record_that_is_gone_or_has_become_another(tmp_path: Path) -> None:
    with (
        MemoryStore(tmp_path / "m.db", HashEmbedder()) as one,
        MemoryStore(tmp_path / "m.db", HashEmbedder()) as two,
    ):
        records = History("me", [record(str(n), f"ship {n}", n) for n in range(6)])
        two.sync({"LaMP_3": records})
        two.mark = "now"
        shelf = Shelf(records)
        seen = shelf.memory(two, SearchConfig(how="hybrid"))
        assert sorted(ids(seen.search("ship", 9))) == list("012345")
        del shelf.records["0"]  # erased, and the store was not told yet
        shelf.records["1"] = record("1", "ship 1", 9)  # another one of that id
        assert sorted(ids(seen.search("ship", 9))) == list("2345")
        one.delete(["2"])
        assert sorted(ids(seen.search("ship", 9))) == list("345")
        # Others sync another state: what stays is found, what has another text is not.
        new = record("3", "dog", 3)
        one.sync({"LaMP_3": History("me", [new, *records[4:], record("7", "ship", 9)])})
        one.mark = "later"
        shelf.records["3"] = new
        for how in ("recent", "bm25", "dense"):
            assert sorted(ids(seen.search("ship", 9, how=how))) == list("45")


@pytest.mark.parametrize("synced", [False, True])
def test_a_list_is_searched_without_the_store_where_that_is_damaged(
    tmp_path: Path, synced: bool
) -> None:
    records = history(*(f"the sea number {n}" for n in range(9)))
    embedder = HashEmbedder()
    with MemoryStore(tmp_path / "m.db", embedder) as store:
        store.sync({"LaMP_3": records})
        store.mark = "now"
        shelf = Shelf(records)
        seen = shelf.memory(store, SearchConfig(how="hybrid"))
        store.replace()
        if synced:
            store.sync({"LaMP_3": records[3:]})
            store.mark = "later"
        plain = Memory(TASK, records, embedder=embedder, config=SearchConfig(how="hybrid"))
        assert seen.search("number 7", 9) == plain.search("number 7", 9)
        store.sync({"LaMP_3": records})
        store.mark = "now"
        shelf.fetched.clear()
        assert seen.search("number 7", 2) == plain.search("number 7", 2)
        assert len(shelf.fetched) == 2


def test_a_history_that_was_not_synced_is_searched_all_the_same(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    old, new = history("the sea", "a ship"), history("the sea", "a dog", "dogs at sea")
    with MemoryStore(tmp_path / "m.db", embedder) as store:
        store.sync({"LaMP_3": old})
        for how in ("bm25", "dense", "hybrid", "recent"):
            config = SearchConfig(how=how)
            plain = Memory(TASK, new, embedder=embedder, config=config)
            stored = store.memory(TASK, new, config)
            assert stored.search("the dog", 3) == plain.search("the dog", 3)
        with pytest.raises(ConfigError, match="unknown task"):
            store.sync({"nothing": old})
    with MemoryStore(tmp_path / "m.db") as store, pytest.raises(ConfigError, match="sentence"):
        store.memory(TASK, old, SearchConfig(how="dense"))


# Syncing --------------------------------------------------------------------------------


class Counting(HashEmbedder):
    def __init__(self, width: int = 32) -> None:
        super().__init__(width)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return super().embed(texts)


def test_only_what_is_new_is_indexed(tmp_path: Path) -> None:
    path, embedder = tmp_path / "new" / "m.db", Counting()
    first, second = history("a", "b", "c"), history("a", "changed", "c", "d")
    seen: list[tuple[int, int]] = []
    with MemoryStore(path, embedder) as store:
        assert store.sync({"LaMP_3": first}, lambda *at: seen.append(at)) == Synced(3, 0)
        assert seen == [(3, 3)]
        assert store.sync({"LaMP_3": first}) == Synced(0, 0)
        assert embedder.asked == ["a", "b", "c"]
        assert store.sync({"LaMP_3": second}) == Synced(2, 1)
        assert embedder.asked == ["a", "b", "c", "changed", "d"]
        assert store.sizes() == {"LaMP_3": 4}
    with MemoryStore(path, embedder) as store:
        assert store.sync({"LaMP_3": second}) == Synced(0, 0)
        assert store.sync({"LaMP_7": History("me"), "LaMP_3": second[1:]}) == Synced(0, 1)
        assert store.sync({}) == Synced(0, 3)
        assert store.sizes() == {}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_progress_goes_up_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BATCH", 2)
    records, seen = history("a", "b", "c"), []
    with MemoryStore(tmp_path / "m.db") as store:
        store.sync({"LaMP_3": records}, lambda *at: seen.append(at))
    assert seen == [(2, 3), (3, 3)]
    with MemoryStore(tmp_path / "m.db", HashEmbedder()) as store:
        more = history("a", "b", "c", "d")
        store.sync({"LaMP_3": more}, lambda *at: seen.append(at))
    assert seen[2:] == [(1, 4), (3, 4), (4, 4)]


def test_another_embedder_embeds_anew(tmp_path: Path) -> None:
    path, records = tmp_path / "m.db", history("the sea", "a ship", "a dog")
    ship = SearchConfig(how="dense")
    first, wide = Counting(32), Counting(64)
    for embedder in (first, None, first, wide, wide):
        with MemoryStore(path, embedder) as store:
            store.sync({"LaMP_3": records})
            if embedder is not None:
                assert ids(store.memory(TASK, records, ship).search("the ship", 1)) == ["1"]
    assert len([text for text in first.asked if text != "the ship"]) == 3
    assert len([text for text in wide.asked if text != "the ship"]) == 3
    with MemoryStore(tmp_path / "fresh.db", wide) as store:
        store.sync({"LaMP_3": records})
    assert contents(path) == contents(tmp_path / "fresh.db")
    # Not synced yet with its own: the stored vectors are not those of this one.
    with MemoryStore(path, first) as store:
        assert ids(store.memory(TASK, records, ship).search("the ship", 1)) == ["1"]


def test_vectors_are_read_and_not_made_again(tmp_path: Path) -> None:
    records, embedder = history("the sea", "a ship", "a dog"), Counting()
    with MemoryStore(tmp_path / "m.db", embedder) as store:
        store.sync({"LaMP_3": records})
        stored = store.memory(TASK, records)
        assert stored.similarity("ship") is not None
        assert ids(stored.search("ship", 1)) == ["1"]
    assert embedder.asked == ["the sea", "a ship", "a dog", "ship"]


def test_two_stores_share_a_file(tmp_path: Path) -> None:
    records = history("the sea", "a ship", "a dog")
    with (
        MemoryStore(tmp_path / "m.db", HashEmbedder()) as one,
        MemoryStore(tmp_path / "m.db", HashEmbedder()) as two,
    ):
        one.sync({"LaMP_3": records[:2]})
        assert two.sync({"LaMP_3": records}) == Synced(1, 0)
        seen = two.memory(TASK, records, SearchConfig(how="bm25"))
        assert ids(seen.search("ship", 3)) == ["1", "2", "0"]
        assert one.delete(["1", "9"]) == 1
        # The other one's memory, made before, does not find it any more in any way.
        for how in ("recent", "bm25", "dense", "hybrid"):
            assert sorted(ids(seen.search("a ship", 3, how=how))) == ["0", "2"]
        assert seen.typical() is not None
        assert two.delete(["0", "2"]) == 2
        assert seen.search("sea", 3) == []
        assert seen.similarity("sea") is None


@pytest.mark.parametrize("small", [0, 200])
def test_rare_words_count_as_after_the_deletion(
    tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfi.memory.words.SMALL", small)
    records = history("the sea", "sea ship", "a dog", "the ship")
    with MemoryStore(tmp_path / "m.db") as one, MemoryStore(tmp_path / "m.db") as two:
        one.sync({"LaMP_3": records})
        seen = two.memory(TASK, records)
        seen.search("sea ship dog", 4)
        for gone in ("0", "2"):
            one.delete([gone])
            seen.search("", 1)
            left = [record for record in records if one.entries("LaMP_3").get(record.id)]
            scores = seen._word_scores("sea ship dog")[[int(record.id) for record in left]]
            plain = Memory(TASK, left)._word_scores("sea ship dog")
            assert scores.tolist() == plain.tolist()


def test_a_locked_file_is_a_users_error(tmp_path: Path) -> None:
    with (
        MemoryStore(tmp_path / "m.db", busy_seconds=0.05) as store,
        closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="in use"):
            store.sync({"LaMP_3": history("a")})
        other.execute("COMMIT")
        store.sync({"LaMP_3": history("a")})
        other.execute("BEGIN")
        other.execute("SELECT * FROM records").fetchall()
        with pytest.raises(StorageError, match="in use"):
            store.delete(["0"])  # it is still in the log that the other one reads
        other.execute("COMMIT")
        assert store.sync({}) == Synced(0, 0)
    assert b"LaMP_3" in (tmp_path / "m.db").read_bytes()
    assert not (tmp_path / "m.db-wal").exists()
    with pytest.raises(StorageError, match="cannot be opened"):
        MemoryStore(tmp_path)


# Damage ---------------------------------------------------------------------------------


def test_what_is_no_memory_is_replaced(tmp_path: Path) -> None:
    records = history("the sea", "a ship")
    for n, damage in enumerate(
        [
            lambda path: path.write_bytes(b"not a database at all" * 400),
            lambda path: path.write_bytes(path.read_bytes()[:5000]),
            lambda path: path.write_bytes(b"\0" * 4096),
            lambda path: path.write_bytes(b""),
            lambda path: execute(path, "PRAGMA user_version = 99"),
            lambda path: execute(path, "PRAGMA application_id = 7"),
            lambda path: path.unlink(),
        ]
    ):
        path = tmp_path / f"{n}.db"
        with MemoryStore(path) as store:
            store.sync({"LaMP_3": records})
        damage(path)
        with MemoryStore(path) as store:
            assert store.sync({"LaMP_3": records}) == Synced(2, 0)
            assert ids(store.memory(TASK, records).search("ships", 1)) == ["1"]
        contents(path)


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()


@pytest.mark.parametrize("noticed", ["sync", "search", "similarity"])
def test_damage_that_is_found_later_is_repaired(tmp_path: Path, noticed: str) -> None:
    path, embedder = tmp_path / "m.db", HashEmbedder()
    records = history(*(f"the sea number {n} {'x' * 500}" for n in range(60)))
    with MemoryStore(path, embedder) as store:
        store.sync({"LaMP_3": records})
    content = bytearray(path.read_bytes())
    pages = len(content) // 4096
    for page in range(9, pages):  # behind the roots of the tables
        content[page * 4096 : page * 4096 + 2000] = b"\x07" * 2000
    path.write_bytes(content)
    with MemoryStore(path, embedder) as store:
        if noticed != "sync":
            stored = store.memory(TASK, records)
            plain = Memory(TASK, records, embedder=embedder, config=SearchConfig())
            if noticed == "search":
                assert stored.search("number 7", 3) == plain.search("number 7", 3)
            assert stored.similarity("number 7") == plain.similarity("number 7")
        assert store.sync({"LaMP_3": records}) == Synced(60, 0)
        assert store.sync({"LaMP_3": records}) == Synced(0, 0)
    contents(path)


# Erasure --------------------------------------------------------------------------------

SHORT, LONG = "qzj", "qxvunfathomableness"


def traces(path: Path, marks: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Which marks stand in the file, its log or the log's index."""
    files = [f for f in path.parent.iterdir() if f.name.startswith(path.name)]
    assert path in files
    return [(f.name, mark) for f in files for mark in marks if mark in f.read_bytes()]


def marks_of(text: str, embedder: HashEmbedder) -> list[bytes]:
    """The text, its rare words, their stems, and the bytes of its vector."""
    stems = [b"qzj", b"qxvunfathom"]
    return [text.encode(), *stems, embedder.embed([text])[0].astype(STORED).tobytes()]


@pytest.mark.parametrize("way", ["delete", "sync"])
@pytest.mark.parametrize("others", [0, 3, 1000])
def test_what_is_deleted_is_in_no_file(tmp_path: Path, way: str, others: int) -> None:
    path, embedder = tmp_path / "m.db", HashEmbedder(32)
    text = f"{SHORT} walks {LONG} at sea"
    secret, rest = record("secret-id", text), history(*(f"ship {n} sea" for n in range(others)))
    whole = History("me", [*rest[: others // 2], secret, *rest[others // 2 :]])
    marks = [*marks_of(text, embedder), b"secret-id"]
    with MemoryStore(path, embedder) as store:
        store.sync({"LaMP_3": History("me", [*whole[:3], secret] if others > 3 else whole)})
        store.sync({"LaMP_3": whole})
        assert {mark for _, mark in traces(path, marks)} == {*marks}, (
            "the search finds what is there"
        )
        if way == "delete":
            assert store.delete(["secret-id"]) == 1
        else:
            assert store.sync({"LaMP_3": rest}) == Synced(0, 1)
        assert traces(path, marks) == []
        with MemoryStore(tmp_path / "fresh" / "m.db", embedder) as fresh:
            fresh.sync({"LaMP_3": rest})
        assert contents(path) == contents(tmp_path / "fresh" / "m.db")
        execute(path, "VACUUM")
        assert traces(path, marks) == []
        # What comes later cannot bring it back either, as merges of old parts would.
        more = history(*(f"ship {n} sea" for n in range(others + 200)))
        store.sync({"LaMP_3": more})
        assert traces(path, marks) == []
        found = store.memory(TASK, more).search(f"{SHORT} {LONG}", 5, how="bm25")
        assert found == Memory(TASK, more).search("", 5)
    assert traces(path, marks) == []


def test_an_ordinary_deletion_would_leave_the_words(tmp_path: Path) -> None:
    """The search for traces has teeth, and FTS5 needs what the store does."""
    with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as db:
        db.execute("PRAGMA secure_delete = ON")
        db.execute(f"CREATE VIRTUAL TABLE plain USING fts5({COLUMNS})")
        text = f"{SHORT} walks {LONG} at sea"
        db.execute("INSERT INTO plain(rowid, text) VALUES (1, ?)", (text,))
        db.execute("INSERT INTO plain(rowid, text) VALUES (2, 'other')")
        db.execute("INSERT INTO plain(plain, rowid, text) VALUES ('delete', 1, ?)", (text,))
        assert traces(tmp_path / "m.db", [b"qxvunfathom"])
        db.execute("INSERT INTO plain(plain) VALUES ('optimize')")
        assert not traces(tmp_path / "m.db", [b"qxvunfathom"])


def test_many_deletions_among_many_insertions_leave_nothing(tmp_path: Path) -> None:
    """Rows move between pages as others come and go; the copies they leave behind are gone too.

    With this seed one is left in the file if rows are only deleted and the log is emptied.
    """
    rng, path = random.Random(1), tmp_path / "m.db"
    living: dict[str, Record] = {}
    dead: list[bytes] = []
    with MemoryStore(path, HashEmbedder(64)) as store:
        for step in range(7):
            for n in range(rng.choice([1, 5, 60, 300])):
                key = f"{rng.randrange(10**6):06d}-{step}-{n}"
                filling = " ".join(rng.choices(WORDS, k=rng.choice([3, 8, 30, 200, 900])))
                living[key] = record(f"id{key}", f"qz{key.replace('-', 'j')} {filling}")
            store.sync({"LaMP_3": History("me", living.values())})
            gone = rng.sample(sorted(living), min(len(living) // 2, rng.choice([1, 1, 3, 30, 200])))
            store.delete([living[key].id for key in gone])
            for key in gone:
                del living[key]
                dead += [f"id{key}".encode(), f"qz{key.replace('-', 'j')}".encode()]
            assert traces(path, dead) == []


def test_a_deletion_cut_short_is_ended_by_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, records = tmp_path / "m.db", history("the sea", f"{LONG} ship")
    store = MemoryStore(path)
    store.sync({"LaMP_3": records})
    with monkeypatch.context() as patch:
        patch.setattr(store, "_scrub", lambda: None)  # as if killed before it
        store.delete(["1"])
    assert traces(path, [b"qxvunfathom"])
    with MemoryStore(path) as other:
        other.sync({"LaMP_3": records[:1]})
        assert traces(path, [b"qxvunfathom"]) == []
    store.close()


# Kills ----------------------------------------------------------------------------------

KILLS = 8
RECORDS = 120


class Slow(HashEmbedder):
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        time.sleep(0.002)
        return super().embed(texts)


def many(n: int = RECORDS, skip: int = 0) -> History:
    return history(*(f"ship {i} sea number{i}" for i in range(n)))[skip:]


def lives() -> None:
    """For each line (path, skip) on stdin: fork, sync there; print pid, and the exit status."""
    store_module.BATCH = 8
    for line in sys.stdin:
        path, skip = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with MemoryStore(Path(path), Slow(16)) as store:
                store.sync({"LaMP_3": many(skip=skip)})
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@contextmanager
def nursery() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM records").fetchone()[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_on_the_way_it_goes_on_and_ends_as_a_fresh_one(tmp_path: Path) -> None:
    rng, path = random.Random(3), tmp_path / "m.db"
    killed, have = 0, 0
    with MemoryStore(path, Slow(16)):
        pass
    with nursery() as process:
        assert process.stdin and process.stdout
        for life in range(KILLS + 1):
            skip = 0 if life % 2 == 0 else 7  # every other life removes records first
            process.stdin.write(json.dumps([str(path), skip]) + "\n")
            pid = int(process.stdout.readline())
            if life < KILLS:
                wanted = min(have + rng.choice([0, 8, 8, 16]), RECORDS - 24)
                deadline = time.monotonic() + 20
                while count(path) < wanted and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(rng.choice([0, 0.001, 0.003]))
                os.kill(pid, signal.SIGKILL)
            status = int(process.stdout.readline())
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL)
            # Whole batches only, and none of those before are lost.
            assert count(path) >= have - 7
            have = count(path)
            contents(path)
    assert killed >= KILLS // 2, "the kills came too late: the test has lost its teeth"
    assert have == RECORDS
    with MemoryStore(tmp_path / "fresh.db", Slow(16)) as fresh:
        fresh.sync({"LaMP_3": many()})
    assert contents(path) == contents(tmp_path / "fresh.db")


# The graph for very many vectors --------------------------------------------------------


def test_the_graph_finds_what_exact_search_finds() -> None:
    pytest.importorskip("usearch")
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3000, 32)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    exact, graph = Neighbours(matrix, graph_from=3001), Neighbours(matrix, graph_from=3000)
    for neighbours in (exact, graph):
        for _ in range(PATIENCE):
            assert neighbours.making is neighbours.graph is None
            neighbours.nearest(matrix[0], 1, np.ones(3000, dtype=bool))
    assert exact.making is exact.graph is None
    assert graph.making is not None
    graph.making.join()
    assert graph.graph is not None
    everyone, few = np.ones(3000, dtype=bool), rng.random(3000) < 0.02
    half = np.arange(3000) < 1500
    for allowed, least in ((everyone, 0.95), (half, 0.95), (few, 1.0)):
        hits = []
        for query in matrix[rng.integers(0, 3000, 40)] + 0.05 * rng.standard_normal((40, 32)):
            wanted, cosines = exact.nearest(query.astype(np.float32), 10, allowed)
            found, near = graph.nearest(query.astype(np.float32), 10, allowed)
            assert len(found) == 10
            assert allowed[found].all()
            hits.append(len({*wanted} & {*found}) / 10)
            if wanted == found:
                assert near == pytest.approx(cosines, abs=1e-4)
        assert np.mean(hits) >= least


def test_the_store_is_light() -> None:
    script = "import sys, pfi.memory; print({*sys.modules} & {'torch', 'transformers', 'usearch'})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "set()\n"


if __name__ == "__main__":
    lives()
