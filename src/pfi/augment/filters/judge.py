"""What filters measure with: embeddings of texts and the device model's losses.

An embedding is half the device model's view of a text and half its words.  Measured on train
users, either half alone tells a user's own texts from others' less well (see dev/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pfi.models.attention import pad_rows
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import passes
from pfi.models.scoring import mean_losses
from pfi.tasks import Example
from pfi.train.job import as_piece

Vectors = NDArray[np.float32]

#: Tokens of a text that are embedded, and of an example whose loss is measured.
_TEXT_TOKENS = 96
_EXAMPLE_TOKENS = 320
#: Padded tokens of a forward pass; more are slower on a CPU, whose caches they overflow.
_PASS_TOKENS = {"cpu": 2048}
_PASS_TOKENS_GPU = 32768
#: Places that words are hashed to.
_PLACES = 2048


class Judge(Protocol):
    """Measures texts and examples."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length one, ``(len(texts), width)``; like texts have a great product."""
        ...

    def losses(self, examples: Sequence[Example]) -> list[float]:
        """Mean loss of each example's target, in nats a token."""
        ...


class BackboneJudge:
    """A judge that needs nothing but a backbone.

    Args:
        backbone: the device model, with or without adapters merged in.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._tokens = _PASS_TOKENS.get(backbone.device.type, _PASS_TOKENS_GPU)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See ``Judge``; a text's vector does not depend on the other texts."""
        if not texts:
            return np.zeros((0, 1), np.float32)
        both = np.concatenate([self._states(texts), self._words(texts)], axis=1)
        return _unit(both)

    def losses(self, examples: Sequence[Example]) -> list[float]:
        """See ``Judge``; of a long target the beginning counts, half of the tokens allowed."""
        limit = min(self.backbone.max_length, _EXAMPLE_TOKENS)
        pieces = [as_piece(self.backbone, example, limit) for example in examples]
        return mean_losses(self.backbone, pieces, self._tokens)

    @torch.inference_mode()
    def _states(self, texts: Sequence[str]) -> Vectors:
        """Hidden states before the last block, averaged over a text's tokens.

        Each token counts with length one: in many models the first one's state is a hundred
        times as long as the others' and says nothing of the text.
        """
        backbone = self.backbone
        model: Any = backbone.model
        model = model.get_encoder() if backbone.seq2seq else model.base_model
        ids = [backbone.token_ids(text)[:_TEXT_TOKENS] or [backbone.end_id] for text in texts]
        vectors: Vectors = np.zeros((len(texts), 0), np.float32)
        for picked in passes([len(row) for row in ids], self._tokens):
            rows = [ids[i] for i in picked]
            tokens = pad_rows(rows, backbone.pad_id).to(backbone.device)
            real = pad_rows([[1] * len(row) for row in rows], 0).to(backbone.device)
            # Padding is at the right, so a decoder's real tokens cannot see it.
            mask = {"attention_mask": real} if backbone.seq2seq else {"use_cache": False}
            states = model(input_ids=tokens, output_hidden_states=True, **mask).hidden_states[-2]
            states = F.normalize(states.float(), dim=-1) * real[:, :, None]
            means = (states.sum(1) / real.sum(1, keepdim=True)).cpu().numpy()
            if not vectors.shape[1]:
                vectors = np.zeros((len(texts), means.shape[1]), np.float32)
            vectors[picked] = means
        return _unit(vectors)

    def _words(self, texts: Sequence[str]) -> Vectors:
        """Logarithms of how often words occur, hashed; common English words are left out."""
        counts = self._hashing.transform(texts)
        counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
        return _unit(counts.toarray().astype(np.float32))

    @cached_property
    def _hashing(self) -> Any:
        # Imported late: it takes half a second.
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(n_features=_PLACES, norm=None, stop_words="english")


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-9)).astype(np.float32)
