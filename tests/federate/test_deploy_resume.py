"""A deployed run that goes on: its log is followed, its fleet stays, one process works on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `federate` is not installed")

from pfi._util.events import JsonLog
from pfi.errors import ConfigError, FederationError, StorageError
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.keys.keys import make_server_keys
from pfi.federate.deploy.keys.nodes import create_nodes, make_device_keys, register, unregister
from pfi.federate.deploy.server.follow import Follower
from pfi.federate.deploy.server.server import LOCK, open_server, run_server
from pfi.federate.deploy.server.settings import FILE, DeployConfig
from pfi.federate.deploy.server.superlink import Outcome
from pfi.federate.lock import RunLock
from pfi.federate.message import Message
from pfi.federate.privacy.dp_fedavg import PrivacyConfig, PrivateRounds
from pfi.federate.store import RunStore

# The log --------------------------------------------------------------------------------


def _event(number: int, **more: Any) -> dict[str, Any]:
    plain = {"event": "round", "number": number, "failed": {"tel-5": "Knoten weg — 2 × zu spät"}}
    return {**plain, "text": "x" * (3 + 7 * number), **more}


def _told(log: JsonLog, change: Callable[[], None]) -> list[tuple[int, Any]]:
    """What is passed on of a log that is changed after it is looked at first."""
    seen: list[tuple[int, Any]] = []
    follower = Follower(log.path, lambda event: seen.append((event["number"], event.get("try"))))
    change()
    for _ in range(2):
        follower.look()
    return seen


@pytest.fixture
def log(tmp_path: Path) -> JsonLog:
    log = JsonLog(tmp_path / "events.jsonl")
    for number in range(3):
        log.append(_event(number))
    return log


def test_a_log_that_is_written_anew_in_other_bytes_tells_the_new_rounds_only(log: JsonLog) -> None:
    def rewritten() -> None:
        lines = [json.dumps(_event(number)) for number in range(3)]  # escaped: longer lines
        log.path.write_text("".join(line + "\n" for line in lines))
        log.append(_event(3))

    assert _told(log, rewritten) == [(3, None)]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_rounds_that_are_done_again_are_told_again(log: JsonLog, kept: int) -> None:
    def again() -> None:
        log.replace([_event(number) for number in range(kept)])
        for number in range(kept, 5):
            log.append(_event(number, **{"try": 2}))

    assert _told(log, again) == [(number, 2) for number in range(kept, 5)]


def test_a_log_that_was_removed_is_followed_from_its_beginning(log: JsonLog) -> None:
    def anew() -> None:
        log.path.unlink()
        log.append(_event(40, **{"try": 2}))  # longer than all that was there

    assert _told(log, anew) == [(40, 2)]


def test_a_line_that_is_being_written_waits_and_a_damaged_one_is_named(log: JsonLog) -> None:
    seen: list[int] = []
    follower = Follower(log.path, lambda event: seen.append(event["number"]))
    line = json.dumps(_event(3)).encode()
    with log.path.open("ab") as file:
        file.write(line[:20])
    follower.look()
    assert seen == []
    with log.path.open("ab") as file:
        file.write(line[20:] + b"\n")
    follower.look()
    assert seen == [3]
    with log.path.open("ab") as file:
        file.write(b"{nonsense\n")
    with pytest.raises(StorageError, match="line 5"):
        follower.look()


# The fleet ------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_server_keys(folder, ["localhost"])
    create_nodes(folder, "club", "localhost:1")
    for name in ("a", "b", "c"):
        register(folder, make_device_keys(tmp_path / name, name))
    return folder


class Server:
    """A SuperLink whose ServerApp does what it is told, then ends."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.work = work

    def start(self, settings: dict[str, Any]) -> int:
        self.config = DeployConfig.read(Path(settings["settings"]))
        self.work()
        return 1

    def wait(self, run: int, seconds: float) -> Outcome:
        return Outcome(True)


def _run(keys: Path, out: Path, work: Callable[[], None] = lambda: None, **more: Any) -> list[str]:
    server = Server(work)
    run_server(server, keys, out, DeployConfig(**more))  # type: ignore[arg-type]
    return server.config.names


def test_a_run_keeps_the_fleet_that_it_began_with(keys: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _run(keys, out) == ["a", "b", "c"]
    unregister(keys, "b")
    register(keys, make_device_keys(tmp_path / "d", "d"))
    assert _run(keys, out, resume=True) == ["a", "b", "c"], "b never replies, d waits"
    assert _run(keys, out, resume=True) == ["a", "b", "c"]
    assert _run(keys, tmp_path / "next") == ["a", "c", "d"]
    (out / FILE).write_text("{")
    with pytest.raises(ConfigError, match=FILE):
        _run(keys, out, resume=True)


def test_a_server_that_goes_on_tells_what_its_run_logs_after_it_was_cut_back(
    keys: Path, tmp_path: Path
) -> None:
    config, out = FederateConfig(rounds=3), tmp_path / "run"
    store = RunStore(out, config, resume=False)
    log = JsonLog(out / "events.jsonl")
    for number in range(2):
        log.append(_event(number))
    store.save(1, Message({}, {"next": 1, "pending": "null"}))  # killed before the second one

    def work() -> None:
        RunStore(out, config, resume=True).load()
        for number in (1, 2):
            log.append(_event(number, **{"try": 2}))

    seen: list[int] = []
    run_server(
        Server(work),  # type: ignore[arg-type]
        keys,
        out,
        DeployConfig(resume=True),
        on_event=lambda event: seen.append(event["number"]),
    )
    assert seen == [1, 2]


def _private(fleet: int, cohort: int = 50, **more: Any) -> PrivateRounds:
    settings = {"mechanism": "gaussian", "noise": 1.0, **more}
    config = PrivacyConfig(**settings)
    return PrivateRounds(
        config, fleet=fleet, cohort=cohort, sampling="poisson", rounds=9, width=4, seed=None
    )


@pytest.mark.parametrize("now", [999, 1001, 500])
@pytest.mark.parametrize("more", [{}, {"noise": None, "epsilon": 4.0}, {"adaptive": {}}])
def test_privacy_goes_on_as_accounted_when_the_fleet_changes(
    now: int, more: dict[str, Any]
) -> None:
    before = _private(1000, **more)
    before.combiner([]).result()
    after = _private(now, **more)
    after.restore(before.state())
    assert after.released == 1 and after.plan == before.plan
    assert after.spent() == before.spent()
    assert after.clip == before.clip


def test_privacy_over_everybody_goes_on_without_a_device() -> None:
    before, after = _private(20, 20), _private(19, 19)
    after.restore(before.state())
    names = [f"phone-{n}" for n in range(19)]
    assert after.plan == before.plan and after.cohort(names) == sorted(names)


def test_privacy_of_other_settings_and_another_fleet_is_still_refused() -> None:
    state = _private(1000).state()
    for other in (_private(999, noise=0.5), _private(999, 40), _private(999, clip=2.0)):
        with pytest.raises(FederationError, match="other settings"):
            other.restore(state)


# The lock -------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from pfi.federate.lock import RunLock
lock = RunLock(Path(sys.argv[1]), sys.argv[2], wait=0)
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that works in a folder, until it is killed."""

    def __init__(self, folder: Path, name: str) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_run_folder_has_one_process(tmp_path: Path) -> None:
    config = FederateConfig()
    with Holder(tmp_path, ".lock"):
        with pytest.raises(StorageError, match="another process works in this folder"):
            RunLock(tmp_path, wait=0.2)
        with pytest.raises(StorageError, match="another process"):
            RunStore(tmp_path, config, resume=False)
        assert not (tmp_path / "config.yaml").exists()
        RunStore(tmp_path / "other", config, resume=False)
    RunStore(tmp_path, config, resume=False)  # killed, and so it holds nothing


def test_a_lock_is_shared_in_a_process_and_let_go_with_its_last_holder(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.release()
    first.release()
    with pytest.raises(AssertionError), Holder(tmp_path, ".lock"):
        pytest.fail("it got in")
    del second
    with Holder(tmp_path, ".lock"):
        pass


def test_a_server_does_not_start_where_another_is(keys: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        Holder(out, LOCK),
        pytest.raises(StorageError, match="another process"),
    ):
        open_server(keys, out, host="127.0.0.1", port=0)
    assert not (out / "flower.log").exists()
