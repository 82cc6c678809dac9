"""A service for tests of the console: real homes, and a model that answers by rule."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from pfi.inference.engine import Piece, Sampling
from pfi.profile.answer.runtime import Prepared, question_fields
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.serve import ServeConfig, Service
from pfi.serve.app import create_app
from pfi.serve.server import address, listen, make_server
from pfi.tasks import Task, get_task

DAY = datetime(2024, 1, 1, tzinfo=UTC)
#: What makes a question one that is not like the records.
OFF_TOPIC = "capital of France"


def headline(n: int, **changes: Any) -> Record:
    """A record of the task LaMP_4."""
    values = {
        "id": f"h-{n}",
        "task": "LaMP_4",
        "input": {"text": f"The harbour of town {n} was closed because of ice."},
        "output": f"Ice closes harbour {n}",
        "time": DAY + timedelta(days=n),
        "source": "table:headlines.csv",
        **changes,
    }
    return Record(**values)


def make_home(root: Path, profile: str, records: Sequence[Record] = ()) -> Home:
    """A profile whose key is in a file."""
    config = HomeConfig(embedder="none")  # a sentence model takes seconds to load
    home = create_home(profile, root=root, lock="file", config=config)
    with home.open_vault() as vault:
        vault.add(records)
    return home


def configure(home: Home, **teacher: str) -> None:
    """Write a teacher into a profile's `config.yaml`, as who runs the server does."""
    home.config.augment = {"teacher": {"kind": "openai", **teacher}}
    home.save_config()


@dataclass
class Words:
    """An answer, a word a piece."""

    text: str
    seconds: float = 0.0
    cached: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False
    most: int | None = None

    def __iter__(self) -> Iterator[Piece]:
        words = self.text.split(" ")
        for word in words[: self.most]:
            if self.stopped.wait(self.seconds) if self.seconds else self.stopped.is_set():
                self.cancelled = True
                yield Piece("", 0, finish="cancelled")
                return
            yield Piece(f"{word} ")
        cut = self.most is not None and self.most < len(words)
        yield Piece("", 0, finish="length" if cut else "stop")

    def cancel(self) -> None:
        self.stopped.set()


@dataclass
class RuledRuntime:
    """Answers with the best record's output; the generic model with a fixed text."""

    home: Home
    seconds: float = 0.0
    streams: list[Words] = field(default_factory=list)
    asked: list[Prepared] = field(default_factory=list)

    def prepare(
        self,
        text: str,
        task: Task,
        *,
        k: int | None = None,
        fields: Mapping[str, str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        alone: bool = False,
        named: bool = True,
        **_: Any,
    ) -> Prepared:
        if not named and OFF_TOPIC in text:
            task = get_task("instruction")
        values = question_fields(task, text, fields or {})
        if alone and not task.free_form:
            history = ()
        dropped = [turn for turn in history if turn[0] != "system"][:-4]
        history = [turn for turn in history if turn not in dropped]
        with self.home.open_vault() as vault:
            found = tuple(reversed(vault.history(task.name, origin="real")))[: k or 2]
        personal = self.home.personal_adapters.active(task.name)
        prompt = " ".join([*(said for _, said in history), task.prompt(values)])
        return Prepared(
            task, prompt, (), records=found, personal=personal, gate="2 records", owner="x",
            weight=1.0 if personal else 0.0, asked=task.prompt(values),
            dropped_turns=len(dropped),
        )  # fmt: skip

    def sampling(self, task: Task, given: Mapping[str, Any] | None = None) -> Sampling:
        return Sampling(max_tokens=self.home.config.max_tokens)

    def more(self, prepared: Prepared, answer: str) -> Prepared:
        return replace(prepared, prompt=f"{prepared.prompt} {answer}")

    def generic(self, history: Sequence[tuple[str, str]], **_: Any) -> Prepared:
        return Prepared(get_task("instruction"), history[-1][1], (), gate="generic")

    def stream(self, prepared: Prepared, sampling: Sampling | None = None) -> Words:
        self.asked.append(prepared)
        plain = prepared.gate == "generic"
        text = "A plain answer of nobody" if plain else f"Like yours: {_best(prepared)}"
        if prepared.task.labels:
            text = prepared.task.labels[0]
        most = None if sampling is None else sampling.max_tokens
        self.streams.append(Words(text, self.seconds, most=most))
        return self.streams[-1]

    def close(self) -> None:
        """Nothing is open."""


class NoEngine:
    """Nothing is asked of it but to be closed."""

    def close(self) -> None:
        """Nothing is open."""


def _best(prepared: Prepared) -> str:
    return prepared.records[0].output if prepared.records else "nothing known"


def make_service(homes: Sequence[Home], *, seconds: float = 0.0) -> Service:
    """A service whose models need no weights."""
    return Service(
        {home.profile: home for home in homes},
        ServeConfig(),
        engine=NoEngine(),  # type: ignore[arg-type]
        runtime=lambda home, engine: RuledRuntime(home, seconds),  # type: ignore[arg-type]
    )


@contextmanager
def served(service: Service) -> Iterator[tuple[str, FastAPI]]:
    """A server on a free port, in a thread; its address and application."""
    config = ServeConfig(port=0)  # type: ignore[call-arg]
    app, socket = create_app(service, config), listen(config)
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield address(socket), app
    finally:
        server.should_exit = True
        thread.join(20)
        socket.close()


def wait_for(ready: Any, seconds: float = 20.0) -> None:
    """Until something is so."""
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)
