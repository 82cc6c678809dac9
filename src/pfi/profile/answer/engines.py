"""Which engine answers on a device: its settings say, and `pfi plan --apply` writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfi.errors import BackboneError, ConfigError
from pfi.inference.capacity import Bits, check_weights
from pfi.inference.engine import Engine
from pfi.models.gguf.check import check_bits
from pfi.models.gguf.header import read_header
from pfi.models.prompter import gguf_path

if TYPE_CHECKING:
    from pfi.models.bank.bank import Precision
    from pfi.profile.config import HomeConfig

EngineName = Literal["torch", "llama.cpp"]
#: How each engine can hold weights; the first is what ``auto`` means.
BITS: dict[EngineName, tuple[Bits, ...]] = {
    "torch": ("f32", "bf16"),
    "llama.cpp": ("q8_0", "f16", "f32", "q4_k_m"),
}


@dataclass(frozen=True)
class EngineChoice:
    """What devices with equal choices can share.

    Attributes:
        backbone: what it is loaded by.
        name: of the engine.
        bits: how it holds weights: one of ``BITS``, or what the backbone's own GGUF file has.
        context: longest prompt and answer in tokens; the backbone's own when None.
        thinking: whether the backbone may think before an answer.
    """

    backbone: str
    name: EngineName
    bits: str
    context: int | None
    thinking: bool = False

    @classmethod
    def of(cls, config: HomeConfig, name: EngineName | None = None) -> EngineChoice:
        """As the settings of a device say.

        Args:
            config: the settings.
            name: the engine, whatever they say.

        Raises:
            BackboneError: there is no such backbone here, or its GGUF file is damaged.
            ConfigError: the engine cannot hold weights as the settings ask for.
        """
        chosen = name or ("torch" if config.engine == "auto" else config.engine)
        if chosen == "llama.cpp" and (own := gguf_path(config.backbone)) is not None:
            check_bits(own, config.bits)
            held = read_header(own).bits
            return cls(config.backbone, chosen, held, config.context, config.thinking)
        bits = BITS[chosen][0] if config.bits == "auto" else config.bits
        if bits not in BITS[chosen]:
            what = f"the engine {chosen} does not hold weights as {bits}"
            fix = f"set it to one of {', '.join(BITS[chosen])}"
            raise ConfigError(what, where="bits", fix=fix)
        return cls(config.backbone, chosen, bits, config.context, config.thinking)


def make_engine(
    choice: EngineChoice,
    models: Path,
    *,
    rows: int | None = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """Load an engine; close it after use.

    Args:
        choice: which one.
        models: where files of backbones are kept, see ``Home.models_folder``.
        rows: requests that are answered at once; when None as many as the engine is made for: 32,
            or with llama.cpp 4, fewer where memory is short.
        on_progress: told how many tensors are written, and of how many, where llama.cpp needs a
            file of the backbone that is not there yet.

    Raises:
        BackboneError: the backbone cannot be loaded, or llama.cpp is not installed.
        ConfigError: it does not fit the memory that is free.
    """
    if choice.name == "llama.cpp":
        from pfi.inference.llama.gguf_cache import open_llama

        return open_llama(
            choice.backbone,
            models,
            choice.bits,
            on_progress=on_progress,
            thinking=choice.thinking,
            slots=rows,
            length=choice.context,
        )
    from dataclasses import replace

    from pfi.inference.torch.engine import TorchEngine
    from pfi.models.backbone import load_backbone

    _check_memory(choice.backbone)
    backbone = replace(load_backbone(choice.backbone), thinking=choice.thinking)
    if choice.context is not None:
        backbone = replace(backbone, max_length=min(choice.context, backbone.max_length))
    sizes = {} if rows is None else {"max_rows": rows}
    precision: Precision = "bfloat16" if choice.bits == "bf16" else "float32"
    return TorchEngine(backbone, **sizes, precision=precision)


def _check_memory(backbone: str) -> None:
    """Refuse weights that are larger than what is free, where their files tell."""
    from pfi._util.memory import free_memory
    from pfi.profile.plan.shapes import read_shape

    try:
        parameters = read_shape(backbone).parameters
    except BackboneError:  # `load_backbone` says what is wrong, or fetches it
        return
    check_weights(4 * parameters, free_memory()[0])  # loaded in 32 bits
