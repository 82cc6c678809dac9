"""Tiny random models of every family that GGUF files are written of, and tokenizers like theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from engine_world import sharpen

from pfi.models.backbone import Backbone
from pfi.models.gguf.families import BY_MODEL_TYPE
from pfi.models.gguf.vocabulary import PRE_TOKENIZERS, SPACE, WHOLE_WORDS, merges_of_scores

FAMILIES = sorted(BY_MODEL_TYPE)
TEXT = (
    "a quick brown fox jumps over the lazy dog, it's 1234 good books and 3 bad ones in 2024! "
    "we don't know naïve café prices like 12,345.67 or why THEY'LL shout; Hello Hello world world"
)
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
#: Texts on which tokenizers differ.
TEXTS = [
    "a quick brown fox, it's 1234 books\n\n  and a café \u2013 naïve \U0001f98a",
    "Hello  world 12,345.67 don't THEY'LL  x\t\ty",
    "in 2024, 7 of 100000 (or 3.14%)  \n \n z",
    "x=1;\n\tif (a<b) { c+=12345; } // 你好 \u0627\u0644",
    " leading and trailing  ",
    "...'''\"\"\" -- !? \u00a0 e\u0301",
    "ONE Two thrEE isn'T a\u2019s",
]


def byte_level(pre: str = "gpt-2", template: str | None = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer that splits as llama.cpp's ``pre`` does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([TEXT, *TEXTS] * 4, trainer)
    parts = json.loads(trained.to_str())
    parts["pre_tokenizer"] = PRE_TOKENIZERS[pre]
    parts["decoder"] = {**PRE_TOKENIZERS["gpt-2"]}
    parts["normalizer"] = {"type": "NFC"} if pre.startswith("qwen") else None
    parts["model"]["ignore_merges"] = pre in WHOLE_WORDS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        eos_token="<|end|>",
        pad_token="<pad>",
        chat_template=template,
    )
    return tokenizer


def sentence_piece(prefix: bool = True, rstrip: bool = False, template: str | None = None) -> Any:
    """A tokenizer as those made from SentencePiece models: spaces as signs, bytes for the rest."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    trained.train_from_iterator([TEXT] * 4, trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    special = ["<unk>", "<s>", "<|endoftext|>", "</s>", "<|end|>", "<|turn|>"]
    tokens = [*special, *(f"<0x{at:02X}>" for at in range(256))]
    begin = len(tokens)
    tokens += [piece for piece, _ in pieces if piece not in tokens]
    if SPACE not in tokens:
        tokens.append(SPACE)
    scores = {token: -float(at) for at, token in enumerate(tokens) if at >= begin}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    parts = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: at for at, token in enumerate(tokens)},
            "merges": merges_of_scores(scores),
        },
    }
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special[:3]])
    ends = [AddedToken(t, normalized=False, rstrip=rstrip) for t in special[3:]]
    tokenizer.add_special_tokens(ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=template,
    )


def tiny(family: str, tokenizer: Any = None, **more: Any) -> Backbone:
    """A random model of a family; several query heads a key head, rows of whole blocks of 32."""
    import transformers as t

    if tokenizer is None:
        tokenizer = byte_level()
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": -(-len(tokenizer) // 32) * 32,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family == "gemma3_text",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "qwen3":
        shape |= {"head_dim": 32}
    if family == "gemma3_text":
        shape |= {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        }
    config = t.AutoConfig.for_model(family, **{**shape, **more})
    model = t.AutoModelForCausalLM.from_config(config)
    # Norms and biases begin as ones and zeros, which would hide mistakes.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
    return sharpen(Backbone("tiny", model.eval(), tokenizer, False, 256))


def quantised(backbone: Backbone, path: Path, kind: int, monkeypatch: Any) -> None:
    """Write a GGUF file whose matrices are all of ggml's type ``kind``."""
    from pfi.inference.llama import gguf

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_kind", lambda name, values, *_: kind if values.ndim > 1 else 0)
        gguf.write_backbone(backbone, path, "f32")
