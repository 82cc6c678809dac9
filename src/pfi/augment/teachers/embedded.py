"""The embedded teacher: offline, from what the package has, and weak.

It follows no instructions.  It answers questions with the device's own backbone and shared
adapter, shown the user's records by retrieval; "new" records are public ones, or the user's own,
rewritten by rule.  So it knows no more than the device; what it can bring is the user's own
records carried over to more inputs (self-training, and retrieval distilled into the adapter).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from pfi.augment.forms import Fields, write_answer, write_records
from pfi.augment.teachers.teacher import Call, Material, Reply, Unusable, Usage
from pfi.inference.generation import generate
from pfi.memory.index import Memory
from pfi.memory.prompts import Retrieval
from pfi.models.backbone import Backbone
from pfi.models.scoring import score_labels
from pfi.records import History, Record
from pfi.tasks import Example, Task

#: Of how many times as many public records like a user's some are drawn.
_NEAR = 3
#: Public questions that the backbone's leaning to labels is measured on.
_LEANING = 64
#: How many records the backbone's leaning counts for beside the user's labels.
_SMOOTHING = 3.0
#: Sampled texts come from the likeliest tokens of this probability together.
_TOP_P = 0.9
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\s+-+\s+|(?<=,)\s+")


class EmbeddedTeacher:
    """A teacher made of a backbone, best with the task's shared adapter merged in.

    Args:
        backbone: what answers.
        retrieval: how many records a prompt shows, and in how many tokens.
        pool: public records, which it rewrites to write new ones.
    """

    host: str | None = None
    batch = 1024
    concurrency = 1

    def __init__(
        self,
        backbone: Backbone,
        retrieval: Retrieval,
        pool: Sequence[Record] = (),
    ) -> None:
        self.name = f"embedded:{backbone.name}"
        self.backbone, self.retrieval, self.pool = backbone, retrieval, pool

    def price(self, usage: Usage) -> Usage:
        """The usage: it costs nothing."""
        return usage

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        """Answer calls from their material; see the class's own words on what to expect."""
        texts: dict[int, str] = {}
        answering: dict[str, list[int]] = {}
        writing: list[int] = []
        for i, call in enumerate(calls):
            material = _material(call)
            if material.purpose == "answer":
                answering.setdefault(material.task.name, []).append(i)
            elif material.purpose == "summarise":
                texts[i] = summary(material.task, material.records)
            else:
                writing.append(i)
        for positions in answering.values():
            found = self._answers([calls[i] for i in positions])
            texts |= {
                i: write_answer(text) if calls[i].form else text
                for i, text in zip(positions, found, strict=True)
            }
        texts |= zip(writing, self._written([calls[i] for i in writing]), strict=True)
        return [self._reply(call, texts[i]) for i, call in enumerate(calls)]

    @staticmethod
    def _reply(call: Call, text: str) -> Reply | Unusable:
        if call.form is not None:
            try:
                call.form.model_validate_json(text)
            except ValueError as error:
                return Unusable(f"the answer has not the form asked for: {error}")
        sent = sum(len(message.content) for message in call.messages)
        return Reply(text, Usage(sent // 4, len(text) // 4))  # about: nobody counts or pays them

    # Answers ------------------------------------------------------------------------

    def _answers(self, calls: Sequence[Call]) -> list[str]:
        """The answers to questions of one task; equal prompts are computed once."""
        task = _material(calls[0]).task
        prompts = [self._prompt(call) for call in calls]
        different = list(dict.fromkeys(prompts))
        if task.kind != "text":
            rows = score_labels(self.backbone, different, task.labels, self.retrieval.limit(task))
            scores = dict(zip(different, rows, strict=True))
            return [
                self._label(task, torch.tensor(scores[prompt], dtype=torch.float64), call)
                for prompt, call in zip(prompts, calls, strict=True)
            ]
        answers: list[str] = [""] * len(calls)
        for temperature in {call.temperature for call in calls}:
            # What is greedy or has the same key is generated once.
            made: dict[tuple[str, str], list[int]] = {}
            for i, call in enumerate(calls):
                if call.temperature == temperature:
                    key = call.key(self.name) if temperature else ""
                    made.setdefault((prompts[i], key), []).append(i)
            texts = generate(
                self.backbone,
                [prompt for prompt, _ in made],
                task.max_new_tokens,
                max_prompt=self.retrieval.limit(task),
                temperature=temperature,
                top_p=_TOP_P,
                seed=[key for _, key in made],
            )
            for positions, text in zip(made.values(), texts, strict=True):
                for i in positions:
                    answers[i] = text
        return answers

    def _prompt(self, call: Call) -> str:
        material = _material(call)
        assert material.question is not None
        records = material.records[: self.retrieval.retrieve]
        return self.retrieval.text(material.task, material.question.prompt, records)

    def _label(self, task: Task, scores: torch.Tensor, call: Call) -> str:
        """The best label, or one drawn by its probability.

        The backbone's own leaning to some labels gives way to the user's: Bayes' rule with the
        labels of the records shown, smoothed by that leaning (Saerens et al. 2002).
        """
        leaning = self._leaning(task)
        records = _material(call).records
        if leaning is not None and records and task.practice == "direct":
            counts = torch.tensor(
                [float(sum(r.output == label for r in records)) for label in task.labels]
            )
            own = (counts + _SMOOTHING * leaning) / (len(records) + _SMOOTHING)
            scores = scores.log_softmax(0) + own.log() - leaning.log()
        if not call.temperature:
            return task.choose(scores.tolist())
        likely = torch.softmax(scores / call.temperature, 0)
        drawn = random.Random(call.key(self.name)).choices(task.labels, likely.tolist())
        return drawn[0]

    def _leaning(self, task: Task) -> torch.Tensor | None:
        """Mean probability of each label over questions of the pool; None without a pool."""
        if task.name not in self._leanings:
            rng = random.Random(task.name)
            some = rng.sample(self.pool, min(_LEANING, len(self.pool)))
            made = [task.examples(History("public", [record]), rng) for record in some]
            prompts = [examples[0].prompt for examples in made if examples]
            found = None
            if prompts:
                rows = score_labels(self.backbone, prompts, task.labels, self.retrieval.limit(task))
                found = torch.tensor(rows, dtype=torch.float64).softmax(-1).mean(0)
                found = found.clamp_min(1e-4)
            self._leanings[task.name] = found
        return self._leanings[task.name]

    # Writing ------------------------------------------------------------------------

    def _written(self, calls: Sequence[Call]) -> list[str]:
        """New records: of the pool those like the user's, else the user's own, rewritten.

        Texts of the pool keep their own output.  Labels are the user's business: they are
        answered anew, shown the user's records.
        """
        made: list[list[Fields]] = []
        asked: list[tuple[list[Fields], int, Call]] = []
        for call in calls:
            material, rng = _material(call), random.Random(call.key(self.name))
            task = material.task
            found = self._like(material, rng)
            if material.source is not None:
                records = [rewritten(task, material.source, rng)]
            elif found:
                records = [
                    ({name: record.input.get(name, "") for name in task.inputs}, record.output)
                    for record in found
                ]
                if task.labels and task.output:
                    asked += [
                        (records, i, self._asking(call, fields))
                        for i, (fields, _) in enumerate(records)
                    ]
            else:
                own = rng.choices(material.records, k=material.count)
                records = [rewritten(task, record, rng) for record in own]
            made.append(records)
        answers = self._answers([call for _, _, call in asked]) if asked else []
        for (records, i, _), output in zip(asked, answers, strict=True):
            records[i] = (records[i][0], output)
        return [
            write_records(_material(call).task, records)
            for call, records in zip(calls, made, strict=True)
        ]

    def _like(self, material: Material, rng: random.Random) -> list[Record]:
        """Records of the pool that are like one of the user's."""
        if not self.pool or not material.records:
            return []
        task, count = material.task, material.count
        query = task.document_text(rng.choice(material.records))
        found = self._public(task).search(query, _NEAR * count)
        return rng.sample(found, min(count, len(found)))

    def _asking(self, call: Call, fields: Mapping[str, str]) -> Call:
        """The call for an answer to the question that some fields ask."""
        material = _material(call)
        task, memory = material.task, Memory(material.task, material.records)
        shown = tuple(memory.search(task.query_text(fields), self.retrieval.retrieve))
        question = Example(task.prompt(fields), "", fields, "")
        asked = replace(material, purpose="answer", records=shown, question=question)
        return replace(call, material=asked)

    def _public(self, task: Task) -> Memory:
        if task.name not in self._indexes:
            self._indexes[task.name] = Memory(task, self.pool)
        return self._indexes[task.name]

    @cached_property
    def _indexes(self) -> dict[str, Memory]:
        return {}

    @cached_property
    def _leanings(self) -> dict[str, torch.Tensor | None]:
        return {}


def _material(call: Call) -> Material:
    if call.material is None:
        raise ValueError("the embedded teacher works from the material of a call")
    return call.material


def rewritten(task: Task, record: Record, rng: random.Random) -> tuple[dict[str, str], str]:
    """A record's input fields and output, the longest text of what asks rewritten."""
    fields, output = {name: record.input.get(name, "") for name in task.inputs}, record.output
    if not fields:  # the question is made from the output
        return fields, rewrite(output, rng)
    longest = max(fields, key=lambda name: len(fields[name]))
    fields[longest] = rewrite(fields[longest], rng)
    return fields, output


def rewrite(text: str, rng: random.Random) -> str:
    """A text with some of its sentences or clauses left out; the order stays.

    A text of one clause loses some of its words instead.
    """
    parts = [part for part in _SENTENCE.split(text) if part.strip()]
    if len(parts) < 3:
        parts = text.split()
    if len(parts) < 3:
        return text
    # A third to a half: with fewer it is a copy, as the filters see it.
    count = rng.randint(max(1, len(parts) // 3), max(1, len(parts) // 2))
    dropped = {*rng.sample(range(len(parts)), count)}
    return " ".join(part for i, part in enumerate(parts) if i not in dropped)


def summary(task: Task, records: Sequence[Record]) -> str:
    """What can be counted of a user: outputs, words and lengths."""
    words: Counter[str] = Counter()
    for record in records:
        words.update(set(re.findall(r"\w{5,}", task.document_text(record).lower())))
    common = ", ".join(word for word, _ in words.most_common(12))
    lines = [f"Words that recur: {common}."]
    if task.labels:
        outputs = Counter(record.output for record in records)
        lines.append("Answers: " + ", ".join(f"{o} ({n})" for o, n in outputs.most_common()) + ".")
    elif task.output:
        lengths = sorted(len(record.output.split()) for record in records)
        lines.append(f"Answers have about {lengths[len(lengths) // 2]} words.")
    return " ".join(lines)
