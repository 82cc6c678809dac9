"""A conversation with one's model: its turns, what it is told first, answers that go on.

`pfi chat` holds one; the console's page holds its turns itself and asks a `Runtime`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pfi.errors import ConfigError
from pfi.inference.engine import Stream
from pfi.models.prompter import Turn
from pfi.profile.answer.runtime import Prepared, Runtime, question_fields
from pfi.profile.home import Home
from pfi.tasks import Task

#: The vault's setting: what a model is told before every conversation.
SYSTEM = "system"


def read_system(home: Home) -> str:
    """What the profile's model is told before every conversation; empty for nothing.

    Raises:
        StorageError: the vault cannot be used.
    """
    with home.open_vault() as vault:
        return str(vault.setting(SYSTEM) or "")


def write_system(home: Home, text: str) -> None:
    """Say what the profile's model is told before every conversation; empty for nothing.

    Raises:
        StorageError: the vault cannot be written.
    """
    with home.open_vault() as vault:
        vault.set_setting(SYSTEM, text.strip() or None)


def with_system(system: str, turns: list[Turn]) -> list[Turn]:
    """The turns after what the model is told first."""
    return [("system", system), *turns] if system.strip() else turns


@dataclass(frozen=True)
class Answered:
    """The last answer of a conversation.

    Attributes:
        prepared: the question as it was made ready.
        fields: its input fields.
        raw: the answer as it was decoded.
        cut: after how many tokens it was cut, those of `/more` included; 0 where it ended.
        tokens: how many it has so far.
    """

    prepared: Prepared
    fields: Mapping[str, str]
    raw: str = ""
    cut: int = 0
    tokens: int = 0

    @property
    def answer(self) -> str:
        """The answer as it is kept."""
        return self.prepared.task.parse(self.raw)


@dataclass
class Conversation:
    """Turns with one's model.

    Attributes:
        runtime: what answers.
        task: what a line is asked as.
        system: what the model is told first; empty for nothing.
        named: whether the user named the task.
        k: records to retrieve; as the gate or the profile says when None.
        max_tokens: longest answer; as the profile or the task says when None.
        turns: so far, without what the model is told first.
        last: the last answer; None before the first.
    """

    runtime: Runtime
    task: Task
    system: str = ""
    named: bool = False
    k: int | None = None
    max_tokens: int | None = None
    turns: list[Turn] = field(default_factory=list)
    last: Answered | None = None
    _stream: Stream | None = None

    def begin(self, system: str | None = None) -> None:
        """Forget the turns; also change what the model is told first, unless None."""
        self.turns, self.last = [], None
        if system is not None:
            self.system = system

    def prepare(self, line: str) -> Prepared:
        """Make a line ready.

        Raises:
            ConfigError: it does not answer the task's question.
            StorageError: a file of the device is damaged.
        """
        labels = self.task.kind != "text"
        return self.runtime.prepare(
            line,
            self.task,
            k=self.k,
            history=[] if labels else with_system(self.system, self.turns),
            room=self.runtime.room(self.max_tokens) if self.task.free_form else None,
            named=self.named,
            alone=True,
        )

    def answer(self, prepared: Prepared, line: str) -> Iterator[str]:
        """The answer piece by piece; once it ends, or `stop` is called, it is a turn."""
        self.last = Answered(prepared, question_fields(prepared.task, line, {}))
        self.turns.append(("user", prepared.asked))
        return self._pieces(prepared)

    def more(self) -> Iterator[str]:
        """More of an answer that was cut.

        Raises:
            ConfigError: it was not cut, or there is no room for more.
        """
        if self.last is None or not self.last.cut:
            raise ConfigError("the last answer was not cut", fix="ask a question")
        prepared = self.runtime.more(self.last.prepared, self.last.raw)
        self._unsay()
        return self._pieces(prepared)

    def _unsay(self) -> None:
        """Take back the last answer, which will be longer."""
        if self.turns and self.turns[-1][0] == "assistant":
            self.turns.pop()

    def stop(self) -> None:
        """Decode no further; what was answered so far is a turn."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
            self._say("cancelled")

    def _pieces(self, prepared: Prepared) -> Iterator[str]:
        assert self.last is not None
        given = {"max_tokens": self.max_tokens}
        self._stream = self.runtime.stream(prepared, self.runtime.sampling(prepared.task, given))
        first, text, count, finish = self.last, "", 0, ""
        for piece in self._stream:
            text, count, finish = text + piece.text, count + piece.tokens, piece.finish or finish
            self.last = Answered(
                first.prepared, first.fields, first.raw + text, 0, first.tokens + count
            )
            if piece.text:
                yield piece.text
        self._stream = None
        self._say(finish)

    def _say(self, finish: str) -> None:
        """Keep the last answer as a turn."""
        last = self.last
        assert last is not None
        cut = last.tokens if finish == "length" else 0
        self.last = Answered(last.prepared, last.fields, last.raw, cut, last.tokens)
        if last.answer:
            self.turns.append(("assistant", last.answer))
        elif self.turns and self.turns[-1][0] == "user":
            self.turns.pop()  # a question without an answer would confuse the next one
