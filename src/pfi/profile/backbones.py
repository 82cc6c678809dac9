"""The models of this machine as profiles see them: which suits, what it takes, who uses it.

Figures are the planner's predictions; nothing is loaded for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import yaml

from pfi.errors import BackboneError, ConfigError, StorageError
from pfi.models.catalogue import (
    Entry,
    KnownModel,
    entries,
    known_models,
    models_root,
    read_installed,
)
from pfi.profile.config import CONFIG
from pfi.profile.plan.machine import Machine, Processor
from pfi.profile.plan.planner import LLAMA_KINDS, Limits, Plan, plan, ways
from pfi.profile.plan.predict import Model, Work, answering, training
from pfi.profile.plan.shapes import ModelShape, Tensor, read_shape

#: Tokens of prompt and answer that memory is told for.
CONTEXT = 2048
#: A training of 100 records that takes longer counts as too slow for this machine, in seconds.
TRAINING_TIME = 3600.0
_RANK = 8
# A process with the libraries and no model; `pfi plan` measures it, this is for machines that are
# not measured.  Speeds do not matter for memory.
_BASE = 420 << 20
_UNMEASURED = Machine(
    1 << 40, 1 << 40, 1 << 40, 1, 1, Processor(1e9, 1e9, 1e9, 1e9, 1e9, 1e9), _BASE, llama_cpp=True
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted memory of a process at its highest, in bytes.

    Attributes:
        answer: of the way to answer that needs least, with `CONTEXT` tokens or all it can take.
        way: that way.
        train: training an adapter of rank 8 on all blocks, with records of a usual length.
    """

    answer: int
    way: str
    train: int


@dataclass(frozen=True)
class Suited:
    """A model that fits this machine.

    Attributes:
        known: the model.
        shape: its sizes.
        plan: how it would be used.
    """

    known: KnownModel
    shape: ModelShape
    plan: Plan

    @cached_property
    def decode(self) -> float:
        """Predicted tokens a second."""
        figures = self.plan.chosen.figures
        return figures.decode if figures else 0.0

    @property
    def worth(self) -> tuple[float, ...]:
        """What a user gets: an answer that can be waited for, a training, then size."""
        fast = min(self.decode, self.plan.speed)
        return (fast, float(self.plan.training.here), float(self.shape.parameters))


def listed_shape(entry: Entry) -> ModelShape:
    """The sizes of a model of the list, which need not be here."""
    sizes = entry.shape
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    block = {
        "self_attn.q_proj": (queries, sizes.hidden),
        "self_attn.k_proj": (keys, sizes.hidden),
        "self_attn.v_proj": (keys, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, queries),
        "mlp.gate_proj": (sizes.intermediate, sizes.hidden),
        "mlp.up_proj": (sizes.intermediate, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.intermediate),
        "input_layernorm": (sizes.hidden,),
        "post_attention_layernorm": (sizes.hidden,),
    }
    tensors = [
        Tensor("model.embed_tokens.weight", (sizes.vocabulary, sizes.hidden)),
        Tensor("model.norm.weight", (sizes.hidden,)),
    ]
    tensors += [
        Tensor(f"model.layers.{at}.{name}.weight", shape)
        for at in range(sizes.layers)
        for name, shape in block.items()
    ]
    return ModelShape(
        name=entry.id,
        kind=sizes.kind,
        tensors=tuple(tensors),
        layers=sizes.layers,
        hidden=sizes.hidden,
        intermediate=sizes.intermediate,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        vocabulary=sizes.vocabulary,
        context=entry.context,
        tied=True,
        seq2seq=False,
        file=entry.size,
        bits=entry.weights.lower() if entry.wheel else None,
    )


def known_shape(known: KnownModel) -> ModelShape | None:
    """A model's sizes; None where they cannot be told."""
    if known.entry is not None:
        return listed_shape(known.entry)
    try:
        return replace(read_shape(known.id), name=known.id)
    except (BackboneError, StorageError):
        return None


def backbone_shape(name: str) -> ModelShape:
    """The sizes of a backbone by any of its names.

    Raises:
        BackboneError: there is no such model here, or its files are damaged.
    """
    entry = entries().get(name)
    if entry is not None and read_installed(name) is not None:
        return listed_shape(entry)
    return read_shape(name)


def estimate_memory(shape: ModelShape) -> MemoryEstimate:
    """What a model takes, predicted without measuring this machine."""
    model = Model(shape, Work(), rank=_RANK)
    context = min(CONTEXT, shape.context)
    memories = [
        (
            answering(_UNMEASURED, model, engine, bits, context, _RANK).memory,
            f"{engine} {shape.bits if shape.bits and engine == 'llama.cpp' else bits}",
        )
        for engine, bits in ways(shape)
        if engine == "torch" or (shape.kind in LLAMA_KINDS and not shape.seq2seq)
    ]
    answer, way = min(memories)
    return MemoryEstimate(answer, way, training(_UNMEASURED, model, _RANK, shape.layers).memory)


def suited_models(machine: Machine) -> list[Suited]:
    """The models that fit a machine, installed or not, best first.

    The best answers fast enough, can be trained here within an hour, and is the largest.
    """
    suited = []
    for known in known_models():
        shape = known_shape(known)
        if shape is None:
            continue
        try:
            made = plan(machine, Model(shape, Work(), rank=_RANK), Limits(seconds=TRAINING_TIME))
        except ConfigError:
            continue  # nothing fits
        suited.append(Suited(known, shape, made))
    return sorted(suited, key=lambda one: one.worth, reverse=True)


def profiles_using(name: str) -> list[str]:
    """The profiles of this machine whose backbone is an installed model."""
    try:
        present = read_installed(name)
    except StorageError:  # its manifest is damaged
        present = None
    places = {name} | ({str(present.location)} if present else set())
    profiles = []
    for file in sorted(models_root().parent.glob(f"*/{CONFIG}")):
        try:
            values = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(values, dict) and values.get("backbone") in places:
            profiles.append(file.parent.name)
    return profiles
