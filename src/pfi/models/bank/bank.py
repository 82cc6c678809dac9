"""The bank: K adapters over one frozen backbone, each row of a batch with its own.

A slot is a row of one matrix that holds the LoRA factors of all target layers (Hu et al.
2021), so that gradients, norms, optimiser steps and aggregation are operations on rows.
Batched low-rank products follow S-LoRA (arXiv 2311.03285) in computing ``x W + (x A) B`` for
all rows at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pfi.errors import BackboneError, ConfigError
from pfi.models.adapters import Adapter, AdapterConfig, lora_config
from pfi.models.attention import own_attention, use_matmul_attention
from pfi.models.backbone import Backbone
from pfi.models.bank.last_block import install
from pfi.models.bank.layers import BankLayer, Route, Router, Target, uniform_runs
from pfi.models.bank.probe import check_adapting
from pfi.models.families import not_adaptable
from pfi.models.peft_format import PREFIX, check_settings
from pfi.models.probe import TESTED, check_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The slot of a row that uses no adapter.
NO_ADAPTER = -1
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Slot:
    """What a slot holds.

    Attributes:
        rank: of its factors; the rest of its row is zero and stays so.
        alpha: the update is scaled by ``alpha / rank``, by its root with ``rslora``.
        rslora: see there.
    """

    rank: int
    alpha: float
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class BankBackbone(Backbone):
    """A backbone whose rows may each use another slot of a bank."""

    bank: AdapterBank | None = None

    @contextmanager
    def rows(self, slots: Sequence[int] | None) -> Iterator[None]:
        """Rows of the coming batches use these slots; None means no adapter for any row."""
        assert self.bank is not None
        with self.bank.using(slots):
            yield

    def with_adapters(self, adapters: Sequence[Adapter]) -> Backbone:
        """Not for a bank: adapters beneath it are given when it is made."""
        if adapters:
            raise BackboneError("adapters cannot be merged into a bank", fix="use bank.add")
        return self


class AdapterBank:
    """K slots over named layers of a backbone.

    Args:
        backbone: the frozen model; it is left as it was and shares its weights.
        config: target layers, and the largest rank that a slot may have.
        capacity: the number of slots.
        shared: an adapter beneath all slots, merged into the bank's own copy of the weights.
        precision: of the forward and backward pass; factors and gradients are float32.
        layers: names of the target layers, in place of the configuration's; none for a bank
            that holds no adapter.

    Attributes:
        backbone: what to answer with; its ``rows`` chooses slots.
        targets: the adapted layers in the model's order.
        weights: ``(capacity + 1, width)`` float32, a slot a row: first every target's
            ``A: (rank, inputs)``, then every ``B`` transposed, ``(rank, outputs)``. The last
            row stays zero: it is the row of ``NO_ADAPTER``.

    Raises:
        ConfigError: no layer has such a name, or one cannot be adapted.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: AdapterConfig,
        capacity: int,
        *,
        shared: Adapter | None = None,
        precision: Precision = "float32",
        layers: Collection[str] | None = None,
    ) -> None:
        self.config, self.capacity, self.rank = config, capacity, config.rank
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        source = backbone.with_adapters([shared] if shared else [])
        if layers is None:
            self.settings, names = _template(source.model, config)
        else:
            self.settings, names = _named(source.model, config, layers)
        model = sharing_copy(source.model, self.dtype)
        use_matmul_attention(model)
        self._router = Router()
        self.targets = self._install(model, names)
        self._layers = [model.get_submodule(target.name) for target in self.targets]
        self._plain = [layer.weight for layer in self._layers]
        self.width = sum(target.rank * (target.inputs + target.outputs) for target in self.targets)
        self.split = sum(target.rank * target.inputs for target in self.targets)
        self.weights = torch.zeros(capacity + 1, self.width, device=backbone.device)
        self._scales = torch.ones(capacity + 1, 1, device=backbone.device)
        self._slots: dict[int, Slot] = {}
        self._frozen: set[int] = set()
        if not source.seq2seq:
            install(model)
        own = {each.name: getattr(source, each.name) for each in fields(Backbone)}
        self.backbone = BankBackbone(**{**own, "model": model}, bank=self)
        if self.dtype == torch.bfloat16 and not own_attention(model):
            check_bfloat16(model, source.name)
        if self.targets and model.config.model_type not in TESTED and model.device.type != "meta":
            check_adapting(model, self.targets, self.on, self.dtype, source.name)

    def _install(self, model: PreTrainedModel, names: Sequence[str]) -> list[Target]:
        """Replace the target layers; their factors' places in a slot's row."""
        layers = [model.get_submodule(name) for name in names]
        sizes = [_sizes(layer) for layer in layers]
        at_a, at_b = 0, self.rank * sum(inputs for inputs, _ in sizes)
        targets = []
        for name, layer, (inputs, outputs) in zip(names, layers, sizes, strict=True):
            why = not_adaptable(model, name)
            if layer is model.get_output_embeddings():
                why = "it is the output layer"
            if why:
                what = f"the layer {name} cannot be adapted: {why}"
                raise ConfigError(what, where="targets", fix="use 'all-linear'")
            targets.append(Target(name, inputs, outputs, self.rank, at_a, at_b))
            parent, _, child = name.rpartition(".")
            wrapped = BankLayer(layer, targets[-1], self._router)
            setattr(model.get_submodule(parent), child, wrapped)
            at_a += self.rank * inputs
            at_b += self.rank * outputs
        return targets

    # Slots --------------------------------------------------------------------------

    @property
    def slots(self) -> dict[int, Slot]:
        """The used slots."""
        return dict(self._slots)

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.capacity - len(self._slots)

    def shift(self, deltas: Sequence[torch.Tensor] | None) -> None:
        """Add to the target layers' weights beneath all slots; the backbone is left as it was.

        Args:
            deltas: ``(outputs, inputs)`` for every target, in place of those given before; none
                when None.
        """
        for i, (layer, plain) in enumerate(zip(self._layers, self._plain, strict=True)):
            if deltas is None:
                layer.weight = plain
                continue
            delta = deltas[i].to(plain)
            shifted = plain + (delta.t() if layer.transposed else delta)
            layer.weight = nn.Parameter(shifted, requires_grad=False)

    def _check_room(self, slot: Slot) -> None:
        if slot.rank > self.rank:
            what = f"an adapter of rank {slot.rank} does not fit a bank of rank {self.rank}"
            raise ConfigError(what, fix="make the bank with a larger rank")
        if not self.free:
            what = f"all {self.capacity} slots of the bank are used"
            raise ConfigError(what, fix="remove a slot or make the bank larger")

    def _take(self, slot: Slot) -> int:
        self._check_room(slot)
        index = next(i for i in range(self.capacity) if i not in self._slots)
        self._slots[index] = slot
        self._scales[index] = slot.scale
        return index

    def add(self, adapter: Adapter | None) -> int:
        """Put an adapter in a free slot; ``NO_ADAPTER`` for None.

        Raises:
            BackboneError: it has layers that the bank lacks, or a kind of LoRA other than the
                plain one.
            ConfigError: no slot is free, or its rank is too large.
        """
        if adapter is None:
            return NO_ADAPTER
        settings = adapter.settings
        check_settings(settings)
        rslora = bool(settings.get("use_rslora"))
        held = Slot(int(settings["r"]), float(settings["lora_alpha"]), rslora)
        self._check_room(held)
        row = self._row(adapter, held.rank)
        slot = self._take(held)
        self.weights[slot] = row
        return slot

    def take(self) -> int:
        """A free slot of the bank's rank and scale, for factors that are written into its row."""
        return self._take(Slot(self.rank, self.config.alpha))

    def new(self, seed: int, *, rank: int | None = None, alpha: float | None = None) -> int:
        """A slot with fresh factors, the very ones that peft draws after ``manual_seed``."""
        slot = self._take(Slot(rank or self.rank, alpha or self.config.alpha))
        self.reset(slot, seed)
        return slot

    def reset(self, slot: int, seed: int) -> None:
        """Fresh factors: ``A`` uniform within ``1 / sqrt(inputs)``, ``B`` zero."""
        rank = self.slot(slot).rank
        generator = torch.Generator().manual_seed(seed)

        def draw(rows: int, columns: int) -> torch.Tensor:
            bound = 1 / math.sqrt(columns)
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

        self.weights[slot] = 0
        for target in self.targets:
            # peft makes two linear layers, which draw their own weights, before it draws A.
            draw(rank, target.inputs), draw(target.outputs, rank)
            self._a(slot, target)[:rank] = draw(rank, target.inputs)

    def copy(self, slot: int) -> int:
        """A new slot with the same factors."""
        target = self._take(self.slot(slot))
        self.weights[target] = self.weights[slot]
        return target

    def remove(self, slot: int) -> None:
        """Free a slot."""
        self.slot(slot)
        del self._slots[slot]
        self._frozen.discard(slot)
        self.weights[slot] = 0
        self._scales[slot] = 1

    def freeze(self, slot: int, frozen: bool = True) -> None:
        """Leave a slot out of training, or let it in again."""
        self.slot(slot)
        (self._frozen.add if frozen else self._frozen.discard)(slot)

    def frozen(self, slot: int) -> bool:
        """Whether a slot is left out of training."""
        return slot in self._frozen

    def slot(self, index: int) -> Slot:
        """What a slot holds.

        Raises:
            ConfigError: it is free.
        """
        if index not in self._slots:
            raise ConfigError(f"slot {index} of the bank is free", fix="add an adapter first")
        return self._slots[index]

    def adapter(self, slot: int) -> Adapter:
        """A slot as an adapter, copied to the CPU."""
        held = self.slot(slot)
        weights = {}
        for target in self.targets:
            a, b = self._a(slot, target)[: held.rank], self._b(slot, target)[: held.rank]
            name = f"{PREFIX}{target.name}"
            weights[f"{name}.lora_A.weight"] = a.cpu().clone()
            weights[f"{name}.lora_B.weight"] = (
                b.t().cpu().clone(memory_format=torch.contiguous_format)
            )
        settings = {"r": held.rank, "lora_alpha": held.alpha, "use_rslora": held.rslora}
        return Adapter({**self.settings, **settings}, weights)

    def save(self, slot: int, folder: Path) -> None:
        """Write a slot as a peft folder."""
        self.adapter(slot).save(folder)

    def load(self, folder: Path) -> int:
        """Put the adapter of a peft folder in a free slot; raises as ``Adapter.load``, ``add``."""
        return self.add(Adapter.load(folder))

    def _row(self, adapter: Adapter, rank: int) -> torch.Tensor:
        """An adapter's factors as the row of a slot."""
        known = {target.name: target for target in self.targets}
        row = torch.zeros(1, self.width)
        for key, factor in adapter.weights.items():
            name, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
            target = known.get(name)
            kind = kind.partition(".")[0]
            if target is None or kind not in ("A", "B"):
                what = f"the adapter has layers that this bank lacks: {key}"
                raise BackboneError(what, fix="make the bank with the adapter's target layers")
            place = target.a(row) if kind == "A" else target.b(row)
            value = factor if kind == "A" else factor.t()
            if value.shape != (rank, place.shape[2]):
                expected = (rank, place.shape[2])
                what = f"the adapter does not fit this backbone: {key} is {tuple(value.shape)}"
                raise BackboneError(f"{what}, not {expected}", fix="use the one it was trained on")
            place[0, :rank] = value
        return row[0].to(self.weights.device)

    def _a(self, slot: int, target: Target) -> torch.Tensor:
        return target.a(self.weights[slot : slot + 1])[0]

    def _b(self, slot: int, target: Target) -> torch.Tensor:
        return target.b(self.weights[slot : slot + 1])[0]

    # Rows ---------------------------------------------------------------------------

    @contextmanager
    def using(self, slots: Sequence[int] | None) -> Iterator[None]:
        """Rows of the batches within use these slots, without gradients.

        Rows sorted by slot, all with equally many rows, are computed slot by slot; others
        gather their factors row by row.
        """
        with self.on(None if slots is None else self.route(slots)):
            yield

    def route(self, slots: Sequence[int]) -> Route:
        """What ``using`` puts in force for these slots; it keeps the factors as they are now."""
        return self._route(*uniform_runs(slots))

    def on(self, route: Route | None) -> AbstractContextManager[None]:
        """As ``using`` with a route of the caller's own; none means no adapter for any row."""
        return self._router.on(route)

    def factors(self, slots: Sequence[int]) -> torch.Tensor:
        """The rows ``(len(slots), width)`` of slots as products use them, ``A`` scaled."""
        index = torch.tensor(slots, device=self.weights.device)
        factors = self.weights[index]
        factors[:, : self.split] *= self._scales[index]
        return factors

    @contextmanager
    def recording(
        self, slots: Sequence[int], *, per_row: bool = False, dropout: Any = None
    ) -> Iterator[torch.Tensor]:
        """As ``using``; backward passes within add to the gradients that this yields.

        Args:
            slots: one a row.
            per_row: a gradient for every row, instead of one for a run of rows of one slot.
            dropout: see ``bank_layers.Dropout``.

        Yields:
            ``(runs or rows, width)`` float32, whole once the block has ended. A run is a slot
            when the rows are sorted and every slot has equally many; otherwise it is a row.
        """
        kept, per_slot = (list(slots), 1) if per_row else uniform_runs(slots)
        route = self._route(kept, per_slot)
        route.dropout = dropout
        route.gradients = torch.zeros(len(kept), self.width, device=self.weights.device)
        with self._router.on(route):
            yield route.gradients
        route.gradients[:, : self.split] *= self._scales[kept]

    def _route(self, slots: Sequence[int], per_slot: int) -> Route:
        for slot in set(slots) - {NO_ADAPTER}:
            self.slot(slot)
        return Route(self.factors(slots), per_slot, self.dtype)

    def at(self, model: PreTrainedModel) -> Backbone:
        """This bank's backbone with another model over the same layers, as a part of it."""
        return replace(self.backbone, model=model)


def precision_name(backbone: Backbone) -> Precision:
    """The precision that a backbone's weights are in, as settings name it."""
    return "bfloat16" if backbone.model.dtype == torch.bfloat16 else "float32"


def holding(backbone: Backbone, adapter: Adapter | None) -> tuple[AdapterBank, int]:
    """A bank over the backbone's own weights, in their precision, and the slot of one adapter.

    To measure with: nothing is copied. Without an adapter no layer is touched.
    """
    precision = precision_name(backbone)
    if adapter is None:
        return AdapterBank(backbone, AdapterConfig(), 1, precision=precision, layers=[]), NO_ADAPTER
    plain = adapter.plain(backbone.model)
    layers = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in plain.weights}
    config = AdapterConfig(rank=int(plain.settings["r"]))
    bank = AdapterBank(backbone, config, 1, precision=precision, layers=layers)
    return bank, bank.add(plain)


def _template(model: PreTrainedModel, config: AdapterConfig) -> tuple[dict[str, Any], list[str]]:
    """What peft would do with the model: its settings, and the layers it would adapt."""
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    with torch.random.fork_rng(devices=[]):
        try:
            wrapped = get_peft_model(sharing_copy(model, model.dtype), lora_config(config, model))
        except ValueError as error:
            raise ConfigError(str(error), where="targets", fix="use 'all-linear'") from error
    settings = Adapter.of(wrapped).settings
    names = [
        name.removeprefix(PREFIX)
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    ]
    return settings, names


def _named(
    model: PreTrainedModel, config: AdapterConfig, layers: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Settings of adapters over layers that are named, and those names in the model's order.

    Raises:
        BackboneError: the model has no such layer.
    """
    names = [name for name, _ in model.named_modules() if name in set(layers)]
    if lacking := sorted(set(layers) - set(names)):
        what = f"the adapter has layers that this backbone lacks: {lacking[0]:.200}"
        raise BackboneError(what, fix="use the backbone that it was trained on")
    settings = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": False,
        "target_modules": names,
        "bias": "none",
        "fan_in_fan_out": bool(names) and not isinstance(model.get_submodule(names[0]), nn.Linear),
        "task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        "inference_mode": True,
    }
    return settings, names


def sharing_copy(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A copy of a model's structure over the same tensors, or their cast to ``dtype``."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        same = parameter.dtype == dtype
        cast = parameter if same else nn.Parameter(parameter.detach().to(dtype), False)
        memo[id(parameter)] = cast
    return copy.deepcopy(model, memo)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """A linear layer's ``(inputs, outputs)``.

    Raises:
        ConfigError: it is not a linear layer.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    what = f"a layer of type {type(layer).__name__} cannot be adapted"
    raise ConfigError(what, where="targets", fix="use 'all-linear'")
