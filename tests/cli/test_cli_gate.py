"""`pfi gate`: fitting, showing and forgetting, and what `pfi train` and `pfi ask` say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.evaluate.study.config import StudyConfig
from pfi.gate.choices import Choice
from pfi.gate.prior import Prior, Tried
from pfi.profile.answer.gate_file import read_gate
from pfi.profile.home import Home
from pfi.profile.open import open_home
from pfi.records import Record

START = datetime(2024, 1, 1, tzinfo=UTC)
QUICK = ["--epochs=6", "--batch-size=4", "--rank=4", "--learning-rate=0.02", "--holdout=0"]
PLAIN = ["--set", "per_question=false", "--set", "ks=[0, 2]", "--set", "caution=1"]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setattr("pfi.cli.talk._said", set())
    return tmp_path / "root"


def pfi(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def home(backbone_folder: Callable[[str], Path]) -> Home:
    """A profile with fourteen reviews by one who likes everything."""
    pfi("init", "--backbone", str(backbone_folder("llama")))
    opened = open_home()
    opened.config.embedder = "none"
    opened.save_config()
    with opened.open_vault() as vault:
        vault.add(
            Record(f"r{n}", "LaMP_3", {"text": f"a book {n}"}, "5", START + timedelta(days=n))
            for n in range(14)
        )
    return opened


def test_from_training_to_a_choice_that_goes_stale_and_is_forgotten(home: Home) -> None:
    assert "Nothing is chosen" in pfi("gate", "show").stdout
    assert json.loads(pfi("gate", "show", "--json").stdout) == []
    trained = pfi("train", *QUICK)
    assert "`pfi gate fit --task LaMP_3`" in trained.stderr
    assert "gate: not fitted" in pfi("ask", "a film", "--why").stderr

    done = pfi("gate", "fit", *PLAIN)
    fitted = read_gate(home)["LaMP_3"]
    assert fitted.choice.weight > 0 and fitted.tried == 4
    assert f"LaMP_3 is answered with personal adapter at weight {fitted.choice.weight:g}" in (
        done.stdout
    )
    assert "tried on 4 records" in done.stdout
    assert "pfi gate off --task LaMP_3" in done.stderr
    why = pfi("ask", "a film", "--why").stderr
    assert f"personal adapter: 0001, weight {fitted.choice.weight:g}" in why
    assert "gate: personal adapter at weight" in why
    shown = pfi("gate", "show")
    assert "LaMP_3" in shown.stdout and "STALE" not in shown.stdout
    assert "made with personal adapter 0001 and shared adapter none" in shown.stdout
    [plain] = json.loads(pfi("gate", "show", "--json").stdout)
    assert (plain["task"], plain["counts"], plain["personal"]) == ("LaMP_3", True, "0001")
    assert plain["choice"]["weight"] == fitted.choice.weight

    pfi("train", *QUICK)
    stale = pfi("gate", "show")
    assert "STALE" in stale.stdout and "pfi gate fit --task LaMP_3" in stale.stderr
    assert "fitted with personal adapter 0001" in pfi("ask", "a film", "--why").stderr
    pfi("adapters", "rollback")
    assert "STALE" not in pfi("gate", "show").stdout
    assert "Nothing was chosen" in pfi("gate", "off", "--task", "LaMP_4").stdout
    assert "LaMP_3" in pfi("gate", "off").stdout
    assert not home.gate_file.exists()
    assert "not fitted" in pfi("ask", "a film", "--why").stderr


def test_a_prior_comes_with_the_shared_adapter(home: Home, tmp_path: Path) -> None:
    """As a study writes it: with it one record is enough."""
    config = StudyConfig(data=tmp_path).gate
    pfi("train", *QUICK)
    home.personal_adapters.load("0001").save(tmp_path / "shared")
    home.personal_adapters.use_none("LaMP_3")
    from pfi.gate.choices import plain_choices

    places = plain_choices(config)
    import numpy as np

    gains = np.array([[0.3 if c == Choice(0.0, 4) else 0.0 for c in places]] * 3)
    gains += np.linspace(-0.01, 0.01, 3)[:, None] * (np.arange(len(places)) > 0)
    prior = Prior.fit([Tried(gains, np.full(3, 0.5))] * 8, config)
    file = tmp_path / "pfi.json"
    values = {"split": "dev", "gate": config.model_dump(), "prior": prior.to_dict()}
    file.write_text(json.dumps(values))
    folder = str(tmp_path / "shared")
    pfi("adapters", "install", folder, "--task", "LaMP_3", "--prior", str(file))
    assert "gate.json" in home.shared_adapters.manifest("0001").sha256
    with home.open_vault() as vault:
        vault.delete([f"r{n}" for n in range(1, 14)])
    done = pfi("gate", "fit", "--task", "LaMP_3")
    assert "LaMP_3 is answered with 4 records" in done.stdout
    assert "tried on 0 records and 8 other users" in done.stdout
    assert "no personal adapter" in done.stderr
    missing = pfi("adapters", "install", folder, "--prior", str(tmp_path / "no.json"), code=2)
    assert "no prior of a gate" in missing.stderr
    assert list(home.shared_adapters.versions()) == ["0001"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "--task", "LaMP_4"], "4 are needed"),
        (["fit", "--set", "colour=red"], "colour"),
        (["fit", "--set", "weights=[2]"], "weights"),
        (["fit", "--set", "caution"], "key=value"),
        (["fit", "--task", "nonsense"], "unknown task"),
        (["show", "--profile", "other"], "pfi init"),
    ],
)
def test_errors_are_one_line(home: Home, arguments: list[str], says: str) -> None:
    result = pfi("gate", *arguments, code=2)
    assert says in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_damaged_choice_is_told_of_and_can_be_forgotten(home: Home) -> None:
    home.gate_file.write_text("{")
    for words in (["gate", "show"], ["gate", "fit"], ["ask", "a film"]):
        assert "pfi gate off" in pfi(*words, code=2).stderr
    pfi("gate", "off")
    assert pfi("gate", "show").exit_code == 0


def test_no_hint_where_there_is_too_little(home: Home) -> None:
    with home.open_vault() as vault:
        vault.delete(["r0", "r1", "r2"])
    assert "gate" not in pfi("train", "--epochs=1").stderr
