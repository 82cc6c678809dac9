"""Answers as they come, whichever API they are written for: texts, tokens and calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pfi.inference.engine import Piece
from pfi.profile.answer.runtime import Prepared
from pfi.serve.tools import CallReader, ToolCall

#: Characters of a retrieved record that are shown.
_SHORT = 300
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        data: what it stands for; a part of a character may be all that it is.
        logprob: natural logarithm of its probability.
        top: the likeliest at its place, with theirs.
    """

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()

    @property
    def text(self) -> str:
        """The token's text."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class Delta:
    """What an answer has more of than before."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None


@dataclass
class Said:
    """What an answer has come to so far.

    Attributes:
        spell: what a token stands for.
        reader: tells calls from text; None where there are no tools.
        text: without calls.
        tokens: all so far, where their log-probabilities are known.
        calls: that are whole.
        finish: why it ended; None while it goes on, and where it was cancelled.
        cancelled: whether it was.
        count: its tokens.
    """

    spell: Callable[[int], bytes]
    reader: CallReader | None = None
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: Finish | None = None
    cancelled: bool = False
    count: int = 0

    def add(self, piece: Piece) -> Delta:
        """Take a piece; what it adds."""
        text, calls = piece.text, list[ToolCall]()
        if self.reader is not None:
            text, calls = self.reader.add(text)
            if piece.finish is not None:
                text += self.reader.end()
        tokens = self._tokens(piece)
        self.text += text
        self.tokens += tokens
        self.calls += calls
        self.count += piece.tokens
        finish: Finish | None = None
        if piece.finish == "cancelled":
            self.cancelled = True
        elif piece.finish is not None:
            finish = "tool_calls" if self.calls and piece.finish == "stop" else piece.finish
            self.finish = finish
        return Delta(text, tuple(tokens), tuple(calls), finish)

    def _tokens(self, piece: Piece) -> list[Token]:
        if not piece.ids:
            # A character may take several tokens: its text is the last one's.
            texts = [*[""] * (len(piece.logprobs) - 1), piece.text]
            pairs = zip(texts, piece.logprobs, strict=False)
            return [Token(text.encode(), value) for text, value in pairs]
        tops = piece.top or ((),) * len(piece.ids)
        return [
            Token(
                self.spell(token),
                value,
                tuple((self.spell(other), level) for other, level in top),
            )
            for token, value, top in zip(piece.ids, piece.logprobs, tops, strict=True)
        ]


@dataclass(frozen=True)
class Used:
    """Tokens of a request.

    Attributes:
        prompt: of all conversations.
        cached: of these, tokens whose work was kept from an earlier prompt.
        new: of all answers.
    """

    prompt: int
    cached: int
    new: int


def why(prepared: Prepared, *, shown: bool) -> dict[str, Any]:
    """What an answer rests on; see ``replies.Why``.

    Args:
        prepared: the question.
        shown: whether the caller may read records.
    """
    records = []
    for record in prepared.records if shown else ():
        text = " ".join(" ".join([*record.input.values(), record.output]).split())
        records.append({"id": record.id, "text": text[:_SHORT]})
    return {
        "task": prepared.task.name,
        "records": records,
        "retrieved": len(prepared.records),
        "dropped": prepared.dropped,
        "dropped_turns": prepared.dropped_turns,
        "gate": prepared.gate,
        "personal": prepared.personal,
        "shared": prepared.shared,
        "weight": prepared.weight,
    }
