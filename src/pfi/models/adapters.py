"""Adapters: LoRA factors over a backbone, on disk in plain ``peft`` format (Hu et al. 2021)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from pfi.errors import BackboneError, ConfigError
from pfi.models import peft_format
from pfi.models.families import (
    adaptable_layers,
    block_count,
    has_fused_experts,
    shortest_names,
)
from pfi.models.peft_format import CONFIG_FILE, PREFIX, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Adapter", "AdapterConfig", "lora_config", "stacked"]


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
        count, last = block_count(model.config), int(config.layers.partition(":")[2])
        if last > count:
            what = f"the backbone has {count} blocks, not {last}"
            raise ConfigError(what, where="layers", fix=f"use last:{count} or less, or all")
        chosen = list(range(count - last, count))
    if targets == "all-linear":
        targets = _all_linear(model, chosen)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        layers_to_transform=chosen,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )


def _all_linear(model: PreTrainedModel, blocks: list[int] | None) -> str | list[str]:
    """Peft's targets for all linear layers that can be adapted.

    Raises:
        ConfigError: there is none.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output, names = model.get_output_embeddings(), adaptable_layers(model)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    if not names:
        what = f"no layer of this kind of model ({model.config.model_type}) can be adapted"
        raise ConfigError(what, where="targets", fix="use the backbone without an adapter")
    if blocks is None and linear == set(names) and not has_fused_experts(model):
        return "all-linear"
    targets = shortest_names(names, dict(model.named_modules()))
    if blocks is None:
        return targets
    # A whole name is taken by peft whatever its block.
    numbers = {name: re.search(r"\.(\d+)\.", name) for name in targets}
    return [name for name, at in numbers.items() if at is None or int(at[1]) in blocks]


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

    def plain(self, model: PreTrainedModel) -> Adapter:
        """This adapter as plain LoRA over a model's layers, which gives the same answers.

        PiSSA and OLoRA become factors of twice the rank; layers of a smaller rank are filled up
        with zeros, and a layer's own scale goes into its factors.

        Args:
            model: the backbone, unchanged.

        Raises:
            BackboneError: it is of a kind that cannot be made plain, damaged, or of another
                backbone.
        """
        return Adapter(*peft_format.to_plain(self.settings, self.weights, model))

    def apply(self, model: PreTrainedModel) -> PeftModel:
        """Wrap a model with this adapter, unmerged; see ``plain`` for what it may be.

        Raises:
            BackboneError: see ``plain``.
        """
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        adapter = self.plain(model)
        settings = {**adapter.settings, "inference_mode": False}
        fix = "use the backbone that it was trained on"
        try:
            wrapped = get_peft_model(model, LoraConfig(**settings))
            result = set_peft_model_state_dict(wrapped, adapter.weights)
        except (RuntimeError, TypeError, ValueError) as error:
            what = f"the adapter does not fit this backbone: {str(error).splitlines()[0]}"
            raise BackboneError(what, fix=fix) from error
        if result.unexpected_keys:
            what = f"the adapter has layers that this backbone lacks: {result.unexpected_keys[0]}"
            raise BackboneError(what, fix=fix)
        if missing := [key for key in result.missing_keys if ".lora_" in key]:
            what = f"the adapter is damaged: it lacks {missing[0]}"
            raise BackboneError(what, fix="take the adapter's files again from where they come")
        return wrapped  # type: ignore[return-value]

    def scaled(self, weight: float) -> Adapter:
        """The same adapter with ``weight`` times its update."""
        return Adapter(
            {**self.settings, "lora_alpha": weight * self.settings["lora_alpha"]}, self.weights
        )

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By layer ``A: (rank, inputs)`` and ``B: (outputs, rank)`` with the scale in it, float32.

        Raises:
            BackboneError: it is more than plain LoRA, or damaged.
        """
        return peft_format.plain_factors(self.settings, self.weights)

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
        return cls(*peft_format.parse_files(files, where))

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
            BackboneError: files are missing or damaged, no regular files or too large, or of
                another kind than LoRA, or the weights are pickled.
        """
        where = os.fspath(folder)
        adapter = cls.from_bytes(peft_format.read_files(folder), where)
        try:
            peft_format.check_settings(adapter.settings, convertible=True)
            peft_format.factor_pairs(adapter.weights)
            return cls(adapter.settings, peft_format.by_own_names(adapter.weights))
        except BackboneError as error:
            raise BackboneError(error.what, where=where, fix=error.fix) from error


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
