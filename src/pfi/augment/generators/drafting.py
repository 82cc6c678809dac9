"""What generators share: calls that ask for new records, and drafts read from their replies."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.forms import read_records, records_form, sketch
from pfi.augment.generators.templates import FIELD_TOKENS, Template, describe, show_records, tag
from pfi.augment.teachers.teacher import Call, Material, Reply
from pfi.errors import DataError
from pfi.records import History, Record
from pfi.tasks import Task

#: Yields calls, is sent their replies (None: no usable answer), returns drafts.
Steps = Generator[list[Call], list[Reply | None], list[Draft]]
#: Makes about so many drafts for a subject.
RecordGenerator = Callable[[Subject, AugmentConfig, int], Steps]

#: New records that one call asks for at most; longer lists repeat themselves.
RECORDS_A_CALL = 4
#: Words of a field that a teacher is asked for at most.
MOST_WORDS = 250


def portions(wanted: int, size: int) -> list[int]:
    """``wanted`` as sizes of calls, all as near to each other as can be."""
    calls = -(-wanted // size)
    return [wanted // calls + (i < wanted % calls) for i in range(calls)]


def writing_calls(
    subject: Subject,
    config: AugmentConfig,
    template: Template,
    shown: Sequence[Sequence[Record]],
    counts: Sequence[int],
    rng: random.Random,
    summary: str = "",
    basis: tuple[str, ...] = (),
) -> list[Call]:
    """Calls that ask for new records, one for each of ``counts`` with the records ``shown``.

    ``basis`` are the ids of the records that the summary was made from.
    """
    task = subject.task
    form = records_form(task)
    outputs = wanted_outputs(subject, sum(counts), rng)
    calls = []
    for records, count in zip(shown, counts, strict=True):
        mine, outputs = outputs[:count], outputs[count:]
        values = {
            "task": describe(task),
            "records": show_records(subject, records),
            "count": str(count),
            "lengths": lengths(subject),
            "outputs": _outputs(task, mine),
            "form": sketch(task, form),
        }
        if summary:
            values["summary"] = tag(task, "summary", summary)
        call = Call(
            subject.user,
            template.messages(**values),
            Material("write", task, tuple(records), count=count, basis=basis),
            form,
            longest(subject, count),
            config.temperature,
            rng.randrange(2**31),
        )
        calls.append(call)
    return calls


def _outputs(task: Task, labels: Sequence[str]) -> str:
    if not labels:
        return ""
    return f'- Their "{task.output}", in this order: {", ".join(labels)}.\n'


def wanted_outputs(subject: Subject, count: int, rng: random.Random) -> list[str]:
    """``count`` labels in the user's own proportions, shuffled; none for tasks without labels."""
    task = subject.task
    if not task.output:
        return []
    times = dict.fromkeys(task.labels, 0)
    for record in subject.history:
        if record.output in times:
            times[record.output] += 1
    total = sum(times.values())
    if not total:
        return []
    shares = {label: n * count / total for label, n in times.items() if n}
    made = [label for label, share in shares.items() for _ in range(int(share))]
    rest = sorted(shares, key=lambda label: int(shares[label]) - shares[label])  # stable
    made += rest[: count - len(made)]
    rng.shuffle(made)
    return made


def lengths(subject: Subject) -> str:
    """How long the user's texts are: the middle half of each field, in words."""
    task = subject.task
    names = [*task.inputs, *([task.output] if task.output and not task.labels else [])]
    parts = []
    for name in names:
        values = [task.values(record).get(name, "") for record in subject.history]
        words = sorted(len(value.split()) for value in values if value)
        if words:
            low, high = (words[round(at * (len(words) - 1))] for at in (0.25, 0.75))
            parts.append(f'"{name}" {min(low, MOST_WORDS)} to {min(high, MOST_WORDS)} words')
    return f"- Length: mostly {'; '.join(parts)}. Vary it.\n" if parts else ""


def longest(subject: Subject, count: int) -> int:
    """Tokens that so many records like the user's longest may take."""
    task = subject.task
    sizes = []
    for record in subject.history:
        values = task.values(record)
        shown = [values.get(name, "") for name in (*task.inputs, task.output) if name]
        # A token is about four bytes of English and three of most other scripts.
        sizes.append(sum(min(len(text.encode()) // 3, 2 * FIELD_TOKENS) + 16 for text in shown))
    return min(4096, 64 + count * (max(sizes) * 3 // 2))


def read_drafts(
    subject: Subject, call: Call, reply: Reply, strategy: str, template: str, source: str = ""
) -> list[Draft]:
    """The drafts in the reply to a call for records; a malformed one is a draft with a problem."""
    assert call.material is not None
    seeds = tuple(record.id for record in call.material.records)
    try:
        found = read_records(subject.task, reply.text)
    except ValueError as error:
        return [Draft({}, "", strategy, template, seeds, source, 0.0, problem=str(error))]
    if not found:
        return [Draft({}, "", strategy, template, seeds, source, 0.0, problem="no records")]
    made = []
    for fields, output in found[: call.material.count]:
        draft = Draft(fields, output, strategy, template, seeds, source)
        made.append(checked(subject, draft))
    return made


def checked(subject: Subject, draft: Draft) -> Draft:
    """The draft, with its problem if no training example can be made from it."""
    problem = _problem(subject, draft)
    return replace(draft, confidence=0.0, problem=problem) if problem else draft


def _problem(subject: Subject, draft: Draft) -> str:
    task = subject.task
    asked = [name for name in task.inputs if "{" + name + "}" in task.question]
    empty = [name for name in asked if not draft.input.get(name)]
    if task.output and not draft.output:
        empty.append(task.output)
    if empty:
        return f"no {' and no '.join(empty)}"
    try:
        record = draft.record("draft", task.name, "")
    except DataError as error:  # lone surrogates
        return error.what
    if not derives(task) or task.examples(History(subject.user, [record]), random.Random(0)):
        return ""
    return "too short to make a question from"


def derives(task: Task) -> bool:
    """Whether the question is made from the record's own output."""
    return task.practice in ("restore", "continuation")
