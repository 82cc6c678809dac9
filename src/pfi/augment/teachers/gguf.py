"""A chat model in a GGUF file as a teacher, run by llama.cpp in this process; nothing leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.chatting import (
    LOOK_EVERY,
    TOP_P,
    Trial,
    grammar_of,
    prompt_ids,
    room_for,
    runs_in_a_circle,
)
from pfi.augment.teachers.forms import read_answer
from pfi.augment.teachers.teacher import Call, Reply, TeacherError, Unusable, Usage
from pfi.errors import BackboneError
from pfi.inference.engine import Request, Sampling
from pfi.inference.llama.gguf_cache import fingerprint, open_llama
from pfi.models.prompter import gguf_path

#: Calls at a time: each takes memory for a whole prompt, and two cores gain little from more.
_CALLS = 4
#: Longest prompt with its answer, in tokens; a call shows a few records only.
_LENGTH = 4096
#: Whose prompts they are: what calls begin with in common, of one user or of all, is read once.
_OWNER = "teacher"


class GgufTeacher:
    """A causal model tuned for chat, asked through its template, its JSON held to the schema.

    The beginning that prompts share is read once and kept. Answers are written side by side; which
    ones does not decide what they say.

    Args:
        config: its ``model`` is the file, or the name of an installed model that is one; of
            ``concurrency`` at most four calls are answered at a time.

    Raises:
        TeacherError: no model is named, it is no GGUF file, or it holds no conversation.
        BackboneError: it cannot be loaded, or llama.cpp is not installed.
        ConfigError: it does not fit the memory that is free.
    """

    host: str | None = None
    batch = 1  # so that each answer is stored as soon as it is there

    def __init__(self, config: TeacherConfig) -> None:
        if not config.model:
            raise TeacherError("no model is named", fix="set the teacher's model to its GGUF file")
        path = gguf_path(config.model)
        if path is None:
            raise TeacherError(
                "is no GGUF file", where=config.model, fix="take --teacher local for a folder"
            )
        self.concurrency = min(config.concurrency, _CALLS)
        self._engine = open_llama(
            config.model, Path(), slots=self.concurrency, length=_LENGTH, adapters=1
        )
        self._prompter = self._engine.prompter
        if not self._prompter.tokenizer.chat_template:
            self._engine.close()
            raise TeacherError(
                "the file has no chat template, so it holds no conversation",
                where=config.model,
                fix="take a model tuned for chat (instruct, it or chat in its name)",
            )
        self.name = f"gguf:{path.name}@{fingerprint(config.model)[:8]}"
        self._trial = Trial(self.name, "take a larger model")

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        """See ``Teacher.answer``.

        Raises:
            TeacherError: the chat template takes no such conversation, or the first answers were
                all unusable.
        """
        results = []
        for call in calls:
            try:
                result: Reply | Unusable = self._answer(call)
            except Unusable as error:
                result = error
            if result.usage.tokens:  # else it was not asked
                self._trial.note(call, result)
            results.append(result)
        return results

    def _answer(self, call: Call) -> Reply:
        prompt = prompt_ids(self._prompter, call.worded, self.name)
        sampling = Sampling(
            max_tokens=room_for(call, prompt, self._prompter.max_length),
            temperature=call.temperature,
            top_p=TOP_P,
            seed=call.seed,
            grammar=grammar_of(self._prompter, call.form),
        )
        stream = self._engine.generate(Request(prompt, sampling=sampling, owner=_OWNER))
        text, ids, looked = "", list[int](), 0
        circle = False
        try:
            for piece in stream:
                text += piece.text
                ids += piece.ids
                if len(ids) - looked >= LOOK_EVERY:
                    looked = len(ids)
                    if circle := runs_in_a_circle(ids):
                        break
        except BackboneError as error:
            raise TeacherError(error.what, where=self.name, fix="use another model") from error
        finally:
            stream.cancel()
        usage = Usage(len(prompt), len(ids))
        try:
            return Reply(read_answer(text, call.form), usage)
        except Unusable as error:
            reason = "the answer runs in a circle" if circle else str(error)
            raise Unusable(reason, usage) from error

    def price(self, usage: Usage) -> Usage:
        """The usage as it is: a model of one's own costs no money."""
        return usage

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()
