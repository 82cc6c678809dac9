"""`pfi adapters install`: adapters of other tools are made plain, or refused beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.models.adapters import CONFIG_FILE, Adapter
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home

RUN = CliRunner()


@pytest.fixture
def home(
    backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Home:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    return create_home(config=HomeConfig(backbone=str(backbone_folder("llama"))))


def peft_folder(base: str, folder: Path, scale: float = 0.1, **config: Any) -> Path:
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], **config)
    model = peft.get_peft_model(plain, lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    model.save_pretrained(folder)
    return folder


def install(folder: Path) -> tuple[int, str, str]:
    result = RUN.invoke(app, ["adapters", "install", str(folder), "--task", "LaMP_4"])
    return result.exit_code, result.stdout, result.stderr


def test_pissa_is_made_plain_at_the_installation(home: Home, tmp_path: Path) -> None:
    folder = peft_folder(home.config.backbone, tmp_path / "pissa", init_lora_weights="pissa")
    code, said, _ = install(folder)
    assert code == 0 and "Made plain LoRA of rank 8" in said and "shared adapter 0001" in said
    stored = home.shared_adapters.load("0001")
    assert stored.settings["r"] == 8 and "init_lora_weights" not in stored.settings
    assert stored.factors()  # what a question does first
    asked = RUN.invoke(app, ["ask", "rain in the hills", "--task", "LaMP_4"])
    assert asked.exit_code == 0, asked.output


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"scale": 1e19}, "not finite"),
    ],
)
def test_nothing_is_in_use_after_a_refusal(
    home: Home, tmp_path: Path, config: dict[str, Any], match: str
) -> None:
    code, said, error = install(peft_folder(home.config.backbone, tmp_path / "bad", **config))
    assert (code, said) == (2, "") and match in error and error.count("\n") == 1
    assert not home.shared_adapters.versions() and home.shared_adapters.active("LaMP_4") is None


def test_one_that_an_older_pfi_took_says_what_to_do(home: Home, tmp_path: Path) -> None:
    from pfi.profile.adapters.store import AdapterInfo

    folder = peft_folder(home.config.backbone, tmp_path / "plain")
    adapter = Adapter.load(folder)
    dora = Adapter({**adapter.settings, "use_dora": True}, adapter.weights)
    info = AdapterInfo(task="LaMP_4", backbone=home.config.backbone)
    home.shared_adapters.use(home.shared_adapters.add(dora, info).version)
    asked = RUN.invoke(app, ["ask", "rain", "--task", "LaMP_4"])
    assert asked.exit_code == 2 and "pfi adapters reset --shared" in asked.stderr


def test_unknown_settings_are_named_or_ignored(home: Home, tmp_path: Path) -> None:
    folder = peft_folder(home.config.backbone, tmp_path / "new")
    file = folder / CONFIG_FILE
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "of_tomorrow": None, "merge_weights": False}))
    assert install(folder)[0] == 0
    file.write_text(json.dumps({**settings, "of_tomorrow": 3}))
    code, _, error = install(folder)
    assert code == 2 and "of_tomorrow" in error
    assert home.shared_adapters.active("LaMP_4") == "0001"
