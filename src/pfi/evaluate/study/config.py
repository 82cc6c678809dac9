"""The configuration of a study: one model for the YAML file, the flags and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pfi._util.seeds import seed_of
from pfi.augment.config import AugmentConfig
from pfi.errors import ConfigError
from pfi.evaluate.study.arms import DEFAULT_ARMS, FEDERATED, Kind, get_arm
from pfi.federate.config import FederateConfig, LocalConfig
from pfi.federate.strategies import check
from pfi.gate.choices import GateConfig
from pfi.memory.config import SearchConfig
from pfi.train.config import TrainConfig
from pfi.train.examples import MixConfig

#: Settings of a teacher that change no answer.
_CALLING = ("timeout", "retries", "concurrency", "requests_per_minute", "api_key_env")

#: A client's adapter has the size of the one that is trained centrally.
_LOCAL = LocalConfig(rank=16, alpha=32)


class StreamConfig(BaseModel):
    """How a history is replayed in time order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int = Field(4, ge=1, description="records before the first update of an adapter")
    every: int = Field(4, ge=1, description="records from one update to the next")
    replay: int | None = Field(
        None,
        ge=0,
        description="older records that an update learns from beside the new ones, the latest "
        "of them; null: all",
    )
    anew: bool = Field(
        False, description="each update begins with fresh factors, not with the current adapter"
    )
    epochs: float = Field(1.0, gt=0, description="passes of an update over its records")
    steps: int | None = Field(None, ge=1, description="a user's first records; null: all")
    questions: bool = Field(
        False, description="ask the user's questions too, after their last record"
    )
    window: int = Field(4, ge=1, description="steps whose scores are averaged in plots and tables")
    flip: float | None = Field(
        None, gt=0, lt=1, description="share of a user's stream after which their labels change"
    )


class StudyConfig(BaseModel):
    """What a study compares, on which data, and how adapters are trained."""

    model_config = ConfigDict(extra="forbid")

    data: Path = Field(description="folder with <task>/<split>_questions.json")
    tasks: list[str] = Field([], description="tasks to run; all tasks of the folder by default")
    arms: list[str] = Field(DEFAULT_ARMS, description="methods to compare")
    protocol: Literal["questions", "stream"] = Field(
        "questions",
        description="`questions`: the users' questions under every arm; `stream`: their histories "
        "in time order",
    )
    split: str = Field("dev", description="reads <split>_questions.json and <split>_outputs.json")
    train_split: str = Field("train", description="the split of the users of the shared adapter")
    train_data: Path | None = Field(None, description="folder of the train split, if another")
    users: int | None = Field(None, ge=1, description="a random sample of users a task")
    train_users: int | None = Field(None, ge=1, description="a random sample of train users")
    backbone: str = Field(
        "embedded",
        description="'embedded', a model of `pfi models list`, a folder, a .gguf file or a hub id",
    )
    thinking: bool = Field(
        False, description="whether a thinking model thinks before an answer in free text"
    )
    engine: Literal["bank", "peft"] = Field(
        "bank",
        description="what trains the adapters: `bank` many in one pass, `peft` one by one",
    )
    working_set: int = Field(16, ge=1, description="users trained and answered together")
    workers: int = Field(
        1, ge=1, description="processes; changes no result, but for a budget's end"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads that compute, of all workers together; as many as cores are free if "
        "none",
    )
    seed: int = Field(0, description="decides samples, orders and initial weights")
    retrieve: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("retrieve", "k"),
        description="records retrieved for a prompt",
    )
    search: SearchConfig = Field(
        SearchConfig(how="bm25"), description="how memory is searched, where the arm does not say"
    )
    embedder: str = Field(
        "minilm", description="sentence model of dense and hybrid search: minilm, or a folder"
    )
    record_tokens: int = Field(
        224,
        ge=16,
        validation_alias=AliasChoices("record_tokens", "retrieval_budget"),
        description="tokens of a prompt's records together",
    )
    retrieval_share: float = Field(
        0.5, ge=0, le=1, description="share of training examples that carry retrieved records"
    )
    history: int | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("history", "records"),
        description="cut users to so many last records before their first question",
    )
    max_prompt: int | None = Field(
        None,
        ge=32,
        description="longest prompt, in tokens; what the backbone's context leaves when null",
    )
    shared: TrainConfig = Field(
        TrainConfig(rank=16, alpha=32, epochs=3, batch_size=16, learning_rate=2e-3),
        description="how the shared adapter is trained",
    )
    personal: TrainConfig = Field(
        TrainConfig(rank=8, alpha=16, epochs=3, batch_size=4, learning_rate=1e-3),
        description="how personal adapters are trained",
    )
    shared_how: str = Field(
        "central",
        pattern=r"^(central|fed:[a-z0-9-]+)$",
        description="how the shared adapter of all arms but shared-fed: is learnt: `central`, or "
        "`fed:STRATEGY` by federation",
    )
    federation: FederateConfig = Field(
        FederateConfig(local=_LOCAL),
        description="how it is learnt by federation, each train user a client",
    )
    augment: AugmentConfig = Field(
        AugmentConfig(), description="how synthetic records are made, for the arms that use them"
    )
    mix: MixConfig = Field(
        MixConfig(), description="how they are trained on beside the real records"
    )
    gate: GateConfig = Field(
        GateConfig(), description="what the gate chooses from, for the arms that have one"
    )
    population_split: str | None = Field(
        None,
        description="split of the users whose gains are the gate's prior; dev where there is one "
        "and it is not answered for, else the train split",
    )
    population_users: int = Field(48, ge=2, description="a random sample of them")
    pool: Path | None = Field(
        None,
        description="folder with <task>/pool_questions.json: public records for the teacher; "
        "those of train users stand in for them",
    )
    pool_users: int = Field(200, ge=0, description="users of the pool; 0: no pool")
    shared_from: Path | None = Field(
        None, description="run folder whose shared adapters are used instead of training new ones"
    )
    stream: StreamConfig = Field(
        StreamConfig(), description="how histories are replayed, for the protocol stream"
    )
    forgetting: int = Field(
        0,
        ge=0,
        description="users a task whose adapters are measured on general text and questions, "
        "beside the shared one; 0: none is",
    )
    bootstrap: int = Field(1000, ge=1, description="bootstrap draws")

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, names: list[str]) -> list[str]:
        return [get_arm(name).name for name in dict.fromkeys(names)]

    @field_validator("federation", mode="before")
    @classmethod
    def _keeps_defaults(cls, given: Any) -> Any:
        """A section that says nothing of rank and scale has those of a study."""
        local = given.get("local", {}) if isinstance(given, dict) else None
        if not isinstance(local, dict):
            return given
        return {**given, "local": {"rank": _LOCAL.rank, "alpha": _LOCAL.alpha, **local}}

    @field_validator("federation")
    @classmethod
    def _fits_its_strategy(cls, federation: FederateConfig) -> FederateConfig:
        return check(federation, "federation", "see docs/studies.md")

    @field_validator("shared_how")
    @classmethod
    def _known_strategy(cls, how: str) -> str:
        if how != "central":
            get_arm(FEDERATED + how.removeprefix("fed:"))
        return how

    @model_validator(mode="after")
    def _measures_real_records(self) -> StudyConfig:
        mixes = any(kind.real and kind.synthetic for kind in map(_kind, self.arms) if kind)
        if mixes and self.personal.held_back and self.mix.order == "mixed":
            # The newest share of synthetic and real records together would be the real ones.
            raise ValueError("personal.held_back needs mix.order=synthetic-first with these arms")
        return self

    @model_validator(mode="after")
    def _federations(self) -> StudyConfig:
        """The settings of federation make sense with each strategy that is to be run."""
        names = {self.strategy, *(get_arm(arm).federated for arm in self.arms)} - {""}
        if names and self.federation.secure is not None:
            raise ValueError("federation.secure: a study's clients are simulated and have no keys")
        for name in sorted(names):
            try:
                check(self.federation.model_copy(update={"strategy": name}))
            except ConfigError as error:
                raise ValueError(f"federation: {error.what}") from error
        return self

    @property
    def strategy(self) -> str:
        """The strategy by which the shared adapter of most arms is learnt; "" if centrally."""
        return "" if self.shared_how == "central" else self.shared_how.removeprefix("fed:")

    @property
    def shared_kind(self) -> str:
        """The name of that adapter in ``checkpoints/`` and in events."""
        return FEDERATED + self.strategy if self.strategy else "shared"

    def seed_of(self, *parts: object) -> int:
        """A seed for one unit of work, the same whenever and wherever it is run."""
        return seed_of(self.seed, *parts)

    def same_results(self, other: StudyConfig) -> bool:
        """Whether a run with ``other`` goes on from this one.

        All is equal but the workers, the threads, the budget, how fast and how often a teacher is
        called, and of how many users forgetting is measured.
        """
        workers = {"workers": other.federation.simulate.workers}
        simulate = self.federation.simulate.model_copy(update=workers)
        federation = self.federation.model_copy(update={"simulate": simulate})
        mine, theirs = self.augment, other.augment
        calling = {name: getattr(theirs.teacher, name) for name in _CALLING}
        free: dict[str, Any] = {"teacher": mine.teacher.model_copy(update=calling)}
        free |= {name: getattr(theirs, name) for name in ("budget_tokens", "budget_usd")}
        augment = mine.model_copy(update=free)
        free = {"augment": augment, "federation": federation}
        free |= {n: getattr(other, n) for n in ("workers", "threads", "forgetting")}
        return self.model_copy(update=free) == other


def _kind(arm: str) -> Kind | None:
    return get_arm(arm).kind
