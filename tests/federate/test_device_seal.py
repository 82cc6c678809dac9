"""A device's private keys are sealed with its profile's key, and reach the link through a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.errors import StorageError
from pfi.federate.deploy.keys.keys import load_private
from pfi.federate.deploy.keys.nodes import (
    DEVICE_KEY,
    NODE_KEY,
    load_device_key,
    load_node_key,
    make_device_keys,
    read_public,
)
from pfi.federate.deploy.keys.sealed import KeySeal
from pfi.privacy.crypto.sealing import is_sealed
from pfi.profile.open import create_home, open_home

MINE, OTHER = KeySeal("a" * 32, b"k" * 32), KeySeal("b" * 32, b"k" * 32)


def test_sealed_keys_open_with_their_profile_only(tmp_path: Path) -> None:
    public = make_device_keys(tmp_path, "phone", under=MINE)
    for name in (NODE_KEY, DEVICE_KEY):
        data = (tmp_path / name).read_bytes()
        assert is_sealed(data) and b"PRIVATE" not in data
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert load_node_key(tmp_path / NODE_KEY, MINE).key_size == 384
    device = load_device_key(tmp_path / DEVICE_KEY, MINE)
    assert device.public_key().public_bytes_raw().hex() == public.device
    for under in (None, OTHER, KeySeal(MINE.profile, b"x" * 32)):
        with pytest.raises(StorageError, match=NODE_KEY):
            load_node_key(tmp_path / NODE_KEY, under)
        with pytest.raises(StorageError, match=DEVICE_KEY):
            load_device_key(tmp_path / DEVICE_KEY, under)
    with pytest.raises(StorageError, match="no private key"):
        load_private(tmp_path / DEVICE_KEY)


def test_a_sealed_key_does_not_open_in_the_place_of_another(tmp_path: Path) -> None:
    make_device_keys(tmp_path, "phone", under=MINE)
    shutil.copy(tmp_path / DEVICE_KEY, tmp_path / NODE_KEY)
    with pytest.raises(StorageError, match="is another's"):
        load_node_key(tmp_path / NODE_KEY, MINE)


def test_plain_keys_of_an_older_pfi_are_sealed_when_they_are_read(tmp_path: Path) -> None:
    public = make_device_keys(tmp_path, "phone")
    plain = (tmp_path / NODE_KEY).read_bytes()
    before = load_node_key(tmp_path / NODE_KEY)
    assert (tmp_path / NODE_KEY).read_bytes() == plain, "without a profile it stays"
    after = load_node_key(tmp_path / NODE_KEY, MINE)
    assert is_sealed((tmp_path / NODE_KEY).read_bytes())
    assert before.private_numbers() == after.private_numbers()
    load_device_key(tmp_path / DEVICE_KEY, MINE)
    assert is_sealed((tmp_path / DEVICE_KEY).read_bytes())
    assert load_node_key(tmp_path / NODE_KEY, MINE).private_numbers() == before.private_numbers()
    (tmp_path / DEVICE_KEY).chmod(0o640)
    with pytest.raises(StorageError, match="others can read"):
        load_device_key(tmp_path / DEVICE_KEY, MINE)
    assert public.client == "phone"


def test_the_command_makes_sealed_keys_and_a_copied_home_is_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    home = create_home("work", root=tmp_path / "root", lock="file")
    run = CliRunner().invoke
    made = run(app, ["federate", "keys", "device", "--name", "phone-7", "--profile", "work"])
    assert made.exit_code == 0, made.output
    folder = home.path / "federate"
    assert read_public(folder / "public.json").client == "phone-7"
    under = KeySeal.of(open_home("work", root=tmp_path / "root").keys)
    load_node_key(folder / NODE_KEY, under)
    shutil.copytree(home.path, tmp_path / "thief" / "work")
    for name in (NODE_KEY, DEVICE_KEY):
        assert is_sealed((tmp_path / "thief" / "work" / "federate" / name).read_bytes())
    # For Flower's own SuperNode it can be written out, on purpose.
    plain = tmp_path / "node.pem"
    command = ["federate", "keys", "supernode", str(plain), "--profile", "work"]
    assert run(app, command).exit_code == 0
    assert plain.stat().st_mode & 0o777 == 0o600
    wanted = load_node_key(folder / NODE_KEY, under).private_numbers()
    assert load_node_key(plain).private_numbers() == wanted
    assert run(app, command).exit_code == 2, "not overwritten"


@pytest.mark.parametrize(
    ("key", "why"),
    [(b"nonsense", "standard input: holds no node key"), (None, "the CA's file holds no cert")],
)
def test_a_link_takes_its_key_from_standard_input(
    key: bytes | None,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("flwr", reason="the extra `federate` is not installed")
    from pfi.federate.deploy.agent.link import main

    make_device_keys(tmp_path, "plain")
    key = key or (tmp_path / NODE_KEY).read_bytes()
    (tmp_path / "ca.pem").write_text("nonsense")
    arguments = ["--server", "localhost:1", "--ca", str(tmp_path / "ca.pem"), "--agent", "none"]
    monkeypatch.setattr(sys, "argv", ["link", *arguments, "--parent", "1"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(key)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert why in capsys.readouterr().err
