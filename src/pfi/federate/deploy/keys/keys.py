"""The server's keys: a CA, the TLS certificate that it signs, and the operator's signing key.

Private keys are made where they are used and never travel; only their owner can read them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pfi._util.files import sync_folder
from pfi.errors import ConfigError, StorageError

CA, CA_KEY = "ca.pem", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
OPERATOR, OPERATOR_KEY = "operator.pub", "operator.key"
CA_DAYS, SERVER_DAYS = 3650, 365
_HERE = ("localhost", "127.0.0.1")  # the ServerApp, on the server's own machine
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)


@dataclass(frozen=True)
class ServerKeys:
    """The files a server proves itself with."""

    ca: Path
    certificate: Path
    key: Path


def make_server_keys(folder: Path, hosts: Sequence[str], *, days: int = SERVER_DAYS) -> ServerKeys:
    """Make a CA, the server's certificate and the operator's key in a new folder.

    Args:
        folder: where to; it may exist, the files may not.
        hosts: the names and IP addresses under which devices reach the server.
        days: how long the certificate is good.

    Raises:
        ConfigError: a host is malformed, or there is none.
        StorageError: the files exist, or the folder cannot be written.
    """
    names = _alternatives(hosts)
    files = [folder / name for name in (CA, CA_KEY, SERVER, SERVER_KEY, OPERATOR, OPERATOR_KEY)]
    refuse_existing(files, "use `pfi federate keys renew` for a new certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pfi federation")])
    usage = x509.KeyUsage(*(index in (5, 6) for index in range(9)))  # signs certificates, CRLs
    ca = (
        _certificate(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    make_folder(folder)
    write_private(folder / CA_KEY, pem(key))
    write_private(folder / CA, ca.public_bytes(serialization.Encoding.PEM), mode=0o644)
    operator = ed25519.Ed25519PrivateKey.generate()
    write_private(folder / OPERATOR_KEY, pem(operator))
    public = operator.public_key().public_bytes_raw().hex()
    write_private(folder / OPERATOR, f"{public}\n".encode(), mode=0o644)
    _sign_server(folder, ca, key, names, days)
    return ServerKeys(folder / CA, folder / SERVER, folder / SERVER_KEY)


def renew_server_keys(
    folder: Path, hosts: Sequence[str] = (), *, days: int = SERVER_DAYS
) -> ServerKeys:
    """Replace the server's certificate and key; the CA stays, so devices notice nothing.

    Args:
        folder: with the keys.
        hosts: other names and addresses than now; none keeps them.
        days: how long the certificate is good.

    Raises:
        ConfigError: a host is malformed.
        StorageError: the CA is missing or damaged.
    """
    ca, key = _load_certificate(folder / CA), load_private(folder / CA_KEY)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError("holds no key of ours", where=str(folder / CA_KEY))
    if hosts:
        names = _alternatives(hosts)
    else:
        old = _load_certificate(folder / SERVER)
        names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    _sign_server(folder, ca, key, names, days)
    return ServerKeys(folder / CA, folder / SERVER, folder / SERVER_KEY)


def load_server_keys(folder: Path) -> ServerKeys:
    """The server's files, checked: they are there, fit together and are in date.

    Raises:
        StorageError: they are missing, damaged or out of date.
    """
    certificate, key = _load_certificate(folder / SERVER), load_private(folder / SERVER_KEY)
    ca = _load_certificate(folder / CA)
    where, fix = str(folder / SERVER), f"run `pfi federate keys renew {folder}`"
    if certificate.public_key() != key.public_key():
        raise StorageError("the certificate is for another key", where=where, fix=fix)
    try:
        certificate.verify_directly_issued_by(ca)
    except Exception as error:
        raise StorageError("another CA signed the certificate", where=where, fix=fix) from error
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        end = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        raise StorageError(f"the certificate is good until {end} only", where=where, fix=fix)
    return ServerKeys(folder / CA, folder / SERVER, folder / SERVER_KEY)


def expiry(path: Path) -> datetime:
    """Until when a certificate is good.

    Raises:
        StorageError: it is missing or damaged.
    """
    return _load_certificate(path).not_valid_after_utc


def write_private(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = False) -> None:
    """Write a file that from its first byte on only its owner can read.

    Raises:
        StorageError: it exists, or cannot be written.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # fails where the file exists
        sync_folder(path.parent)
    except FileExistsError as error:
        raise StorageError("exists and is not overwritten", where=str(path)) from error
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sign_server(
    folder: Path,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    days: int,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pfi federation server")])
    usage = x509.KeyUsage(*(index == 0 for index in range(9)))  # digital signatures
    certificate = (
        _certificate(subject, ca.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    write_private(folder / SERVER_KEY, pem(key), replace=True)
    data = certificate.public_bytes(serialization.Encoding.PEM)
    write_private(folder / SERVER, data, mode=0o644, replace=True)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - timedelta(hours=1)  # clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
    )


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        fix = "add --host NAME for each name or address under which devices reach the server"
        raise ConfigError("a certificate needs a host", fix=fix)
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys([*hosts, *_HERE]):
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            if not _HOST.fullmatch(host):
                fix = "give a name such as fl.example.org or an address such as 192.0.2.7"
                raise ConfigError("is no host", where=repr(host), fix=fix) from None
            names.append(x509.DNSName(host))
    return names


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """A private key as a file holds it, without a passphrase."""
    return key.private_bytes(*_PRIVATE, serialization.NoEncryption())


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read(path))
    except ValueError as error:
        raise StorageError("holds no certificate", where=str(path)) from error


def load_private(path: Path) -> Any:
    """The private key in a file.

    Raises:
        StorageError: it is missing or malformed.
    """
    try:
        return serialization.load_pem_private_key(read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError("holds no private key", where=str(path)) from error


def read(path: Path) -> bytes:
    """A file of keys.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        fix = "make keys with `pfi federate keys`"
        raise StorageError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        StorageError: it cannot be read, or is none.
    """
    try:
        values = json.loads(read(path))
    except ValueError as error:
        raise StorageError("is no JSON", where=str(path)) from error
    if not isinstance(values, dict):
        raise StorageError("holds no JSON object", where=str(path))
    return values


def refuse_existing(files: Sequence[Path], fix: str) -> None:
    """Keys are never overwritten.

    Raises:
        StorageError: one of the files exists.
    """
    for path in files:
        if path.exists():
            raise StorageError("exists and is not overwritten", where=str(path), fix=fix)


def make_folder(folder: Path) -> None:
    """Make a folder that is its owner's alone.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be made: {error.strerror}", where=str(folder)) from error
