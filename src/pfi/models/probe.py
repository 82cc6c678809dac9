"""A few tokens through a model of a family that was never tried here: right, or refused in a line.

``scripts/families.py`` compares the families in ``TESTED`` with transformers and peft; of all
others this is what is known before they answer or train.
"""

from __future__ import annotations

from typing import Any

import torch

from pfi.errors import BackboneError, PfiError

#: ``model_type`` of the families that ``scripts/families.py`` found right.
TESTED = frozenset({
    *("apertus", "arcee", "bamba", "bart", "bert-generation", "bigbird_pegasus", "biogpt"),
    *("bitnet", "blenderbot", "blenderbot-small", "bloom", "codegen", "cohere", "cohere2"),
    *("ctrl", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1"),
    *("ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "falcon_h1", "falcon_mamba"),
    *("flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text", "gemma4_text"),
    *("glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"),
    *("gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoehybrid"),
    *("granitemoeshared", "helium", "hunyuan_v1_dense", "jais2", "jamba", "jetmoe"),
    *("led", "lfm2", "lfm2_moe", "llama", "llama4_text", "longt5", "m2m_100"),
    *("mamba", "mamba2", "marian", "mbart", "minicpm3", "minimax", "minimax_m2", "ministral"),
    *("ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "mt5", "mvp"),
    *("nanochat", "nemotron", "nemotron_h", "nllb-moe", "olmo", "olmo2", "olmo3"),
    *("olmo_hybrid", "olmoe", "openai-gpt", "opt", "pegasus", "pegasus_x", "persimmon", "phi"),
    *("phi3", "phimoe", "plbart", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe"),
    *("qwen3_next", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    *("switch_transformers", "t5", "t5gemma", "trocr", "umt5", "vaultgemma", "xglm"),
    *("youtu", "zamba2"),
})  # fmt: skip
#: Tokens of a probe begin here; those of the end and of padding mean more to some models.
FIRST = 5
_FIX = "use a backbone of another family, see docs/backbones.md"


def check_reading(model: Any, name: str) -> None:
    """Refuse a model that does not read a text from left to right, each row for itself.

    Raises:
        BackboneError: it does not, or it needs more than tokens.
    """
    if model.config.model_type in TESTED or model.device.type == "meta":
        return
    known = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.tensor([[(FIRST + i) % known for i in range(6)]], device=model.device)
    other = ids.clone()
    other[0, -1] = (FIRST + 9) % known
    with torch.inference_mode():
        one = logits_of(model, ids, name)
        changed, both = (
            logits_of(model, other, name),
            logits_of(model, torch.cat([ids, other]), name),
        )
    if one.shape[:2] != ids.shape or not bool(torch.isfinite(one).all()):
        raise BackboneError("it gives no finite score for each token", where=name, fix=_FIX)
    gaps = (one - changed).abs()
    if gaps[:, :-1].max() > 0.001 * gaps[:, -1].max():
        what = "it is an encoder and cannot write: a token changes what stands before it"
        raise BackboneError(what, where=name, fix=_FIX)
    if not torch.allclose(both, torch.cat([one, changed]), atol=2e-3, rtol=2e-3):
        what = "its rows depend on each other, so that answers would depend on who else asks"
        raise BackboneError(what, where=name, fix=_FIX)


def logits_of(model: Any, ids: torch.Tensor, name: str) -> torch.Tensor:
    """The logits ``(rows, tokens, vocabulary)`` of a model of any kind, in float32.

    Raises:
        BackboneError: it fails.
    """
    given = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        given = {"input_ids": torch.full_like(ids, FIRST), "decoder_input_ids": ids}
    try:
        logits: torch.Tensor = model(**given).logits
    except PfiError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"it cannot read a text ({model.config.model_type}): {first:.200}"
        raise BackboneError(what, where=name, fix=_FIX) from error
    return logits.float()


def check_bfloat16(model: Any, name: str) -> None:
    """Refuse a model in bfloat16 that computes parts of itself in float32 only.

    Raises:
        BackboneError: it does.
    """
    ids = torch.full((1, 2), FIRST, device=model.device)
    with torch.inference_mode():
        try:
            logits_of(model, ids, name)
        except BackboneError as error:
            what = f"this kind of model ({model.config.model_type}) does not run in bfloat16"
            raise BackboneError(what, where=name, fix="use float32") from error
