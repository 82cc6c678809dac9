"""What a run over many users leaves on disk: an adapter folder and a line of results a user.

Lines are appended and fsynced after the adapter is saved, so a user with a line is done. Each
worker writes a file of its own, ``results/part-<i>.jsonl``; ``results`` reads them as one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pfi._util.events import JsonLog, read_lines
from pfi.train.job import TrainResult

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class UserResult:
    """What became of one user.

    Attributes:
        id: the job's id.
        folder: of the adapter, relative to the run's folder; None when there is none.
        examples: how many the adapter was trained on; 0 when the user has none.
        steps: how many it was trained for.
        first_loss: mean cross-entropy of the first step's target tokens, in nats.
        last_loss: of the last step.
        seconds: the adapter's share of the time.
        stopped: why training ended before its last step, or None.
    """

    id: str
    folder: str | None
    examples: int
    steps: int
    first_loss: float | None
    last_loss: float | None
    seconds: float
    stopped: str | None


def adapter_folder(user: str) -> str:
    """Where a user's adapter lies in a run's folder: ``adapters/<two hex digits>/<name>``.

    The name is the id where that is safe on every file system, and otherwise what is safe of
    it and a part of its hash, so that no two ids share a folder.
    """
    digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
    name = user
    if not _PLAIN.fullmatch(user):
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', user)[:64]}~{digest[:16]}"
    return f"adapters/{digest[:2]}/{name}"


def store(out: Path, user: str, result: TrainResult | None) -> UserResult:
    """Save a user's adapter; one with weights that are no numbers is not saved."""
    if result is None:
        return UserResult(user, None, 0, 0, None, None, 0.0, None)
    folder, stopped = None, result.stopped
    if all(bool(weight.isfinite().all()) for weight in result.adapter.weights.values()):
        folder = adapter_folder(user)
        result.adapter.save(out / folder)
    else:
        stopped = stopped or "the weights became infinite or NaN"
    losses = [loss if math.isfinite(loss) else None for loss in result.losses] or [None]
    seconds = round(result.seconds, 4)
    first, last = losses[0], losses[-1]
    return UserResult(user, folder, result.examples, result.steps, first, last, seconds, stopped)


class ResultFile:
    """A worker's file of results, which it alone appends to; a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        # In ASCII, since an id may hold half a surrogate pair.
        self._log = JsonLog(path, sync=True, ascii=True)
        self._log.drop_torn()

    def append(self, result: UserResult) -> None:
        """Write a line and have it on the disk."""
        self._log.append(asdict(result))


def result_path(out: Path, part: int) -> Path:
    """The results file of a worker."""
    return out / "results" / f"part-{part}.jsonl"


def result_files(out: Path) -> list[Path]:
    """The results files of all workers that there have ever been."""
    return sorted((out / "results").glob("part-*.jsonl"))


def results(out: Path) -> Iterator[UserResult]:
    """What became of every user so far, in no particular order, each user once.

    Raises:
        StorageError: a line before the last of a file is damaged.
    """
    seen: set[str] = set()
    for path in result_files(out):
        for result, _ in _lines(path):
            if result.id not in seen:
                seen.add(result.id)
                yield result


def ids_done(out: Path, sizes: Mapping[str, int]) -> tuple[set[str], set[str]]:
    """The ids of users with a line, divided by when it was written.

    Args:
        out: the run's folder.
        sizes: bytes of each results file, by name, at some time; see ``sizes``.

    Returns:
        those whose line is within these sizes, and the others. 100,000 ids take about 10 MB.
    """
    before: set[str] = set()
    since: set[str] = set()
    for path in result_files(out):
        for result, end in _lines(path):
            (before if end <= sizes.get(path.name, 0) else since).add(result.id)
    return before, since


def sizes(out: Path) -> dict[str, int]:
    """Bytes of each results file, by name."""
    return {path.name: path.stat().st_size for path in result_files(out)}


def _lines(path: Path) -> Iterator[tuple[UserResult, int]]:
    """The whole lines of a file, each with the position of its end."""
    fix = "remove that line to have its user trained again"
    return read_lines(path, lambda line: UserResult(**line), fix=fix)


class Counter:
    """Counts lines of results as they are written, by any process."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._read: dict[Path, int] = {}
        self.lines = 0

    def count(self) -> int:
        """The number of whole lines."""
        for path in result_files(self._out):
            start = self._read.get(path, 0)
            if path.stat().st_size > start:
                with path.open("rb") as file:
                    file.seek(start)
                    for line in file:
                        if line.endswith(b"\n"):  # else it is being written
                            self.lines += 1
                            start += len(line)
                self._read[path] = start
        return self.lines
