"""How a profile's conversations are decoded: the profile's settings, else the model's own.

Tasks whose answers are scored are decoded greedily whatever these say
(`pfi.inference.answering.sampling_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pfi._util.settings import checked
from pfi.inference.engine import Sampling, generation_defaults
from pfi.models.prompter import Prompter
from pfi.profile.config import HomeConfig


class SamplingConfig(BaseModel):
    """How tokens of a conversation's answers are chosen; None is as the model's own files say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(None, ge=0, le=2, description="greedy when 0")
    top_p: float | None = Field(
        None, gt=0, le=1, description="probability of the tokens that are sampled from"
    )
    top_k: int | None = Field(None, ge=0, description="how many tokens are sampled from; 0: all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="least probability, as a share of the likeliest token's"
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, description="divides the logits of tokens that came before; 1: none"
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="taken from the logits of tokens that were answered"
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="as that, for each time that they were"
    )
    seed: int | None = Field(None, ge=0, description="of the draws; another each time if none")


def conversation_sampling(
    config: HomeConfig, prompter: Prompter, given: Mapping[str, Any] | None = None
) -> Sampling:
    """How a free answer of a conversation is decoded.

    Args:
        config: the profile's settings.
        prompter: knows the model's own.
        given: values of ``Sampling`` that go before both, those that are None left out.

    Raises:
        ConfigError: a setting makes no sense.
    """
    own = checked(SamplingConfig, config.sampling, "sampling").model_dump()
    values = {"max_tokens": config.max_tokens, **_known(own), **_known(given or {})}
    return replace(generation_defaults(prompter), **values)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
