"""Keys of a profile: what keeps them, what is refused in one clear line, and changing that."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import keyring.backend
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from killing import killed_at
from typer.testing import CliRunner, Result

from pfi.cli import key as key_command
from pfi.cli import profile as profile_command
from pfi.cli.common import OneLineErrors
from pfi.errors import ConfigError, PfiError, StorageError
from pfi.privacy.crypto.sealing import SealError, seal, unseal
from pfi.profile.home import Home
from pfi.profile.keys import unlock
from pfi.profile.keys.keys import KEYS, KeysFile, change_lock, make_keys, read_keys_file
from pfi.profile.keys.keys import unlock as unlocked
from pfi.profile.open import create_home, open_home
from pfi.records import Record

LONG = "correct horse battery"


class FakeKeyring(keyring.backend.KeyringBackend):
    """A keyring in memory."""

    priority: ClassVar[float] = 5  # type: ignore[assignment]

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.fails: str | None = None

    def _maybe_fail(self, name: str) -> None:
        if self.fails == name:
            raise RuntimeError("no bus")

    def get_password(self, service: str, username: str) -> str | None:
        self._maybe_fail("get")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._maybe_fail("set")
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._maybe_fail("delete")
        del self.kept[service, username]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 that takes no time; nothing typed before, nothing in the environment."""
    monkeypatch.setattr(unlock, "MEMORY_KIB", 64)
    monkeypatch.setattr(unlock, "ITERATIONS", 1)
    monkeypatch.setattr(unlock, "_TYPED", {})
    monkeypatch.delenv("PFI_PASSPHRASE", raising=False)
    monkeypatch.delenv("PFI_NEW_PASSPHRASE", raising=False)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> FakeKeyring:
    made = FakeKeyring()
    monkeypatch.setattr(keyring, "get_keyring", lambda: made)
    return made


def make(root: Path, lock: Any = "file", profile: str = "ana") -> Home:
    home = create_home(profile, root=root, lock=lock, passphrase=LONG)
    with home.open_vault() as vault:
        vault.add([Record("r", "LaMP_4", {"text": "a"}, "b")])
    return home


def opens(root: Path, profile: str = "ana") -> bool:
    with open_home(profile, root=root).open_vault() as vault:
        return vault.count() == 1


def one_line(error: pytest.ExceptionInfo[PfiError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


# Keys --------------------------------------------------------------------------------


def test_keys_are_derived_as_rfc_5869_says(tmp_path: Path) -> None:
    keys = make(tmp_path).keys

    def derived(info: str) -> bytes:
        salt = bytes.fromhex(keys.profile)
        return HKDF(SHA256(), 32, salt, info.encode()).derive(keys.master)

    assert keys.database("vault") == derived("pfi 1 database vault")
    assert keys.files == derived("pfi 1 files")
    names = [keys.database(name) for name in ("vault", "memory", "teacher")]
    assert len({*names, keys.files, keys.signing.private_bytes_raw(), keys.master}) == 6
    assert all(len(key) == 32 for key in names)
    Ed25519PublicKey.from_public_bytes(keys.public).verify(keys.signing.sign(b"x"), b"x")
    assert read_keys_file(tmp_path / "ana").public == keys.public.hex()
    assert keys.master.hex() not in repr(keys)


def test_profiles_share_nothing(tmp_path: Path) -> None:
    one, two = make(tmp_path).keys, make(tmp_path, profile="bo").keys
    assert one.profile != two.profile and one.master != two.master
    assert one.files != two.files and one.public != two.public


@pytest.mark.parametrize("lock", ["file", "passphrase", "keyring"])
def test_each_kind_opens_again(lock: Any, tmp_path: Path, ring: FakeKeyring) -> None:
    made = make(tmp_path, lock)
    if lock == "passphrase":
        unlock._TYPED.clear()
        os.environ["PFI_PASSPHRASE"] = LONG
    assert opens(tmp_path)
    assert unlocked(made.path).master == made.keys.master
    kept = json.loads((made.path / KEYS).read_text())
    assert kept["held"] == lock and made.keys.master.hex() not in json.dumps(kept)
    assert bool(ring.kept) is (lock == "keyring")
    assert (tmp_path / ".keys").exists() is (lock == "file")
    os.environ.pop("PFI_PASSPHRASE", None)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_only_the_owner_reads_the_keys(tmp_path: Path) -> None:
    home = make(tmp_path)
    (file,) = (tmp_path / ".keys").iterdir()
    for path in (file, file.parent, home.path / KEYS, home.path):
        assert path.stat().st_mode & 0o077 == 0, path


def test_auto_takes_the_keyring_where_one_works(
    tmp_path: Path, ring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PFI_KEY")
    assert read_keys_file(make(tmp_path, "auto").path).held == "keyring"
    ring.fails = "set"
    assert read_keys_file(make(tmp_path, "auto", "bo").path).held == "file"
    ring.fails = None
    monkeypatch.setattr(FakeKeyring, "priority", 0.5)  # as those that write plain files
    assert read_keys_file(make(tmp_path, "auto", "cy").path).held == "file"
    monkeypatch.setenv("PFI_KEY", "keyring")
    with pytest.raises(StorageError, match="no OS keyring"):
        monkeypatch.setattr(ring, "fails", "set")
        make(tmp_path, "auto", "dora")
    monkeypatch.setenv("PFI_KEY", "shoe")
    with pytest.raises(ConfigError, match="shoe"):
        make(tmp_path, "auto", "di")


def test_a_keyring_asked_for_by_name_must_work(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no OS keyring") as error:
        make(tmp_path, "keyring")
    assert "passphrase" in one_line(error)


def test_passphrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="shorter than 8"):
        create_home("x", root=tmp_path, lock="passphrase", passphrase="short")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="PFI_PASSPHRASE"):
        create_home("x", root=tmp_path, lock="passphrase")
    typed = iter([LONG, LONG + "!", LONG, LONG, "wrong one", LONG])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    monkeypatch.setattr("sys.stdin", type("T", (), {"isatty": lambda self: True})())
    with pytest.raises(ConfigError, match="differ"):
        create_home("x", root=tmp_path, lock="passphrase")
    made = create_home("x", root=tmp_path, lock="passphrase")
    unlock._TYPED.clear()
    with pytest.raises(StorageError, match="the passphrase is wrong") as error:
        open_home("x", root=tmp_path).open_vault()
    assert "nothing was changed" in one_line(error)
    open_home("x", root=tmp_path).open_vault().close()
    assert open_home("x", root=tmp_path).keys.master == made.keys.master  # not asked again
    assert next(typed, None) is None


def test_a_passphrase_is_the_same_however_its_accents_are_written(tmp_path: Path) -> None:
    home = create_home("x", root=tmp_path, lock="passphrase", passphrase="caf\u00e9 au lait")
    assert unlocked(home.path, "cafe\u0301 au lait") == home.keys


def test_argon2_costs_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    argon = unlock.Argon(salt="0" * 32, memory_kib=unlock.MEMORY_KIB, iterations=unlock.ITERATIONS)
    assert argon.memory_kib == 64 * 1024 and argon.iterations >= 3  # RFC 9106's second choice


# Refused -----------------------------------------------------------------------------


def _edit(path: Path, forge: bool, **values: Any) -> None:
    kept = json.loads((path / KEYS).read_text()) | values
    if forge:
        kept["sha256"] = KeysFile.model_validate(kept).checksum
    (path / KEYS).write_text(json.dumps(kept))


@pytest.mark.parametrize("lock", ["file", "passphrase"])
@pytest.mark.parametrize("forge", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"profile": "0" * 32},
        {"public": "1" * 64},
        {"wrapped": "00" * 65},
        {"slot": "0" * 8},
        {"held": "keyring"},
        {"argon": {"salt": "2" * 32, "memory_kib": 64, "iterations": 1, "lanes": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_edited_keys_are_refused(
    lock: Any, forge: bool, change: dict[str, Any], tmp_path: Path
) -> None:
    home = make(tmp_path, lock)
    before = (home.path / KEYS).read_bytes()
    _edit(home.path, forge, **change)
    with pytest.raises(StorageError) as error:
        unlocked(home.path, LONG)
    text = one_line(error)
    assert forge or "was changed after pfi wrote it" in text
    (home.path / KEYS).write_bytes(before)
    assert unlocked(home.path, LONG) == home.keys  # nothing was lost


def test_a_forged_profile_id_does_not_unwrap_even_with_the_right_secret(tmp_path: Path) -> None:
    """All values are bound into the wrapping, also those that nothing else checks."""
    home = make(tmp_path)
    (file,) = (tmp_path / ".keys").iterdir()
    other = "0" * 32
    file.rename(file.with_name(file.name.replace(home.keys.profile, other)))
    _edit(home.path, True, profile=other)
    with pytest.raises(StorageError, match="key file is not the one"):
        unlocked(home.path)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:40]), "damaged"),
        (lambda f: f.write_bytes(b""), "damaged"),
        (lambda f: f.write_text("[]"), "damaged"),
        (lambda f: f.write_text('{"format": 2, "new": 1}'), "format 2.*update pfi"),
        (lambda f: f.unlink(), "keys of this profile are missing.*restore"),
    ],
    ids=["cut", "empty", "other", "newer", "missing"],
)
def test_keys_that_cannot_be_read(harm: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    home = make(tmp_path)
    file = home.path / KEYS
    before = file.read_bytes()
    harm(file)
    with pytest.raises(StorageError, match=says) as error:
        open_home("ana", root=tmp_path).open_vault()
    one_line(error)
    assert file.exists() is ("missing" not in says)  # no new keys over the old vault
    file.write_bytes(before)
    assert opens(tmp_path)


def test_a_key_file_that_is_missing_damaged_or_anothers(tmp_path: Path) -> None:
    home = make(tmp_path)
    (file,) = (tmp_path / ".keys").iterdir()
    right = file.read_text()
    cases = {"missing": None, "damaged": "xyz", "not the one": "ab" * 32 + "\n", "or is": "ab"}
    for says, text in cases.items():
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        with pytest.raises(StorageError, match=says) as error:
            open_home("ana", root=tmp_path).open_vault()
        assert ".key" in one_line(error) or KEYS in one_line(error)
    file.write_text(right)
    assert opens(tmp_path) and unlocked(home.path) == home.keys


def test_a_keyring_that_is_gone_or_empty(
    tmp_path: Path, ring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "keyring")
    ring.fails = "get"
    with pytest.raises(StorageError, match="does not answer: no bus"):
        open_home("ana", root=tmp_path).open_vault()
    ring.fails, kept = None, dict(ring.kept)
    ring.kept.clear()
    with pytest.raises(StorageError, match="has no key of this profile"):
        open_home("ana", root=tmp_path).open_vault()
    ring.kept.update(kept)
    with monkeypatch.context() as patch:
        patch.setattr(unlock, "find_keyring", lambda: None)
        with pytest.raises(StorageError, match="does not work here"):
            open_home("ana", root=tmp_path).open_vault()
    assert opens(tmp_path)


def test_another_profiles_keys_open_nothing(tmp_path: Path) -> None:
    ana, bo = make(tmp_path), make(tmp_path, profile="bo")
    ana.open_ledger().append(device="ana", to="x", kind="call", policy="none", payload="hi")
    with ana.open_teacher_store(), ana.open_memory_store():
        pass
    for file in ("vault.db", "teacher.db", "ledger.jsonl"):
        (bo.path / file).write_bytes((ana.path / file).read_bytes())
    with pytest.raises(StorageError, match="another profile's"):
        bo.open_vault()
    with pytest.raises(StorageError, match="another profile's"):
        bo.open_teacher_store()
    with pytest.raises(StorageError, match=r"does not open.*another profile's"):
        list(bo.open_ledger().entries())
    with pytest.raises(SealError):
        unseal(bo.keys.files, seal(ana.keys.files, b"x", "c"), "c")
    (bo.path / KEYS).write_bytes((ana.path / KEYS).read_bytes())
    assert opens(tmp_path, "bo")  # with Ana's keys and secret it is Ana's


# Changing ----------------------------------------------------------------------------


def test_every_kind_can_become_every_other(tmp_path: Path, ring: FakeKeyring) -> None:
    home = make(tmp_path)
    phrase = None
    kinds: list[Any] = ["passphrase", "passphrase", "file", "file", "keyring", "keyring"]
    for number, kind in enumerate([*kinds, "passphrase", "keyring", "file"]):
        new = f"phrase number {number}"
        before = (home.path / KEYS).read_bytes()
        unlock._TYPED.clear()
        keys = change_lock(home.path, kind, passphrase=phrase, new=new)
        assert keys == home.keys and (home.path / KEYS).read_bytes() != before
        phrase = new if kind == "passphrase" else None
        assert unlocked(home.path, phrase) == home.keys
        assert len(ring.kept) == (kind == "keyring")
        assert len(list((tmp_path / ".keys").iterdir())) == (kind == "file")
    assert opens(tmp_path)


def test_a_change_that_is_refused_leaves_all_as_it_was(tmp_path: Path) -> None:
    home = make(tmp_path, "passphrase")
    before = (home.path / KEYS).read_bytes()
    with pytest.raises(StorageError, match="passphrase is wrong"):
        change_lock(home.path, "file", passphrase="not this one")
    with pytest.raises(ConfigError, match="shorter"):
        change_lock(home.path, "passphrase", passphrase=LONG, new="x")
    with pytest.raises(StorageError, match="no OS keyring"):
        change_lock(home.path, "keyring", passphrase=LONG)
    assert (home.path / KEYS).read_bytes() == before and not list(tmp_path.glob(".keys/*"))


def test_a_copy_of_the_profile_keeps_its_key_file(tmp_path: Path) -> None:
    home = make(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / KEYS).write_bytes((home.path / KEYS).read_bytes())
    change_lock(home.path, "passphrase", new=LONG)
    assert unlocked(copy) == home.keys
    change_lock(home.path, "file", passphrase=LONG)
    assert unlocked(copy) == home.keys == unlocked(home.path)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("to", ["file", "passphrase"])
def test_killed_while_changing_at_any_point(to: Any, tmp_path: Path) -> None:
    home, point = make(tmp_path), 0
    while killed_at(point, lambda: change_lock(home.path, to, new=LONG)):
        assert unlocked(home.path, LONG) == home.keys, point
        change_lock(home.path, "file", passphrase=LONG)
        assert len(list((tmp_path / ".keys").glob("*.key"))) == 1
        point += 1
    assert point >= 6 and unlocked(home.path, LONG) == home.keys
    assert len(list((tmp_path / ".keys").glob("*.key"))) == (to == "file")


def test_keys_are_made_once(tmp_path: Path) -> None:
    """Making a home that a kill left half made keeps its keys, so that its vault opens."""
    home = make(tmp_path)
    (home.path / "config.yaml").unlink()
    again = create_home("ana", root=tmp_path)
    assert again.keys == home.keys and opens(tmp_path)
    half = tmp_path / "half"
    half.mkdir()
    made = make_keys(half, "file")
    assert create_home("half", root=tmp_path).keys == made


# The command line --------------------------------------------------------------------


def pfi(*arguments: str, code: int = 0) -> Result:
    app = typer.Typer(cls=OneLineErrors)
    key_command.register(app)
    profile_command.register(app)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    done = pfi("init", "--key", "passphrase")
    assert "passphrase that is stored nowhere" in done.stdout
    shown = json.loads(pfi("key", "show", "--json").stdout)
    assert shown["held"] == "passphrase" and shown["profile"] in pfi("key", "show").stdout
    assert json.loads(pfi("status", "--json").stdout)["keys"]["held"] == "passphrase"
    done = pfi("key", "change", "--to", "file")
    assert "held in the file" in done.stdout and ".keys" in done.stdout
    assert "held in the file" in pfi("status").stdout
    monkeypatch.setenv("PFI_NEW_PASSPHRASE", "another long one")
    monkeypatch.setenv("PFI_PASSPHRASE", "")
    pfi("key", "change", "--to", "passphrase")
    unlock._TYPED.clear()
    monkeypatch.setenv("PFI_PASSPHRASE", LONG)
    wrong = pfi("names", code=2)
    assert wrong.stderr.startswith("error: ") and "passphrase is wrong" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    monkeypatch.setenv("PFI_PASSPHRASE", "another long one")
    assert pfi("names", "Maria Lopes", "Jo").stdout == "Maria Lopes\nJo\n"
    assert pfi("names", "--remove", "Jo").stdout == pfi("names").stdout == "Maria Lopes\n"
    assert "no OS keyring" in pfi("key", "change", "--to", "keyring", code=2).stderr
