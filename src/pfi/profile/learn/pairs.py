"""Preferences: pairs of answers, one better than the other, that feedback speaks of.

They train the personal adapter by DPO (Rafailov et al. 2023, arXiv 2305.18290).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfi.profile.vault.feedback import Feedback


@dataclass(frozen=True)
class Pair:
    """A preference: of two answers to a question, the chosen one is better.

    Attributes:
        fields: the question's input fields.
        chosen, rejected: the answers.
        batches: the batches that it rests on.
    """

    fields: Mapping[str, str]
    chosen: str
    rejected: str
    batches: frozenset[str]


def preferences(entries: Sequence[Feedback]) -> list[Pair]:
    """What feedback says of pairs of answers, each pair once, in the order of the later half.

    An answer and its correction are a pair, and an answer and a worse one; so is an answer that
    was rated bad and any correction of the same question.  Doubtful feedback says nothing.
    """
    entries = [entry for entry in entries if entry.trust != "doubtful"]
    right: dict[tuple[str, str], Feedback] = {}
    for entry in entries:
        if entry.correction is not None:
            right[_question(entry)] = entry  # the latest one counts
    found: dict[tuple[str, str, str], Pair] = {}
    for entry in entries:
        pairs: list[tuple[str, str, str]] = []
        if entry.correction is not None:
            pairs.append((entry.correction, entry.answer, entry.batch))
        elif entry.better_than is not None:
            pairs.append((entry.answer, entry.better_than, entry.batch))
        elif entry.rating == "bad" and (other := right.get(_question(entry))):
            pairs.append((other.correction or "", entry.answer, other.batch))
        for chosen, rejected, batch in pairs:
            if not rejected.strip() or chosen.strip() == rejected.strip():
                continue
            key = (_question(entry)[1], chosen, rejected)
            found[key] = Pair(entry.input, chosen, rejected, frozenset({entry.batch, batch}))
    return list(found.values())


def _question(entry: Feedback) -> tuple[str, str]:
    return entry.task, json.dumps(dict(sorted(entry.input.items())), ensure_ascii=False)
