"""What teachers that pfi runs itself share: prompts, grammars, circles, and giving a model up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import BaseModel

from pfi.augment.teachers.teacher import Call, Message, Reply, TeacherError, Unusable
from pfi.errors import BackboneError, ConfigError
from pfi.models.prompter import Prompter

if TYPE_CHECKING:
    from pfi.inference.constraints import Grammar

#: The tail of a small model's distribution is noise.
TOP_P = 0.95
LOOK_EVERY = 16  # tokens between looks at an answer
_LEAST = 16  # tokens an answer needs room for
_GIVE_UP = 6  # answers with no usable one among them after which the teacher is given up
_TURNS, _PERIOD = 4, 40  # so many times the same up to 40 tokens is a circle


def prompt_ids(prompter: Prompter, messages: Sequence[Message], where: str) -> list[int]:
    """A conversation's tokens as the model expects them, whole; as plain text without a template.

    Raises:
        TeacherError: the chat template takes no such conversation.
    """
    if not prompter.tokenizer.chat_template:
        return prompter.prompt_ids("\n\n".join(message.content for message in messages))
    turns = [(message.role, message.content) for message in messages]
    try:
        return prompter.chat_ids(turns, 1 << 40)  # asked as it is, or not at all
    except (BackboneError, ConfigError) as error:
        raise TeacherError(error.what, where=where, fix="use another model") from error


def room_for(call: Call, prompt: Sequence[int], longest: int) -> int:
    """How many tokens an answer may have.

    Args:
        call: what is asked.
        prompt: its tokens.
        longest: most tokens of a prompt with its answer.

    Raises:
        Unusable: they are too few for an answer.
    """
    room = min(call.max_tokens, longest - len(prompt))
    if room < min(_LEAST, call.max_tokens):
        raise Unusable(f"the prompt is too long: {len(prompt)} tokens, and {longest} are taken")
    return room


@lru_cache(maxsize=256)
def grammar_of(prompter: Prompter, form: type[BaseModel] | None) -> Grammar | None:
    """What an answer in a form is held to; None for plain text, and where nothing can hold it.

    That is so where llguidance is not installed, or does not know the model's tokenizer; answers
    are then read as leniently as a server's.
    """
    from pfi.inference.constraints import compile_grammar, json_grammar

    if form is None:
        return None
    try:
        return compile_grammar(prompter, json_grammar(form.model_json_schema()))
    except ConfigError:
        return None


def runs_in_a_circle(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are a few, over and over."""
    for period in range(1, _PERIOD + 1):
        tail = list(tokens[-max(_TURNS * period, _PERIOD) :])
        if len(tail) >= max(_TURNS * period, _PERIOD) and tail[period:] == tail[:-period]:
            return True
    return False


class Trial:
    """Gives a model up that cannot write JSON, before all calls have taken their minutes.

    Args:
        name: the teacher's.
        fix: what to do instead.
    """

    def __init__(self, name: str, fix: str) -> None:
        self._name, self._fix = name, fix
        self._problems = Counter[str]()
        #: Whether it has given a usable answer.
        self.passed = False

    def note(self, call: Call, result: Reply | Unusable) -> None:
        """Take an answer into account.

        Raises:
            TeacherError: the first answers were all unusable.
        """
        if call.form is None:
            return
        if isinstance(result, Reply):
            self.passed = True
            return
        self._problems[str(result)] += 1
        count = self._problems.total()
        if self.passed or count < _GIVE_UP:
            return
        why = "; ".join(f"{times} x {problem}" for problem, times in self._problems.most_common(3))
        what = f"none of its first {count} answers could be used: {why}"
        raise TeacherError(what, where=self._name, fix=self._fix)
