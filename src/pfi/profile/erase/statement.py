"""The signed statement of an erasure: what was asked, what went from where, what cannot be undone.

It holds no text: records are told by fingerprint.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pfi._util.files import write_json
from pfi.errors import DataError, StorageError
from pfi.privacy.crypto.signing import SIGNATURE, with_signature, without_signature
from pfi.privacy.ledger.entries import Updates
from pfi.profile.home import Home
from pfi.profile.keys.keys import Keys

FOLDER = "erasures"  # of a home, where its statements are
FORMAT = 1
PURPOSE = "pfi erasure"
#: More fingerprints than these are not written down.
_LISTED = 1000
#: What no erasure on a device reaches.
_BEYOND = (
    "what has left the device, copies of the profile and files exported from it, and what the "
    "disk itself keeps of files that are gone"
)


def asked(by: str, fingerprints: Collection[str]) -> dict[str, Any]:
    """What was asked for.

    Args:
        by: how records were named, e.g. `records`, `source` or `all`.
        fingerprints: of their ids.
    """
    found: dict[str, Any] = {"by": by, "records": len(fingerprints)}
    if len(fingerprints) <= _LISTED:
        found["fingerprints"] = sorted(fingerprints)
    return found


def sent(
    home: Home, tells: Callable[[Collection[str] | None], bool], since: datetime | None
) -> dict[str, Any]:
    """What has left the device and cannot be called back, counted from the ledger.

    Args:
        home: the device.
        tells: whether what shows the records of some fingerprints tells of an erased one.
        since: updates from then on may have learnt from them; None counts none.

    Raises:
        StorageError: the ledger is damaged.
    """
    texts: Counter[str] = Counter()
    updates: Counter[str] = Counter()
    known = Updates()
    for entry in home.open_ledger().entries():
        if entry.kind == "teacher" and tells(entry.shows):
            texts[entry.to] += 1
        elif known.carried(entry) and since and datetime.fromisoformat(entry.time) >= since:
            updates[entry.to] += 1
    return {"texts to teachers": dict(texts), "updates": dict(updates), "beyond": _BEYOND}


def write(home: Home, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Sign a statement and keep it in the home; one of the same name is replaced.

    Raises:
        OSError: it cannot be written.
    """
    statement = signed(home.keys, told)
    write_json(home.path / FOLDER / f"{name}.json", statement)
    return statement


def signed(keys: Keys, told: Mapping[str, Any]) -> dict[str, Any]:
    """The statement of a profile, as of now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    head = {"format": FORMAT, "what": PURPOSE, "profile": keys.profile, "time": now}
    content = {**head, **told, "public": keys.public.hex()}
    return with_signature(keys.signing, PURPOSE, content)


def check(path: Path) -> dict[str, Any]:
    """A statement in a file, whose signature is that of the key that it names.

    Raises:
        DataError: it is no statement, or was changed.
    """
    fix = "ask for it again where it was made"
    try:
        found = json.loads(path.read_bytes())
        if found["what"] != PURPOSE or not isinstance(found["format"], int):
            raise ValueError("another file")
        public = bytes.fromhex(found["public"])
    except FileNotFoundError as error:
        raise DataError("there is no such file", path=path) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("this is no statement of an erasure", path=path, fix=fix) from error
    if found["format"] > FORMAT:
        what = f"the statement has format {found['format']}, this pfi reads up to {FORMAT}"
        raise DataError(what, path=path, fix="update pfi")
    if without_signature(public, PURPOSE, found) is None:
        raise DataError("the statement was changed: its signature is wrong", path=path, fix=fix)
    return found  # type: ignore[no-any-return]


def latest(home: Home) -> Path:
    """The file of a home's newest statement.

    Raises:
        StorageError: nothing was erased yet.
    """
    files = sorted((home.path / FOLDER).glob("*.json"))
    if not files:
        raise StorageError("nothing was erased yet", where=str(home.path))
    return files[-1]


def lines(statement: Mapping[str, Any]) -> list[str]:
    """A statement in words."""
    gone, left = statement.get("erased", {}), statement.get("sent", {})
    texts, updates = left.get("texts to teachers", {}), left.get("updates", {})
    found = [
        f"Erased on {statement['time']} by the device with key {str(statement['public'])[:16]}:"
    ]
    found += [f"- {name}: {value}" for name, value in gone.items() if isinstance(value, int)]
    for name, verb in (("dropped", "removed"), ("kept", "kept although they learnt from it")):
        if versions := statement.get("adapters", {}).get(name):
            found.append(f"- personal adapters {', '.join(versions)} {verb}")
    for task, version in statement.get("adapters", {}).get("in use", {}).items():
        found.append(f"- task {task} now uses {f'adapter {version}' if version else 'no adapter'}")
    for task, version in statement.get("adapters", {}).get("retrained", {}).items():
        found.append(f"- adapter {version} of task {task} was trained anew from what is left")
    found.append("Cannot be undone:")
    for hosts, name in ((texts, "texts sent to teachers"), (updates, "updates sent")):
        where = ", ".join(f"{n} to {host}" for host, n in sorted(hosts.items()))
        found.append(f"- {name}: {where or 'none'}")
    return [*found, f"- out of reach: {left.get('beyond', _BEYOND)}"]


def without(statement: Mapping[str, Any]) -> dict[str, Any]:
    """What `write` was given, of a statement that it made."""
    own = {"format", "what", "profile", "time", "public", SIGNATURE}
    return {name: value for name, value in statement.items() if name not in own}
