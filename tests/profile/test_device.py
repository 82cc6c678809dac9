"""A device's vault, home and adapter versions: nothing is lost, overwritten or half written."""

from __future__ import annotations

import json
import multiprocessing
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pfi._util.sqlite import sqlite3, transaction
from pfi.errors import ConfigError, StorageError
from pfi.profile.adapters.store import AdapterInfo, AdapterStore
from pfi.profile.config import HomeConfig
from pfi.profile.home import home_path
from pfi.profile.open import create_home, open_home
from pfi.profile.vault.tables import row_of
from pfi.profile.vault.vault import BATCH, Vault
from pfi.records import Record

DAY = datetime(2024, 1, 1, tzinfo=UTC)


def record(n: int, task: str = "LaMP_4", day: int | None = None, **changes: object) -> Record:
    values = {
        "id": str(n),
        "task": task,
        "input": {"text": f"article {n}"},
        "output": f"headline {n}",
        "time": None if day is None else DAY + timedelta(days=day),
        **changes,
    }
    return Record(**values)  # type: ignore[arg-type]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault.db")


# Vault ------------------------------------------------------------------------------


def test_vault_returns_records_unchanged_after_reopening(tmp_path: Path) -> None:
    kept = record(1, day=3, origin="synthetic", source="git:x", output='quotes " and é 😀')
    with Vault(tmp_path / "vault.db") as vault:
        vault.add([kept])
    with Vault(tmp_path / "vault.db") as vault:
        assert list(vault.history("LaMP_4")) == [kept]


def test_adding_twice_adds_nothing_even_under_another_id(vault: Vault) -> None:
    records = [record(n, day=n) for n in range(5)]
    assert vault.add(records) == (5, 0)
    assert vault.add(records) == (0, 5)
    assert vault.add([record(3, day=3, id="another")]) == (0, 1)
    assert vault.count() == 5


def test_equal_records_in_one_call_are_stored_once(vault: Vault) -> None:
    assert vault.add([record(1), record(1)]) == (1, 1)


def test_taken_id_keeps_both_records_and_stays_idempotent(vault: Vault) -> None:
    edited = record(1, output="edited")
    other_task = record(1, task="LaMP_3", output="5")
    assert vault.add([record(1), edited, other_task]) == (3, 0)
    assert vault.add([edited, other_task]) == (0, 2)
    ids = [r.id for r in vault.history("LaMP_4")]
    assert ids[0] == "1" and ids[1].startswith("1~")
    assert vault.delete([ids[1]]) == 1
    assert [r.output for r in vault.history("LaMP_4")] == ["headline 1"]


def test_history_is_oldest_first_and_keeps_order_of_equal_times(vault: Vault) -> None:
    vault.add([record(1, day=9), record(2, day=1), record(3, day=5), record(4, day=1)])
    assert [r.id for r in vault.history("LaMP_4")] == ["2", "4", "3", "1"]


def test_undated_records_keep_their_order_and_have_no_time(vault: Vault) -> None:
    vault.add([record(n) for n in (3, 1, 2)])
    history = vault.history("LaMP_4")
    assert [r.id for r in history] == ["3", "1", "2"]
    assert not history.dated


def test_undated_among_dated_count_as_of_when_they_were_added(vault: Vault) -> None:
    start = datetime.now(UTC)
    vault.add([record(1), record(2, day=1)])
    history = vault.history("LaMP_4")
    assert [r.id for r in history] == ["2", "1"]
    assert start <= history[1].time <= datetime.now(UTC)
    assert [r.id for r in history.before(start)] == ["2"]
    assert vault.add([record(1)]) == (0, 1)


def test_history_by_task_and_origin_and_summary(vault: Vault) -> None:
    vault.add([record(1, day=1), record(2, day=4), record(3, task="LaMP_3", output="4")])
    vault.add([record(4, day=2, origin="synthetic")])
    assert vault.tasks() == {"LaMP_4": 3, "LaMP_3": 1}
    assert [r.id for r in vault.history("LaMP_4", origin="real")] == ["1", "2"]
    assert [r.id for r in vault.history("LaMP_4", origin="synthetic")] == ["4"]
    first = vault.summary()[0]
    assert (first.synthetic, first.first, first.last) == (1, DAY + timedelta(1), DAY + timedelta(4))
    assert len(vault.history("LaMP_7")) == 0


def test_failure_inside_a_batch_leaves_the_whole_batches_before_it(vault: Vault) -> None:
    def interrupted() -> Iterator[Record]:
        yield from (record(n) for n in range(BATCH + 10))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vault.add(interrupted())
    assert vault.count() == BATCH
    assert vault.add(record(n) for n in range(BATCH + 10)) == (10, BATCH)


def _die_in_transaction(path: Path) -> None:
    vault = Vault(path)
    vault._db.execute("BEGIN IMMEDIATE")
    vault._insert(row_of(record(99)))
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_process_killed_in_a_transaction_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    with Vault(path) as vault:
        vault.add([record(1)])
    process = multiprocessing.get_context("fork").Process(target=_die_in_transaction, args=(path,))
    process.start()
    process.join(20)
    assert process.exitcode == -9
    with Vault(path) as vault:
        assert [r.id for r in vault.history("LaMP_4")] == ["1"]
        assert vault.add([record(99)]) == (1, 0)


def test_second_writer_waits_and_then_says_that_the_vault_is_in_use(tmp_path: Path) -> None:
    one = Vault(tmp_path / "vault.db")
    two = Vault(tmp_path / "vault.db", busy_seconds=0.05)
    with transaction(one._db):
        one._insert(row_of(record(1)))
        with pytest.raises(StorageError, match="in use"):
            two.add([record(2)])
        assert two.count() == 0  # reading goes on, and sees whole batches only
    assert two.add([record(2)]) == (1, 0)
    assert one.count() == 2


def _write_some(path: Path, start: int) -> None:
    with Vault(path) as vault:
        for n in range(start, start + 20):
            vault.add([record(n)])


def test_processes_that_make_and_fill_one_vault_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_some, args=(path, 10 * n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    with Vault(path) as vault:
        assert {r.id for r in vault.history("LaMP_4")} == {str(n) for n in range(50)}


def test_delete_is_counted_and_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    with Vault(tmp_path / "vault.db") as vault:
        vault.add([record(1, output="a very secret headline"), record(2)])
        assert vault.delete(["1", "unknown"]) == 1
        files = list(tmp_path.glob("vault.db*"))
        assert not any(b"very secret" in file.read_bytes() for file in files)
        assert vault.count() == 1


@pytest.mark.parametrize(
    "content", [b"no database at all, but text" * 99, b"SQLite format 3\0junk"]
)
def test_damaged_file_is_a_storage_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vault.db"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"vault\.db.*damaged"):
        Vault(path)


def test_newer_format_and_foreign_database_are_refused(tmp_path: Path) -> None:
    Vault(tmp_path / "new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(StorageError, match=r"format 7.*update pfi"):
        Vault(tmp_path / "new.db")
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE bookmarks (url)")
    with pytest.raises(StorageError, match="not a pfi vault"):
        Vault(tmp_path / "other.db")


# Home -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "-x", "a\n", "é", "x" * 65, ".hidden"]
)
def test_profile_names_that_could_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="profile name"):
        home_path(name, tmp_path)


def test_home_is_private_and_keeps_its_settings(tmp_path: Path) -> None:
    made = create_home("me", root=tmp_path / "root", config=HomeConfig(task="LaMP_4"))
    for folder in (tmp_path / "root", made.path):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.path / "vault.db").stat().st_mode) == 0o600
    assert (made.path / "adapters" / "shared").is_dir()
    opened = open_home("me", root=tmp_path / "root")
    assert opened.config == made.config and opened.config.task == "LaMP_4"
    assert opened.sizes()["vault"] > 0


def test_home_missing_existing_and_unfinished(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="pfi init --profile me"):
        open_home("me", root=tmp_path)
    create_home("me", root=tmp_path)
    with pytest.raises(StorageError, match="exists"):
        create_home("me", root=tmp_path)
    (tmp_path / "me" / "config.yaml").unlink()  # as if killed before the end
    create_home("me", root=tmp_path)


def test_pfi_home_moves_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    assert home_path("me") == tmp_path / "me"


@pytest.mark.parametrize("text", ["backbone: [", "unknown: 1", "records: -1", "- a list"])
def test_config_that_makes_no_sense_names_its_file(tmp_path: Path, text: str) -> None:
    home = create_home("me", root=tmp_path)
    (home.path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        open_home("me", root=tmp_path)


# Adapters ---------------------------------------------------------------------------


class StubAdapter:
    """The files that peft would write, and what else it is told to."""

    def __init__(self, weights: bytes = b"weights", *, extra: str = "") -> None:
        self.weights, self.extra = weights, extra

    def to_bytes(self) -> dict[str, bytes]:
        files = {"adapter_config.json": b"{}", "adapter_model.safetensors": self.weights}
        return {**files, **({self.extra: b"x"} if self.extra else {})}


def info(task: str = "LaMP_4", **changes: object) -> AdapterInfo:
    return AdapterInfo(task=task, backbone="tiny", **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "personal")


def test_versions_count_up_and_manifest_tells_their_making(store: AdapterStore) -> None:
    first = store.add(StubAdapter(), info(records=7, last_loss=1.5))
    second = store.add(StubAdapter(b"other"), info("LaMP_3", parent="0001"))
    assert [m.version for m in store.list()] == ["0001", "0002"]
    assert store.manifest("0001") == first and first.records == 7
    assert second.parent == "0001"
    assert first.created.tzinfo is not None
    assert set(first.sha256) == {"adapter_config.json", "adapter_model.safetensors"}
    assert not [entry for entry in store.folder.iterdir() if entry.name.startswith(".")]


def test_nothing_is_active_until_chosen_and_each_task_has_its_own(store: AdapterStore) -> None:
    for task in ("LaMP_4", "LaMP_3", "LaMP_4"):
        store.add(StubAdapter(), info(task))
    assert store.active("LaMP_4") is None
    store.use("0001")
    store.use("0002")
    assert (store.active("LaMP_4"), store.active("LaMP_3")) == ("0001", "0002")
    store.use("0003")
    assert store.all_active() == {"LaMP_4": "0003", "LaMP_3": "0002"}


def test_rollback_goes_back_step_by_step(store: AdapterStore) -> None:
    for _ in range(2):
        store.use(store.add(StubAdapter(), info()).version)
    store.use("0002")  # again: no step of its own
    store.use_none("LaMP_4")
    assert store.active("LaMP_4") is None
    steps = [store.rollback("LaMP_4") for _ in range(3)]
    assert steps == ["0002", "0001", None]
    with pytest.raises(StorageError, match="nothing to undo"):
        store.rollback("LaMP_4")


def test_active_choice_survives_a_new_process(store: AdapterStore) -> None:
    store.use(store.add(StubAdapter(), info()).version)
    assert AdapterStore(store.folder).active("LaMP_4") == "0001"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("change", ["write", "remove"])
def test_changed_files_are_found_and_named(store: AdapterStore, name: str, change: str) -> None:
    store.add(StubAdapter(), info())
    file = store.folder / "0001" / name
    file.unlink() if change == "remove" else file.write_bytes(b"tampered")
    for check in (store.verify, store.use, store.load):
        with pytest.raises(StorageError, match=name):
            check("0001")
    assert store.active("LaMP_4") is None


def test_manifest_that_lists_less_or_reaches_out_is_refused(store: AdapterStore) -> None:
    store.add(StubAdapter(), info())
    file = store.folder / "0001" / "manifest.json"
    whole = json.loads(file.read_text())
    sums = whole["sha256"]
    fewer = {k: v for k, v in sums.items() if k != "adapter_model.safetensors"}
    for changed in (fewer, {**sums, "../../x": "0"}):
        file.write_text(json.dumps({**whole, "sha256": changed}))
        with pytest.raises(StorageError):
            store.verify("0001")
    file.write_text(json.dumps({**whole, "version": "0009"}))
    with pytest.raises(StorageError, match="0009"):
        store.verify("0001")
    file.write_text("{")
    with pytest.raises(StorageError, match=r"manifest\.json"):
        store.list()


def test_pickled_weights_are_refused_on_saving_and_loading(store: AdapterStore) -> None:
    with pytest.raises(StorageError, match=r"adapter_model\.bin.*can run code"):
        store.add(StubAdapter(extra="adapter_model.bin"), info())
    assert not store.folder.exists()
    store.add(StubAdapter(), info())
    (store.folder / "0001" / "optimizer.PT").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"optimizer\.PT"):
        store.load("0001")


def test_failing_save_leaves_no_version(store: AdapterStore) -> None:
    class Broken(StubAdapter):
        def to_bytes(self) -> dict[str, bytes]:
            raise RuntimeError("out of power")

    with pytest.raises(RuntimeError):
        store.add(Broken(), info())
    assert list(store.versions()) == [] and not store.folder.exists()


def test_number_taken_meanwhile_gives_the_next(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(StubAdapter(b"first"), info())
    monkeypatch.setattr(AdapterStore, "versions", lambda self: [])
    assert store.add(StubAdapter(b"second"), info()).version == "0002"
    assert (store.folder / "0001" / "adapter_model.safetensors").read_bytes() == b"first"


def test_unknown_version_and_damaged_choice(store: AdapterStore) -> None:
    for name in ("0005", "../personal", ""):
        with pytest.raises(StorageError, match="no adapter version"):
            store.use(name)
    store.folder.mkdir(exist_ok=True)
    (store.folder / "active.json").write_text('{"tasks": 3}')
    with pytest.raises(StorageError, match=r"active\.json"):
        store.active("LaMP_4")


def test_the_old_name_of_a_setting_is_read_and_the_new_one_is_written(tmp_path: Path) -> None:
    home = create_home("old", root=tmp_path, lock="file")
    file = home.path / "config.yaml"
    assert "retrieve: 2" in file.read_text() and "records" not in file.read_text()
    file.write_text("records: 7\n")
    assert open_home("old", root=tmp_path).config.retrieve == 7
