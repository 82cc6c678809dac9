"""The strategy ``vary``: controlled variations of the user's records, one a call."""

from __future__ import annotations

from pfi.augment.config import AugmentConfig
from pfi.augment.coverage import choose_records
from pfi.augment.drafts import Draft
from pfi.augment.forms import records_form, sketch
from pfi.augment.strategies.answers import check_labels
from pfi.augment.strategies.drafting import Steps, longest, read_drafts
from pfi.augment.strategies.templates import describe, load_template, show_records
from pfi.augment.subject import Subject
from pfi.augment.teacher import Call, Material
from pfi.records import Record


def vary(subject: Subject, config: AugmentConfig, wanted: int) -> Steps:
    """Ask for a variation of each record by turns, each time with the next control.

    A label that the teacher kept stands; one that it changed is voted on.
    """
    task = subject.task
    template = load_template("vary")
    rng = subject.rng(config.seed, "vary")
    controls = template.lines("controls")
    records = choose_records(subject, min(wanted, len(subject.history)), rng)
    form = records_form(task)
    calls = []
    for i in range(wanted):
        turn, at = divmod(i, len(records))
        record = records[at]
        messages = template.messages(
            task=describe(task),
            records=show_records(subject, [record]),
            control=controls[(at + turn) % len(controls)],
            outputs=_outputs(subject, record),
            form=sketch(task, form),
        )
        material = Material("vary", task, (record,), record)
        tokens = longest(subject, 1)
        seed = rng.randrange(2**31)
        calls.append(Call(subject.user, messages, material, form, tokens, config.temperature, seed))
    replies = yield calls
    drafts = []
    for i, (call, reply) in enumerate(zip(calls, replies, strict=True)):
        if reply is not None:
            source = records[i % len(records)].id
            drafts += read_drafts(subject, call, reply, "vary", template.id, source)
    labels = {record.id: record.output for record in records}

    def kept(draft: Draft) -> bool:
        return draft.output == labels[draft.source]

    return (yield from check_labels(subject, config, drafts, kept))


def _outputs(subject: Subject, record: Record) -> str:
    """What the teacher is told about the output."""
    task = subject.task
    if not task.output:
        return "The fields must fit together as they do in the record."
    if task.labels:
        return f'Keep the "{task.output}" {record.output}: write an input that it fits.'
    return f'The "{task.output}" must be what this person would give for the new record.'
