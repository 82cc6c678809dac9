"""Texts that would begin or end a turn, made harmless where they stand in data.

A control token that a text spells out stays plain text whatever the text is (``prompter``); but
models know the spelling, and some templates mark turns by plain text alone (``[INST]``,
``### Instruction:``, ``assistant:``).  So in what is data no such spelling is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: What families write around turns, thoughts, calls and documents, whichever model is in use.
_KNOWN = re.compile(
    r"<[|｜][^<>\n]{0,40}[|｜]>"
    r"|<(?:start|end)_of_\w+>"
    r"|</?(?:s|bos|eos|pad|unk|think|thinking|thought|tools?|tool_call|tool_response|documents?)>"
    r"|<</?SYS>>"
    r"|\[/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
    re.IGNORECASE,
)


def harmless(text: str, markers: Sequence[str] = ()) -> str:
    """A text in which nothing begins or ends a turn; readers still see what it says.

    A space behind the first character breaks a marker's spelling.  One that is words ("user:")
    marks a turn at the beginning of a line only: that line goes on with the one before.

    Args:
        text: data.
        markers: of the model in use, see ``Prompter.markers``.
    """
    text = _KNOWN.sub(_broken, text)
    for marker in markers:
        # In any case: some tokenizers put all in small letters.
        if marker[0].isalnum() or marker[0] == "#":
            text = re.sub(rf"\s*\n\s*(?={re.escape(marker)})", " ", text, flags=re.IGNORECASE)
        else:
            text = re.sub(re.escape(marker), _broken, text, flags=re.IGNORECASE)
    return text


def _broken(marker: re.Match[str]) -> str:
    return f"{marker[0][0]} {marker[0][1:]}"


def spelled_markers(controls: Iterable[str], frames: Iterable[str]) -> tuple[str, ...]:
    """The spellings that mark turns for one model, longest first.

    Args:
        controls: its control tokens.
        frames: what its template writes around turns.
    """
    controls = {token.strip() for token in controls if len(token.strip()) > 1}
    apart = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"\Z\A")
    markers = set(controls)
    for frame in frames:
        for line in (line.strip() for part in apart.split(frame) for line in part.splitlines()):
            # A word alone, or a sentence, says nothing without what stands around it.
            if len(line) > 1 and len(line.split()) <= 3 and not line.replace(" ", "").isalnum():
                markers.add(line)
    return tuple(sorted(markers, key=lambda marker: (-len(marker), marker)))
