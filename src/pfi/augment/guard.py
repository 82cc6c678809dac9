"""The guard of one user's text on its way to a teacher elsewhere.

Records are hidden *before* generators cut, lower or divide their text, since half an identifier
is found by no filter; messages are looked at once more, and drafts get their values back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from pfi.augment.drafts import Draft
from pfi.privacy.redaction.redactor import Redactor, names_in
from pfi.records import History, Record


class Hides(Protocol):
    """What a client needs to send one user's text and to read the answer."""

    def redact(self, text: str) -> str:
        """The text as it may leave."""
        ...

    def restore(self, text: str) -> str:
        """The text with what was replaced."""
        ...


class Guard:
    """Hides what identifies somebody in one user's records, and in what is shown beside them.

    Args:
        history: the user's records; what is in them is numbered first, in their order.
        names: people to hide beside those who are found in the records.
    """

    def __init__(self, history: Sequence[Record], names: Iterable[str] = ()) -> None:
        self._redactor = Redactor([*names, *names_in(history)])
        for record in history:
            self._redactor.learn((*record.input.values(), record.output))

    def hide(self, record: Record) -> Record:
        """The record with placeholders; people found in it are hidden from here on."""
        self._redactor.add_names(names_in([record]))
        redact = self._redactor.redact
        fields = {name: redact(text) for name, text in record.input.items()}
        return replace(record, input=fields, output=redact(record.output))

    def hide_all(self, history: History) -> History:
        """The history with its records hidden."""
        return History(history.user_id, (self.hide(record) for record in history))

    def redact(self, text: str) -> str:
        """See ``Hides``; placeholders that are there already stay."""
        return self._redactor.redact_rest(text)

    def restore(self, text: str) -> str:
        """See ``Hides``."""
        return self._redactor.restore(text)

    def reveal(self, draft: Draft) -> Draft:
        """The draft with what was replaced in the records that it was made from."""
        fields = {name: self.restore(text) for name, text in draft.input.items()}
        return replace(draft, input=fields, output=self.restore(draft.output))
