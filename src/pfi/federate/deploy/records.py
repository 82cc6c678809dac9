"""How a message of ours lies in a Flower message: bytes and an id, or why there are none."""

from __future__ import annotations

import hashlib

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from pfi.errors import FederationError

ABOUT, DATA = "about", "data"
_STYPE = "pfi.message"


def pack(data: bytes, *, id: str = "", largest: int = 0) -> RecordDict:
    """Content that carries `data`; Flower sends it in pieces.

    Args:
        data: the message.
        id: of a question and its reply.
        largest: of a question, the bytes that its reply may have; 0 says nothing.
    """
    array = Array("uint8", (len(data),), _STYPE, data)
    about = ConfigRecord({"id": id, "sha256": hashlib.sha256(data).hexdigest()})
    if largest:
        about["largest"] = largest
    return RecordDict({ABOUT: about, DATA: ArrayRecord({DATA: array})})


def pack_failure(why: str) -> RecordDict:
    """Content that says why there is no reply."""
    return RecordDict({ABOUT: ConfigRecord({"failure": why})})


def largest_reply(message: Message) -> int | None:
    """The bytes that a reply to a question may have, where it says."""
    about = message.content.config_records.get(ABOUT, ConfigRecord())
    largest = about.get("largest")
    return largest if isinstance(largest, int) and largest > 0 else None


def unpack(message: Message) -> tuple[str, bytes]:
    """The id and the bytes in a message.

    Raises:
        FederationError: it carries a failure, or is malformed.
    """
    if message.has_error():
        raise FederationError(message.error.reason or f"Flower's error {message.error.code}")
    about = message.content.config_records.get(ABOUT, ConfigRecord())
    failure, id_ = about.get("failure"), about.get("id")
    if isinstance(failure, str):
        raise FederationError(failure)
    record = message.content.array_records.get(DATA)
    array = record.get(DATA) if record is not None else None
    if array is None or array.stype != _STYPE or not isinstance(id_, str):
        raise FederationError("a Flower message holds no message of ours")
    if about.get("sha256") != hashlib.sha256(array.data).hexdigest():
        raise FederationError("a message was damaged on its way")
    return id_, array.data
