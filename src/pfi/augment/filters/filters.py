"""Filters: which drafts become synthetic records, with counts of what was dropped and why.

Every filter is one function over one user's drafts, named in ``FILTERS``, the cheap ones first.
What it measures is added to the scores of the drafts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from pfi.augment.config import FilterConfig
from pfi.augment.drafts import Draft, Subject
from pfi.augment.filters.form import Forms
from pfi.augment.filters.judge import Judge, Vectors
from pfi.augment.filters.likeness import Copies, Likeness, input_text, subject_text, whole_text
from pfi.augment.filters.wellformed import well_formed
from pfi.records import Record
from pfi.tasks import Example, Task

#: Real records, the newest, that drafts' embeddings and losses are compared with at most.
_REAL_TEXTS = 256
_REAL_LOSSES = 64
#: With fewer real records than this nothing says how far a user's records range, and nothing
#: is dropped by distance and perplexity.
FEW = 3
#: Why the filters on length and form drop a draft, after the field's name.
OTHER_LENGTH = "is far shorter or longer than the user's"
OTHER_FORM = "looks unlike the user's"
#: How many of the nearest real records a distance is the mean of.
_NEAREST = 3
#: Added to the count of each label, so that one that the user has not used yet is possible.
_SMOOTHING = 0.5
#: Dropped drafts that a count shows, and characters of each of their texts.
_EXAMPLES = 3
_SHOWN = 200


@dataclass(frozen=True)
class Dropped:
    """A draft that a filter dropped, and why."""

    draft: Draft
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; texts are cut to what is worth a look."""
        draft = self.draft
        fields = {_shown(name): _shown(text) for name, text in draft.input.items()}
        return {
            "reason": _shown(self.reason),
            "strategy": draft.strategy,
            "input": fields,
            "output": _shown(draft.output),
            "scores": dict(draft.scores),
        }


@dataclass(frozen=True)
class FilterCount:
    """What one filter did.

    Attributes:
        name: of the filter.
        before: drafts that came to it.
        kept: drafts that it let pass.
        dropped: how many it dropped, by reason.
        examples: the first few of these.
    """

    name: str
    before: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Dropped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "name": self.name,
            "before": self.before,
            "kept": self.kept,
            "dropped": {_shown(reason): n for reason, n in self.dropped.items()},
            "examples": [example.to_dict() for example in self.examples],
        }


@dataclass(frozen=True)
class Filtered:
    """The drafts that passed all filters, the best first, and what each filter did."""

    kept: list[Draft]
    counts: list[FilterCount]


def apply_filters(
    subject: Subject, drafts: Sequence[Draft], config: FilterConfig, wanted: int, judge: Judge
) -> Filtered:
    """The drafts that become records, at most ``wanted``; deterministic.

    Args:
        subject: the user; only their real records are compared with.
        drafts: in the order they were made; of two alike the first is kept.
        config: the thresholds; a filter set to None is skipped and not counted.
        wanted: how many records are wanted.
        judge: measures texts and examples.
    """
    bench = Bench(subject, config, wanted, judge)
    left, counts = list(drafts), []
    for name, judge_all in FILTERS.items():
        if not _on(config, name):
            continue
        verdicts = judge_all(bench, left)
        lost = [Dropped(verdict.draft, verdict.reason) for verdict in verdicts if verdict.reason]
        before, left = len(left), [verdict.draft for verdict in verdicts if not verdict.reason]
        reasons = Counter(example.reason for example in lost)
        counts.append(FilterCount(name, before, len(left), dict(reasons), tuple(lost[:_EXAMPLES])))
    return Filtered(left, counts)


def mostly_unlike(counts: Sequence[FilterCount]) -> str:
    """`7 of 9` where most drafts were dropped by length and form; "" elsewhere."""
    alike = [count for count in counts if count.name in ("length", "form")]
    before = alike[0].before if alike else 0
    dropped = sum(count.before - count.kept for count in alike)
    return f"{dropped} of {before}" if dropped > 1 and 2 * dropped >= before else ""


class Verdict(NamedTuple):
    """A draft with what was measured, and why it is dropped; "" if it is kept."""

    draft: Draft
    reason: str = ""


@dataclass
class Bench:
    """What the filters of one user share; vectors are made once."""

    subject: Subject
    config: FilterConfig
    wanted: int
    judge: Judge
    _vectors: dict[str, Vectors] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        return self.subject.task

    def real(self, most: int | None = None) -> list[Record]:
        """The user's real records, the newest if not all."""
        records = [record for record in self.subject.history if record.origin == "real"]
        return records if most is None else records[-most:]

    def vectors(self, items: Sequence[Draft | Record]) -> Vectors:
        """``(len(items), width)`` embeddings of what the items are about."""
        texts = [subject_text(self.task, item) for item in items]
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._vectors.update(zip(new, self.judge.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


Filter = Callable[[Bench, Sequence[Draft]], list[Verdict]]


# The filters ----------------------------------------------------------------------------


def _well_formed(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    check = well_formed(bench.task, bench.real())
    return [Verdict(draft, check(draft)) for draft in drafts]


def _length(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Drafts whose texts are about as long as the user's."""
    return _alike(bench, drafts, "length", OTHER_LENGTH)


def _form(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Drafts whose texts look like the user's: lines, letters, digits, signs."""
    return _alike(bench, drafts, "form", OTHER_FORM)


def _alike(bench: Bench, drafts: Sequence[Draft], name: str, reason: str) -> list[Verdict]:
    """Drafts within so many spreads of the user's texts by one of ``Forms``'s two measures."""
    real = bench.real()
    if len(real) < FEW:
        return [Verdict(draft) for draft in drafts]
    forms, most = Forms(bench.task, real), getattr(bench.config, name) or math.inf
    measured = [(draft, *getattr(forms, name)(draft)) for draft in drafts]
    return [
        Verdict(_scored(draft, **{name: far}), f"{field} {reason}" if far > most else "")
        for draft, far, field in measured
    ]


def _valid_label(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Of tasks with labels, drafts with one of them; LaMP_1 derives its labels."""
    task = bench.task
    if not (task.labels and task.output):
        return [Verdict(draft) for draft in drafts]
    labels = {*task.labels}
    return [Verdict(d, "" if d.output in labels else "none of the labels") for d in drafts]


def _agreement(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Drafts whose votes agree; those that no vote was held on pass."""
    least = bench.config.agreement or 0.0

    def verdict(draft: Draft) -> Verdict:
        if not draft.votes:
            return Verdict(draft)
        low = draft.confidence < least
        return Verdict(
            _scored(draft, agreement=draft.confidence), "votes do not agree" if low else ""
        )

    return [verdict(draft) for draft in drafts]


def _copy(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Drafts unlike the real records and the drafts kept before.

    A relabelled input is public: only its own input is compared, and with inputs.
    """
    config, task, real = bench.config, bench.task, bench.real()
    most = Likeness(config.copy_rouge or math.inf, config.copy_jaccard or math.inf)
    indices: dict[tuple[bool, bool], Copies] = {}
    kept: list[Draft] = []

    def text(item: Draft | Record, inputs: bool) -> str:
        return input_text(task, item) if inputs else whole_text(task, item)

    def index(inputs: bool, own: bool) -> Copies:
        key = inputs, own
        if key not in indices:
            items: Sequence[Draft | Record] = real if own else kept
            indices[key] = Copies(text(item, inputs) for item in items)
        return indices[key]

    verdicts = []
    for draft in drafts:
        inputs = draft.strategy == "relabel"
        mine = text(draft, inputs)
        to_real, to_draft = (index(inputs, own).likest(mine) for own in (True, False))
        scores = {
            "copy_rouge": max(to_real.rouge, to_draft.rouge),
            "copy_jaccard": max(to_real.jaccard, to_draft.jaccard),
        }
        reason = ""
        if any(a >= b for a, b in zip(to_real, most, strict=True)):
            reason = "a copy of a real record"
        elif any(a >= b for a, b in zip(to_draft, most, strict=True)):
            reason = "a copy of another draft"
        else:
            kept.append(draft)
            for (of_inputs, own), copies in indices.items():
                if not own:
                    copies.add(text(draft, of_inputs))
        verdicts.append(Verdict(_scored(draft, **scores), reason))
    return verdicts


def _distance(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Drafts about as near to the real records as these are to each other.

    The measure is the mean cosine distance to the three nearest, in multiples of the greatest
    such distance of one real record from the others.
    """
    real = bench.real(_REAL_TEXTS)
    if len(real) < FEW or not drafts:
        return [Verdict(draft) for draft in drafts]
    theirs = bench.vectors(real)
    among = theirs @ theirs.T
    np.fill_diagonal(among, -np.inf)
    k = min(_NEAREST, len(real) - 1)
    scale = max(float(_far(among, k).max()), 1e-3)
    ratios = _far(bench.vectors(drafts) @ theirs.T, k) / scale
    most = bench.config.distance or math.inf
    return [
        Verdict(_scored(draft, distance=ratio), "off topic" if ratio > most else "")
        for draft, ratio in zip(drafts, ratios.tolist(), strict=True)
    ]


def _far(likeness: Vectors, k: int) -> Vectors:
    """Mean distance ``(rows,)`` to the ``k`` nearest of the columns."""
    nearest: Vectors = 1 - np.sort(likeness, axis=1)[:, -k:].mean(axis=1)
    return nearest


def _perplexity(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Drafts whose text surprises the device model about as much as the real ones' texts do.

    The text is input and output: the loss of the output alone hardly tells garbled drafts from
    good ones (area under the curve .64 against .93 on dev users, 4 real records each).
    """
    real = bench.real(_REAL_LOSSES)
    if len(real) < FEW or not drafts:
        return [Verdict(draft) for draft in drafts]
    items: list[Draft | Record] = [*real, *drafts]
    losses = bench.judge.losses([_read(bench.task, item) for item in items])
    known = [loss for loss in losses[: len(real)] if math.isfinite(loss)]
    margin = bench.config.perplexity or 0.0
    low, high = min(known, default=0.0), max(known, default=math.inf)

    def verdict(draft: Draft, loss: float) -> Verdict:
        if not math.isfinite(loss):
            return Verdict(draft, "no finite loss")
        reason = "too surprising" if loss > high + margin else ""
        reason = "too predictable" if loss < low - margin else reason
        return Verdict(_scored(draft, perplexity=loss), reason)

    return [verdict(*both) for both in zip(drafts, losses[len(real) :], strict=True)]


def _read(task: Task, item: Draft | Record) -> Example:
    """The whole text as something that the device model is to foretell."""
    return Example(task.title, whole_text(task, item), item.input, "")


def _balance(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Of each label as many as its share in the user's records allows, the most confident."""
    task, factor = bench.task, bench.config.balance
    if not (task.labels and task.output) or factor is None:
        return [Verdict(draft) for draft in drafts]
    own = Counter(record.output for record in bench.real())
    total = sum(own[label] for label in task.labels) + _SMOOTHING * len(task.labels)
    size = min(bench.wanted, len(drafts))
    order = sorted(range(len(drafts)), key=lambda i: -drafts[i].confidence)  # stable
    taken: Counter[str] = Counter()
    over: set[int] = set()
    shares = {label: (own[label] + _SMOOTHING) / total for label in task.labels}
    for i in order:
        label = drafts[i].output
        if taken[label] < math.ceil(factor * shares.get(label, 0.0) * size):
            taken[label] += 1
        else:
            over.add(i)
    return [
        Verdict(
            _scored(draft, balance=shares.get(draft.output, 0.0)),
            "too many of this label" if i in over else "",
        )
        for i, draft in enumerate(drafts)
    ]


def _diversity(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """Down to the number wanted by maximal marginal relevance (Carbonell and Goldstein 1998).

    The drafts come out in the order they were chosen, the best first.
    """
    if not drafts:
        return []
    weight = bench.config.diversity or 0.0
    ours, real = bench.vectors(drafts), bench.real(_REAL_TEXTS)
    near = 1 - _far(ours @ bench.vectors(real).T, min(_NEAREST, len(real))) if real else 0.0
    relevance = np.broadcast_to(near, len(drafts))
    likeness = ours @ ours.T
    like_chosen = np.zeros(len(drafts))
    open_ = np.ones(len(drafts), bool)
    verdicts = []
    for place in range(len(drafts)):
        values = np.where(
            open_, np.round((1 - weight) * relevance - weight * like_chosen, 6), -np.inf
        )
        best = int(values.argmax())  # the first of equals
        open_[best] = False
        draft = _scored(drafts[best], diversity=1 - float(like_chosen[best]))
        verdicts.append(Verdict(draft, "" if place < bench.wanted else "others were better"))
        like_chosen = np.maximum(like_chosen, likeness[best])
    return verdicts


def _wanted(bench: Bench, drafts: Sequence[Draft]) -> list[Verdict]:
    """The first ones, where no filter chooses among them."""
    return [Verdict(d, "" if i < bench.wanted else "enough") for i, d in enumerate(drafts)]


#: All filters, in the order they are applied.
FILTERS: dict[str, Filter] = {
    "well_formed": _well_formed,
    "length": _length,
    "form": _form,
    "valid_label": _valid_label,
    "agreement": _agreement,
    "copy": _copy,
    "distance": _distance,
    "perplexity": _perplexity,
    "balance": _balance,
    "diversity": _diversity,
    "wanted": _wanted,
}


def _on(config: FilterConfig, name: str) -> bool:
    """Whether a filter is applied."""
    if name == "copy":
        return config.copy_rouge is not None or config.copy_jaccard is not None
    if name == "wanted":
        return config.diversity is None
    return name in ("well_formed", "valid_label") or getattr(config, name) is not None


def _scored(draft: Draft, **scores: float) -> Draft:
    """The draft with these scores added; four digits are enough to read and compare."""
    rounded = {name: round(float(value), 4) for name, value in scores.items()}
    return replace(draft, scores={**draft.scores, **rounded})


def _shown(text: str) -> str:
    """The beginning of a text, with what cannot be written as UTF-8 replaced."""
    return text[:_SHOWN].encode("utf-8", "replace").decode("utf-8")
