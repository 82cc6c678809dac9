"""The strategy ``profile``: the teacher describes the user, then writes from the description."""

from __future__ import annotations

import random
from dataclasses import replace

from pfi.augment.config import AugmentConfig
from pfi.augment.coverage import choose_records, coverage_sets
from pfi.augment.strategies.answers import check_labels, seen
from pfi.augment.strategies.drafting import (
    RECORDS_A_CALL,
    Steps,
    portions,
    read_drafts,
    writing_calls,
)
from pfi.augment.strategies.templates import describe, load_template, show_records
from pfi.augment.subject import Subject
from pfi.augment.teacher import Call, Material

#: Records that are shown beside the description.
SHOWN = 2
#: Longest description in tokens.
SUMMARY_TOKENS = 400


def summary_call(subject: Subject, config: AugmentConfig, rng: random.Random | None = None) -> Call:
    """The call that asks for a description of the user, as plain text.

    Args:
        subject: whose records are shown; they are all that it tells of.
        config: how many records, and the seed.
        rng: chooses them; the strategy's own by default, so that both ask the same.
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
