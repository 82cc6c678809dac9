"""The same work on every part of something: in processes of this machine, or on Ray.

Parts must be safe to begin again, since Ray repeats a part whose process was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar, cast

from pfi.errors import ConfigError, PfiError

Part = TypeVar("Part")
#: Seconds between two calls of ``on_wait``.
INTERVAL = 0.5
#: Parts for each processor of a Ray cluster: more than one, so that all end at about one time.
PARTS_A_PROCESSOR = 4


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Part], None], parts: Sequence[Part], on_wait: Callable[[], None]
) -> None:
    """Do ``work`` on every part at once, each in a new process with its share of the cores.

    Args:
        work: a function of a module.
        parts: what it is called with, picklable.
        on_wait: called twice a second.

    Raises:
        PfiError: a process was killed.
        Exception: what ``work`` raised; the other processes are ended then.
    """
    context = multiprocessing.get_context("spawn")  # a fork of threads and CUDA would hang
    threads = max(1, cores() // len(parts))
    processes = []
    running: dict[Any, tuple[int, Any]] = {}
    try:
        for number, part in enumerate(parts):
            # A pipe each: a process that is killed while it writes cannot block the others.
            reader, writer = context.Pipe(duplex=False)
            given = (work, part, threads, list(warnings.filters), writer)
            process = context.Process(target=_process, args=given)
            process.start()
            writer.close()
            processes.append(process)
            running[reader] = (number, process)
        while running:
            for ready in wait(list(running), timeout=INTERVAL):
                number, process = running.pop(ready)
                try:
                    error = cast(Connection, ready).recv()
                except EOFError:
                    process.join()
                    raise _killed(f"worker {number}", process.exitcode) from None
                if error is not None:
                    raise error
            on_wait()
    finally:
        for process in processes:
            if process.is_alive() and any(process is other for _, other in running.values()):
                process.terminate()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def _process(
    work: Callable[[Part], None], part: Part, threads: int, filters: list[Any], writer: Connection
) -> None:
    """What a process of ``in_processes`` runs."""
    import torch

    warnings.filters[:] = filters  # type: ignore[index]  # as quiet as the parent

    obey_parent()
    torch.set_num_threads(min(torch.get_num_threads(), threads))
    writer.send(_outcome(work, part))


def obey_parent() -> None:
    """Make this worker end when its parent does, and only then when Ctrl-C is pressed.

    Workers of a run that was killed would go on writing beside a resumed one.
    """

    def wait_for_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent, which ends us
    threading.Thread(target=wait_for_parent, daemon=True).start()


def _outcome(work: Callable[[Part], None], part: Part) -> BaseException | None:
    """Do the work; an exception is returned as one that can cross process borders."""
    try:
        work(part)
    except Exception as error:
        return portable(error)
    return None


def portable(error: Exception) -> Exception:
    """An error that is being handled as one that can be sent; a bug tells where it was met."""
    if not isinstance(error, PfiError):
        error.add_note(f"In a worker:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error.with_traceback(None)


def _killed(who: str, code: int | None) -> PfiError:
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    fix = (
        "nothing that was finished is lost: go on with --resume (resume=True), with fewer workers "
        "or a smaller working set if memory ran out"
    )
    return PfiError(f"{who} {how}", fix=fix)


# Ray ----------------------------------------------------------------------------------


def start_ray() -> int:
    """Connect to the Ray cluster of ``RAY_ADDRESS``, or to one started on this machine.

    Returns:
        into how many parts the work should be divided.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
    try:
        import ray
    except ImportError as error:
        fix = "install it with: pip install 'pfi[ray]'"
        raise ConfigError("Ray is not installed", fix=fix) from error
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as error:
            where = f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}"
            what = f"there is no Ray cluster: {str(error).splitlines()[0]}"
            raise ConfigError(what, where=where, fix="correct it, or unset it") from error
    found = ray.cluster_resources()
    return PARTS_A_PROCESSOR * max(1, int(found.get("GPU", 0) or found.get("CPU", 1)))


def on_ray(
    work: Callable[[Part], None], parts: Sequence[Part], on_wait: Callable[[], None]
) -> None:
    """Do ``work`` on every part as a Ray task, after ``start_ray``; see ``in_processes``."""
    import ray
    from ray.exceptions import RayError

    # Ray hides the GPUs from tasks that do not ask for one.
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_task)
    here = Path.cwd()
    waiting = [task.remote(work, part, here) for part in parts]
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=INTERVAL)
            for reference in done:
                try:
                    error = ray.get(reference)
                except RayError as failed:
                    first = str(failed).strip().splitlines()[0]
                    raise _killed(f"a Ray task failed ({first}) and", None) from failed
                if error is not None:
                    raise error
            on_wait()
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _task(work: Callable[[Part], None], part: Part, here: Path) -> BaseException | None:
    """What a Ray task runs: paths that are relative in the driver must be so here."""
    os.chdir(here)
    return _outcome(work, part)
