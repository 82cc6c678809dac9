"""Personal adapters for many users: a working set is in memory, everything else on disk.

A run folder holds ``config.yaml``, ``adapters/``, ``results/`` (see ``results.py`` beside this
file), ``shared/`` (the adapter beneath, if any) and, until the run has ended, ``state/``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from pfi._util.files import write_atomic, write_json
from pfi._util.workers import in_processes, on_ray, start_ray
from pfi.errors import ConfigError, DataError, StorageError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.train.config import TrainConfig
from pfi.train.job import Job
from pfi.train.many_users.results import (
    Counter,
    ResultFile,
    ids_done,
    result_path,
    results,
    sizes,
    store,
)
from pfi.train.trainers import get_trainer

#: Jobs, or a function that gives the same jobs in the same order whenever it is called.
Users = Iterable[Job] | Callable[[], Iterable[Job]]
#: Called with the users that have ended, in all runs, and with all users where that is known.
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Summary:
    """What a run came to; all but the last two figures count earlier runs that it went on from.

    Attributes:
        users: how many there are.
        trained: those who have an adapter.
        without_examples: those who have none because there was nothing to learn from.
        stopped: how many ended before their last step, by reason.
        seconds: wall-clock time of this call.
        users_per_hour: users who ended in this call, by that time.
    """

    users: int = 0
    trained: int = 0
    without_examples: int = 0
    stopped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    users_per_hour: float = 0.0


@dataclass(frozen=True)
class Part:
    """One worker's share of a run: the jobs at positions ``index``, ``index + count``, ..."""

    users: Users
    out: Path
    backbone: Backbone | str
    config: TrainConfig
    engine: str
    working_set: int
    index: int = 0
    count: int = 1


def personalize(
    users: Users,
    out: Path,
    *,
    backbone: Backbone | str | Path,
    config: TrainConfig | None = None,
    shared: Adapter | None = None,
    engine: str = "bank",
    workers: int = 1,
    ray: bool = False,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    working_set: int = 16,
) -> Summary:
    """Train an adapter for every user; memory does not grow with the users but for their ids.

    Args:
        users: jobs with ids of their own, drawn as room becomes free. Several workers and Ray
            need a picklable function that gives them (see ``pfi.train.many_users.lamp.LampJobs``).
        out: the run folder.
        backbone: the frozen model; several workers and Ray need its name or folder.
        config: how every adapter is trained; ``TrainConfig()`` by default.
        shared: an adapter to lie beneath all of them, frozen.
        engine: what trains.
        workers: processes, each with its own backbone and working set.
        ray: divide the users into tasks of a Ray cluster instead, the one of ``RAY_ADDRESS`` or
            a local one; all its machines must see ``out`` and the data under the same path.
        resume: go on with the run that the folder holds, with any number of workers; its
            users' adapters come out the same.
        on_progress: called as users end.
        working_set: adapters that a worker trains at once, where the engine does that.

    Raises:
        ConfigError: an argument makes no sense.
        StorageError: the folder holds a run and ``resume`` is off, or a run with another
            configuration, or another process is writing there.
        DataError: two users have the same id.
        PfiError: a worker was killed.
    """
    started = time.perf_counter()
    config = config or TrainConfig()
    if workers < 1 or working_set < 1:
        raise ConfigError("workers and working_set must be at least 1")
    if ray and workers > 1:
        what = "Ray decides itself how many workers there are"
        raise ConfigError(what, fix="leave workers out, or ray")
    get_trainer(engine)
    if ray or workers > 1:
        _check_portable(users, backbone)
    model = backbone if isinstance(backbone, Backbone) else str(backbone)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _open(out, users, model, config, shared, engine, resume)
        count = start_ray() if ray else workers
        _keep_state(out, {"parts": count, "working_set": working_set})
        parts = [
            Part(users, out, model, config, engine, working_set, i, count) for i in range(count)
        ]
        planned = len(users) if isinstance(users, Sized) else None
        counter = Counter(out)
        already = counter.count()

        def progress() -> None:
            if on_progress:
                on_progress(counter.count(), planned)

        progress()
        if ray:
            on_ray(train_part, parts, progress)
        elif workers > 1:
            in_processes(train_part, parts, progress)
        else:
            train_part(parts[0], progress)
        shutil.rmtree(out / "state", ignore_errors=True)
        seconds = time.perf_counter() - started
        return summarise(out, seconds, counter.count() - already)


def train_part(part: Part, on_user: Callable[[], None] | None = None) -> None:
    """Train one part's users that are not done yet; it may be killed and begun again."""
    backbone = part.backbone
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone)
    if (part.out / "shared").is_dir():
        backbone = backbone.with_adapters([Adapter.load(part.out / "shared")])
    trainer = get_trainer(part.engine, part.working_set)
    state = part.out / "state" / f"part-{part.index}"
    begun = state.with_suffix(".json")
    # A state counts the jobs that the engine has drawn, so the engine must be given just the
    # jobs of the run that began it: all but those done before that.
    if not ((state / "state.json").exists() and begun.exists()):
        shutil.rmtree(state, ignore_errors=True)
        write_json(begun, sizes(part.out))
    before, since = ids_done(part.out, json.loads(begun.read_text(encoding="utf-8")))

    def jobs() -> Iterator[Job]:
        every = part.users() if callable(part.users) else part.users
        for position, job in enumerate(every):
            if position % part.count == part.index and job.id not in before:
                yield job

    ended: set[str] = set()
    file = ResultFile(result_path(part.out, part.index))
    for job, result in trainer.train_many(backbone, jobs(), part.config, state=state):
        if job.id in since:
            continue  # it had ended, but the engine's state is from before that
        if job.id in ended:
            raise DataError("two users have this id", record=job.id, fix="make ids unique")
        file.append(store(part.out, job.id, result))
        ended.add(job.id)
        if on_user:
            on_user()


def summarise(out: Path, seconds: float = 0.0, ended: int = 0) -> Summary:
    """The figures of a run's results.

    Args:
        out: the run folder.
        seconds: what the latest call took.
        ended: users who ended in it.
    """
    users = trained = without = 0
    stopped: Tally[str] = Tally()
    for result in results(out):
        users += 1
        trained += result.folder is not None
        without += result.examples == 0
        if result.stopped is not None:
            stopped[re.sub(r" (in|after) step \d+$", "", result.stopped)] += 1
    rate = 3600 * ended / seconds if seconds else 0.0
    return Summary(users, trained, without, dict(stopped), seconds, rate)


# The run folder -----------------------------------------------------------------------


def _open(
    out: Path,
    users: Users,
    backbone: Backbone | str,
    config: TrainConfig,
    shared: Adapter | None,
    engine: str,
    resume: bool,
) -> None:
    """Write what was asked, or compare it with the run that the folder holds."""
    asked: dict[str, Any] = {
        "backbone": backbone.name if isinstance(backbone, Backbone) else backbone,
        "engine": engine,
        "users": _described(users),
        "shared": _fingerprint(shared) if shared else None,
        "training": config.model_dump(mode="json"),
    }
    path = out / "config.yaml"
    if path.exists():
        if not resume:
            fix = "go on with it with --resume (resume=True), or give another folder"
            raise StorageError("this folder already holds a run", where=str(out), fix=fix)
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        if held != asked:
            other = [
                key for key in asked if not isinstance(held, dict) or held.get(key, 0) != asked[key]
            ]
            what = f"this folder holds a run with another configuration: {', '.join(other)}"
            fix = "resume with the same options (see config.yaml), or give another folder"
            raise StorageError(what, where=str(out), fix=fix)
    if shared is not None:
        shared.save(out / "shared")
    write_atomic(path, yaml.safe_dump(asked, sort_keys=False))


def _described(users: Users) -> dict[str, Any] | None:
    """A source of users as plain values; None where nothing is known of it."""
    if not is_dataclass(users) or isinstance(users, type):
        return None
    return json.loads(json.dumps({"source": type(users).__name__, **asdict(users)}, default=str))


def _fingerprint(adapter: Adapter) -> str:
    digest = hashlib.sha256(json.dumps(adapter.settings, sort_keys=True).encode())
    for name, weight in sorted(adapter.weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _keep_state(out: Path, run: dict[str, int]) -> None:
    """Drop what the engine kept of unfinished users if their order is another one now."""
    path = out / "state" / "run.json"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != run:
        shutil.rmtree(out / "state", ignore_errors=True)
    write_json(path, run)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing to the same run folder."""
    try:
        import fcntl
    except ImportError:  # Windows: there is no lock
        yield
        return
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fix = "wait for it to end, or give another folder"
            raise StorageError("another run is writing here", where=str(out), fix=fix) from error
        except OSError:
            pass  # a network file system without locks
        yield


# Arguments ----------------------------------------------------------------------------


def _check_portable(users: Users, backbone: Backbone | str | Path) -> None:
    """Refuse what workers could not be given."""
    if isinstance(backbone, Backbone):
        fix = "give its name or folder"
        raise ConfigError("workers load the backbone themselves", where="backbone", fix=fix)
    fix = "give a picklable function without arguments, such as LampJobs or a function of a module"
    if not callable(users):
        raise ConfigError("jobs cannot be divided among workers", where="users", fix=fix)
    try:
        pickle.dumps(users)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        what = f"the function cannot be sent to workers: {error}"
        raise ConfigError(what, where="users", fix=fix) from error
