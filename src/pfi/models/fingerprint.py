"""What tells a backbone from others of its shapes: a hash of its weights and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pfi.models.backbone import Backbone

_PIECE = 1 << 24  # values hashed at a time
_TEXT = "The quick brown fox, naïve at 12:30; 東京 – 🙂\n\tEnd."
#: A model is hashed once, however many adapter banks are laid over it.
_known: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def weights_fingerprint(backbone: Backbone) -> str:
    """SHA-256 over all weights and what the tokenizer does, 64 hex digits.

    The same files give the same on every machine: weights are loaded as float32 everywhere.  It is
    taken before an adapter bank changes the model's modules, and remembered with the model.
    """
    known = _known.get(backbone.model)
    if known is None:
        digest = hashlib.sha256(_tokenizer(backbone.tokenizer))
        # Tied weights have one name here, whichever file they came from.
        for name, weights in sorted(backbone.model.named_parameters()):
            digest.update(f"{name} {list(weights.shape)} {weights.dtype}\n".encode())
            flat = weights.detach().reshape(-1)
            for piece in flat.split(_PIECE):
                digest.update(piece.cpu().contiguous().view(torch.uint8).numpy())
        known = _known[backbone.model] = digest.hexdigest()
    return known


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """A tokenizer's vocabulary, merges and special tokens, or all that it shows of them."""
    serialised = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(serialised.to_str()) if serialised is not None else None
    if rules is not None:  # left by the last text that was encoded
        rules.pop("padding", None), rules.pop("truncation", None)
    shown = {
        "rules": rules,
        "vocabulary": sorted(tokenizer.get_vocab().items()) if rules is None else None,
        "special": sorted((name, str(text)) for name, text in tokenizer.special_tokens_map.items()),
        "chat": getattr(tokenizer, "chat_template", None),
        "example": list(tokenizer(_TEXT)["input_ids"]),
    }
    return json.dumps(shown, sort_keys=True).encode()
