"""Activations that the backward pass computes again, where there is no memory to keep them.

A block then keeps what it was given and nothing else (Chen et al. 2016, arXiv 1604.06174): one
more forward pass, and the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from pfi._util.memory import free_memory
from pfi.models.bank.frozen_layers import block_list
from pfi.models.bank.last_block import LastBlock
from pfi.models.families import kept_numbers, text_config, width_of

#: Activations may take this share of the memory that is free.
_SHARE = 0.5


def activations_fit(model: Any, tokens: int, length: int) -> bool:
    """Whether the blocks may keep what they compute; True on a device that says when it is full."""
    listed = block_list(model)
    if listed is None or model.device.type != "cpu":
        return True
    config, width = text_config(model.config), width_of(model.config)
    kept = kept_numbers(
        tokens,
        length,
        hidden=width,
        intermediate=getattr(config, "intermediate_size", None) or 4 * width,
        heads=getattr(config, "num_attention_heads", None) or 1,
    )
    return model.dtype.itemsize * len(listed[1]) * kept <= _SHARE * free_memory()[0]


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Within, blocks keep their inputs only and run again in the backward pass.

    What the blocks read from elsewhere must stay as it is until then: a bank's route, and no
    dropout, whose masks would be drawn anew.
    """
    # The last block computes some tokens only, and no longer knows which when it would run again.
    _, listed = block_list(model) or ("", ())
    blocks = [block for block in listed if not isinstance(block, LastBlock)]
    for block in blocks:
        run = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = run
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again
