"""The one rule that fills a prompt with records: for questions, trials, streams and training.

What a model is asked in a study, what the gate tries, what an adapter is trained on and what
`pfi ask` sends to its engine are made here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pfi.memory.config import How
from pfi.memory.index import Memory
from pfi.memory.summary import summary_prompt
from pfi.models.prompter import Prompter, Turn
from pfi.models.role_markers import harmless
from pfi.records import Record
from pfi.tasks import Task

# Fewer tokens than this hold no record worth reading.
_LEAST_TOKENS = 24
_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Filled:
    """A prompt as a model reads it.

    Attributes:
        prompt: the text of the question, with records and summary.
        ids: its tokens and those of the turns before it, framed as the backbone expects.
        records: the records that it shows, best first.
    """

    prompt: str
    ids: tuple[int, ...]
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Retrieval:
    """How prompts are filled with records.

    Attributes:
        retrieve: records a prompt.
        record_tokens: tokens for all records of a prompt together.
        prompter: counts, cuts and frames tokens.
        share: share of the training examples that carry records.
        how: how memory is searched; as the memory's own settings say when None.
        max_prompt: longest prompt in tokens; what the backbone's context leaves beside the
            answer when None.
    """

    retrieve: int
    record_tokens: int
    prompter: Prompter
    share: float = 0.5
    how: How | None = None
    max_prompt: int | None = None

    def search(
        self,
        task: Task,
        memory: Memory,
        fields: Mapping[str, str],
        *,
        before: datetime | None = None,
        exclude: Iterable[str] = (),
    ) -> list[Record]:
        """The records that fit a question's fields best."""
        query = task.query_text(fields)
        return memory.search(query, self.retrieve, how=self.how, before=before, exclude=exclude)

    def fill(
        self,
        task: Task,
        prompt: str,
        records: Sequence[Record] = (),
        *,
        summary: str = "",
        history: Sequence[Turn] = (),
        room: int | None = None,
    ) -> Filled:
        """``prompt`` with as many of the records as fit, as tokens.

        What does not fit is left out: the least useful of the records first, then the oldest
        turns, then the end of the question.

        Args:
            task: whose prompt it is.
            prompt: without records.
            records: the retrieved ones, best first.
            summary: what is typical of the user, before the prompt; none when empty.
            history: the turns of the conversation before the question, oldest first.
            room: tokens of the context that are kept free for the answer; as the task says
                when None.
        """
        prompter, limit = self.prompter, self.limit(task, room)
        used: list[Record] = []
        if records:
            # What stands around the prompt is there already, whatever the records.
            turns = [*history, ("user", summary_prompt(prompt, summary))]
            bare = len(prompter.prompt_ids(prompt, _NO_LIMIT))
            around = len(prompter.chat_ids(turns, _NO_LIMIT)) - bare
            filled, used = self._with_records(task, prompt, records, limit - around)
            # Where texts meet tokens may join otherwise, so that it is one or two too long.
            while used and self._length(summary_prompt(filled, summary), history) > limit:
                filled, used = self._with_records(task, prompt, used[:-1], limit - around)
            prompt = filled
        prompt = summary_prompt(prompt, summary)
        # Labels are scored where an answer begins, which is behind any thought.
        thinking = None if task.kind == "text" else False
        ids = prompter.chat_ids([*history, ("user", prompt)], limit, thinking=thinking)
        return Filled(prompt, tuple(ids), tuple(used))

    def _length(self, prompt: str, history: Sequence[Turn]) -> int:
        """Tokens of a conversation that ends with a prompt."""
        return len(self.prompter.chat_ids([*history, ("user", prompt)], _NO_LIMIT))

    def text(self, task: Task, prompt: str, records: Sequence[Record]) -> str:
        """The text of `fill`, for a training example, whose tokens are made later."""
        return self._with_records(task, prompt, records, self.limit(task))[0]

    def limit(self, task: Task, room: int | None = None) -> int:
        """The most tokens of a task's prompt; ``room`` as in `fill`."""
        room = answer_room(task, self.prompter) if room is None else room
        limit = self.prompter.max_length - (0 if self.prompter.seq2seq else room)
        return limit if self.max_prompt is None else min(limit, self.max_prompt)

    def _with_records(
        self, task: Task, prompt: str, records: Sequence[Record], limit: int
    ) -> tuple[str, list[Record]]:
        """The prompt with as many of the records as fit, and these; the least useful go first.

        A prompt that is too long by itself goes without them.
        """
        prompter, left = self.prompter, list(records)
        shown = [_as_data(record, prompter.markers) for record in records]
        budget = min(self.record_tokens, limit - len(prompter.prompt_ids(prompt)))
        while left and budget >= _LEAST_TOKENS:
            filled = task.retrieval_prompt(prompt, shown[: len(left)], prompter.trim, budget)
            # prompt_ids cuts at its limit, so ask for more than could be too long.
            if len(prompter.prompt_ids(filled, 2 * prompter.max_length)) <= limit:
                return filled, left
            left.pop()
        return prompt, []


def _as_data(record: Record, markers: Sequence[str]) -> Record:
    """A record whose texts begin and end no turn: it is data, whoever wrote it."""
    values = {name: harmless(text, markers) for name, text in record.input.items()}
    return replace(record, input=values, output=harmless(record.output, markers))


def answer_room(task: Task, prompter: Prompter) -> int:
    """Tokens of the context that are kept free for a task's answer, or its longest label."""
    return task.max_new_tokens if task.kind == "text" else prompter.longest(tuple(task.labels))


def lookalikes(task: Task, history: Iterable[Record]) -> dict[str, list[str]]:
    """The ids of records by the text that a prompt shows of them.

    A record whose own text a prompt shows already (an option of LaMP_1, a copy) would point at
    the answer, which the records found for a real question do not.
    """
    shown: dict[str, list[str]] = {}
    for record in history:
        shown.setdefault(task.values(record).get(task.item_trim, ""), []).append(record.id)
    return shown
