"""Free text: greedy or sampled answers for rows of different users in one batch.

A row's answer does not depend on the batch it is in: every row draws from its own generator
(nucleus sampling, Holtzman et al. 2020), and rows that have ended leave the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pfi.errors import ConfigError
from pfi.models.attention import pad_rows
from pfi.models.backbone import Backbone

#: Chooses ``(rows,)`` tokens from ``(rows, vocabulary)`` logits of the prompts of these numbers.
Pick = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]

#: How many tokens are ranked before all are; ranking a whole vocabulary takes as long as a step.
_RANKED = 1024


def greedy(logits: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
    """The likeliest token of every row."""
    return logits.argmax(-1)


class Nucleus:
    """Samples from the likeliest tokens that together have at least ``top_p`` probability."""

    def __init__(self, temperature: float, top_p: float, seed: int | Sequence[str]) -> None:
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self._generators: dict[int, random.Random] = {}

    def _draw(self, prompt: int) -> float:
        if prompt not in self._generators:
            own = f"{self.seed}:{prompt}" if isinstance(self.seed, int) else self.seed[prompt]
            self._generators[prompt] = random.Random(own)
        return self._generators[prompt].random()

    def __call__(self, logits: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        drawn = [self._draw(i) for i in prompts]
        return nucleus(logits.float() / self.temperature, self.top_p, drawn)


def nucleus(logits: torch.Tensor, top_p: float, drawn: Sequence[float]) -> torch.Tensor:
    """Tokens ``(rows,)`` of ``(rows, vocabulary)`` logits by each row's number in [0, 1)."""
    likely = torch.softmax(logits, -1)
    tokens: torch.Tensor | None = None
    if top_p < 1:
        ranked, tokens = likely.topk(min(_RANKED, likely.shape[-1]))
        short = (ranked.sum(-1) < top_p).tolist()
        if any(short) and not all(short):  # apart, so that no row depends on another
            chosen = torch.empty_like(tokens[:, 0])
            for kind in (True, False):
                rows = [i for i, this in enumerate(short) if this == kind]
                chosen[rows] = nucleus(logits[rows], top_p, [drawn[i] for i in rows])
            return chosen
        if any(short):
            ranked, tokens = likely.sort(descending=True)
        ranked = ranked.double()
        # A token stays while those before it do not suffice, so that the first always does.
        likely = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
    total = likely.cumsum(-1, dtype=torch.float64)
    whole = total[:, -1:]
    numbers = torch.tensor(drawn, dtype=torch.float64, device=total.device)[:, None]
    at = torch.searchsorted(total, numbers * whole, right=True)
    at = at.minimum((total < whole).sum(-1, keepdim=True))  # rounding could reach past it
    return (at if tokens is None else tokens.gather(-1, at)).squeeze(-1)


@torch.inference_mode()
def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    batch_size: int = 16,
    max_prompt: int | None = None,
    slots: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | Sequence[str] = 0,
) -> list[str]:
    """Answers in the order of the prompts; batches hold prompts of similar length.

    Args:
        backbone: the model; a bank's takes slots.
        prompts: the questions.
        max_new_tokens: longest answer.
        batch_size: rows of a batch.
        max_prompt: longest prompt in tokens; what fits beside the answer when None.
        slots: whose adapter each prompt uses, see ``Backbone.rows``.
        temperature: greedy when 0, else the logits are divided by it and sampled from.
        top_p: probability of the tokens that are sampled from.
        seed: of the sampling; a row's draws follow from it and the prompt's number, or from
            the prompt's own seed where there is one for each.

    Raises:
        ConfigError: a negative temperature, or a ``top_p`` outside (0, 1].
    """
    if temperature < 0:
        raise ConfigError(f"the temperature is {temperature}", fix="give 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}", fix="give a probability above 0 and up to 1")
    pick = Nucleus(temperature, top_p, seed) if temperature else greedy
    rows = [backbone.prompt_ids(p, _limit(backbone, max_new_tokens, max_prompt)) for p in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers = [""] * len(rows)
    for begin in range(0, len(order), batch_size):
        picked = order[begin : begin + batch_size]
        if slots is not None:
            picked.sort(key=slots.__getitem__)  # a bank is fastest with a slot's rows together
        ids = [rows[i] for i in picked]
        chosen = None if slots is None else [slots[i] for i in picked]
        for i, new in zip(
            picked, decode(backbone, ids, max_new_tokens, pick, picked, chosen), strict=True
        ):
            answers[i] = _text(backbone, new).strip()
    return answers


def _limit(backbone: Backbone, max_new_tokens: int, max_prompt: int | None = None) -> int:
    return max_prompt or backbone.max_length - (0 if backbone.seq2seq else max_new_tokens)


def _text(backbone: Backbone, ids: Sequence[int]) -> str:
    return str(backbone.tokenizer.decode(list(ids), skip_special_tokens=True))


def decode(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pick: Pick,
    numbers: Sequence[int],
    slots: Sequence[int] | None,
) -> list[list[int]]:
    """New tokens, without the end token, of one batch of prompts with these numbers."""
    from pfi.inference.decoding import start

    rows = start(backbone, prompts, max_new_tokens)
    if rows is None:
        with backbone.rows(slots):
            return _decode_plainly(backbone, prompts, max_new_tokens, pick, numbers)
    new: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    tokens: torch.Tensor | None = None
    for _ in range(max_new_tokens):  # once for each set of rows, which takes a step at least
        ended: set[int] = set()
        with backbone.rows(None if slots is None else [slots[i] for i in live]):
            while 4 * len(ended) < len(live):
                logits = rows.first() if tokens is None else rows.step(tokens)
                tokens = pick(logits, [numbers[i] for i in live])
                for i, token in zip(live, tokens.tolist(), strict=True):
                    if i not in ended and token != backbone.end_id:
                        new[i].append(token)
                    if token == backbone.end_id or len(new[i]) == max_new_tokens:
                        ended.add(i)
        kept = [at for at, i in enumerate(live) if i not in ended]
        if not kept:
            break
        live = [live[at] for at in kept]
        rows.keep(kept)
        assert tokens is not None
        tokens = tokens[kept]
    return new


def _decode_plainly(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pick: Pick,
    numbers: Sequence[int],
) -> list[list[int]]:
    """As ``decode`` for a model of any kind, by its own means; no row leaves before the last."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class Picked(LogitsProcessor):
        """Leaves transformers, which takes the likeliest, no token but the one we picked."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            tokens = pick(scores, numbers)[:, None]
            return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)

    model: Any = backbone.model
    ids = pad_rows(prompts, backbone.pad_id, left=True).to(backbone.device)
    mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0, left=True).to(backbone.device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=backbone.pad_id,
        eos_token_id=backbone.end_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([Picked()]),
    )
    new = output[:, 1:] if backbone.seq2seq else output[:, ids.shape[1] :]
    rows = new.tolist()
    ends = [row.index(backbone.end_id) if backbone.end_id in row else len(row) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@torch.inference_mode()
def stream(backbone: Backbone, prompt: str, max_new_tokens: int) -> Iterator[str]:
    """The pieces of one greedy answer as they are decoded.

    A model of a kind that we do not decode ourselves gives its answer in one piece.
    """
    from pfi.inference.decoding import start

    ids = backbone.prompt_ids(prompt, _limit(backbone, max_new_tokens))
    rows = start(backbone, [ids], max_new_tokens)
    if rows is None:
        yield generate(backbone, [prompt], max_new_tokens)[0]
        return
    new: list[int] = []
    shown = ""
    last: torch.Tensor | None = None
    while len(new) < max_new_tokens:
        # Entered at every step: the caller may use the backbone in between.
        with backbone.rows(None):
            logits = rows.first() if last is None else rows.step(last)
        last = logits.argmax(-1)
        token = int(last)
        if token == backbone.end_id:
            break
        new.append(token)
        text = _text(backbone, new)
        # A character of several tokens is not whole before its last one.
        if len(text) > len(shown) and text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    if rest := _text(backbone, new)[len(shown) :]:
        yield rest
