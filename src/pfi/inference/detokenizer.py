"""An answer's text as its tokens come: whole characters, no thoughts, cut at stop texts.

What was shown never changes: a run of tokens that stand for single bytes is decoded when it ends,
since tokenizers that fall back to bytes (Llama 2, Mistral 7B, Gemma) decode a run as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pfi.models.prompter import Prompter

_BROKEN = "\ufffd"
#: An unfinished character has at most three bytes.
_UNFINISHED = 3
#: Tokens that are decoded again with a new one, at least.
_WINDOW = 16


class Written:
    """The text of one answer.

    Args:
        text: decodes tokens.
        stop: texts that end the answer; they are no part of it.
        byte_ids: tokens that stand for one byte each.
        thoughts: what stands around thoughts, which are no part of an answer's text.
        thought_ids: tokens among these that ``text`` does not show.
        in_thought: whether the prompt has begun a thought.

    Attributes:
        stopped: whether a stop text came.
        hidden: tokens of thoughts so far.
    """

    def __init__(
        self,
        text: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        *,
        byte_ids: Collection[int] = (),
        thoughts: Sequence[tuple[str, str]] = (),
        thought_ids: Mapping[int, str] | None = None,
        in_thought: bool = False,
    ) -> None:
        self._text, self._stop, self._byte_ids = text, tuple(stop), byte_ids
        self._thoughts = _Thoughts(thoughts, in_thought)
        self._thought_ids = thought_ids or {}
        self._tokens: list[int] = []
        self._shown = ""  # the window's text that was taken
        self._whole = 0  # tokens of the window up to which the text was whole before the last time
        self._bytes = 0  # tokens of single bytes at the end
        self._odd = 0  # tokens since the text last began with what was taken
        self._held = ""  # what could be the beginning of a stop text
        self.stopped, self.hidden = False, 0

    @classmethod
    def of(cls, prompter: Prompter, prompt: Sequence[int], stop: Sequence[str] = ()) -> Written:
        """The text of an answer to a prompt's tokens."""
        return cls(
            prompter.text,
            stop,
            byte_ids=prompter.byte_ids,
            thoughts=prompter.thoughts,
            thought_ids=prompter.thought_ids,
            in_thought=prompter.in_thought(prompt),
        )

    @property
    def in_thought(self) -> bool:
        """Whether the next token is part of a thought."""
        return self._thoughts.inside

    def add(self, token: int) -> str:
        """Another token; what can be shown of the answer since the last time."""
        inside = self._thoughts.inside
        new = self._add(token)
        self.hidden += inside or self._thoughts.inside
        return new

    def _add(self, token: int) -> str:
        mark = self._thought_ids.get(token)
        if mark is not None and not self._thoughts.over:
            new = self._rest() + mark
            self._tokens, self._shown, self._whole, self._bytes = [], "", 0, 0
            return self._until_stop(self._thoughts.add(new))
        self._tokens.append(token)
        if token in self._byte_ids:
            self._bytes += 1
            return ""
        self._bytes = 0
        return self._until_stop(self._thoughts.add(self._new()))

    def end(self) -> str:
        """No more tokens; what was held back. An unfinished character is left out."""
        new = self._thoughts.add(self._rest()) + self._thoughts.end()
        new = self._until_stop(new)
        held, self._held = self._held, ""
        return new if self.stopped else new + held

    def _new(self) -> str:
        """The whole characters that the last token adds."""
        text = self._text(self._tokens)
        # A character of several tokens is not whole before its last one.
        whole = len(text) - _broken(text)
        if not text.startswith(self._shown):
            self._odd += 1
            if self._odd <= _WINDOW:
                return ""  # it may begin so again with the next token
        self._odd = 0
        new = text[len(self._shown) : whole]
        self._shown = text[: max(len(self._shown), whole)]
        if whole == len(text):
            if self._whole >= _WINDOW:
                # Decoded on from the last place where no character was unfinished.
                self._tokens = self._tokens[self._whole :]
                self._shown = self._text(self._tokens)
            self._whole = len(self._tokens)
        return new

    def _rest(self) -> str:
        """What the tokens so far add in whole characters, when no more come."""
        if not self._bytes and not self._odd:
            return ""
        tokens = self._tokens
        for left_out in range(min(_UNFINISHED, self._bytes) + 1):
            text = self._text(tokens[: len(tokens) - left_out])
            if not text.endswith(_BROKEN):
                break
        else:
            text = self._text(tokens)
            text = text[: len(text) - _broken(text)]
        new = text[len(self._shown) :]
        self._shown, self._bytes, self._odd = text, 0, 0
        return new

    def _until_stop(self, new: str) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else new
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stop)
        shown = len(text) - held
        self._held = text[shown:]
        return text[:shown]


class _Thoughts:
    """Leaves out the thoughts at the head of an answer.

    Args:
        marks: what stands around a thought, begin and end.
        inside: whether one has begun.

    Attributes:
        over: whether the answer itself has begun.
    """

    def __init__(self, marks: Sequence[tuple[str, str]], inside: bool) -> None:
        self._marks = marks
        self._ends = [end for _, end in marks] if inside else []
        self._held = ""
        self._begun = not inside  # whether white space at the head is the answer's own
        self.over = not marks

    @property
    def inside(self) -> bool:
        """Whether a thought has begun and not ended."""
        return bool(self._ends)

    def add(self, text: str) -> str:
        """More of what the model wrote; what of it is the answer."""
        if self.over:
            return text
        self._held += text
        while True:
            if self._ends:
                found = [(at, end) for end in self._ends if (at := self._held.find(end)) >= 0]
                if not found:
                    self._held = self._held[-max(map(len, self._ends)) :]
                    return ""
                at, end = min(found)
                self._held, self._ends, self._begun = self._held[at + len(end) :], [], False
            head = self._held.lstrip()
            begun = next((pair for pair in self._marks if head.startswith(pair[0])), None)
            if begun is not None:
                self._held, self._ends = head[len(begun[0]) :], [begun[1]]
                continue
            if not head or any(begin.startswith(head) for begin, _ in self._marks):
                return ""
            self.over = True
            return self.end()

    def end(self) -> str:
        """What was held back; nothing of a thought that has not ended."""
        held, self._held = self._held, ""
        if self._ends:
            return ""
        return held if self._begun else held.lstrip()


def answer_text(prompter: Prompter, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of a whole answer, as an engine streams it.

    Args:
        prompter: of the model.
        prompt: the tokens that were asked.
        ids: the answer's, without the one that ends it.
    """
    written = Written.of(prompter, prompt)
    return "".join([*map(written.add, ids), written.end()])


def _broken(text: str) -> int:
    """Characters at the end that may be part of one that is not whole yet."""
    return min(len(text) - len(text.rstrip(_BROKEN)), _UNFINISHED)


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that ``stop`` begins with, but is not."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
