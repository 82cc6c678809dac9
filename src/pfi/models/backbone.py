"""Backbones: any Hugging Face causal or seq2seq model, or the embedded one, behind one type.

Only safetensors weights are read and no code from a model repository is ever run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pfi._util.threads import apply_threads
from pfi.models.generation_config import NO_SETTINGS, GenerationSettings
from pfi.models.gguf.header import is_gguf
from pfi.models.gguf.source import read_config
from pfi.models.gguf.weights import load_model
from pfi.models.probe import check_reading
from pfi.models.prompter import EMBEDDED, Prompter, load_prompter, reading
from pfi.models.shapes import LOADING, check_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pfi.models.adapters import Adapter

__all__ = ["EMBEDDED", "Backbone", "load_backbone"]


@dataclass(frozen=True)
class Backbone:
    """A frozen foundation model and its tokenizer.

    Attributes:
        name: what it was loaded by.
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer, with a padding token.
        seq2seq: whether it is an encoder-decoder model.
        max_length: the longest sequence it accepts, in tokens.
        generation: what its own files say of its answers.
        thinking: see ``Prompter``.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    seq2seq: bool
    max_length: int
    generation: GenerationSettings = NO_SETTINGS
    thinking: bool = False

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def prompter(self) -> Prompter:
        """What of it needs no weights."""
        return Prompter(
            self.name,
            self.tokenizer,
            self.seq2seq,
            self.max_length,
            self.generation,
            self.thinking,
        )

    @property
    def end_id(self) -> int:
        """The token that closes an answer."""
        return self.prompter.end_id

    @property
    def end_ids(self) -> frozenset[int]:
        """All tokens that end an answer."""
        return self.prompter.end_ids

    @property
    def pad_id(self) -> int:
        """The token that fills up a batch; its positions are masked.

        A padding token that was added to the tokenizer only is none of the model's.
        """
        pad = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        known = self.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        return pad if pad < known else min(self.end_id, known - 1)

    def token_ids(self, text: str) -> list[int]:
        """See ``Prompter``."""
        return self.prompter.token_ids(text)

    def trim(self, text: str, tokens: int) -> str:
        """See ``Prompter``."""
        return self.prompter.trim(text, tokens)

    def prompt_ids(self, prompt: str, limit: int | None = None) -> list[int]:
        """See ``Prompter``."""
        return self.prompter.prompt_ids(prompt, limit)

    def target_ids(self, target: str, limit: int | None = None) -> list[int]:
        """See ``Prompter``."""
        return self.prompter.target_ids(target, limit)

    @contextmanager
    def rows(self, slots: Sequence[int] | None) -> Iterator[None]:
        """Say which slot's adapter each row of the coming batches uses.

        A backbone of its own has no slots and ignores it; see ``AdapterBank.backbone``.
        """
        yield

    def with_adapters(self, adapters: Sequence[Adapter]) -> Backbone:
        """A copy with these adapters merged into its weights, in this order."""
        if not adapters:
            return self
        model = copy.deepcopy(self.model)
        for adapter in adapters:
            model = adapter.apply(model).merge_and_unload()
        return replace(self, model=model.eval())


def load_backbone(name: str | Path, *, device: str | None = None) -> Backbone:
    """Load a backbone by ``embedded``, a local folder, a GGUF file or a hub id.

    Args:
        name: which one.
        device: where to put it; a GPU when there is one by default.

    Raises:
        BackboneError: it does not exist, cannot be reached, or is no safetensors or GGUF model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a moment; callers have their own bars
    apply_threads()
    prompter = load_prompter(name)
    loader = AutoModelForSeq2SeqLM if prompter.seq2seq else AutoModelForCausalLM
    with reading(prompter.name) as (source, options), LOADING:
        if is_gguf(source):
            model = load_model(Path(source))
        else:
            if Path(source).is_dir():
                check_shapes(Path(source), read_config(source, options), prompter.name)
            model = loader.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, **options
            )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    model.requires_grad_(False)
    check_reading(model, prompter.name)
    return Backbone(
        prompter.name,
        model,
        prompter.tokenizer,
        prompter.seq2seq,
        prompter.max_length,
        prompter.generation,
        prompter.thinking,
    )
