"""Engines of llama.cpp over the tiny backbones of ``engine_world``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_world import World, make_adapter, sharpen

from pfi.inference.llama.c import Context, Model, available
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


def llama_logits(path: Path, adapter: Path | None, ids: list[int]) -> np.ndarray:
    """What llama.cpp computes at each token, ``(tokens, vocabulary)``, attention in 32 bits."""
    model = Model(path)
    context = Context(model, sequences=1, length=256, threads=1, batch=256, exact=True)
    context.use(model.adapter(str(adapter)) if adapter else None)
    logits = np.stack(context.decode([(token, i, 0, True) for i, token in enumerate(ids)]))
    context.close()
    model.close()
    return logits


def make_engine(world: World, path: Path, **options: Any) -> LlamaEngine:
    """One with exact attention and one thread."""
    config = world.backbone.model.config
    options = {"threads": 1, "exact": True, **options}
    return LlamaEngine(world.backbone.prompter, config, path, **options)
