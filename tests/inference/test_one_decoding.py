"""What is measured is what is served: ends, contexts and batches in all paths of decoding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_world import read, sharpen, transformers_greedy, whole
from llama_world import make_engine, make_world, needs_llama

from pfi.inference.answering import target_scores
from pfi.inference.engine import Request, Sampling
from pfi.inference.generation import decode, generate
from pfi.inference.torch.engine import TorchEngine
from pfi.inference.torch.sampling import greedy
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.generation_config import GenerationSettings
from pfi.models.prompter import Prompter

Folder = Callable[[str], Path]
PROMPTS = ["1", "a quick brown fox jumps over the lazy dog", "good film", "score this title " * 9]
NEW = 10
SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}


def encoder_decoder(family: str, tokenizer: Any, positions: int = 200) -> Backbone:
    """A random encoder-decoder model with absolute positions."""
    import transformers as t

    torch.manual_seed(2)
    config = t.AutoConfig.for_model(
        family, vocab_size=len(tokenizer), max_position_embeddings=positions, **SMALL
    )
    model = t.AutoModelForSeq2SeqLM.from_config(config).eval()
    return Backbone(family, model, tokenizer, True, positions)


def reference(backbone: Backbone, prompt: str, new: int = NEW) -> str:
    row = transformers_greedy(backbone, prompt, new)
    ends = [at for at, token in enumerate(row) if token in backbone.end_ids]
    return whole(backbone.prompter.text(row[: min(ends, default=new)])).strip()


def served(backbone: Backbone, prompts: Sequence[str] = PROMPTS, new: int = NEW) -> list[str]:
    with TorchEngine(backbone) as engine:
        asked = [Request(backbone.prompt_ids(p), None, Sampling(new), "me") for p in prompts]
        return [read(stream)[0].strip() for stream in engine.generate_all(asked)]


@pytest.mark.parametrize(
    "family", ["bart", "mbart", "pegasus", "marian", "blenderbot", "blenderbot-small", "m2m_100"]
)
def test_answers_of_encoder_decoders_do_not_depend_on_the_batch(
    backbone_folder: Folder, family: str
) -> None:
    tokenizer = load_backbone(backbone_folder("llama")).tokenizer
    backbone = encoder_decoder(family, tokenizer)
    expected = [reference(backbone, prompt) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    assert generate(backbone, PROMPTS, NEW) == expected
    assert [generate(backbone, [prompt], NEW)[0] for prompt in PROMPTS] == expected
    assert served(backbone) == expected


def test_prompts_are_cut_to_an_encoder_decoders_positions(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "blenderbot"
    tokenizer = load_backbone(backbone_folder("llama")).tokenizer
    encoder_decoder("blenderbot", tokenizer, 128).model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    backbone = load_backbone(folder)
    assert backbone.max_length == 128
    long = "a quick brown fox " * 100
    assert len(backbone.prompt_ids(long)) == 128
    assert generate(backbone, [long], 4) == [generate(backbone, [long, "1"], 4)[0]]
    generate(backbone, ["1"], 500)  # the answer has as many positions
    assert served(backbone, [long], 4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_every_way_of_decoding_ends_at_every_end_token(
    backbone_folder: Folder, tmp_path: Path, family: str
) -> None:
    folder = shutil.copytree(backbone_folder(family), tmp_path / "model")
    backbone = sharpen(load_backbone(folder))
    rows = [decode(backbone, [backbone.prompt_ids(p)], NEW, greedy, [0], None)[0] for p in PROMPTS]
    ends = sorted({row[3] for row in rows if len(row) > 3})
    file = folder / "generation_config.json"
    values = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**values, "eos_token_id": [1, *ends]}), "utf-8")
    backbone = sharpen(load_backbone(folder))
    expected = [reference(backbone, prompt) for prompt in PROMPTS]
    longer = [whole(backbone.prompter.text(row)).strip() for row in rows]
    assert expected != longer
    assert generate(backbone, PROMPTS, NEW) == expected == served(backbone)


@needs_llama
def test_llama_cpp_ends_at_every_end_token(backbone_folder: Folder) -> None:
    world, path = make_world(backbone_folder("llama"), "ending", adapters=0)
    prompt = world.backbone.prompt_ids("a quick brown fox")
    tokens = world.tokens(prompt, None, 12)
    at = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    world.backbone = replace(world.backbone, generation=GenerationSettings(frozenset({tokens[at]})))
    with make_engine(world, path) as engine:
        _, finish, count = read(engine.generate(Request(prompt, None, Sampling(12))))
    assert (finish, count) == ("stop", at)


def test_other_settings_of_generation_config_change_nothing_anywhere(
    backbone_folder: Folder,
) -> None:
    import transformers as t

    plain = load_backbone(backbone_folder("llama"))
    torch.manual_seed(3)
    config = t.Gemma2Config(
        vocab_size=len(plain.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model: Any = t.Gemma2ForCausalLM(config).eval()
    backbone = replace(plain, model=model)
    before = generate(backbone, PROMPTS, NEW)
    model.generation_config.repetition_penalty = 1.8
    model.generation_config.min_length = 200
    model.generation_config.no_repeat_ngram_size = 1
    assert generate(backbone, PROMPTS, NEW) == before == served(backbone)


def test_any_token_pads_where_the_models_own_has_no_embedding(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "padded"
    backbone = load_backbone(backbone_folder("llama"))
    tokenizer: Any = load_backbone(backbone_folder("llama")).tokenizer
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    backbone.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    padded = sharpen(load_backbone(folder))
    assert padded.tokenizer.pad_token_id >= padded.model.config.vocab_size > padded.pad_id
    expected = generate(sharpen(backbone), PROMPTS, NEW)
    assert generate(padded, PROMPTS, NEW) == expected == served(padded)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_row_ends_where_the_context_does(backbone_folder: Folder, family: str) -> None:
    backbone = sharpen(load_backbone(backbone_folder(family)))
    short = replace(backbone, max_length=48, generation=GenerationSettings())
    prompts = [short.prompt_ids("a quick brown fox " * 50, n) for n in (40, 47, 12)]
    rows = decode(short, prompts, 30, greedy, [0, 1, 2], None)
    assert [len(row) for row in rows] <= [8, 1, 30]
    alone = [decode(short, [p], 30, greedy, [0], None)[0] for p in prompts]
    assert rows == alone
    assert len(generate(short, ["a quick brown fox " * 50], 500)) == 1


def test_a_long_target_is_scored_by_its_beginning(backbone_folder: Folder) -> None:
    backbone = replace(load_backbone(backbone_folder("llama")), max_length=64)
    prompt = backbone.prompt_ids("a quick brown fox")
    with TorchEngine(backbone) as engine:
        request = Request(prompt)
        short, long = target_scores(engine, [request] * 2, ["good dog", "good dog " * 90])
    assert short < 0 and long < 0


def test_a_thought_takes_nothing_of_an_answers_length(backbone_folder: Folder) -> None:
    import copy

    backbone = sharpen(load_backbone(backbone_folder("llama")))
    tokenizer: Any = copy.deepcopy(backbone.tokenizer)
    prompt = backbone.prompt_ids("a quick brown fox")
    written = decode(backbone, [prompt], 30, greedy, [0], None)[0]
    end = next(at for at in range(4, 20) if written[at] not in written[:at])
    # The model is made to end its thought with a token that it writes anyway.
    mark = tokenizer.convert_ids_to_tokens(written[end])
    tokenizer.chat_template = "{{ messages[0].content }}<think>"

    class Marked(Prompter):
        thoughts = (("<think>", "</think>"),)
        thought_ids: ClassVar[dict[int, str]] = {written[end]: "</think>"}  # type: ignore[misc]

        def in_thought(self, prompt: Sequence[int]) -> bool:
            return True

    with TorchEngine(backbone) as engine:
        engine.prompter = Marked("x", tokenizer, False, 512, thinking=True)
        pieces = list(engine.generate(Request(prompt, None, Sampling(5))))
        engine.prompter = backbone.prompter
        plain = list(engine.generate(Request(prompt, None, Sampling(5))))
    assert mark and sum(piece.tokens for piece in plain) == 5
    assert sum(piece.tokens for piece in pieces) == end + 1 + 5
    assert pieces[-1].finish == "length"
    said = backbone.prompter.text(written[end + 1 : end + 6])
    assert "".join(piece.text for piece in pieces) == said.rstrip("\ufffd").lstrip()
