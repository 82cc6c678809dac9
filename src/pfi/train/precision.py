"""In which precision a machine trains, and a backbone in it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pfi.models.bank.bank import Precision, sharing_copy

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone
    from pfi.train.config import TrainConfig

#: Parameters below which float32 is fast enough: a smaller model's time goes into calls.
SMALL = 50_000_000


def precision_of(config: TrainConfig, backbone: Backbone) -> Precision:
    """The precision that a configuration asks for; `auto` is decided by model and machine.

    It is bfloat16 for a model of 50 M parameters or more on a processor that multiplies it in
    hardware, else float32.
    """
    if config.precision != "auto":
        return config.precision
    if backbone.model.num_parameters() < SMALL or not multiplies_bfloat16(backbone.device.type):
        return "float32"
    return "bfloat16"


def multiplies_bfloat16(device: str) -> bool:
    """Whether `cpu` or `cuda` has instructions for products in bfloat16; others: no."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16"))


def in_precision(backbone: Backbone, precision: Precision) -> Backbone:
    """The backbone in a precision; the same one where it is in it already.

    Training in bfloat16 needs the float32 weights no more: a caller that drops the backbone
    it gave halves the memory.
    """
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    if backbone.model.dtype == dtype:
        return backbone
    return replace(backbone, model=sharing_copy(backbone.model, dtype))


def as_trained(backbone: Backbone, config: TrainConfig, engine: str) -> Backbone:
    """The backbone in the precision in which an engine trains over it.

    Args:
        backbone: in float32.
        config: says which precision.
        engine: `bank`, or `peft`, which needs float32 weights and casts by itself.
    """
    if engine == "peft":
        return backbone
    return in_precision(backbone, precision_of(config, backbone))
