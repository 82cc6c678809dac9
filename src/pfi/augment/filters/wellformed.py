"""Whether a draft can be a record at all, and reads like one instead of like a chat.

What a user's own records contain is never held against a draft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pfi.augment.drafts import Draft
from pfi.augment.filters.likeness import SHINGLE, shingles, words
from pfi.errors import DataError
from pfi.records import Record
from pfi.tasks import Task

#: How many times shorter than the user's shortest, or longer than their longest, a text may be.
#: Of real records held against 4 others of their user this drops at most 0.5 %, task by task.
LENGTHS = 8.0
#: Words from which on a text must not repeat itself, and the share of its runs that must differ.
_LONG = 12
_DIFFERENT = 0.5
#: Words of the task's question that a text must not contain in a row.
_ASKED = 6

# As `pfi.privacy.redaction.redactor` makes them; a letter tells spellings of one value apart.
_PLACEHOLDER = re.compile(r"\[[A-Z]{2,}(?:_[A-Z]+)*_\d+[a-z]*\]")
_BOILERPLATE = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bas an? (?:\w+ )?(?:ai|language model)\b",
        r"^\W*(?:sure|certainly|of course|absolutely|okay)\b[,.!: ]+here(?:['’]s| is| are)\b",
        r"^\W*here(?:['’]s| is| are) (?:a|an|the|your|my|another|some|\d+|\w+ new)\b"
        r"[^.!?\n]{0,80}:",
        r"\bi(?:['’]m| am) sorry, but i\b",
        r"\bi (?:cannot|can['’]t|am unable to) (?:assist|help|comply|provide|fulfil)",
        r"```|<\|\w+\|>|\[/?INST\]|</?(?:records?|input|output|question|summary)>",
        r"\[(?:your|insert|name|title|placeholder)\b[^\]\n]*\]",
    )
]
_UNREADABLE = re.compile(r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

#: The reason why a draft is not well formed; "" if it is.
Check = Callable[[Draft], str]


def well_formed(task: Task, real: Sequence[Record]) -> Check:
    """The check against one user's real records."""
    needed = [name for name in task.inputs if "{" + name + "}" in task.question]
    texts = [text for record in real for text in _texts(record.input, record.output)]
    own = {match[0] for text in texts for match in _PLACEHOLDER.finditer(text)}
    unlike = [p for p in _BOILERPLATE if not any(p.search(text) for text in texts)]
    unreadable = not any(_UNREADABLE.search(text) for text in texts)
    asked = _asked(task)
    lengths = {name: _lengths([r.input.get(name, "") for r in real]) for name in needed}
    written = _lengths([r.output for r in real]) if task.output and not task.labels else None

    def check(draft: Draft) -> str:
        if draft.problem:
            return draft.problem
        try:
            draft.record("draft", task.name, "")
        except DataError as error:
            return error.what
        for name in needed:
            if not draft.input.get(name, "").strip():
                return f"no {name}"
        if task.output and not draft.output.strip():
            return f"no {task.output}"
        for name in needed:
            if not _fits(draft.input[name], lengths[name]):
                return f"{name} far shorter or longer than the user's"
        if written and not _fits(draft.output, written):
            return f"{task.output} far shorter or longer than the user's"
        for text in _texts(draft.input, draft.output):
            if unreadable and _UNREADABLE.search(text):
                return "unreadable characters"
            if any(match[0] not in own for match in _PLACEHOLDER.finditer(text)):
                return "a placeholder was left over"
            if any(pattern.search(text) for pattern in unlike):
                return "words of a chat, not of a record"
            found = words(text)
            if asked & {tuple(found[i : i + _ASKED]) for i in range(len(found) - _ASKED + 1)}:
                return "the task's own instruction"
            if _repeats(found):
                return "repeats itself"
        return ""

    return check


def _texts(fields: Mapping[str, str], output: str) -> list[str]:
    return [text for text in (*fields.values(), output) if text]


def _asked(task: Task) -> set[tuple[str, ...]]:
    """The runs of ``_ASKED`` words of the task's question that are not the user's."""
    parts = [words(part) for part in re.split(r"\{\w+\}", task.question)]
    return {tuple(part[i : i + _ASKED]) for part in parts for i in range(len(part) - _ASKED + 1)}


def _lengths(texts: Iterable[str]) -> tuple[float, float] | None:
    """The least and greatest number of characters allowed; None if there is nothing to go by."""
    sizes = [len(text.strip()) for text in texts if text.strip()]
    if not sizes:
        return None
    return min(sizes) / LENGTHS, max(sizes) * LENGTHS


def _fits(text: str, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] <= len(text.strip()) <= bounds[1]


def _repeats(text: Sequence[str]) -> bool:
    """Whether most of its runs of words were there before."""
    if len(text) < _LONG:
        return False
    return len(shingles(text)) < _DIFFERENT * (len(text) - SHINGLE + 1)
