"""Which engine answers on a device: its settings say, and `pfi plan --apply` writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfi.errors import ConfigError
from pfi.inference.engine import Engine

if TYPE_CHECKING:
    from pfi.profile.config import HomeConfig

EngineName = Literal["torch", "llama.cpp"]
Bits = Literal["f32", "bf16", "f16", "q8_0", "q4_k_m"]
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
        bits: how it holds weights.
        context: longest prompt and answer in tokens; the backbone's own when None.
    """

    backbone: str
    name: EngineName
    bits: Bits
    context: int | None

    @classmethod
    def of(cls, config: HomeConfig, name: EngineName | None = None) -> EngineChoice:
        """As the settings of a device say.

        Args:
            config: the settings.
            name: the engine, whatever they say.

        Raises:
            ConfigError: the engine cannot hold weights as the settings ask for.
        """
        chosen = name or ("torch" if config.engine == "auto" else config.engine)
        bits = BITS[chosen][0] if config.bits == "auto" else config.bits
        if bits not in BITS[chosen]:
            what = f"the engine {chosen} does not hold weights as {bits}"
            fix = f"set it to one of {', '.join(BITS[chosen])}"
            raise ConfigError(what, where="bits", fix=fix)
        return cls(config.backbone, chosen, bits, config.context)


def make_engine(
    choice: EngineChoice,
    models: Path,
    *,
    rows: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """Load an engine; close it after use.

    Args:
        choice: which one.
        models: where files of backbones are kept, see ``Home.models_folder``.
        rows: requests that are answered at once.
        on_progress: told how many tensors are written, and of how many, where llama.cpp needs a
            file of the backbone that is not there yet.

    Raises:
        BackboneError: the backbone cannot be loaded, or llama.cpp is not installed.
    """
    if choice.name == "llama.cpp":
        from pfi.inference.llama.gguf_cache import open_llama

        return open_llama(
            choice.backbone,
            models,
            choice.bits,  # type: ignore[arg-type]  # EngineChoice.of let no other through
            on_progress=on_progress,
            slots=rows,
            length=choice.context,
        )
    from dataclasses import replace

    from pfi.inference.torch.engine import TorchEngine
    from pfi.models.backbone import load_backbone

    backbone = load_backbone(choice.backbone)
    if choice.context is not None:
        backbone = replace(backbone, max_length=min(choice.context, backbone.max_length))
    return TorchEngine(
        backbone, max_rows=rows, precision="bfloat16" if choice.bits == "bf16" else "float32"
    )
