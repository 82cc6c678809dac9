"""A study measures the product: `pfi study` and `pfi ask` read the same tokens, answer the same.

One user of a LaMP file is answered by a study. Then the same file is imported into a profile, the
study's adapters (and its gate's choice) are installed, and the profile is asked the questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from llama_world import needs_llama
from typer.testing import CliRunner

from pfi._util.events import read_events
from pfi.cli.app import app
from pfi.datasets.demo import write_demo
from pfi.datasets.lamp import open_users
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StudyConfig
from pfi.evaluate.study.study import Study
from pfi.gate.choices import Choice, GateConfig
from pfi.inference.torch.engine import TorchEngine
from pfi.memory.prompts import Retrieval
from pfi.profile.adapters.files import AdapterInfo
from pfi.profile.answer.gate_file import Fitted, write_gate
from pfi.profile.answer.runtime import Runtime
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.profile.vault.imports import import_records
from pfi.records import Question
from pfi.tasks import get_task
from pfi.train.config import TrainConfig

#: A choice, a score and a text task.
TASKS = ["LaMP_2M", "LaMP_3", "LaMP_4"]
QUICK = TrainConfig(rank=2, epochs=1, batch_size=8, learning_rate=3e-2, max_length=256)
WORDS = {"how": "bm25"}
#: How an answer is asked for: prompt tokens, answer.
Asked = tuple[tuple[int, ...], str]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The prompts, as tokens, that PyTorch engines are asked meanwhile, in order."""
    prompts: list[tuple[int, ...]] = []
    generate, score = TorchEngine.generate_all, TorchEngine.score_all

    def note(method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: TorchEngine, asked: Sequence[Any]) -> Any:
            prompts.extend(tuple(one.prompt) for one in asked)
            return method(self, asked)

        return noted

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "generate_all", note(generate))
        patch.setattr(TorchEngine, "score_all", note(score))
        yield prompts


class World:
    """A study of one user, and what a profile needs to do the same."""

    def __init__(self, root: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data, self.run, self.backbone = root / "data", root / "run", backbone
        write_demo(self.data, seed=3, train_users=3, users=3)
        self.config = StudyConfig.model_validate(
            {
                "data": self.data,
                "tasks": TASKS,
                "arms": ["rag", "personal+rag", "pfi"],
                "split": "test",
                "users": 1,
                "backbone": str(backbone),
                "shared": QUICK,
                "personal": QUICK,
                "search": WORDS,
                "bootstrap": 5,
                "population_users": 3,
            }
        )
        with recorded(monkeypatch) as prompts:
            Study(self.config, self.run).run()
        self.prompts = set(prompts)
        self.events = list(read_events(self.run / "events.jsonl"))

    def questions(self, task: str) -> list[Question]:
        user = open_users(self.data / task, get_task(task), "test", limit=1, seed=0)[0]
        return list(user.questions)

    def answers(self, task: str, arm: str) -> list[str]:
        """What the study answered, in the order of the questions."""
        (event,) = [
            e
            for e in self.events
            if e["event"] == "answered" and (e["task"], e["arm"]) == (task, arm)
        ]
        return [answer["answer"] for answer in event["answers"]]

    def choice(self, task: str) -> tuple[Choice, float]:
        """The gate's choice, and the confidence that is enough."""
        (event,) = [e for e in self.events if e["event"] == "gated" and e["task"] == task]
        names = ("weight", "k", "by_likeness", "if_unsure")
        prior = json.loads((self.run / "checkpoints/gate" / task / "pfi.json").read_text())
        return Choice(**{name: event[name] for name in names}), prior["prior"]["sure"]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = tmp_path_factory.mktemp("same")
        yield World(root, backbone_folder("llama"), monkeypatch)


def profile(world: World, task: str, root: Path, **settings: Any) -> Home:
    """A profile with the user's file imported and the study's adapters installed."""
    config = HomeConfig(
        backbone=str(world.backbone), task=task, embedder="none", search=WORDS, **settings
    )
    home = create_home("me", root=root, config=config, lock="file")
    user = open_users(world.data / task, get_task(task), "test", limit=1, seed=0)[0].id
    file = world.data / task / "test_questions.json"
    import_records(home, "lamp", file, {"task": task, "user": user})
    shared = Checkpoints(world.run).load("shared", task)
    own = Checkpoints(world.run).load("personal", task, user)
    assert shared is not None and own is not None
    info = AdapterInfo(task=task, backbone=str(world.backbone), records=1, config={})
    home.shared_adapters.use(home.shared_adapters.add(shared, info).version)
    info = info.model_copy(update={"shared": home.shared_adapters.active(task)})
    home.personal_adapters.use(home.personal_adapters.add(own, info).version)
    return home


def ask(world: World, home: Home, task: str, **how: Any) -> list[Asked]:
    """What the profile reads and answers for each question of the user."""
    found = []
    with closing(Runtime(home)) as runtime:
        for question in world.questions(task):
            first, *others = question.fields
            fields = {name: question.fields[name] for name in others}
            prepared = runtime.prepare(question.fields[first], get_task(task), fields=fields, **how)
            found.append((prepared.ids, runtime.answer(prepared).text))
    return found


def differences(world: World, task: str, arm: str, asked: Sequence[Asked]) -> list[str]:
    """Where the profile and the study part."""
    wrong = []
    for number, ((ids, text), answer) in enumerate(
        zip(asked, world.answers(task, arm), strict=True)
    ):
        if ids not in world.prompts:
            wrong.append(f"question {number}: another prompt")
        if text != answer:
            wrong.append(f"question {number}: {text!r}, and the study {answer!r}")
    return wrong


def gate(world: World, home: Home, task: str) -> None:
    """The study's choice for the user, as the profile's."""
    choice, sure = world.choice(task)
    fitted = Fitted(
        task=task,
        choice=choice,
        sure=sure,
        gain=0.0,
        tried=4,
        users=3,
        backbone=home.config.backbone,
        personal=home.personal_adapters.active(task),
        shared=home.shared_adapters.active(task),
        settings=GateConfig(),
        date=datetime.now(UTC),
    )
    write_gate(home, {task: fitted})


@pytest.mark.parametrize("task", TASKS)
def test_records_and_adapters(world: World, task: str, tmp_path: Path) -> None:
    asked = ask(world, profile(world, task, tmp_path), task)
    assert len(asked) >= 2
    assert not differences(world, task, "personal+rag", asked)


@pytest.mark.parametrize("task", TASKS)
def test_the_gate(world: World, task: str, tmp_path: Path) -> None:
    home = profile(world, task, tmp_path)
    gate(world, home, task)
    assert not differences(world, task, "pfi", ask(world, home, task))


@needs_llama
@pytest.mark.parametrize("task", TASKS)
def test_llama_cpp(world: World, task: str, tmp_path: Path) -> None:
    home = profile(world, task, tmp_path, engine="llama.cpp", bits="f32")
    assert not differences(world, task, "personal+rag", ask(world, home, task))


def test_the_command(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(world, "LaMP_4", tmp_path)
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    question = world.questions("LaMP_4")[0]
    result = CliRunner().invoke(app, ["ask", "--profile", "me", question.fields["text"]])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == world.answers("LaMP_4", "personal+rag")[0].strip()


# The comparison itself ------------------------------------------------------------------


def test_a_profile_that_fills_its_prompts_otherwise_is_seen(world: World, tmp_path: Path) -> None:
    home = profile(world, "LaMP_4", tmp_path, record_tokens=40)
    assert any("prompt" in line for line in differences(
        world, "LaMP_4", "personal+rag", ask(world, home, "LaMP_4")
    ))  # fmt: skip
    home = profile(world, "LaMP_4", tmp_path / "fewer", records=1)
    assert any("prompt" in line for line in differences(
        world, "LaMP_4", "personal+rag", ask(world, home, "LaMP_4")
    ))  # fmt: skip


def test_a_study_that_fills_its_prompts_otherwise_is_seen(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Retrieval.fill

    def otherwise(self: Retrieval, task: Any, prompt: str, *args: Any, **named: Any) -> Any:
        return fill(self, task, f"Please: {prompt}", *args, **named)

    monkeypatch.setattr(Retrieval, "fill", otherwise)
    config = world.config.model_copy(update={"tasks": ["LaMP_4"], "arms": ["personal+rag"]})
    with recorded(monkeypatch) as prompts:
        Study(config, tmp_path / "run").run()
    monkeypatch.undo()
    asked = ask(world, profile(world, "LaMP_4", tmp_path), "LaMP_4")
    assert not {ids for ids, _ in asked} & set(prompts)
