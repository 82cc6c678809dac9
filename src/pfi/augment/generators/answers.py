"""Questions answered as the user would: calls for votes, and records made from their answers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pfi.augment import forms
from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.forms import answer_form, sketch
from pfi.augment.generators.drafting import Steps
from pfi.augment.generators.templates import describe, load_template, show_pairs, show_question
from pfi.augment.teachers.teacher import Call, Material, Reply
from pfi.augment.votes import Vote, hold
from pfi.records import History, Record
from pfi.tasks import Example, Task
from pfi.tasks.task import Trim


def answerable(task: Task) -> bool:
    """Whether a record of the task can be answered alone: not where records ask about others."""
    return task.practice != "citation"


def question_of(task: Task, record: Record, seed: str) -> Example | None:
    """What a record asks, without its answer; None where nothing can be asked."""
    if not answerable(task):
        return None
    made = task.examples(History("nobody", [record]), random.Random(seed))
    if not made:
        return None
    fields = made[0].fields
    if task.practice == "direct":
        fields = {name: fields.get(name, "") for name in task.inputs}
        if not any(text.strip() for text in fields.values()):
            return None
    return replace(made[0], target="", fields=fields)


def answered(
    task: Task, source: Record, question: Example, answer: str
) -> tuple[dict[str, str], str]:
    """Input and output of the record that a question, made from ``source``, and an answer give.

    Raises:
        ValueError: records of the task cannot be answered.
    """
    if not answerable(task):
        raise ValueError(f"a record of {task.name} has no answer")
    inputs = {name: source.input[name] for name in task.inputs if name in source.input}
    if task.practice != "continuation":
        return inputs, answer
    start = question.fields["start"]
    if answer.startswith(start):  # teachers like to repeat what they continue
        return inputs, answer
    return inputs, f"{start} {answer}"


def answer_calls(
    subject: Subject,
    config: AugmentConfig,
    question: Example,
    votes: Iterable[int],
    seed: str,
    basis: Sequence[str] = (),
) -> list[Call]:
    """Calls for votes on a question, which was made from the records whose ids are ``basis``.

    They differ in the seed and in the records shown: vote 0 sees those most like the question,
    best first, the others two thirds of a somewhat wider circle, shuffled.
    """
    task = subject.task
    most = config.records_per_call
    near = subject.memory.search(task.query_text(question.fields), math.ceil(1.5 * most))
    calls = []
    for vote in votes:
        rng = subject.rng(config.seed, "vote", seed, vote)
        few = min(most, max(1, round(len(near) * 2 / 3)))
        shown = near[:most] if vote == 0 else rng.sample(near, few)
        temperature = config.temperature if config.votes_on(task) > 1 else 0.0
        calls.append(_call(subject, shown, question, temperature, rng.randrange(2**31), basis))
    return calls


def answer_call(
    user: str, task: Task, question: Example, records: Sequence[Record], trim: Trim | None = None
) -> Call:
    """One greedy call for the answer to a question, shown these records of the user.

    Without ``trim``, long texts are cut as if all tokens had four characters.
    """
    cut = trim or (lambda text, tokens: text[: 4 * tokens])
    subject = Subject(task, History(user, records), (), cut, 0)
    return _call(subject, records, replace(question, target=""), 0.0, 0)


def read_answer(reply: Reply) -> str:
    """The answer in a reply to ``answer_call``; empty if there is none."""
    try:
        answer = json.loads(reply.text)["answer"]
    except (ValueError, TypeError, LookupError):
        return ""
    return answer if isinstance(answer, str) else ""


def _call(
    subject: Subject,
    shown: Sequence[Record],
    question: Example,
    temperature: float,
    seed: int,
    basis: Sequence[str] = (),
) -> Call:
    task = subject.task
    manner = "" if task.labels else " Write in their words, tone and length."
    if task.practice == "continuation":
        manner += " Give only what follows the start, without repeating it."
    messages = load_template("answer").messages(
        task=describe(task),
        records=show_pairs(subject, shown) or "(none)",
        question=show_question(subject, question),
        manner=manner,
        form=sketch(task, answer_form(task)),
    )
    return Call(
        subject.user,
        messages,
        Material("answer", task, tuple(shown), question=question, basis=tuple(basis)),
        answer_form(task),
        32 if task.labels else 2 * task.max_new_tokens + 32,
        temperature,
        seed,
    )


def read_answers(task: Task, replies: Sequence[Reply | None]) -> tuple[list[str], str]:
    """The answers that can be read, and what was wrong with the first that cannot."""
    answers, problem = [], ""
    for reply in replies:
        if reply is not None:
            try:
                answers.append(forms.read_answer(task, reply.text))
            except ValueError as error:
                problem = problem or str(error)
    return answers, problem


def check_labels(
    subject: Subject,
    config: AugmentConfig,
    drafts: Sequence[Draft],
    settled: Callable[[Draft], bool] = lambda draft: False,
) -> Steps:
    """Drafts of new inputs with their label voted on; texts stand as they were written.

    The writer's label is the first of ``config.votes`` votes, and wins ties; drafts that are
    ``settled`` keep theirs.
    """
    task = subject.task
    calls: list[Call] = []
    parts: dict[int, slice] = {}
    if task.labels and task.output and task.practice == "direct":
        for i, draft in enumerate(drafts):
            if draft.problem or settled(draft):
                continue
            record = draft.record("draft", task.name, "")
            question = question_of(task, record, "draft")
            if question is None:
                continue
            # Not by position: that may shift when a call is answered in a later run only.
            seed = f"{draft.strategy} {draft.source} {sorted(draft.input.items())} {draft.output}"
            others = range(config.votes - 1)
            basis = (*draft.seeds, draft.source) if draft.source else draft.seeds
            more = answer_calls(subject, config, question, others, seed, basis)
            parts[i] = slice(len(calls), len(calls) + len(more))
            calls += more
    if not calls:
        return list(drafts)
    replies = yield calls
    return [
        _voted(task, draft, calls[parts[i]], replies[parts[i]]) if i in parts else draft
        for i, draft in enumerate(drafts)
    ]


def _voted(
    task: Task, draft: Draft, calls: Sequence[Call], replies: Sequence[Reply | None]
) -> Draft:
    answers, _ = read_answers(task, replies)
    vote = hold(task, [draft.output, *answers])
    if vote is None or not calls:
        return draft
    return replace(
        draft,
        output=vote.output,
        confidence=confidence(vote, 1 + len(calls)),
        votes=vote.votes,
        seeds=seen(draft.seeds, calls, replies),
    )


def confidence(vote: Vote, asked: int) -> float:
    """A vote's confidence where votes that were asked for and did not come agree with none."""
    return vote.confidence * vote.votes / asked


def seen(
    before: Sequence[str], calls: Sequence[Call], replies: Sequence[Reply | None]
) -> tuple[str, ...]:
    """Ids of the records that were shown, each once."""
    ids: Mapping[str, None] = dict.fromkeys(before)
    for call, reply in zip(calls, replies, strict=True):
        if reply is not None and call.material is not None:
            ids = {**ids, **dict.fromkeys(record.id for record in call.material.records)}
    return tuple(ids)
