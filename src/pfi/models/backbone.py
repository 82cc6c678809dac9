"""Backbones: any Hugging Face causal or seq2seq model, or the embedded one, behind one type.

Only safetensors weights are read and no code from a model repository is ever run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pfi.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pfi.models.adapters import Adapter

EMBEDDED = "embedded"
_PLACEHOLDER = "\u241fprompt\u241f"


@dataclass(frozen=True)
class Backbone:
    """A frozen foundation model and its tokenizer.

    Attributes:
        name: what it was loaded by.
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer, with a padding token.
        seq2seq: whether it is an encoder-decoder model.
        max_length: the longest sequence it accepts, in tokens.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    seq2seq: bool
    max_length: int

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def end_id(self) -> int:
        """The token that closes an answer."""
        return int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        """The token that fills up a batch; its positions are masked."""
        return int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens; control tokens written out in the text stay plain text."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def trim(self, text: str, tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``tokens`` tokens."""
        ids = self.token_ids(text)
        if len(ids) <= tokens:
            return text
        return str(self.tokenizer.decode(ids[:tokens], skip_special_tokens=True)).rstrip()

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens around a prompt: from the chat template where there is one."""
        tokenizer = self.tokenizer
        if self.seq2seq:
            return [], [self.end_id]
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": _PLACEHOLDER}]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            before, found, after = str(text).partition(_PLACEHOLDER)
            if not found:
                raise BackboneError("the chat template drops the user's message", where=self.name)
        else:
            before, after = tokenizer.bos_token or "", "\n"
        ids = [
            list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after)
        ]
        return ids[0], ids[1]

    def prompt_ids(self, prompt: str, limit: int | None = None) -> list[int]:
        """A prompt's tokens, framed as the model expects; the end is cut to fit ``limit``."""
        before, after = self._frame
        room = (limit or self.max_length) - len(before) - len(after)
        return [*before, *self.token_ids(prompt)[: max(room, 1)], *after]

    def target_ids(self, target: str, limit: int | None = None) -> list[int]:
        """A target's tokens, closed by the end token."""
        return [*self.token_ids(target)[: None if limit is None else limit - 1], self.end_id]

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
    """Load a backbone by ``embedded``, a local folder or a hub id.

    Args:
        name: which one.
        device: where to put it; a GPU when there is one by default.

    Raises:
        BackboneError: it does not exist, cannot be reached, or is no safetensors model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a moment; callers have their own bars
    name = str(name)
    source = name
    if name == EMBEDDED:
        source = str(resources.files("pfi.models") / "embedded")
    local = Path(source).expanduser().is_dir()
    if local:
        source = str(Path(source).expanduser())
    elif source.startswith((".", "/", "~")):
        raise BackboneError("there is no such folder", where=name, fix="give a model's folder")
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        seq2seq = bool(config.is_encoder_decoder)
        loader = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = loader.from_pretrained(source, dtype=torch.float32, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BackboneError(
            f"the backbone cannot be loaded: {first}",
            where=name,
            fix="use 'embedded', or a folder with config.json, tokenizer and safetensors "
            "weights, or a hub id that is cached or reachable",
        ) from error
    if tokenizer.eos_token_id is None:
        raise BackboneError("the tokenizer has no end-of-sequence token", where=name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0)
    if seq2seq or not longest:
        longest = 1024  # relative positions (T5): no hard limit, keep memory bounded
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    model.requires_grad_(False)
    return Backbone(name, model, tokenizer, seq2seq, int(longest))
