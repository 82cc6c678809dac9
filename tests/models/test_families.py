"""Tiny models of many kinds: as transformers and peft have it, or refused in a line."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pfi.errors import BackboneError, ConfigError, PfiError
from pfi.inference.engine import AdapterRef, Request, Sampling
from pfi.inference.generation import generate
from pfi.inference.torch.engine import TorchEngine
from pfi.models import families as rules
from pfi.models import probe
from pfi.models.adapters import Adapter, AdapterConfig, lora_config
from pfi.models.attention import use_row_attention
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank import bank as bank_module
from pfi.models.bank.bank import AdapterBank
from pfi.models.bank.packing import Piece, Row, target_losses
from pfi.models.prompter import load_prompter
from pfi.models.scoring import mean_losses, score_labels

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))
matrix: ModuleType = importlib.import_module("families")

Folder = Callable[[str], Path]
#: Of each kind a family, and the columns that once were wrong for it.
FAST = {
    "falcon": ("ask", "bf16"),
    "opt": ("train", "adapted"),
    "mistral-window": ("last_n",),
    "phi3-longrope": ("train", "generate"),
    "qwen3_moe": ("train", "adapted"),
    "lfm2": ("score",),
    "falcon_h1": ("ask", "train"),
    "gemma3": ("load", "last_n"),
    "bart": ("generate",),
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """``family("falcon")`` is the folder of a tiny random model of the matrix."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            made[name] = matrix.write_model(matrix.FAMILIES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return build


def row_of(backbone: Backbone, words: str, targets: int = 3) -> Piece:
    ids = backbone.token_ids(words)
    return Piece(ids, targets)


def plain_loss(backbone: Backbone, piece: Piece) -> list[float]:
    """Losses by one pass of the model over this piece alone."""
    model: Any = backbone.model
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([piece.ids]), use_cache=False).logits[0]
    chosen = logits.float().log_softmax(-1)[:-1].gather(1, torch.tensor(piece.ids)[1:, None])
    return (-chosen[-piece.targets :, 0]).tolist()


@pytest.mark.parametrize("name", FAST)
def test_a_family_of_each_kind_is_right(name: str) -> None:
    results = matrix.check(name, FAST[name])
    assert results == dict.fromkeys(FAST[name], "ok")


@pytest.mark.slow
@pytest.mark.parametrize("name", matrix.FAMILIES)
def test_every_family_is_right_or_refused(name: str) -> None:
    results = matrix.check(name)
    assert not matrix.faults({name: results})
    for result in results.values():
        assert "\n" not in result
    kind = matrix.FAMILIES[name].kind
    assert results["load"].startswith("refused" if kind == "encoder" else ("ok", "refused"))


def test_the_matrix_counts_what_is_wrong_and_groups_what_is_alike() -> None:
    rows = {
        "llama": {"load": "ok", "train": "ok"},
        "qwen2": {"load": "ok", "train": "ok"},
        "bert": {"load": "refused: bert: it is an encoder. use another."},
        "opt": {"load": "ok", "train": "wrong: losses differ by 2"},
        "mpt": {"load": "ok", "train": "traceback: KeyError: x"},
    }
    assert matrix.faults(rows) == [
        "opt train: wrong: losses differ by 2",
        "mpt train: traceback: KeyError: x",
    ]
    text = matrix.table(rows)
    assert "| dense | llama, qwen2 | ok | ok |" in text
    assert "| bert | it is an encoder. use another. |" in text


# Refused at load ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, f in matrix.FAMILIES.items() if f.kind == "encoder"])
def test_encoders_are_refused_before_anything_is_read(family: Folder, name: str) -> None:
    folder = family(name)
    (folder / "model.safetensors").unlink()
    for load in (load_prompter, load_backbone):
        with pytest.raises(BackboneError, match=r"cannot write|not supported") as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)


def test_an_encoder_that_was_made_a_decoder_is_none(family: Folder) -> None:
    prompter = load_prompter(str(family("roberta-decoder")))
    assert prompter.max_length == 512 - 4  # positions begin behind the padding token


# Context ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "length"),
    [
        *(("gemma3", 512), ("blenderbot", 128), ("t5", 1024), ("mamba", 1024), ("gpt2", 512)),
        *(("led", 256), ("t5gemma", 512), ("mpt", 512), ("bart", 512)),
    ],
)
def test_the_context_is_what_the_configuration_states(name: str, length: int) -> None:
    import transformers

    made = matrix.FAMILIES[name]
    config = getattr(transformers, made.model).config_class(**made.sizes)
    assert rules.context_length(config) == length
    if name == "t5":
        config.n_positions = 512  # as in the folders of Flan-T5, whose positions are relative
        assert rules.context_length(config) == 1024


def test_prompts_are_cut_to_the_positions_of_an_encoder_decoder_model(family: Folder) -> None:
    backbone = load_backbone(str(family("blenderbot")))
    assert len(backbone.prompt_ids("rain " * 300)) == 128
    assert len(generate(backbone, ["rain " * 300], 4)) == 1


def test_a_padding_token_that_the_model_lacks_is_replaced(family: Folder) -> None:
    backbone = load_backbone(str(family("llama")))
    model: Any = backbone.model
    known = len(backbone.tokenizer)
    model.resize_token_embeddings(known)
    rows = ["a", "a much longer prompt"]
    expected = generate(backbone, rows, 4)
    backbone.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert backbone.tokenizer.pad_token_id == known > backbone.pad_id
    assert generate(backbone, rows, 4) == expected


# Attention, windows, rotary frequencies ------------------------------------------------------


def test_only_known_families_use_our_attention(family: Folder) -> None:
    model: Any = load_backbone(str(family("falcon"))).model
    before = model.config._attn_implementation
    use_row_attention(model)
    assert model.config._attn_implementation == before == "sdpa"
    bank = AdapterBank(load_backbone(str(family("falcon"))), AdapterConfig(rank=2), 1,
                       precision="bfloat16")  # fmt: skip
    assert bank.backbone.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["mistral-window", "phi3-longrope", "phimoe-longrope"])
def test_a_row_beyond_the_border_changes_no_other_rows_losses(family: Folder, name: str) -> None:
    backbone = load_backbone(str(family(name)))
    limit = 16 if "window" in name else 48
    short, long = row_of(backbone, "rain 0 in hills 7"), row_of(backbone, "vexed zebra 17 " * 5)
    assert len(short) < limit < len(long)
    losses = target_losses(backbone, [Row([long]), Row([short]), Row([long])])
    wanted = [*plain_loss(backbone, long), *plain_loss(backbone, short)]
    assert losses[:6].tolist() == pytest.approx(wanted, abs=1e-3)
    assert losses[6:].tolist() == pytest.approx(losses[:3].tolist(), abs=1e-5)


def test_packed_rows_stay_packed_beside_a_row_longer_than_the_window(family: Folder) -> None:
    backbone = load_backbone(str(family("mistral-window")))
    stem = backbone.token_ids("rain in")
    pair = [Piece([*stem, *backbone.token_ids(word)], 2) for word in (" hills", " a town")]
    assert len(Row(pair, len(stem))) <= 16
    long = row_of(backbone, "vexed zebra 17 " * 5)
    losses = target_losses(backbone, [Row(pair, len(stem)), Row([long])])
    wanted = [loss for piece in (*pair, long) for loss in plain_loss(backbone, piece)]
    assert losses.tolist() == pytest.approx(wanted, abs=1e-3)


def test_gradients_of_rows_on_both_sides_of_a_border_are_those_of_each_alone(
    family: Folder,
) -> None:
    backbone = load_backbone(str(family("phi3-longrope")))
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 2)
    slots = [bank.new(1), bank.new(2)]
    bank.weights[:2] += 0.05
    rows = [Row([row_of(backbone, "rain 0 in hills 7")]), Row([row_of(backbone, "zebra 17 " * 9)])]
    with bank.recording(slots) as together:
        target_losses(bank.backbone, rows).sum().backward()
    for slot, row, gradients in zip(slots, rows, together, strict=True):
        with bank.recording([slot]) as alone:
            target_losses(bank.backbone, [row]).sum().backward()
        torch.testing.assert_close(gradients, alone[0], atol=1e-4, rtol=1e-3)


def test_a_short_answer_does_not_change_beside_a_long_one(family: Folder) -> None:
    backbone = load_backbone(str(family("phi3-longrope")))
    long = tuple(backbone.prompt_ids("zebras jump over 17 boxes " * 5))
    short = tuple(backbone.prompt_ids("Write a"))
    assert len(short) + 6 < 48 < len(long)

    def logs(engine: TorchEngine) -> list[float]:
        pieces = engine.generate(Request(short, None, Sampling(max_tokens=6), "u"))
        return [value for piece in pieces for value in piece.logprobs]

    with TorchEngine(backbone, cache_bytes=0) as engine:
        alone = logs(engine)
    with TorchEngine(backbone, cache_bytes=0) as engine:
        heat = Sampling(max_tokens=200, temperature=1.0, seed=1)
        other = iter(engine.generate(Request(long, None, heat, "v")))
        next(other)
        assert logs(engine) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-longrope"])
def test_keys_are_read_anew_where_an_answer_crosses_the_border(family: Folder, name: str) -> None:
    backbone = load_backbone(str(family(name)))
    ids = backbone.prompt_ids("rain 17 in hills " * 12)[:44]
    model: Any = backbone.model
    tokens = list(ids)
    with torch.no_grad():
        for _ in range(12):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
    assert backbone.end_id not in tokens[44:]
    with TorchEngine(backbone) as engine:
        pieces = engine.generate(Request(tuple(ids), None, Sampling(max_tokens=12), "u"))
        got = [value for piece in pieces for value in piece.logprobs]
    with torch.no_grad():
        wanted = []
        for at in range(44, 56):
            logits = model(input_ids=torch.tensor([tokens[:at]]), use_cache=False).logits[0, -1]
            wanted.append(float(logits.log_softmax(-1)[tokens[at]]))
    assert got == pytest.approx(wanted, abs=1e-3)


def test_labels_that_cross_the_border_are_scored_by_whole_passes(family: Folder) -> None:
    backbone = load_backbone(str(family("phi3-longrope")))
    prompt = backbone.tokenizer.decode(backbone.token_ids("rain 17 in hills " * 9)[:42])
    labels = ["y", "no way at all in the town"]
    ids = backbone.prompt_ids(prompt)
    assert len(ids) < 48 < len(ids) + len(backbone.target_ids(labels[1]))
    got = score_labels(backbone, [prompt], labels)[0]
    for label, value in zip(labels, got, strict=True):
        target = backbone.target_ids(label)
        wanted = -sum(plain_loss(backbone, Piece([*ids, *target], len(target))))
        assert value == pytest.approx(wanted, abs=1e-3)


# Which layers are adapted --------------------------------------------------------------------


def adapted(backbone: Backbone, **settings: Any) -> list[str]:
    bank = AdapterBank(backbone, AdapterConfig(rank=2, **settings), 1)
    return [target.name for target in bank.targets]


def test_experts_and_routers_are_left_as_they_are(family: Folder) -> None:
    for name in ("qwen2_moe", "qwen3_moe", "mixtral"):
        names = adapted(load_backbone(str(family(name))))
        assert any(name.endswith("q_proj") for name in names)
        assert not any("experts." in name or name.endswith(".gate") for name in names)
        assert not any("shared_expert_gate" in name for name in names)
    assert any(
        "shared_expert.up_proj" in n for n in adapted(load_backbone(str(family("qwen2_moe"))))
    )


def test_only_the_language_model_of_a_larger_one_is_adapted(family: Folder) -> None:
    backbone = load_backbone(str(family("gemma3")))
    for layers, blocks in (("all", 3), ("last:1", 1)):
        names = adapted(backbone, layers=layers)
        assert all(".language_model." in name for name in names)
        assert len({name.split(".layers.")[1].split(".")[0] for name in names}) == blocks


def test_state_space_kernels_keep_their_weights(family: Folder) -> None:
    names = adapted(load_backbone(str(family("falcon_h1"))))
    assert any(name.endswith("mamba.in_proj") for name in names)
    assert not any(name.endswith(("mamba.out_proj", "dt_proj", "x_proj")) for name in names)


def test_plain_families_keep_the_targets_that_peft_has_for_all_linear(
    backbone_folder: Folder,
) -> None:
    for name in ("llama", "gpt2", "t5"):
        model = load_backbone(str(backbone_folder(name))).model
        assert lora_config(AdapterConfig(rank=2), model).target_modules == "all-linear"


def test_layers_that_cannot_be_adapted_are_refused_by_name_and_reason(family: Folder) -> None:
    backbone = load_backbone(str(family("qwen2_moe")))
    with pytest.raises(ConfigError, match=r"shared_expert_gate.*chooses experts"):
        adapted(backbone, targets=["shared_expert_gate"])
    gemma = load_backbone(str(family("gemma3")))
    with pytest.raises(ConfigError, match="reads no text"):
        adapted(gemma, targets=["fc1"])


def test_a_layer_that_mixes_rows_is_a_refusal_and_no_traceback(family: Folder) -> None:
    backbone = load_backbone(str(family("llama")))
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 2)
    slots = [bank.new(0), bank.new(1)]
    layer: Any = bank.backbone.model.get_submodule(bank.targets[0].name)
    x = torch.ones(3, 5, bank.targets[0].inputs)
    with bank.using(slots), pytest.raises(BackboneError, match="mixes the rows"):
        layer(x)
    with bank.using(slots), pytest.raises(BackboneError, match="mixes the rows"):
        layer(x[0])


def test_flattened_rows_get_each_their_own_factors(family: Folder) -> None:
    bank = AdapterBank(load_backbone(str(family("llama"))), AdapterConfig(rank=2), 2)
    slots = [bank.new(0), bank.new(1)]
    bank.weights[:2] += 0.1
    layer: Any = bank.backbone.model.get_submodule(bank.targets[0].name)
    x = torch.randn(4, 5, bank.targets[0].inputs)
    for order in ([slots[0], slots[0], slots[1], slots[1]], [slots[0], slots[1]] * 2):
        with bank.using(order):
            torch.testing.assert_close(layer(x.flatten(0, 1)), layer(x).flatten(0, 1))
        with bank.recording(order) as flat:
            layer(x.flatten(0, 1)).square().sum().backward()
        with bank.recording(order) as whole:
            layer(x).square().sum().backward()
        torch.testing.assert_close(flat, whole)


# Families that nobody tried -------------------------------------------------------------------


def test_the_tested_families_are_those_of_the_matrix() -> None:
    import transformers

    kinds = {
        getattr(transformers, made.model).config_class.model_type
        for made in matrix.FAMILIES.values()
        if made.kind != "encoder"
    }
    assert kinds >= probe.TESTED and len(probe.TESTED) > 80


def test_an_encoder_of_an_unknown_family_is_refused_by_what_it_does() -> None:
    import transformers

    config = transformers.BertConfig(**matrix.BASE, initializer_range=0.3)
    model = transformers.BertLMHeadModel(config).eval()
    with pytest.raises(BackboneError, match="it is an encoder and cannot write"):
        probe.check_reading(model, "x")


def test_unknown_families_that_read_from_left_to_right_are_taken(
    family: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (probe, bank_module):
        monkeypatch.setattr(module, "TESTED", frozenset())
    for name in ("llama", "gpt2", "bart", "qwen3_moe", "lfm2", "opt"):
        backbone = load_backbone(str(family(name)))
        before = {n: p.clone() for n, p in backbone.model.named_parameters()}
        for precision in ("float32", "bfloat16"):
            bank = AdapterBank(backbone, AdapterConfig(rank=2), 1, precision=precision)
        assert all(torch.equal(p, before[n]) for n, p in backbone.model.named_parameters())
        assert not any(
            layer.weight is not plain
            for layer, plain in zip(bank._layers, bank._plain, strict=True)
        )


def test_a_model_that_needs_more_than_tokens_is_refused_in_a_line(family: Folder) -> None:
    class Odd:
        config = load_backbone(str(family("llama"))).model.config
        device = torch.device("cpu")

        def get_input_embeddings(self) -> torch.nn.Module:
            return torch.nn.Embedding(9, 2)

        def __call__(self, **_: Any) -> None:
            raise ValueError("pixel_values are needed\nand more")

    odd = Odd()
    odd.config.model_type = "odd"
    with pytest.raises(BackboneError, match=r"cannot read a text \(odd\): pixel_values are needed"):
        probe.check_reading(odd, "x")


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("jamba", ["dt_proj"], "otherwise than its weights would"),
        ("led", ["query"], "mixes the rows"),
    ],
)
def test_layers_that_an_adapter_does_not_reach_are_found_by_trying(
    family: Folder, monkeypatch: pytest.MonkeyPatch, name: str, targets: list[str], message: str
) -> None:
    monkeypatch.setattr(bank_module, "not_adaptable", lambda model, name: None)
    monkeypatch.setattr(bank_module, "TESTED", frozenset())
    backbone = load_backbone(str(family(name)))
    with pytest.raises(BackboneError, match=message):
        adapted(backbone, targets=targets)


def test_a_model_that_does_not_run_in_bfloat16_is_refused(family: Folder) -> None:
    backbone = load_backbone(str(family("openai-gpt")))
    with pytest.raises(BackboneError, match="does not run in bfloat16"):
        AdapterBank(backbone, AdapterConfig(rank=2), 1, precision="bfloat16")


# The engine ---------------------------------------------------------------------------------


def answer(engine: TorchEngine, backbone: Backbone, adapter: AdapterRef | None = None) -> str:
    request = Request(tuple(backbone.prompt_ids("Hi")), adapter, Sampling(max_tokens=6), "me")
    return "".join(piece.text for piece in engine.generate(request))


def test_a_model_without_a_layer_to_adapt_answers(
    family: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(family("llama")))
    with TorchEngine(backbone) as engine:
        expected = answer(engine, backbone)
    monkeypatch.setattr(rules, "not_adaptable", lambda model, name: "it is not")
    with TorchEngine(backbone) as engine:
        assert answer(engine, backbone) == expected
    with pytest.raises(ConfigError, match="no layer of this kind of model"):
        adapted(backbone)


def test_a_bank_takes_the_layers_of_the_adapters_that_are_asked_for(family: Folder) -> None:
    backbone = load_backbone(str(family("llama")))

    def adapter(seed: int, **settings: Any) -> Adapter:
        bank = AdapterBank(backbone, AdapterConfig(rank=2, **settings), 1)
        slot = bank.new(seed)
        bank.weights[slot] += 0.1 * torch.randn(bank.width)
        return bank.adapter(slot)

    first, second = adapter(1, targets=["q_proj"]), adapter(2, targets=["up_proj", "v_proj"])
    with TorchEngine(backbone) as engine:
        assert not engine._scheduler.slots.bank.targets
        for number, one in enumerate((first, second, first)):
            ref = AdapterRef(f"a{number % 2}", lambda one=one: one)  # type: ignore[misc]
            with TorchEngine(backbone.with_adapters([one])) as merged:
                assert answer(engine, backbone, ref) == answer(merged, backbone)
        kinds = {t.name.split(".")[-1] for t in engine._scheduler.slots.bank.targets}
        assert kinds == {"q_proj", "up_proj", "v_proj"}
    weights = {key.replace("q_proj", "w_proj"): part for key, part in first.weights.items()}
    other = replace(first, weights=weights)
    with TorchEngine(backbone) as engine, pytest.raises(PfiError):
        answer(engine, backbone, AdapterRef("other", lambda: other))


@pytest.mark.parametrize("name", ["llama", "lfm2", "bart", "mamba"])
def test_no_library_warns_of_the_cache(family: Folder, name: str, caplog: Any) -> None:
    backbone = load_backbone(str(family(name)))
    with warnings.catch_warnings(record=True) as caught, TorchEngine(backbone) as engine:
        warnings.simplefilter("always")
        answer(engine, backbone)
        score_labels(backbone, ["Hi"], ["yes", "no way"])
        generate(backbone, ["Hi", "Rain in the hills"], 3)
    said = [str(warning.message) for warning in caught] + [r.message for r in caplog.records]
    assert not [text for text in said if "past_key_values" in text or "cache_params" in text]


def test_caches_go_by_the_name_that_a_model_has(family: Folder) -> None:
    class Old:
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class New:
        def forward(self, input_ids: Any, cache: Any = None) -> None: ...

    class Without:
        def forward(self, input_ids: Any) -> None: ...

    assert rules.cache_argument(Old(), 1) == {"past_key_values": 1}
    assert rules.cache_argument(New(), 1) == {"cache": 1} and not rules.cache_argument(New(), None)
    assert rules.cache_argument(Without(), 1) == {}


def test_losses_of_a_model_with_experts_do_not_depend_on_the_batch(family: Folder) -> None:
    backbone = load_backbone(str(family("mixtral")))
    pieces = [row_of(backbone, words) for words in ("rain 0 in hills 7", "vexed zebra 17 " * 3)]
    wanted = [sum(plain_loss(backbone, piece)) / 3 for piece in pieces]
    assert mean_losses(backbone, pieces) == pytest.approx(wanted, abs=1e-3)
