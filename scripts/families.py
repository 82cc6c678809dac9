#!/usr/bin/env python
"""Check pfi on tiny random models of many families, and write docs/backbones.md's matrix.

    python scripts/families.py                  # check what has not been checked yet, then write
    python scripts/families.py falcon phi3      # these only, anew
    python scripts/families.py --write          # only write the matrix from what was checked

A family is checked in a process of its own, and its result lies in ``build/families/NAME.json``:
a run that was killed goes on.  References are transformers' own greedy tokens and full passes,
and peft's losses and gradients; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "families"
PAGE = ROOT / "docs" / "backbones.md"
COLUMNS = ("load", "train", "last_n", "score", "generate", "ask", "adapted", "bf16", "gguf")
SECONDS = 300

#: Sizes that most configurations know by these names.
BASE: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
_HEADS = {"num_key_value_heads": None}
_IDS = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_BART = {
    **_IDS, "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
_T5 = {
    **_IDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 3,
    "num_heads": 4, "decoder_start_token_id": 3,
}  # fmt: skip
_GPT2 = {**_IDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
_BERT = {**BASE, **_HEADS}
_MOE = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8,
}  # fmt: skip
_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2}
_GATED_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_LONGROPE = {
    "partial_rotary_factor": 0.75, "original_max_position_embeddings": 48,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [2.0, 4.0, 8.0], "original_max_position_embeddings": 48,
        "partial_rotary_factor": 0.75,
    },
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A tiny model.

    Attributes:
        model: transformers' class.
        sizes: of its configuration.
        kind: what it stands for, as the matrix groups it.
    """

    model: str
    sizes: Mapping[str, Any] = field(default_factory=lambda: BASE)
    kind: str = "dense"


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **values}}


def _causal(prefix: str, kind: str = "dense", /, **more: Any) -> Family:
    return Family(f"{prefix}ForCausalLM", {**BASE, **more}, kind)


def _seq2seq(prefix: str, sizes: Mapping[str, Any], /, **more: Any) -> Family:
    return Family(f"{prefix}ForConditionalGeneration", {**sizes, **more}, "encoder-decoder")


FAMILIES: dict[str, Family] = {
    # Dense, attention only.
    "llama": _causal("Llama"),
    "llama-biases": _causal("Llama", attention_bias=True, mlp_bias=True),
    "llama-3.2-rope": _causal("Llama", **_rope(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64)),
    "llama-yarn": _causal("Llama", **_rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama-linear": _causal("Llama", **_rope(rope_type="linear", factor=2.0)),
    "qwen2": _causal("Qwen2"),
    "qwen3": _causal("Qwen3", head_dim=8),
    "mistral": _causal("Mistral", head_dim=8, sliding_window=None),
    "ministral": _causal("Ministral", head_dim=8),
    "ministral3": _causal("Ministral3", head_dim=8),
    "gemma": _causal("Gemma", head_dim=8),
    "gemma2": _causal("Gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "gemma3-text": Family(
        "Gemma3ForCausalLM", {**BASE, "head_dim": 8, "query_pre_attn_scalar": 8,
                              "sliding_window": 16}),
    "vaultgemma": _causal("VaultGemma", head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "gemma3n-text": Family("Gemma3nForCausalLM", {
        **BASE, "head_dim": 8, "sliding_window": 16, "vocab_size_per_layer_input": 400,
        "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "intermediate_size": [48, 48, 48], "activation_sparsity_pattern": [0.0, 0.0, 0.0]}),
    "gemma4-text": Family("Gemma4ForCausalLM", {
        **BASE, "head_dim": 8, "global_head_dim": 16, "sliding_window": 16,
        "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}),
    "smollm3": _causal("SmolLM3"),
    "phi": _causal("Phi", partial_rotary_factor=0.5),
    "phi3": _causal("Phi3", sliding_window=None),
    "olmo": _causal("Olmo", clip_qkv=8.0),
    "olmo2": _causal("Olmo2"),
    "olmo3": _causal("Olmo3", sliding_window=16),
    "granite": _causal("Granite", logits_scaling=2.0, residual_multiplier=0.5,
                       embedding_multiplier=2.0, attention_multiplier=0.2),
    "gpt2": Family("GPT2LMHeadModel", _GPT2),
    "gpt2-scaled": Family("GPT2LMHeadModel", {
        **_GPT2, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_neo": Family("GPTNeoForCausalLM", {
        **_IDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 512, "window_size": 16,
        "attention_types": [[["global", "local"], 1]]}),
    "gpt_neox": _causal("GPTNeoX", **_HEADS),
    "gpt_neox_japanese": _causal("GPTNeoXJapanese", **_HEADS, intermediate_multiple_size=2),
    "gptj": Family("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}),
    "codegen": Family("CodeGenForCausalLM", {**_GPT2, "rotary_dim": 4, "n_ctx": 512}),
    "gpt_bigcode": Family("GPTBigCodeForCausalLM", _GPT2),
    "openai-gpt": Family("OpenAIGPTLMHeadModel", _GPT2),
    "bloom": Family("BloomForCausalLM", {**_IDS, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": Family("MptForCausalLM", {
        **_IDS, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 512,
        "expansion_ratio": 2}),
    "falcon": Family("FalconForCausalLM", {
        **_IDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "multi_query": True, "parallel_attn": True, "bias": False,
        "new_decoder_architecture": False}),
    "falcon-alibi": Family("FalconForCausalLM", {
        **_IDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    "stablelm": _causal("StableLm"),
    "starcoder2": _causal("Starcoder2", sliding_window=None),
    "cohere": _causal("Cohere"),
    "cohere2": _causal("Cohere2", sliding_window=16, head_dim=8),
    "exaone4": _causal("Exaone4", sliding_window=16, sliding_window_pattern=3),
    "glm": _causal("Glm", head_dim=8),
    "glm4": _causal("Glm4", head_dim=8),
    "nemotron": _causal("Nemotron"),
    "apertus": _causal("Apertus"),
    "arcee": _causal("Arcee"),
    "bitnet": _causal("BitNet"),
    "helium": _causal("Helium", head_dim=8),
    "diffllama": _causal("DiffLlama"),
    "doge": _causal("Doge", head_dim=8),
    "ernie4_5": _causal("Ernie4_5", head_dim=8),
    "hunyuan_v1_dense": _causal("HunYuanDenseV1", head_dim=8),
    "seed_oss": _causal("SeedOss", head_dim=8),
    "persimmon": _causal("Persimmon", **_HEADS),
    "minicpm3": _causal("MiniCPM3", **{**_MLA, "num_key_value_heads": 4}),
    "nanochat": _causal("NanoChat"),
    "jais2": _causal("Jais2"),
    "cwm": _causal("Cwm", sliding_window=16, head_dim=8),
    "youtu": _causal("Youtu", **_MLA),
    "xglm": Family("XGLMForCausalLM", {
        **_IDS, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 512}),
    "biogpt": _causal("BioGpt", **_HEADS),
    "opt": Family("OPTForCausalLM", {
        **_IDS, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 512, "word_embed_proj_dim": 32}),
    "ctrl": Family("CTRLLMHeadModel", {
        **_IDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "dff": 48}),
    "modernbert-decoder": Family("ModernBertDecoderForCausalLM", {
        **_BERT, "local_attention": 16, "global_attn_every_n_layers": 3, "cls_token_id": 1,
        "sep_token_id": 2}),
    "bert-generation": Family("BertGenerationDecoder", {**_BERT, "is_decoder": True}),
    "roberta-decoder": Family("RobertaForCausalLM", {**_BERT, "is_decoder": True}),
    "trocr": Family("TrOCRForCausalLM", {
        **_IDS, "d_model": 32, "decoder_layers": 3, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48, "max_position_embeddings": 512}),
    # Windows shorter than a row, frequencies that change with the length.
    "mistral-window": _causal("Mistral", "window", head_dim=8, sliding_window=16),
    "phi3-window": _causal("Phi3", "window", sliding_window=16),
    "qwen2-window": _causal(
        "Qwen2", "window", sliding_window=16, use_sliding_window=True, max_window_layers=1),
    "smollm3-window": _causal("SmolLM3", "window", sliding_window=16, use_sliding_window=True),
    "starcoder2-window": _causal("Starcoder2", "window", sliding_window=16),
    "phi3-longrope": _causal("Phi3", "longrope", sliding_window=None, **_LONGROPE),
    "llama-longrope": _causal("Llama", "longrope", **_rope(
        rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], factor=8.0,
        long_factor=[2.0, 4.0, 8.0, 9.0], original_max_position_embeddings=48)),
    "llama-dynamic": _causal("Llama", "longrope", **_rope(rope_type="dynamic", factor=2.0)),
    "phimoe-longrope": _causal("Phimoe", "longrope", num_local_experts=4, **_rope(
        rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], short_mscale=1.0,
        long_mscale=1.3, long_factor=[2.0, 4.0, 8.0, 9.0],
        original_max_position_embeddings=48)),
    # Experts.
    "qwen2_moe": _causal("Qwen2Moe", "experts", **_MOE, shared_expert_intermediate_size=24),
    "qwen3_moe": _causal("Qwen3Moe", "experts", **_MOE),
    "olmoe": _causal("Olmoe", "experts", num_experts=4, num_experts_per_tok=2),
    "flex_olmo": _causal("FlexOlmo", "experts", num_experts=4, num_experts_per_tok=2),
    "mixtral": _causal("Mixtral", "experts", num_local_experts=4, head_dim=8),
    "phimoe": _causal("Phimoe", "experts", num_local_experts=4),
    "deepseek_v2": _causal("DeepseekV2", "experts", **_MLA, topk_method="greedy"),
    "deepseek_v3": _causal("DeepseekV3", "experts", **_MLA),
    "gpt_oss": _causal(
        "GptOss", "experts", num_local_experts=4, num_experts_per_tok=2, head_dim=8,
        sliding_window=16, **_rope(rope_type="default")),
    "granitemoe": _causal("GraniteMoe", "experts", num_local_experts=4, num_experts_per_tok=2),
    "granitemoeshared": _causal(
        "GraniteMoeShared", "experts", num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=24),
    "ernie4_5_moe": _causal(
        "Ernie4_5_Moe", "experts", moe_num_experts=4, moe_k=2, moe_intermediate_size=24,
        head_dim=8),
    "glm4_moe": _causal(
        "Glm4Moe", "experts", n_routed_experts=4, num_experts_per_tok=2, head_dim=8,
        moe_intermediate_size=24, n_group=1, topk_group=1, first_k_dense_replace=1),
    "dots1": _causal(
        "Dots1", "experts", n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        moe_intermediate_size=24, n_group=1, topk_group=1, first_k_dense_replace=1, head_dim=8),
    "minimax_m2": _causal("MiniMaxM2", "experts", num_local_experts=4, head_dim=8,
                          rotary_dim=8, num_experts_per_tok=2),
    "dbrx": Family("DbrxForCausalLM", {
        **_IDS, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}}, "experts"),
    "jetmoe": _causal("JetMoe", "experts", num_local_experts=4, num_experts_per_tok=2,
                      kv_channels=8),
    "llama4-text": Family("Llama4ForCausalLM", {
        **BASE, "num_local_experts": 4, "intermediate_size_mlp": 48, "head_dim": 8,
        "attention_chunk_size": 16, "interleave_moe_layer_step": 2}, "experts"),
    "lfm2_moe": _causal(
        "Lfm2Moe", "experts", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        num_dense_layers=1, layer_types=["conv", "full_attention", "conv"]),
    "nllb-moe": _seq2seq("NllbMoe", _BART, num_experts=4, encoder_sparse_step=2,
                         decoder_sparse_step=2),
    "switch_transformers": _seq2seq("SwitchTransformers", _T5, num_experts=4,
                                    num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
    # Attention mixed with convolutions or states.
    "lfm2": _causal("Lfm2", "hybrid", full_attn_idxs=[1], conv_L_cache=3, block_multiple_of=8),
    "qwen3_5": _causal("Qwen3_5", "hybrid", **_GATED_DELTA),
    "qwen3_next": _causal("Qwen3Next", "hybrid", **{
        **_GATED_DELTA, **_MOE, "shared_expert_intermediate_size": 24}),
    "granitemoehybrid": _causal(
        "GraniteMoeHybrid", "hybrid", **_MAMBA, mamba_n_groups=1, num_local_experts=0,
        num_experts_per_tok=0, shared_intermediate_size=48,
        layer_types=["mamba", "attention", "mamba"]),
    "bamba": _causal("Bamba", "hybrid", **_MAMBA, mamba_n_groups=1, attn_layer_indices=[1]),
    "falcon_h1": _causal("FalconH1", "hybrid", head_dim=8, mamba_d_ssm=64, **_MAMBA),
    "jamba": _causal(
        "Jamba", "hybrid", attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=8,
        mamba_dt_rank=4, use_mamba_kernels=False),
    "zamba2": _causal(
        "Zamba2", "hybrid", mamba_d_state=8, n_mamba_heads=4, mamba_expand=2, mamba_ngroups=1,
        num_mem_blocks=1, use_shared_attention_adapter=False, chunk_size=32,
        layers_block_type=["mamba", "hybrid", "mamba"], num_key_value_heads=4),
    "nemotron_h": _causal(
        "NemotronH", "hybrid", mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8,
        mamba_n_groups=1, n_groups=1, head_dim=8, layers_block_type=["mamba", "attention", "mlp"]),
    "minimax": _causal("MiniMax", "hybrid", num_local_experts=2, head_dim=8, block_size=16,
                       layer_types=["linear_attention", "full_attention", "linear_attention"]),
    "olmo_hybrid": _causal("OlmoHybrid", "hybrid", **_GATED_DELTA),
    # States only.
    "mamba": Family("MambaForCausalLM", {
        **_IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 4,
        "intermediate_size": 64}, "state"),
    "mamba2": Family("Mamba2ForCausalLM", {
        **_IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "num_heads": 4,
        "head_dim": 16, "n_groups": 1, "expand": 2, "chunk_size": 16}, "state"),
    "falcon_mamba": Family("FalconMambaForCausalLM", {
        **_IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 4,
        "intermediate_size": 64}, "state"),
    "rwkv": Family("RwkvForCausalLM", {
        **_IDS, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3,
        "context_length": 512}, "state"),
    "recurrent_gemma": _causal("RecurrentGemma", "state", lru_width=32, **{
        "attention_window_size": 16, "block_types": ["recurrent", "recurrent", "attention"]}),
    # Text models within larger ones.
    "gemma3": Family("Gemma3ForConditionalGeneration", {
        "text_config": {**BASE, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
        "vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 390,
        "boi_token_index": 391, "eoi_token_index": 392}, "multimodal"),
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", {
        "text_config": {**BASE, **_rope(rope_type="default", mrope_section=[1, 1, 2])},
        "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}},
        "multimodal"),
    # Encoder-decoder.
    "t5": _seq2seq("T5", _T5),
    "flan-t5": _seq2seq("T5", _T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _seq2seq("MT5", _T5),
    "umt5": _seq2seq("UMT5", _T5),
    "longt5": _seq2seq("LongT5", _T5, local_radius=8, global_block_size=8),
    "bart": _seq2seq("Bart", _BART),
    "mbart": _seq2seq("MBart", _BART),
    "mvp": _seq2seq("Mvp", _BART),
    "plbart": _seq2seq("PLBart", _BART),
    "pegasus": _seq2seq("Pegasus", _BART),
    "pegasus_x": _seq2seq("PegasusX", _BART, num_global_tokens=4, block_size=16),
    "bigbird_pegasus": _seq2seq("BigBirdPegasus", _BART, attention_type="original_full"),
    "blenderbot": _seq2seq("Blenderbot", _BART, max_position_embeddings=128),
    "blenderbot-small": _seq2seq("BlenderbotSmall", _BART),
    "m2m_100": _seq2seq("M2M100", _BART),
    "marian": Family("MarianMTModel", _BART, "encoder-decoder"),
    "led": _seq2seq("LED", _BART, max_encoder_position_embeddings=512,
                    max_decoder_position_embeddings=256, attention_window=16),
    "prophetnet": _seq2seq("ProphetNet", {
        **_IDS, "hidden_size": 32, "num_encoder_layers": 3, "num_decoder_layers": 3,
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 512,
        "decoder_start_token_id": 2}),
    "fsmt": _seq2seq("FSMT", _BART, langs=["en", "de"], src_vocab_size=400, tgt_vocab_size=400),
    "t5gemma": _seq2seq("T5Gemma", {
        **_IDS, "decoder_start_token_id": 1,
        "encoder": {**BASE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
        "decoder": {**BASE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}}),
    # Encoders, and others that cannot write.
    "bert": Family("BertForMaskedLM", _BERT, "encoder"),
    "roberta": Family("RobertaForMaskedLM", _BERT, "encoder"),
    "xlm-roberta": Family("XLMRobertaForMaskedLM", _BERT, "encoder"),
    "camembert": Family("CamembertForMaskedLM", _BERT, "encoder"),
    "electra": Family("ElectraForMaskedLM", {**_BERT, "embedding_size": 32}, "encoder"),
    "modernbert": Family("ModernBertForMaskedLM", _BERT, "encoder"),
    "distilbert": Family("DistilBertForMaskedLM", {
        **_IDS, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}, "encoder"),
    "deberta-v2": Family("DebertaV2ForMaskedLM", _BERT, "encoder"),
    "xlnet": Family("XLNetLMHeadModel", {
        **_IDS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "encoder"),
}  # fmt: skip

#: One or two of each kind, for a test of a few seconds each.
SAMPLE = (
    *("falcon", "opt", "mistral-window", "phi3-longrope", "qwen3_moe", "lfm2"),
    *("falcon_h1", "gemma3", "bart", "roberta"),
)

_TEXT = ["Write a title: rain all week in the hills. The engine, limits, 0123456789."] * 20
PROMPTS = (
    "Hi",
    "Write a title: rain all week in the hills and in the town",
    "score this text: I liked it",
)
LABELS = ("yes", "no way", "Rain")
NEW = 8


def tokenizer() -> Any:
    """A byte-level tokenizer of a few hundred tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(_TEXT, trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False))  # fmt: skip
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def write_model(family: Family, folder: Path) -> Path:
    """A family's tiny random model as a folder of safetensors; its answers depend on prompts."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, family.model)
    sizes = {name: value for name, value in family.sizes.items() if value is not None}
    with_none = {name: value for name, value in family.sizes.items() if name not in sizes}
    config = kind.config_class(**sizes, **{
        name: None for name in with_none if name != "num_key_value_heads"})  # fmt: skip
    model = kind(config)
    generator = torch.Generator().manual_seed(1)
    embeddings = ("embed", "shared", "word", "wte", "tokens_embed", ".w.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or any(part in name for part in ("A_log", "conv", "time_")):
                continue
            wide = any(part in name for part in embeddings)
            scale = 1.0 if wide else 1.3 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


# Checks ---------------------------------------------------------------------------------------


class WrongError(Exception):
    """What pfi gave differs from the reference."""


def _close(what: str, got: Sequence[float], wanted: Sequence[float], within: float = 2e-3) -> None:
    gap = max((abs(a - b) for a, b in zip(got, wanted, strict=True)), default=0.0)
    if not gap <= within:  # not a number is wrong, too
        raise WrongError(f"{what} differ by {gap:.3g}")


class Checks:
    """The checks of one family; each raises ``WrongError``, or whatever pfi raises."""

    def __init__(self, folder: Path) -> None:
        from pfi.models.backbone import load_backbone
        from pfi.tasks import Example

        self.folder, self.routed = folder, False
        self.longest: int | None = None
        self.backbone = load_backbone(str(folder), device="cpu")
        self.examples = [
            Example(f"{PROMPTS[1]} and more {i}", f"Rain {i}", {}, str(i)) for i in range(4)
        ] + [Example(PROMPTS[0], "Sun", {}, "5"), Example("rain " * 30, "Dry", {}, "6")]

    def load(self) -> None:
        """It loads, and a prompt has room."""
        if self.backbone.max_length < 64:
            raise WrongError(f"the context is {self.backbone.max_length}")

    def adapter(self, seed: int = 3) -> Any:
        """An adapter over all linear layers that changes answers."""
        import torch

        from pfi.models.adapters import AdapterConfig
        from pfi.models.bank.bank import AdapterBank

        bank = AdapterBank(self.backbone, AdapterConfig(rank=2, alpha=4), 1)
        slot = bank.new(seed)
        generator = torch.Generator().manual_seed(seed)
        bank.weights[slot] += 0.05 * torch.randn(bank.width, generator=generator)
        return bank.adapter(slot)

    def peft(self, adapter: Any) -> Any:
        """The model with an adapter as peft computes it, unmerged."""
        import copy

        model = adapter.apply(copy.deepcopy(self.backbone.model)).eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return model

    def losses(self, model: Any, prompt: Sequence[int], target: Sequence[int]) -> Any:
        """Losses ``(targets,)`` by one pass of a transformers or peft model."""
        import torch
        import torch.nn.functional as F

        if self.backbone.seq2seq:
            start = self.backbone.model.config.decoder_start_token_id
            logits = model(
                input_ids=torch.tensor([[*prompt]]),
                decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
            ).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
            logits = logits[len(prompt) - 1 : -1]
        return F.cross_entropy(logits.float(), torch.tensor([*target]), reduction="none")

    def train(self) -> None:
        """Two users' losses and gradients in one pass as peft's, and merged as unmerged."""
        import torch

        from pfi.models.adapters import AdapterConfig
        from pfi.models.bank.bank import AdapterBank
        from pfi.models.bank.packing import Row, target_losses
        from pfi.train.job import as_piece

        pieces = [as_piece(self.backbone, example, 256) for example in self.examples]
        adapters = [self.adapter(3), self.adapter(4)]
        bank = AdapterBank(self.backbone, AdapterConfig(rank=2), 2)
        slots = [bank.add(adapter) for adapter in adapters]
        owners = [0, 0, 0, 1, 1, 1]
        with bank.recording([slots[o] for o in owners]) as gradients:
            losses = target_losses(bank.backbone, [Row([piece]) for piece in pieces])
            losses.sum().backward()
        split = losses.detach().split([piece.targets for piece in pieces])
        for owner, adapter in enumerate(adapters):
            model, merged = self.peft(adapter), self.backbone.with_adapters([adapter]).model
            mine = [i for i, o in enumerate(owners) if o == owner]
            for i in mine:
                ids, count = pieces[i].ids, pieces[i].targets
                reference = self.losses(model, ids[:-count], ids[-count:])
                _close("losses", split[i].tolist(), reference.tolist())
                with torch.no_grad():
                    again = self.losses(merged, ids[:-count], ids[-count:])
                _close("losses merged", split[i].tolist(), again.tolist())
                reference.sum().backward()
            weights = dict(model.named_parameters())
            for target in bank.targets:
                a = weights[f"base_model.model.{target.name}.lora_A.default.weight"].grad
                got = target.a(gradients[owner : owner + 1])[0]
                wanted = torch.zeros_like(got) if a is None else a
                size = max(1.0, float(wanted.abs().max()))
                _close(f"gradients of {target.name}", [float((got - wanted).abs().max())], [0.0],
                       2e-3 * size)  # fmt: skip

    def last_n(self) -> None:
        """Training of the last blocks only: first losses as peft's, and they fall."""
        from pfi.train.config import TrainConfig
        from pfi.train.job import Job
        from pfi.train.loop import BankTrainer
        from pfi.train.peft_reference import PeftTrainer

        # One example a step: peft pads rows of a batch, and some models read that otherwise.
        config = TrainConfig(
            rank=2, epochs=2, batch_size=1, layers="last:1", max_length=256, learning_rate=0.02
        )
        jobs = [Job("u", self.examples[:5], seed=1), Job("v", self.examples[2:6], seed=2)]
        bank = {job.id: result for job, result in
                BankTrainer().train_many(self.backbone, jobs, config)}  # fmt: skip
        for job, result in PeftTrainer().train_many(self.backbone, jobs, config):
            own = bank[job.id]
            assert own is not None and result is not None
            _close("first losses", own.losses[:2], result.losses[:2], 5e-3)
            _close("losses", own.losses, result.losses, 0.1)

    def score(self) -> None:
        """Labels as full passes score them, without and with adapters, two users at once."""
        from pfi.inference.torch.engine import TorchEngine
        from pfi.models.scoring import score_labels

        self._scores("scores", self.backbone.model, score_labels(self.backbone, PROMPTS, LABELS))
        with TorchEngine(self.backbone) as engine:
            targets = [self.backbone.target_ids(label) for label in LABELS]
            got = [engine.score(self.backbone.prompt_ids(p), targets) for p in PROMPTS]
        self._scores("the engine's scores", self.backbone.model, got)

    def _scores(self, what: str, model: Any, got: Sequence[Sequence[float]]) -> None:
        import torch

        for prompt, row in zip(PROMPTS, got, strict=True):
            ids = self.backbone.prompt_ids(prompt)
            with torch.no_grad():
                wanted = [
                    -float(self.losses(model, ids, self.backbone.target_ids(label)).sum())
                    for label in LABELS
                ]
            _close(what, row, wanted, 5e-3)

    def ids(self, prompt: str) -> list[int]:
        """A prompt's tokens, no more than the exported file has room for."""
        return self.backbone.prompt_ids(prompt, self.longest)

    def greedy(self, model: Any, prompt: str, new: int = NEW) -> list[int]:
        """Greedy tokens of transformers itself, up to the end token."""
        import torch

        from pfi.models.families import own_positions

        ids = torch.tensor([self.ids(prompt)])
        if own_positions(model.config):  # whose positions transformers' generation counts otherwise
            return self._plain_greedy(model, ids, new)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                do_sample=False, num_beams=1, forced_eos_token_id=None,
                pad_token_id=self.backbone.pad_id, eos_token_id=self.backbone.end_id,
            )[0].tolist()  # fmt: skip
        tokens = out[1:] if self.backbone.seq2seq else out[ids.shape[1] :]
        end = self.backbone.end_id
        return tokens[: tokens.index(end)] if end in tokens else tokens

    def _plain_greedy(self, model: Any, ids: Any, new: int) -> list[int]:
        """As ``greedy`` by whole passes without a cache."""
        import torch

        tokens: list[int] = []
        with torch.no_grad():
            while len(tokens) < new:
                token = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
                if int(token) == self.backbone.end_id:
                    break
                tokens.append(int(token))
                ids = torch.cat([ids, token.view(1, 1)], 1)
        return tokens

    def _text(self, model: Any, prompt: str) -> str:
        from pfi.inference.detokenizer import answer_text

        ids = self.ids(prompt)
        return answer_text(self.backbone.prompter, ids, self.greedy(model, prompt))

    def _texts(self, model: Any) -> list[str]:
        return [self._text(model, prompt) for prompt in PROMPTS]

    def generate(self) -> None:
        """A batch answers as each prompt alone, and as transformers."""
        from pfi.inference.generation import generate

        wanted = [text.strip() for text in self._texts(self.backbone.model)]
        alone = [generate(self.backbone, [prompt], NEW)[0] for prompt in PROMPTS]
        _compare("answers", alone, wanted)
        _compare("answers in a batch", generate(self.backbone, PROMPTS, NEW), alone)

    def _asked(self, adapters: Sequence[Any], **settings: Any) -> list[str]:
        """The engine's answers to all prompts at once, each with its adapter or none."""
        from pfi.inference.engine import AdapterRef, Request, Sampling
        from pfi.inference.torch.engine import TorchEngine

        requests = []
        for number, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
            ref = None if adapter is None else AdapterRef(f"a{number}", partial(_same, adapter))
            ids = tuple(self.backbone.prompt_ids(prompt))
            requests.append(Request(ids, ref, Sampling(max_tokens=NEW), "me"))
        with TorchEngine(self.backbone, **settings) as engine:
            return ["".join(piece.text for piece in s) for s in engine.generate_all(requests)]

    def ask(self) -> None:
        """The engine answers as transformers does."""
        wanted = self._texts(self.backbone.model)
        _compare("answers", self._asked([None] * len(PROMPTS)), wanted)

    def adapted(self) -> None:
        """Asked at once with two adapters and none, the engine answers as peft does."""
        adapters = [self.adapter(3), None, self.adapter(4)]
        wanted = [
            self._text(self.backbone.model if a is None else self.peft(a), p)
            for a, p in zip(adapters, PROMPTS, strict=True)
        ]
        _compare("answers", self._asked(adapters), wanted)

    def bf16(self) -> None:
        """Losses in bfloat16 are as near to float32's as the model's own in bfloat16."""
        import torch

        from pfi.models.adapters import AdapterConfig
        from pfi.models.bank.bank import AdapterBank, sharing_copy
        from pfi.models.scoring import mean_losses
        from pfi.train.job import as_piece

        pieces = [as_piece(self.backbone, example, 256) for example in self.examples]
        bank = AdapterBank(self.backbone, AdapterConfig(rank=2), 1, precision="bfloat16")
        got = mean_losses(bank.backbone, pieces)
        half = sharing_copy(self.backbone.model, torch.bfloat16)
        with torch.no_grad():
            wanted = [
                float(self.losses(half, p.ids[: -p.targets], p.ids[-p.targets :]).mean())
                for p in pieces
            ]
        # Of experts the nearest few are chosen, so that rounding can change a token's.
        gaps = sorted(abs(a - b) for a, b in zip(got, wanted, strict=True))
        _close("losses", [gaps[len(gaps) // 2 if self.routed else -1]], [0.0], 0.3)

    def gguf(self) -> None:
        """The file is refused, or llama.cpp answers from it as transformers does."""
        from pfi.inference.engine import Request, Sampling
        from pfi.inference.llama import gguf
        from pfi.inference.llama.engine import LlamaEngine

        path = self.folder / "export.gguf"
        gguf.write_backbone(self.backbone, path, "f32")
        config = self.backbone.model.config
        # llama.cpp sees whole texts where some models see a window; the file says so.
        self.longest = gguf.full_attention_context(config) - NEW
        wanted = self._texts(self.backbone.model)
        engine = LlamaEngine(
            self.backbone.prompter, config, path, slots=1, threads=1, length=512, exact=True
        )
        with engine:
            got = []
            for prompt in PROMPTS:
                request = Request(tuple(self.ids(prompt)), None, Sampling(max_tokens=NEW), "me")
                got.append("".join(piece.text for piece in engine.generate(request)))
        self.longest = None
        _compare("answers", got, wanted)


def _same(value: Any) -> Any:
    return value


def _compare(what: str, got: Sequence[str], wanted: Sequence[str]) -> None:
    pairs = [(a, b) for a, b in zip(got, wanted, strict=True) if a != b]
    if pairs:
        raise WrongError(f"{len(pairs)} of {len(got)} {what}: {pairs[0][0]!r}, not {pairs[0][1]!r}")


def check(name: str, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """What became of every column: ``ok``, ``refused: ...``, ``wrong: ...``, ``traceback: ...``."""
    import logging
    import warnings

    from pfi.errors import PfiError

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pfi-family-") as room:
        folder = write_model(FAMILIES[name], Path(room))
        checks: Checks | None = None
        for column in columns:
            try:
                checks = checks or Checks(folder)
                checks.routed = FAMILIES[name].kind == "experts"
                getattr(checks, column)()
                results[column] = "ok"
            except PfiError as error:
                results[column] = f"refused: {error}".replace(room, name)
            except WrongError as error:
                results[column] = f"wrong: {error}"
            except Exception as error:
                if os.environ.get("FAMILIES_TRACE"):
                    traceback.print_exc()
                first = (str(error).strip().splitlines() or [""])[0]
                results[column] = f"traceback: {type(error).__name__}: {first}"[:300]
            if checks is None:
                break
    return results


# The matrix -----------------------------------------------------------------------------------


def _in_process(name: str) -> dict[str, str]:
    """``check`` in a process of its own, which may die or take too long."""
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"load": f"traceback: it took more than {SECONDS} s"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        results: dict[str, str] = json.loads(last)
    except ValueError:
        error = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"load": f"traceback: {error}"[:300]}
    return results


def read_results() -> dict[str, dict[str, str]]:
    """The results that are there, by family."""
    files = {name: RESULTS / f"{name}.json" for name in FAMILIES}
    return {n: json.loads(f.read_text("utf-8")) for n, f in files.items() if f.exists()}


def faults(results: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is wrong or a traceback, a line each."""
    return [
        f"{name} {column}: {result}"
        for name, row in results.items()
        for column, result in row.items()
        if result.startswith(("wrong", "traceback"))
    ]


_TITLES = {
    "load": "loads", "train": "train", "last_n": "`last:N`", "score": "score",
    "generate": "generate", "ask": "ask", "adapted": "with adapters", "bf16": "bfloat16",
    "gguf": "GGUF",
}  # fmt: skip


def _cell(result: str | None) -> str:
    return "-" if result is None else result.partition(":")[0].replace("traceback", "**traceback**")


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """The matrix: families of a kind that fared alike in one line, and why some are refused."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in results.items():
        cells = tuple(_cell(row.get(column)) for column in COLUMNS)
        groups.setdefault((FAMILIES[name].kind, *cells), []).append(name)
    lines = [
        f"{len(results)} families, each as a tiny random model.",
        "",
        "| kind | families | " + " | ".join(_TITLES[column] for column in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for key, names in groups.items():
        lines.append(f"| {key[0]} | {', '.join(names)} | {' | '.join(key[1:])} |")
    reasons: dict[str, list[str]] = {}
    for name, row in results.items():
        for column, result in row.items():
            if result.startswith("refused") and column != "gguf":
                reason = re.sub(r"^refused: (\S*?: )?", "", result)
                reasons.setdefault(reason.replace(name, "NAME"), []).append(name)
    if reasons:
        lines += ["", "| refused, GGUF apart | what it says |", "|---|---|"]
    for reason, names in reasons.items():
        lines.append(f"| {', '.join(dict.fromkeys(names))} | {reason} |")
    return "\n".join(lines)


def write_page(results: Mapping[str, Mapping[str, str]]) -> None:
    """Put the matrix between the markers of docs/backbones.md."""
    page = PAGE.read_text("utf-8")
    pattern = r"(<!-- families: begin -->\n).*?(<!-- families: end -->)"
    new = re.sub(pattern, lambda m: f"{m[1]}\n{table(results)}\n\n{m[2]}", page, flags=re.DOTALL)
    PAGE.write_text(new, "utf-8")


def main() -> int:
    """Check families and write the matrix; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="these only, anew")
    parser.add_argument("--write", action="store_true", help="only write the matrix")
    parser.add_argument("--fresh", action="store_true", help="check all anew")
    parser.add_argument("--one", metavar="FAMILY", help=argparse.SUPPRESS)
    parser.add_argument("--columns", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        columns = given.columns.split(",") if given.columns else COLUMNS
        print("\n" + json.dumps(check(given.one, columns)))
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = {} if given.fresh else read_results()
    for name in [] if given.write else given.names or [n for n in FAMILIES if n not in done]:
        results = _in_process(name)
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        bad = faults({name: results})
        print(f"{name}: {'; '.join(bad) or 'no fault'}", flush=True)
    matrix = read_results()
    bad = faults(matrix)
    print(f"{len(matrix)} families of {len(FAMILIES)}, {len(bad)} faults")
    if not given.names:
        write_page(matrix)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
