"""The strategy ``write``: new records in the user's manner, from a few that cover theirs."""

from __future__ import annotations

from pfi.augment.config import AugmentConfig
from pfi.augment.coverage import coverage_sets
from pfi.augment.strategies.answers import check_labels
from pfi.augment.strategies.drafting import (
    RECORDS_A_CALL,
    Steps,
    portions,
    read_drafts,
    writing_calls,
)
from pfi.augment.strategies.templates import load_template
from pfi.augment.subject import Subject


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
