"""The teacher in a GGUF file, on a tiny model with random weights: no answer makes sense."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from engine_world import sharpen
from llama_world import needs_llama
from pydantic import BaseModel, ConfigDict

from pfi.augment.cache import TeacherStore
from pfi.augment.client import ClientReport, TeacherClient
from pfi.augment.config import AugmentConfig, TeacherConfig
from pfi.augment.teachers.chatting import prompt_ids
from pfi.augment.teachers.gguf import GgufTeacher
from pfi.augment.teachers.make import make_teacher
from pfi.augment.teachers.teacher import Call, Message, Reply, TeacherError, Unusable, Usage
from pfi.cli.augment import Standing
from pfi.errors import BackboneError
from pfi.inference.llama.gguf import write_backbone
from pfi.inference.llama.sequences import CHUNK
from pfi.models.backbone import load_backbone

pytestmark = needs_llama

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HEAD = "Here is what this person has written, as an example of their manner. " * 4


class Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: Literal["good", "bad"]


class Essay(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


def write(folder: Path, target: Path, template: str | None = TEMPLATE) -> Path:
    """A backbone's GGUF file with this chat template."""
    backbone = sharpen(load_backbone(folder))
    backbone.tokenizer.chat_template = template
    write_backbone(backbone, target, "f32")
    return target


_written: list[Path] = []


@pytest.fixture
def file(backbone_folder: Callable[[str], Path], tmp_path_factory: Any) -> Path:
    if not _written:
        target = tmp_path_factory.mktemp("teacher") / "chat.gguf"
        _written.append(write(backbone_folder("llama"), target))
    return _written[0]


@pytest.fixture
def teacher(file: Path) -> Iterator[GgufTeacher]:
    asked = make_teacher(
        TeacherConfig(kind="gguf", model=str(file)), embedded=lambda: pytest.fail("not asked for")
    )
    assert isinstance(asked, GgufTeacher)
    yield asked
    asked.close()


def call(text: str = "Hi", **more: Any) -> Call:
    messages = (Message("system", HEAD), Message("user", text))
    return Call("ann", messages, **{"max_tokens": 24, **more})


def at_once(teacher: GgufTeacher, calls: Sequence[Call]) -> list[Reply | Unusable]:
    with ThreadPoolExecutor(teacher.concurrency) as pool:
        return [result for (result,) in pool.map(lambda one: teacher.answer([one]), calls)]


def test_answers_are_held_to_their_form(teacher: GgufTeacher) -> None:
    calls = [call(f"{i}", form=Choice, temperature=9.0, seed=i) for i in range(6)]
    results = teacher.answer(calls)
    labels = {json.loads(result.text)["label"] for result in results}  # type: ignore[union-attr]
    assert len(results) == 6 and labels <= {"good", "bad"}
    assert teacher.host is None and teacher.batch == 1 and teacher.price(Usage(3, 4)).usd == 0


def test_an_answer_does_not_depend_on_those_beside_it(teacher: GgufTeacher, file: Path) -> None:
    """So that a run which was killed, and goes on with other calls beside each other, is equal."""
    calls = [call(f"No. {i}", temperature=0.8, seed=i, max_tokens=8 + 5 * i) for i in range(9)]
    together = at_once(teacher, calls)
    fresh = GgufTeacher(TeacherConfig(kind="gguf", model=str(file), concurrency=1))
    assert fresh.concurrency == 1 and fresh.name == teacher.name
    alone = fresh.answer(calls[::-1])[::-1]
    fresh.close()
    assert together == alone
    assert len({result.text for result in together if isinstance(result, Reply)}) == 9


def test_the_beginning_that_prompts_share_is_read_once(teacher: GgufTeacher) -> None:
    calls = [call(f"No. {i}") for i in range(8)]
    head = len(prompt_ids(teacher._prompter, call("").messages, "")) // CHUNK * CHUNK - CHUNK
    at_once(teacher, calls)
    stats = teacher._engine.stats()
    assert stats.cached_tokens >= 7 * head > 0.6 * stats.prompt_tokens


def test_what_cannot_be_used_has_its_reason(teacher: GgufTeacher) -> None:
    long, cut, circle, plain = teacher.answer(
        [
            call("long " * 3000),
            call("Write", form=Essay, max_tokens=20),
            call("Write", max_tokens=900),
            call("Write", max_tokens=20),
        ]
    )
    assert isinstance(long, Unusable) and "prompt is too long" in str(long)
    assert isinstance(cut, Unusable) and "cut off" in str(cut)
    assert cut.usage.completion_tokens == 20
    assert isinstance(plain, Reply) and isinstance(circle, Reply | Unusable)


def test_an_answer_that_runs_in_a_circle_is_ended(
    teacher: GgufTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfi.augment.teachers.gguf.runs_in_a_circle", lambda ids: len(ids) > 30)
    (result,) = teacher.answer([call("Write", form=Essay, max_tokens=400)])
    assert isinstance(result, Unusable) and str(result) == "the answer runs in a circle"
    assert 30 < result.usage.completion_tokens < 60


def test_a_model_that_ends_nothing_is_given_up(teacher: GgufTeacher) -> None:
    calls = [call(f"{i}", form=Essay, max_tokens=16) for i in range(6)]
    with pytest.raises(TeacherError, match=r"none of its first 6.*6 x the answer's JSON is cut"):
        teacher.answer(calls)


def test_a_run_that_was_stopped_goes_on_and_pays_nothing_twice(
    teacher: GgufTeacher, tmp_path: Path
) -> None:
    calls = [call(f"No. {i}", form=Choice, temperature=1.0, seed=i) for i in range(6)]
    with TeacherStore(tmp_path / "whole.db") as store:
        whole = TeacherClient(teacher, AugmentConfig(), store).ask(calls, {})
    with TeacherStore(tmp_path / "parts.db") as store:
        TeacherClient(teacher, AugmentConfig(), store).ask(calls[3:], {})
        client = TeacherClient(teacher, AugmentConfig(), store)
        assert client.ask(calls, {}) == whole
        assert (client.report.paid, client.report.cached) == (3, 3)
        again = TeacherClient(teacher, AugmentConfig(), store)
        assert again.ask(calls, {}) == whole and again.report.paid == 0


def test_progress_tells_the_pace_and_what_is_left(teacher: GgufTeacher, tmp_path: Path) -> None:
    left: list[int] = []
    with TeacherStore(tmp_path / "teacher.db") as store:
        client = TeacherClient(
            teacher, AugmentConfig(), store, on_progress=lambda report: left.append(report.left)
        )
        client.ask([call(f"No. {i}", max_tokens=8) for i in range(5)], {})
    assert left == sorted(left, reverse=True) and 0 < left[0] < 5 and left[-1] == 0
    now = iter([0.0, 10.0, 20.0])
    standing = Standing(lambda: next(now))

    def told(paid: int, left: int) -> str:
        usage = Usage(100 * paid, 50 * paid)
        return standing(ClientReport(paid, paid, 0, 0, 0, 0, usage, usage, left=left))

    assert "a second" not in told(2, 8), "it may have been loading until now"
    assert told(4, 6).endswith("10.0 tokens written a second, about 30 s left")
    assert told(10, 0).endswith("20.0 tokens written a second")


def test_files_that_cannot_teach_are_refused(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def refused(model: str, error: type[Exception] = TeacherError) -> str:
        with pytest.raises(error) as caught:
            GgufTeacher(TeacherConfig(kind="gguf", model=model))
        return str(caught.value)

    assert "no model is named" in refused("")
    assert "no GGUF file" in refused(str(backbone_folder("llama")))
    bare = write(backbone_folder("llama"), tmp_path / "bare.gguf", None)
    assert "no chat template" in refused(str(bare))
    (tmp_path / "torn.gguf").write_bytes(bare.read_bytes()[:5000])
    assert "torn.gguf" in refused(str(tmp_path / "torn.gguf"), BackboneError)
    refused(str(tmp_path / "nothing.gguf"), BackboneError)
