"""Labels scored by probability: a prompt's keys and values are computed once for all labels.

Rows of a batch may belong to different users; ``slots`` says whose adapter each one uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from pfi._util.heap import Releaser
from pfi.models.attention import pad_rows, takes_masks
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import Piece, Row, passes, target_losses, target_losses_and_hits
from pfi.models.families import (
    cache_argument,
    cache_of,
    positions_argument,
    rope_border,
    with_states,
)

#: Padded tokens of a batch. More are slower on a CPU, whose caches they overflow.
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_GPU = 16384

Ids = Sequence[int]


@torch.inference_mode()
def score_labels(
    backbone: Backbone,
    prompts: Sequence[str],
    labels: Sequence[str],
    max_prompt: int | None = None,
    *,
    slots: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> list[list[float]]:
    """Log-probability of every label, end token included, after every prompt.

    Args:
        backbone: the model; a bank's takes slots.
        prompts: the questions.
        labels: the possible answers, the same for all prompts.
        max_prompt: longest prompt in tokens; what fits beside the longest label when None.
        slots: whose adapter each prompt uses, see ``Backbone.rows``.
        batch_tokens: padded tokens of a forward pass; by the kind of device when None.

    Returns:
        ``len(prompts)`` rows of ``len(labels)`` natural logarithms.
    """
    targets = [backbone.target_ids(label) for label in labels]
    limit = max_prompt or backbone.max_length - max(map(len, targets))
    rows = [backbone.prompt_ids(prompt, limit) for prompt in prompts]
    asked = [targets] * len(rows)
    return score_ids(backbone, rows, asked, slots=slots, batch_tokens=batch_tokens)


@torch.inference_mode()
def score_ids(
    backbone: Backbone,
    rows: Sequence[Ids],
    targets: Sequence[Sequence[Ids]],
    *,
    slots: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> list[list[float]]:
    """As ``score_labels`` for the tokens of prompts, each with the targets of its own."""
    if backbone.seq2seq:
        return [
            _score_seq2seq(backbone, row, targets[i], _of(slots, [i])) for i, row in enumerate(rows)
        ]
    extra = [sum(map(len, own)) for own in targets]
    budget = batch_tokens or pass_tokens(backbone)
    scores: list[list[float]] = [[] for _ in rows]
    for picked in passes([len(row) + more for row, more in zip(rows, extra, strict=True)], budget):
        if slots is not None:
            picked.sort(key=slots.__getitem__)  # a bank is fastest with a slot's rows together
        if takes_masks(backbone, max(len(rows[i]) + extra[i] for i in picked)):
            with backbone.rows(_of(slots, picked)):
                found = _score_packed(
                    backbone, [rows[i] for i in picked], [targets[i] for i in picked]
                )
        else:
            found = [_score_cached(backbone, rows[i], targets[i], _of(slots, [i])) for i in picked]
        for i, row in zip(picked, found, strict=True):
            scores[i] = row
    return scores


def pass_tokens(backbone: Backbone) -> int:
    """Padded tokens of a forward pass, by the kind of device."""
    return _BATCH_TOKENS.get(backbone.device.type, _BATCH_TOKENS_GPU)


@torch.inference_mode()
def mean_losses(
    backbone: Backbone,
    pieces: Sequence[Piece],
    batch_tokens: int | None = None,
    *,
    slots: Sequence[int] | None = None,
) -> list[float]:
    """Each piece's mean loss, in nats a target token.

    Args:
        backbone: the model; a bank's takes slots.
        pieces: prompts with their targets.
        batch_tokens: padded tokens of a forward pass; by the kind of device when None.
        slots: whose adapter each piece uses, see ``Backbone.rows``.
    """
    found = [0.0] * len(pieces)
    for i, own in _by_piece(backbone, pieces, batch_tokens, slots, target_losses):
        found[i] = float(own.mean())
    return found


@torch.inference_mode()
def losses_and_hits(
    backbone: Backbone, pieces: Sequence[Piece], *, slots: Sequence[int] | None = None
) -> list[torch.Tensor]:
    """Each piece's ``(targets, 2)``: losses, and 1 where a target is the likeliest token."""
    found = [torch.empty(0)] * len(pieces)
    for i, own in _by_piece(backbone, pieces, None, slots, target_losses_and_hits):
        found[i] = own.cpu()
    return found


def _by_piece(
    backbone: Backbone,
    pieces: Sequence[Piece],
    batch_tokens: int | None,
    slots: Sequence[int] | None,
    measure: Callable[[Backbone, Sequence[Row]], torch.Tensor],
) -> Iterator[tuple[int, torch.Tensor]]:
    """What is measured at each piece's targets, with the number of the piece."""
    budget = batch_tokens or pass_tokens(backbone)
    release = Releaser()
    for picked in passes([len(piece) for piece in pieces], budget):
        if slots is not None:
            picked.sort(key=slots.__getitem__)  # a bank is fastest with a slot's rows together
        with backbone.rows(_of(slots, picked)):
            values = measure(backbone, [Row([pieces[i]]) for i in picked])
        yield from zip(picked, values.split([pieces[i].targets for i in picked]), strict=True)
        release()


def _of(slots: Sequence[int] | None, picked: Sequence[int]) -> list[int] | None:
    return None if slots is None else [slots[i] for i in picked]


def _score_packed(
    backbone: Backbone, prompts: Sequence[Ids], targets: Sequence[Sequence[Ids]]
) -> list[list[float]]:
    """Scores by prompt from one pass: each row a prompt and its labels as branches."""
    rows = [
        Row([Piece([*prompt, *target], len(target)) for target in own], len(prompt))
        for prompt, own in zip(prompts, targets, strict=True)
    ]
    losses = target_losses(backbone, rows)
    parts = losses.split([len(target) for own in targets for target in own])
    sums = iter((-torch.stack([part.sum() for part in parts])).tolist())
    return [[next(sums) for _ in own] for own in targets]


def _score_cached(
    backbone: Backbone, prompt: Ids, targets: Sequence[Ids], slot: Sequence[int] | None
) -> list[float]:
    """As ``_score_packed`` for one prompt of any decoder-only model, through its own cache.

    A cache that cannot be copied for every label, or whose keys a longer row would turn
    otherwise, is not used: each label is read after the whole prompt.
    """
    model: Any = backbone.model
    border = rope_border(model.config)
    longest = len(prompt) + max(map(len, targets)) - 1
    if border is not None and longest > border:
        return _score_apart(backbone, prompt, targets, slot)
    with backbone.rows(slot):
        first = model(input_ids=torch.tensor([prompt], device=backbone.device), use_cache=True)
    tokens = pad_rows(targets, backbone.pad_id).to(backbone.device)
    n, length = tokens.shape
    logits = first.logits[:, -1:].expand(n, 1, -1)
    if length > 1:
        cache = cache_of(model, first)
        if not _keys_and_values_only(cache):
            return _score_apart(backbone, prompt, targets, slot)
        cache.batch_repeat_interleave(n)
        seen = len(prompt) + length - 1
        mask = torch.ones(n, seen, dtype=torch.long, device=backbone.device)
        with backbone.rows(None if slot is None else [*slot] * n):
            rest = model(
                input_ids=tokens[:, :-1],
                attention_mask=mask,
                **cache_argument(model, cache),
                **positions_argument(model, len(prompt), tokens[:, :-1]),
            )
        logits = torch.cat([logits, rest.logits], dim=1)
    return _sums(logits, tokens, targets)


def _keys_and_values_only(cache: Any) -> bool:
    """Whether a cache can be copied for every label: one with other states is not."""
    kinds = {type(layer) for layer in getattr(cache, "layers", ())}
    return type(cache) is DynamicCache and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def _score_apart(
    backbone: Backbone, prompt: Ids, targets: Sequence[Ids], slot: Sequence[int] | None
) -> list[float]:
    """As ``_score_packed`` for one prompt, label by label without a cache."""
    scores = []
    for target in targets:
        with backbone.rows(slot):
            losses = target_losses(backbone, [Row([Piece([*prompt, *target], len(target))])])
        scores.append(-float(losses.sum()))
    return scores


def _score_seq2seq(
    backbone: Backbone, prompt: Ids, targets: Sequence[Ids], slot: Sequence[int] | None
) -> list[float]:
    """As ``_score_packed`` for one prompt of an encoder-decoder model, encoded once."""
    model: Any = backbone.model
    tokens = pad_rows(targets, backbone.pad_id).to(backbone.device)
    ids = torch.tensor([prompt], device=backbone.device)
    with backbone.rows(slot):
        encoded = model.get_encoder()(input_ids=ids)
    start = torch.full_like(tokens[:, :1], model.config.decoder_start_token_id)
    states = encoded.last_hidden_state
    shared = with_states(encoded, states.expand(len(tokens), *states.shape[1:]))
    with backbone.rows(None if slot is None else [*slot] * len(tokens)):
        logits = model(
            encoder_outputs=shared,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], dim=1),
        ).logits
    return _sums(logits, tokens, targets)


def _sums(logits: torch.Tensor, tokens: torch.Tensor, targets: Sequence[Ids]) -> list[float]:
    """Scores of padded ``(labels, length)`` tokens by their ``(labels, length, vocabulary)``."""
    chosen = F.log_softmax(logits.float(), -1).gather(-1, tokens[..., None]).squeeze(-1)
    return [float(row[: len(target)].sum()) for row, target in zip(chosen, targets, strict=True)]
