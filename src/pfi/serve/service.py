"""What the API and the console ask: the opened profiles, each with its runtime, over one engine.

Everything here may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfi._util.threads import choose
from pfi.errors import ConfigError
from pfi.inference.capacity import Footprint
from pfi.inference.engine import Engine, EngineStats, Sampling, Stream
from pfi.memory.embedders import SentenceModel
from pfi.profile.answer.engines import EngineChoice
from pfi.profile.answer.runtime import Prepared, Runtime
from pfi.profile.home import Home
from pfi.serve.config import ServeConfig
from pfi.serve.gatekeeper import Gatekeeper
from pfi.tasks import Task

GENERIC = "generic"
EMBEDDINGS = "minilm"
#: Earlier or present turns of a talk: role and text.
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Model:
    """A model that a request may name.

    Attributes:
        id: ``generic``, a profile's name, or a profile's name, ``/`` and a task's.
        profile: whose adapters and records it uses; those of nobody when None.
        task: what questions are asked as; the profile's own choice when None.
    """

    id: str
    profile: str | None = None
    task: str | None = None


class Service:
    """Opened profiles, and what answers for them.

    Args:
        homes: the devices, by profile.
        config: the server's settings.
        engine: what answers; made by ``config`` on first use when None.
        runtime: makes the runtime of a device over an engine.
    """

    def __init__(
        self,
        homes: Mapping[str, Home],
        config: ServeConfig | None = None,
        *,
        engine: Engine | None = None,
        runtime: Callable[[Home, Engine], Runtime] | None = None,
    ) -> None:
        self.homes = dict(homes)
        self.config = config or ServeConfig()  # type: ignore[call-arg]
        self.gatekeeper = Gatekeeper(self.homes)
        self._engine = engine
        self._make = runtime or _runtime
        self._lock = threading.Lock()
        self._engines: dict[EngineChoice, Engine] = {}
        self._runtimes: dict[str, Runtime] = {}
        self._embedder: SentenceModel | None = None

    @classmethod
    def open(
        cls, profiles: Iterable[str], config: ServeConfig | None = None, *, root: Path | None = None
    ) -> Service:
        """Open profiles by name.

        Raises:
            ConfigError: a name is not allowed, or none is given.
            StorageError: there is no such profile.
        """
        from pfi.profile.open import open_home

        homes = {profile: open_home(profile, root=root) for profile in profiles}
        if not homes:
            raise ConfigError("there is no profile to serve", fix="run `pfi init` first")
        for name in (GENERIC, EMBEDDINGS):
            if name in homes:
                raise ConfigError(f"a profile called {name!r} cannot be served")
        return cls(homes, config)

    @property
    def profiles(self) -> tuple[str, ...]:
        """The names of the opened profiles."""
        return tuple(self.homes)

    def home(self, profile: str) -> Home:
        """The device of an opened profile."""
        return self.homes[profile]

    # Models -------------------------------------------------------------------------

    def models(self, profile: str) -> list[Model]:
        """The models that a profile's tokens open, the generic one last.

        Raises:
            StorageError: the vault cannot be used.
        """
        from pfi.tasks import tasks

        home = self.homes[profile]
        with home.open_vault() as vault:
            found = {*vault.tasks(), home.config.task or ""}
        for store in (home.personal_adapters, home.shared_adapters):
            found |= set(store.all_active())
        known = sorted(found & tasks().keys())
        named = [Model(f"{profile}/{task}", profile, task) for task in known]
        return [Model(profile, profile), *named, Model(GENERIC)]

    def model(self, profile: str, name: str) -> Model | None:
        """The model of that id, for one profile; None when there is none or it is another's."""
        from pfi.tasks import tasks

        if name == GENERIC:
            return Model(GENERIC)
        owner, slash, task = name.partition("/")
        if owner != profile or (slash and task not in tasks()):
            return None
        return Model(name, profile, task or None)

    # Answers ------------------------------------------------------------------------

    def engine(self, profile: str) -> Engine:
        """What answers for a profile; profiles that choose alike share it.

        Raises:
            PfiError: the backbone cannot be loaded.
        """
        if self._engine is not None:
            return self._engine
        from pfi.profile.answer.engines import EngineChoice, make_engine

        home = self.homes[profile]
        choice = EngineChoice.of(home.config, self.config.engine)
        with self._lock:
            if choice not in self._engines:
                rows = self.config.rows
                if self.config.threads is not None:
                    choose(self.config.threads)
                self._engines[choice] = make_engine(choice, home.models_folder, rows=rows)
            return self._engines[choice]

    def load(self) -> None:
        """Load what answers for every profile, rather than when the first request comes.

        Raises:
            PfiError: a backbone or a profile cannot be used.
        """
        from pfi.profile.answer.memory import home_embedder

        for profile, home in self.homes.items():
            _ = home.keys  # asks for the passphrase where there is one
            self.engine(profile)
            if (embedder := home_embedder(home)) is not None:
                embedder.embed(["."])  # two threads that import transformers at once may fail

    def runtime(self, profile: str) -> Runtime:
        """The runtime of a profile."""
        engine = self.engine(profile)
        with self._lock:
            if profile not in self._runtimes:
                self._runtimes[profile] = self._make(self.homes[profile], engine)
            return self._runtimes[profile]

    def task(self, profile: str, name: str | None = None) -> Task:
        """The task of that name, else the profile's own.

        Raises:
            ConfigError: there is no such task.
            StorageError: the vault cannot be used.
        """
        from pfi.profile.answer.runtime import pick_task
        from pfi.tasks import get_task, tasks

        if name is not None and name not in tasks():  # never the path of a file
            raise ConfigError(
                f"unknown task {name[:100]!r}", fix=f"use one of {', '.join(tasks())}"
            )
        return get_task(name) if name else pick_task(self.homes[profile])

    def prepare(
        self,
        profile: str,
        text: str,
        *,
        task: str | None = None,
        k: int | None = None,
        fields: Mapping[str, str] | None = None,
        history: Turns = (),
        named: bool = True,
        alone: bool = False,
        room: int | None = None,
    ) -> Prepared:
        """Make a question to a profile's model ready; see ``Runtime.prepare``."""
        runtime = self.runtime(profile)
        with runtime.home.vault_session():
            chosen = self.task(profile, task)
            return runtime.prepare(
                text,
                chosen,
                k=k,
                fields=fields,
                history=history,
                room=room,
                named=named,
                alone=alone,
            )

    def more(self, profile: str, prepared: Prepared, answer: str) -> Prepared:
        """A question whose answer was cut, to go on with; see ``Runtime.more``."""
        return self.runtime(profile).more(prepared, answer)

    def sampling(
        self, profile: str, task: Task, given: Mapping[str, Any] | None = None
    ) -> Sampling:
        """How an answer of a conversation is decoded; see ``Runtime.sampling``."""
        return self.runtime(profile).sampling(task, given)

    def prepare_generic(self, profile: str, messages: Turns) -> Prepared:
        """Make a talk with the plain backbone ready; ``profile`` says which backbone."""
        prepared = self.runtime(profile).generic(messages)
        # Whose it is: what others asked must not be told from what is cached.
        return replace(prepared, owner=self.homes[profile].keys.profile)

    def stream(self, profile: str, prepared: Prepared, sampling: Sampling | None = None) -> Stream:
        """Start to answer; the stream's ``cancel`` stops it."""
        return self.runtime(profile).stream(prepared, sampling)

    # The rest -----------------------------------------------------------------------

    def embedder(self) -> SentenceModel | None:
        """The sentence model behind `/v1/embeddings`; None where it is not installed."""
        from pfi.memory.embedders import find_embedder

        with self._lock:
            if self._embedder is None:
                self._embedder = find_embedder(EMBEDDINGS)
            return self._embedder

    def stats(self) -> list[EngineStats]:
        """The counts of every engine that is loaded."""
        if self._engine is not None:
            return [self._engine.stats()]
        with self._lock:
            return [engine.stats() for engine in self._engines.values()]

    def footprints(self) -> list[tuple[str, str, Footprint]]:
        """What each engine that is loaded takes, after its backbone's and its own name."""
        with self._lock:
            return [
                (choice.backbone, choice.name, engine.footprint())
                for choice, engine in self._engines.items()
            ]

    def stop(self) -> None:
        """End the answers that are under way, and give no others."""
        with self._lock:
            engines = [*self._engines.values(), *([self._engine] if self._engine else [])]
        for engine in engines:
            engine.close()

    def close(self) -> None:
        """End what runs and close the profiles' files."""
        for runtime in list(self._runtimes.values()):
            runtime.close()
        for engine in [*self._engines.values(), *([self._engine] if self._engine else [])]:
            engine.close()
        self.gatekeeper.close()


def all_profiles(root: Path | None = None) -> list[str]:
    """The names of all profiles on this machine."""
    from pfi.profile.config import CONFIG, DEFAULT_PROFILE
    from pfi.profile.home import home_path

    folder = home_path(DEFAULT_PROFILE, root).parent
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if (path / CONFIG).is_file())


def _runtime(home: Home, engine: Engine) -> Runtime:
    from pfi.profile.answer.runtime import Runtime

    return Runtime(home, engine)
