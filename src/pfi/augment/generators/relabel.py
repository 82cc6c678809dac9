"""Inputs of a pool, answered as the user would answer them: which a user is asked, and the records.

The generator ``relabel``.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.generators.answers import (
    answer_calls,
    answerable,
    answered,
    confidence,
    question_of,
    read_answers,
    seen,
)
from pfi.augment.generators.coverage import Lexicon, choose_records
from pfi.augment.generators.drafting import Steps, checked, derives
from pfi.augment.generators.templates import load_template
from pfi.augment.votes import hold
from pfi.records import Record
from pfi.tasks import Example, Task

#: Cosine from which on two questions count as the same.
SAME = 0.8
#: Pools that are kept at a time.
_KEPT = 4


@dataclass(frozen=True)
class PoolQuestion:
    """A record of the pool and what it asks."""

    source: Record
    question: Example


@dataclass(frozen=True)
class PoolIndex:
    """The questions of a pool, each once, and their vectors."""

    questions: list[PoolQuestion]
    texts: list[str]
    lexicon: Lexicon


_indices: OrderedDict[tuple[int, str], tuple[Sequence[Record], int, PoolIndex]] = OrderedDict()


def pool_index(task: Task, pool: Sequence[Record]) -> PoolIndex:
    """The index of a pool; made once for all users who share the pool."""
    key = (id(pool), task.model_dump_json())
    kept, size, index = _indices.get(key, (None, 0, None))
    # The entry holds the pool itself, so its id can belong to no other one.
    if index is None or kept is not pool or size != len(pool):
        index = _build(task, pool)
        _indices[key] = (pool, len(pool), index)
        while len(_indices) > _KEPT:
            _indices.popitem(last=False)
    _indices.move_to_end(key)
    return index


def nearest_questions(subject: Subject, wanted: int, rng: random.Random) -> list[PoolQuestion]:
    """Questions of the pool near the user's records: by turns the nearest to each of them.

    Left out is what the user's own records ask, and what nearly equals a question chosen
    before; where nothing shares a word with the user's records, chance fills up.
    """
    task = subject.task
    index = pool_index(task, subject.pool)
    if not index.questions:
        return []
    own = {identity(task, record) for record in subject.history}
    free = np.asarray([text not in own for text in index.texts])
    seeds = choose_records(subject, min(wanted, len(subject.history)), rng)
    vectors = index.lexicon.of([_asked(task, record) for record in seeds])
    near = [index.lexicon.likeness(vectors[i]) for i in range(len(seeds))]
    chosen: list[int] = []

    def take(best: int) -> None:
        chosen.append(best)
        free[best] = False
        free[index.lexicon.likeness(index.lexicon.vectors[best]) >= SAME] = False

    while near and len(chosen) < wanted:
        left = []
        for likeness in near:
            scores = np.where(free, likeness, 0.0)
            best = int(scores.argmax())
            if scores[best] > 0 and len(chosen) < wanted:
                take(best)
                left.append(likeness)
        near = left
    others = np.flatnonzero(free).tolist()
    rng.shuffle(others)
    for best in others:
        if len(chosen) >= wanted:
            break
        if free[best]:
            take(best)
    found = [_hidden(subject, index.questions[i]) for i in chosen]
    return [item for item in found if item is not None]


def _hidden(subject: Subject, item: PoolQuestion) -> PoolQuestion | None:
    """The question made from the record as it may be shown; None if nothing is left to ask."""
    if subject.hide is None:
        return item
    record = subject.hide(item.source)
    question = question_of(subject.task, record, identity(subject.task, item.source))
    return None if question is None else PoolQuestion(record, question)


def identity(task: Task, record: Record) -> str:
    """The unlabelled text of a record, but for case and spacing."""
    text = record.output if derives(task) else _asked(task, record)
    return " ".join(text.lower().split())


def _asked(task: Task, record: Record) -> str:
    """The text of a record that its question is made from."""
    if derives(task):
        return record.output
    return task.query_text({name: record.input.get(name, "") for name in task.inputs})


def _build(task: Task, pool: Sequence[Record]) -> PoolIndex:
    found: dict[str, PoolQuestion] = {}
    for record in pool:
        text = identity(task, record)
        if text and text not in found:
            # The text decides where a continuation is cut: the same for all users.
            question = question_of(task, record, text)
            if question is not None:
                found[text] = PoolQuestion(record, question)
    questions = list(found.values())
    asked = [task.query_text(item.question.fields) for item in questions]
    return PoolIndex(questions, list(found), Lexicon(asked or [""]))


def relabel(subject: Subject, config: AugmentConfig, wanted: int) -> Steps:
    """Ask each of the pool's questions that suit the user as often as there are votes.

    Nothing comes of tasks whose records have no answer, or without a pool.
    """
    task = subject.task
    if not answerable(task):
        return []
    template = load_template("answer").id
    rng = subject.rng(config.seed, "relabel")
    items = nearest_questions(subject, wanted, rng)
    count = config.votes_on(task)
    votes = range(count)
    asked = [
        answer_calls(subject, config, item.question, votes, f"relabel {i}")
        for i, item in enumerate(items)
    ]
    if not asked:
        return []
    replies = yield [call for calls in asked for call in calls]
    drafts = []
    for i, (item, calls) in enumerate(zip(items, asked, strict=True)):
        mine = replies[i * count : (i + 1) * count]
        answers, problem = read_answers(task, mine)
        seeds = seen((), calls, mine)
        source = item.source.id
        vote = hold(task, answers)
        if vote is not None:
            inputs, output = answered(task, item.source, item.question, vote.output)
            sure = confidence(vote, count)
            draft = Draft(inputs, output, "relabel", template, seeds, source, sure, vote.votes)
            drafts.append(checked(subject, draft))
        elif problem:
            drafts.append(Draft({}, "", "relabel", template, seeds, source, 0.0, problem=problem))
    return drafts
