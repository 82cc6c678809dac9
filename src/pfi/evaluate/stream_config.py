"""The settings of the stream protocol: when personal adapters are updated, and on what."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
