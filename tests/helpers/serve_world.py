"""A server on a free port of this machine, and an engine that says what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from pfi.inference.capacity import Footprint
from pfi.inference.engine import AdapterRef, EngineStats, Piece, Request, Scoring
from pfi.memory.embedders import HashEmbedder
from pfi.models.prompter import Prompter, load_prompter
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.serve import ServeConfig, Service
from pfi.serve.app import create_app
from pfi.serve.auth import new_token
from pfi.serve.server import address, listen, make_server

DAY = datetime(2024, 1, 1, tzinfo=UTC)


@cache
def prompter() -> Prompter:
    return load_prompter("embedded")


class WordEmbedder(HashEmbedder):
    """A sentence model that every machine has; words count as its tokens."""

    def count(self, texts: list[str]) -> int:
        return sum(len(text.split()) for text in texts)


@dataclass
class FakeStream:
    """Says its text a few characters at a time; a piece counts as a token."""

    engine: FakeEngine
    text: str
    most: int
    stop: tuple[str, ...]
    cached: int = 3
    ended: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Piece]:
        if self.engine.fails is not None:
            raise self.engine.fails
        text = self.text
        for stop in self.stop:
            text = text.partition(stop)[0]
        parts = [text[at : at + self.engine.size] for at in range(0, len(text), self.engine.size)]
        for part in parts[: self.most]:
            if self.ended.wait(self.engine.delay):
                self.engine.cancelled += 1
                yield Piece("", 0, finish="cancelled")
                return
            self.engine.tokens += 1
            yield Piece(part, 1, (-0.5,))
        yield Piece("", 0, finish="length" if len(parts) > self.most else "stop")

    def cancel(self) -> None:
        self.ended.set()


@dataclass
class FakeEngine:
    """Answers with the adapter's key, the owner and the prompt of each request."""

    delay: float = 0.0
    fails: Exception | None = None
    cancelled: int = 0
    tokens: int = 0
    requests: list[Request] = field(default_factory=list)
    name: str = "fake"
    answer: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    capacity: int = 20
    size: int = 8
    loads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def prompter(self) -> Prompter:
        return prompter()

    def generate(self, request: Request) -> FakeStream:
        self.requests.append(request)
        adapter = self._adapter(request.adapter)
        text = f"[{adapter}] [{request.owner}] {self.prompter.text(request.prompt)}"
        sampling = request.sampling
        if self.answer is not None:
            text = self.answer
        return FakeStream(self, text, sampling.max_tokens, sampling.stop)

    def generate_all(self, requests: Sequence[Request]) -> list[FakeStream]:
        return [self.generate(request) for request in requests]

    def score_all(self, asked: Sequence[Scoring]) -> list[list[float]]:
        return [self.score(one.prompt, one.targets) for one in asked]

    def _adapter(self, ref: AdapterRef | None) -> str:
        """What an adapter's weights say; they are read once for as long as its key is known."""
        if ref is None:
            return "no adapter"
        with self.lock:
            if ref.key not in self.adapters:
                if len(self.adapters) >= self.capacity:
                    del self.adapters[next(iter(self.adapters))]
                weights = ref.load().weights
                self.adapters[ref.key] = f"adapter {next(iter(weights.values())).mean():.0f}"
                self.loads += 1
            return self.adapters[ref.key]

    def score(
        self,
        prompt: Sequence[int],
        targets: Sequence[Sequence[int]],
        adapter: AdapterRef | None = None,
        owner: str = "",
    ) -> list[float]:
        return [-float(at) for at, _ in enumerate(targets)]

    def stats(self) -> EngineStats:
        return EngineStats(requests=len(self.requests), new_tokens=self.tokens)

    def footprint(self) -> Footprint:
        return Footprint(98 << 20, 360 << 20, 4, 4096, 1)

    def close(self) -> None:
        pass


def make_homes(root: Path, names: Sequence[str], records: int = 3) -> dict[str, Home]:
    """Profiles with records that say whose they are."""
    homes = {}
    for name in names:
        home = create_home(name, root=root, config=HomeConfig(embedder="none"), lock="file")
        with home.open_vault() as vault:
            vault.add(
                Record(
                    id=f"{name}-{n}",
                    task="instruction",
                    input={"instruction": f"secret of {name} number {n}"},
                    output=f"answer of {name} {n}",
                    time=DAY + timedelta(days=n),
                )
                for n in range(records)
            )
        homes[name] = home
    return homes


@dataclass
class World:
    """A running server.

    Attributes:
        url: of the API.
        tokens: one of every profile.
    """

    url: str
    app: Any
    service: Service
    engine: Any
    tokens: Mapping[str, str]

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def client(self, profile: str, **options: Any) -> Any:
        import openai

        options = {"max_retries": 0, "timeout": 20, **options}
        return openai.OpenAI(base_url=self.url, api_key=self.tokens[profile], **options)

    def headers(self, profile: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[profile]}"}


@contextmanager
def serving(
    homes: Mapping[str, Home], engine: Any | None, config: ServeConfig | None = None
) -> Iterator[World]:
    """A server in a thread."""
    config = config or ServeConfig()  # type: ignore[call-arg]
    config = replace_config(config, port=0)
    scopes = ("answer", "memory")
    tokens = {name: new_token(home, scopes=scopes)[1] for name, home in homes.items()}
    prompter()  # two threads that import transformers at once may fail
    service = Service(homes, config, engine=engine)
    app = create_app(service, config)
    socket = listen(config)
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        yield World(f"{address(socket)}/v1", app, service, engine, tokens)
    finally:
        server.should_exit = True
        thread.join(20)
        socket.close()
        assert not thread.is_alive()


def replace_config(config: ServeConfig, **changes: Any) -> ServeConfig:
    return ServeConfig.model_validate({**config.model_dump(), **changes})
