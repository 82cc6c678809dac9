"""What quantising costs: an exported model against the one in 32 bits, on the user's own records.

The records are those that the personal adapter has not learnt from, where there are some.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pfi.errors import DataError
from pfi.inference.engine import AdapterRef, Engine, Request, Sampling, text_of
from pfi.models.adapters import Adapter
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.home import Home
from pfi.profile.learn.measuring import answer_scores, example_losses, measured_piece
from pfi.tasks import Example, Task

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

#: The latest examples that are measured.
MOST = 32


class Quality(BaseModel):
    """An exported model beside the one in 32 bits.

    Attributes:
        records: how many examples both were asked.
        held_back: whether the personal adapter has learnt from none of them.
        loss, exact_loss: nats a target token, exported and in 32 bits.
        metrics, exact_metrics: of the task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    records: int
    held_back: bool
    loss: float
    exact_loss: float
    metrics: dict[str, float]
    exact_metrics: dict[str, float]

    @property
    def rise(self) -> float:
        """What the loss has risen by, in nats a token."""
        return self.loss - self.exact_loss

    def __str__(self) -> str:
        kind = "held-back examples" if self.held_back else "examples that it was trained on"
        return (
            f"loss {self.exact_loss:.3f} in 32 bits, {self.loss:.3f} nats a token as written, "
            f"on {self.records} {kind}"
        )


@dataclass(frozen=True)
class Chosen:
    """What is measured on; see ``Quality``."""

    examples: Sequence[Example]
    held_back: bool


def choose_examples(home: Home, task: Task, personal: str | None) -> Chosen:
    """The latest examples that the personal adapter has not learnt from, or the latest of all.

    Raises:
        DataError: there are no records.
        StorageError: the adapter's manifest or the vault is damaged.
    """
    manifest = home.personal_adapters.manifest(personal) if personal else None
    with home.open_vault() as vault:
        history = vault.history(task.name, origin="real")
        new = {record.id for record in history}
        if manifest is not None:
            new = vault.added_since(task.name, manifest.read or manifest.created)
    kept_back = set(manifest.held_back) if manifest else set()
    examples = task.examples(history, random.Random(0))
    if not examples:
        raise DataError(
            f"there are no records of task {task.name} to measure what quantising costs",
            fix="import some, choose --bits f16, or write it unmeasured with --force",
        )
    unseen = [
        example
        for example in examples
        if example.record_id in new or fingerprint(example.record_id) in kept_back
    ]
    return Chosen((unseen or examples)[-MOST:], bool(unseen))


def measure(
    task: Task, chosen: Chosen, exact: Backbone, path: Path, adapter: Adapter | None
) -> Quality:
    """Ask a GGUF file and the model in 32 bits the same questions.

    Args:
        task: whose metrics.
        chosen: the questions.
        exact: the model with all adapters merged in.
        path: the exported file.
        adapter: beside it, where it is not merged in.

    Raises:
        BackboneError: llama.cpp is not installed or cannot load the file.
    """
    from pfi.inference.llama.engine import LlamaEngine

    ref = AdapterRef("exported", lambda: adapter) if adapter else None  # type: ignore[arg-type, return-value]
    with LlamaEngine(exact.prompter, exact.model.config, path, slots=1) as engine:
        losses = [_loss(engine, exact, example, ref) for example in chosen.examples]
        answers = [_answer(engine, task, example.prompt, ref) for example in chosen.examples]
    before = example_losses(exact, chosen.examples)
    return Quality(
        records=len(losses),
        held_back=chosen.held_back,
        loss=sum(losses) / len(losses),
        exact_loss=sum(before) / len(before),
        metrics=task.score(answers, [example.target for example in chosen.examples]),
        exact_metrics=answer_scores(exact, task, chosen.examples),
    )


def _loss(engine: Engine, exact: Backbone, example: Example, ref: AdapterRef | None) -> float:
    """Nats a target token, of the same tokens as in training."""
    piece = measured_piece(exact, example)
    ids, count = list(piece.ids), piece.targets
    return -engine.score(ids[:-count], [ids[-count:]], ref, "export")[0] / count


def _answer(engine: Engine, task: Task, prompt: str, ref: AdapterRef | None) -> str:
    prompter = engine.prompter
    if task.kind == "text":
        new = task.max_new_tokens
        ids = prompter.prompt_ids(prompt, prompter.max_length - new)
        return text_of(engine.generate(Request(ids, ref, Sampling(new), "export"))).strip()
    targets = [prompter.target_ids(label) for label in task.labels]
    ids = prompter.prompt_ids(prompt, prompter.max_length - max(map(len, targets)))
    return task.choose(engine.score(ids, targets, ref, "export"))
