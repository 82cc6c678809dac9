"""A conversation as the model reads it, all of it: what does not fit is refused.

The last user's message is the question, which records are retrieved for; turns behind it (calls
and their results) follow it.  An assistant's turn at the end is gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pfi.inference.engine import Sampling
from pfi.models.prompter import Prompter, Turn
from pfi.models.tool_calls import CallFormat, response_turn, tool_system
from pfi.profile.answer.runtime import Prepared
from pfi.serve.ask import Ask, Spoken
from pfi.serve.auth import Caller
from pfi.serve.config import ServeConfig
from pfi.serve.errors import ApiError, too_long, unsupported
from pfi.serve.service import GENERIC, Model, Service

_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class _Parts:
    """A conversation in parts.

    Attributes:
        turns: all, without an assistant's that is gone on with.
        question: the number of the one that is the question.
        begun: what the assistant has said of the answer.
        dropped: how many turns were left out.
    """

    turns: list[Turn]
    question: int
    begun: str
    dropped: int = 0

    @property
    def history(self) -> list[Turn]:
        """The turns before the question."""
        return self.turns[: self.question]

    @property
    def later(self) -> list[Turn]:
        """The turns behind it."""
        return self.turns[self.question + 1 :]

    @property
    def text(self) -> str:
        """The question's text."""
        return self.turns[self.question][1]


class Prompting:
    """Makes the conversations of one request ready.

    Args:
        service: answers.
        config: its settings.
        caller: whose request it is.
        ask: the request.
        model: that it names.
        form: how the model writes calls.
    """

    def __init__(
        self,
        service: Service,
        config: ServeConfig,
        caller: Caller,
        ask: Ask,
        model: Model,
        form: CallFormat,
    ) -> None:
        self._service, self._config, self._profile = service, config, caller.profile
        self._ask, self._model, self._form = ask, model, form
        self._bounded = not caller.may("memory")
        self._prompter: Prompter = service.engine(caller.profile).prompter

    def prepare(self, talk: Sequence[Spoken]) -> Prepared:
        """Make a conversation ready.

        Raises:
            ApiError: 400, it does not fit the context, or asks for what the model has not.
            PfiError: the device cannot answer it.
        """
        parts = self._parts(talk)
        if self._ask.shorten:
            parts = self._shortened(parts)
        count = self._count(parts.turns, parts.begun)
        if count > self._most:
            raise self._too_long(count)
        if self._model.id == GENERIC:
            prepared = self._generic(parts)
        else:
            prepared = self._personal(parts, count)
        if parts.begun:
            prepared = replace(prepared, ids=(*prepared.ids, *self._begun_ids(parts.begun)))
        if len(prepared.ids) > self._most:
            raise self._too_long(len(prepared.ids))
        return replace(prepared, dropped_turns=parts.dropped)

    def sampling(self, prepared: Prepared) -> Sampling:
        """How a prepared conversation's answer is decoded."""
        ask = self._ask
        given = {name: value for name, value in ask.sampling.items() if value is not None}
        chosen = self._service.sampling(self._profile, prepared.task, given)
        return replace(
            chosen,
            max_tokens=max(1, min(self._wanted(chosen), self._room(len(prepared.ids)))),
            stop=ask.stops,
            top_logprobs=ask.logprobs or 0,
        )

    # Lengths --------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        """The longest prompt in tokens, which leaves one for the answer."""
        prompter = self._prompter
        fits = prompter.max_length - (0 if prompter.seq2seq else 1)
        return min(fits, self._config.context or fits)

    def _room(self, prompt: int) -> int:
        """The longest answer behind a prompt of so many tokens."""
        prompter = self._prompter
        return prompter.max_length - (0 if prompter.seq2seq else prompt)

    def _wanted(self, chosen: Sampling) -> int:
        """The longest answer that is asked for."""
        ask, config = self._ask, self._config
        wanted = ask.max_tokens
        if wanted is None and (ask.answer is not None or ask.tools is not None):
            wanted = config.most_answer_tokens  # half an object is of no use
        if wanted is None:
            generic = self._model.id == GENERIC
            wanted = config.answer_tokens if generic else chosen.max_tokens
        return min(wanted, config.most_answer_tokens)

    def _count(self, turns: Sequence[Turn], begun: str = "") -> int:
        ids = self._prompter.chat_ids(turns, _NO_LIMIT)
        return len(ids) + (len(self._begun_ids(begun)) if begun else 0)

    def _begun_ids(self, begun: str) -> list[int]:
        return self._prompter.token_ids(begun)

    def _too_long(self, count: int) -> ApiError:
        return too_long(self._most + 1, count, self._ask.param)

    # Turns ----------------------------------------------------------------------------

    def _parts(self, talk: Sequence[Spoken]) -> _Parts:
        turns = [self._turn(one) for one in talk]
        asked = [at for at, one in enumerate(talk) if one.role == "user"]
        begun = ""
        last = talk[-1]
        if last.role == "assistant" and not last.calls:
            begun = last.text
            del turns[-1]
        if not turns:
            what = f"{self._ask.param}: there is nothing to answer; add a user's message"
            raise ApiError(400, what, param=self._ask.param, code="invalid_value")
        if begun and self._prompter.seq2seq:
            what = f"{self._ask.param}: this model cannot go on with an assistant's turn"
            raise unsupported(self._ask.param, what)
        if not asked:  # what the system alone says is the question
            asked = [len(turns) - 1]
            turns[-1] = "user", turns[-1][1]
        if self._ask.tools is not None:
            return self._told(turns, asked[-1], begun)
        return _Parts(turns, asked[-1], begun)

    def _told(self, turns: list[Turn], question: int, begun: str) -> _Parts:
        """The turns after what the system says of the tools."""
        tools = self._ask.tools
        assert tools is not None
        has_system = turns[0][0] == "system"
        text = tool_system(
            self._prompter, self._form, tools.tools, turns[0][1] if has_system else ""
        )
        rest = turns[1:] if has_system else turns
        return _Parts([("system", text), *rest], question + (not has_system), begun)

    def _turn(self, one: Spoken) -> Turn:
        if one.role == "tool":
            return response_turn(self._form, one.name, one.text)
        if one.calls:
            calls = self._form.text(one.calls)
            return one.role, f"{one.text}\n{calls}" if one.text.strip() else calls
        return one.role, one.text

    def _shortened(self, parts: _Parts) -> _Parts:
        """Without the oldest turns, as many as it takes to leave room for an answer."""
        wanted = min(self._ask.max_tokens or self._most, max(1, self._most // 4))
        limit = self._most + 1 - wanted - len(self._begun_ids(parts.begun))
        turns = self._prompter.fitting(parts.turns, max(1, limit))
        dropped = len(parts.turns) - len(turns)
        question = parts.question - dropped
        if not dropped or question < 0 or turns[question] != parts.turns[parts.question]:
            return parts
        return _Parts(turns, question, parts.begun, dropped)

    # Models ---------------------------------------------------------------------------

    def _generic(self, parts: _Parts) -> Prepared:
        asked = self._ask.extension
        if asked.task or asked.records or asked.fields:
            raise unsupported("pfi", f"pfi: the model {GENERIC} has no tasks and no records")
        prepared = self._service.prepare_generic(self._profile, [("user", parts.text)])
        return replace(prepared, ids=tuple(self._prompter.chat_ids(parts.turns, _NO_LIMIT)))

    def _personal(self, parts: _Parts, count: int) -> Prepared:
        model, asked = self._model, self._ask.extension
        if model.task and asked.task not in (None, model.task):
            raise ApiError(400, f"pfi.task: the model's task is {model.task}", param="pfi")
        behind = count - self._count(parts.turns[: parts.question + 1])
        least = self._prompter.max_length - self._most + behind
        task = self._service.task(self._profile, model.task or asked.task)
        wanted = self._wanted(self._service.sampling(self._profile, task))
        # Records take what the conversation and its answer leave.
        for room in (max(least, min(wanted + behind, self._room(count) + behind)), least):
            prepared = self._prepared(parts, room if task.kind == "text" else None)
            if self._is_whole(prepared, parts):
                break
        else:
            turns = [*parts.history, ("user", prepared.prompt), *parts.later]
            raise self._too_long(self._count(turns, parts.begun))
        if parts.later:
            turns = [*parts.history, ("user", prepared.prompt), *parts.later]
            return replace(prepared, ids=tuple(self._prompter.chat_ids(turns, _NO_LIMIT)))
        return prepared

    def _prepared(self, parts: _Parts, room: int | None) -> Prepared:
        model, asked = self._model, self._ask.extension
        return self._service.prepare(
            self._profile,
            parts.text,
            task=model.task or asked.task,
            k=self._records,
            fields=asked.fields,
            history=parts.history,
            named=bool(model.task or asked.task),
            room=room,
        )

    @property
    def _records(self) -> int | None:
        """How many records are asked for; None for as many as the profile thinks best.

        An app that is not shown records gets no more of them into a prompt than the profile's
        setting, so that it cannot have all of them read out by asking for many at a time.
        """
        wanted = self._ask.extension.records
        if wanted is None or not self._bounded:
            return wanted
        return min(wanted, self._service.home(self._profile).config.retrieve)

    def _is_whole(self, prepared: Prepared, parts: _Parts) -> bool:
        """Whether nothing of the conversation was left out of a prompt."""
        thinking = None if prepared.task.kind == "text" else False
        turns = [*parts.history, ("user", prepared.prompt)]
        whole = self._prompter.chat_ids(turns, _NO_LIMIT, thinking=thinking)
        return not prepared.dropped_turns and len(whole) == len(prepared.ids)
