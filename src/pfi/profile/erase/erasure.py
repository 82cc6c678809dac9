"""Erasing records for good: from the vault, and from all on the device that tells of them.

What is to be erased is written down first, by id, and struck out last: an erasure that was
interrupted is finished when the vault is next opened.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pfi._util.files import locked, write_atomic, write_json
from pfi.errors import StorageError
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.answer.gate_file import forget, read_gate
from pfi.profile.erase import fingerprints, statement
from pfi.profile.erase.erased import ERASED
from pfi.profile.erase.retrain_settings import note_retraining, settings_of
from pfi.profile.home import ERASING, NAMES, Home
from pfi.profile.keys.keys import KEYS, drop_keys
from pfi.profile.vault.vault import Vault
from pfi.records import Record
from pfi.tasks import tasks_served

Adapters = Literal["drop", "retrain", "keep"]
_REMOVING = "removing"  # there once a profile is to go, whatever is left of it
_KEPT = Path("federate") / "kept"  # what a client keeps from round to round


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
        dropped: those of them that were removed.
        in_use: for the tasks that used one of those, the version that is in use now.
        statement: all that, signed by the device.
    """

    records: int = 0
    synthetic: int = 0
    missing: tuple[str, ...] = ()
    answers: int = 0
    payloads: int = 0
    learnt: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    in_use: dict[str, str | None] = field(default_factory=dict)
    statement: dict[str, Any] = field(default_factory=dict)


class _Intent(BaseModel):
    """What is to be erased; without text, since it may be read after the text is gone.

    Attributes:
        ids: the records, with the synthetic ones made from them.
        made: for each synthetic record that was asked for, what it was made from.
        everything: all that the vault holds, whatever `ids` says.
        tasks: the records' tasks.
        versions: the personal adapters to remove.
        lost: the tasks that use one of those.
        gate: the tasks whose gate was fitted on the records or with such an adapter.
        retrain: by task how to train anew, see `retraining`.
        told: what the statement says.
    """

    model_config = ConfigDict(extra="forbid")

    ids: list[str]
    made: list[list[str]] = []
    everything: bool = False
    tasks: list[str] = []
    versions: list[str] = []
    lost: list[str] = []
    gate: list[str] = []
    retrain: dict[str, dict[str, Any]] = {}
    told: dict[str, Any] = {}


def erase(
    home: Home, ids: Iterable[str], *, adapters: Adapters = "drop", by: str = "records"
) -> Erased:
    """Erase records: no query finds them and no file of the device holds their text.

    They leave the vault, with the synthetic records made from them and what feedback repeats of
    them; the memory; the answers of teachers that rest on them; and the text of ledger entries
    that tells of them.  Where it is not known of which records an answer or an entry tells, it
    goes as well.  Records that the vault does not have any more are erased from the rest.  The
    gate's choices that were fitted on them, and what a client of a federation keeps, go too.
    Keyed fingerprints of them stay, so that an import asks before it brings them back.

    Args:
        home: the device.
        ids: of the records.
        adapters: what becomes of personal adapters that may have learnt from them: `drop`
            removes them, their tasks fall back to the newest version that is left; `retrain`
            does so and notes that new ones are to be trained, see `retraining.retrain`; `keep`
            only names them.
        by: how the records were named, for the statement.

    Raises:
        StorageError: a file is damaged or in use.  What was begun is finished when the vault is
            next opened.
    """
    wanted = list(dict.fromkeys(ids))
    return _run(home, wanted, adapters, by) if wanted else Erased()


def erase_everything(home: Home) -> Erased:
    """Erase all records, feedback, personal adapters, and texts; the profile stays, empty.

    Settings, the keys, shared adapters, and that things were sent stay; what was erased before
    is not known any more.

    Raises:
        StorageError: see `erase`.
    """
    with home.open_vault() as vault:
        ids = [record.id for record in vault.find()]
    return _run(home, ids, "drop", "all")


def remove_profile(
    home: Home, keep: Callable[[dict[str, Any]], None] = lambda told: None
) -> dict[str, Any]:
    """Erase everything, then the keys, then the folder; the signed statement.

    Args:
        home: the device.
        keep: given the statement while there is still something to remove; the folder has none.

    Raises:
        StorageError: see `erase`; or a file cannot be removed, then nothing can be read.
    """
    told = statement.without(erase_everything(home).statement)
    told["profile removed"] = True
    signed = statement.signed(home.keys, told)
    keep(signed)
    write_atomic(home.path / _REMOVING, "")
    finish_removal(home.path)
    return signed


def finish_removal(path: Path) -> bool:
    """Go on removing a profile where that was begun; whether there was anything to do.

    Raises:
        StorageError: a file cannot be removed, then nothing can be read.
    """
    left = list(path.parent.glob(f".{path.name}.*.gone"))
    try:
        if (path / _REMOVING).exists():
            if (path / KEYS).exists():
                drop_keys(path)
            left.append(path.with_name(f".{path.name}.{secrets.token_hex(4)}.gone"))
            path.rename(left[-1])
        for folder in left:
            shutil.rmtree(folder)
    except OSError as error:
        what = f"some files cannot be removed: {error.strerror}; nobody can read them any more"
        raise StorageError(what, where=str(error.filename), fix="remove them") from error
    return bool(left)


def _run(home: Home, wanted: list[str], adapters: Adapters, by: str) -> Erased:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"
    with home.open_vault() as vault:
        intent, erased = _plan(home, vault, wanted, adapters, by)
    file = home.path / f"{ERASING}{name}.json"
    write_json(file, intent.model_dump())
    signed = _carry_out(home, intent, name)
    file.unlink(missing_ok=True)
    in_use = signed["adapters"]["in use"]
    return Erased(**erased, in_use=in_use, statement=signed)


def _plan(
    home: Home, vault: Vault, wanted: list[str], adapters: Adapters, by: str
) -> tuple[_Intent, dict[str, Any]]:
    """What is to be done, and what an `Erased` says of it."""
    everything, store = by == "all", home.personal_adapters
    found = list(vault.find(ids=set(wanted)))
    made = [r for r in vault.made_from(wanted) if r.id not in wanted]
    added = vault.added({record.id for record in (*found, *made)})
    learnt = _learnt(home, [*found, *made], added)
    if everything:
        learnt = list(store.versions())
    dropped = learnt if adapters != "keep" else []
    active = _active(home)
    lost = [task for task, version in active.items() if version in dropped]
    tasks = sorted({name for record in (*found, *made) for name in tasks_served(record.task)})
    intent = _Intent(
        ids=[*wanted, *(record.id for record in made)],
        made=[[*r.made.seeds, r.made.source] for r in found if r.made],
        everything=everything,
        tasks=tasks,
        versions=dropped,
        lost=lost,
        gate=_gates(home, [*found, *made], added, dropped),
    )
    if adapters == "retrain":
        intent.retrain = {task: settings_of(store.manifest(active[task])) for task in lost}
    tells, answers = _tells(intent), 0
    if home.teacher_file.exists():
        with home.open_teacher_store() as kept:
            answers = kept.count(tells)
    texts = sum(
        (entry.payload is not None or entry.cipher is not None)
        and entry.to != "nobody"
        and tells(entry.shows)
        for entry in home.open_ledger().entries()
    )
    intent.told = {
        "asked": statement.asked(by, {fingerprint(id_) for id_ in wanted}),
        "erased": {
            "records": len(found),
            "synthetic records made from them": len(made),
            "answers of teachers": answers,
            "texts in the ledger": texts,
            "choices of the gate": len(intent.gate),
        },
        "adapters": {
            "dropped" if dropped else "kept": learnt,
            "to retrain": sorted(intent.retrain),
        },
        "sent": statement.sent(home, tells, min(added.values(), default=None)),
    }
    known = {record.id for record in found}
    return intent, {
        "records": len(found),
        "synthetic": len(made),
        "missing": tuple(id_ for id_ in wanted if id_ not in known),
        "answers": answers,
        "payloads": texts,
        "learnt": tuple(learnt),
        "dropped": tuple(dropped),
    }


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
            _carry_out(home, _read(file), file.stem.removeprefix(ERASING))
            file.unlink(missing_ok=True)
            done += 1
    return done


def _carry_out(home: Home, intent: _Intent, name: str) -> dict[str, Any]:
    """Erase; may be done again from any point.  The signed statement.

    The vault comes first: from then on nothing copies the records from it.
    """
    tells = _tells(intent)
    with home.open_vault_as_it_is() as vault:
        with vault.change_setting(ERASED) as setting:
            now = dict.fromkeys(intent.tasks, datetime.now(UTC).isoformat())
            setting.value = {**(setting.value or {}), **now}
        if intent.everything:
            vault.set_setting(NAMES, None)  # they tell of people
            vault.clear()
            fingerprints.forget_all(vault)
        else:
            fingerprints.remember(vault, intent.ids)
            vault.delete(intent.ids)
    store = home.personal_adapters
    store.drop(store.versions() if intent.everything else intent.versions, home.config.backbone)
    store.forget_held_back({fingerprint(id_) for id_ in intent.ids})
    _forget_gates(home, intent.gate)
    shutil.rmtree(home.path / _KEPT, ignore_errors=True)
    if home.memory_file.exists():
        # Whoever fills the memory just now may have read the vault before.
        with locked(home.memory_folder / "lock"), home.open_memory_store() as memory:
            if intent.everything:
                memory.replace()
            else:
                memory.delete(intent.ids)
    if home.teacher_file.exists():
        with home.open_teacher_store() as kept:
            kept.erase(tells)
    home.open_ledger().erase(lambda entry: tells(entry.shows), device=home.profile)
    if intent.retrain:
        with home.open_vault_as_it_is() as vault:
            note_retraining(vault, name, intent.retrain)
    active = _active(home)
    in_use = {task: active.get(task) for task in intent.lost}
    told = {**intent.told, "adapters": {**intent.told.get("adapters", {}), "in use": in_use}}
    return statement.write(home, name, told)


def _tells(intent: _Intent) -> Callable[[Collection[str] | None], bool]:
    """Whether what shows the records of some fingerprints tells of an erased one."""
    gone = {fingerprint(id_) for id_ in intent.ids}
    made = [{fingerprint(id_) for id_ in ids} for ids in intent.made]

    def tells(shows: Collection[str] | None) -> bool:
        if shows is None or intent.everything:
            return True
        # A synthetic record was written in answer to a call that showed what it was made from.
        wrote = bool(shows) and any(ids.issuperset(shows) for ids in made)
        return wrote or not gone.isdisjoint(shows)

    return tells


def _learnt(home: Home, records: Collection[Record], added: dict[str, datetime]) -> list[str]:
    """The versions of personal adapters that may have learnt from any of these records.

    One whose manifest does not say so may have learnt from anything.
    """
    store = home.personal_adapters
    sound = {manifest.version: manifest for manifest in store.sound()}
    found = []
    for version in store.versions():
        if manifest := sound.get(version):
            since = manifest.read or manifest.created
            served = [r for r in records if manifest.task in tasks_served(r.task)]
            ids = {r.id for r in served if added[r.id] <= since}
            if all(fingerprint(id_) in manifest.held_back for id_ in ids):
                continue
        if records:
            found.append(version)
    return found


def _active(home: Home) -> dict[str, str]:
    """The personal adapters in use; none where somebody changed the list of them."""
    try:
        return home.personal_adapters.all_active()
    except StorageError:
        return {}


def _gates(
    home: Home, records: Collection[Record], added: dict[str, datetime], dropped: Collection[str]
) -> list[str]:
    """The tasks whose gate was fitted when one of these records was there, or with an adapter."""
    try:
        known = read_gate(home)
    except StorageError:
        return []  # it says nothing of records then
    return [
        task
        for task, fitted in known.items()
        if fitted.personal in dropped
        or any(task in tasks_served(r.task) and added[r.id] <= fitted.date for r in records)
    ]


def _forget_gates(home: Home, tasks: Collection[str]) -> None:
    for task in tasks:
        forget(home, task)


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
