"""What is known of an adapter's version: its making, and the files that it consists of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class AdapterInfo(BaseModel):
    """What is known of an adapter's making.

    Attributes:
        task: the task it was trained for.
        backbone: the name of the backbone that it fits.
        records: how many records it was trained on, with those of the versions that it goes on
            from since the user last changed.
        parent: the version that was active before it.
        shared: the version of the shared adapter that it sits on, if any.
        seconds: how long training took.
        first_loss, last_loss: mean loss over the first and the last steps.
        metrics: values on held-back records, by name.
        read: when the records that it learnt from were read; None in old manifests.
        held_back: fingerprints of the real records that were there and it did not learn from.
        held_back_losses: its loss on the examples that it was measured on, nats a target token.
    """

    model_config = ConfigDict(extra="forbid")

    task: str
    backbone: str
    records: int = 0
    config: dict[str, Any] = {}
    parent: str | None = None
    shared: str | None = None
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    metrics: dict[str, float] = {}
    read: datetime | None = None
    held_back: list[str] = []
    held_back_losses: list[float] = []


class Manifest(AdapterInfo):
    """The `manifest.json` of one version.

    Attributes:
        version: its number.
        created: when, in UTC.
        sha256: of the files of peft's format, by name.
        sealed: of those files as they lie on the disk; empty where they are not sealed.
    """

    version: str
    created: datetime
    sha256: dict[str, str]
    sealed: dict[str, str] = {}
