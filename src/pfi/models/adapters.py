"""Adapters: LoRA factors over a backbone, on disk in plain ``peft`` format (Hu et al. 2021)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfi.errors import BackboneError, ConfigError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
#: What stands before a layer's name in peft's names of factors.
PREFIX = "base_model.model."
# Settings of adapters that are more than one product of two factors a layer.
NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
)


class AdapterConfig(BaseModel):
    """The shape of an adapter; the update is ``alpha / rank * B A``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1, description="rank of the factors")
    alpha: float = Field(16.0, gt=0, description="scale; the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: str | list[str] = Field("all-linear", description="names of the adapted layers")
    layers: str = Field(
        "all",
        pattern=r"^(all|last:[1-9]\d*)$",
        description="blocks of the model that are adapted: all, or last:N",
    )


def lora_config(config: AdapterConfig, model: PreTrainedModel) -> LoraConfig:
    """An adapter's shape over a model as peft's configuration.

    Raises:
        ConfigError: more blocks are asked for than the model has.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    chosen, targets = None, config.targets
    if config.layers != "all":
        # Of an encoder-decoder model peft counts the blocks of both stacks alike.
        count, last = model.config.num_hidden_layers, int(config.layers.partition(":")[2])
        if last > count:
            what = f"the backbone has {count} blocks, not {last}"
            raise ConfigError(what, where="layers", fix=f"use last:{count} or less, or all")
        chosen = list(range(count - last, count))
        if targets == "all-linear":
            targets = _linear_names(model)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        layers_to_transform=chosen,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )


def _linear_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of all linear layers but the output layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    ]
    return sorted({name.rpartition(".")[2] for name in names})


@dataclass(frozen=True)
class Adapter:
    """A trained adapter.

    Attributes:
        settings: the content of ``adapter_config.json``.
        weights: factors by peft's names, ``A: (rank, inputs)`` and ``B: (outputs, rank)``.
    """

    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: PeftModel) -> Adapter:
        """The adapter that a peft model carries, copied to the CPU."""
        from peft import get_peft_model_state_dict

        settings = model.peft_config["default"].to_dict()
        settings = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        settings = json.loads(json.dumps({**settings, "inference_mode": True}, default=str))
        state = get_peft_model_state_dict(model)
        return cls(settings, {k: v.detach().cpu().clone() for k, v in state.items()})

    def apply(self, model: PreTrainedModel) -> PeftModel:
        """Wrap a model with this adapter, unmerged.

        Raises:
            BackboneError: the adapter belongs to a backbone of another shape.
        """
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        config = LoraConfig(**{**self.settings, "inference_mode": False})
        fix = "use the backbone that it was trained on"
        try:
            wrapped = get_peft_model(model, config)
            result = set_peft_model_state_dict(wrapped, self.weights)
        except (RuntimeError, ValueError) as error:
            what = f"the adapter does not fit this backbone: {str(error).splitlines()[0]}"
            raise BackboneError(what, fix=fix) from error
        if result.unexpected_keys:
            what = f"the adapter has layers that this backbone lacks: {result.unexpected_keys[0]}"
            raise BackboneError(what, fix=fix)
        return wrapped  # type: ignore[return-value]

    def scaled(self, weight: float) -> Adapter:
        """The same adapter with ``weight`` times its update."""
        return Adapter(
            {**self.settings, "lora_alpha": weight * self.settings["lora_alpha"]}, self.weights
        )

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By layer ``A: (rank, inputs)`` and ``B: (outputs, rank)`` with the scale in it, float32.

        Raises:
            BackboneError: it is more than plain LoRA.
        """
        settings = self.settings
        if odd := [name for name in NOT_PLAIN if settings.get(name)]:
            raise BackboneError(f"only plain LoRA is supported; this adapter has {odd[0]}")
        rank = int(settings["r"])
        scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, factor in self.weights.items():
            layer, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
            if kind not in ("A.weight", "B.weight"):
                raise BackboneError(f"only plain LoRA is supported; this adapter has {key}")
            found.setdefault(layer, {})[kind[0]] = factor.float()
        if lone := [layer for layer, pair in found.items() if len(pair) < 2]:
            raise BackboneError(f"the adapter is damaged: a factor of {lone[0]} is missing")
        return {layer: (pair["A"], scale * pair["B"]) for layer, pair in found.items()}

    def to_bytes(self) -> dict[str, bytes]:
        """The files of peft's format, by name, the configuration last."""
        from safetensors.torch import save

        weights = {k: v.contiguous() for k, v in self.weights.items()}
        settings = json.dumps(self.settings, indent=2, sort_keys=True)
        return {
            WEIGHTS_FILE: save(weights, metadata={"format": "pt"}),
            CONFIG_FILE: settings.encode("utf-8"),
        }

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes], where: str) -> Adapter:
        """The adapter of such files, which ``where`` names in errors.

        Raises:
            BackboneError: files are missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if CONFIG_FILE not in files or WEIGHTS_FILE not in files:
            fix = f"it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise BackboneError("there is no adapter here", where=where, fix=fix)
        try:
            return cls(json.loads(files[CONFIG_FILE]), load(files[WEIGHTS_FILE]))
        except (ValueError, SafetensorError) as error:
            raise BackboneError(f"the adapter is damaged: {error}", where=where) from error

    def save(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``."""
        from pfi._util.files import write_atomic

        folder.mkdir(parents=True, exist_ok=True)
        # The configuration is written last: its presence says that the adapter is whole.
        for name, data in self.to_bytes().items():
            write_atomic(folder / name, data)

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read an adapter that this project, peft or any other tool wrote.

        Raises:
            BackboneError: files are missing or damaged, or the weights are pickled.
        """
        config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        if not weights.exists() and (folder / "adapter_model.bin").exists():
            what = "pickled weights are refused, since loading them can run code"
            raise BackboneError(what, where=str(folder), fix="convert them to safetensors")
        try:
            found = {file.name: file.read_bytes() for file in (config, weights) if file.exists()}
        except OSError as error:
            what = f"the adapter cannot be read: {error}"
            raise BackboneError(what, where=os.fspath(folder)) from error
        return cls.from_bytes(found, os.fspath(folder))


def stacked(parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """One adapter whose update is the weighted sum of several; its rank is the sum of theirs.

    Args:
        parts: adapters over one backbone, each with its weight. Layers that one of them leaves
            alone get zeros.

    Raises:
        BackboneError: one is more than plain LoRA, or they belong to different backbones.
    """
    import torch

    if not parts:
        raise ValueError("no adapter to stack")
    all_factors = [adapter.factors() for adapter, _ in parts]
    ranks = [int(adapter.settings["r"]) for adapter, _ in parts]
    weights: dict[str, torch.Tensor] = {}
    for layer in dict.fromkeys(name for factors in all_factors for name in factors):
        a, b = next(factors[layer] for factors in all_factors if layer in factors)
        gap = [(a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)) for rank in ranks]
        pairs = [factors.get(layer, none) for factors, none in zip(all_factors, gap, strict=True)]
        if any(x.shape[1] != a.shape[1] or y.shape[0] != b.shape[0] for x, y in pairs):
            what = f"the adapters belong to different backbones: {layer} has other sizes"
            raise BackboneError(what, fix="use adapters of one backbone")
        down = torch.cat([x for x, _ in pairs])
        up = torch.cat([weight * y for (_, weight), (_, y) in zip(parts, pairs, strict=True)], 1)
        weights[f"{PREFIX}{layer}.lora_A.weight"] = down
        weights[f"{PREFIX}{layer}.lora_B.weight"] = up
    rank = sum(ranks)
    settings = {**parts[0][0].settings, "r": rank, "lora_alpha": float(rank), "use_rslora": False}
    if any(set(factors) != set(all_factors[0]) for factors in all_factors):
        layers = sorted(key.removeprefix(PREFIX)[: -len(".lora_A.weight")] for key in weights)
        settings |= {"target_modules": sorted(set(layers)), "layers_to_transform": None}
    return Adapter(settings, weights)
