"""Predicted speed and memory of answering and of training, from sizes and a machine's speed.

Decoding is limited by the bytes that are read for a token (Williams et al. 2009), training by
products of matrices: 4 FLOP for each weight and token, as no frozen weight gets a gradient.
What a short real run measured goes before the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

from pfi.models.families import kept_numbers
from pfi.profile.answer.engines import Bits, EngineName
from pfi.profile.plan.machine import Machine, Processor
from pfi.profile.plan.shapes import ModelShape

#: How `answer/engines.py` makes the engines: adapters and rank of the bank, sequences of llama.cpp.
_SLOTS, _BANK_RANK, _ROWS = 32, 8, 4
_KEPT = 2  # a row's keys and values, and those that are kept for the next question
_STEP_SECONDS = 5e-4  # a block's calls from Python in PyTorch, with an adapter
_FULL = 512  # tokens of the keys and values that a typical step reads
#: Share of the matrix speed that llama.cpp's vector products reach beside reading, by format, and
#: what one token costs beside them; benchmarks/runtime.py measures both.
_LLAMA_SHARE: dict[Bits, float] = {"f16": 0.36, "q8_0": 0.38, "q4_k_m": 0.28}
_LLAMA_STEP, _LLAMA_PREFILL = 1e-4, 0.5
_TORCH_PREFILL, _TRAIN = 0.5, 0.5  # share of the matrix speed
_TRAIN_HALF = 0.25  # the same in bfloat16, whose products are a smaller part of the work
_LLAMA_BATCH = 512  # tokens of a pass over the prompt, for which it takes memory at its start
_TRAIN_PASS = 512  # tokens of a pass of the bank's trainer on a CPU
_TRAIN_EXTRA = 20 << 20
_TRAIN_LOGITS = 3 << 23  # numbers of the logits that are in memory at a time


@dataclass(frozen=True)
class Measured:
    """What a short real run of the torch engine in float32 reached, in tokens a second.

    Attributes:
        decode: one answer, with an adapter.
        prefill: reading its prompt.
        train: of examples in a training of all blocks; None when it was not tried.
    """

    decode: float
    prefill: float
    train: float | None = None


@dataclass(frozen=True)
class Work:
    """What a training of the user's records would read.

    Attributes:
        examples: how many.
        tokens: of all of them, prompts and targets.
        longest: tokens of the longest.
        targets: tokens of a step that get a loss.
        epochs: passes over them.
        batch_size: examples a step.
        shared: whether a shared adapter is merged into a copy of the backbone first.
        assumed: whether it was made up, as there are no records yet.
    """

    examples: int = 100
    tokens: int = 12_800
    longest: int = 128
    targets: int = 256
    epochs: float = 3.0
    batch_size: int = 8
    shared: bool = False
    assumed: bool = False


@dataclass(frozen=True)
class Model:
    """A profile's backbone and what it would be trained on.

    Attributes:
        shape: its sizes.
        work: see ``Work``.
        measured: on this machine; None when it was not tried.
        rank: of the adapter that the profile asks for.
    """

    shape: ModelShape
    work: Work
    measured: Measured | None = None
    rank: int = 8


@dataclass(frozen=True)
class Figures:
    """Predicted figures of an engine.

    Attributes:
        decode, prefill: tokens a second.
        token_bytes: weights, keys and values that are read for a token.
        memory: at its highest, in bytes, of the process.
        gpu_memory: of the graphics processor.
        disk: bytes of a file that has to be made.
    """

    decode: float
    prefill: float
    token_bytes: int
    memory: int
    gpu_memory: int = 0
    disk: int = 0


def answering(
    machine: Machine, model: Model, engine: EngineName, bits: Bits, context: int, rank: int
) -> Figures:
    """Figures of one answer at a time, with an adapter of this rank.

    The speed is that at `_FULL` tokens with the profile's rank, whatever context and rank are.
    """
    if engine == "torch":
        return _torch(machine, model, bits, context, rank)
    return _llama(machine, model, bits, context, rank)


def _torch(machine: Machine, model: Model, bits: Bits, context: int, rank: int) -> Figures:
    shape, speed = model.shape, machine.gpu.speed if machine.gpu else machine.speed
    number = 4 if bits == "f32" else 2
    read = _read(model, bits, number)
    seconds = read / _matvec(speed, bits, read)
    flops = speed.flops if bits == "f32" else speed.flops_half
    prefill = _TORCH_PREFILL * flops / (2 * shape.active)
    if model.measured:
        # What the products of float32 do not explain is the same with fewer bytes.
        full = _read(model, "f32", 4)
        beside = max(0.0, 1 / model.measured.decode - full / _matvec(speed, "f32", full))
        seconds = 1 / model.measured.decode if bits == "f32" else seconds + beside
        prefill = model.measured.prefill * flops / speed.flops
    else:
        seconds += _STEP_SECONDS * shape.layers
    weights, whole = shape.size(bits), shape.size("f32")
    # Weights are read through memory that counts until they are 32 bits wide, then narrowed.
    loading = whole + shape.file
    bank = 4 * (_SLOTS + 1) * max(rank, _BANK_RANK) * shape.adapter_numbers
    held = weights + bank + _KEPT * shape.cache(context, number)
    held += 0 if bits == "f32" else whole
    passing = number * context * (8 * shape.hidden + 4 * shape.intermediate)
    most = max(loading, held + passing)
    if machine.gpu:
        return Figures(1 / seconds, prefill, read, machine.base + shape.file, most)
    return Figures(1 / seconds, prefill, read, machine.base + most)


def _read(model: Model, bits: Bits, number: int) -> int:
    """Bytes that a token needs, with ``number`` bytes for each key and value."""
    adapter = 4 * model.rank * model.shape.adapter_numbers
    return model.shape.size(bits, streamed=True) + adapter + model.shape.cache(_FULL, number)


def _matvec(speed: Processor, bits: Bits, size: int) -> float:
    """Bytes a second of matrix-vector products over ``size`` bytes."""
    large = speed.matvec if bits == "f32" else speed.matvec_half
    return large * speed.rate(size) / speed.read


def _llama(machine: Machine, model: Model, bits: Bits, context: int, rank: int) -> Figures:
    shape, speed = model.shape, machine.speed
    read = _read(model, bits, 2)
    share = _LLAMA_SHARE[bits] * speed.flops
    seconds = read / speed.rate(read) + 2 * shape.active / share + _LLAMA_STEP * shape.layers
    prefill = _LLAMA_PREFILL * speed.flops / (2 * shape.active)
    file = shape.file if shape.bits else shape.size(bits)
    batch = min(context, _LLAMA_BATCH)
    passing = 4 * batch * (shape.vocabulary + 4 * shape.hidden + 3 * shape.intermediate)
    adapter = 4 * rank * shape.adapter_numbers
    memory = machine.base + file + adapter + _ROWS * shape.cache(context, 2) + passing
    return Figures(1 / seconds, prefill, read, memory, disk=0 if shape.bits else file)


@dataclass(frozen=True)
class TrainingFigures:
    """Predicted figures of a training.

    Attributes:
        seconds: of all its steps.
        memory: of the process at its highest, in bytes.
        gpu_memory: of the graphics processor.
    """

    seconds: float
    memory: int
    gpu_memory: int = 0


def training(machine: Machine, model: Model, rank: int, blocks: int) -> TrainingFigures:
    """Figures of a training of the last ``blocks`` blocks in float32, with AdamW."""
    speed = machine.gpu.speed if machine.gpu else machine.speed
    rate = training_rate(model.shape, speed.flops)
    if model.measured and model.measured.train:
        rate = model.measured.train
    seconds = training_seconds(model.shape, model.work, blocks, rate)
    most = training_memory(model.shape, model.work, rank, blocks)
    if machine.gpu:
        return TrainingFigures(seconds, machine.base + model.shape.file, most)
    return TrainingFigures(seconds, machine.base + most)


def training_rate(shape: ModelShape, flops: float, bits: Bits = "f32") -> float:
    """Tokens a second of a training of all blocks, by the speed of matrix products."""
    share = _TRAIN if bits == "f32" else _TRAIN_HALF
    return share * flops / (4 * shape.active)


def training_seconds(shape: ModelShape, work: Work, blocks: int, rate: float) -> float:
    """Seconds of a training of the last ``blocks`` blocks, where all would go at ``rate``."""
    share = blocks / shape.layers
    # Blocks below the adapted ones run once, forward only, and are cached.
    cost = share + (1 - share) * 0.5 / max(1.0, work.epochs)
    return work.tokens * work.epochs * cost / rate


def training_memory(
    shape: ModelShape, work: Work, rank: int, blocks: int, bits: Bits = "f32"
) -> int:
    """Bytes of a training of the last ``blocks`` blocks at its highest, without the libraries.

    In ``bf16`` the weights are read in float32 first, as in any precision, and then let go.
    """
    share, number = blocks / shape.layers, 4 if bits == "f32" else 2
    tokens = max(_TRAIN_PASS, work.longest)
    tokens = min(tokens, work.longest * min(work.batch_size, work.examples))
    sizes = {"hidden": shape.hidden, "intermediate": shape.intermediate, "heads": shape.heads}
    kept = kept_numbers(tokens, work.longest, **sizes)
    logits = min(3 * work.targets * shape.vocabulary, _TRAIN_LOGITS)
    # The factors, their gradients, two moments, and copies while they change.
    factors = 8 * rank * shape.adapter_numbers * share
    lower = 0 if blocks == shape.layers else min(work.tokens * shape.hidden, 1 << 26)
    weights = shape.size("f32")
    held = shape.size(bits) if bits == "bf16" else weights * (2 if work.shared else 1)
    numbers = int(number * (blocks * kept + lower) + 4 * (logits + factors))
    return max(weights + shape.file, held + numbers + _TRAIN_EXTRA)
