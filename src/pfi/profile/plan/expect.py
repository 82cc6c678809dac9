"""What a training that is about to begin will take, and which blocks it adapts by default."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pfi.profile.answer.engines import Bits
from pfi.profile.plan.predict import Work, training_memory, training_rate, training_seconds
from pfi.profile.plan.shapes import shape_of

if TYPE_CHECKING:
    import torch

    from pfi.models.backbone import Backbone
    from pfi.models.bank.packing import Piece
    from pfi.train.config import TrainConfig

#: Seconds that a training may take before fewer blocks are adapted, where nothing else is asked.
LONG = 300.0
_SECONDS = 0.1  # of measuring the speed of products
_DECODE_TOKENS = 130.0  # tokens a second that measured answers come at, with 100 M weights


@dataclass(frozen=True)
class Expected:
    """What a training will take.

    Attributes:
        seconds: with the measuring before and after.
        memory: bytes of the process at its highest.
        examples: how many are learnt from.
        tokens: of all of them.
        layers: the blocks that are adapted, as in the training settings.
        blocks: how many these are.
        of_blocks: how many the backbone has.
        precision: of the passes.
    """

    seconds: float
    memory: int
    examples: int
    tokens: int
    layers: str
    blocks: int
    of_blocks: int
    precision: str


def expect(
    backbone: Backbone,
    pieces: Sequence[Piece],
    config: TrainConfig,
    *,
    choose: bool = False,
    measured: Sequence[Piece] = (),
    answered: int = 0,
    new_tokens: int = 0,
) -> Expected | None:
    """Predict a training from the sizes of the model and the speed of this machine.

    None where the model's configuration does not say its sizes.

    Args:
        backbone: in the precision that is trained in.
        pieces: what is learnt from.
        config: how.
        choose: adapt fewer blocks, half or a quarter, where all would take longer than ``LONG``.
        measured: what is measured before and after.
        answered: how many of those are answered.
        new_tokens: of each answer, at most.
    """
    import torch

    shape, half = shape_of(backbone), backbone.model.dtype == torch.bfloat16
    if shape is None:
        return None
    bits: Bits = "bf16" if half else "f32"
    speed = matrix_speed(backbone.model.dtype, backbone.device.type)
    rate, idle = (training_rate(shape, flops, bits) for flops in (speed.now, speed.idle))
    lengths = [len(piece) for piece in pieces]
    work = Work(
        examples=len(pieces),
        tokens=sum(lengths),
        longest=max(lengths, default=1),
        targets=round(sum(p.targets for p in pieces) / max(len(pieces), 1) * config.batch_size),
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    counts = [shape.layers]
    if choose:
        counts = sorted({math.ceil(shape.layers / part) for part in (1, 2, 4)}, reverse=True)
    elif config.layers != "all":
        counts = [min(shape.layers, int(config.layers.partition(":")[2]))]
    for blocks in counts:
        # What else runs at this moment is no reason for another adapter.
        if training_seconds(shape, work, blocks, idle) <= LONG:
            break
    seconds = training_seconds(shape, work, blocks, rate)
    read = sum(len(piece) for piece in measured) / (2 * rate)
    read += answered / max(len(measured), 1) * read  # once for the loss, once for the answer
    written = answered * new_tokens * shape.active / 1e8 / _DECODE_TOKENS
    memory = training_memory(shape, work, config.rank, blocks, bits) + _libraries(backbone)
    layers = "all" if blocks == shape.layers else f"last:{blocks}"
    return Expected(
        seconds + 2 * (read + written),
        memory,
        len(pieces),
        work.tokens,
        layers,
        blocks,
        shape.layers,
        "bfloat16" if half else "float32",
    )


def _libraries(backbone: Backbone) -> int:
    """Bytes of this process but for the backbone's weights."""
    import psutil  # type: ignore[import-untyped]

    weights = sum(parameter.nbytes for parameter in backbone.model.parameters())
    return max(0, int(psutil.Process().memory_info().rss) - weights)


@dataclass(frozen=True)
class Speed:
    """FLOP a second of matrix products: at this moment, and with nothing else running."""

    now: float
    idle: float


def matrix_speed(dtype: torch.dtype, device: str) -> Speed:
    """The best of a few products; takes a tenth of a second."""
    import torch

    a, b = (torch.ones(shape, dtype=dtype, device=device) for shape in ((512, 1024), (1024, 4096)))
    threads = torch.get_num_threads()
    now = idle = passes = 0.0
    begin = time.perf_counter()
    with torch.inference_mode():
        while passes < 3 or time.perf_counter() - begin < _SECONDS:
            wall, used = time.perf_counter(), time.process_time()
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            wall, used = time.perf_counter() - wall, time.process_time() - used
            now, passes = max(now, 1 / wall), passes + 1
            # What others take of the processor is not in this process's time.
            idle = max(idle, now if device != "cpu" else threads / max(used, wall / 64))
    products = 2 * 512 * 1024 * 4096
    return Speed(now * products, max(now, idle) * products)
