"""The models and adapters that `runtime.py` compares on: random weights, real shapes.

A model's speed does not depend on what it has learnt.  The tokenizer is the embedded backbone's,
so that the vocabulary is smaller than the originals' (8,192).
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

#: Shapes by name; both with tied embeddings, as the originals.
SHAPES: dict[str, dict[str, Any]] = {
    "m135": {
        "model_type": "llama",  # SmolLM2-135M
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100_000.0,
    },
    "q500": {
        "model_type": "qwen2",  # Qwen2.5-0.5B
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_theta": 1_000_000.0,
    },
}
EMBEDDED = Path(str(resources.files("pfi.models") / "embedded"))
TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def model_folder(name: str, cache: Path, seed: int = 0) -> Path:
    """The folder of a model, made when it is missing.

    Args:
        name: ``embedded`` or one of `SHAPES`.
        cache: where made ones are kept.
        seed: of the random weights.
    """
    if name == "embedded":
        return EMBEDDED
    folder = cache / name
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(SHAPES[name])
    config = AutoConfig.for_model(
        values.pop("model_type"),
        vocab_size=8192,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=4,
        pad_token_id=0,
        rms_norm_eps=1e-6,
        **values,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER:
        shutil.copy(EMBEDDED / file, folder / file)
    model.save_pretrained(folder)
    return folder


def adapter_folders(name: str, cache: Path, count: int, rank: int = 8, seed: int = 0) -> list[Path]:
    """So many different random adapters over a model's linear layers, in peft format."""
    folders = [cache / f"{name}-adapters" / str(at) for at in range(count)]
    missing = [
        at for at, folder in enumerate(folders) if not (folder / "adapter_config.json").exists()
    ]
    if missing:
        import torch

        from pfi.models.adapters import AdapterConfig
        from pfi.models.backbone import load_backbone
        from pfi.models.bank.bank import AdapterBank

        backbone = load_backbone(str(model_folder(name, cache, seed)), device="cpu")
        bank = AdapterBank(backbone, AdapterConfig(rank=rank), 1)
        generator = torch.Generator().manual_seed(seed)
        for at in missing:
            slot = bank.new(seed + at)
            # A fresh adapter changes nothing: give it a second factor of the size of a trained one.
            drawn = torch.randn(bank.width - bank.split, generator=generator)
            bank.weights[slot, bank.split :] = 0.01 * drawn
            bank.save(slot, folders[at])
            bank.remove(slot)
    return folders
