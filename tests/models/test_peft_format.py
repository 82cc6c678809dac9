"""Adapters of other tools: read as peft reads them, made plain where that is exact, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pfi.errors import BackboneError
from pfi.models import peft_format
from pfi.models.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, AdapterConfig, stacked
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank

Folder = Callable[[str], Path]
IDS = torch.tensor([[5, 9, 80, 200, 31]])
BOTH = {"target_modules": ["q_proj", "v_proj"]}


def plain_model(folder: Path, family: str = "llama") -> Any:
    import transformers as t

    loader = t.AutoModelForSeq2SeqLM if family == "t5" else t.AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        start = {"decoder_input_ids": IDS[:, :2]} if model.config.is_encoder_decoder else {}
        scores: torch.Tensor = model(IDS, **start).logits
    return scores


def trained(base: Path, folder: Path, family: str = "llama", **config: Any) -> Path:
    """What peft saves of an adapter whose factors have moved since they were initialised."""
    import peft

    kind = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    lora = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **BOTH, "task_type": kind, **config})
    torch.manual_seed(3)
    model = peft.get_peft_model(plain_model(base, family), lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(folder)
    return folder


def by_peft(base: Path, folder: Path, family: str = "llama") -> torch.Tensor:
    import peft

    return logits(peft.PeftModel.from_pretrained(plain_model(base, family), folder).eval())


def asked(backbone: Backbone, adapter: Adapter) -> torch.Tensor:
    """As a profile answers: the factors in a slot of a bank."""
    one = stacked([(adapter, 1.0)])
    config = AdapterConfig(rank=int(one.settings["r"]))
    bank = AdapterBank(backbone, config, 1)
    with bank.backbone.rows([bank.add(one)] * len(IDS)):
        return logits(bank.backbone.model)


def edit(folder: Path, **values: Any) -> Path:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def same(base: Path, folder: Path, family: str = "llama", scale: float = 1.0) -> None:
    """Training's view of an adapter and a question's are peft's."""
    backbone = load_backbone(base)
    wanted = by_peft(base, folder, family)
    assert (wanted - logits(backbone.model)).abs().max() > 1e-2, "the adapter does nothing"
    adapter = Adapter.load(folder)
    plain = adapter.plain(backbone.model)
    close = {"atol": 2e-4 * scale, "rtol": 1e-4}
    torch.testing.assert_close(logits(backbone.with_adapters([adapter]).model), wanted, **close)
    torch.testing.assert_close(logits(backbone.with_adapters([plain]).model), wanted, **close)
    torch.testing.assert_close(asked(backbone, plain), wanted, **close)
    again = Adapter.from_bytes(plain.to_bytes(), "here")
    assert again.settings == plain.settings
    assert all(torch.equal(again.weights[k], v) for k, v in plain.weights.items())


EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RIGHT: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 1.5},
    "rank 1": {"r": 1},
    "rank above the layers' sizes": {"r": 40},
    "rslora": {"use_rslora": True},
    "dropout": {"lora_dropout": 0.2},
    "regular expression": {"target_modules": r".*\.layers\.1\..*(q|o)_proj"},
    "regular expression with many parts": {
        "target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|k_proj|down_proj).*?)"
    },
    "all-linear": {"target_modules": "all-linear"},
    "every layer": {"target_modules": EVERY},
    "whole names": {"target_modules": ["model.layers.0.mlp.up_proj", "layers.1.self_attn.k_proj"]},
    "peft's own targets": {"target_modules": None},
    "layers_to_transform": {"layers_to_transform": [1]},
    "one layer to transform": {"layers_to_transform": 0},
    "layers_pattern": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "exclude_modules": {"target_modules": EVERY, "exclude_modules": ["down_proj", "k_proj"]},
    "exclude by an expression": {"target_modules": EVERY, "exclude_modules": r".*layers\.0.*"},
    "exclude from an expression": {"target_modules": ".*_proj", "exclude_modules": ["o_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "PiSSA of every layer": {"init_lora_weights": "pissa", "target_modules": "all-linear"},
    "OLoRA": {"init_lora_weights": "olora"},
    "OLoRA, rslora": {"init_lora_weights": "olora", "use_rslora": True},
    "OLoRA, capitals": {"init_lora_weights": "OLoRA"},
    "rank_pattern": {"rank_pattern": {"v_proj": 7, r"layers\.0\.self_attn\.q_proj": 2}},
    "rank_pattern, rslora": {"rank_pattern": {"q_proj": 9}, "use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"^model.layers.1.self_attn.v_proj": 31}},
    "both patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*v_proj": 3.5}},
    "PiSSA with patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 5},
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_adapters_answer_as_with_peft(backbone_folder: Folder, tmp_path: Path, name: str) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter", **RIGHT[name])
    if name.startswith(("PiSSA", "OLoRA")):
        rank = int(Adapter.load(folder).plain(plain_model(base)).settings["r"])
        assert rank == 8, "the rank doubles"
    same(base, folder)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
        ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "pissa"}),
        ("gpt2", {"target_modules": ["attn.c_proj"], "init_lora_weights": "olora"}),
        ("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True}),
        ("t5", {"target_modules": ["q", "wi"]}),
        ("t5", {"target_modules": ["o"], "init_lora_weights": "olora"}),
        ("qwen2", {"target_modules": ["k_proj", "down_proj"], "fan_in_fan_out": True}),
    ],
)
def test_of_other_families_too(
    backbone_folder: Folder, tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    base = backbone_folder(family)
    same(base, trained(base, tmp_path / "adapter", family, **config), family)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_of_other_precisions(
    backbone_folder: Folder, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter")
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / WEIGHTS_FILE)
    same(base, folder)


def test_eva_may_spread_the_ranks(backbone_folder: Folder, tmp_path: Path) -> None:
    base = backbone_folder("llama")
    pattern = {"rank_pattern": {"model.layers.0.self_attn.q_proj": 6}}
    folder = trained(base, tmp_path / "adapter", **pattern)
    same(base, edit(folder, init_lora_weights="eva", eva_config={"rho": 2.0}))


@pytest.mark.parametrize(
    "values",
    [
        {"brand_new_config": None, "use_brand_new": False, "others": {}, "more": [], "text": ""},
        {"enable_lora": None, "merge_weights": False},  # peft 0.2
        {"merge_weights": True},
        {"lora_ga_config": None, "corda_config": {"corda_method": "ipm"}, "loftq_config": {}},
        {"runtime_config": {"ephemeral_gpu_offload": False}, "peft_version": "99.0.0"},
        {"task_type": None, "auto_mapping": {"base_model_class": "X", "parent_library": "y"}},
        {"megatron_core": "megatron.core", "qalora_group_size": 16, "bias": None},
    ],
)
def test_settings_that_change_nothing_are_accepted(
    backbone_folder: Folder, tmp_path: Path, values: dict[str, Any]
) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter")
    wanted = by_peft(base, folder)
    edit(folder, **values)
    backbone = load_backbone(base)
    plain = Adapter.load(folder).plain(backbone.model)
    torch.testing.assert_close(asked(backbone, plain), wanted, atol=2e-4, rtol=1e-4)
    merged = logits(backbone.with_adapters([Adapter.load(folder)]).model)
    torch.testing.assert_close(merged, wanted, atol=2e-4, rtol=1e-4)


def test_what_peft_has_a_default_for_may_be_missing(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter", r=8, lora_alpha=8)
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({"peft_type": "LORA", **BOTH}))
    same(base, folder)


@pytest.mark.parametrize("form", ["no prefix", "with the adapter's name"])
def test_other_spellings_of_the_factors_names(
    backbone_folder: Folder, tmp_path: Path, form: str
) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter")
    wanted = by_peft(base, folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    if form == "no prefix":
        tensors = {k.removeprefix(peft_format.PREFIX): v for k, v in tensors.items()}
    else:
        tensors = {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    backbone = load_backbone(base)
    merged = backbone.with_adapters([Adapter.load(folder)])
    torch.testing.assert_close(logits(merged.model), wanted, atol=2e-4, rtol=1e-4)


# What is refused ------------------------------------------------------------------------


def refused(folder: Path, base: Path, match: str) -> str:
    """Loading and fitting, as an installation does it, refuse in one line; so does asking."""
    with pytest.raises(BackboneError, match=match) as error:
        Adapter.load(folder).plain(plain_model(base))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    with pytest.raises(BackboneError, match=match):
        load_backbone(base).with_adapters([Adapter.load(folder)])
    return str(error.value)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "biases": ({"bias": "all"}, "bias 'all'"),
    "biases of LoRA's layers": ({"bias": "lora_only"}, "bias 'lora_only'"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "lora_embedding|embed_tokens"),
    "embedding and layers": ({"target_modules": ["embed_tokens", "q_proj"]}, "embed"),
    "output layer": ({"target_modules": ["lm_head", "q_proj"]}, "lm_head"),
    "VeLoRA": ({"velora_config": {"num_groups": 4}}, "velora"),
    "copied layers": ({"layer_replication": [(0, 1), (0, 2)]}, "layer_replication"),
    "aLoRA": ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    "random PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "parameters": (
        {"target_modules": [], "target_parameters": ["q_proj.weight"]},
        "target_parameters",
    ),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_more_than_plain_lora_is_refused(
    backbone_folder: Folder, tmp_path: Path, name: str
) -> None:
    base, (config, match) = backbone_folder("llama"), REFUSED[name]
    refused(trained(base, tmp_path / "adapter", **config), base, match)


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "IA3Config", "VeraConfig"])
def test_other_kinds_of_adapters_are_refused(
    backbone_folder: Folder, tmp_path: Path, kind: str
) -> None:
    import peft

    base = backbone_folder("llama")
    extra = {"feedforward_modules": []} if kind == "IA3Config" else {}
    config = getattr(peft, kind)(target_modules=["q_proj"], **extra)
    peft.get_peft_model(plain_model(base), config).save_pretrained(tmp_path / "adapter")
    name = {"LoHaConfig": "LOHA", "LoKrConfig": "LOKR", "IA3Config": "IA3", "VeraConfig": "VERA"}
    refused(tmp_path / "adapter", base, f"only LoRA adapters are supported.*{name[kind]}")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"use_qalora": True}, "use_qalora"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"use_brand_new": True}, "use_brand_new"),
        ({"brand_new_config": {"a": 1}}, "brand_new_config"),
        ({"R": 4}, "damaged.*'r' twice"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"monteclora_config": {"x": 1}}, "monteclora_config"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "of tomorrow"}, "of tomorrow"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
        ({"task_type": "SEQ_CLS"}, "classifier"),
        ({"peft_type": "lora"}, "only LoRA"),
        ({"peft_type": None}, "only LoRA"),
        ({"peft_type": "ADALORA"}, "only LoRA"),
        ({"peft_type": ["LORA"]}, "only LoRA"),
        ({"r": 8}, "rank 4, the configuration 8"),
        ({"r": 0}, "r is 0"),
        ({"r": -4}, "r is -4"),
        ({"r": 4.0}, r"r is 4\.0"),
        ({"r": True}, "r is True"),
        ({"r": "4"}, "r is '4'"),
        ({"r": None}, "r is None"),
        ({"r": 10**400}, "r is 1000"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": [1]}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "NaN"),
        ({"lora_alpha": float("inf")}, "Infinity"),
        ({"lora_alpha": 10**300}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 4, the configuration 2"),
        ({"rank_pattern": {"q_proj": "4"}}, "configuration '4'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": None}}, "lora_alpha is None"),
        ({"alpha_pattern": {"(a+)+": 3}}, "odd pattern"),
        ({"alpha_pattern": {"(": 3}}, "odd pattern"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj is a target and has no"),
        ({"target_modules": ["q_proj"]}, "v_proj has factors and is no target"),
        ({"layers_to_transform": [0]}, "lacks|damaged"),
        ({"lora_dropout": "a lot"}, None),
        ({"lora_dropout": 5}, None),
    ],
)
def test_odd_configurations_are_refused(
    backbone_folder: Folder, tmp_path: Path, values: dict[str, Any], match: str | None
) -> None:
    base = backbone_folder("llama")
    folder = edit(trained(base, tmp_path / "adapter"), **values)
    with pytest.raises(BackboneError, match=match) as error:
        backbone = load_backbone(base)
        backbone.with_adapters([Adapter.load(folder).plain(backbone.model)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"r": 4, "r": 8}', "'r' twice"),
        (b"\xff\xfe{}", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"a": ' + b"[" * 30 + b"]" * 30 + b"}", "nested too deep"),
        (b'{"r": ' + b"1" * 5000 + b"}", "damaged"),
        (b" " * (1 << 20) + b"{}", "1048576 are allowed"),
    ],
)
def test_damaged_configuration_files_are_refused(
    backbone_folder: Folder, tmp_path: Path, content: bytes, match: str
) -> None:
    folder = trained(backbone_folder("llama"), tmp_path / "adapter")
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(BackboneError, match=match):
        Adapter.load(folder)


def first(tensors: dict[str, torch.Tensor], kind: str) -> str:
    return next(name for name in tensors if f"lora_{kind}" in name)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "B")][0, 0] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "A")][0, 0] = -float("inf")


def _lone(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[first(tensors, "A")]


def _pair_missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[first(tensors, "A")], tensors[first(tensors, "B")]


def _none(tensors: dict[str, torch.Tensor]) -> None:
    tensors.clear()


def _extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(3, 2)


def _magnitude(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "A").replace("lora_A.weight", "lora_magnitude_vector")
    tensors[name] = torch.ones(4)


def _elsewhere(tensors: dict[str, torch.Tensor]) -> None:
    for kind in "AB":
        name = first(tensors, kind)
        tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)


def _three(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "A")] = torch.zeros(4, 32, 1)


def _whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "A")] = torch.zeros(4, 32, dtype=torch.int8)


def _wide(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "A")] = torch.zeros(4, 33)


def _turned(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "B")] = tensors[first(tensors, "B")].t().contiguous()


def _twice(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "A")
    tensors[name.removeprefix(peft_format.PREFIX)] = tensors[name].clone()


def _norm(tensors: dict[str, torch.Tensor]) -> None:
    name = "base_model.model.model.norm.lora_{}.weight"
    tensors |= {name.format("A"): torch.ones(4, 32), name.format("B"): torch.ones(32, 4)}


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_nan, "not finite"),
        (_infinite, "not finite"),
        (_lone, "a factor of .* is missing"),
        (_pair_missing, "is a target and has no factors"),
        (_none, "no factors"),
        (_extra, "embed_tokens"),
        (_magnitude, "lora_magnitude_vector"),
        (_elsewhere, r"lacks: model\.layers\.7"),
        (_three, "of shape"),
        (_whole_numbers, "int8"),
        (_wide, "32 x 32, not 32 x 33"),
        (_turned, "the factors of .* are"),
        (_twice, "twice"),
        (_norm, "norm"),
    ],
)
def test_damaged_weights_are_refused(
    backbone_folder: Folder,
    tmp_path: Path,
    damage: Callable[[dict[str, torch.Tensor]], None],
    match: str,
) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter")
    tensors = load_file(folder / WEIGHTS_FILE)
    damage(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    refused(folder, base, match)


def test_factors_of_the_output_layer_are_refused(backbone_folder: Folder, tmp_path: Path) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    tensors = load_file(folder / WEIGHTS_FILE)
    factors = {name: factor for name, factor in tensors.items() if ".lora_" in name}
    save_file(factors, folder / WEIGHTS_FILE)
    refused(folder, base, "lm_head, which cannot be adapted: it is the output layer")


def test_a_question_refuses_what_an_installation_refuses(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    base = backbone_folder("llama")
    adapter = Adapter.load(trained(base, tmp_path / "adapter"))
    for settings in (
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"rank_pattern": {"q": 4}},
    ):
        with pytest.raises(BackboneError, match="plain LoRA"):
            Adapter({**adapter.settings, **settings}, adapter.weights).factors()
    weights = {k: v * float("nan") for k, v in adapter.weights.items()}
    with pytest.raises(BackboneError, match="not finite"):
        Adapter(adapter.settings, weights).factors()
    with pytest.raises(BackboneError, match="not finite"):
        Adapter(
            {**adapter.settings, "lora_alpha": 1e30},
            {k: v * 1e20 for k, v in adapter.weights.items()},
        ).factors()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device", "dangling link"])
def test_only_regular_files_are_read(
    backbone_folder: Folder, tmp_path: Path, name: str, kind: str
) -> None:
    folder = trained(backbone_folder("llama"), tmp_path / "adapter")
    (folder / name).rename(tmp_path / name)
    if kind == "link":
        (folder / name).symlink_to(tmp_path / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    elif kind == "dangling link":
        (folder / name).symlink_to(tmp_path / "nothing")
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    with pytest.raises(BackboneError, match=r"is a link|no regular file|cannot be read"):
        Adapter.load(folder)


def test_files_have_a_largest_size(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(backbone_folder("llama"), tmp_path / "adapter")
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.truncate((2 << 30) + 1)  # takes no room on the disk
    with pytest.raises(BackboneError, match="2147483649 bytes"):
        Adapter.load(folder)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(BackboneError, match="there is no adapter here"):
            Adapter.load(folder)


def test_hostile_expressions_cost_no_time(backbone_folder: Folder, tmp_path: Path) -> None:
    base = backbone_folder("llama")
    folder = trained(base, tmp_path / "adapter")
    wanted = by_peft(base, folder)
    edit(folder, target_modules="(([a-z_.0-9]+)+)+!", exclude_modules="((.*)*)*!")
    backbone = load_backbone(base)
    plain = Adapter.load(folder).plain(backbone.model)
    assert isinstance(plain.settings["target_modules"], list)
    merged = backbone.with_adapters([plain])
    torch.testing.assert_close(logits(merged.model), wanted, atol=2e-4, rtol=1e-4)
