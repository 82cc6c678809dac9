"""Free text of teachers on this device: greedy or sampled answers for the rows of one batch.

A row's answer does not depend on the batch it is in: every row draws from its own generator
(nucleus sampling, Holtzman et al. 2020), and rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from pfi.inference.detokenizer import answer_text
from pfi.inference.engine import Penalties, Sampling, check_sampling
from pfi.inference.torch.sampling import Nucleus, Pick, greedy, penalised
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
    check_sampling(Sampling(max_new_tokens, temperature, top_p))
    if not backbone.seq2seq and max_new_tokens >= backbone.max_length:
        max_new_tokens = max(1, backbone.max_length // 2)  # room for some of the prompt
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
            answers[i] = answer_text(backbone.prompter, rows[i], new).strip()
    return answers


@torch.inference_mode()
def greedy_ids(
    backbone: Backbone, prompts: Sequence[Sequence[int]], tokens: int, batch_size: int = 32
) -> list[list[int]]:
    """The likeliest answers as tokens, closed by the end token where they end before ``tokens``.

    Penalties that the model's own files ask for do not count.
    """
    plain = replace(backbone, generation=replace(backbone.generation, repetition_penalty=None))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for begin in range(0, len(order), batch_size):
        picked = order[begin : begin + batch_size]
        new = decode(plain, [prompts[i] for i in picked], tokens, greedy, picked, None)
        for i, ids in zip(picked, new, strict=True):
            answers[i] = ids if len(ids) == tokens else [*ids, backbone.end_id]
    return answers


def _limit(backbone: Backbone, max_new_tokens: int, max_prompt: int | None = None) -> int:
    return max_prompt or backbone.max_length - (0 if backbone.seq2seq else max_new_tokens)


def decode(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pick: Pick,
    numbers: Sequence[int],
    slots: Sequence[int] | None,
) -> list[list[int]]:
    """New tokens, without the one that ends an answer, of one batch of prompts.

    The model's own repetition penalty counts, as in the engines; a row ends where the context
    does.

    Args:
        backbone: the model.
        prompts: their tokens.
        max_new_tokens: longest answer.
        pick: chooses each row's token.
        numbers: of the prompts, for ``pick``.
        slots: whose adapter each prompt uses.
    """
    from pfi.inference.decoding import SingleRows, start

    rows = start(backbone, prompts, max_new_tokens, slots)
    length = backbone.max_length
    limits = [
        min(max_new_tokens, length - (0 if backbone.seq2seq else len(prompt))) for prompt in prompts
    ]
    ends, penalties = backbone.end_ids, _penalties(backbone, prompts)
    new: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    tokens: torch.Tensor | None = None
    for _ in range(max_new_tokens):  # once for each set of rows, which takes a step at least
        ended: set[int] = set()
        own = None if slots is None else [slots[i] for i in live]
        with nullcontext() if isinstance(rows, SingleRows) else backbone.rows(own):
            while 4 * len(ended) < len(live):
                logits = rows.first() if tokens is None else rows.step(tokens)
                logits = penalised(logits, [penalties[i] for i in live])
                tokens = pick(logits, [numbers[i] for i in live])
                for i, token in zip(live, tokens.tolist(), strict=True):
                    if i not in ended and token not in ends and len(new[i]) < limits[i]:
                        new[i].append(token)
                        penalties[i].add(token)
                    if token in ends or len(new[i]) >= limits[i]:
                        ended.add(i)
        kept = [at for at, i in enumerate(live) if i not in ended]
        if not kept:
            break
        live = [live[at] for at in kept]
        rows.keep(kept)
        assert tokens is not None
        tokens = tokens[kept]
    return new


def _penalties(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> list[Penalties]:
    sampling = Sampling().resolved(backbone.generation)
    if backbone.seq2seq:
        begin = [getattr(backbone.model.config, "decoder_start_token_id", None) or 0]
        return [Penalties(sampling, begin) for _ in prompts]
    return [Penalties(sampling, prompt) for prompt in prompts]
