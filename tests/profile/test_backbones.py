"""Which model suits a machine, what it takes, and who uses it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pfi.errors import BackboneError
from pfi.models import checking
from pfi.models.catalogue import KnownModel, backbone_fingerprint, entries
from pfi.models.installing import add_model, remove_model
from pfi.profile.answer.runtime import Runtime
from pfi.profile.backbones import (
    estimate_memory,
    known_shape,
    listed_shape,
    profiles_using,
    suited_models,
)
from pfi.profile.config import HomeConfig
from pfi.profile.learn.training import train
from pfi.profile.open import create_home
from pfi.profile.plan.machine import Machine, Processor
from pfi.profile.plan.shapes import read_shape
from pfi.records import Record
from pfi.tasks import get_task

GIB = 1 << 30
FAST = Processor(30e9, 90e9, 18e9, 9e9, 150e9, 300e9)
SLOW = Processor(2e9, 6e9, 1e9, 1e9, 5e9, 5e9)


def machine(memory: int = 64 * GIB, speed: Processor = FAST) -> Machine:
    return Machine(memory, memory, 500 * GIB, 4, 4, speed, 400 << 20, llama_cpp=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", list(entries()))
def test_the_sizes_of_the_list_are_those_of_its_models(name: str) -> None:
    """The weights that the listed sizes come to are as many as the model has, biases aside."""
    entry = entries()[name]
    shape = listed_shape(entry)
    assert 0 <= entry.parameters - shape.parameters <= 2e-4 * entry.parameters
    if entry.wheel is None:  # two bytes a weight, and a tokenizer; Qwen3 holds its table twice
        extra = entry.hub.size - 2 * entry.parameters
        twice = 2 * entry.shape.vocabulary * entry.shape.hidden if name == "qwen3-0.6b" else 0
        assert 1e6 < extra - twice < 5e7


def test_memory_grows_with_the_model_and_training_takes_more_than_answering() -> None:
    estimates = {name: estimate_memory(listed_shape(entry)) for name, entry in entries().items()}
    family = [estimates[f"smollm2-{size}"] for size in ("135m", "360m", "1.7b")]
    assert [one.train for one in family] == sorted(one.train for one in family)
    assert [one.answer for one in family] == sorted(one.answer for one in family)
    assert all(one.train > one.answer for one in family)
    # In float32 a training holds four bytes a weight at the least.
    assert all(estimates[name].train > 4 * entries()[name].parameters for name in estimates)


def test_a_model_of_ones_own_is_measured_by_its_files(
    backbone_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = backbone_folder("llama")
    monkeypatch.setattr(checking, "check_backbone", lambda name: None)
    added = add_model(folder, name="mine")
    shape = known_shape(KnownModel("mine", None, added))
    assert shape is not None
    assert replace(shape, name="") == replace(read_shape(str(folder)), name="")
    (added.folder / "config.json").write_text("{")
    assert known_shape(KnownModel("mine", None, added)) is None


def test_more_room_and_speed_give_a_larger_model() -> None:
    def best(memory: int, speed: Processor) -> str:
        return suited_models(machine(memory, speed))[0].known.id

    assert entries()[best(64 * GIB, FAST)].parameters > 1e9
    largest = [entries()[best(memory * GIB, FAST)].parameters for memory in (2, 4, 8, 16, 64)]
    assert largest == sorted(largest) and len(set(largest)) > 2
    # Large ones fit in memory here, but nobody would wait for them.
    assert entries()[best(64 * GIB, SLOW)].parameters < 3e8


def test_what_does_not_fit_at_all_is_left_out() -> None:
    assert suited_models(machine(100 << 20)) == []
    names = {one.known.id for one in suited_models(machine(3 * GIB))}
    assert "smollm2-135m" in names and "smollm3-3b" not in names


def test_the_profiles_that_use_a_model_are_named(
    home: Path, backbone_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "check_backbone", lambda name: None)
    added = add_model(backbone_folder("llama"), name="mine")
    for profile, backbone in [("one", "mine"), ("two", "embedded"), ("three", str(added.location))]:
        create_home(profile, config=HomeConfig(backbone=backbone), lock="file")
    (home / "broken").mkdir()
    (home / "broken" / "config.yaml").write_text("backbone: [")
    assert profiles_using("mine") == ["one", "three"]
    assert profiles_using("other") == []
    shutil.rmtree(home / "one")
    assert profiles_using("mine") == ["three"]


def test_an_adapter_is_refused_over_other_files_of_the_same_name(
    home: Path, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(backbone_folder("llama"), source)
    add_model(source, name="mine")
    device = create_home("one", config=HomeConfig(backbone="mine", task="LaMP_4"), lock="file")
    with device.open_vault() as vault:
        vault.add(
            Record(
                f"r{n}",
                "LaMP_4",
                {"text": f"news {n}"},
                f"title {n}",
                datetime(2026, 1, n, tzinfo=UTC),
            )
            for n in range(1, 7)
        )
    task = get_task("LaMP_4")
    version = train(device, task, {"epochs": 1}).version
    assert version.backbone == "mine" and version.backbone_files == backbone_fingerprint("mine")
    device.personal_adapters.use(version.version)
    runtime = Runtime(device)
    assert runtime.versions(task) == (version.version, None)
    remove_model("mine")
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    add_model(source, name="mine")
    with pytest.raises(BackboneError, match="trained on other files of model mine"):
        runtime.versions(task)
