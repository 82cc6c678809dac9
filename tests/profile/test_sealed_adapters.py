"""A home's adapters: no plaintext on the disk, and nothing opens but what this device stored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pfi.errors import StorageError
from pfi.models.adapters import Adapter
from pfi.profile.adapters.files import Seals, digest
from pfi.profile.adapters.store import AdapterInfo, AdapterStore
from pfi.profile.home import Home
from pfi.profile.open import create_home

TASK = "LaMP_4"
MARK = "zq_secret_name"


def adapter(value: float) -> Adapter:
    name = f"base_model.model.{MARK}.lora_{{}}.weight"
    weights = {
        name.format("A"): torch.full((2, 3), value),
        name.format("B"): torch.full((3, 2), value),
    }
    return Adapter({"r": 2, "base_model_name_or_path": MARK}, weights)


def info(task: str = TASK, backbone: str = "tiny") -> AdapterInfo:
    return AdapterInfo(task=task, backbone=backbone, records=3, held_back=["f1", "f2"])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(root=tmp_path / "root")


@pytest.fixture
def store(home: Home) -> AdapterStore:
    """Three versions, of which the first two were used."""
    found = home.personal_adapters
    for value in (1.0, 2.0, 3.0):
        found.add(adapter(value), info())
    found.use("0001")
    found.use("0002")
    return found


def fresh(store: AdapterStore) -> AdapterStore:
    return AdapterStore(store.folder, store.seals)


def all_bytes(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file())


# What lies there ----------------------------------------------------------------------


def test_what_comes_back_is_what_was_stored_and_the_disk_shows_nothing(
    store: AdapterStore, tmp_path: Path
) -> None:
    adapter(2.0).save(tmp_path / "plain")
    assert MARK.encode() in all_bytes(tmp_path / "plain")  # the search can find it
    assert MARK.encode() not in all_bytes(store.folder)
    weights = adapter(2.0).to_bytes()["adapter_model.safetensors"]
    assert weights[-24:] not in all_bytes(store.folder)
    found = fresh(store).load("0002")
    assert found.settings == adapter(2.0).settings
    down = found.weights[f"base_model.model.{MARK}.lora_A.weight"]
    assert torch.equal(down, torch.full((2, 3), 2.0))
    assert {file.name for file in (store.folder / "0002").iterdir()} == {
        "adapter_config.json.sealed",
        "adapter_model.safetensors.sealed",
        "manifest.json",
    }


def test_the_manifest_has_the_sums_of_both_and_a_signature(store: AdapterStore, home: Home) -> None:
    import hashlib

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    told = json.loads((store.folder / "0001" / "manifest.json").read_text())
    for name, data in adapter(1.0).to_bytes().items():
        assert told["sha256"][name] == hashlib.sha256(data).hexdigest()
        sealed = (store.folder / "0001" / f"{name}.sealed").read_bytes()
        assert told["sealed"][name] == hashlib.sha256(sealed).hexdigest()
    signature = bytes.fromhex(told.pop("signature"))
    signed = {"purpose": f"{home.keys.profile}|personal|manifest.json", "content": told}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    Ed25519PublicKey.from_public_bytes(home.keys.public).verify(
        signature, b"pfi-signed-json-1\n" + text
    )


def test_a_store_without_seals_is_plain_peft(tmp_path: Path) -> None:
    plain = AdapterStore(tmp_path / "plain")
    plain.use(plain.add(adapter(1.0), info()).version)
    assert Adapter.load(tmp_path / "plain" / "0001").settings == adapter(1.0).settings
    assert "signature" not in (tmp_path / "plain" / "0001" / "manifest.json").read_text()


# What is refused ----------------------------------------------------------------------


def _files(store: AdapterStore, version: str) -> list[Path]:
    return sorted((store.folder / version).glob("*.sealed"))


def _truncate(store: AdapterStore) -> None:
    file = _files(store, "0002")[1]
    file.write_bytes(file.read_bytes()[:-7])


def _swap_versions(store: AdapterStore) -> None:
    for one, two in zip(_files(store, "0001"), _files(store, "0002"), strict=True):
        shutil.copy(one, two)


def _swap_folders(store: AdapterStore) -> None:
    shutil.rmtree(store.folder / "0002")
    shutil.copytree(store.folder / "0001", store.folder / "0002")


def _edit_manifest(store: AdapterStore) -> None:
    file = store.folder / "0002" / "manifest.json"
    file.write_text(file.read_text().replace('"records": 3', '"records": 4'))


def _unsigned_manifest(store: AdapterStore) -> None:
    file = store.folder / "0002" / "manifest.json"
    told = json.loads(file.read_text())
    del told["signature"]
    file.write_text(json.dumps(told))


def _format_byte(store: AdapterStore) -> None:
    file = _files(store, "0002")[0]
    data = bytearray(file.read_bytes())
    data[4] = 2
    file.write_bytes(data)


def _plaintext(store: AdapterStore) -> None:
    for name, data in adapter(9.0).to_bytes().items():
        (store.folder / "0002" / f"{name}.sealed").write_bytes(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_truncate, r"adapter_model\.safetensors\.sealed.*does not open: it was changed"),
        (_swap_versions, "does not open.*is another's"),
        (_swap_folders, "manifest was changed, or is of another|manifest is of version 0001"),
        (_edit_manifest, r"manifest\.json.*the manifest was changed"),
        (_unsigned_manifest, "the manifest is not signed"),
        (_format_byte, "sealed in format 2, and this pfi knows format 1 only"),
        (_plaintext, "is not a sealed file"),
    ],
)
def test_changed_versions_are_refused(
    store: AdapterStore, change: Callable[[AdapterStore], None], says: str
) -> None:
    change(store)
    for act in (store.load, store.verify, store.use):
        with pytest.raises(StorageError, match=says):
            act("0002")
    assert fresh(store).load("0001").settings  # what was left alone still opens


def test_a_file_sealed_as_anything_else_is_refused_even_with_its_sums(
    store: AdapterStore, home: Home
) -> None:
    """The seal itself binds profile, kind, version, backbone and name, whatever a manifest says."""
    assert store.seals
    weights = adapter(1.0).to_bytes()["adapter_model.safetensors"]
    from pfi.privacy.crypto.sealing import seal

    file = store.folder / "0001" / "adapter_model.safetensors.sealed"
    right = f"{home.keys.profile}|personal/0001|tiny|adapter_model.safetensors"
    for part, other in [
        (home.keys.profile, "0" * 32),
        ("personal", "shared"),
        ("0001", "0002"),
        ("tiny", "large"),
        ("adapter_model", "gate_model"),
        ("", ""),
    ]:
        data = seal(home.keys.files, weights, right.replace(part, other) if part else right)
        file.write_bytes(data)
        manifest = store.manifest("0001")
        sums = {**manifest.sealed, "adapter_model.safetensors": _sha(data)}
        store._write_manifest(file.parent, manifest.model_copy(update={"sealed": sums}))
        if part:
            with pytest.raises(StorageError, match="does not open"):
                store.load("0001")
        else:
            store.load("0001")


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_files_of_another_kind_or_profile_are_refused(store: AdapterStore, home: Home) -> None:
    other = create_home("other", root=home.path.parent)
    other.personal_adapters.add(adapter(9.0), info())
    home.shared_adapters.add(adapter(9.0), info())
    for source in (other.personal_adapters, home.shared_adapters):
        shutil.rmtree(store.folder / "0001")
        shutil.copytree(source.folder / "0001", store.folder / "0001")
        with pytest.raises(StorageError, match="is of another device, store or version"):
            store.load("0001")
        shutil.copy(source.folder / "active.json", store.folder / "active.json")
        with pytest.raises(StorageError, match="is of another device, store"):
            store.active(TASK)


def test_another_key_is_refused(store: AdapterStore, home: Home) -> None:
    thief = create_home("thief", root=home.path.parent)
    keys = SimpleNamespace(
        profile=home.keys.profile,
        files=thief.keys.files,
        signing=thief.keys.signing,
        public=home.keys.public,
    )
    owner = SimpleNamespace(keys=keys, open_vault_as_it_is=home.open_vault_as_it_is)
    with pytest.raises(StorageError, match="sealed with another key"):
        AdapterStore(store.folder, Seals(owner, "personal")).load("0001")
    keys.public = thief.keys.public
    with pytest.raises(StorageError, match="signature is wrong"):
        AdapterStore(store.folder, Seals(owner, "personal")).load("0001")


# Which one is in use ------------------------------------------------------------------


def test_an_older_choice_that_was_signed_is_refused(store: AdapterStore) -> None:
    file = store.folder / "active.json"
    before = file.read_bytes()
    store.use("0003")
    now = file.read_bytes()
    file.write_bytes(before)
    for act in (lambda: store.active(TASK), lambda: store.use("0001"), store.all_active):
        with pytest.raises(StorageError, match="an older one: number 5, the last one was 6"):
            act()
    file.unlink()
    with pytest.raises(StorageError, match=r"versions in use is missing.*pfi adapters reset"):
        store.active(TASK)
    file.write_text('{"tasks": {}, "last": 3, "count": 99}')
    with pytest.raises(StorageError, match="versions in use is not signed"):
        store.active(TASK)
    file.write_bytes(now.replace(b'"0003"', b'"0001"'))
    with pytest.raises(StorageError, match="versions in use was changed"):
        store.active(TASK)
    file.write_bytes(now)
    assert store.active(TASK) == "0003"


@pytest.mark.skipif(os.name != "posix", reason="needs hard links and the time of their change")
def test_the_very_file_put_back_is_refused_by_who_knew_it(store: AdapterStore) -> None:
    """A store checks again whatever was replaced, though inode, size and time look as before."""
    other, file = fresh(store), store.folder / "active.json"
    assert other.active(TASK) == "0002"
    os.link(file, store.folder / "saved")
    store.use("0001")
    (store.folder / "saved").replace(file)
    with pytest.raises(StorageError, match="an older one"):
        other.active(TASK)


def test_what_was_checked_is_not_checked_again(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.active(TASK) == "0002"
    with monkeypatch.context() as patch:
        patch.setattr(Seals, "count", property(lambda self: 1 / 0))
        assert store.active(TASK) == "0002"
    fresh(store).use("0001")  # another process
    assert store.active(TASK) == "0001"


def test_reset_helps_where_the_choice_is_refused(store: AdapterStore) -> None:
    old = (store.folder / "active.json").read_bytes()
    (store.folder / "active.json").unlink()
    store.reset()
    assert store.all_active() == {}
    store.use("0002")
    assert store.active(TASK) == "0002"
    (store.folder / "active.json").write_bytes(old)
    with pytest.raises(StorageError, match="older one"):
        store.active(TASK)
    store.reset()
    assert store.add(adapter(4.0), info()).version == "0004"


def test_no_number_is_used_twice(store: AdapterStore) -> None:
    shutil.rmtree(store.folder / "0003")  # by somebody else
    assert store.add(adapter(4.0), info()).version == "0004"
    store.drop(["0004"], "tiny")
    assert fresh(store).add(adapter(5.0), info()).version == "0005"


def test_dropping_falls_back_to_the_newest_that_fits(store: AdapterStore) -> None:
    store.add(adapter(4.0), info(backbone="other"))
    store.add(adapter(5.0), info("LaMP_3"))
    store.use("0005")
    store.drop(["0002"], "tiny")
    assert (store.active(TASK), store.active("LaMP_3")) == ("0003", "0005")
    assert list(store.versions()) == ["0001", "0003", "0004", "0005"]
    store.drop(["0001", "0003"], "tiny")
    assert store.active(TASK) is None
    store.drop(["0001", "0003", "../0004", "0009"], "tiny")  # again, as after a kill
    assert list(store.versions()) == ["0004", "0005"]
    store.use("0004")
    store.use_none(TASK)
    store.drop(["0004"], "tiny")  # not in use: none stays the choice
    assert store.active(TASK) is None and not list(store.folder.glob(".*"))


def test_fingerprints_are_forgotten_and_the_manifest_still_holds(store: AdapterStore) -> None:
    assert store.forget_held_back({"f1"}) == 3
    assert store.forget_held_back({"f1"}) == 0
    assert fresh(store).verify("0002").held_back == ["f2"]


KILLED = """
import os, signal
from pathlib import Path
from pfi.profile.adapters import files as adapter_files, store as adapters
from pfi.profile.open import open_home
module = {module}
true, left = getattr(module, {name!r}), [{calls}]
def kill(*args, **named):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*args, **named)
setattr(module, {name!r}, kill)
store = open_home(root=Path({root!r})).personal_adapters
{act}
"""


def killed(home: Home, module: str, name: str, calls: int, act: str) -> None:
    code = KILLED.format(module=module, name=name, calls=calls, root=str(home.path.parent), act=act)
    run = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("adapters", "write_signed", 0),
        ("adapter_files.Seals", "tell", 0),
        ("adapters.shutil", "rmtree", 0),
    ],
)
def test_killed_while_choosing_or_dropping(
    store: AdapterStore, home: Home, module: str, name: str, calls: int
) -> None:
    for act in ('store.drop(["0002"], "tiny")', 'store.use("0001")'):
        if "rmtree" in name and "use" in act:
            continue
        killed(home, module, name, calls, act)
        again = fresh(store)
        assert again.active(TASK) in ("0001", "0002", "0003")
        assert (
            again.seals
            and again.seals.count == json.loads((store.folder / "active.json").read_text())["count"]
        )  # the vault knows by now
    store.drop(["0002"], "tiny")
    assert store.active(TASK) in ("0001", "0003")
    assert list(store.versions()) == ["0001", "0003"] and not list(store.folder.glob(".gone*"))


# Stores of an older pfi ---------------------------------------------------------------


@pytest.fixture
def old(home: Home) -> AdapterStore:
    """A store as an older pfi left it."""
    plain = AdapterStore(home.personal_adapters.folder)
    for value in (1.0, 2.0):
        plain.use(plain.add(adapter(value), info()).version)
    (plain.folder / "active.json").write_text(json.dumps({"tasks": {TASK: ["0001", "0002"]}}))
    for version in plain.versions():
        file = plain.folder / version / "manifest.json"
        told = json.loads(file.read_text())
        del told["sealed"]
        file.write_text(json.dumps(told))
    return home.personal_adapters


def test_migrating_seals_what_was_plain(old: AdapterStore) -> None:
    assert MARK.encode() in all_bytes(old.folder)
    assert old.migrate() == 2
    assert MARK.encode() not in all_bytes(old.folder)
    assert old.active(TASK) == "0002" and old.rollback(TASK) == "0001"
    assert all(bool((factor == 2.0).all()) for factor in old.load("0002").weights.values())
    assert old.add(adapter(3.0), info()).version == "0003"
    assert old.migrate() == 0


def test_plain_files_brought_in_later_are_not_sealed(old: AdapterStore, tmp_path: Path) -> None:
    old.migrate()
    foreign = AdapterStore(tmp_path / "foreign")
    foreign.add(adapter(9.0), info())
    shutil.copytree(foreign.folder / "0001", old.folder / "0007")
    old.migrate()
    with pytest.raises(StorageError, match="not signed"):
        old.load("0007")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("adapter_files", "write_atomic", 1),
        ("adapters", "write_signed", 0),
        ("adapters.Path", "unlink", 1),
        ("adapters", "write_signed", 2),
        ("adapter_files.Seals", "tell", 0),
    ],
)
def test_migrating_goes_on_after_a_kill(
    old: AdapterStore, home: Home, module: str, name: str, calls: int
) -> None:
    killed(home, module, name, calls, "store.migrate()")
    old.migrate()
    assert MARK.encode() not in all_bytes(old.folder)
    assert old.active(TASK) == "0002"
    assert [m.version for m in map(old.verify, old.versions())] == ["0001", "0002"]


# Adapters that could answer nothing ---------------------------------------------------


def broken(value: float, factor: str = "B", half: bool = False) -> Adapter:
    """One number of a factor is not finite."""
    sound = adapter(1.0)
    name = f"base_model.model.{MARK}.lora_{factor}.weight"
    weights = {key: tensor.clone() for key, tensor in sound.weights.items()}
    weights[name][0, 1] = value
    if half:
        weights = {key: tensor.bfloat16() for key, tensor in weights.items()}
    return Adapter(sound.settings, weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("factor", "half"), [("A", False), ("B", True)])
def test_an_adapter_that_is_not_finite_is_not_stored(
    store: AdapterStore, value: float, factor: str, half: bool
) -> None:
    with pytest.raises(StorageError, match="not finite"):
        store.add(broken(value, factor, half), info())
    assert list(store.versions()) == ["0001", "0002", "0003"]


def test_an_adapter_that_is_not_finite_is_not_restored(store: AdapterStore, home: Home) -> None:
    files = broken(float("nan")).to_bytes()
    sums = {name: digest(data) for name, data in files.items()}
    manifest = store.manifest("0003").model_copy(update={"sha256": sums, "version": "0009"})
    with pytest.raises(StorageError, match="not finite"):
        fresh(store).restore(files, manifest)
    assert "0009" not in store.versions()


def test_one_that_is_there_already_is_not_taken_into_use(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version stored what it was given."""
    with monkeypatch.context() as older:
        older.setattr("pfi.profile.adapters.store.refuse_nonfinite", lambda *_: None)
        store.add(broken(float("inf")), info())
        store.use("0004")
        store.use("0001")
    for choose in (lambda: fresh(store).use("0004"), lambda: fresh(store).rollback(TASK)):
        with pytest.raises(StorageError, match="not finite"):
            choose()
    assert fresh(store).active(TASK) == "0001"
