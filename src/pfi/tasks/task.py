"""What a task is: how a record becomes a prompt and a target, how answers are parsed and scored.

A task is one YAML file in ``definitions/``; this module gives it its behaviour.  The LaMP
tasks follow the benchmark's own prompts (Salemi et al., arXiv 2304.11406).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pfi.errors import ConfigError
from pfi.records import History, Question, Record
from pfi.tasks.metrics import METRICS
from pfi.tasks.practices import PRACTICES

#: Shortens a text to at most that many tokens of the backbone at hand.
Trim = Callable[[str, int], str]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the target the model should give.

    Attributes:
        prompt: what the model reads.
        target: what it should answer.
        fields: the input fields, which serve as retrieval query.
        record_id: the record that it was made from.
        weight: how much its loss counts beside that of other examples.
    """

    prompt: str
    target: str
    fields: Mapping[str, str]
    record_id: str
    weight: float = 1.0


class Task(BaseModel):
    """A task's definition; the fields are the keys of its YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    kind: Literal["choice", "score", "text"]
    records: Literal["own", "all"] = Field(
        "own",
        description="`own`: records of this task; `all`: also those of every task with `own_words`",
    )
    own_words: bool = Field(
        True, description="whether the outputs of a `text` task are words that the user wrote"
    )
    question: str = Field(description="prompt template over the input fields")
    inputs: list[str] = Field(description="the record keys that are input fields")
    output: str = Field("", description="the record key that holds the output")
    labels: list[str] = []
    item: str = Field(description="how one retrieved record reads in a prompt")
    item_trim: str = Field(description="the item's field that is shortened to fit")
    retrieval: str = Field("{items}. {question}", description="retrieval prompt template")
    framing: Literal["examples", "notes"] = Field(
        "examples",
        description="what retrieved records are to the model: `examples` of the task, worded as "
        "the benchmark does, or `notes` to look things up in, a quoted line each",
    )
    insert_after: str = Field("", description="put items after this word of the question instead")
    query: list[str] = Field(description="the fields that retrieval searches with")
    document: list[str] = Field(description="the record keys that retrieval searches in")
    practice: str = Field("direct", description="how a record becomes training examples")
    metrics: list[str]
    max_new_tokens: int = Field(48, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.kind in ("choice", "score") and not self.labels:
            raise ValueError(f"a task of kind {self.kind} needs labels")
        if self.kind == "score":
            _ = [float(label) for label in self.labels]
        unknown = [m for m in self.metrics if m not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"metrics must be some of {sorted(METRICS)}, not {unknown}")
        if not self.labels and {"accuracy", "macro_f1"} & {*self.metrics}:
            raise ValueError("the metrics accuracy and macro_f1 need labels")
        if self.kind != "score" and {"mae", "rmse"} & {*self.metrics}:
            raise ValueError("the metrics mae and rmse need a task of kind score")
        if self.practice not in PRACTICES:
            raise ValueError(f"practice must be one of {sorted(PRACTICES)}")
        asked = [name for name in _names(self.question) if name != "labels"]
        if len({*asked}) < len(asked) or not all(map(str.isidentifier, asked)):
            raise ValueError("the fields of the question must be names, each used once")
        if self.records == "all" and (self.kind != "text" or len(asked) != 1):
            raise ValueError("records: all needs a task of kind text whose question has one field")
        if self.item_trim not in _names(self.item):
            raise ValueError(f"item_trim must be one of {_names(self.item)}")
        return self

    @property
    def free_form(self) -> bool:
        """Whether a question is asked in the user's words alone, as in a conversation."""
        return self.kind == "text" and re.fullmatch(r"\{\w+\}", self.question) is not None

    # Prompts ------------------------------------------------------------------------

    def prompt(self, fields: Mapping[str, str]) -> str:
        """The prompt without retrieved records."""
        return _fill(self.question, {**fields, "labels": ", ".join(self.labels)})

    @cached_property
    def _question_pattern(self) -> re.Pattern[str]:
        parts = re.split(r"\{(\w+)\}", self.question)
        pattern = ""
        for i, part in enumerate(parts):
            if i % 2 == 0:
                pattern += re.escape(part)
            else:
                pattern += ".*?" if part == "labels" else f"(?P<{part}>.*?)"
        return re.compile(pattern + r"\s*", re.DOTALL)

    def fields(self, prompt: str) -> dict[str, str]:
        """The input fields inside a benchmark prompt; all of it under ``text`` if none fit."""
        match = self._question_pattern.fullmatch(prompt)
        return match.groupdict() if match else {"text": prompt}

    def retrieval_prompt(
        self, prompt: str, records: Sequence[Record], trim: Trim, budget: int
    ) -> str:
        """The prompt with ``records`` in it, in the benchmark's wording.

        Args:
            prompt: the prompt without records.
            records: the retrieved records, best first.
            trim: shortens a text to a number of tokens.
            budget: tokens for all the records together; each gets an equal part, but no less
                than 8.
        """
        if not records:
            return prompt
        share = max(8, budget // len(records))
        between = "\n" if self.framing == "notes" else ", and "
        joined = between.join(self._item(record, trim, share) for record in records)
        if self.insert_after:
            at = prompt.find(self.insert_after)
            if at < 0:
                return prompt
            at += len(self.insert_after)
            return f"{prompt[:at]}, and {joined}{prompt[at:]}"
        return _fill(self.retrieval, {"items": joined, "question": prompt})

    def _item(self, record: Record, trim: Trim, share: int) -> str:
        """How a record reads in a prompt, in about ``share`` tokens."""
        values = self.values(record)
        for name in _names(self.item):
            if name != self.item_trim:  # an answer or a title may be long too
                values[name] = trim(values.get(name, ""), max(8, share // 2))
        fixed = len(_fill(self.item, {**values, self.item_trim: ""}).split())
        text = values.get(self.item_trim, "")
        values[self.item_trim] = trim(text, max(4, share - 2 * fixed))
        if self.framing == "notes":
            values = {name: _quoted(value) for name, value in values.items()}
        return _fill(self.item, values)

    def values(self, record: Record) -> dict[str, str]:
        """A record's input fields and its output under the output's own key."""
        values = {key: record.input.get(key, "") for key in {*self.inputs, *record.input}}
        if self.output:
            values[self.output] = record.output
        return values

    # Retrieval ----------------------------------------------------------------------

    def query_text(self, fields: Mapping[str, str]) -> str:
        """What to search the user's memory with."""
        found = [fields[key] for key in self.query if fields.get(key)]
        return " ".join(found or fields.values())

    def document_text(self, record: Record) -> str:
        """What of a record is searched."""
        values = self.values(record)
        return " ".join(values.get(key, "") for key in self.document)

    # Training -----------------------------------------------------------------------

    def examples(
        self, history: History, rng: random.Random, pool: Sequence[Record] = ()
    ) -> list[Example]:
        """Training examples made from a history, oldest first.

        Args:
            history: the user's records.
            rng: makes the choices that some practices need.
            pool: records of other users, needed by tasks that contrast with them.
        """
        made = []
        for record, fields, target in PRACTICES[self.practice](history, rng, pool):
            made.append(Example(self.prompt(fields), target, fields, record.id))
        return made

    def example(self, question: Question) -> Example:
        """The training example of a question whose answer is known."""
        assert question.gold is not None
        return Example(question.prompt, question.gold, question.fields, question.id)

    # Answers ------------------------------------------------------------------------

    def parse(self, answer: str) -> str:
        """An answer as it is scored: surrounding space removed, labels otherwise untouched."""
        return answer.strip()

    def choose(self, scores: Sequence[float]) -> str:
        """The answer for a question's label scores, natural logarithms of probabilities.

        The likeliest label; for an ordered scale the median of the distribution over the labels,
        which minimises the expected absolute error.
        """
        if self.kind == "score":
            likely = np.exp(np.array(scores, np.float64) - max(scores))
            below = np.cumsum(likely / likely.sum()) < 0.5
            return self.labels[min(int(below.sum()), len(self.labels) - 1)]
        return self.labels[max(range(len(scores)), key=scores.__getitem__)]

    def score(self, predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
        """Every metric of the task over aligned predictions and gold answers."""
        parsed = [self.parse(p) for p in predictions]
        expected = [self.parse(g) for g in golds]
        return {m: METRICS[m].compute(parsed, expected, self.labels) for m in self.metrics}

    @property
    def main_metric(self) -> str:
        """The metric that decides which arm is better."""
        return self.metrics[0]


def _names(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def _quoted(text: str) -> str:
    """A text as one line that does not end the line's quote, so that it stays what is quoted."""
    return " ".join(text.split())


def _fill(template: str, values: Mapping[str, str]) -> str:
    # str.format would read braces inside the values' own text when nested; replace by name.
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], ""), template)


def read_task(path: Path) -> Task:
    """Read one definition file.

    Raises:
        ConfigError: the file is not valid YAML or not a valid definition.
    """
    try:
        return Task.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:  # not UTF-8 is a ValueError too
        what = " ".join(str(error).split())
        if isinstance(error, ValidationError):
            parts = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            what = "; ".join(part.removeprefix(": ") for part in parts)
        fix = "see docs/tasks.md for the keys of a task definition"
        raise ConfigError(f"not a task definition: {what}", where=str(path), fix=fix) from error


@cache
def tasks() -> dict[str, Task]:
    """Every task that ships with the package, by name."""
    folder = Path(str(resources.files("pfi.tasks"))) / "definitions"
    found = [read_task(path) for path in sorted(folder.glob("*.yaml"))]
    return {task.name: task for task in found}


def get_task(name: str) -> Task:
    """The task of that name, or the one defined in that YAML file.

    Raises:
        ConfigError: there is no such task.
    """
    if name in tasks():
        return tasks()[name]
    if name.endswith((".yaml", ".yml")):
        task = read_task(Path(name))
        if task.records == "all":
            what = "only a task that comes with pfi can have the records of all tasks"
            raise ConfigError(what, where=name, fix="leave out the key `records`")
        return task
    fix = f"use one of {', '.join(tasks())}, or the path of a definition file"
    raise ConfigError(f"unknown task {name!r}", fix=fix)


def source_tasks(name: str) -> tuple[str, ...]:
    """The tasks whose records are a task's history: itself, and all with own words for `write`."""
    task = tasks().get(name)
    if task is None or task.records == "own":
        return (name,)
    others = (t.name for t in tasks().values() if t.kind == "text" and t.own_words)
    return (name, *(other for other in others if other != name))


def tasks_served(name: str) -> tuple[str, ...]:
    """The tasks whose history holds records of a task: itself, and `write` for own words."""
    others = (other for other in tasks() if other != name)
    return (name, *(other for other in others if name in source_tasks(other)))


def as_request(record: Record, task: Task) -> Record | None:
    """A record of any task as one of a task whose records are `all`: its prompt and its output.

    Where the record's own task makes several examples of it, the first one counts; where it makes
    none (too short a text), there is no such record.

    Args:
        record: of one of ``source_tasks(task.name)``.
        task: one with one input field.
    """
    if record.task == task.name:
        return record
    # The record's id is the seed: the same record always gives the same request.
    rng = random.Random(record.id)
    examples = tasks()[record.task].examples(History("", [record]), rng)
    if not examples:
        return None
    (field,) = _names(task.question)
    return Record(
        record.id,
        task.name,
        {field: examples[0].prompt},
        examples[0].target,
        record.time,
        record.origin,
        record.source,
        record.made,
    )
