"""Adapters: LoRA factors over a backbone, on disk in plain ``peft`` format (Hu et al. 2021)."""

from __future__ import annotations

import json
import os
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

    def save(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``."""
        from safetensors.torch import save

        from pfi.files import write_atomic

        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in self.weights.items()}
        write_atomic(folder / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
        # The configuration is written last: its presence says that the adapter is whole.
        write_atomic(folder / CONFIG_FILE, json.dumps(self.settings, indent=2, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read an adapter that this project, peft or any other tool wrote.

        Raises:
            BackboneError: files are missing or damaged, or the weights are pickled.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        if not weights.exists() and (folder / "adapter_model.bin").exists():
            what = "pickled weights are refused, since loading them can run code"
            raise BackboneError(what, where=str(folder), fix="convert them to safetensors")
        if not config.exists() or not weights.exists():
            fix = f"it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise BackboneError("there is no adapter here", where=str(folder), fix=fix)
        try:
            return cls(json.loads(config.read_text(encoding="utf-8")), load_file(weights))
        except (ValueError, OSError, SafetensorError) as error:
            what = f"the adapter is damaged: {error}"
            raise BackboneError(what, where=os.fspath(folder)) from error
