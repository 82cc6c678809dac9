"""The curated list of models, and how their names become paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfi.errors import BackboneError, StorageError
from pfi.models import catalogue
from pfi.models.catalogue import (
    MANIFEST,
    Installed,
    StoredFile,
    entries,
    find_model,
    installed,
    known_models,
    models_root,
    resolve,
)
from pfi.models.prompter import load_prompter

WANTED = {
    "smollm2-135m", "smollm2-360m", "smollm2-1.7b", "qwen3-0.6b", "qwen2.5-0.5b", "qwen2.5-1.5b",
    "gemma-3-270m", "gemma-3-1b", "llama-3.2-1b", "smollm3-3b",
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without models; the test runs in an empty folder."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def store(name: str, files: dict[str, bytes], **changes: object) -> Installed:
    """Put a model into the store by hand."""
    folder = models_root() / name
    folder.mkdir(parents=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    values = {
        "id": name,
        "origin": "added",
        "source": "a test",
        "created": "2026-01-01T00:00:00Z",
        "files": {f: {"size": len(data), "sha256": "0" * 64} for f, data in files.items()},
        **changes,
    }
    (folder / MANIFEST).write_text(json.dumps(values))
    return Installed.model_validate(values)


def test_the_list_has_the_models_that_were_asked_for_with_all_that_a_user_wants_to_know() -> None:
    assert set(entries()) == WANTED
    for name, entry in entries().items():
        assert name == entry.id and catalogue.ID.fullmatch(name)
        assert entry.licence and entry.languages and entry.context >= 8192
        assert entry.hub.repo.count("/") == 1 and entry.hub.size > 1e8
        assert entry.gated == ("gemma" in name or "llama-" in name)
    wheel = entries()["smollm2-135m"].wheel
    assert wheel is not None
    assert wheel.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_a_name_of_an_installed_model_becomes_its_path() -> None:
    one = store("mine", {"model.gguf": b"GGUF"}, file="model.gguf")
    store("folder", {"config.json": b"{}"})
    assert resolve("mine") == str(models_root() / "mine" / "model.gguf") == str(one.location)
    assert resolve("folder") == str(models_root() / "folder")
    assert {"mine", "folder"} == set(installed())
    assert [known.id for known in known_models()][-2:] == ["folder", "mine"]


def test_the_path_is_what_loaders_read(backbone_folder: object) -> None:
    source = Path(backbone_folder("llama"))  # type: ignore[operator]
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    store("tiny-llama", files)
    prompter = load_prompter("tiny-llama")
    assert prompter.name == "tiny-llama"  # adapters record the name, not the path
    assert prompter.token_ids("a quick fox") == load_prompter(source).token_ids("a quick fox")


@pytest.mark.parametrize(
    "name", ["embedded", "owner/model", "gpt2", "t5-small", "./mine", "~/mine", "x.gguf", "/a/b"]
)
def test_other_names_are_left_alone(name: str) -> None:
    assert resolve(name) == name


def test_a_model_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(BackboneError, match="run `pfi models get smollm2-135m`"):
        resolve("smollm2-135m")
    with pytest.raises(BackboneError, match="run `pfi models get smollm2-135m`"):
        load_prompter("smollm2-135m")


def test_a_folder_here_goes_before_a_listed_model_but_not_before_an_installed_one() -> None:
    Path("smollm2-135m").mkdir()
    assert resolve("smollm2-135m") == "smollm2-135m"
    store("smollm2-135m", {"a.gguf": b"GGUF"}, file="a.gguf")
    assert resolve("smollm2-135m").endswith("a.gguf")
    assert resolve("./smollm2-135m") == "./smollm2-135m"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SmolLM2-135M", "smollm2-135m"),
        ("smolm2-135m", "smollm2-135m"),
        ("smollm2_360m", "smollm2-360m"),
        ("Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("gemma-3-1b-it", "gemma-3-1b"),
        ("llama3.2-1b", "llama-3.2-1b"),
        ("embeded", "embedded"),
        ("my-mdoel", "my-model"),
    ],
)
def test_a_misspelt_name_says_which_was_meant(name: str, meant: str) -> None:
    store("my-model", {"a.gguf": b"GGUF"}, file="a.gguf")
    with pytest.raises(BackboneError, match=f"perhaps {meant} was meant"):
        resolve(name)


def test_the_hub_id_of_a_listed_model_says_what_it_is_called() -> None:
    with pytest.raises(BackboneError, match=r"it is called qwen3-0.6b here"):
        find_model("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("change", ["missing", "shorter"])
def test_a_model_whose_files_changed_is_refused_by_name(change: str) -> None:
    store("mine", {"config.json": b"{}", "model.safetensors": b"12345"})
    file = models_root() / "mine" / "model.safetensors"
    file.unlink() if change == "missing" else file.write_bytes(b"1")
    with pytest.raises(BackboneError, match=r"a file of model mine is .*pfi models remove mine"):
        resolve("mine")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "other"}'])
def test_a_damaged_manifest_is_an_error_of_one_line(text: str) -> None:
    store("mine", {"a.gguf": b"GGUF"}, file="a.gguf")
    (models_root() / "mine" / MANIFEST).write_text(text)
    with pytest.raises(StorageError, match="pfi models remove mine"):
        resolve("mine")
    assert installed() == {}  # the others can still be listed


def test_a_manifest_cannot_reach_out_of_the_store() -> None:
    store("mine", {"a.gguf": b"GGUF"})
    file = models_root() / "mine" / MANIFEST
    file.write_text(file.read_text().replace("a.gguf", "../a.gguf"))
    with pytest.raises(StorageError):
        resolve("mine")
    assert catalogue.read_installed("../mine") is None


def test_the_fingerprint_is_that_of_the_files() -> None:
    def made(**files: str) -> Installed:
        stored = {name: StoredFile(size=1, sha256=sha) for name, sha in files.items()}
        return Installed(
            id="x", origin="added", source="", created="2026-01-01T00:00:00Z", files=stored
        )  # type: ignore[arg-type]

    assert made(a="1", b="2").fingerprint == made(b="2", a="1").fingerprint
    assert made(a="1", b="2").fingerprint != made(a="1", b="3").fingerprint
    assert made(a="1", b="2").fingerprint != made(a="2", b="1").fingerprint
