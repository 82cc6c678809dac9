"""``pfi study`` and ``pfi demo`` as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.datasets.demo import write_demo

Folder = Callable[[str], Path]


def pfi(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=1, train_users=2, users=2)
    return folder


def test_a_study_prints_its_table_and_names_its_report(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = tmp_path / "study.yaml"
    settings.write_text("shared: {epochs: 0.1}\npersonal: {epochs: 1}\nbootstrap: 10\n")
    flags = ["--data", str(data), "--tasks", "LaMP_3", "--split", "test", "--users", "2"]
    flags += ["--arms", "shared, personal", "--backbone", str(backbone_folder("llama"))]
    flags += ["--config", str(settings), "--set", "personal.epochs=0.5", "--out", str(out)]
    flags += ["--engine", "peft", "--set", "working_set=1"]
    said = pfi("study", *flags).stdout
    assert "LaMP_3" in said and "mae" in said and "report.html" in said
    config = json.loads((out / "metrics.json").read_text())["config"]
    assert config["arms"] == ["shared", "personal"]
    assert (config["engine"], config["working_set"], config["workers"]) == ("peft", 1, 1)
    assert (config["shared"]["epochs"], config["personal"]["epochs"]) == (0.1, 0.5)
    assert config["shared"]["rank"] == 16, "settings left out keep the study's defaults"
    assert "--resume" in pfi("study", *flags, code=2).stderr
    pfi("study", *flags, "--resume", "--workers", "2")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no data was given"),
        (["--data", "x", "--set", "k"], "not of the form key=value"),
        (["--data", "x", "--set", "k=["], "--set k=["),
        (["--data", "x", "--set", "data.y=1"], "data has no settings of its own"),
        (["--data", "x", "--set", "k=0"], "k: "),
        (["--data", "x", "--set", "personal.magic=1"], "personal.magic"),
        (["--data", "x", "--arms", "magic"], "unknown arm"),
        (["--data", "x", "--engine", "magic"], "'bank' or 'peft'"),
        (["--data", "x", "--workers", "-1"], "workers: "),
        (["--data", "x", "--config", "no-such.yaml"], "no-such.yaml"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], says: str, tmp_path: Path) -> None:
    result = pfi("study", *flags, "--out", str(tmp_path / "run"), code=2)
    assert result.stderr.count("\n") == 1 and says in result.stderr


def test_the_demo_runs_twice_and_says_what_to_type_next(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    flags = ["--out", str(tmp_path / "demo"), "--users", "2", "--people", "2"]
    flags += ["--backbone", str(backbone_folder("llama"))]
    for _ in range(2):
        said = pfi("demo", *flags).stdout
        assert "report.html" in said and "pfi import git" in said
    assert len(json.loads((tmp_path / "demo" / "metrics.json").read_text())["arms"]) == 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_in_the_demo_personal_models_beat_the_shared_and_the_generic_one(tmp_path: Path) -> None:
    pfi("demo", "--out", str(tmp_path / "demo"))
    arms = json.loads((tmp_path / "demo" / "metrics.json").read_text())["arms"]
    for task, name in (("LaMP_2M", "accuracy"), ("LaMP_4", "rouge_1")):
        scores = {arm: cells[task]["metrics"][name]["mean"] for arm, cells in arms.items()}
        assert max(scores["personal"], scores["personal+rag"]) > scores["shared"]
        assert scores["shared"] > scores["generic"]
