"""Engines of llama.cpp over the tiny backbones of ``engine_world``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_world import World, make_adapter, sharpen

from pfi.inference.llama.c import available
from pfi.inference.llama.engine import LlamaEngine
from pfi.inference.llama.gguf import write_backbone
from pfi.models.backbone import load_backbone

needs_llama = pytest.mark.skipif(not available(), reason="xllamacpp is not installed")


def make_world(folder: Path, family: str, adapters: int = 6) -> tuple[World, Path]:
    """A world and the GGUF file of its backbone in 32 bits."""
    backbone = sharpen(load_backbone(folder))
    path = folder.parent / f"{family}.gguf"
    write_backbone(backbone, path, "f32")
    return World(backbone, [make_adapter(backbone, i) for i in range(adapters)]), path


def make_engine(world: World, path: Path, **options: Any) -> LlamaEngine:
    """One with exact attention and one thread."""
    config = world.backbone.model.config
    options = {"threads": 1, "exact": True, **options}
    return LlamaEngine(world.backbone.prompter, config, path, **options)
