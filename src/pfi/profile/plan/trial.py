"""A short real run of the profile's backbone: tokens a second of decoding and of training."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pfi.profile.plan.machine import Machine
from pfi.profile.plan.predict import Measured
from pfi.profile.plan.shapes import ModelShape

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone
    from pfi.tasks import Example
    from pfi.train.config import TrainConfig

_PROMPT, _NEW = 128, 24  # tokens
_TRIED = 1.0  # seconds of decoding
_STEP = 3.0  # seconds that a step of training may take


def try_backbone(
    backbone: Backbone,
    machine: Machine,
    shape: ModelShape,
    config: TrainConfig,
    examples: Sequence[Example],
) -> Measured:
    """Decode with an adapter, and take a few steps of training; about four seconds.

    Args:
        backbone: the profile's, loaded.
        machine: what it runs on, which says how much can be tried in the time.
        shape: the backbone's sizes.
        config: the profile's training settings.
        examples: to train on; the adapter is thrown away.
    """
    decode, prefill = _decoding(backbone, config.rank)
    return Measured(decode, prefill, _training(backbone, machine, shape, config, examples))


def _decoding(backbone: Backbone, rank: int) -> tuple[float, float]:
    """Tokens a second of decoding, and of reading the prompt."""
    import torch

    from pfi.inference.decoding import start
    from pfi.models.adapters import AdapterConfig
    from pfi.models.bank.bank import AdapterBank

    bank = AdapterBank(backbone, AdapterConfig(rank=rank), 1)
    slot = bank.new(0)
    # Any tokens will do; those of the end and of padding mean something else to some models.
    prompt = [10 + at % 90 for at in range(min(_PROMPT, backbone.max_length - _NEW - 1))]
    prefill = steps = math.inf
    with torch.inference_mode(), bank.using([slot]):
        for _ in range(2):
            rows = start(bank.backbone, [prompt], _NEW + 1)
            if rows is None:  # a model of unknown kind decodes as transformers does
                return _plain_decoding(backbone, prompt)
            begin = time.perf_counter()
            tokens = rows.first().argmax(-1)
            int(tokens)  # waits for a GPU
            prefill = min(prefill, time.perf_counter() - begin)
            ended = begin + prefill + _TRIED
            for _ in range(_NEW):
                begin = time.perf_counter()
                tokens = rows.step(tokens).argmax(-1)
                int(tokens)
                steps = min(steps, time.perf_counter() - begin)
                if time.perf_counter() > ended:
                    break
    return 1 / steps, len(prompt) / prefill


def _plain_decoding(backbone: Backbone, prompt: list[int]) -> tuple[float, float]:
    from pfi.inference.generation import decode
    from pfi.inference.torch.sampling import greedy

    seconds = []
    for new in (1, 9):
        begin = time.perf_counter()
        decode(backbone, [prompt], new, greedy, [0], None)
        seconds.append(time.perf_counter() - begin)
    step = max(seconds[1] - seconds[0], 1e-6) / 8
    return 1 / step, len(prompt) / max(seconds[0], 1e-6)


def _training(
    backbone: Backbone,
    machine: Machine,
    shape: ModelShape,
    config: TrainConfig,
    examples: Sequence[Example],
) -> float | None:
    """Tokens a second of the fastest step; None when one would take too long to try."""
    from pfi.train.job import as_piece, train_one
    from pfi.train.trainers import get_trainer

    if not examples:
        return None
    lengths = [len(as_piece(backbone, example, config.max_length)) for example in examples]
    flops = (machine.gpu.speed if machine.gpu else machine.speed).flops
    affordable = 0.3 * flops * _STEP / (4 * shape.active)
    size = min(config.batch_size, len(examples), int(affordable / (sum(lengths) / len(lengths))))
    if size < 1:
        return None
    chosen = list(examples[:size])
    marks = [time.perf_counter()]
    tried = config.model_copy(
        update={"epochs": 3.0, "batch_size": size, "layers": "all", "held_back": 0.0}
    )
    train_one(
        get_trainer("bank"), backbone, chosen, tried,
        on_step=lambda step, steps, loss: marks.append(time.perf_counter()),
    )  # fmt: skip
    steps = [after - before for before, after in itertools.pairwise(marks[1:])]
    return sum(lengths[:size]) / min(steps)
