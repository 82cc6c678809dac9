"""The strategy ``relabel``: inputs of a pool, answered as the user would answer them."""

from __future__ import annotations

from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Draft
from pfi.augment.strategies.answers import (
    answer_calls,
    answerable,
    answered,
    confidence,
    read_answers,
    seen,
)
from pfi.augment.strategies.drafting import Steps, checked
from pfi.augment.strategies.pool import nearest_questions
from pfi.augment.strategies.templates import load_template
from pfi.augment.subject import Subject
from pfi.augment.votes import hold


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
