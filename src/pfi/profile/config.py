"""The settings of a profile, in `config.yaml`; they tell nothing of a person."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from pfi._util.settings import checked
from pfi.memory.config import SearchConfig

DEFAULT_PROFILE = "default"
CONFIG = "config.yaml"


class HomeConfig(BaseModel):
    """What `config.yaml` holds, which is not encrypted: settings that tell nothing of a person.

    What does is in the vault, see `Vault.setting`.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    backbone: str = Field(
        default="embedded",
        min_length=1,
        description="'embedded', a model of `pfi models list`, a folder, a .gguf file or a hub id",
    )
    engine: Literal["auto", "torch", "llama.cpp"] = Field(
        default="auto", description="what answers; `pfi plan --apply` chooses"
    )
    bits: Literal["auto", "f32", "bf16", "f16", "q8_0", "q4_k_m"] = Field(
        default="auto", description="how the engine holds the backbone's weights"
    )
    context: int | None = Field(
        default=None, ge=64, description="longest prompt and answer in tokens, not the backbone's"
    )
    threads: int | None = Field(
        default=None, ge=1, description="threads that compute; as many as cores are free if none"
    )
    thinking: bool = Field(
        default=False,
        description="whether a thinking model thinks before an answer in free text; its thoughts "
        "are not shown",
    )
    task: str | None = Field(default=None, description="the task of questions that name none")
    retrieve: int = Field(
        default=2,
        ge=0,
        le=32,
        validation_alias=AliasChoices("retrieve", "records"),
        description="records retrieved for a prompt",
    )
    record_tokens: int = Field(
        default=224, ge=8, description="tokens of a prompt's records together"
    )
    summary_tokens: int = Field(
        default=0,
        ge=0,
        le=256,
        description="tokens of a summary of one's records before each prompt; 0: none",
    )
    search: dict[str, Any] = Field(
        default={}, description="settings of the search for them, where not as by default"
    )
    embedder: str = Field(
        default="auto",
        min_length=1,
        description="sentence model for search by meaning: minilm, a folder, none, or auto: "
        "minilm where it is installed",
    )
    train: dict[str, Any] = Field(
        default={}, description="training settings other than the defaults"
    )
    mix: dict[str, Any] = Field(
        default={}, description="how synthetic records are trained on, where not as by default"
    )
    augment: dict[str, Any] = Field(
        default={}, description="augmentation settings other than the defaults"
    )
    gate: dict[str, Any] = Field(default={}, description="gate settings other than the defaults")
    sampling: dict[str, Any] = Field(
        default={},
        description="how tokens of a conversation are chosen, where not as the model's own files "
        "say: temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, "
        "frequency_penalty, seed",
    )
    max_tokens: int = Field(
        default=512, ge=1, description="longest answer of a conversation in tokens"
    )
    refresh: dict[str, Any] = Field(
        default={}, description="refresh settings other than the defaults"
    )
    forgetting: dict[str, Any] = Field(
        default={},
        description="what is measured of the forgetting of adapters and what is too much, where "
        "not as by default",
    )
    refresh_after: int | None = Field(
        default=None, ge=1, description="new records after which `pfi refresh` runs by itself"
    )
    answers: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="last questions and answers that are kept for `pfi feedback --last`; 0: none",
    )


def search_config(config: HomeConfig) -> SearchConfig:
    """How a device's memory is searched: the profile's settings, else the defaults.

    Raises:
        ConfigError: one of them makes no sense.
    """
    return checked(SearchConfig, config.search, "search settings")
