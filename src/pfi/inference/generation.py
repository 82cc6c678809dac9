"""Free text of teachers on this device: greedy or sampled answers for the rows of one batch.

A row's answer does not depend on the batch it is in: every row draws from its own generator
(nucleus sampling, Holtzman et al. 2020), and rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pfi.errors import ConfigError
from pfi.inference.torch.sampling import Nucleus, Pick, greedy
from pfi.models.attention import pad_rows
from pfi.models.backbone import Backbone


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
