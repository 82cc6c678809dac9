"""Synthetic records in studies: few-record users, resume, workers, a teacher elsewhere."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_server import FaultServer

from pfi._util.events import Event
from pfi.augment.teachers.teacher import TeacherError
from pfi.datasets.demo import write_demo
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.evaluate.study.study import Study
from pfi.privacy.ledger.ledger import Ledger
from pfi.train.config import TrainConfig

Folder = Callable[[str], Path]
QUICK = TrainConfig(rank=2, epochs=1, batch_size=8, learning_rate=1e-2, max_length=128)
ARMS = ["shared", "personal", "cdcda", "synthetic-only+rag", "cdcda-unfiltered", "teacher+rag"]
LOOSE = {"distance": None, "perplexity": None, "agreement": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo: three train users and three to evaluate."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=1, train_users=3, users=3)
    return folder


def config(data: Path, backbone: Path, **changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "data": data,
        "tasks": ["LaMP_3"],
        "arms": ARMS,
        "split": "test",
        "backbone": str(backbone),
        "shared": QUICK,
        "personal": QUICK,
        "bootstrap": 20,
        "max_prompt": 128,
        "retrieval_budget": 32,
        "working_set": 2,
        "records": 4,
        **changes,
    }
    values["augment"] = {"records": 4, "votes": 2, "filters": LOOSE, **values.get("augment", {})}
    return StudyConfig.model_validate(values)


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    copy = json.loads(json.dumps(metrics["arms"]))
    for tasks in copy.values():
        for cell in tasks.values():
            del cell["seconds"]
    return copy


def events(run: Path, kind: str) -> list[Event]:
    return [event for event in EventLog(run / "events.jsonl") if event["event"] == kind]


class _Stop(Exception):
    """Stands for a kill at one moment of a run."""


def stop_after(moments: int) -> Callable[[str, int, int], None]:
    left = moments

    def stop(text: str, done: int, planned: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Stop

    return stop


def test_users_are_cut_and_learn_from_what_they_need(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    settings = config(data, backbone_folder("llama"), tasks=["LaMP_3", "LaMP_2M"])
    metrics = Study(settings, tmp_path / "run").run()
    for tasks in metrics["arms"].values():
        for cell in tasks.values():
            assert {user["history"] for user in cell["users"].values()} == {4}
    made = events(tmp_path / "run", "augmented")
    assert len(made) == 6 and {event["real"] for event in made} == {4}
    assert all(0 < event["records"] <= 4 for event in made)
    count = {(e["task"], e["user"]): e["records"] for e in made}
    examples = {
        (e["adapter"], e["task"], e["user"]): e["examples"]
        for e in events(tmp_path / "run", "trained")
        if e["adapter"] != "shared"
    }
    for (kind, task, user), number in examples.items():
        synthetic = count[task, user]
        expected = {"personal": 4, "cdcda": 4 + synthetic, "synthetic-only": synthetic}
        assert number == expected.get(kind, number)
        assert kind != "cdcda-unfiltered" or 4 < number <= 8
    assert len(examples) == 4 * 6
    assert "Augmentation" in (tmp_path / "run" / "report.html").read_text()


def test_real_records_are_not_all_held_back(data: Path, backbone_folder: Folder) -> None:
    held_back = {"personal": {**QUICK.model_dump(), "held_back": 0.2}}
    with pytest.raises(ValueError, match=r"mix\.order=synthetic-first"):
        config(data, backbone_folder("llama"), **held_back)
    config(data, backbone_folder("llama"), **held_back, arms=["personal", "synthetic-only"])
    config(data, backbone_folder("llama"), **held_back, mix={"order": "synthetic-first"})


@pytest.mark.parametrize("order", ["mixed", "synthetic-first"])
def test_a_stopped_run_resumes_to_the_same_figures(
    data: Path, backbone_folder: Folder, tmp_path: Path, order: str
) -> None:
    settings = config(data, backbone_folder("llama"), mix={"order": order})
    moments: list[str] = []

    def count(text: str, done: int, planned: int) -> None:
        moments.append(text)

    whole = comparable(Study(settings, tmp_path / "whole", on_progress=count).run())
    first = next(i for i, text in enumerate(moments) if "augmenting" in text)
    for moment in (first, first + 1, (first + len(moments)) // 2, len(moments) - 2):
        out = tmp_path / f"at-{moment}"
        with pytest.raises(_Stop):
            Study(settings, out, on_progress=stop_after(moment)).run()
        assert comparable(Study(settings, out, resume=True).run()) == whole
        for kind in ("trained", "augmented"):
            keys = [(e.get("adapter"), e["user"]) for e in events(out, kind)]
            assert len(keys) == len(set(keys)) > 0


def test_workers_give_the_same_figures(data: Path, backbone_folder: Folder, tmp_path: Path) -> None:
    settings = config(data, backbone_folder("llama"))
    alone = comparable(Study(settings, tmp_path / "alone").run())
    both = settings.model_copy(update={"workers": 2})
    assert comparable(Study(both, tmp_path / "both").run()) == alone


# A teacher elsewhere ------------------------------------------------------------------------


def elsewhere(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a teacher at a server that counts as being elsewhere."""
    from pfi.augment.teachers import remote

    real = remote.RemoteTeacher.__init__

    def init(self: Any, *args: Any, **named: Any) -> None:
        real(self, *args, **named)
        self.host = "teacher.example"

    monkeypatch.setattr(remote.RemoteTeacher, "__init__", init)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)
    teacher = {"kind": "openai", "model": "m", "base_url": server.url, "concurrency": 4}
    return {"teacher": teacher}


def test_nothing_is_paid_twice_and_all_that_left_is_in_the_ledger(
    data: Path, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as server:
        settings = config(data, backbone_folder("llama"), augment=elsewhere(server, monkeypatch))
        whole = comparable(Study(settings, tmp_path / "whole").run())
        calls = len(server.paid)
    with FaultServer(rate=0.4) as server:
        broken = config(data, backbone_folder("llama"), augment=elsewhere(server, monkeypatch))
        out = tmp_path / "run"
        with pytest.raises(_Stop):
            Study(broken, out, on_progress=stop_after(12)).run()
        assert 0 < len(server.paid) < calls
        assert comparable(Study(broken, out, resume=True).run()) == whole
        assert len(server.paid) == calls and set(server.paid.values()) == {1}
        assert len(server.requests) > calls
    ledger = Ledger(out / "ledger.jsonl")
    assert ledger.verify() == calls
    assert {entry.to for entry in ledger.entries()} == {"teacher.example"}
    assert {entry.policy for entry in ledger.entries()} == {"redact"}


def test_a_budget_stops_the_run_until_it_is_raised(
    data: Path, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ["shared", "cdcda", "teacher"]
    with FaultServer() as server:
        asked = elsewhere(server, monkeypatch)
        settings = config(data, backbone_folder("llama"), augment=asked, arms=arms)
        whole = comparable(Study(settings, tmp_path / "whole").run())
        calls = len(server.paid)
    with FaultServer() as server:
        asked = elsewhere(server, monkeypatch)
        out = tmp_path / "run"
        few = config(
            data, backbone_folder("llama"), augment={**asked, "budget_tokens": 12_000}, arms=arms
        )
        with pytest.raises(TeacherError, match=r"budget.*is spent.*--resume"):
            Study(few, out).run()
        assert 0 < len(server.paid) < calls
        # A user whose answers are not all there is not kept as if nothing had come of them.
        assert all(event["records"] > 0 for event in events(out, "augmented"))
        more = config(data, backbone_folder("llama"), augment=asked, arms=arms)
        assert comparable(Study(more, out, resume=True).run()) == whole
        assert len(server.paid) == calls and set(server.paid.values()) == {1}


def test_a_server_in_trouble_stops_the_run_and_costs_no_result(
    data: Path, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as server:
        asked = elsewhere(server, monkeypatch)
        settings = config(data, backbone_folder("llama"), augment=asked, arms=["cdcda"])
        whole = comparable(Study(settings, tmp_path / "whole").run())
    with FaultServer(["ok"] * 5 + ["500"] * 3) as server:
        asked = elsewhere(server, monkeypatch)
        asked["teacher"] |= {"concurrency": 1, "retries": 2}
        settings = config(data, backbone_folder("llama"), augment=asked, arms=["cdcda"])
        with pytest.raises(TeacherError, match=r"server failed on 1 calls.*--resume"):
            Study(settings, tmp_path / "run").run()
        assert comparable(Study(settings, tmp_path / "run", resume=True).run()) == whole


def test_what_a_real_teacher_is_sent_holds_nothing_planted(
    data: Path, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted where text is cut, lowered or divided before it is shown; see ``Guard``."""
    from pfi.augment.cache import TeacherStore
    from pfi.augment.client import TeacherClient
    from pfi.augment.config import AugmentConfig
    from pfi.augment.pipeline import Augmenter
    from pfi.augment.teachers.make import make_teacher
    from pfi.records import History, Record
    from pfi.tasks import get_task

    class NoJudge:
        def embed(self, texts: Any) -> Any:
            raise AssertionError

        def losses(self, examples: Any) -> Any:
            raise AssertionError

    # Half of an IBAN, or a name in lower case, is no longer known for what it is.
    secrets = ["de89 3704", "0532 0130 00", "maria", "lopes"]
    text = "Pay DE89 3704 0044 0532 0130 00 to Maria Lopes soon, and some more words! " * 6
    off = dict.fromkeys(("copy_rouge", "copy_jaccard", "distance", "agreement", "perplexity"))
    filters = {**off, "balance": None, "diversity": None}
    for name in ("LaMP_7", "continuation", "LaMP_6"):
        task = get_task(name)
        fields = dict.fromkeys(task.inputs, text)
        output = text if not task.inputs else "A title by Maria Lopes"
        history = History("u", [Record(str(i), name, fields, f"{output} {i}") for i in range(4)])
        pool = [Record(f"p{i}", name, fields, f"{output} pool {i}") for i in range(4)]
        with FaultServer() as server, TeacherStore(tmp_path / f"{name}.db") as store:
            asked = elsewhere(server, monkeypatch)
            settings = AugmentConfig.model_validate(
                {**asked, "records": 4, "filters": filters, "strategies": [
                    "write", "relabel", "vary", "profile"
                ]}
            )  # fmt: skip
            teacher = make_teacher(settings.teacher, embedded=lambda: None)  # type: ignore[arg-type,return-value]
            client = TeacherClient(teacher, settings, store, Ledger(tmp_path / f"{name}.jsonl"))
            # Every text is cut in the middle of something.
            augmenter = Augmenter(
                task,
                settings,
                client,
                NoJudge(),
                lambda text, tokens: text[:24],
                pool=pool,
                names=["Maria Lopes"],
            )
            augmenter.augment([history])
            sent = json.dumps([request.body for request in server.requests]).lower()
            assert "name_1" in sent and "iban_1" in sent
            assert not [secret for secret in secrets if secret in sent], name


@pytest.mark.slow
def test_twenty_kills_end_with_the_same_figures(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    """`kill -9` at random moments of one study, again and again."""
    with FaultServer(latency=0.02) as server:
        teacher = {"kind": "openai", "model": "m", "base_url": server.url, "concurrency": 4}
        settings = config(
            data, backbone_folder("llama"), tasks=["LaMP_3", "LaMP_4"],
            augment={"teacher": teacher, "records": 8},
        )  # fmt: skip
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "pfi.cli", "study", "--config", str(file)]
        whole = tmp_path / "whole"
        started = time.monotonic()
        subprocess.run([*command, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - started
        calls = len(server.paid)
        server.paid.clear()
        rng, kills, again, runs = random.Random(0), 0, 0, 0
        while kills < 20:  # a run that ends before makes room for another one
            out, before, runs = tmp_path / f"killed-{runs}", kills, runs + 1
            while True:
                resume = ["--resume"] if (out / "config.yaml").exists() else []
                run = [*command, "--out", str(out), *resume]
                process = subprocess.Popen(run, stdout=subprocess.DEVNULL)
                try:
                    seconds = rng.uniform(0.3, 0.6) * took if kills < 20 else None
                    assert process.wait(seconds) == 0
                    break
                except subprocess.TimeoutExpired:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
            found, expected = (
                comparable(json.loads((folder / "metrics.json").read_text()))
                for folder in (out, whole)
            )
            assert found == expected
            twice = sum(times - 1 for times in server.paid.values())
            assert len(server.paid) == calls and twice <= 4 * (kills - before)
            server.paid.clear()
            again += twice
        print(f"{kills} kills, {calls} calls a run, {again} of all paid again")
