"""Tiny random backbones of several families, made once a test session without a network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same examples in every run, so that a red run is the change's; PFI_FUZZ=1 draws new ones.
settings.register_profile("fixed", derandomize=True)
if not os.environ.get("PFI_FUZZ"):
    settings.load_profile("fixed")

# Tests never touch the keyring and the profiles of who runs them.
os.environ["PFI_HOME"] = str(Path(tempfile.gettempdir()) / f"pfi-tests-{os.getpid()}")
os.environ["PFI_KEY"] = "file"
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"

FAMILIES = ["llama", "qwen2", "gpt2", "t5"]
TEXT = "a quick brown fox jumps over the lazy dog , good bad fine book film score title 1 2 3 4 5"


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with an end and a padding token; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", model_max_length=100_000
    )
    fast.save_pretrained(folder)
    return len(fast)


def build_backbone(folder: Path, family: str) -> Path:
    """Save a random model of ``family`` and a tokenizer in ``folder``."""
    import transformers as t

    size = save_tokenizer(folder)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    small = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 768,
        **ids,
    }
    if family == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**small))
    elif family == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**{**small, "num_key_value_heads": 1}))
    elif family == "gpt2":
        config = t.GPT2Config(
            vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=768, **ids
        )
        model = t.GPT2LMHeadModel(config)
    else:
        config = t.T5Config(
            vocab_size=size,
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
        model = t.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``backbone_folder("llama")`` is the folder of a tiny random model of that family."""
    made: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in made:
            made[family] = build_backbone(tmp_path_factory.mktemp(family), family)
        return made[family]

    return build


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared LaMP-format data; tests that need it are skipped where it is missing."""
    folder = Path(__file__).resolve().parents[1] / "shared" / "data" / "lamp"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not on this machine")
    return folder
