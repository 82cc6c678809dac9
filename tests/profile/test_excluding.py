"""Records that are kept out of use: not retrieved, not learnt from, and back when let in again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from console_service import headline, make_home

from pfi._util.sqlite import connect
from pfi.profile.answer.memory import open_memory
from pfi.profile.erase.excluding import exclude, include
from pfi.profile.home import Home
from pfi.profile.learn.feedback import give
from pfi.profile.learn.refresh import _Run, refresh_config
from pfi.profile.learn.training import divide
from pfi.profile.vault.vault import Vault
from pfi.records import Provenance
from pfi.tasks import get_task

TASK = get_task("LaMP_4")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = [
        headline(100, origin="synthetic", made=Provenance("t", "s", "p", ("h-3", "h-4"))),
        headline(101, origin="synthetic", made=Provenance("t", "s", "p", ("h-5",), "h-3")),
        headline(102, origin="synthetic", made=Provenance("t", "s", "p", ("h-5",))),
    ]
    return make_home(tmp_path, "anna", [*(headline(n) for n in range(12)), *made])


def used(home: Home) -> set[str]:
    with home.open_vault() as vault:
        return {record.id for record in vault.history("LaMP_4")}


def remembered(home: Home) -> set[str]:
    with home.open_vault() as vault, open_memory(home) as store:
        memory = store.memory(TASK, vault.history("LaMP_4", origin="real"))
        return {record.id for record in memory.search("harbour town ice", 12)}


def test_an_excluded_record_is_neither_retrieved_nor_learnt_from(home: Home) -> None:
    assert "h-3" in remembered(home)
    done = exclude(home, {"h-3"})
    assert (done.records, done.synthetic) == (1, 2)  # with what was made from it
    assert used(home) == {f"h-{n}" for n in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 102)}
    assert "h-3" not in remembered(home)
    division = divide(home, TASK, 0.0)
    assert "h-3" not in {record.id for record in division.real}
    assert [record.id for record in division.synthetic] == ["h-102"]
    with home.open_vault() as vault:
        assert "h-3" not in vault.added_since("LaMP_4", datetime(2000, 1, 1, tzinfo=UTC))
        assert [r.id for r in vault.find(ids={"h-3"})] == ["h-3"]  # it is still there
        (source,) = [s for s in vault.sources() if s.excluded]
    assert (source.records, source.synthetic, source.excluded) == (15, 3, 3)


def test_it_is_used_again_with_what_nothing_else_keeps_out(home: Home) -> None:
    exclude(home, {"h-3", "h-4"})
    done = include(home, {"h-3"})
    assert (done.records, done.synthetic) == (1, 1)  # h-100 also rests on h-4
    assert {"h-3", "h-101"} <= used(home) and "h-100" not in used(home)
    assert "h-3" in remembered(home)
    include(home, {"h-4"})
    assert "h-100" in used(home)


def test_unknown_ids_and_twice_the_same_change_nothing(home: Home) -> None:
    with home.open_vault() as vault:
        mark = vault.mark
        assert vault.excluded.add(["nobody"]) == 0
        assert vault.mark == mark
    exclude(home, {"h-1"})
    assert exclude(home, {"h-1"}).records == 0


def test_an_erased_record_leaves_no_trace_among_the_excluded(home: Home) -> None:
    exclude(home, {"h-1"})
    with home.open_vault() as vault:
        vault.delete(["h-1"])
        assert vault.excluded.ids() == set()
        vault.add([headline(1)])
    assert "h-1" in used(home)  # a new record, which nobody has excluded


def test_preferences_of_an_excluded_correction_are_not_learnt(home: Home) -> None:
    entry = give(home, TASK, {"text": "Snow"}, answer="Snow falls", correction="Snow at last")

    def pairs() -> int:
        return len(_Run(home, TASK, refresh_config(home), 0).material.pairs)

    assert pairs() == 1 and entry.record is not None
    exclude(home, {entry.record})
    assert pairs() == 0


def test_a_vault_from_before_gets_the_table(tmp_path: Path) -> None:
    file = tmp_path / "vault.db"
    with Vault(file) as vault:
        vault.add([headline(1)])
    db = connect(file)
    for name in ("excluded_erased", "mark_INSERT_excluded", "mark_DELETE_excluded"):
        db.execute(f"DROP TRIGGER {name}")
    db.execute("DROP TABLE excluded")
    db.execute("PRAGMA user_version = 5")
    db.close()
    with Vault(file) as vault:
        assert vault.excluded.add(["h-1"]) == 1
        assert len(vault.history("LaMP_4")) == 0
