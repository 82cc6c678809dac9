"""Settings that their strategy cannot be run with are refused wherever settings come in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.errors import ConfigError
from pfi.evaluate.study.config import StudyConfig
from pfi.federate.client import Clients, Memories
from pfi.federate.config import FederateConfig
from pfi.federate.deploy.agent.device import FOLDER
from pfi.federate.deploy.agent.runtime import DeviceRuntime
from pfi.federate.deploy.keys.invitation import Invitation
from pfi.federate.deploy.keys.keys import make_server_keys
from pfi.federate.deploy.keys.nodes import PUBLIC, create_nodes, make_device_keys
from pfi.federate.rounds import Federation
from pfi.federate.strategies import check
from pfi.profile.config import HomeConfig
from pfi.profile.open import create_home
from pfi.tasks import get_task

NOTHING: Any = None  # never looked at: the settings are checked first
VECTOR = r"needs a strategy whose update is one vector; \w+ sends factors"
BAD = [
    pytest.param({"strategy": "flora", "robust": {}}, f"`robust` {VECTOR}", id="robust"),
    pytest.param({"strategy": "fedex", "compress": {"bits": 8}}, f"`compress` {VECTOR}", id="bits"),
    pytest.param({"strategy": "ifca", "secure": {}}, f"`secure` {VECTOR}", id="secure"),
    pytest.param({"strategy": "fedprox"}, "unknown strategy 'fedprox'", id="unknown"),
]
bad = pytest.mark.parametrize(("settings", "says"), BAD)


def pfi(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["federate", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def pairs(settings: dict[str, Any]) -> list[str]:
    given = (f"{name}={json.dumps(value)}" for name, value in settings.items())
    return [word for pair in given for word in ("--set", pair)]


@bad
def test_by_the_check_itself(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(FederateConfig.model_validate(settings), "here")


def test_good_settings_stay_as_they_are() -> None:
    for settings in ({}, {"robust": {}}, {"secure": {}}, {"strategy": "flora"}):
        config = FederateConfig.model_validate(settings)
        assert check(config) is config


@bad
@pytest.mark.parametrize("resume", [False, True])
def test_by_a_federation(settings: dict[str, Any], says: str, resume: bool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        config = FederateConfig.model_validate(settings)
        Federation(config, NOTHING, NOTHING, tmp_path / "out", resume=resume)
    assert not (tmp_path / "out").exists()


@bad
def test_by_simulated_clients(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        Clients(NOTHING, NOTHING, FederateConfig.model_validate(settings), Memories(tmp_path))


@bad
def test_by_a_study(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        StudyConfig.model_validate({"data": tmp_path, "federation": settings})


def test_by_a_study_for_each_strategy_that_it_runs(tmp_path: Path) -> None:
    for strategy in ("flora", "fedex"):
        with pytest.raises(ValueError, match=f"federation: `robust` {VECTOR}"):
            StudyConfig.model_validate(
                {"data": tmp_path, "arms": [f"shared-fed:{strategy}"], "federation": {"robust": {}}}
            )


@bad
def test_by_a_server(settings: dict[str, Any], says: str) -> None:
    pytest.importorskip("flwr", reason="the extra `federate` is not installed")
    from pfi.federate.deploy.server.server_app import federation_config
    from pfi.federate.deploy.server.settings import DeployConfig

    with pytest.raises(ConfigError, match=says):
        federation_config(DeployConfig(federation=settings))


@bad
def test_by_a_device(
    settings: dict[str, Any], says: str, tmp_path: Path, backbone_folder: Any
) -> None:
    made = HomeConfig(backbone=str(backbone_folder("llama")))
    home = create_home("p", root=tmp_path, config=made)
    config = FederateConfig.model_validate(settings)
    with pytest.raises(ConfigError, match=says):
        DeviceRuntime(home, get_task("LaMP_3"), invitation(settings), config).load()


def invitation(settings: dict[str, Any]) -> Invitation:
    return Invitation(
        federation="f", client="p", server="host:1", ca="", operator="0" * 64, settings=settings
    )


# Commands -----------------------------------------------------------------------------


@bad
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_by_simulate(
    settings: dict[str, Any], says: str, resume: list[str], tmp_path: Path
) -> None:
    given = ["--data", tmp_path, "--task", "LaMP_3", "--out", tmp_path / "out", *resume]
    text = pfi("simulate", *given, *pairs(settings))
    assert_says(text, says, "--set")
    assert not (tmp_path / "out").exists()


@bad
def test_by_server_and_try(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="the extra `federate` is not installed")
    file = tmp_path / "federation.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert_says(pfi("server", tmp_path / "keys", "--config", file), says, file.name)
    given = ["--data", tmp_path, "--task", "LaMP_3", "--out", tmp_path / "out", "--config", file]
    assert_says(pfi("try", *given), says, file.name)
    assert not (tmp_path / "out").exists()


@bad
def test_by_keys_add(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    keys, device, file = tmp_path / "keys", tmp_path / "device", tmp_path / "federation.yaml"
    make_server_keys(keys, ["localhost"])
    create_nodes(keys, "f", "localhost:1")
    make_device_keys(device, "p")
    file.write_text(yaml.safe_dump(settings))
    assert_says(pfi("keys", "add", keys, device / PUBLIC, "--config", file), says, file.name)
    assert not (keys / "invitations").exists()


@bad
def test_by_an_agent(
    settings: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flwr", reason="the extra `federate` is not installed")
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    home = create_home("p", root=tmp_path, config=HomeConfig(task="LaMP_3"))
    (home.path / FOLDER).mkdir()
    file = tmp_path / "invitation.json"
    invitation(settings).save(file)
    text = pfi("agent", "--profile", "p", "--invitation", file, "--no-link")
    assert_says(text, says, "the invitation's settings")


def assert_says(text: str, says: str, where: str) -> None:
    """The error, and where the settings are from, but for strategies that there are none of."""
    text = text.replace("│ ", "")
    assert re.search(says, text), text
    assert "unknown strategy" in says or where in text, text
