"""A backbone's sizes from its configuration and the headers of its safetensors files.

Nothing is loaded: a header is JSON that says every tensor's shape.  K-quants are as in llama.cpp:
rows that are no multiple of 256 numbers are kept in a coarser format of blocks of 32.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

from pfi.errors import BackboneError
from pfi.inference.capacity import Bits
from pfi.models.catalogue import resolve
from pfi.models.families import context_length
from pfi.models.gguf.families import Sizes
from pfi.models.gguf.header import Header
from pfi.models.gguf.header import read_header as read_gguf_header
from pfi.models.prompter import gguf_path

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

#: Bytes a weight, of the formats that keep every matrix alike.
_PLAIN = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}
_Q4_K, _Q6_K, _Q5_0, _Q8_0 = 144 / 256, 210 / 256, 22 / 32, 34 / 32
#: Which of q4_k_m's matrices llama.cpp keeps finer, in about half of the blocks.
_FINER = ("v_proj", "down_proj", "c_proj")
_MOST_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class Tensor:
    """A weight of a backbone: its name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelShape:
    """A backbone's sizes.

    Attributes:
        name: what it is loaded by.
        kind: transformers' ``model_type``.
        tensors: its weights; tied ones once.
        layers: blocks; of an encoder-decoder model those of the decoder.
        hidden: width of the states between blocks.
        intermediate: of the widest layer in a block.
        heads, kv_heads, head_dim: of attention.
        vocabulary: size of the output layer.
        context: the longest sequence, in tokens.
        tied: whether the output layer is the input embedding.
        seq2seq: whether it is an encoder-decoder model.
        file: bytes of its weight files.
        bits: how its own GGUF file holds weights, which llama.cpp uses as it is; None for
            safetensors.
    """

    name: str
    kind: str
    tensors: tuple[Tensor, ...]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool
    seq2seq: bool
    file: int
    bits: str | None = None

    @cached_property
    def parameters(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors)

    @cached_property
    def linear(self) -> list[Tensor]:
        """The matrices of the blocks, which adapters adapt."""
        return [t for t in self.tensors if len(t.shape) == 2 and not _is_table(t)]

    @cached_property
    def streamed(self) -> list[Tensor]:
        """The matrices that decoding a token reads whole: the blocks' and the output layer."""
        tables = [t for t in self.tensors if len(t.shape) == 2 and _is_table(t)]
        output = [t for t in tables if t.shape[0] == self.vocabulary]
        heads = [t for t in output if "head" in t.name or self.tied]
        return [*self.linear, *(heads or output)[:1]]

    @cached_property
    def active(self) -> int:
        """Weights that a token is multiplied with."""
        return sum(tensor.numbers for tensor in self.streamed)

    @cached_property
    def adapter_numbers(self) -> int:
        """An adapter's numbers for each rank, on all linear layers."""
        return sum(sum(tensor.shape) for tensor in self.linear)

    def size(self, bits: Bits, streamed: bool = False) -> int:
        """Bytes of all weights, or of those that a token needs."""
        return self._sizes[bits, streamed]

    @cached_property
    def _sizes(self) -> dict[tuple[Bits, bool], int]:
        return {
            (bits, streamed): round(sum(self._bytes(tensor, bits) for tensor in tensors))
            for bits in get_args(Bits)
            for streamed, tensors in ((False, self.tensors), (True, self.streamed))
        }

    def _bytes(self, tensor: Tensor, bits: Bits) -> float:
        if len(tensor.shape) < 2:
            return 4.0 * tensor.numbers if bits != "bf16" else 2.0 * tensor.numbers
        if bits in _PLAIN:
            return _PLAIN[bits] * tensor.numbers
        fine, coarse = (_Q6_K, _Q4_K) if tensor.shape[-1] % 256 == 0 else (_Q8_0, _Q5_0)
        if _is_table(tensor):
            return fine * tensor.numbers
        mixed = any(part in tensor.name for part in _FINER)
        return ((fine + coarse) / 2 if mixed else coarse) * tensor.numbers

    def cache(self, tokens: int, number: int) -> int:
        """Bytes of the keys and values of so many tokens, with ``number`` bytes each."""
        stacks = 2 if self.seq2seq else 1  # the decoder also keeps those of the encoder
        return 2 * stacks * self.layers * self.kv_heads * self.head_dim * tokens * number


def _is_table(tensor: Tensor) -> bool:
    """Whether it is an embedding or the output layer."""
    parts = tensor.name.lower().split(".")
    names = ("embed", "wte", "wpe", "shared", "lm_head", "relative_attention_bias", "score")
    return any(name in part for part in parts for name in names)


def read_shape(backbone: str) -> ModelShape:
    """The sizes of ``embedded``, of an installed or local model or of a cached hub id.

    Raises:
        BackboneError: there is no such model here, or its files are damaged.
        StorageError: the manifest of an installed model is damaged.
    """
    if (own := gguf_path(backbone)) is not None:
        return _gguf_shape(backbone, read_gguf_header(own))
    folder = backbone_folder(backbone)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            "config.json cannot be read", where=str(folder), fix="give a model's folder"
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BackboneError("there are no safetensors weights", where=str(folder))
    tensors = [tensor for file in files for tensor in read_header(file)]
    try:
        return _shape(backbone, config, tensors, sum(file.stat().st_size for file in files))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        what = f"config.json lacks a size: {error}"
        raise BackboneError(what, where=str(folder)) from error


def _gguf_shape(name: str, header: Header) -> ModelShape:
    """The sizes of a GGUF file's model, with its weights by transformers' names."""
    sizes = Sizes(header)
    names = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    layers = {other: own for own, other in sizes.family.layers.items()}

    def renamed(tensor: str) -> str:
        stem, _, ending = tensor.rpartition(".")
        block, number, layer = [*stem.split(".", 2), "", ""][:3]
        if block == "blk" and layer in layers:
            return f"model.layers.{number}.{layers[layer]}.{ending}"
        return f"{names.get(stem, stem)}.{ending}"

    return ModelShape(
        name=name,
        kind=sizes.family.model_type,
        tensors=tuple(Tensor(renamed(t.name), t.shape) for t in header.tensors.values()),
        layers=sizes.blocks,
        hidden=sizes.hidden,
        intermediate=sizes.feed_forward,
        heads=sizes.heads,
        kv_heads=sizes.key_heads,
        head_dim=sizes.head,
        vocabulary=sizes.vocabulary,
        context=sizes.context,
        tied=sizes.tied,
        seq2seq=False,
        file=header.path.stat().st_size,
        bits=header.bits,
    )


def shape_of(backbone: Backbone) -> ModelShape | None:
    """The sizes of a loaded backbone; None where its configuration does not say them."""
    model = backbone.model
    tensors = [Tensor(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    try:
        numbers = sum(tensor.numbers for tensor in tensors)
        return _shape(backbone.name, model.config.to_dict(), tensors, 4 * numbers)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


#: What a configuration file may leave out.
_UNSAID = {"model_type": "", "is_encoder_decoder": False, "pad_token_id": None}


def _shape(name: str, config: dict[str, Any], tensors: list[Tensor], file: int) -> ModelShape:
    config = {**config, **(config.get("text_config") or {})}

    def first(*keys: str, default: Any = None) -> int:
        for key in keys:
            if config.get(key) is not None:
                return int(config[key])
        if default is None:
            raise KeyError(keys[0])
        return int(default)

    hidden = first("hidden_size", "n_embd", "d_model")
    heads = first("num_attention_heads", "n_head", "num_heads")
    seq2seq = bool(config.get("is_encoder_decoder"))
    widest = max(max(t.shape) for t in tensors if len(t.shape) == 2 and not _is_table(t))
    tied = config.get("tie_word_embeddings", not any("lm_head" in t.name for t in tensors))
    return ModelShape(
        name=name,
        kind=str(config.get("model_type", "")),
        tensors=tuple(tensors),
        layers=first("num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        intermediate=first("intermediate_size", "n_inner", "d_ff", default=widest),
        heads=heads,
        kv_heads=first("num_key_value_heads", default=heads),
        head_dim=first("head_dim", "d_kv", default=hidden // heads),
        vocabulary=first("vocab_size"),
        context=context_length(SimpleNamespace(**{**_UNSAID, **config})),
        tied=bool(tied),
        seq2seq=seq2seq,
        file=file,
    )


def backbone_folder(backbone: str) -> Path:
    """Where a backbone's files are on this machine.

    Raises:
        BackboneError: they are not here.
    """
    if backbone == "embedded":
        return Path(str(resources.files("pfi.models") / "embedded"))
    backbone = resolve(backbone)
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        return folder
    fix = "give a model's folder, or fetch it once with `pfi ask`"
    if not backbone.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(backbone, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise BackboneError("it is not on this machine", where=backbone, fix=fix) from error
    raise BackboneError("there is no such folder", where=backbone, fix=fix)


def read_header(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file, in its order; its numbers are not read.

    Raises:
        BackboneError: it is no safetensors file.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, file.stat().st_size - 8):
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
        return [
            Tensor(name, tuple(int(n) for n in entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"this is no safetensors file: {error}"
        raise BackboneError(what, where=str(file), fix="fetch the model again") from error
