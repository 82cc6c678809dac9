"""General text and questions: what forgetting is measured on, and what a training can be held to.

All of it is in ``general.txt``, with its origin and terms; what is trained on is not measured on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from pfi.inference.generation import greedy_ids
from pfi.memory.off_topic import general_questions
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import Piece
from pfi.train.config import TrainConfig

#: Tokens of an answer that a training is held to, and how many answers and how many texts.
_ANSWER, _EACH = 32, 16


@cache
def _lines(kind: str) -> tuple[str, ...]:
    text = (resources.files("pfi.train") / "general.txt").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(row[2] for row in rows if row[0] == kind)


def probe_passages() -> tuple[str, ...]:
    """Passages of books, speeches and the World Factbook; any first ones are a mixed sample."""
    return _lines("passage")


def probe_questions() -> tuple[str, ...]:
    """Short questions and instructions of many kinds; any first ones are a mixed sample."""
    return _lines("question")


def question_ids(backbone: Backbone, question: str, answer: int) -> list[int]:
    """A question's tokens, with room for an answer of so many."""
    room = backbone.max_length - (0 if backbone.seq2seq else answer)
    return backbone.prompter.prompt_ids(question, max(1, room), thinking=False)


def text_piece(backbone: Backbone, text: str) -> Piece:
    """A passage as tokens that are all predicted but the first; an encoder reads its first half."""
    ids = [*_beginning(backbone), *backbone.token_ids(text)][: backbone.max_length]
    return Piece(ids, len(ids) // 2 if backbone.seq2seq else len(ids) - 1)


def _beginning(backbone: Backbone) -> list[int]:
    """The token that a tokenizer puts before every text, for those that do."""
    tokenizer: Any = backbone.tokenizer
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("").input_ids[:1] == [begin] else []


def anchored_pieces(backbone: Backbone, seed: int, max_length: int) -> list[Piece]:
    """General text, and questions with the model's own answers, on which it is to stay as it is.

    Args:
        backbone: without the adapter that is trained.
        seed: of the choice.
        max_length: most tokens; longer ones are left out.
    """
    rng = random.Random(seed)
    pieces = [text_piece(backbone, text) for text in rng.sample(_lines("practice"), _EACH)]
    questions = rng.sample(general_questions(), _EACH)
    prompts = [question_ids(backbone, question, _ANSWER) for question in questions]
    for prompt, answer in zip(prompts, greedy_ids(backbone, prompts, _ANSWER), strict=True):
        pieces.append(Piece([*prompt, *answer], len(answer)))
    fit = [piece for piece in pieces if piece.targets and len(piece.ids) <= max_length]
    return [replace(piece, anchored=True) for piece in fit]


def with_anchors(
    plan: Sequence[Sequence[int]], own: int, anchored: int, config: TrainConfig, seed: int
) -> list[list[int]]:
    """A plan of steps with anchored examples in each, in the share that ``general`` asks for.

    Args:
        plan: positions of the examples of every step.
        own: how many examples it is of; the anchored ones follow them.
        anchored: how many these are; all are used before one is used again.
        config: of the training.
        seed: of their order.
    """
    count = max(1, round(config.general / (1 - config.general) * config.batch_size))
    rng, steps = random.Random(seed), []
    left: list[int] = []
    for step in plan:
        while len(left) < count:
            left += [own + i for i in rng.sample(range(anchored), anchored)]
        steps.append([*step, *left[:count]])
        left = left[count:]
    return steps
