"""Synthetic demo users in the LaMP file format, labelled as such, with known ground truth.

Each is a persona: tastes and a style that hold over three tasks and can be learnt from the
profile, not from a question alone.  About one in five is like most people, so that a study
can see whom personalization harms.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from pfi.datasets import demo_text
from pfi.datasets.demo_text import ASPECTS, PLAIN, Style
from pfi.datasets.folders import write_folder
from pfi.errors import ConfigError
from pfi.records import History, Question
from pfi.tasks import get_task

TASKS = ("LaMP_2M", "LaMP_3", "LaMP_4")
SPLITS = ("train", "dev", "test")
QUESTIONS = 4  # a user, task
MOST_USERS = 5000  # more would make texts repeat
ABOUT = (
    "All of this is synthetic: written by a program from word lists. "
    "It describes no real people, films, books or events."
)
README = f"""{ABOUT}

Demo users for `pfi demo`, made by `pfi.datasets.demo` with seed {{seed}}: {{counts}}.
Files are in the LaMP format, `<task>/{{{{train,dev,test}}}}_{{{{questions,outputs}}}}.json`, and
every user has the same id in each task. `truth.json` holds every persona's parameters and, for
every question, the gold answer and the `generic` one that most people would give. A persona's
`tags` are the kinds of movie that this person tags unlike most; an `average` persona is like most
people in all. Do not report scores on these files as if people had been studied.
"""
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Persona:
    """Tastes and style; the defaults are those of most people.

    Attributes:
        tags: kind of movie -> this person's tag, for kinds where it is not the usual one.
        focus: the aspect of a book that decides the score; "even" when all count the same.
        offset: points added to every score: 1 lenient, -1 strict.
        style: how headlines are worded.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    focus: str = "even"
    offset: int = 0
    style: Style = PLAIN

    def answer(self, task: str, text: str) -> str:
        """What this person says to an input text; it is a function of the text alone."""
        if task == "LaMP_2M":
            kind = demo_text.movie_kind(text)
            return self.tags.get(kind, demo_text.tag_choices()[kind][0])
        if task == "LaMP_3":
            return str(self.score(demo_text.review_levels(text)))
        return self.style.headline(text)

    def score(self, levels: Mapping[str, int]) -> int:
        """The score, 1 to 5, of a book whose aspects are bad (-1), middling (0) or good (1)."""
        total = sum(levels.values())
        if self.focus != "even":  # the aspect in focus counts four times, half points are lost
            total = int((3 * levels[self.focus] + total) / 2)
        return _clamp(_clamp(3 + total) + self.offset)


#: What the population's majority says.
MAJORITY = Persona()


@dataclass(frozen=True, slots=True)
class TrueAnswer:
    """A question's gold answer, and the one that most people would give."""

    user_id: str
    gold: str
    generic: str


@dataclass(frozen=True)
class DemoTruth:
    """Everything that is known of the demo's users.

    Attributes:
        seed: what the folder was made with.
        personas: by user id, over all splits.
        splits: user ids by split.
        questions: by task and question id, over all splits.
    """

    seed: int
    personas: dict[str, Persona]
    splits: dict[str, list[str]]
    questions: dict[str, dict[str, TrueAnswer]]

    def rule_answer(self, question: Question) -> str:
        """What the question's user says, by the persona's rules.

        Raises:
            KeyError: no persona has the question's user id.
        """
        return self.personas[question.user_id].answer(question.task, _text(question))

    def generic_answer(self, question: Question) -> str:
        """What most people would say."""
        return MAJORITY.answer(question.task, _text(question))

    def average_users(self, split: str = "test") -> list[str]:
        """The users whose persona is the majority's: there is nothing personal to learn."""
        return [user for user in self.splits[split] if self.personas[user] == MAJORITY]

    def to_json(self) -> str:
        """The text of ``truth.json``; its first line says that all of it is synthetic."""
        values = {
            "about": ABOUT,
            "seed": self.seed,
            "users": {
                user: {
                    "split": split,
                    "average": self.personas[user] == MAJORITY,
                    **asdict(self.personas[user]),
                }
                for split, users in self.splits.items()
                for user in users
            },
            "questions": {
                task: {key: asdict(value) for key, value in found.items()}
                for task, found in self.questions.items()
            },
        }
        return json.dumps(values, indent=1).replace("{\n ", "{", 1) + "\n"


def oracle(history: History, question: Question) -> str:
    """The answer recovered from a history by counting, without knowing the persona.

    Of all the rules a persona can have, the one that agrees with most of the user's records
    answers; the majority's rule wins ties.  For tags, only records of the same kind count.

    Args:
        history: the user's records of the question's task.
        question: its user's persona is not looked at.
    """
    task, text = question.task, _text(question)
    kind = demo_text.movie_kind(text) if task == "LaMP_2M" else None
    best, most = MAJORITY, -1
    for rule in _rules(task, kind):
        agreeing = sum(
            record.output == rule.answer(task, next(iter(record.input.values())))
            for record in history
            if kind is None or demo_text.movie_kind(record.input["description"]) == kind
        )
        if agreeing > most:
            best, most = rule, agreeing
    return best.answer(task, text)


def _rules(task: str, kind: str | None) -> Iterator[Persona]:
    if kind is not None:
        for tag in demo_text.tag_choices()[kind]:
            yield Persona(tags={kind: tag})
    elif task == "LaMP_3":
        for focus, offset in product(("even", *ASPECTS), (0, 1, -1)):
            yield Persona(focus=focus, offset=offset)
    else:
        words = demo_text.phrases()["article"]
        for frame, ending, capitals in product(words["frames"], words["endings"], (False, True)):
            yield Persona(style=Style(frame, ending, capitals))


# Drawing ----------------------------------------------------------------------------


def write_demo(folder: Path, *, seed: int = 0, train_users: int = 40, users: int = 12) -> DemoTruth:
    """Write the demo's files; the same arguments give the same bytes.

    Args:
        folder: made if missing; an earlier demo in it is replaced.
        seed: the only source of chance.
        train_users: users of the train split, for the task stage and the shared adapter.
        users: users of the test split; the dev split gets half as many, at least two.

    Raises:
        ConfigError: a number of users below one or too large.
        StorageError: the folder holds something else than a demo, or cannot be written.
    """
    counts = {"train": train_users, "dev": max(2, users // 2), "test": users}
    if min(train_users, users) < 1 or sum(counts.values()) > MOST_USERS:
        raise ConfigError(
            f"a demo of {train_users} train users and {users} test users cannot be made",
            fix=f"ask for at least 1 of each and fewer than {MOST_USERS} in all",
        )
    rng = random.Random(seed)
    personas: dict[str, Persona] = {}
    splits: dict[str, list[str]] = {}
    for split in SPLITS:
        drawn = _personas(rng, counts[split])
        splits[split] = [str(len(personas) + i + 1) for i in range(len(drawn))]
        personas.update(zip(splits[split], drawn, strict=True))
    truth = DemoTruth(seed, personas, splits, {task: {} for task in TASKS})
    files: dict[str, str] = {}
    seen: set[str] = set()
    for task, split in product(TASKS, SPLITS):
        asked: list[dict[str, Any]] = []
        for user in splits[split]:
            asked += _user_questions(rng, task, user, truth, seen)
        golds = [{"id": q["id"], "output": truth.questions[task][q["id"]].gold} for q in asked]
        files[f"{task}/{split}_questions.json"] = json.dumps(asked, indent=1) + "\n"
        files[f"{task}/{split}_outputs.json"] = (
            json.dumps({"task": task, "golds": golds}, indent=1) + "\n"
        )
    said = ", ".join(f"{number} {split} users" for split, number in counts.items())
    files |= {"truth.json": truth.to_json(), "README.md": README.format(seed=seed, counts=said)}
    write_folder(folder, files, label="truth.json", about=ABOUT)
    return truth


def _personas(rng: random.Random, number: int) -> list[Persona]:
    """Independent traits, dealt from decks so that small splits keep the population's shares."""
    kinds = list(demo_text.tag_choices())
    words = demo_text.phrases()["article"]
    frames, endings = list(words["frames"]), words["endings"]
    average = _deal(rng, [True] + 4 * [False])
    unusual = _deal_kinds(rng, kinds)
    others = {kind: _deal(rng, tags[1:]) for kind, tags in demo_text.tag_choices().items()}
    focus = _deal(rng, ["even", "even", "even", *ASPECTS])
    offset = _deal(rng, [0, 1, -1])
    frame = _deal(rng, [frames[0], frames[0], *frames])
    ending = _deal(rng, [endings[0], endings[0], *endings])
    capitals = _deal(rng, [True] + 5 * [False])
    found = []
    for _ in range(number):
        if next(average):
            found.append(MAJORITY)
            continue
        tags = {kind: next(others[kind]) for kind in next(unusual)}
        style = Style(next(frame), next(ending), next(capitals))
        found.append(Persona(tags, next(focus), next(offset), style))
    return found


def _deal(rng: random.Random, values: Sequence[_Value]) -> Iterator[_Value]:
    while True:
        yield from rng.sample(values, len(values))


def _deal_kinds(rng: random.Random, kinds: Sequence[str]) -> Iterator[list[str]]:
    """Half of the kinds for one person, the other half for the next."""
    while True:
        order = rng.sample(kinds, len(kinds))
        half = len(order) // 2
        yield sorted(order[:half])
        yield sorted(order[half:])


def _user_questions(
    rng: random.Random, task: str, user: str, truth: DemoTruth, seen: set[str]
) -> list[dict[str, Any]]:
    """One user's questions in one task, each with the profile; notes them in ``truth``."""
    definition = get_task(task)
    persona, field_name = truth.personas[user], definition.inputs[0]
    texts = _new_texts(rng, task, seen)
    base = int(user) * 10_000 + TASKS.index(task) * 1000  # ids are unique over tasks, too
    profile: list[dict[str, str]] = []
    day = date(2022, 1, 1)
    for position in range(rng.randint(12, 20)):
        day += timedelta(days=rng.randint(1, 14))
        text = next(texts)
        answer = persona.answer(task, text)
        item = {"id": str(base + 5000 + position), field_name: text, definition.output: answer}
        profile.append({**item, "date": day.isoformat()})
    asked = []
    day = date(2023, 1, 1)  # later than any profile of any task
    for number in range(QUESTIONS):
        day += timedelta(days=rng.randint(1, 14))
        text = next(texts)
        key = str(base + number)
        truth.questions[task][key] = TrueAnswer(
            user, persona.answer(task, text), MAJORITY.answer(task, text)
        )
        asked.append(
            {
                "id": key,
                "user_id": user,
                "input": definition.prompt({field_name: text}),
                "date": day.isoformat(),
                "profile": profile,
            }
        )
    return asked


def _new_texts(rng: random.Random, task: str, seen: set[str]) -> Iterator[str]:
    """Input texts that no user has had before.

    Kinds of movie are dealt, so that every kind is in a profile at least twice.
    """
    kinds = _deal(rng, list(demo_text.tag_choices()))
    while True:
        kind = next(kinds)
        text = _draw_text(rng, task, kind)
        while text in seen:
            text = _draw_text(rng, task, kind)
        seen.add(text)
        yield text


def _draw_text(rng: random.Random, task: str, kind: str) -> str:
    if task == "LaMP_2M":
        return demo_text.movie(rng, kind)
    if task == "LaMP_3":
        return demo_text.review(rng, {aspect: rng.choice((-1, 0, 1)) for aspect in ASPECTS})
    return demo_text.article(rng)


def _text(question: Question) -> str:
    fields = question.fields or get_task(question.task).fields(question.prompt)
    return next(iter(fields.values()))


def _clamp(score: int) -> int:
    return min(5, max(1, score))
