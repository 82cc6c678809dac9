"""How long a text is and what it looks like, against the spread of the user's own texts.

Each measure of a draft is compared with the median of the user's real records, in multiples of
their standard deviation.  Measured leave-one-out on dev users of LaMP and on commits of one
author, see docs/augment.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pfi.augment.drafts import Draft
from pfi.records import Record
from pfi.tasks import Task

Floats = NDArray[np.float64]

# Measures of a text: logarithms of its length and its lines, and angles of the shares of letters,
# digits and signs, whose spread hardly depends on the share.  Spreads are at least these.
_LENGTH, _FORM = slice(0, 1), slice(1, 5)
_LEAST_SPREAD = np.array([math.log(1.5), 0.25, 0.06, 0.06, 0.06])
#: Of few records the spread is less certain: it is widened by ``sqrt(1 + _FEW / n)``.
_FEW = 3
#: The newest real records that count at most.
_MOST = 256


class Forms:
    """What the texts of a user's real records look like, by field.

    Args:
        task: whose fields; labels are no texts.
        real: two or more records.
    """

    def __init__(self, task: Task, real: Sequence[Record]) -> None:
        self.names = [name for name in task.inputs if "{" + name + "}" in task.question]
        self.output = "" if task.labels else task.output
        self._spread: dict[str, tuple[Floats, Floats]] = {}
        fields = [self._texts(record) for record in real[-_MOST:]]
        for name in [*self.names, *([self.output] if self.output else [])]:
            texts = [values[name] for values in fields if values[name].strip()]
            if len(texts) < 2:
                continue
            measures = np.stack([_measures(text) for text in texts])
            spread = np.hypot(measures.std(0, ddof=1), _LEAST_SPREAD)
            widened = spread * math.sqrt(1 + _FEW / len(texts))
            self._spread[name] = np.median(measures, axis=0), widened

    def _texts(self, item: Draft | Record) -> Mapping[str, str]:
        texts = {name: item.input.get(name, "") for name in self.names}
        return {**texts, self.output: item.output} if self.output else texts

    def length(self, item: Draft | Record) -> tuple[float, str]:
        """How far its texts' lengths lie from the usual, in spreads; and which field's does."""
        return self._farthest(item, _LENGTH)

    def form(self, item: Draft | Record) -> tuple[float, str]:
        """The same for lines and the shares of letters, digits and signs, all together."""
        return self._farthest(item, _FORM)

    def _farthest(self, item: Draft | Record, part: slice) -> tuple[float, str]:
        texts = self._texts(item)
        far = [(0.0, "")]
        for name, (median, spread) in self._spread.items():
            offset = ((_measures(texts[name]) - median) / spread)[part]
            far.append((float(np.sqrt((offset**2).sum())), name))
        return max(far)


def _measures(text: str) -> Floats:
    """``(5,)`` measures of a text."""
    text = text.strip()
    size = max(1, len(text))
    letters = sum(map(str.isalpha, text)) / size
    digits = sum(map(str.isdigit, text)) / size
    signs = max(0.0, 1 - letters - digits - sum(map(str.isspace, text)) / size)
    lines = sum(bool(line.strip()) for line in text.splitlines())
    angles = (math.asin(math.sqrt(min(1.0, share))) for share in (letters, digits, signs))
    return np.array([math.log(size), math.log1p(lines), *angles])
