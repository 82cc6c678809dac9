"""Work on many items at once: in processes of this machine, or on Ray.

Items must be safe to begin again, since Ray repeats one whose process was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pfi._util.threads import choose, share, wait_passively
from pfi.errors import ConfigError, PfiError

Part = TypeVar("Part")
Item = TypeVar("Item")
Result = TypeVar("Result")
#: Seconds between two calls of ``on_wait``.
INTERVAL = 0.5
#: Parts for each processor of a Ray cluster: more than one, so that all end at about one time.
PARTS_A_PROCESSOR = 4
_RESUME = (
    "nothing that was finished is lost: go on with --resume (resume=True), with fewer workers "
    "or a smaller working set if memory ran out"
)


class WorkerPool(Generic[Item, Result]):
    """Processes that do items, each with its share of the threads and a pipe of its own.

    With a pipe each, a process that is killed while it writes cannot block the others. The
    processes end when the pool is closed, or when this process ends in any way.

    Args:
        make: called once in every process before its first item; gives the function that does
            one. Picklable, as items and results are.
        count: of processes.
        ahead: items that are begun, for each process, before those in front of them have
            ended; with 1, results are held for other processes only.
        fix: what to do when one was killed.
        where: whose processes they are, for the error that says so.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[Item], Result]],
        count: int,
        *,
        ahead: int = 4,
        fix: str = _RESUME,
        where: str | None = None,
    ) -> None:
        self._fix, self._where, self._ahead = fix, where, ahead * count
        self._idle: list[Connection] = []
        self._busy: dict[Connection, int] = {}
        self._processes: dict[Connection, BaseProcess] = {}
        context = multiprocessing.get_context("spawn")  # a fork of threads and CUDA would hang
        threads = share(count)
        wait_passively()  # they inherit the environment
        try:
            for _ in range(count):
                here, there = context.Pipe()
                arguments = (make, threads, list(warnings.filters), there)
                # A daemon: a pool that nobody closes does not keep this process from ending.
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                there.close()
                self._processes[here] = process
                self._idle.append(here)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerPool[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; one that works is stopped."""
        for connection, process in self._processes.items():
            connection.close()  # ends a process that waits
            if connection in self._busy:
                process.terminate()
        for process in self._processes.values():
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def map(
        self, items: Iterable[Item], on_wait: Callable[[], None] | None = None
    ) -> Iterator[Result]:
        """Do every item, the first ones first.

        Args:
            items: drawn from as processes become free; only a few more are begun than have
                been yielded, since results that end before their turn are held.
            on_wait: called twice a second.

        Yields:
            the results in the order of the items; after an error those of all items that did
            end, and then the error is raised.

        Raises:
            PfiError: a process was killed.
            Exception: what the work raised, with a note of where in the worker.
        """
        assert not self._busy, "the previous items have not ended"
        numbered = enumerate(items)
        ended: dict[int, Result] = {}
        following = 0
        while True:
            while self._idle and len(ended) + len(self._busy) < self._ahead:
                begun = next(numbered, None)
                if begun is None:
                    break
                self._send(*begun)
            if not self._busy:
                return
            error = self._collect(ended)
            while following in ended:
                yield ended.pop(following)
                following += 1
            if error is not None:
                for number in sorted(ended):
                    yield ended[number]
                raise error
            if on_wait:
                on_wait()

    def _send(self, number: int, item: Item) -> None:
        """Give an item to an idle process."""
        connection = self._idle.pop(0)
        self._busy[connection] = number
        with suppress(OSError):  # it was killed: `_collect` meets the end of its pipe
            connection.send(item)

    def _collect(self, ended: dict[int, Result]) -> Exception | None:
        """Wait for a while, and put down what has ended; the first error, if any."""
        first: Exception | None = None
        for ready in wait(list(self._busy), timeout=INTERVAL):
            connection = cast(Connection, ready)
            number = self._busy.pop(connection)
            try:
                result, error = connection.recv()
                self._idle.append(connection)
            except (EOFError, OSError):
                process = self._processes[connection]
                process.join()
                worker = f"worker {list(self._processes).index(connection)}"
                result, error = None, _killed(worker, process.exitcode, self._fix, self._where)
            if error is None:
                ended[number] = result
            first = first or error
        return first


def _serve(
    make: Callable[[], Callable[[Any], Any]],
    threads: int,
    filters: list[Any],
    connection: Connection,
) -> None:
    """What a process of a pool runs: items in, pairs of a result and an error out."""
    import torch  # here, so that those who only ask for the number of cores need not wait for it

    warnings.filters[:] = filters  # type: ignore[index]  # as quiet as the parent
    obey_parent()
    torch.set_num_threads(threads)
    choose(threads)
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            work = work or make()
            outcome: tuple[Any, Exception | None] = (work(item), None)
        except Exception as error:
            outcome = (None, portable(error))
        connection.send(outcome)


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
    with WorkerPool[Part, None](partial(_same, work), len(parts)) as pool:
        for _ in pool.map(parts, on_wait):
            pass


def _same(work: Callable[[Part], None]) -> Callable[[Part], None]:
    """Nothing is set up before the first part."""
    return work


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


def portable(error: Exception) -> Exception:
    """An error that is being handled as one that can be sent; a bug tells where it was met."""
    if not isinstance(error, PfiError):
        error.add_note(f"In a worker:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(traceback.format_exc())
    return error.with_traceback(None)


def _killed(who: str, code: int | None, fix: str = _RESUME, where: str | None = None) -> PfiError:
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return PfiError(f"{who} {how}", where=where, fix=fix)


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
    resources = ray.cluster_resources()
    return PARTS_A_PROCESSOR * max(1, int(resources.get("GPU", 0) or resources.get("CPU", 1)))


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
    """What a Ray task runs: paths that are relative in the driver must be so here.

    Returns:
        the error it met, as one that can cross process borders.
    """
    os.chdir(here)
    try:
        work(part)
    except Exception as error:
        return portable(error)
    return None
