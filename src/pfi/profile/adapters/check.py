"""Whether a backbone with an adapter in it answers at all, asked before it is put into use."""

from __future__ import annotations

import torch

from pfi.errors import BackboneError
from pfi.models.backbone import Backbone

#: What is asked; any text does.
_PROMPT = "Write a title: rain in the hills"


def check_answers(backbone: Backbone) -> None:
    """Refuse a backbone whose scores are not finite: factors may be finite and still too large.

    Args:
        backbone: with the adapter merged into its weights.

    Raises:
        BackboneError: they are not.
    """
    ids = torch.tensor([backbone.prompt_ids(_PROMPT)], device=backbone.device)
    start = {"decoder_input_ids": ids[:, :1]} if backbone.seq2seq else {}
    with torch.inference_mode():
        scores = backbone.model(input_ids=ids, **start).logits
    if not bool(scores.isfinite().all()):
        what = "the backbone's scores are not finite with this adapter"
        raise BackboneError(what, where=backbone.name, fix="train the adapter again")
