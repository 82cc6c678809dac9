"""The settings of augmentation: one model for the YAML file, the flags and Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pfi.tasks import Task

Policy = Literal["local", "redact", "none"]


class TeacherConfig(BaseModel):
    """Which teacher, and how it is called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["embedded", "gguf", "local", "openai"] = Field(
        "embedded",
        description="`embedded` (offline, weak), `gguf` (a GGUF file of yours, run by llama.cpp), "
        "`local` (a model's folder of yours), or `openai` (any OpenAI-compatible endpoint)",
    )
    model: str = Field(
        "", description="its file (gguf), its folder or hub id (local), or its name (openai)"
    )
    base_url: str = Field(
        "https://api.openai.com/v1", description="endpoint, e.g. http://localhost:11434/v1"
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="variable that holds the key")
    timeout: float = Field(60.0, gt=0, description="seconds until a call counts as failed")
    retries: int = Field(6, ge=0, description="times a failed call is tried again, with backoff")
    concurrency: int = Field(8, ge=1, description="calls at the same time")
    requests_per_minute: float | None = Field(None, gt=0, description="most calls a minute")
    usd_per_million_prompt: float | None = Field(None, ge=0, description="price of tokens sent")
    usd_per_million_completion: float | None = Field(
        None, ge=0, description="price of tokens received"
    )


class FilterConfig(BaseModel):
    """Which drafts become synthetic records; null turns a filter off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    copy_rouge: float | None = Field(
        0.75, gt=0, le=1, description="ROUGE-L to a real or synthetic record from which on a "
        "draft is a copy"
    )  # fmt: skip
    copy_jaccard: float | None = Field(
        0.5, gt=0, le=1, description="the same for the Jaccard index of word shingles"
    )
    length: float | None = Field(
        3.0, gt=0, description="how far a text's length may lie from that of the user's texts, in "
        "multiples of their spread (both as logarithms)"
    )  # fmt: skip
    form: float | None = Field(
        4.0, gt=0, description="how far its lines and its shares of letters, digits and signs may "
        "lie from those of the user's texts together, in multiples of their spread"
    )  # fmt: skip
    distance: float | None = Field(
        1.1, gt=0, description="largest distance to the user's nearest real records, in multiples "
        "of that of the real record which lies farthest from the others"
    )  # fmt: skip
    agreement: float | None = Field(
        0.6, gt=0, le=1, description="least confidence of the teacher's votes"
    )
    perplexity: float | None = Field(
        0.75, ge=0, description="how far, in nats a token, the device model's loss may lie outside "
        "of the range of the user's real records"
    )  # fmt: skip
    balance: float | None = Field(
        2.0, ge=1, description="most times a label's share may exceed the user's own share of it"
    )
    diversity: float | None = Field(
        0.5, ge=0, le=1, description="weight of being unlike the others against being like the "
        "user's records, when the best are chosen"
    )  # fmt: skip


class AugmentConfig(BaseModel):
    """How synthetic records are made for a user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: TeacherConfig = Field(TeacherConfig(), description="who writes")
    policy: Policy = Field(
        "redact",
        description="what leaves: nothing (local), text without identifiers (redact), or the "
        "text as it is (none)",
    )
    strategies: list[str] = Field(
        [], description="how records are made; what suits the teacher and task by default"
    )
    records: int = Field(32, ge=1, description="synthetic records wanted for a user")
    drafts: float = Field(2.0, ge=1, description="drafts made for each record that is wanted")
    records_per_call: int = Field(6, ge=1, description="most real records that one call shows")
    votes: int = Field(3, ge=1, description="times the teacher gives each new question a label")
    text_votes: int = Field(
        1, ge=1, description="times it answers a question for free text; of one, the likeliest text"
    )
    temperature: float = Field(0.7, ge=0, description="of the teacher's sampling")
    attempts: int = Field(2, ge=1, description="times a call with an unusable answer is made")
    filters: FilterConfig = Field(FilterConfig(), description="which drafts are kept")
    budget_tokens: int | None = Field(None, ge=1, description="most tokens of all calls together")
    budget_usd: float | None = Field(None, gt=0, description="most US dollars")
    seed: int = Field(0, description="decides choices and the sampling")

    def votes_on(self, task: Task) -> int:
        """How often a question of the task is answered."""
        return self.votes if task.labels else self.text_votes
