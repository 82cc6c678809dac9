"""The remote teacher against a server that others wrote: `transformers serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

from pfi.augment.cache import TeacherStore
from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig, TeacherConfig
from pfi.augment.teachers.remote import RemoteTeacher
from pfi.augment.teachers.teacher import Call, Message, Reply, TeacherError, Unusable
from pfi.privacy.ledger.ledger import Ledger

MODEL = str(resources.files("pfi.models") / "embedded")


class Answer(BaseModel):
    text: str
    label: Literal["good", "bad"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base_url of a server of the embedded backbone."""
    pytest.importorskip("fastapi", reason="needs transformers[serving]")
    pytest.importorskip("uvicorn", reason="needs transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    program = [str(Path(sys.executable).parent / "transformers"), "serve", MODEL]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*program, *options], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def teacher(url: str, model: str = MODEL) -> RemoteTeacher:
    return RemoteTeacher(
        TeacherConfig(kind="openai", model=model, base_url=url, retries=1, timeout=60)
    )


def call(text: str, **values: object) -> Call:
    messages = (Message("system", "You write records."), Message("user", text))
    return Call("ann", messages, **{"max_tokens": 24, **values})  # type: ignore[arg-type]


def test_text_calls_are_answered_and_counted(server: str) -> None:
    asked = teacher(server)
    assert asked.host == server.split("/")[2]
    greedy = call("Write a title for a story about a river.")
    first, again = asked.answer([greedy, greedy])
    assert isinstance(first, Reply) and first.text
    assert first == again
    assert first.usage.prompt_tokens > 10 and 0 < first.usage.completion_tokens <= 24


def test_calls_with_a_form_end_as_a_reply_or_unusable(server: str) -> None:
    asked = teacher(server)
    calls = [call(f"Write record {i}.", form=Answer, temperature=0.7, seed=i) for i in range(3)]
    for result in asked.answer(calls):
        # A model of this size follows no schema; the server has taken ours and ignored it.
        assert isinstance(result, Reply | Unusable)
        assert result.usage.prompt_tokens > 50 and result.usage.completion_tokens > 0
        if isinstance(result, Reply):
            Answer.model_validate_json(result.text)


def test_the_wrong_model_is_an_error_that_says_so(server: str) -> None:
    with pytest.raises(TeacherError, match="pinned"):
        teacher(server, "someone/else").answer([call("Hi")] * 9)


def test_a_client_asks_it_once_for_each_call_and_keeps_to_its_budget(
    server: str, tmp_path: Path
) -> None:
    calls = [call(f"Write a title about river {i}.", seed=i) for i in range(6)]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with TeacherStore(tmp_path / "teacher.db") as store:
        client = TeacherClient(teacher(server), AugmentConfig(policy="local"), store, ledger)
        replies = client.ask(calls, {})
        assert all(replies) and client.report.paid == 6
        spent = client.report.spent.tokens
    with TeacherStore(tmp_path / "teacher.db") as store:  # another run
        client = TeacherClient(
            teacher("http://127.0.0.1:9/v1"), AugmentConfig(policy="local"), store, ledger
        )
        client.teacher.name = teacher(server).name  # the same one, gone: nothing is asked
        assert client.ask(calls, {}) == replies
        assert (client.report.paid, client.report.spent.tokens) == (0, spent)
    with TeacherStore(tmp_path / "other.db") as store:
        few = AugmentConfig(budget_tokens=260, policy="local")
        client = TeacherClient(teacher(server), few, store, ledger)
        asked = client.ask(calls, {})
        assert 0 < sum(reply is not None for reply in asked) < 6
        assert 0 < client.report.spent.tokens <= 260 and client.report.unpaid
