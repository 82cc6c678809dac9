"""The embedded teacher: forms, determinism, and that it sees the user's records."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engine_world import sharpen

from pfi.augment.config import AugmentConfig
from pfi.augment.drafts import Subject
from pfi.augment.forms import read_answer, read_records
from pfi.augment.generators import GENERATORS
from pfi.augment.teachers.embedded import EmbeddedTeacher, rewrite
from pfi.augment.teachers.teacher import Call, Reply, Unusable
from pfi.memory.prompts import Retrieval
from pfi.models.backbone import load_backbone
from pfi.records import History, Record
from pfi.tasks import Task, get_task

Folder = Callable[[str], Path]
WORDS = ["brown", "lazy", "film", "book", "title", "fox", "dog", "jumps", "over", "good"]


def records(task: Task, user: str, count: int = 5) -> list[Record]:
    rng = random.Random(user)
    made = []
    for i in range(count):
        text = ". ".join(" ".join(rng.choices(WORDS, k=5)) for _ in range(4))
        inputs = {name: f"{text} {name}" for name in task.inputs}
        output = rng.choice(task.labels) if task.labels else f"a {text[:30]}"
        made.append(Record(f"{user}{i}", task.name, inputs, output if task.output else ""))
    return made


def teacher(folder: Folder, pool: list[Record]) -> EmbeddedTeacher:
    backbone = load_backbone(folder("llama"))
    retrieval = Retrieval(2, 96, backbone.prompter, max_prompt=500)
    return EmbeddedTeacher(backbone, retrieval, pool)


def calls_of(task: Task, strategy: str, pool: list[Record], trim: object) -> list[Call]:
    subject = Subject(task, History("u", records(task, "u")), pool, trim, 0)  # type: ignore[arg-type]
    config = AugmentConfig(votes=2, text_votes=2, records_per_call=4)
    return next(GENERATORS[strategy](subject, config, 4))


@pytest.mark.parametrize("name", ["LaMP_2M", "LaMP_3", "LaMP_4", "LaMP_7", "continuation"])
def test_every_strategy_gets_answers_of_its_form(backbone_folder: Folder, name: str) -> None:
    task = get_task(name)
    pool = records(task, "pool", 8)
    made = teacher(backbone_folder, pool)
    for strategy in GENERATORS:
        calls = calls_of(task, strategy, pool, made.backbone.trim)
        pairs = list(zip(calls, made.answer(calls), strict=True))
        # A random model may end before it has begun, depending on rounding.
        unusable = [str(reply) for _, reply in pairs if isinstance(reply, Unusable)]
        assert len(unusable) < len(pairs) / 2 and all("empty" in why for why in unusable)
        for call, reply in pairs:
            if not isinstance(reply, Reply):
                continue
            assert reply.usage.prompt_tokens > 0
            assert call.material is not None
            if call.form is None:
                assert reply.text
            elif call.material.purpose == "answer":
                found = read_answer(task, reply.text)
                assert not task.labels or found in task.labels
            else:
                assert len(read_records(task, reply.text)) == call.material.count


def test_an_answer_does_not_depend_on_the_batch_and_votes_differ(backbone_folder: Folder) -> None:
    task = get_task("LaMP_4")
    pool = records(task, "pool", 8)
    made = teacher(backbone_folder, pool)
    calls = calls_of(task, "relabel", pool, made.backbone.trim)
    together = [reply.text for reply in made.answer(calls) if isinstance(reply, Reply)]
    alone = [made.answer([call])[0] for call in calls]
    assert together == [reply.text for reply in alone if isinstance(reply, Reply)]
    again = [replace(call, seed=call.seed + 1) for call in calls]
    assert together != [reply.text for reply in made.answer(again) if isinstance(reply, Reply)]
    cold = [replace(call, temperature=0.0) for call in (*calls[:1], *calls[:1])]
    first, second = made.answer([cold[0], replace(cold[1], seed=5)])
    assert first == second


def test_the_records_that_it_is_shown_change_the_answer(backbone_folder: Folder) -> None:
    task = get_task("LaMP_4")
    pool = records(task, "pool", 8)
    made = teacher(backbone_folder, pool)
    sharpen(made.backbone)
    call = replace(calls_of(task, "relabel", pool, made.backbone.trim)[0], temperature=0.0)
    assert call.material is not None
    shown = made.answer([call])[0]
    none = made.answer([replace(call, material=replace(call.material, records=()))])[0]
    assert isinstance(shown, Reply) and isinstance(none, Reply)
    assert shown.text != none.text


def test_public_records_keep_their_texts_and_lose_their_labels(backbone_folder: Folder) -> None:
    found = {}
    for name in ("LaMP_4", "LaMP_2M"):
        task = get_task(name)
        pool = [replace(record, output="THEIRS") for record in records(task, "pool", 8)]
        made = teacher(backbone_folder, pool)
        calls = calls_of(task, "write", pool, made.backbone.trim)
        replies = [reply for reply in made.answer(calls) if isinstance(reply, Reply)]
        found[name] = [read_records(task, reply.text) for reply in replies]
        inputs = [dict(record.input) for record in pool]
        assert all(fields in inputs for read in found[name] for fields, _ in read)
    assert {output for read in found["LaMP_4"] for _, output in read} == {"THEIRS"}
    assert {output for read in found["LaMP_2M"] for _, output in read} <= set(task.labels)


def test_rewriting_drops_some_sentences_and_keeps_the_order() -> None:
    text = "One is here. Two is there. Three is gone. Four stays."
    parts = text.split(". ")
    for seed in range(20):
        found = rewrite(text, random.Random(seed))
        kept = [part.strip(".") for part in parts if part.strip(".") in found]
        assert 2 <= len(kept) <= 3
        assert [found.index(part) for part in kept] == sorted(found.index(part) for part in kept)
    assert rewrite("two words", random.Random(0)) == "two words"
    assert len(rewrite("some words without any stop", random.Random(0)).split()) in (3, 4)


def test_the_users_labels_outweigh_the_backbones_leaning(backbone_folder: Folder) -> None:
    """A backbone that cannot tell the labels apart gives those of the records it is shown."""
    task = get_task("LaMP_3")
    pool = records(task, "pool", 8)
    made = teacher(backbone_folder, pool)
    call = replace(calls_of(task, "relabel", pool, made.backbone.trim)[0], temperature=0.0)
    assert call.material is not None
    found = set()
    for label in task.labels:
        mine = tuple(replace(record, output=label) for record in call.material.records)
        reply = made.answer([replace(call, material=replace(call.material, records=mine))])[0]
        assert isinstance(reply, Reply)
        found.add(read_answer(task, reply.text))
    assert found == {*task.labels}
    without = teacher(backbone_folder, [])
    none = [
        without.answer([replace(call, material=replace(call.material, records=records_))])[0]
        for records_ in (call.material.records, ())
    ]
    assert all(isinstance(reply, Reply) for reply in none)
