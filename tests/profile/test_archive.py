"""A profile in one encrypted file: all comes back, and what is wrong with a file is said."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import operator
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest
import torch
from typer.testing import CliRunner, Result

import pfi.profile.archive.format
from pfi._util.sqlite import sqlite3
from pfi.cli.app import app
from pfi.errors import ConfigError, DataError, PfiError, StorageError
from pfi.models.adapters import Adapter
from pfi.privacy.crypto.signing import with_signature
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.memory import open_memory
from pfi.profile.archive import archive
from pfi.profile.archive.archive import read_archive, write_archive
from pfi.profile.archive.format import wants_passphrase
from pfi.profile.config import HomeConfig
from pfi.profile.erase.erasure import erase
from pfi.profile.home import Home
from pfi.profile.open import create_home, open_home
from pfi.profile.vault.feedback import Feedback
from pfi.records import Record
from pfi.tasks import get_task

DAY = datetime(2024, 1, 1, tzinfo=UTC)
TASK = "LaMP_4"
SECRET = "quxblorft"
WORDS = "correct horse battery"
ME = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a device that has everything."""
    root = tmp_path_factory.mktemp("used")
    home = create_home("me", root=root, config=HomeConfig(task=TASK, embedder="none", records=3))
    with home.open_vault() as vault:
        vault.add(
            Record(f"r{n}", TASK, {"text": f"{SECRET} {n}"}, f"Head {n}", DAY + timedelta(n))
            for n in range(5)
        )
        vault.add([Record("gone", TASK, {"text": "gone"}, "Gone", DAY)])
        about = Feedback("f", "b", TASK, DAY, {"text": "?"}, f"{SECRET}", rating="bad")
        vault.feedback.add([(about, None)])
        vault.set_setting("names", ["Maria Lopes"])
        vault.set_setting("tokens", [{"id": "of this device alone"}])
    open_memory(home).close()
    for kind, store in (("personal", home.personal_adapters), ("shared", home.shared_adapters)):
        for n in range(2):
            factors = {f"{SECRET}.lora_A.weight": torch.full((2, 3), n + len(kind))}
            info = AdapterInfo(task=TASK, backbone="embedded", records=n)
            store.use(store.add(Adapter({"r": 2}, factors), info).version)
    home.personal_adapters.drop(["0001"], "embedded")
    ledger = home.open_ledger()
    about_it: dict[str, Any] = {"device": "me", "to": "h.example", "policy": "none"}
    ledger.append(**about_it, kind="teacher", payload=f"say {SECRET}", shows=["r1"])
    ledger.append(**about_it, kind="update", payload=b"factors")
    home.open_teacher_store().close()
    home.gate_file.write_text("{}\n")
    (home.path / "federate").mkdir()
    (home.path / "federate" / "node.key").write_text("of this device alone")
    erase(home, ["gone"], adapters="keep")
    return root


@pytest.fixture
def home(used: Path, tmp_path: Path) -> Home:
    shutil.copytree(used, tmp_path / "root")
    return open_home("me", root=tmp_path / "root")


def holds(home: Home) -> dict[str, Any]:
    """What a profile holds."""
    with home.open_vault() as vault:
        records = sorted((r.id, dict(r.input), r.output, r.time) for r in vault.find())
        told = [(e.id, e.answer, e.rating) for e in vault.feedback.entries()]
        names = vault.setting("names")
        added = vault.added({r[0] for r in records})
    stores = {}
    for kind, store in (("personal", home.personal_adapters), ("shared", home.shared_adapters)):
        versions = {
            m.version: (m.sha256, m.created, m.records, float(next(iter(a.weights.values()))[0, 0]))
            for m in store.list()
            for a in [store.load(m.version)]
        }
        stores[kind] = (versions, dict(store.trails()))
    ledger = home.open_ledger()
    ledger.check()
    return {
        "records": records, "added": added, "told": told, "names": names, "stores": stores,
        "ledger": [(e.n, e.hash, e.payload) for e in ledger.entries()],
        "config": home.config, "gate": home.gate_file.read_text(),
        "statements": sorted(f.read_text() for f in (home.path / "erasures").iterdir()),
    }  # fmt: skip


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def written(used: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("written") / "me.pfi"
    write_archive(open_home("me", root=used), file, to=[str(ME.to_public())])
    return file


@pytest.fixture
def made(written: Path, tmp_path: Path) -> Path:
    """An archive of the device."""
    return Path(shutil.copy(written, tmp_path / "me.pfi"))


def restored(path: Path, root: Path, profile: str | None = "new", **how: Any) -> Home:
    return read_archive(path, profile, root=root, **{"identities": [ME], **how})[0]


# There and back -----------------------------------------------------------------------


def test_everything_comes_back_under_new_keys(home: Home, made: Path, tmp_path: Path) -> None:
    again = restored(made, tmp_path / "elsewhere")
    assert holds(again) == holds(home)
    assert again.keys.profile != home.keys.profile and again.keys.public != home.keys.public
    with open_memory(again) as store:
        memory = store.memory(get_task(TASK), _history(again))
        assert {r.id for r in memory.search(SECRET, 9)} == {f"r{n}" for n in range(5)}
    assert not (again.path / "federate").exists()
    with again.open_vault() as vault:
        assert vault.setting("tokens") is None
    left = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert left == {"new", ".keys", ".restore.lock"}
    assert not [f for f in again.path.iterdir() if f.name.startswith(".") or "archived" in f.name]
    # It goes on counting where it was.
    info = AdapterInfo(task=TASK, backbone="embedded")
    assert again.personal_adapters.add(Adapter({}, {"a": torch.zeros(1)}), info).version == "0003"
    with again.open_vault() as vault, vault._translate():
        assert vault._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def _history(home: Home) -> Any:
    with home.open_vault() as vault:
        return vault.history(TASK, origin="real")


def test_no_file_shows_what_is_in_it(home: Home, made: Path, tmp_path: Path) -> None:
    again = restored(made, tmp_path)
    for folder in (again.path, home.path):
        for file in folder.rglob("*"):
            assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    data = made.read_bytes()
    assert SECRET.encode() not in data and b"Maria" not in data
    assert data.startswith(b"age-encryption.org/v1\n")


def test_the_content_is_a_plain_tar_file_for_any_tool(made: Path) -> None:
    """Opened by age's library and tarfile alone."""
    files = unpacked(made)
    weights = files["adapters/personal/0002/adapter_model.safetensors"]
    assert SECRET.encode() in weights
    assert f"say {SECRET}".encode() in files["ledger.jsonl"]
    listed = json.loads(files["manifest.json"])["files"]
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} | {
        "manifest.json": ""
    } == {name: told["sha256"] for name, told in listed.items()} | {"manifest.json": ""}


def test_any_recipient_can_open_it(home: Home, tmp_path: Path) -> None:
    both = tmp_path / "both.pfi"
    write_archive(home, both, to=[str(OTHER.to_public()), str(ME.to_public())])
    assert holds(restored(both, tmp_path / "a")) == holds(home)
    assert holds(restored(both, tmp_path / "b", identities=[OTHER])) == holds(home)


def test_a_passphrase_opens_it_and_no_other_does(home: Home, tmp_path: Path) -> None:
    """age takes a second for each passphrase."""
    secret, root = tmp_path / "secret.pfi", tmp_path / "elsewhere"
    write_archive(home, secret, passphrase=WORDS)
    assert wants_passphrase(secret)
    refused(secret, root, "the passphrase is wrong", identities=None, passphrase="another one")
    again = restored(secret, root, identities=None, passphrase=WORDS)
    assert holds(again) == holds(home)


# What is refused ----------------------------------------------------------------------


def unpacked(path: Path) -> dict[str, bytes]:
    data = pyrage.decrypt(path.read_bytes(), [ME])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def packed(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = kind if name == "config.yaml" else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(pyrage.encrypt(out.getvalue(), [ME.to_public()]))


def resigned(files: dict[str, bytes], home: Home) -> dict[str, bytes]:
    """With a list that is right and a signature that is the device's own."""
    rest = {name: data for name, data in files.items() if name != "manifest.json"}
    sums = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in rest.items()
    }
    signed = with_signature(home.keys.signing, "pfi archive", {"files": sums})
    return {**rest, "manifest.json": json.dumps(signed).encode()}


def refused(path: Path, root: Path, says: str, **how: Any) -> None:
    before = sorted(root.iterdir()) if root.exists() else []
    with pytest.raises(PfiError, match=says):
        restored(path, root, **how)
    left = {p.name for p in root.iterdir()} - {p.name for p in before} if root.exists() else set()
    assert left <= {".restore.lock", ".keys"}
    keys = root / ".keys"
    assert before or not keys.exists() or not list(keys.iterdir())


def test_another_identity(made: Path, tmp_path: Path) -> None:
    refused(made, tmp_path / "e", "not made for this identity", identities=[OTHER])
    assert not wants_passphrase(made)


@pytest.mark.parametrize("at", [0.999, 0.9, 0.5, 0.1, 0.02])
def test_truncated_or_changed_anywhere(made: Path, tmp_path: Path, at: float) -> None:
    data, place = made.read_bytes(), int(at * made.stat().st_size)
    bad = tmp_path / "bad.pfi"
    bad.write_bytes(data[:place])
    refused(bad, tmp_path / "elsewhere", "the archive is damaged: it was cut short or changed")
    bad.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    refused(bad, tmp_path / "elsewhere", "the archive is damaged: it was cut short or changed")


def test_what_is_no_archive(tmp_path: Path, made: Path) -> None:
    for data in (b"", b"PK\x03\x04 a zip file", made.read_bytes()[:12]):
        (tmp_path / "x").write_bytes(data)
        refused(tmp_path / "x", tmp_path / "e", "damaged|no archive")
    (tmp_path / "x").write_bytes(pyrage.encrypt(b"a letter", [ME.to_public()]))
    refused(tmp_path / "x", tmp_path / "e", "is no tar file")
    packed(tmp_path / "x", {"config.yaml": b""})
    refused(tmp_path / "x", tmp_path / "e", "not in order")


def _edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], Any]:
    return lambda files: files.update({name: change(files[name])})


def _json(name: str, **values: Any) -> Callable[[dict[str, bytes]], Any]:
    return _edit(name, lambda data: json.dumps({**json.loads(data), **values}).encode())


WEIGHTS = "adapters/personal/0002/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_json("archive.json", format=2), "format 2, this pfi reads up to 1.*update pfi"),
        (_json("archive.json", what="x"), "does not say what it is"),
        (lambda files: files.pop("vault.db"), "files are missing|vault is missing"),
        (lambda files: files.pop("config.yaml"), "files are missing"),
        (lambda files: files.pop(WEIGHTS), "files are missing"),
        (_edit(WEIGHTS, lambda data: data[:-1] + b"x"), "not those of its manifest"),
        (_edit("vault.db", lambda data: data[:5000] + b"x" + data[5001:]), "vault is damaged"),
        (_edit("vault.db", lambda data: b""), "vault.db is empty"),
        (_edit("ledger.jsonl", lambda data: data.replace(SECRET.encode(), b"x")), "ledger.*line 1"),
        (_edit("ledger.jsonl", lambda data: data.split(b"\n", 1)[1]), "ledger is damaged: line 1"),
        (_edit("config.yaml", lambda data: b"records: -1"), "settings make no sense"),
        (_edit("adapters/personal/active.json", lambda data: b"[]"), "damaged"),
        (lambda files: files.update({"../../evil": b"x"}), "'../../evil' is no part"),
        (lambda files: files.update({"/etc/evil": b"x"}), "'/etc/evil' is no part"),
        (lambda files: files.update({"keys.json": b"x"}), "'keys.json' is no part"),
        (lambda files: files.update({"adapters/personal/0002/../x": b"x"}), "is no part"),
        (lambda files: files.update({"adapters/personal/0002/m.bin": b"x"}), "damaged"),
    ],
)
def test_changed_content_is_refused_even_where_it_is_signed(
    home: Home, made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], Any], says: str
) -> None:
    files = unpacked(made)
    change(files)
    packed(tmp_path / "x", resigned(files, home))
    refused(tmp_path / "x", tmp_path / "e", says)


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_edit("config.yaml", lambda data: DEEP), "settings make no sense"),
        (_edit("config.yaml", lambda data: b"train: &a {x: 1}\nmix: *a\n"), "an alias"),
        (_edit("archive.json", lambda data: DEEP), "does not say what it is"),
        (_edit("gate.json", lambda data: DEEP), "nested too deeply"),
        (_edit("ledger.jsonl", lambda data: DEEP + b"\n"), "too deep|line 1"),
        (_edit("adapters/personal/active.json", lambda data: DEEP), "damaged"),
        (_edit("adapters/personal/0002/manifest.json", lambda data: DEEP), "no manifest"),
        (lambda files: files.update({"erasures/x.json": b"no"}), "no JSON"),
        (_edit("config.yaml", lambda data: b" " * (16 << 20) + data), "a part of it has 167"),
    ],
)
def test_what_would_eat_memory_or_stack_is_refused(
    home: Home, made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], Any], says: str
) -> None:
    files = unpacked(made)
    change(files)
    packed(tmp_path / "x", resigned(files, home))
    refused(tmp_path / "x", tmp_path / "e", says)


def hostile(path: Path, info: tarfile.TarInfo, data: bytes, home: Home) -> None:
    """An archive whose second member is that one."""
    head = {"created": "2026-01-01", "version": "0.1.0", "name": "evil", "profile": "0" * 32}
    head |= {"public": "1" * 64, "database": "2" * 64, "what": "pfi archive"}
    first, out = tarfile.TarInfo("archive.json"), io.BytesIO()
    body = json.dumps({**head, "format": 1}).encode()
    first.size = len(body)
    out.write(first.tobuf() + body.ljust(-(-len(body) // 512) * 512, b"\0"))
    out.write(info.tobuf(tarfile.PAX_FORMAT) + data.ljust(-(-len(data) // 512) * 512, b"\0"))
    out.write(bytes(1024))
    path.write_bytes(pyrage.encrypt(out.getvalue(), [ME.to_public()]))


SPARSE_1_0 = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "config.yaml",
    "GNU.sparse.realsize": "6000000000",
}
SPARSE_0_1 = {"GNU.sparse.map": "0,1,5999999999,1", "GNU.sparse.size": "6000000000"}


@pytest.mark.parametrize("name", ["config.yaml", "vault.db", "ledger.jsonl"])
@pytest.mark.parametrize("pax", [SPARSE_1_0, SPARSE_0_1])
def test_sparse_members_are_refused(
    home: Home, tmp_path: Path, name: str, pax: dict[str, str]
) -> None:
    info = tarfile.TarInfo(name)
    info.size = 512
    info.pax_headers = {**pax, **({"GNU.sparse.name": name} if "GNU.sparse.major" in pax else {})}
    hostile(tmp_path / "x", info, b"0\n", home)
    refused(tmp_path / "x", tmp_path / "e", "is no part of an archive")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
     tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE],
)  # fmt: skip
def test_links_devices_and_folders_are_refused(home: Home, tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("config.yaml")
    info.type, info.linkname = kind, "/etc/passwd"
    hostile(tmp_path / "x", info, b"", home)
    refused(tmp_path / "x", tmp_path / "e", "is no part of an archive|is no regular file")


def test_sizes_are_looked_at_before_anything_is_read(home: Home, tmp_path: Path) -> None:
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("config.yaml")
        info.type, info.size = kind, 6 * 10**9
        hostile(tmp_path / "x", info, b"", home)
        refused(tmp_path / "x", tmp_path / "e", "is no part of an archive|is no regular file")


def test_an_archive_does_not_say_which_variable_is_a_key(
    home: Home, made: Path, tmp_path: Path
) -> None:
    files = unpacked(made)
    teacher = (
        b"augment: {teacher: {kind: openai, base_url: 'https://evil.example', api_key_env: PATH}}"
    )
    files["config.yaml"] = teacher
    packed(tmp_path / "x", resigned(files, home))
    config = restored(tmp_path / "x", tmp_path / "e").config
    assert config.augment["teacher"] == {"kind": "openai", "base_url": "https://evil.example"}


def test_content_that_is_signed_and_right_is_taken(home: Home, made: Path, tmp_path: Path) -> None:
    """It is the change that is refused above."""
    packed(tmp_path / "x", resigned(unpacked(made), home))
    assert holds(restored(tmp_path / "x", tmp_path / "e")) == holds(home)


def test_content_that_is_not_the_signed_one_is_refused(
    home: Home, made: Path, tmp_path: Path
) -> None:
    files = unpacked(made)
    changed = {**files, "gate.json": b'{"a": 1}\n'}
    packed(tmp_path / "x", changed)
    refused(tmp_path / "x", tmp_path / "e", "a file in it is not the one that was put in")
    changed["manifest.json"] = resigned(changed, home)["manifest.json"].replace(b"a", b"b", 1)
    packed(tmp_path / "x", changed)
    refused(tmp_path / "x", tmp_path / "e", "signature is wrong")
    packed(tmp_path / "x", {n: d for n, d in files.items() if n != "manifest.json"})
    refused(tmp_path / "x", tmp_path / "e", "its end is missing")
    packed(tmp_path / "x", files, tarfile.SYMTYPE)
    refused(tmp_path / "x", tmp_path / "e", "'config.yaml' is no part")


def test_a_vault_of_a_newer_pfi_is_no_damage(home: Home, made: Path, tmp_path: Path) -> None:
    from pfi._util.sqlite import connect

    files = unpacked(made)
    (tmp_path / "v.db").write_bytes(files["vault.db"])
    key = bytes.fromhex(json.loads(files["archive.json"])["database"])
    db = connect(tmp_path / "v.db", key=key)
    db.execute("PRAGMA user_version = 99")
    db.close()
    files["vault.db"] = (tmp_path / "v.db").read_bytes()
    packed(tmp_path / "x", resigned(files, home))
    refused(tmp_path / "x", tmp_path / "e", r"x: the vault has format 99.*update pfi")


def test_nothing_is_overwritten(home: Home, made: Path, tmp_path: Path) -> None:
    before = made.read_bytes()
    with pytest.raises(StorageError, match=r"me\.pfi: the file exists"):
        write_archive(home, made, to=[str(ME.to_public())])
    assert made.read_bytes() == before
    for name in ("me", None):
        refused(made, home.path.parent, "profile 'me' exists", profile=name)
    assert len(holds(home)["records"]) == 5
    with pytest.raises(ConfigError, match="no recipient of age"):
        write_archive(home, tmp_path / "n.pfi", to=["age1nobody"])
    with pytest.raises(StorageError, match="cannot be written"):
        write_archive(home, tmp_path / "no" / "folder.pfi", to=[str(ME.to_public())])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["me.pfi", "root"]


def test_a_damaged_profile_makes_no_archive(home: Home, tmp_path: Path) -> None:
    file = home.personal_adapters.folder / "0002" / "adapter_config.json.sealed"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"adapter_config\.json\.sealed"):
        write_archive(home, tmp_path / "n.pfi", to=[str(ME.to_public())])
    assert [p.name for p in tmp_path.iterdir()] == ["root"]
    assert not list(home.path.glob(".export*"))


def test_a_ledger_of_an_older_form_moves_whole(home: Home, tmp_path: Path) -> None:
    """Hashes were taken of the text as well; a note says what such a line is once it is sealed."""
    ledger = home.open_ledger()
    lines, previous = [], "0" * 64
    for n in range(1, 4):
        text = f"say {n}"
        entry = {
            "n": n, "time": DAY.isoformat(), "device": "me", "to": "h", "kind": "teacher",
            "policy": "none", "bytes": len(text), "payload": text, "previous": previous,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }  # fmt: skip
        form = {"sort_keys": True, "separators": (",", ":")}
        previous = hashlib.sha256(json.dumps(entry, **form).encode()).hexdigest()  # type: ignore[arg-type]
        lines.append(json.dumps({**entry, "hash": previous}, **form).encode() + b"\n")  # type: ignore[arg-type]
    ledger.path.write_bytes(b"".join(lines))
    assert ledger.seal_texts(device="me") == 3
    ledger.accept()  # a file in the place of another
    write_archive(home, tmp_path / "o.pfi", to=[str(ME.to_public())])
    again = restored(tmp_path / "o.pfi", tmp_path / "e")
    moved = again.open_ledger()
    assert [e.payload for e in moved.entries()][:3] == ["say 1", "say 2", "say 3"]
    assert moved.check().entries == ledger.check().entries + 1
    assert Ledger(moved.path).check().unread == 3  # whoever has no key can check it too
    assert b"say 1" not in moved.path.read_bytes()
    with pytest.raises(StorageError, match="not empty"):
        moved.restore([lines[0][:-1]], device="me")


# The commands -------------------------------------------------------------------------


def test_the_commands(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_HOME", str(home.path.parent))
    monkeypatch.delenv("PFI_ARCHIVE_PASSPHRASE", raising=False)
    file, key = tmp_path / "me.pfi", tmp_path / "age.key"
    key.write_text(f"# created: today\n{ME}\n")
    result = run("export", "archive", str(file), "--profile", "me", code=2)
    assert "PFI_ARCHIVE_PASSPHRASE" in result.stderr and not file.exists()
    to = ["--to", str(ME.to_public())]
    result = run("export", "archive", str(file), *to, "--profile", "me")
    assert "profile me, 5 records, 3 adapters" in result.stdout
    assert "give the recipient's file" in run("restore", str(file), code=2).stderr
    result = run("restore", str(file), "--identity", str(key), code=2)
    assert "profile 'me' exists" in result.stderr
    result = run("restore", str(file), "--identity", str(key), "--profile", "new")
    assert "profile me, 5 records, 3 adapters" in result.stdout
    assert home.keys.public.hex()[:16] in result.stderr
    assert holds(open_home("new")) == holds(home)
    key.write_text("no key")
    result = run("restore", str(file), "--identity", str(key), code=2)
    assert "holds no identity" in result.stderr


def test_a_short_passphrase_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFI_HOME", str(home.path.parent))
    monkeypatch.setenv("PFI_ARCHIVE_PASSPHRASE", "abc")
    result = run("export", "archive", str(tmp_path / "x.pfi"), "--profile", "me", code=2)
    assert re.search("shorter than", result.stderr)


# Kills --------------------------------------------------------------------------------


def _die(target: str, calls: int, root: Path, file: Path, writing: bool) -> None:
    place, _, name = target.rpartition(".")
    owner = archive if place == "archive" else operator.attrgetter(place)(pfi.profile.archive)
    true, left = getattr(owner, name), [calls]

    def kill(*args: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return true(*args, **named)

    setattr(owner, name, kill)
    if writing:
        write_archive(open_home("me", root=root), file, to=[str(ME.to_public())])
    else:
        read_archive(file, "new", root=root, identities=[ME])


def killed(target: str, calls: int, root: Path, file: Path, *, writing: bool) -> None:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_die, args=(target, calls, root, file, writing))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("target", "calls"),
    [
        ("archive.copy_database", 0),
        ("archive.copy_database", 1),
        ("format.TarReader.read", 9),
        ("archive.with_signature", 0),
        ("archive.os.fsync", 0),
        ("archive.sync_folder", 0),
    ],
)
def test_killed_while_writing(home: Home, tmp_path: Path, target: str, calls: int) -> None:
    before, file = holds(home), tmp_path / "out" / "me.pfi"
    file.parent.mkdir()
    killed(target, calls, home.path.parent, file, writing=True)
    assert holds(home) == before
    if target == "archive.sync_folder":  # it was there, and whole
        assert holds(restored(file, tmp_path / "e")) == before
        file.unlink()
    assert not file.exists()
    write_archive(home, file, to=[str(ME.to_public())])
    assert holds(restored(file, tmp_path / "f")) == before
    assert not list(home.path.glob(".export-*"))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("target", "calls"),
    [
        ("archive.make_keys", 0),
        ("archive.copy_database", 0),
        ("archive.copy_database", 1),
        ("archive._take_version", 5),
        ("archive._check", 0),
        ("archive.HomeConfig.model_dump", 0),
        ("archive.sync_folder", 0),
    ],
)
def test_killed_while_restoring(
    home: Home, made: Path, tmp_path: Path, target: str, calls: int
) -> None:
    root = tmp_path / "elsewhere"
    create_home("old", root=root)
    killed(target, calls, root, made, writing=False)
    assert not (root / "new").exists()
    assert holds(restored(made, root)) == holds(home)
    assert not list(root.glob(".restore-*"))
    assert len(list((root / ".keys").iterdir())) == 2
    open_home("old", root=root).open_vault().close()


def test_sqlite_files_in_an_archive_have_a_key_of_their_own(
    home: Home, made: Path, tmp_path: Path
) -> None:
    files = unpacked(made)
    (tmp_path / "v.db").write_bytes(files["vault.db"])
    from pfi._util.sqlite import connect

    for key, opens in (
        (home.keys.database("vault"), False),
        (bytes.fromhex(json.loads(files["archive.json"])["database"]), True),
    ):
        db = connect(tmp_path / "v.db", key=key)
        if opens:
            assert db.execute("SELECT count(*) FROM records").fetchone() == (5,)
        else:
            with pytest.raises(sqlite3.DatabaseError):
                db.execute("SELECT count(*) FROM records").fetchone()
        db.close()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.pfi: cannot be read"):
        wants_passphrase(tmp_path / "missing.pfi")
