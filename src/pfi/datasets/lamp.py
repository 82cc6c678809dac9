"""Reading and writing the file format of the LaMP benchmark (arXiv 2304.11406).

`<task>/<split>_questions.json` is a list of questions, each with its user's profile;
`<split>_outputs.json` holds the answers. Profiles become histories, one a user, read when they
are needed: a file may hold more users than memory does.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pfi._util.files import write_json
from pfi.datasets.lamp_layout import QUESTIONS, questions_files, task_of
from pfi.errors import ConfigError, DataError
from pfi.readers.pieces import JsonArray, open_file, parse_json, read_object
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, as_id, as_text, as_time, past_time, record_fields
from pfi.records import History, Question, Record, User

if TYPE_CHECKING:
    from pfi.tasks.task import Task

__all__ = [
    "LampUsers",
    "available_tasks",
    "open_users",
    "read_history",
    "read_outputs",
    "read_users",
    "write_predictions",
]


def available_tasks(folder: Path, split: str) -> list[str]:
    """The tasks that have this split in `folder`, in whatever layout; see `lamp_layout`."""
    plain = {path.parent.name for path in folder.glob(f"*/{split}{QUESTIONS}")}
    if plain - {split}:
        return sorted(plain)
    names = set()
    for path in questions_files(folder, split):
        with suppress(ConfigError):
            names.add(task_of(path))
    return sorted(names)


class LampUsers(Sequence[User]):
    """The users of one task and split, read from the file when they are asked for.

    It holds of each user the id, the gold answers and where the questions stand in the file; a
    slice holds that of its users, and can be sent to another process.

    Raises:
        DataError: (when a user is read) the file was changed since it was opened.
    """

    def __init__(self, path: Path, task: Task, places: Mapping[str, Sequence[_Place]]) -> None:
        self.path, self.task = path, task
        self.ids = list(places)
        self._places = places

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """One user by position, or some of them, not yet read, by slice."""
        if isinstance(index, slice):
            places = {key: self._places[key] for key in self.ids[index]}
            return LampUsers(self.path, self.task, places)
        position = range(len(self))[index]
        return next(iter(self[position : position + 1]))

    def __iter__(self) -> Iterator[User]:
        return self.read()

    def read(self, report: ImportReport | None = None) -> Iterator[User]:
        """The users one by one; `report` counts as for `read_users`."""
        with open_file(self.path) as file:
            for user_id, places in self._places.items():
                gathered = _Gathered(user_id)
                for place in places:
                    gathered.add(self._entry(file, user_id, place), self.task, place.gold)
                yield gathered.user(report)

    def _entry(self, file: IO[bytes], user_id: str, place: _Place) -> _Entry:
        content = read_object(file, place.bytes)
        if content is not None:
            entry = _entry(self.path, place.line, "?", content)
            if (entry.user_id, entry.id) == (user_id, place.question):
                return entry
        what = "the file was changed while it was in use"
        fix = "run the command again, and leave the file alone meanwhile"
        raise DataError(what, path=self.path, line=place.line, fix=fix)


def read_users(
    folder: Path,
    task: Task,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    report: ImportReport | None = None,
) -> list[User]:
    """The users of one task and split, in the order in which the file first names them.

    Args:
        folder: holds one folder a task, or is the folder of this task.
        split: `train`, `dev`, `test` or whatever the files are called.
        limit: take a random sample of this many users; the same seed gives the same users.
        report: counts the records read and what of the taken users' profiles was skipped.

    Raises:
        DataError: a file is missing, damaged or not in the format, a question id comes twice, or
            the outputs are not those of the questions.  A missing outputs file is no error.
        ConfigError: `limit` is negative.
    """
    return list(open_users(folder, task, split, limit=limit, seed=seed).read(report))


def open_users(
    folder: Path, task: Task, split: str, *, limit: int | None = None, seed: int = 0
) -> LampUsers:
    """What `read_users` gives, checked throughout, but holding no histories.

    Raises:
        DataError, ConfigError: as for `read_users`.
    """
    if limit is not None and limit < 0:
        raise ConfigError("the number of users is negative", where="limit", fix="use 0 or more")
    path = _questions_path(folder, task.name, split)
    outputs_path = path.with_name(f"{split}_outputs.json")
    golds: dict[str, str] | None = None
    if outputs_path.exists():
        found, golds = read_outputs(outputs_path)
        if found and not task.name.startswith(found.replace("-", "_")):
            fix = "use the outputs file that belongs to the questions"
            raise DataError(
                f"the outputs are of {found}, not {task.name}", path=outputs_path, fix=fix
            )
    sample = _Sample(limit, random.Random(seed))
    ids: set[str] = set()
    for entry, place in _entries(path):
        if entry.id in ids:
            entry.fail("the question id comes twice", "give every question its own id")
        ids.add(entry.id)
        if golds is not None and entry.id not in golds:
            fix = f"correct {outputs_path.name}, or remove it if the answers are not known"
            entry.fail(f"{outputs_path.name} has no output for this question", fix)
        places = sample.take(entry.user_id)
        if places is not None:
            gold = golds[entry.id] if golds is not None else None
            if gold is not None and task.labels and gold.strip() not in task.labels:
                fix = f"the labels of {task.name} are {', '.join(task.labels)}"
                what = f"the expected answer {gold!r} is no label"
                raise DataError(what, path=outputs_path, record=entry.id, fix=fix)
            _Gathered(entry.user_id).add(entry, task, gold)  # fails now, not hours later
            places.append(_Place(place, entry.line, entry.id, gold))
    if not ids:
        raise DataError("the file holds no questions", path=path, fix="give a file with data")
    if golds is not None and len(golds) > len(ids):
        extra = next(key for key in golds if key not in ids)
        what = f"{len(golds) - len(ids)} outputs belong to no question"
        fix = f"use the outputs file that belongs to {path.name}"
        raise DataError(what, path=outputs_path, record=extra, fix=fix)
    return LampUsers(path, task, sample.kept)


def read_history(
    path: Path, task: Task, user_id: str | None = None, report: ImportReport | None = None
) -> History:
    """One user's history from a questions file.

    Args:
        path: a questions file.
        user_id: may be None if the file holds a single user.

    Raises:
        DataError: the file is missing, damaged or not in the format.
        ConfigError: there is no such user, or there are several and none is named.
    """
    gathered = _Gathered(user_id) if user_id is not None else None
    users: dict[str, None] = {}
    for entry, _ in _entries(path):
        users[entry.user_id] = None
        if gathered is None:
            gathered = _Gathered(entry.user_id)
        # With a second user and no name this will be an error: do not hold more.
        if entry.user_id == gathered.id and (user_id is not None or len(users) == 1):
            gathered.add(entry, task, None)
    if gathered is None:
        raise DataError("the file holds no questions", path=path, fix="give a file with data")
    if len(users) > 1 and user_id is None:
        what = f"the file holds {len(users)} users"
        raise ConfigError(what, where=str(path), fix=f"name one with user: {_few(users)}")
    if gathered.id not in users:
        what = f"the file has no user {gathered.id!r}"
        raise ConfigError(what, where=str(path), fix=f"there are {_few(users)}")
    return gathered.user(report).history


def read_outputs(path: Path) -> tuple[str, dict[str, str]]:
    """The task name and the outputs by question id, in file order.

    Raises:
        DataError: the file is missing, damaged or not in the format, or an id comes twice.
    """
    fix = 'give {"task": ..., "golds": [{"id": ..., "output": ...}, ...]}'
    with open_file(path) as file:
        data = file.read()
    try:
        content = parse_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what, again = "the text is not UTF-8", "save the file again as UTF-8"
        raise DataError(what, path=path, line=line, fix=again) from error
    except ValueError as error:
        what, again = f"the file is cut off or not JSON ({error})", "copy or download it again"
        place = getattr(error, "lineno", None)
        raise DataError(what, path=path, line=place, fix=again) from error
    golds = content.get("golds") if isinstance(content, dict) else None
    if not isinstance(golds, list) or not isinstance(content.get("task", ""), str):
        raise DataError("the file has no task name and list of golds", path=path, fix=fix)
    outputs: dict[str, str] = {}
    for number, gold in enumerate(golds, 1):
        record = f"no. {number}"
        try:
            if not isinstance(gold, dict) or not {"id", "output"} <= gold.keys():
                raise Unusable("it has no id and output")
            record = as_id(gold["id"], "id")
            if record in outputs:
                raise Unusable("the id comes twice")
            outputs[record] = as_text(gold["output"], "output")
        except Unusable as error:
            raise DataError(error.reason, path=path, record=record, fix=fix) from error
    return content.get("task", ""), outputs


def write_predictions(
    path: Path, task: str, answers: Mapping[str, str] | Sequence[tuple[str, str]]
) -> None:
    """Write answers as the benchmark's evaluation script reads them; replaces `path` whole.

    Raises:
        DataError: a question id comes twice, or an answer is not text.
    """
    pairs = list(answers.items() if isinstance(answers, Mapping) else answers)
    seen: set[str] = set()
    for key, output in pairs:
        if key in seen:
            fix = "give one answer a question"
            raise DataError("two answers have this id", path=path, record=key, fix=fix)
        seen.add(key)
        try:
            if not isinstance(output, str):
                raise Unusable("the answer is not text")
            as_text(key, "the id")
            as_text(output, "the answer")
        except Unusable as error:
            fix = "write the answer as text"
            raise DataError(error.reason, path=path, record=repr(key), fix=fix) from error
    golds = [{"id": key, "output": output} for key, output in pairs]
    write_json(path, {"task": task, "golds": golds})


def _questions_path(folder: Path, task: str, split: str) -> Path:
    inside = folder / task
    path = (inside if inside.is_dir() else folder) / f"{split}{QUESTIONS}"
    if path.is_file():
        return path
    for official in questions_files(folder, split):
        with suppress(ConfigError):
            if task_of(official) == task:
                return official
    splits = sorted(p.name.removesuffix(QUESTIONS) for p in path.parent.glob(f"*{QUESTIONS}"))
    others = sorted(p.name for p in folder.glob("*") if any(p.glob(f"*{QUESTIONS}")))
    if splits:
        fix = f"the splits there are {', '.join(splits)}"
    elif others:
        fix = f"the tasks there are {', '.join(others)}"
    else:
        fix = f"give the folder that holds {task}/{split}{QUESTIONS}"
    raise DataError(f"there is no split {split!r} of {task}", path=path, fix=fix)


def _few(names: Collection[str]) -> str:
    return ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")


@dataclass(frozen=True)
class _Entry:
    """One question of a file as it stands there, with its place."""

    path: Path
    line: int
    id: str
    user_id: str
    content: Mapping[str, Any]

    def fail(self, what: str, fix: str, item: str | None = None) -> NoReturn:
        record = f"question {self.id}" + (f", item {item}" if item else "")
        raise DataError(what, path=self.path, line=self.line, record=record, fix=fix) from None


def _entry(path: Path, line: int, name: str, content: Mapping[str, Any]) -> _Entry:
    """A question, checked for the keys that all tasks share; `name` is for want of an id."""
    try:
        name = as_id(content.get("id"), "id")
        user_id = as_id(content["user_id"], "user_id") if "user_id" in content else name
        if not as_text(content.get("input"), "input").strip():
            raise Unusable("input is missing or empty")
        if not isinstance(content.get("profile"), list):
            raise Unusable("profile is missing or not a list")
    except Unusable as error:
        fix = "a question needs id, input and profile"
        record = f"question {name}"
        raise DataError(error.reason, path=path, line=line, record=record, fix=fix) from error
    return _Entry(path, line, name, user_id, content)


def _entries(path: Path) -> Iterator[tuple[_Entry, tuple[int, int]]]:
    """The questions of a file, each with its place in bytes."""
    array = JsonArray(path)
    for number, (line, content) in enumerate(array, 1):
        yield _entry(path, line, f"no. {number}", content), array.place


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question stands in its file, and its gold answer."""

    bytes: tuple[int, int]
    line: int
    question: str
    gold: str | None


@dataclass
class _Gathered:
    """What a file says about one user."""

    id: str
    records: dict[str, Record] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    report: ImportReport = field(default_factory=ImportReport)
    skipped: set[tuple[str, str]] = field(default_factory=set)

    def add(self, entry: _Entry, task: Task, gold: str | None) -> None:
        """Add a question, and of its profile what is new."""
        prompt = as_text(entry.content["input"], "input")
        try:
            time = as_time(entry.content.get("date"), "date")
        except Unusable as error:
            entry.fail(error.reason, "give the date as YYYY-MM-DD")
        self.questions.append(
            Question(entry.id, self.id, task.name, prompt, task.fields(prompt), time, gold)
        )
        here: set[str] = set()
        for number, item in enumerate(entry.content["profile"], 1):
            record = self._record(entry, task, number, item)
            if record is None:
                continue
            if record.id in here:
                self._skip("the item's id comes twice in the profile", entry, record.id)
            elif self.records.setdefault(record.id, record) != record:
                self._skip("another profile has a different item of the same id", entry, record.id)
            here.add(record.id)

    def user(self, report: ImportReport | None) -> User:
        """The user; what was read and skipped is added to `report`."""
        records = list(self.records.values())
        undated = [record for record in records if record.time is None]
        if len(undated) < len(records):
            for record in undated:
                place = f"{record.source.removeprefix('lamp:')}, user {self.id}, item {record.id}"
                self.report.skip("it has no date although the user's other items have one", place)
            records = [record for record in records if record.time is not None]
        self.report.read = len(records)
        if report is not None:
            report.merge(self.report)
        return User(self.id, History(self.id, records), tuple(self.questions))

    def _record(self, entry: _Entry, task: Task, number: int, item: Any) -> Record | None:
        """The record of a profile item; None if it is skipped."""
        name = f"no. {number}"
        try:
            if not isinstance(item, dict):
                raise Unusable("the item is not an object")
            name = as_id(item.get("id"), "id")
        except Unusable as error:
            entry.fail(error.reason, "every profile item needs an id", name)
        try:
            fields, output = record_fields(task, item)
        except Unusable as error:
            if error.empty:
                self._skip(error.reason, entry, name)
                return None
            keys = ", ".join(map(repr, list(item)[:8]))
            entry.fail(error.reason, f"is this a file of {task.name}? The item has {keys}", name)
        try:
            time = past_time(item.get("date"), "date")
        except Unusable as error:
            self._skip(error.reason, entry, name)
            return None
        source = f"lamp:{entry.path.name}"
        return Record(name, task.name, fields, output, time, source=source)

    def _skip(self, reason: str, entry: _Entry, item: str) -> None:
        """Count once what all of the user's questions repeat."""
        if (reason, item) not in self.skipped:
            self.skipped.add((reason, item))
            self.report.skip(reason, f"{entry.path.name}, question {entry.id}, item {item}")


class _Sample:
    """Every user, or a uniform sample of a given size taken in one pass (reservoir)."""

    def __init__(self, limit: int | None, rng: random.Random) -> None:
        self.kept: dict[str, list[_Place]] = {}
        self._limit, self._rng = limit, rng
        self._slots: list[str] = []
        self._dropped: set[str] = set()

    def take(self, user_id: str) -> list[_Place] | None:
        """The list for this user's questions; None if the user is not in the sample."""
        if user_id in self._dropped:
            return None
        if user_id not in self.kept:
            if self._limit is None or len(self._slots) < self._limit:
                self._slots.append(user_id)
            else:
                slot = self._rng.randrange(len(self.kept) + len(self._dropped) + 1)
                if slot >= self._limit:
                    self._dropped.add(user_id)
                    return None
                self._dropped.add(self._slots[slot])
                del self.kept[self._slots[slot]]
                self._slots[slot] = user_id
            self.kept[user_id] = []
        return self.kept[user_id]
