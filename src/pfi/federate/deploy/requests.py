"""A device signs each of its requests whole: what it is, to where, what it carries, and once.

Flower's node authentication signs the time alone, so that its header would do for any request for
five minutes.  Beside it, our link signs method, path, time, a nonce and the body with the same key;
the server takes no request without that, and none twice.
"""

from __future__ import annotations

import binascii
import datetime
import hashlib
import json
import secrets
import threading
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.date import now
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    sign_message,
    verify_signature,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

SIGNATURE, NONCE = "pfi-signature", "pfi-nonce"
_PURPOSE = "pfi request 1"
_NONCE_BYTES = 16
_MOST_NONCES = 1 << 20  # remembered; more requests in five minutes are not taken


def claim(method: str, path: str, timestamp: str, nonce: str, body: bytes) -> bytes:
    """What is signed; JSON, so that no part can end in another."""
    digest = hashlib.sha256(body).hexdigest()
    return json.dumps([_PURPOSE, method, path, timestamp, nonce, digest]).encode()


class RequestSigner:
    """Signs requests, after Flower's interceptor has put the time into them.

    Args:
        key: the node's.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign one and let it go."""
        request, nonce = context.request, secrets.token_hex(_NONCE_BYTES)
        timestamp = request.headers[TIMESTAMP_HEADER]
        signed = claim(request.method, request.url.path, timestamp, nonce, request.content)
        signature = b64encode(sign_message(self._key, signed)).decode("ascii")
        add_headers(request, {NONCE: nonce, SIGNATURE: signature})
        return call_next(context)


class RequestVerifier:
    """Says why a request is not taken.

    Args:
        clock: the time now.

    Attributes:
        required: refuse requests without such a signature, as Flower's own SuperNode sends them.
    """

    def __init__(self, clock: Callable[[], datetime.datetime] = now) -> None:
        self.required, self._clock = True, clock
        self._keys: frozenset[bytes] = frozenset()
        self._lock = threading.Lock()
        self._nonces: set[tuple[bytes, str]] = set()
        self._order: deque[tuple[datetime.datetime, tuple[bytes, str]]] = deque()

    def admit(self, keys: Iterable[bytes]) -> None:
        """Take requests of these keys, PEM, and of no others."""
        self._keys = frozenset(keys)

    def refusal(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> str | None:
        """Why a request is not taken; None if it is.

        Args:
            method, path: of the request.
            headers: with names in small letters.
            body: as it was sent.
        """
        if not self.required and SIGNATURE not in headers:
            return None
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower()], validate=True)
            signature = b64decode(headers[SIGNATURE], validate=True)
            timestamp, nonce = headers[TIMESTAMP_HEADER.lower()], headers[NONCE]
            age = (self._clock() - datetime.datetime.fromisoformat(timestamp)).total_seconds()
        except (KeyError, ValueError, TypeError, binascii.Error):
            return "it is not signed whole"
        if key not in self._keys:
            return "its key is not registered"
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return "its time is not now"
        if len(nonce) != 2 * _NONCE_BYTES:
            return "its nonce is of another length"
        signed = claim(method, path, timestamp, nonce, body)
        if not verify_signature(bytes_to_public_key(key), signed, signature):
            return "its signature is of another request"
        return None if self._is_new(key, nonce) else "it was sent before"

    def _is_new(self, key: bytes, nonce: str) -> bool:
        """Note a nonce; whether it was not there, for as long as its request is in time."""
        current, entry = self._clock(), (key, nonce)
        kept = datetime.timedelta(seconds=TIMESTAMP_TOLERANCE + 2 * SYSTEM_TIME_TOLERANCE)
        with self._lock:
            while self._order and current - self._order[0][0] > kept:
                self._nonces.discard(self._order.popleft()[1])
            if entry in self._nonces or len(self._nonces) >= _MOST_NONCES:
                return False
            self._nonces.add(entry)
            self._order.append((current, entry))
            return True
