"""Answers: allowed labels scored by probability, free text decoded greedily.

Scoring runs a prompt once and shares its key-value cache between all labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
import torch.nn.functional as F

from pfi.models.backbone import Backbone
from pfi.tasks import Task


def pad_rows(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Rows of different lengths as one ``(rows, longest)`` tensor of int64."""
    longest = max(len(row) for row in rows)
    fills = [[value] * (longest - len(row)) for row in rows]
    padded = [
        [*fill, *row] if left else [*row, *fill] for row, fill in zip(rows, fills, strict=True)
    ]
    return torch.tensor(padded, dtype=torch.long)


@torch.inference_mode()
def score_labels(
    backbone: Backbone, prompts: Sequence[str], labels: Sequence[str], max_prompt: int | None = None
) -> list[list[float]]:
    """Log-probability of every label, end token included, after every prompt.

    Returns:
        ``len(prompts)`` rows of ``len(labels)`` natural logarithms.
    """
    targets = [backbone.target_ids(label) for label in labels]
    tokens = pad_rows(targets, backbone.pad_id).to(backbone.device)
    lengths = torch.tensor([len(row) for row in targets], device=backbone.device)
    mask = torch.arange(tokens.shape[1], device=backbone.device) < lengths[:, None]
    longest = max_prompt or backbone.max_length - tokens.shape[1]
    score = _score_seq2seq if backbone.seq2seq else _score_causal
    scores = []
    for prompt in prompts:
        ids = torch.tensor([backbone.prompt_ids(prompt, longest)], device=backbone.device)
        logits = score(backbone, ids, tokens)
        chosen = F.log_softmax(logits.float(), -1).gather(-1, tokens[..., None]).squeeze(-1)
        scores.append((chosen * mask).sum(-1).tolist())
    return scores


def _score_causal(backbone: Backbone, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits ``(labels, length, vocabulary)`` of the label tokens after one prompt."""
    model: Any = backbone.model
    n, length = tokens.shape
    prompt = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    first = prompt.logits[:, -1:].expand(n, 1, -1)
    if length == 1:
        return first
    cache = prompt.past_key_values
    cache.batch_repeat_interleave(n)
    mask = torch.ones(n, ids.shape[1] + length - 1, dtype=torch.long, device=ids.device)
    rest = model(input_ids=tokens[:, :-1], past_key_values=cache, attention_mask=mask)
    return torch.cat([first, rest.logits], dim=1)


def _score_seq2seq(backbone: Backbone, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits ``(labels, length, vocabulary)`` of the label tokens for one encoded prompt."""
    from transformers.modeling_outputs import BaseModelOutput

    model: Any = backbone.model
    encoded = model.get_encoder()(input_ids=ids).last_hidden_state
    start = torch.full_like(tokens[:, :1], model.config.decoder_start_token_id)
    return model(
        encoder_outputs=BaseModelOutput(
            last_hidden_state=encoded.expand(len(tokens), *encoded.shape[1:])
        ),
        decoder_input_ids=torch.cat([start, tokens[:, :-1]], dim=1),
    ).logits


def choose(task: Task, scores: Sequence[float]) -> str:
    """The answer for one question's label scores.

    The likeliest label; for an ordered scale the median of the distribution over the labels,
    which minimises the expected absolute error.
    """
    if task.kind == "score":
        cumulated = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0).cumsum(0)
        return task.labels[min(int((cumulated < 0.5).sum()), len(task.labels) - 1)]
    return task.labels[max(range(len(scores)), key=scores.__getitem__)]


def _generation_options(backbone: Backbone, max_new_tokens: int) -> dict[str, Any]:
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=backbone.pad_id,
        eos_token_id=backbone.end_id,
        decoder_start_token_id=getattr(backbone.model.config, "decoder_start_token_id", None),
    )
    return {"generation_config": config}


@torch.inference_mode()
def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    batch_size: int = 16,
    max_prompt: int | None = None,
) -> list[str]:
    """Greedy answers, in the order of the prompts; batches hold prompts of similar length."""
    limit = max_prompt or backbone.max_length - (0 if backbone.seq2seq else max_new_tokens)
    rows = [backbone.prompt_ids(prompt, limit) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    options = _generation_options(backbone, max_new_tokens)
    answers = [""] * len(rows)
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = [rows[i] for i in picked]
        ids = pad_rows(batch, backbone.pad_id, left=True).to(backbone.device)
        lengths = torch.tensor([len(row) for row in batch], device=backbone.device)
        mask = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths[:, None]
        model: Any = backbone.model
        output = model.generate(input_ids=ids, attention_mask=mask.long(), **options)
        new = output if backbone.seq2seq else output[:, ids.shape[1] :]
        texts = backbone.tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, text in zip(picked, texts, strict=True):
            answers[i] = text.strip()
    return answers


def stream(backbone: Backbone, prompt: str, max_new_tokens: int) -> Iterator[str]:
    """The pieces of one greedy answer as they are decoded."""
    from transformers import TextIteratorStreamer

    limit = backbone.max_length - (0 if backbone.seq2seq else max_new_tokens)
    ids = torch.tensor([backbone.prompt_ids(prompt, limit)], device=backbone.device)
    pieces: Any = TextIteratorStreamer(
        backbone.tokenizer,  # type: ignore[arg-type]
        skip_prompt=not backbone.seq2seq,
        skip_special_tokens=True,
    )
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "streamer": pieces}
    arguments |= _generation_options(backbone, max_new_tokens)
    failures: list[BaseException] = []

    def run() -> None:
        model: Any = backbone.model
        try:
            with torch.inference_mode():
                model.generate(**arguments)
        except BaseException as error:  # re-raised in the caller's thread below
            failures.append(error)
            pieces.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    yield from pieces
    thread.join()
    if failures:
        raise failures[0]


def answer(
    backbone: Backbone, task: Task, prompts: Sequence[str], max_prompt: int | None = None
) -> list[str]:
    """One answer a prompt: a label for choice and score tasks, greedy text otherwise."""
    if task.kind == "text":
        return generate(backbone, prompts, task.max_new_tokens, max_prompt=max_prompt)
    scores = score_labels(backbone, prompts, task.labels, max_prompt)
    return [choose(task, row) for row in scores]
