"""Who takes part: devices' keys, made on each device, and the operator's list of them.

The server knows nodes by ECDSA P-384 keys, as Flower's node authentication has them; devices know
one another by Ed25519 keys in a roster that the operator signs, with which they sign in secure
aggregation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pfi._util.files import locked, write_atomic, write_json
from pfi.errors import ConfigError, FederationError, PfiError, StorageError
from pfi.federate.deploy.keys.keys import (
    OPERATOR_KEY,
    load_private,
    make_folder,
    pem,
    read_object,
    refuse_existing,
)
from pfi.federate.deploy.keys.sealed import KeySeal, read_key, write_key
from pfi.federate.secure.roster import Roster

NODES, ROSTER = "nodes.json", "roster.json"
NODE_KEY, DEVICE_KEY, PUBLIC = "node.key", "device.key", "public.json"
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class PublicKeys:
    """What a device shows of its keys.

    Attributes:
        client: its name in the federation.
        node: its ECDSA key as OpenSSH writes it.
        device: its Ed25519 key, 64 hex digits.
    """

    client: str
    node: str
    device: str

    def pem(self) -> bytes:
        """The node's key as the SuperLink wants it.

        Raises:
            FederationError: it is no ECDSA key on a NIST curve.
        """
        try:
            key = serialization.load_ssh_public_key(self.node.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise FederationError(f"the node key of {self.client!r} is malformed") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise FederationError(f"the node key of {self.client!r} is no ECDSA key")
        return key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@dataclass(frozen=True)
class Nodes:
    """The registered devices.

    Attributes:
        federation: its name.
        server: its host and port, as devices reach it.
        serial: rises with every change.
        clients: public keys by name.
    """

    federation: str
    server: str
    serial: int = 0
    clients: Mapping[str, PublicKeys] = field(default_factory=dict)


def make_device_keys(
    folder: Path, client: str, *, renew: bool = False, under: KeySeal | None = None
) -> PublicKeys:
    """Make a device's two private keys, and `public.json` to give to the operator.

    Args:
        folder: the device's own; only its owner can read what is written.
        client: the device's name in the federation.
        renew: replace keys that exist.
        under: what the private keys are sealed with; None leaves them plain, as a device without a
            profile has them.

    Raises:
        ConfigError: the name is not allowed.
        StorageError: keys exist, or the folder cannot be written.
    """
    check_client(client)
    files = [folder / name for name in (NODE_KEY, DEVICE_KEY, PUBLIC)]
    if not renew:
        refuse_existing(files, "use them, or replace them with --renew")
    node, device = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
    make_folder(folder)
    openssh = node.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_key(folder / NODE_KEY, openssh, under, replace=renew)
    write_key(folder / DEVICE_KEY, pem(device), under, replace=renew)
    ssh = node.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    keys = PublicKeys(client, ssh.decode(), device.public_key().public_bytes_raw().hex())
    write_json(folder / PUBLIC, {"client": client, "node": keys.node, "device": keys.device})
    return keys


def read_public(path: Path) -> PublicKeys:
    """The public keys in a file that a device made.

    Raises:
        StorageError: it is missing or malformed.
    """
    try:
        return _checked(read_object(path))
    except (ConfigError, FederationError) as error:
        fix = "have the device make it anew with `pfi federate keys device`"
        raise StorageError(error.what, where=str(path), fix=fix) from error


def create_nodes(folder: Path, federation: str, server: str) -> None:
    """Start the lists of a new federation, empty.

    Args:
        folder: with the server's keys.
        federation: its name.
        server: its host and port, as devices reach it.

    Raises:
        ConfigError: its name is not allowed.
        StorageError: there are lists, or the operator's key is missing.
    """
    check_client(federation)
    refuse_existing([folder / NODES, folder / ROSTER], "choose another folder")
    _write_nodes(folder, Nodes(federation, server))


def register(folder: Path, keys: PublicKeys, *, replace: bool = False) -> Nodes:
    """Let a device take part: add its keys to `nodes.json` and to the signed `roster.json`.

    Raises:
        FederationError: its name, or its key under another name, is registered.
        StorageError: the files are damaged or cannot be written.
    """
    with locked(folder / ".nodes.lock"):
        nodes = read_nodes(folder)
        if keys.client in nodes.clients and not replace:
            fix = "choose another name, or add --replace if the device has new keys"
            raise FederationError("the name is registered", where=keys.client, fix=fix)
        for other in nodes.clients.values():
            shared = other.node == keys.node or other.device == keys.device
            if other.client != keys.client and shared:
                what = f"its key is registered as {other.client!r}"
                raise FederationError(what, where=keys.client, fix="give each device its own keys")
        return _changed(folder, nodes, {**nodes.clients, keys.client: keys})


def unregister(folder: Path, client: str) -> Nodes:
    """Take a device out; a running server refuses it from then on.

    Raises:
        FederationError: it is not registered.
        StorageError: the files are damaged or cannot be written.
    """
    with locked(folder / ".nodes.lock"):
        nodes = read_nodes(folder)
        left = {name: keys for name, keys in nodes.clients.items() if name != client}
        if len(left) == len(nodes.clients):
            raise FederationError("no such device is registered", where=client)
        return _changed(folder, nodes, left)


def read_nodes(folder: Path) -> Nodes:
    """The registered devices.

    Raises:
        StorageError: the list is missing or damaged.
    """
    path = folder / NODES
    values = read_object(path)
    try:
        listed = [_checked({"client": name, **keys}) for name, keys in values["clients"].items()]
        clients = {keys.client: keys for keys in listed}
        return Nodes(values["federation"], values["server"], int(values["serial"]), clients)
    except (LookupError, TypeError, ValueError, AttributeError, PfiError) as error:
        raise StorageError(f"the list is damaged: {error}", where=str(path)) from error


def load_node_key(path: Path, under: KeySeal | None = None) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises:
        StorageError: it is missing or malformed, sealed for another, or others can read it.
    """
    return parse_node_key(read_key(path, under), str(path))


def parse_node_key(data: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """A node's private key as OpenSSH writes it.

    Raises:
        StorageError: it is none.
    """
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError("holds no node key", where=where) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError("holds no ECDSA key", where=where)
    return key


def load_device_key(path: Path, under: KeySeal | None = None) -> ed25519.Ed25519PrivateKey:
    """The private key with which a device signs in secure aggregation.

    Raises:
        StorageError: it is missing or malformed, sealed for another, or others can read it.
    """
    try:
        key = serialization.load_pem_private_key(read_key(path, under), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError("holds no private key", where=str(path)) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise StorageError("holds no Ed25519 key", where=str(path))
    return key


def check_client(name: str) -> None:
    """Refuse a name that no client may have.

    Raises:
        ConfigError: letters, digits, `_`, `.` and `-` only, at most 64.
    """
    if not isinstance(name, str) or not _CLIENT.fullmatch(name):
        fix = "use letters, digits, `_`, `.` and `-`, at most 64"
        raise ConfigError("is no name for a client", where=repr(name), fix=fix)


def _checked(values: Mapping[str, object]) -> PublicKeys:
    """Keys as a file holds them; FederationError or ConfigError where they make no sense."""
    try:
        keys = PublicKeys(*(str(values[name]) for name in ("client", "node", "device")))
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys.device))
    except (LookupError, TypeError, ValueError) as error:
        raise FederationError("holds no public keys of a device") from error
    check_client(keys.client)
    keys.pem()
    return keys


def _changed(folder: Path, nodes: Nodes, clients: Mapping[str, PublicKeys]) -> Nodes:
    nodes = replace(nodes, serial=nodes.serial + 1, clients=clients)
    _write_nodes(folder, nodes)
    return nodes


def _write_nodes(folder: Path, nodes: Nodes) -> None:
    operator = load_private(folder / OPERATOR_KEY)
    if not isinstance(operator, ed25519.Ed25519PrivateKey):
        raise StorageError("holds no Ed25519 key", where=str(folder / OPERATOR_KEY))
    ordered = [nodes.clients[name] for name in sorted(nodes.clients)]
    roster = {keys.client: bytes.fromhex(keys.device) for keys in ordered}
    signed = Roster(roster, nodes.federation, nodes.serial).signed(operator)
    write_atomic(folder / ROSTER, signed)
    listed = {keys.client: {"node": keys.node, "device": keys.device} for keys in ordered}
    about = {"federation": nodes.federation, "server": nodes.server, "serial": nodes.serial}
    write_json(folder / NODES, {**about, "clients": listed})
