"""Tiny backbones and adapters whose answers differ, and what each answer must be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pfi.inference.engine import AdapterRef, Finish, Piece, Stream
from pfi.inference.generation import decode
from pfi.inference.torch.sampling import greedy
from pfi.models.adapters import Adapter, AdapterConfig, lora_config
from pfi.models.backbone import Backbone


def sharpen(backbone: Backbone) -> Backbone:
    """Larger weights, so that prompts matter and greedy choices are far apart."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in backbone.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return backbone


def make_adapter(backbone: Backbone, seed: int, rank: int = 2, size: float = 0.3) -> Adapter:
    """An adapter with random factors that changes answers."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    model: Any = get_peft_model(
        backbone.model, lora_config(AdapterConfig(rank=rank, alpha=rank), backbone.model)
    )
    adapter = Adapter.of(model)
    model.unload()
    weights = {k: torch.randn_like(v) * size for k, v in adapter.weights.items()}
    return Adapter(adapter.settings, weights)


@dataclass
class World:
    """A backbone with adapters; answers computed one prompt at a time, adapters merged."""

    backbone: Backbone
    adapters: list[Adapter]
    loads: list[int] = field(default_factory=list)
    _merged: dict[int, Backbone] = field(default_factory=dict)
    _known: dict[Any, tuple[list[int], bool]] = field(default_factory=dict)

    def ref(self, number: int | None) -> AdapterRef | None:
        if number is None:
            return None

        def load() -> Adapter:
            self.loads.append(number)
            return self.adapters[number]

        return AdapterRef(f"adapter {number}", load)

    def merged(self, number: int | None) -> Backbone:
        if number is None:
            return self.backbone
        if number not in self._merged:
            self._merged[number] = self.backbone.with_adapters([self.adapters[number]])
        return self._merged[number]

    def tokens(self, prompt: Sequence[int], number: int | None, new: int) -> list[int]:
        """The greedy answer, without the end token."""
        key = tuple(prompt), number
        longest = min(40, self.backbone.max_length - len(prompt))
        if key not in self._known:
            with torch.inference_mode():
                found = decode(self.merged(number), [prompt], longest, greedy, [0], None)[0]
            self._known[key] = found, len(found) < longest
        return self._known[key][0][:new]

    def expected(self, prompt: Sequence[int], number: int | None, new: int) -> tuple[str, Finish]:
        """The greedy answer's whole characters, and why it ends."""
        tokens = self.tokens(prompt, number, new)
        return whole(self.backbone.prompter.text(tokens)), (
            "stop" if len(tokens) < new else "length"
        )


def whole(text: str) -> str:
    """Without what may be a character cut short."""
    for _ in range(3):
        text = text.removesuffix("\ufffd")
    return text


def read(stream: Stream) -> tuple[str, Finish | None, int]:
    """The text, the reason for its end and the number of tokens."""
    pieces = list(stream)
    assert all(piece.finish is None for piece in pieces[:-1])
    assert all(len(piece.logprobs) == piece.tokens for piece in pieces)
    return joined(pieces), pieces[-1].finish, sum(piece.tokens for piece in pieces)


def joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def transformers_greedy(backbone: Backbone, prompt: str, new: int, **settings: Any) -> list[int]:
    """Greedy tokens of transformers itself for one prompt, the end token among them."""
    model: Any = backbone.model
    ids = torch.tensor([backbone.prompt_ids(prompt)])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=new,
        pad_token_id=backbone.pad_id,
        eos_token_id=sorted(backbone.end_ids),
        **settings,
    )[0].tolist()
    return list(output[1 if backbone.seq2seq else ids.shape[1] :])
