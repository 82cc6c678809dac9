"""GGUF files of every family: llama.cpp computes and splits texts as transformers, or we refuse."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_world
import numpy as np
import pytest
import torch
from engine_world import make_adapter
from gguf_world import FAMILIES, TEMPLATE, TEXTS, byte_level, quantised, sentence_piece, tiny
from llama_world import needs_llama

from pfi.errors import BackboneError
from pfi.inference.llama.c import Model
from pfi.inference.llama.gguf import full_attention_context, write_adapter, write_backbone
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.gguf.export_vocabulary import export_vocabulary
from pfi.models.gguf.header import read_header
from pfi.models.gguf.vocabulary import PRE_TOKENIZERS

pytestmark = needs_llama
IDS = [5, 9, 80, 200, 31, 7, 7, 120, *range(30, 60)]


@torch.inference_mode()
def torch_logits(backbone: Backbone, ids: list[int] = IDS) -> np.ndarray:
    logits: np.ndarray = backbone.model(torch.tensor([ids])).logits[0].numpy()
    return logits


def llama_logits(path: Path, adapter: Path | None = None, ids: list[int] = IDS) -> np.ndarray:
    return llama_world.llama_logits(path, adapter, ids)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def tolerance(family: str) -> float:
    # llama.cpp looks Gemma's GELU up in a table of 16 bits.
    return 1e-3 if family == "gemma3_text" else 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_adapters_are_those_of_pytorch(tmp_path: Path, family: str) -> None:
    backbone, path, lora = tiny(family), tmp_path / "x.gguf", tmp_path / "lora.gguf"
    write_backbone(backbone, path, "f32")
    plain = torch_logits(backbone)
    assert distance(llama_logits(path), plain) < tolerance(family)
    adapter = make_adapter(backbone, 1, rank=3)
    write_adapter(adapter, backbone.model.config, lora)
    merged = torch_logits(backbone.with_adapters([adapter]))
    assert distance(merged, plain) > 0.1
    assert distance(llama_logits(path, lora), merged) < tolerance(family)


def test_layers_of_an_adapter_may_have_ranks_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, path, lora = tiny("llama"), tmp_path / "x.gguf", tmp_path / "lora.gguf"
    write_backbone(backbone, path, "f32")
    adapter = make_adapter(backbone, 1, rank=4)
    factors = {
        layer: (a[: 1 + at % 4], b[:, : 1 + at % 4])
        for at, (layer, (a, b)) in enumerate(adapter.factors().items())
    }
    weights = backbone.model.state_dict()
    merged = copy.deepcopy(backbone.model)
    with torch.no_grad():
        for layer, (a, b) in factors.items():
            merged.get_submodule(layer).weight.copy_(weights[f"{layer}.weight"] + b @ a)
    monkeypatch.setattr(Adapter, "factors", lambda _: factors)
    write_adapter(adapter, backbone.model.config, lora)
    exact = torch_logits(replace(backbone, model=merged))
    assert distance(llama_logits(path, lora), exact) < tolerance("llama")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [0, 1, 3, 8], ids=["F32", "F16", "Q4_1", "Q8_0"])
def test_pytorch_holds_exactly_the_weights_of_the_file(
    tmp_path: Path, family: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is written again in 32 bits: the same numbers, tensor by tensor."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    path, again = tmp_path / "x.gguf", tmp_path / "again.gguf"
    quantised(tiny(family), path, kind, monkeypatch)
    backbone = load_backbone(path, device="cpu")
    assert all(weight.dtype == torch.float32 for weight in backbone.model.parameters())
    assert not hasattr(backbone.model.config, "quantization_config")
    write_backbone(backbone, again, "f32")
    copies = {tensor.name: tensor.data for tensor in GGUFReader(again).tensors}
    tensors = GGUFReader(path).tensors
    assert {tensor.name for tensor in tensors} == copies.keys()
    for tensor in tensors:
        exact = dequantize(tensor.data, tensor.tensor_type).reshape(copies[tensor.name].shape)
        # Gemma's norms lose their 1 and get it again.
        offset = 1e-7 if family == "gemma3_text" and "norm" in tensor.name else 0.0
        np.testing.assert_allclose(copies[tensor.name], exact, rtol=0, atol=offset)


@pytest.mark.parametrize("kind", [3, 8], ids=["Q4_1", "Q8_0"])
def test_an_adapter_is_served_on_the_weights_that_it_was_trained_on(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the quantised file llama.cpp answers as torch over its dequantised weights."""
    path, lora = tmp_path / "x.gguf", tmp_path / "lora.gguf"
    original = tiny("llama")
    quantised(original, path, kind, monkeypatch)
    backbone = load_backbone(path, device="cpu")
    adapter = make_adapter(backbone, 1, rank=3)
    write_adapter(adapter, backbone.model.config, lora)
    exact = torch_logits(backbone.with_adapters([adapter]))
    other = torch_logits(original.with_adapters([adapter]))
    served = llama_logits(path, lora)

    def off(logits: np.ndarray) -> float:
        return float(np.sqrt(((served - logits) ** 2).mean() / (logits**2).mean()))

    # llama.cpp rounds what it multiplies with the weights to 8 bits.
    assert off(exact) < 0.1
    if kind == 3:  # of 4 bits the original weights are farther away than that
        assert off(other) > 2 * off(exact)


# Windows and rotations ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen2"])
def test_windows_end_the_context_where_llama_cpp_would_see_more(
    tmp_path: Path, family: str
) -> None:
    more = {"use_sliding_window": True, "max_window_layers": 0} if family == "qwen2" else {}
    backbone, path = tiny(family, sliding_window=16, **more), tmp_path / "x.gguf"
    assert full_attention_context(backbone.model.config) == 16
    write_backbone(backbone, path, "f32")
    assert read_header(path).count("context_length") == 16
    within, beyond = IDS[:16], IDS
    assert distance(llama_logits(path, ids=within), torch_logits(backbone, within)) < 5e-5
    # Beyond it they would differ: the limit is no smaller than it has to be.
    assert distance(llama_logits(path, ids=beyond), torch_logits(backbone, beyond)) > 1e-2
    assert load_backbone(path, device="cpu").max_length == 16


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
        ("llama", {"hidden_act": "gelu"}),
        ("gemma3_text", {"query_pre_attn_scalar": 7}),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, family: str, more: dict[str, Any]
) -> None:
    if "layer_types" in more:
        more = {**more, "num_hidden_layers": 4}
    if family == "phi3":
        more["rope_parameters"] |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
        more |= {"original_max_position_embeddings": 64}
    backbone = tiny(family, **more)
    with pytest.raises(BackboneError, match=r"rotary embedding|does not know"):
        write_backbone(backbone, tmp_path / "x.gguf", "f32")
    assert not [*tmp_path.iterdir()]


def test_llama_3s_table_is_read_as_the_settings_it_was_made_of(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    backbone, path = tiny("llama", rope_parameters=rope), tmp_path / "x.gguf"
    write_backbone(backbone, path, "f32")
    loaded = load_backbone(path, device="cpu")
    assert {name: loaded.model.config.rope_parameters[name] for name in rope} == rope
    assert distance(torch_logits(loaded), torch_logits(backbone)) < 1e-6


# Tokenizers --------------------------------------------------------------------------------


def check_tokens(tokenizer: Any, path: Path, *, composed: bool = False) -> None:
    """The tokenizer in the file splits as ours, in llama.cpp and read back."""
    backbone = tiny("llama", tokenizer)
    write_backbone(backbone, path, "f32")
    model, loaded = Model(path), load_backbone(path, device="cpu")
    framed = "<|turn|>user\nhi there<|end|>\n<|turn|>assistant\n"
    for text in [*TEXTS, framed]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert loaded.tokenizer(text, add_special_tokens=False).input_ids == ids, text
        assert loaded.tokenizer.decode(ids) == tokenizer.decode(ids)
        if not (composed and "e\u0301" in text):  # which llama.cpp does not compose
            assert model.tokenize(text) == ids, text
    assert loaded.prompt_ids(TEXTS[1]) == backbone.prompt_ids(TEXTS[1])
    assert loaded.prompter.end_ids >= backbone.prompter.end_ids
    model.close()


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_byte_level_tokenizers_split_as_llama_cpp(tmp_path: Path, pre: str) -> None:
    check_tokens(byte_level(pre), tmp_path / "x.gguf", composed=pre.startswith("qwen"))
    assert read_header(tmp_path / "x.gguf").text("tokenizer.ggml.pre") == pre


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": True, "template": TEMPLATE},  # Mistral, Llama 2
        {"prefix": False, "template": TEMPLATE},  # Gemma
        {"prefix": True, "template": TEMPLATE, "rstrip": True},  # Phi-3
    ],
)
def test_sentence_pieces_split_as_llama_cpp(tmp_path: Path, options: dict[str, Any]) -> None:
    check_tokens(sentence_piece(**options), tmp_path / "x.gguf")
    header = read_header(tmp_path / "x.gguf")
    assert header.text("tokenizer.ggml.model") == "llama"
    assert header.fields["tokenizer.ggml.add_space_prefix"] is options["prefix"]


def changed(tokenizer: Any, **parts: Any) -> dict[str, Any]:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for name, value in parts.items():
        if isinstance(value, dict) and isinstance(content[name], dict) and "type" not in value:
            value = {**content[name], **value}
        content[name] = value
    return content


def split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*parts]}


LEVEL = PRE_TOKENIZERS["gpt-2"]
PLAIN = {**LEVEL, "use_regex": False}
LLAMA3 = PRE_TOKENIZERS["llama-bpe"]["pretokenizers"][0]
FALCON3 = sequence(
    {"type": "Punctuation", "behavior": "Contiguous"},
    LEVEL,
    {"type": "Digits", "individual_digits": False},
    split("[0-9][0-9][0-9]"),
)


@pytest.mark.parametrize(
    ("why", "parts"),
    [
        ("Falcon 3, which llama.cpp's falcon3 splits otherwise", {"pre_tokenizer": FALCON3}),
        ("a part of Llama 3's pattern", {"pre_tokenizer": sequence(split(r"\p{N}{1,3}"), PLAIN)}),
        ("Qwen's with other digits", {"pre_tokenizer": sequence(split(r"\p{N}{1,2}"), PLAIN)}),
        ("a space before", {"pre_tokenizer": {**LEVEL, "add_prefix_space": True}}),
        ("one more part", {"pre_tokenizer": sequence(LLAMA3, LEVEL)}),
        ("matches removed", {"pre_tokenizer": sequence({**LLAMA3, "behavior": "Removed"}, PLAIN)}),
        ("Llama 3's, words not whole", {"pre_tokenizer": sequence(LLAMA3, PLAIN)}),
        ("words whole", {"model": {"ignore_merges": True}}),
        ("lower case", {"normalizer": {"type": "Lowercase"}}),
        ("nothing", {"pre_tokenizer": None}),
    ],
)
def test_byte_level_tokenizers_that_llama_cpp_does_not_know(why: str, parts: Any) -> None:
    export_vocabulary(changed(byte_level()), 448, "x", None)
    with pytest.raises(BackboneError, match="pfi export merged"):
        export_vocabulary(changed(byte_level(), **parts), 448, "x", None)


def test_sentence_pieces_that_llama_cpp_does_not_know() -> None:
    tokenizer = sentence_piece()
    good = changed(tokenizer)
    export_vocabulary(good, 448, "x", None)
    merges = good["model"]["merges"]
    made = [left + right for left, right in merges]
    later = next(at for at in range(1, len(made)) if made[at] == made[at - 1])
    lower = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}
    for parts in (
        {"model": {"merges": merges[:-20]}},  # llama.cpp would still make these tokens
        # Two ways to one token, which SentencePiece takes one after the other.
        {"model": {"merges": [merges[later], *merges[:later], *merges[later + 1 :]]}},
        {"normalizer": lower},
        {"pre_tokenizer": split(r"\d")},
    ):
        with pytest.raises(BackboneError, match="pfi export merged"):
            export_vocabulary(changed(tokenizer, **parts), 448, "x", None)


def test_spaces_around_control_tokens_of_a_template() -> None:
    parts = changed(byte_level())
    for one in parts["added_tokens"]:
        one["rstrip"] = True
    export_vocabulary(parts, 448, "x", None)
    with pytest.raises(BackboneError, match="spaces around its token"):
        export_vocabulary(parts, 448, "x", TEMPLATE)


# Templates, ends, sampling ------------------------------------------------------------------


def test_of_several_templates_the_default_one_is_written(tmp_path: Path) -> None:
    tokenizer, path = byte_level(), tmp_path / "x.gguf"
    other = TEMPLATE.replace("<|turn|>", "<|turn|>tool ")
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": other}
    write_backbone(tiny("llama", tokenizer), path, "f32")
    fields = read_header(path).fields
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["tokenizer.chat_template.tool_use"] == other
    assert load_backbone(path, device="cpu").tokenizer.chat_template == tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": TEMPLATE, "rag": TEMPLATE}
    path.unlink()
    with pytest.raises(BackboneError, match="none is called default"):
        write_backbone(tiny("llama", tokenizer), path, "f32")
    assert not [*tmp_path.iterdir()]


def test_all_tokens_that_end_an_answer_and_sampling_are_in_the_file(tmp_path: Path) -> None:
    from pfi.models.generation_config import GenerationSettings

    backbone, path = tiny("llama"), tmp_path / "x.gguf"
    turn = backbone.tokenizer.convert_tokens_to_ids("<|turn|>")
    settings = GenerationSettings(
        end_ids=frozenset({turn}), sample=True, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05
    )
    write_backbone(replace(backbone, generation=settings), path, "f32")
    loaded = load_backbone(path, device="cpu")
    assert loaded.prompter.end_ids == {backbone.tokenizer.eos_token_id, turn}
    assert replace(loaded.generation, end_ids=settings.end_ids) == settings
