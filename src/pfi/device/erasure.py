"""Erasing records for good: from the vault, and from all on the device that tells of them.

What is to be erased is written down first, by id, and struck out last: an erasure that was
interrupted is finished when the vault is next opened.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pfi.data.records import Record
from pfi.device.home import ERASING, Home
from pfi.device.vault import Vault
from pfi.errors import StorageError
from pfi.files import locked, write_json
from pfi.trust.entries import fingerprint
from pfi.trust.ledger import Ledger


@dataclass(frozen=True)
class Erased:
    """What an erasure did.

    Attributes:
        records: records that were asked for and were in the vault.
        synthetic: synthetic records that were made from them.
        missing: ids that were asked for and are of no record in the vault.
        answers: teachers' answers that were kept and rest on them.
        payloads: texts in the ledger that tell of them; that they were sent stays noted.
        learnt: personal adapters, by version, that were trained while they were there: weights
            hold no text, but may have learnt from it.
    """

    records: int = 0
    synthetic: int = 0
    missing: tuple[str, ...] = ()
    answers: int = 0
    payloads: int = 0
    learnt: tuple[str, ...] = ()


class _Intent(BaseModel):
    """What is to be erased; without text, since it may be read after the text is gone.

    Attributes:
        ids: the records, with the synthetic ones made from them.
        made: for each synthetic record that was asked for, what it was made from.
    """

    model_config = ConfigDict(extra="forbid")

    ids: list[str]
    made: list[list[str]] = []


def erase(home: Home, ids: Iterable[str]) -> Erased:
    """Erase records: no query finds them and no file of the device holds their text.

    They leave the vault, with the synthetic records made from them and what feedback repeats of
    them; the memory; the answers of teachers that rest on them; and the text of ledger entries
    that tells of them.  Where it is not known of which records an answer or an entry tells, it
    goes as well.  Records that the vault does not have any more are erased from the rest.

    Raises:
        StorageError: a file is damaged or in use.  What was begun is finished when the vault is
            next opened.
    """
    wanted = list(dict.fromkeys(ids))
    with home.open_vault() as vault:
        found = list(vault.find(ids=set(wanted)))
        made = [r for r in vault.made_from(wanted) if r.id not in wanted]
        learnt = _learnt(home, vault, found)
    known = {record.id for record in found}
    intent = _Intent(
        ids=[*wanted, *(record.id for record in made)],
        made=[[*r.made.seeds, r.made.source] for r in found if r.made],
    )
    file = home.path / f"{ERASING}{secrets.token_hex(6)}.json"
    if wanted:
        write_json(file, intent.model_dump())
    answers, payloads = _carry_out(home, intent) if wanted else (0, 0)
    file.unlink(missing_ok=True)
    return Erased(
        len(found),
        len(made),
        tuple(id_ for id_ in wanted if id_ not in known),
        answers,
        payloads,
        learnt,
    )


def finish_erasures(home: Home, *, strict: bool = True) -> int:
    """Finish what was interrupted; how many erasures that were.

    Args:
        home: the device.
        strict: fail if one cannot be finished; otherwise it is left for later.

    Raises:
        StorageError: a file is damaged or in use.
    """
    done = 0
    for file in sorted(home.path.glob(f"{ERASING}*.json")):
        with suppress(*([] if strict else [StorageError])):
            _carry_out(home, _read(file))
            file.unlink(missing_ok=True)
            done += 1
    return done


def _carry_out(home: Home, intent: _Intent) -> tuple[int, int]:
    """Erase; may be done again from any point.

    The vault comes first: from then on nothing copies the records from it.

    Returns:
        How many answers of teachers and how many texts of the ledger went.
    """
    tells, answers = _tells(intent), 0
    with Vault(home.vault_file) as vault:
        vault.delete(intent.ids)
    if home.memory_file.exists():
        from pfi.memory import MemoryStore

        # Whoever fills the memory just now may have read the vault before.
        with locked(home.memory_folder / "lock"), MemoryStore(home.memory_file) as store:
            store.delete(intent.ids)
    if home.teacher_file.exists():
        from pfi.augment.store import TeacherStore

        with TeacherStore(home.teacher_file) as kept:
            answers = kept.erase(tells)
    ledger = Ledger(home.ledger_file)
    payloads = ledger.erase(lambda entry: tells(entry.shows), device=home.profile)
    return answers, payloads


def _tells(intent: _Intent) -> Callable[[Collection[str] | None], bool]:
    """Whether what shows the records of some fingerprints tells of an erased one."""
    gone = {fingerprint(id_) for id_ in intent.ids}
    made = [{fingerprint(id_) for id_ in ids} for ids in intent.made]

    def tells(shows: Collection[str] | None) -> bool:
        if shows is None:
            return True
        # A synthetic record was written in answer to a call that showed what it was made from.
        wrote = bool(shows) and any(ids.issuperset(shows) for ids in made)
        return wrote or not gone.isdisjoint(shows)

    return tells


def _learnt(home: Home, vault: Vault, records: Collection[Record]) -> tuple[str, ...]:
    """The versions of personal adapters that may have learnt from any of these records."""
    found = []
    for manifest in home.personal_adapters.list():
        ids = {record.id for record in records if record.task == manifest.task}
        if not ids:
            continue
        since = manifest.read or manifest.created
        later = vault.added_since(manifest.task, since)
        if any(i not in later and fingerprint(i) not in manifest.held_back for i in ids):
            found.append(manifest.version)
    return tuple(found)


def _read(file: Path) -> _Intent:
    try:
        return _Intent.model_validate_json(file.read_bytes())
    except FileNotFoundError:  # another process has finished it
        return _Intent(ids=[])
    except (OSError, ValidationError) as error:
        fix = "remove the file and erase the records again"
        raise StorageError("the list of what to erase is damaged", where=str(file), fix=fix) from (
            error
        )
