"""Feedback: what the user says of answers, kept in the vault.

A correction, or an answer rated good, becomes a real record of the task; `pairs` says what is a
preference.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pfi._util.settings import one_line
from pfi.errors import ConfigError, DataError, PfiError
from pfi.profile.answer.runtime import question_fields
from pfi.profile.home import Home
from pfi.profile.vault.feedback import Batch, Feedback, Rating, Shown
from pfi.records import Record, parse_time
from pfi.tasks import Task, get_task

SOURCE = "feedback:"
_BATCH = re.compile(r"[\w][\w .:+-]{0,79}")


class Said(BaseModel):
    """What is said of one answer; a line of a file for `pfi feedback --file`.

    Attributes:
        task: the name of the task; the one given beside the file when None.
        text: the question's main input field.
        fields: the other input fields, or all of them.
        answer: the model's answer, or the better one of two.
        correction: what it should have been.
        rating: `good` or `bad`.
        better_than: another answer, which is worse.
        time: when; now when None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str | None = None
    text: str | None = None
    fields: dict[str, str] = {}
    answer: str = ""
    correction: str | None = None
    rating: Rating | None = None
    better_than: str | None = None
    time: datetime | None = None

    @field_validator("time", mode="before")
    @classmethod
    def _any_time(cls, value: Any) -> datetime | None:
        return parse_time(value)


@dataclass(frozen=True)
class Undone:
    """What an undo erased.

    Attributes:
        entries: pieces of feedback.
        records: the ids of the records that they had made.
        learnt: the versions in use that had learnt from the batch, by task.
    """

    entries: int
    records: tuple[str, ...] = ()
    learnt: Mapping[str, str] = field(default_factory=dict)


# Giving -----------------------------------------------------------------------------


def give(
    home: Home,
    task: Task,
    fields: Mapping[str, str],
    *,
    answer: str,
    correction: str | None = None,
    rating: Rating | None = None,
    better_than: str | None = None,
    batch: str | None = None,
    time: datetime | None = None,
) -> Feedback:
    """Say of one answer what it should have been, whether it is good, or what it is better than.

    Args:
        home: the device.
        task: what the question was asked as.
        fields: the question's input fields.
        answer: the answer that was shown, or the better one of two.
        correction: what it should have been; it becomes a record.
        rating: `good` makes the answer a record.
        better_than: another answer to the question, which is worse.
        batch: what it is undone by; see `default_batch` when None.
        time: when it was said; now when None.

    Raises:
        ConfigError: nothing is said, or it contradicts itself or the task.
        StorageError: the vault cannot be written.
    """
    said = Said(
        fields=dict(fields),
        answer=answer,
        correction=correction,
        rating=rating,
        better_than=better_than,
        time=time,
    )
    entry, record = _checked(said, task, batch or default_batch(home))
    with home.open_vault() as vault:
        return next(iter(vault.feedback.add([(entry, record)])), entry)


def give_many(home: Home, said: Iterable[tuple[Task, Said]], batch: str) -> list[Feedback]:
    """Say many things at once, all or nothing.

    What the batch says already is passed over.

    Returns:
        what was stored.

    Raises:
        ConfigError: as `give`.
        StorageError: the vault cannot be written.
    """
    made = [_checked(each, task, batch) for task, each in said]
    with home.open_vault() as vault:
        return vault.feedback.add(made)


def give_file(
    home: Home, path: Path, *, task: Task | None = None, batch: str | None = None
) -> list[Feedback]:
    """Say all that a JSONL file says, a `Said` a line; all of it or nothing.

    Args:
        home: the device.
        path: the file.
        task: the task of lines that name none.
        batch: what it is undone by; the file's name when None.

    Raises:
        DataError: the file cannot be read, or a line makes no sense; it is named.
        StorageError: the vault cannot be written.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from error
    name = batch or file_batch(path)
    made = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said = Said.model_validate(json.loads(line))
            chosen = get_task(said.task) if said.task else task
            if chosen is None:
                raise ConfigError("no task is named", fix="add --task, or a task to the line")
            made.append(_checked(said, chosen, name))
        except ValidationError as error:
            raise DataError(one_line(error), path=path, line=number) from error
        except ValueError as error:
            raise DataError(f"not JSON: {error}", path=path, line=number) from error
        except PfiError as error:
            raise DataError(str(error), path=path, line=number) from error
    if not made:
        raise DataError("there is no feedback in the file", path=path)
    with home.open_vault() as vault:
        return vault.feedback.add(made)


def file_batch(path: Path) -> str:
    """The batch of a file that names none."""
    return re.sub(r"[^\w.+-]", "-", path.stem).strip("-.+")[:80] or "file"


def default_batch(home: Home) -> str:
    """The batch of feedback that names none: the day's, or a further one if that is doubtful."""
    day = datetime.now(UTC).date().isoformat()
    with home.open_vault() as vault:
        doubtful = {batch.name for batch in vault.feedback.batches() if batch.trust == "doubtful"}
    name, number = day, 1
    while name in doubtful:
        number += 1
        name = f"{day}-{number}"
    return name


def _checked(said: Said, task: Task, batch: str) -> tuple[Feedback, Record | None]:
    """What is said as an entry and the record that it makes, if any."""
    if not _BATCH.fullmatch(batch):
        fix = "use up to 80 letters, digits, spaces and . : + - _, starting with a letter or digit"
        raise ConfigError(f"{batch!r} is not the name of a batch", fix=fix)
    fields = _fields(said, task)
    _check_words(said, task)
    time = said.time or datetime.now(UTC)
    wanted = said.correction
    if wanted is None and said.rating == "good":
        wanted = said.answer
    entry = Feedback(
        id=secrets.token_hex(8),
        batch=batch,
        task=task.name,
        time=time,
        input=fields,
        answer=said.answer,
        correction=said.correction,
        rating=said.rating,
        better_than=said.better_than,
    )
    return entry, None if wanted is None else _record(task, fields, wanted, entry)


def _fields(said: Said, task: Task) -> dict[str, str]:
    """The question's input fields, checked."""
    if said.text is not None:
        return question_fields(task, said.text, said.fields)
    if not said.fields:
        raise ConfigError("the question is missing", fix="give its text or its fields")
    name, text = next(iter(said.fields.items()))
    others = {key: value for key, value in said.fields.items() if key != name}
    found = question_fields(task, text, others)
    if name not in found:
        fix = f"its fields are {', '.join(found)}"
        raise ConfigError(f"task {task.name} has no field {name!r}", fix=fix)
    return found


def _check_words(said: Said, task: Task) -> None:
    if said.correction is None and said.rating is None and said.better_than is None:
        fix = "give a correction, a rating (good or bad), or a worse answer"
        raise ConfigError("nothing is said of the answer", fix=fix)
    if said.correction is not None and (said.rating == "good" or said.better_than is not None):
        what = "an answer that is corrected is neither good nor better than another"
        raise ConfigError(what, fix="give one of them only")
    if said.rating == "bad" and said.better_than is not None:
        raise ConfigError("a bad answer is compared with a worse one", fix="leave the rating out")
    if said.correction is not None and said.correction.strip() == said.answer.strip():
        raise ConfigError("the correction is the answer itself", fix="rate it as good instead")
    if said.better_than is not None and said.better_than.strip() == said.answer.strip():
        raise ConfigError("the two answers are the same", fix="give two different ones")
    if said.correction is None and not said.answer.strip():
        raise ConfigError("the answer that this is about is missing", fix="give the answer")
    wanted = {"correction": said.correction}
    if said.rating == "good" or said.better_than is not None:
        wanted["answer"] = said.answer
    for name, text in wanted.items():
        if text is not None and not text.strip():
            raise ConfigError(f"the {name} is empty", fix="give some text")
        if text is not None and task.labels and task.parse(text) not in task.labels:
            fix = f"it is one of: {', '.join(task.labels)}"
            raise ConfigError(f"{text!r} is no answer of task {task.name}", fix=fix)


def _record(task: Task, fields: Mapping[str, str], wanted: str, entry: Feedback) -> Record | None:
    """The record whose training example is this question with this answer."""
    if task.practice == "citation":
        return None  # its records are papers, not questions
    wanted = task.parse(wanted) if task.labels else wanted.strip()
    if task.practice == "restore":
        fields = {}
    elif task.practice == "continuation":
        fields, wanted = {}, f"{fields['start'].strip()} {wanted}"
    source = f"{SOURCE}{entry.batch}"
    return Record(f"feedback-{entry.id}", task.name, fields, wanted, entry.time, "real", source)


# The last answers -------------------------------------------------------------------


def remember(home: Home, task: Task, fields: Mapping[str, str], answer: str) -> None:
    """Note an answer that was shown, so that feedback can be given on it; see `last_answer`.

    The profile's setting `answers` says how many are kept; older ones are erased.

    Raises:
        StorageError: the vault cannot be written.
    """
    shown = Shown(task.name, datetime.now(UTC), fields, answer)
    with home.open_vault() as vault:
        vault.feedback.remember(shown, home.config.answers)


def last_answer(home: Home, back: int = 0) -> Shown:
    """The last answer that was shown, or the one ``back`` before it.

    Raises:
        ConfigError: there is none.
    """
    with home.open_vault() as vault:
        answers = vault.feedback.answers()
    if back < len(answers):
        return answers[back]
    if not home.config.answers:
        fix = "set answers in the profile's config.yaml, or give the question with --text"
        raise ConfigError("this profile keeps no answers", fix=fix)
    what = "nothing was answered yet" if not answers else f"only {len(answers)} answers are kept"
    raise ConfigError(what, fix="ask with `pfi ask`, or give the question with --text")


def task_of(home: Home, name: str) -> Task:
    """The task of a record or an answer; the profile's may be defined in a file of its own.

    Raises:
        ConfigError: there is no such task.
    """
    if home.config.task:
        own = get_task(home.config.task)
        if own.name == name:
            return own
    return get_task(name)


# Batches ----------------------------------------------------------------------------


def batches(home: Home) -> list[Batch]:
    """Every batch, in the order in which they were begun."""
    with home.open_vault() as vault:
        return vault.feedback.batches()


def trust(home: Home, batch: str) -> Batch:
    """Learn from a batch as from own records, even if a refresh found it doubtful.

    Raises:
        ConfigError: there is no such batch.
    """
    found = _find(home, batch)
    with home.open_vault() as vault:
        vault.feedback.mark([batch], "trusted")
    return found


def undo(home: Home, batch: str) -> Undone:
    """Erase a batch and the records that it made, also from memory.

    Raises:
        ConfigError: there is no such batch.
        StorageError: the vault cannot be written.
    """
    from pfi.profile.erase.erasure import erase

    found = _find(home, batch)
    with home.open_vault() as vault:
        records = [e.record for e in vault.feedback.entries(batch=batch) if e.record]
    # Records first: a run that is stopped leaves what it has not undone yet to be undone again.
    learnt = {*erase(home, records, adapters="keep", by="feedback").learnt}
    with home.open_vault() as vault:
        vault.feedback.remove(batch)
    active = home.personal_adapters.all_active().items()
    return Undone(found.entries, tuple(records), {t: v for t, v in active if v in learnt})


def _find(home: Home, batch: str) -> Batch:
    for found in batches(home):
        if found.name == batch:
            return found
    fix = "`pfi feedback list` shows the batches"
    raise ConfigError(f"there is no batch {batch!r}", fix=fix)
