"""New records in the user's manner: from a few that cover theirs, varied, or from a description.

The generators ``write``, ``vary`` and ``profile``.
"""

from __future__ import annotations

import random
from dataclasses import replace

from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.forms import records_form, sketch
from pfi.augment.generators.answers import check_labels, seen
from pfi.augment.generators.coverage import choose_records, coverage_sets
from pfi.augment.generators.drafting import (
    RECORDS_A_CALL,
    Steps,
    longest,
    portions,
    read_drafts,
    writing_calls,
)
from pfi.augment.generators.templates import describe, load_template, show_records
from pfi.augment.teachers.teacher import Call, Material
from pfi.records import Record


def write(subject: Subject, config: AugmentConfig, wanted: int) -> Steps:
    """Ask for several records a call, each call shown other records; then vote on labels."""
    template = load_template("write")
    rng = subject.rng(config.seed, "write")
    counts = portions(wanted, RECORDS_A_CALL)
    shown = coverage_sets(subject, config.records_per_call, len(counts), rng)
    calls = writing_calls(subject, config, template, shown, counts, rng)
    replies = yield calls
    drafts = [
        draft
        for call, reply in zip(calls, replies, strict=True)
        if reply is not None
        for draft in read_drafts(subject, call, reply, "write", template.id)
    ]
    return (yield from check_labels(subject, config, drafts))


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


#: Records that are shown beside the description.
SHOWN = 2
#: Longest description in tokens.
SUMMARY_TOKENS = 400


def summary_call(subject: Subject, config: AugmentConfig, rng: random.Random | None = None) -> Call:
    """The call that asks for a description of the user, as plain text.

    Args:
        subject: whose records are shown; they are all that it tells of.
        config: how many records, and the seed.
        rng: chooses them; the generator's own by default, so that both ask the same.
    """
    task = subject.task
    rng = rng or subject.rng(config.seed, "profile")
    template = load_template("summarise")
    records = choose_records(subject, config.records_per_call, rng)
    return Call(
        subject.user,
        template.messages(task=describe(task), records=show_records(subject, records)),
        Material("summarise", task, tuple(records)),
        None,
        SUMMARY_TOKENS,
        config.temperature,
        rng.randrange(2**31),
    )


def profile(subject: Subject, config: AugmentConfig, wanted: int) -> Steps:
    """Ask for a description of the user once, then for several records a call."""
    rng = subject.rng(config.seed, "profile")
    call = summary_call(subject, config, rng)
    described = yield [call]
    summary = described[0].text.strip() if described[0] is not None else ""
    if not summary:
        return []
    template = load_template("profile")
    counts = portions(wanted, RECORDS_A_CALL)
    shown = coverage_sets(subject, min(SHOWN, config.records_per_call), len(counts), rng)
    basis = seen((), [call], described)
    calls = writing_calls(subject, config, template, shown, counts, rng, summary, basis)
    replies = yield calls
    drafts = []
    for asked, reply in zip(calls, replies, strict=True):
        if reply is not None:
            for draft in read_drafts(subject, asked, reply, "profile", template.id):
                seeds = seen(draft.seeds, [call], described)
                drafts.append(replace(draft, seeds=seeds))
    return (yield from check_labels(subject, config, drafts))
