"""Keys of a federation: private, checked, never overwritten; who is registered, and the roster."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from pfi.errors import ConfigError, FederationError, StorageError
from pfi.federate.deploy.keys.keys import (
    CA,
    CA_KEY,
    OPERATOR,
    OPERATOR_KEY,
    SERVER,
    SERVER_KEY,
    load_server_keys,
    make_server_keys,
    renew_server_keys,
)
from pfi.federate.deploy.keys.nodes import (
    DEVICE_KEY,
    NODE_KEY,
    PUBLIC,
    ROSTER,
    create_nodes,
    load_node_key,
    make_device_keys,
    read_nodes,
    read_public,
    register,
    unregister,
)
from pfi.federate.secure.roster import Roster


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_server_keys(folder, ["fl.example.org", "192.0.2.7"])
    create_nodes(folder, "club", "fl.example.org:9092")
    return folder


def test_server_keys_are_private_and_never_overwritten(keys: Path) -> None:
    for name in (CA_KEY, SERVER_KEY, OPERATOR_KEY):
        assert (keys / name).stat().st_mode & 0o777 == 0o600, name
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    with pytest.raises(StorageError, match="not overwritten"):
        make_server_keys(keys, ["other.example.org"])
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before
    assert not [name for name in before if "tmp" in name]


def test_a_client_trusts_the_named_hosts_only(keys: Path) -> None:
    load_server_keys(keys)
    for host in ("fl.example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        assert _handshake(keys, keys / CA, host) is None
    assert "mismatch" in (_handshake(keys, keys / CA, "evil.example.org") or "")
    other = keys.parent / "other"
    make_server_keys(other, ["fl.example.org"])
    assert "unable to get" in (_handshake(keys, other / CA, "fl.example.org") or "")


def test_a_renewed_certificate_is_of_the_same_ca_and_hosts(keys: Path) -> None:
    before = (keys / SERVER).read_bytes(), (keys / SERVER_KEY).read_bytes()
    ca = (keys / CA).read_bytes()
    renew_server_keys(keys)
    load_server_keys(keys)
    assert (keys / CA).read_bytes() == ca
    assert (keys / SERVER).read_bytes() != before[0]
    assert (keys / SERVER_KEY).read_bytes() != before[1]
    assert (keys / SERVER_KEY).stat().st_mode & 0o777 == 0o600
    assert _handshake(keys, keys / CA, "192.0.2.7") is None
    renew_server_keys(keys, ["new.example.org"])
    assert _handshake(keys, keys / CA, "new.example.org") is None
    assert _handshake(keys, keys / CA, "fl.example.org") is not None


def test_what_is_wrong_with_server_keys_is_said(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a host"):
        make_server_keys(tmp_path / "a", [])
    for host in ("https://x", "a:9092", "a b", "-a", ""):
        with pytest.raises(ConfigError, match="is no host"):
            make_server_keys(tmp_path / "a", [host])
    assert not (tmp_path / "a").exists()
    with pytest.raises(StorageError, match="cannot be read"):
        load_server_keys(tmp_path / "a")
    renew_server_keys(keys, days=0)
    with pytest.raises(StorageError, match="good until"):
        load_server_keys(keys)
    renew_server_keys(keys)
    good = (keys / SERVER).read_bytes()
    renew_server_keys(keys)
    (keys / SERVER).write_bytes(good)
    with pytest.raises(StorageError, match="for another key"):
        load_server_keys(keys)
    renew_server_keys(keys)
    other = tmp_path / "other"
    make_server_keys(other, ["x.org"])
    (keys / CA).write_bytes((other / CA).read_bytes())
    with pytest.raises(StorageError, match="another CA"):
        load_server_keys(keys)


def test_device_keys_stay_on_the_device(keys: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    made = make_device_keys(device, "phone-7")
    assert device.stat().st_mode & 0o777 == 0o700
    for name in (NODE_KEY, DEVICE_KEY):
        assert (device / name).stat().st_mode & 0o777 == 0o600
        secret = (device / name).read_text().splitlines()[1]
        assert secret not in (device / PUBLIC).read_text()
    assert read_public(device / PUBLIC) == made
    public = load_node_key(device / NODE_KEY).public_key()
    assert public.key_size == 384
    with pytest.raises(StorageError, match="not overwritten"):
        make_device_keys(device, "phone-7")
    assert make_device_keys(device, "phone-7", renew=True) != made
    (device / NODE_KEY).chmod(0o644)
    with pytest.raises(StorageError, match="others can read"):
        load_node_key(device / NODE_KEY)
    for name in ("", "a b", "../x", "x" * 65, "a\n"):
        with pytest.raises(ConfigError, match="no name for a client"):
            make_device_keys(tmp_path / "z", name)


def test_registering_makes_a_signed_roster(keys: Path, tmp_path: Path) -> None:
    first = make_device_keys(tmp_path / "1", "first")
    second = make_device_keys(tmp_path / "2", "second")
    register(keys, first)
    register(keys, second)
    operator = bytes.fromhex((keys / OPERATOR).read_text())
    roster = Roster.read((keys / ROSTER).read_bytes(), operator, "club")
    assert dict(roster) == {n.client: bytes.fromhex(n.device) for n in (first, second)}
    assert roster.serial == 2
    with pytest.raises(FederationError, match="the name is registered"):
        register(keys, first)
    with pytest.raises(FederationError, match="registered as 'first'"):
        register(keys, type(first)("third", first.node, second.device[::-1]))
    changed = make_device_keys(tmp_path / "1", "first", renew=True)
    register(keys, changed, replace=True)
    assert read_nodes(keys).clients["first"] == changed
    unregister(keys, "second")
    assert list(read_nodes(keys).clients) == ["first"]
    roster = Roster.read((keys / ROSTER).read_bytes(), operator, "club", newest=4)
    assert list(roster) == ["first"]
    with pytest.raises(FederationError, match="no such device"):
        unregister(keys, "second")


@pytest.mark.parametrize(
    "change",
    [
        {"node": "ssh-ed25519 AAAA"},
        {"node": "nonsense"},
        {"device": "12"},
        {"device": "zz" * 32},
        {"client": "../x"},
        {"client": None},
        {"node": None},
    ],
)
def test_public_keys_that_make_no_sense_are_refused(
    keys: Path, tmp_path: Path, change: dict[str, str | None]
) -> None:
    make_device_keys(tmp_path / "d", "phone-7")
    path = tmp_path / "d" / PUBLIC
    values = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(StorageError, match=PUBLIC):
        read_public(path)


def _handshake(keys: Path, ca: Path, host: str) -> str | None:
    """What a client that trusts `ca` says of the server's certificate; None if it is content."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / SERVER, keys / SERVER_KEY)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(ca)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=host)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    assert one.version() in ("TLSv1.2", "TLSv1.3")
    return None
