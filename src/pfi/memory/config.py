"""How memory is searched: one model for a study's settings and a device's profile."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

How = Literal["auto", "recent", "bm25", "dense", "hybrid"]


class SearchConfig(BaseModel):
    """How records are found for a question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    how: How = Field(
        "auto",
        description="`recent` (the latest), `bm25` (by words), `dense` (by meaning), `hybrid` "
        "(both), or `auto`: hybrid where a sentence model is installed, else bm25",
    )
    recency: float = Field(
        0.0, ge=0, description="weight of being recent, beside 1 for each of words and meaning"
    )
    diversity: float = Field(
        0.0, ge=0, le=1, description="weight of being unlike the records already chosen"
    )
    depth: int = Field(50, ge=1, description="records of each ranking that are fused")
