"""GGUF files: what llama.cpp computes from them against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_world
import numpy as np
import pytest
import torch
from engine_world import make_adapter, sharpen
from llama_world import needs_llama

from conftest import save_tokenizer
from pfi.errors import BackboneError, ConfigError
from pfi.inference.llama.c import Model
from pfi.inference.llama.gguf import BITS, bits_of, write_adapter, write_backbone
from pfi.inference.llama.gguf_cache import backbone_file, fingerprint
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.prompter import Prompter

pytestmark = needs_llama
Folder = Callable[[str], Path]
IDS = [5, 9, 80, 200, 31, 7, 7, 120]
TEXTS = [
    "a quick brown fox, it's 1234 books\n\n  and a café \u2013 naïve \U0001f98a",
    "Hello  world 12,345.67 don't <|end|> </s>",
    "",
    " ",
]


def wide(family: str, tmp_path: Path, **more: Any) -> Backbone:
    """A model whose rows are whole blocks of the K types, with several query heads a key head."""
    import transformers as t

    size = save_tokenizer(tmp_path)
    shape = {
        "vocab_size": size,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 1,
        **more,
    }
    torch.manual_seed(0)
    model: Any
    if family == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**shape))
    else:
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**shape))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    tokenizer = t.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    return Backbone("wide", model.eval(), tokenizer, False, 256)


@torch.inference_mode()
def torch_logits(backbone: Backbone, ids: list[int] = IDS) -> np.ndarray:
    found: np.ndarray = backbone.model(torch.tensor([ids])).logits[0].numpy()
    return found


def llama_logits(path: Path, adapter: Path | None = None, ids: list[int] = IDS) -> np.ndarray:
    return llama_world.llama_logits(path, adapter, ids)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_are_those_of_pytorch(tmp_path: Path, family: str) -> None:
    backbone, path = sharpen(wide(family, tmp_path)), tmp_path / "x.gguf"
    write_backbone(backbone, path, "f32")
    expected = torch_logits(backbone)
    assert np.abs(llama_logits(path) - expected).max() < 1e-4 * np.abs(expected).max()
    adapter, lora = make_adapter(backbone, 1, rank=3), tmp_path / "lora.gguf"
    config = backbone.model.config
    merged = torch_logits(backbone.with_adapters([adapter.scaled(0.7)]))
    assert np.abs(merged - expected).max() > 0.1
    write_adapter(adapter.scaled(0.7), config, lora)
    assert np.abs(llama_logits(path, lora) - merged).max() < 1e-4 * np.abs(merged).max()
    write_adapter(adapter.scaled(0.7), config, lora, half=True)
    assert np.abs(llama_logits(path, lora) - merged).max() < 1e-2 * np.abs(merged).max()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_stretched_rotations_are_those_of_pytorch(tmp_path: Path, rope: dict[str, Any]) -> None:
    ids = [*range(3, 203)]
    plain = torch_logits(sharpen(wide("llama", tmp_path)), ids)
    backbone = sharpen(wide("llama", tmp_path, rope_parameters={"rope_theta": 500.0, **rope}))
    path, expected = tmp_path / "x.gguf", torch_logits(backbone, ids)
    assert np.abs(plain - expected).max() > 0.1
    write_backbone(backbone, path, "f32")
    assert np.abs(llama_logits(path, ids=ids) - expected).max() < 1e-3 * np.abs(expected).max()


def test_quantised_weights_are_near_and_llama_reads_them_so(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    backbone = wide("llama", tmp_path)
    state = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    worst = {"F16": 1e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q4_K": 0.12}
    seen: dict[str, set[str]] = {}
    for bits in ("f16", "q8_0", "q4_k_m"):
        path = tmp_path / f"{bits}.gguf"
        write_backbone(backbone, path, bits_of(bits))
        write_backbone(backbone, tmp_path / "f32.gguf", "f32")
        whole = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "f32.gguf").tensors}
        read = {}
        for tensor in GGUFReader(path).tensors:
            kind = tensor.tensor_type
            values = dequantize(tensor.data, kind).astype(np.float32)
            exact = whole[tensor.name].data.reshape(values.shape)
            read[tensor.name] = values
            error = _distance(values, exact)
            assert error <= worst.get(kind.name, 0.0), (tensor.name, kind.name)
            seen.setdefault(bits, set()).add(kind.name)
            if bits == "q4_k_m":
                fine = tensor.name in (
                    "output.weight",
                    "blk.2.attn_v.weight",
                    "blk.2.ffn_down.weight",
                )
                wanted = "F32" if values.ndim == 1 else "Q6_K" if fine else "Q4_K"
                assert kind.name == wanted, tensor.name
        # A model of the very weights that numpy reads from the file says what llama.cpp says.
        plain = tmp_path / "plain.gguf"
        _with_weights(backbone, read)
        write_backbone(backbone, plain, "f32")
        expected = torch_logits(backbone)
        backbone.model.load_state_dict(state)
        exact = torch_logits(backbone)
        found = llama_logits(path)
        scale = np.abs(expected).max()
        assert np.abs(llama_logits(plain) - expected).max() < 1e-4 * scale
        # llama.cpp rounds what it multiplies with them to 8 bits, too.
        assert _distance(found, expected) < 0.02
        assert _distance(found, exact) > 0
    assert seen == {
        "f16": {"F32", "F16"},
        "q8_0": {"F32", "Q8_0"},
        "q4_k_m": {"F32", "Q6_K", "Q4_K"},
    }


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean squared difference, as a share of the expected values'."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def _with_weights(backbone: Backbone, read: dict[str, np.ndarray]) -> None:
    """Put weights read from a file into the model, queries and keys turned back."""
    from pfi.models.gguf.families import BY_MODEL_TYPE

    state, config = {}, backbone.model.config
    family = BY_MODEL_TYPE[config.model_type]
    for key in backbone.model.state_dict():
        layer, _, kind = key.rpartition(".")
        values = torch.from_numpy(read[f"{family.tensor_name(layer)}.{kind}"].copy())
        if layer.endswith((".q_proj", ".k_proj")):
            heads = config.num_attention_heads
            heads = heads if layer.endswith(".q_proj") else config.num_key_value_heads
            turned = values.reshape(heads, -1, 2, values.shape[-1])
            values = turned.transpose(1, 2).reshape(values.shape)
        state[key] = values
    backbone.model.load_state_dict(state)


def test_rows_that_are_no_whole_blocks_get_finer_types(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    backbone, path = load_backbone(backbone_folder("llama")), tmp_path / "x.gguf"
    write_backbone(backbone, path, "q4_k_m")  # rows of 32 and 48 values
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q5_0" and kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    found, expected = llama_logits(path), torch_logits(backbone)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["embedded", "llama", "qwen2"])
def test_the_tokenizer_in_the_file_is_ours(
    backbone_folder: Folder, tmp_path: Path, family: str
) -> None:
    backbone = load_backbone(family if family == "embedded" else backbone_folder(family))
    path = tmp_path / "x.gguf"
    write_backbone(backbone, path, "f16")
    model = Model(path)
    for text in TEXTS:
        ids = backbone.prompter.token_ids(text)
        assert model.detokenize(ids) == text
        assert model.tokenize(text) == backbone.tokenizer(text, add_special_tokens=False).input_ids
    model.close()


def test_plain_llama_cpp_answers_as_the_merged_weights(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    """By the wheel's own server, which loads the adapter's file as any tool does."""
    import httpx
    import xllamacpp

    from pfi.inference.generation import decode
    from pfi.inference.torch.sampling import greedy

    backbone = sharpen(load_backbone(backbone_folder("llama")))
    adapter, ids = make_adapter(backbone, 3), backbone.prompt_ids("a quick brown fox")
    write_backbone(backbone, tmp_path / "x.gguf", "f32")
    write_adapter(adapter, backbone.model.config, tmp_path / "lora.gguf")
    write_backbone(backbone.with_adapters([adapter]), tmp_path / "merged.gguf", "f32")
    with torch.inference_mode():
        expected = decode(backbone.with_adapters([adapter]), [ids], 12, greedy, [0], None)[0]
        assert expected != decode(backbone, [ids], 12, greedy, [0], None)[0]
    for file, lora in (("x.gguf", True), ("merged.gguf", False)):
        params = xllamacpp.CommonParams()
        params.model.path = str(tmp_path / file)
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 256, 1, -1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if lora:
            params.lora_adapters = [
                xllamacpp.CommonAdapterLoraInfo(str(tmp_path / "lora.gguf"), 1.0)
            ]
        asked = {"prompt": ids, "n_predict": 12, "temperature": 0, "return_tokens": True}
        server = xllamacpp.Server(params)
        found = httpx.post(f"{server.listening_address}/completion", json=asked, timeout=60).json()
        del server
        assert found["tokens"][: len(expected)] == expected


def test_other_families_and_tokenizers_are_refused(backbone_folder: Folder, tmp_path: Path) -> None:
    for family in ("gpt2", "t5"):
        with pytest.raises(BackboneError, match="cannot be written as GGUF"):
            write_backbone(load_backbone(backbone_folder(family)), tmp_path / "x.gguf")
    backbone = load_backbone(backbone_folder("llama"))
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, "a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    other = Backbone("x", backbone.model, tokenizer, False, 64)
    with pytest.raises(BackboneError, match="WordLevel, not BPE"):
        write_backbone(other, tmp_path / "x.gguf")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ConfigError, match="q4_k_m"):
        bits_of("q3")
    assert [bits_of(bits.upper()) for bits in BITS] == [*BITS]


def test_a_write_that_stops_leaves_nothing_and_files_name_no_folder(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = backbone_folder("llama")
    backbone, path = load_backbone(folder), tmp_path / "x.gguf"

    def stop(*_: object) -> None:
        assert len([*tmp_path.iterdir()]) == 1  # half a file, under another name
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr("gguf.GGUFWriter.write_tensors_to_file", stop)
        with pytest.raises(KeyboardInterrupt):
            write_backbone(backbone, path, "f32")
    assert not [*tmp_path.iterdir()]
    write_backbone(backbone, path, "f32")
    lora = tmp_path / "lora.gguf"
    write_adapter(make_adapter(backbone, 1), backbone.model.config, lora)
    for file in (path, lora):
        data = file.read_bytes()
        assert folder.name.encode() not in data and str(tmp_path).encode() not in data


def test_the_cache_makes_a_file_once_for_any_profile(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = backbone_folder("llama"), []
    first = backbone_file(str(folder), tmp_path, "f16", on_progress=lambda *at: calls.append(at))
    assert calls[-1][0] == calls[-1][1] == len(calls)
    changed = first.stat().st_mtime_ns
    assert backbone_file(str(folder), tmp_path, "f16") == first
    assert first.stat().st_mtime_ns == changed
    assert backbone_file(str(folder), tmp_path, "f32") != first
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert fingerprint(str(copy)) == fingerprint(str(folder))
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert fingerprint(str(copy)) != fingerprint(str(folder))


def test_a_prompter_needs_no_weights(tmp_path: Path, backbone_folder: Folder) -> None:
    import shutil

    from pfi.models.prompter import load_prompter

    folder = tmp_path / "bare"
    shutil.copytree(backbone_folder("qwen2"), folder)
    (folder / "model.safetensors").unlink()
    assert isinstance(load_prompter(folder), Prompter)
