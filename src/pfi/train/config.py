"""How adapters are trained and what they may forget: for YAML files, flags and Python alike.

Needs no model library.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pfi.models.adapters import AdapterConfig


class TrainConfig(AdapterConfig):
    """How an adapter is trained: AdamW, linear warm-up, linear decay to zero."""

    epochs: float = Field(3.0, gt=0, description="passes over the examples")
    batch_size: int = Field(8, ge=1, description="examples a step")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising rate")
    clip: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    max_length: int = Field(640, ge=16, description="longest prompt and target, in tokens")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the forward and backward pass; factors and updates stay float32. auto: "
        "bfloat16 for models of 50 M parameters or more where the machine multiplies it",
    )
    held_back: float = Field(
        0.0, ge=0, lt=1, description="newest share of the examples, measured after every epoch"
    )
    patience: int = Field(
        1, ge=1, description="epochs without a better held-back loss before training stops early"
    )
    general: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the examples that are general text and questions, on which the model "
        "is held to what it was",
    )


class ForgettingConfig(BaseModel):
    """What is measured of the forgetting of an adapter, and what is too much."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passages: int = Field(
        64,
        ge=0,
        le=200,
        description="passages of general text that are read; 0: nothing is measured",
    )
    questions: int = Field(32, ge=0, le=100, description="general questions that are asked")
    bound: float | None = Field(
        0.1,
        gt=0,
        description="rise of the loss on general text, in nats a token, beyond which an adapter is "
        "not taken into use unasked; null: any",
    )
    weights: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.5, 0.25],
        description="weights of an adapter that are tried in turn where it is beyond the bound",
    )
