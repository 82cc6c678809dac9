"""A backbone whose configuration makes no sense is refused in a line, before it is used."""

from __future__ import annotations

import json
import shutil
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from pfi.errors import BackboneError
from pfi.models.checking import check_backbone
from pfi.models.shapes import read_header

EMBEDDED = Path(str(resources.files("pfi.models") / "embedded"))


def changed(tmp_path: Path, **values: Any) -> str:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return str(folder)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": 10**7}, "config.json does not go with its weights"),
        ({"vocab_size": 10**9}, "not 1000000000 x 256"),
        ({"intermediate_size": 99}, "config.json does not go with its weights"),
        ({"num_hidden_layers": 3000}, "num_hidden_layers is 3000"),
        ({"hidden_size": "256"}, "hidden_size"),
        ({"hidden_size": -1}, "cannot be loaded"),
        ({"hidden_size": None}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
        ({"model_type": "nope"}, "cannot be loaded"),
    ],
)
def test_settings_that_do_not_go_with_the_weights(
    tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(BackboneError, match=says) as caught:
        check_backbone(changed(tmp_path, **values))
    assert "\n" not in str(caught.value)


def test_a_folder_as_it_is_passes(tmp_path: Path) -> None:
    check_backbone(changed(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 20) + b'{"a":{"shape":["x"]}}',
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(BackboneError, match=r"model\.safetensors is damaged"):
        read_header(file, "m")
