"""What left this device: the ledger in words and bytes, its check, and the texts themselves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response

from pfi.errors import DataError, StorageError
from pfi.privacy.ledger.entries import Entry
from pfi.serve.console.view import ConsoleRoute, Signed

router = APIRouter(route_class=ConsoleRoute)
_SHOWN = 100
_ERASURE = "erasure"


@dataclass
class Sum:
    """What one receiver got of one kind."""

    to: str
    kind: str
    policy: str
    entries: int = 0
    bytes: int = 0
    words: int = 0
    first: str = ""
    last: str = ""


@router.get("/ledger")
def page(visit: Signed, to: str = "") -> Response:
    """All that left by receiver and kind, and the newest entries."""
    sums: dict[tuple[str, str, str], Sum] = {}
    newest: deque[Entry] = deque(maxlen=_SHOWN)
    wrong = ""
    ledger = visit.home.open_ledger()
    try:
        for entry in ledger.entries():
            if entry.kind == _ERASURE:
                continue
            key = (entry.to, entry.kind, entry.policy)
            one = sums.setdefault(key, Sum(*key, first=entry.time))
            one.entries += 1
            one.bytes += entry.bytes
            one.words += len(entry.payload.split()) if entry.payload else 0
            one.last = entry.time
            if to in ("", entry.to):
                newest.append(entry)
        checked = ledger.check()
    except StorageError as error:
        wrong, checked = " ".join(str(error).split()), None
    return visit.page(
        "ledger.html",
        sums=sorted(sums.values(), key=lambda one: -one.bytes),
        total=sum(one.bytes for one in sums.values()),
        entries=list(reversed(newest)),
        checked=checked,
        wrong=wrong,
        to=to,
        most=_SHOWN,
    )


@router.get("/ledger/{n}")
def entry(visit: Signed, n: int) -> Response:
    """The text of one entry."""
    for found in visit.home.open_ledger().entries():
        if found.n == n:
            return visit.page("_entry.html", entry=found)
    raise DataError(f"the ledger has no entry {n}")
