"""Words of others within one's own messages: quotes, and messages as chat programs paste them."""

from __future__ import annotations

import re

from pfi.sources.whatsapp_heads import plain

__all__ = ["copied", "without_pasted"]

_OPEN, _CLOSE = r"[\[(【［]", r"[\])】］]"
_DATE = r"\d{1,4}[./\-]\d{1,2}(?:[./\-]\d{2,4})?"
_CLOCK = r"\d{1,2}[:.]\d\d(?:[:.]\d\d)?"
_WORDS = r"[^\[\]\n]{0,16}"
#: WhatsApp pastes `[25/01, 21:05] Anna: text`, its web page `[21:05, 25/01/2023] Anna: text`, and
#: Telegram `Anna, [25.01.23 21:05]` above the text.
_COPIED = re.compile(
    rf"{_OPEN}{_DATE},?{_WORDS}{_CLOCK}{_WORDS}{_CLOSE} ?[^:\n]{{1,60}}:"
    rf"|{_OPEN}{_WORDS}{_CLOCK}{_WORDS}, {_DATE}{_CLOSE} ?[^:\n]{{1,60}}:"
    rf"|[^\[\]:\n]{{1,60}}, {_OPEN}{_DATE}[ ,]{_WORDS}{_CLOCK}{_WORDS}{_CLOSE}:?(?: |$)"
)
#: A line that WhatsApp, Telegram, Signal and mail show as a quote.
_QUOTE = re.compile(r"\s*>(?:\s|>|$)")


def copied(line: str) -> bool:
    """Whether a line is the beginning of a message as chat programs paste it."""
    return ("[" in line or "]" in line or "(" in line) and _COPIED.match(plain(line)[0]) is not None


def without_pasted(text: str) -> str:
    """A message without lines that are quotes, and without all from a pasted message on."""
    if ">" not in text and "[" not in text and "(" not in text:
        return text
    kept = []
    for line in text.split("\n"):
        if copied(line):
            break
        if not _QUOTE.match(line):
            kept.append(line)
    return "\n".join(kept).strip()
