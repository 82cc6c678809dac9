"""GGUF files as backbones: loaded, copied, merged and saved, or refused in a line."""

from __future__ import annotations

import copy
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_world import make_adapter
from gguf_world import TEMPLATE, byte_level, quantised, sentence_piece, tiny
from llama_world import needs_llama

from pfi.errors import BackboneError, ConfigError, PfiError
from pfi.models.backbone import load_backbone
from pfi.models.checking import check_backbone
from pfi.models.gguf.check import check_gguf
from pfi.models.gguf.header import TENSOR_TYPES, read_header
from pfi.models.prompter import gguf_path, load_prompter

pytestmark = needs_llama
Q4_1 = 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised Llama with a chat template."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    with pytest.MonkeyPatch.context() as patch:
        quantised(tiny("llama"), path, Q4_1, patch)
    return path


def test_the_file_and_a_folder_of_it_alone_are_backbones(file: Path, tmp_path: Path) -> None:
    backbone = load_backbone(file, device="cpu")
    assert backbone.max_length == 256 and not backbone.seq2seq
    assert backbone.tokenizer.chat_template == TEMPLATE
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("about")
    (folder / "model.gguf").symlink_to(file)  # as the hub's cache has it
    same = load_backbone(folder, device="cpu")
    assert gguf_path(str(folder)) == folder / "model.gguf"
    for one, other in zip(backbone.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert check_backbone(folder).prompt_ids("hi") == backbone.prompt_ids("hi")
    (folder / "other.gguf").symlink_to(file)
    with pytest.raises(BackboneError, match="holds 2 GGUF files"):
        load_prompter(folder)


def test_it_can_be_copied_merged_saved_and_halved(file: Path, tmp_path: Path) -> None:
    backbone = load_backbone(file, device="cpu")
    ids = torch.tensor([backbone.prompt_ids("a quick brown fox")])
    adapter = make_adapter(backbone, 1)
    merged = backbone.with_adapters([adapter])
    copied = copy.deepcopy(backbone.model)
    with torch.inference_mode():
        plain, changed = backbone.model(ids).logits, merged.model(ids).logits
        assert torch.equal(copied(ids).logits, plain)
        assert not torch.allclose(plain, changed, atol=0.1)
        assert copied.to(torch.bfloat16)(ids).logits.dtype == torch.bfloat16
    merged.model.save_pretrained(tmp_path)
    merged.tokenizer.save_pretrained(tmp_path)
    again = load_backbone(tmp_path, device="cpu")
    with torch.inference_mode():
        assert torch.equal(again.model(ids).logits, changed)
    assert again.prompt_ids("It's 2024, why?") == backbone.prompt_ids("It's 2024, why?")
    assert again.prompter.end_ids == backbone.prompter.end_ids


def test_a_model_of_tied_weights_stays_tied(tmp_path: Path) -> None:
    from pfi.inference.llama.gguf import write_backbone

    write_backbone(tiny("llama", tie_word_embeddings=True), tmp_path / "x.gguf", "f32")
    model: Any = load_backbone(tmp_path / "x.gguf", device="cpu").model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_the_table_of_types_is_ggmls() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for kind, (name, block, size) in TENSOR_TYPES.items():
        known = GGMLQuantizationType(kind)
        assert (known.name, GGML_QUANT_SIZES[known]) == (name, (block, size))


# What is refused ---------------------------------------------------------------------------


def patched(data: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for old, new in changes:
        assert data.count(old) >= 1 and len(old) == len(new), old
        data = data.replace(old, new, 1)
    return data


def entry(name: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name


def field(data: bytes, key: bytes, form: str, value: Any) -> bytes:
    """The file with another number behind a key and its type."""
    at = data.index(entry(key)) + 8 + len(key) + 4
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def tensor(data: bytes, name: bytes, skip: int, form: str, value: int) -> bytes:
    """The file with another number ``skip`` bytes behind a tensor's name."""
    at = data.index(entry(name)) + 8 + len(name) + skip
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def removed(key: bytes) -> Callable[[bytes], bytes]:
    return lambda data: patched(data, (key, key[:-1] + b"#"))


LAST = b"blk.2.ffn_down.weight"
MATRIX = 4 + 16  # the number of dimensions, and two of them
CASES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("does not begin", lambda data: b"GGML" + data[4:]),
    ("does not begin", lambda data: b""),
    ("ends too early", lambda data: data[:6]),
    ("big-endian", lambda data: data[:4] + data[4:8][::-1] + data[8:]),
    ("its version is 1", lambda data: data[:4] + struct.pack("<I", 1) + data[8:]),
    ("its version is 77", lambda data: data[:4] + struct.pack("<I", 77) + data[8:]),
    ("do not fit", lambda data: data[:8] + struct.pack("<Q", 1 << 62) + data[16:]),
    ("do not fit", lambda data: data[:16] + struct.pack("<Q", 1 << 40) + data[24:]),
    ("bytes long", lambda data: data[:24] + struct.pack("<Q", 1 << 60) + data[32:]),
    ("beyond the end", lambda data: data[:-64]),
    ("beyond the end", lambda data: tensor(data, LAST, MATRIX + 4, "<Q", 1 << 50)),
    ("is not aligned", lambda data: tensor(data, LAST, MATRIX + 4, "<Q", 3)),
    ("overlaps", lambda data: tensor(data, LAST, MATRIX + 4, "<Q", 0)),
    ("type 99, which is not known", lambda data: tensor(data, LAST, MATRIX, "<I", 99)),
    ("cannot be Q4_K", lambda data: tensor(data, LAST, MATRIX, "<I", 12)),
    ("has 9 dimensions", lambda data: tensor(data, LAST, 0, "<I", 9)),
    ("cannot be Q4_1", lambda data: tensor(data, LAST, 4, "<Q", 0)),
    ("beyond the end", lambda data: tensor(data, LAST, 4, "<Q", 1 << 62)),
    ("there twice", lambda data: patched(data, (b"blk.1.ffn_up.w", b"blk.0.ffn_up.w"))),
    ("there twice", lambda data: patched(data, (b"attention.key_length", b"attention.head_count"))),
    ("no UTF-8", lambda data: patched(data, (b"general.name", b"general.na\xffe"))),
    ("type", lambda data: patched(data, (b"llama.block_count\x04", b"llama.block_count\x63"))),
    ("4294967295", lambda data: field(data, b"llama.block_count", "<I", 0xFFFFFFFF)),
    ("blocks are not in it", lambda data: field(data, b"llama.block_count", "<I", 4000)),
    ("is missing", lambda data: field(data, b"llama.block_count", "<I", 4)),
    ("is none of a llama model", lambda data: field(data, b"llama.block_count", "<I", 2)),
    ("has shape", lambda data: field(data, b"llama.embedding_length", "<I", 128)),
    ("attention.head_count is 0", lambda data: field(data, b"llama.attention.head_count", "<I", 0)),
    ("has shape|not that", lambda data: field(data, b"llama.attention.key_length", "<I", 8)),
    ("no positive number", lambda data: field(data, b"llama.rope.freq_base", "<f", float("nan"))),
    ("a part of each head", lambda data: field(data, b"llama.rope.dimension_count", "<I", 8)),
    ("which is no token", lambda data: field(data, b"tokenizer.ggml.eos_token_id", "<I", 9999)),
    ("context_length is missing", removed(b"llama.context_length")),
    ("eos_token_id is missing", removed(b"tokenizer.ggml.eos_token_id")),
    ("ggml.tokens is missing", removed(b"tokenizer.ggml.tokens")),
    ("ggml.merges is missing", removed(b"tokenizer.ggml.merges")),
    ("ggml.model is missing", removed(b"tokenizer.ggml.model")),
    ("general.architecture is missing", removed(b"general.architecture")),
    ("how its tokenizer splits", removed(b"tokenizer.ggml.pre")),
    ("kind zamba are not supported", lambda data: data.replace(entry(b"llama"), entry(b"zamba"))),
    ("pre-tokenizer gpt-9 is not", lambda data: patched(data, (entry(b"gpt-2"), entry(b"gpt-9")))),
    ("of the kind bert", lambda data: patched(data, (entry(b"gpt2"), entry(b"bert")))),
    ("tensor output_norm.weight is missing|none of", removed(b"output_norm.weight")),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change"), CASES)
def test_damaged_and_lying_files_are_refused(
    file: Path, tmp_path: Path, what: str, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(change(file.read_bytes()))
    for use in (check_gguf, check_backbone, load_backbone):
        with pytest.raises(BackboneError, match=what) as caught:
            use(path)
        message = str(caught.value)
        assert "GGUF" in message and "bad.gguf" in message and "\n" not in message
        assert caught.value.fix


def test_files_that_are_no_files(file: Path, tmp_path: Path) -> None:
    pipe, gone, dangling = (tmp_path / f"{name}.gguf" for name in ("pipe", "gone", "dangling"))
    os.mkfifo(pipe)
    dangling.symlink_to(gone)
    to_pipe = tmp_path / "link.gguf"
    to_pipe.symlink_to(pipe)
    for path in (pipe, gone, dangling, to_pipe):
        begin = time.monotonic()
        with pytest.raises(BackboneError, match="GGUF"):
            check_backbone(path)
        assert time.monotonic() - begin < 5  # nobody waits for what writes into a pipe
    part = tmp_path / "big-00001-of-00003.gguf"
    part.write_bytes(file.read_bytes())
    with pytest.raises(BackboneError, match=r"one of several parts.*merge"):
        check_backbone(part)
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(BackboneError, match=r"config\.json"):
        check_backbone(folder)


def test_an_adapter_is_no_model(file: Path, tmp_path: Path) -> None:
    from pfi.inference.llama.gguf import write_adapter

    backbone = load_backbone(file, device="cpu")
    write_adapter(make_adapter(backbone, 1), backbone.model.config, tmp_path / "lora.gguf")
    with pytest.raises(BackboneError, match="it holds an adapter"):
        check_backbone(tmp_path / "lora.gguf")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from pfi.inference.llama.gguf import write_backbone

    backbone = tiny("llama")
    with torch.no_grad():
        backbone.model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    write_backbone(backbone, tmp_path / "x.gguf", "f32")
    check_gguf(tmp_path / "x.gguf")
    with pytest.raises(BackboneError, match=r"blk.1.ffn_up.weight has values that are not finite"):
        load_backbone(tmp_path / "x.gguf", device="cpu")


def test_a_template_that_never_ends_is_refused(tmp_path: Path) -> None:
    from pfi.inference.llama.gguf import write_backbone

    endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    backbone = tiny("llama", byte_level(template=TEMPLATE))
    backbone.prompter.prompt_ids("hi")
    backbone.tokenizer.chat_template = endless
    write_backbone(backbone, tmp_path / "x.gguf", "f32")
    begin = time.monotonic()
    with pytest.raises(BackboneError, match="template"):
        check_backbone(tmp_path / "x.gguf")
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("tokenizer", ["byte_level", "sentence_piece"])
def test_no_damage_ends_in_anything_but_a_refusal(tmp_path: Path, tokenizer: str) -> None:
    """Cut anywhere, and with numbers and letters of the head changed at random."""
    from pfi.inference.llama.gguf import write_backbone

    source, path = tmp_path / "x.gguf", tmp_path / "bad.gguf"
    made = byte_level() if tokenizer == "byte_level" else sentence_piece()
    write_backbone(tiny("llama", made, num_hidden_layers=1), source, "f32")
    data = source.read_bytes()
    head = min(tensor.offset for tensor in read_header(source).tensors.values())
    draw = random.Random(3)

    def attempt(changed: bytes) -> bool:
        path.write_bytes(changed)
        read_header.__globals__["_read"].cache_clear()
        try:
            check_gguf(path)
        except PfiError as error:
            assert "\n" not in str(error)
            return False
        return True

    assert attempt(data)
    for end in [*range(0, 200, 7), *(draw.randrange(len(data)) for _ in range(60))]:
        assert not attempt(data[:end])
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            at = draw.choice([draw.randrange(24), draw.randrange(head), draw.randrange(head)])
            value = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
            width = draw.choice([1, 1, 4, 8])
            changed[at : at + width] = bytes([value]) * min(width, len(data) - at)
        refused += not attempt(bytes(changed))
    assert refused > 50


# Engines -----------------------------------------------------------------------------------


def test_llama_cpp_uses_the_file_as_it_is(file: Path, tmp_path: Path) -> None:
    from pfi.inference.engine import AdapterRef, Request, Sampling, text_of
    from pfi.profile.answer.engines import EngineChoice, make_engine
    from pfi.profile.config import HomeConfig

    config = HomeConfig(backbone=str(file), engine="llama.cpp")
    choice = EngineChoice.of(config)
    assert choice.bits == "f32"  # the file type that the helper states; its matrices are Q4_1
    backbone = load_backbone(file, device="cpu")
    adapter = make_adapter(backbone, 1)
    ids = backbone.prompt_ids("a quick brown fox")
    with make_engine(choice, tmp_path / "models", rows=1) as engine:
        assert not (tmp_path / "models").exists()
        assert engine.prompter.prompt_ids("a quick brown fox") == ids
        plain = text_of(engine.generate(Request(ids, None, Sampling(8), "me")))
        ref = AdapterRef("one", lambda: adapter)
        assert plain != text_of(engine.generate(Request(ids, ref, Sampling(8), "me")))
    other = config.model_copy(update={"bits": "q4_k_m"})
    with pytest.raises(ConfigError, match="as it is, not as q4_k_m"):
        EngineChoice.of(other)
    torch_choice = EngineChoice.of(config.model_copy(update={"engine": "torch", "bits": "bf16"}))
    assert (torch_choice.name, torch_choice.bits) == ("torch", "bf16")
