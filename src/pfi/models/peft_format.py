"""``peft``'s adapter format, read with care: which files are plain LoRA, and which can be made so.

Plain LoRA is one product ``alpha / r * B A`` added to the weight of each layer (Hu et al. 2021).
PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) take their first factors out of the weights:
over the unchanged weights ``W`` they are ``s B A - s B0 A0``, one product of twice the rank.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfi.errors import BackboneError
from pfi.models.families import not_adaptable

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
#: What stands before a layer's name in peft's names of factors.
PREFIX = "base_model.model."
#: Bytes of the files at most: rank 256 on all layers of a model of 1.7 billion weights is 1 GiB.
MAX_BYTES = {CONFIG_FILE: 1 << 20, WEIGHTS_FILE: 2 << 30}
#: How deep lists and objects of the configuration may lie in each other.
MAX_DEPTH = 8

#: Matrices ``A: (rank, inputs)`` and ``B: (outputs, rank)`` by the layer's name.
Pairs = dict[str, tuple["torch.Tensor", "torch.Tensor"]]

# A value of these other than none, false or empty makes an adapter more than plain LoRA.
_NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "velora_config",
    "megatron_config",
    "enable_lora",  # peft 0.2: which parts of a fused layer are adapted
)
# What says how the factors were trained, or of what model; the update is the same whatever it is.
_NEUTRAL = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config", "megatron_core", "qalora_group_size"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
    *("lora_dropout", "fan_in_fan_out", "ensure_weight_tying"),
    "merge_weights",  # peft 0.2: whether evaluation merges
}
_SHAPE = {"r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"}
_PATTERNS = ("rank_pattern", "alpha_pattern")
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_KNOWN = _NEUTRAL | _SHAPE | {*_NOT_PLAIN, *_PATTERNS, *_SELECTION}

# Initialisations that leave the weights of the model as they are.
_KEEPS_WEIGHTS = ("gaussian", "eva", "orthogonal", "mica")
#: Those that take the first factors out of the weights, and can be done again from the weights.
_RESIDUAL = ("pissa", "olora")
_CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_MAX_RANK = 1 << 16
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_FIX = "train it again as plain LoRA, or merge it into a backbone of its own"
_DAMAGED = "take the adapter's files again from where they come"
_OTHER = "use the backbone that it was trained on"


# Files ----------------------------------------------------------------------------------


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of peft's format in a folder, those that are there.

    Raises:
        BackboneError: the weights are pickled, or a file is no regular file, too large or
            unreadable.
    """
    weights, where = folder / WEIGHTS_FILE, os.fspath(folder)
    if not os.path.lexists(weights) and os.path.lexists(folder / "adapter_model.bin"):
        what = "pickled weights are refused, since loading them can run code"
        raise BackboneError(what, where=where, fix="convert them to safetensors")
    files = {}
    for name, most in MAX_BYTES.items():
        try:
            files[name] = _read_regular(folder / name, most)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            what = f"the adapter cannot be read: {error.strerror}"
            raise BackboneError(what, where=str(folder / name)) from error
    return files


def _read_regular(path: Path, most: int) -> bytes:
    """A regular file's content.

    Raises:
        BackboneError: it is a link, a folder, a pipe or a device, or larger than `most` bytes.
        OSError: it cannot be read.
    """
    fix = "copy the adapter's files themselves into a folder (cp -L)"
    if path.is_symlink():
        raise BackboneError("the file is a link", where=str(path), fix=fix)
    # Without O_NONBLOCK a pipe would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BackboneError("this is no regular file", where=str(path), fix=fix)
        content = file.read(most + 1) if status.st_size <= most else b""
    if status.st_size > most or len(content) > most:
        what = f"the file has {max(status.st_size, len(content))} bytes; {most} are allowed"
        raise BackboneError(what, where=str(path))
    return content


def parse_files(
    files: Mapping[str, bytes], where: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Settings and factors of an adapter's files.

    Args:
        files: content by name.
        where: what names them in errors.

    Raises:
        BackboneError: files are missing or damaged, or are of another kind than LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if CONFIG_FILE not in files or WEIGHTS_FILE not in files:
        fix = f"it needs {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise BackboneError("there is no adapter here", where=where, fix=fix)
    try:
        settings = _parse_settings(files[CONFIG_FILE])
        tensors = load(files[WEIGHTS_FILE])
    except (ValueError, KeyError, RecursionError, SafetensorError) as error:
        what = f"the adapter is damaged: {' '.join(str(error).split())[:200]}"
        raise BackboneError(what, where=where, fix=_DAMAGED) from error
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        what = f"only LoRA adapters are supported; this one is {kind!r:.60}"
        raise BackboneError(what, where=where, fix=_FIX)
    return settings, tensors


def by_own_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Factors by peft's own names, where other tools leave out its prefix or name the adapter.

    Raises:
        BackboneError: one is there twice.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, factor in weights.items():
        match = _FACTOR.fullmatch(key)
        name = f"{PREFIX}{match[1]}.lora_{match[2]}.weight" if match else key
        if name in renamed:
            what = f"the adapter is damaged: {name:.200} is there twice"
            raise BackboneError(what, fix=_DAMAGED)
        renamed[name] = factor
    return renamed


def _parse_settings(data: bytes) -> dict[str, Any]:
    """The object of a configuration file.

    Raises:
        ValueError, RecursionError: it is damaged.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name.casefold() for name, _ in pairs]
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"its configuration has {twice!r:.60} twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"its configuration has a value {constant}")

    text = data.decode("utf-8")
    values = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(values, dict):
        raise ValueError("its configuration is no JSON object")
    if _depth(values) > MAX_DEPTH:
        raise ValueError("the values of its configuration are nested too deep")
    return values


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return depth


# Settings -------------------------------------------------------------------------------


def check_settings(settings: Mapping[str, Any], *, convertible: bool = False) -> None:
    """Refuse settings of more than plain LoRA.

    Args:
        settings: of ``adapter_config.json``.
        convertible: whether those pass that ``to_plain`` makes plain.

    Raises:
        BackboneError: names the setting.
    """
    for name, value in settings.items():
        if name in _NOT_PLAIN and value:
            raise _refusal(name)
        if name not in _KNOWN and not _empty(value):
            what = f"this adapter has a setting that is not known here: {name!r:.60}"
            raise BackboneError(what, fix="update pfi, or train the adapter without it")
    if settings.get("bias") not in (None, "none"):
        raise _refusal(f"bias {settings['bias']!r:.20}")
    if settings.get("task_type") in _CLASSIFIERS:
        what = f"this adapter makes a classifier of its backbone ({settings['task_type']})"
        raise BackboneError(what, fix="use an adapter that was trained to write text")
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise _odd_value("r", rank, "a whole number from 1 on")
    if type(alpha) not in (int, float) or abs(alpha) > 1e30 or not math.isfinite(alpha):
        raise _odd_value("lora_alpha", alpha, "a number")
    if not isinstance(settings.get("use_rslora") or False, bool):
        raise _odd_value("use_rslora", settings["use_rslora"], "true or false")
    init = _init(settings)
    if init in _RESIDUAL and not convertible:
        what = f"only plain LoRA is supported; this adapter has init_lora_weights {init!r}"
        raise BackboneError(what, fix="install it again: `pfi adapters install` converts it")
    if init not in (*_RESIDUAL, *_KEEPS_WEIGHTS, "true", "false", "none"):
        raise _refusal(f"init_lora_weights {init!r:.60}")
    for name in _PATTERNS:
        value = settings.get(name) or {}
        if not isinstance(value, dict):
            raise _odd_value(name, value, "an object")
        if value and not convertible:
            raise _refusal(name)


def _refusal(what: str) -> BackboneError:
    return BackboneError(f"only plain LoRA is supported; this adapter has {what}", fix=_FIX)


def _odd_value(name: str, value: Any, wanted: str) -> BackboneError:
    what = f"the adapter is damaged: {name} is {value!r:.40}, not {wanted}"
    return BackboneError(what, fix=_DAMAGED)


def _init(settings: Mapping[str, Any]) -> str:
    return str(settings.get("init_lora_weights", True)).lower()


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {}, "none")


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether settings that ``check_settings`` accepts need no conversion."""
    return _init(settings) not in _RESIDUAL and not any(settings.get(name) for name in _PATTERNS)


# Factors --------------------------------------------------------------------------------


def factor_pairs(weights: Mapping[str, torch.Tensor]) -> Pairs:
    """The factors by layer.

    Raises:
        BackboneError: there are none, one lacks its partner or does not fit it, or there are
            weights of another kind.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, factor in weights.items():
        match = _FACTOR.fullmatch(key)
        if match is None:
            raise _refusal(f"{key:.200}")
        if not factor.dtype.is_floating_point or factor.ndim != 2 or not factor.numel():
            what = f"{key:.200} is {factor.dtype} of shape {tuple(factor.shape)}"
            raise BackboneError(f"the adapter is damaged: {what}", fix=_DAMAGED)
        halves.setdefault(match[1], {})[match[2]] = factor
    if not halves:
        raise BackboneError("the adapter is damaged: it has no factors", fix=_DAMAGED)
    for layer, half in halves.items():
        if len(half) < 2:
            what = f"the adapter is damaged: a factor of {layer:.200} is missing"
            raise BackboneError(what, fix=_DAMAGED)
        if half["A"].shape[0] != half["B"].shape[1]:
            shapes = " and ".join(str(tuple(half[kind].shape)) for kind in "AB")
            what = f"the adapter is damaged: the factors of {layer:.200} are {shapes}"
            raise BackboneError(what, fix=_DAMAGED)
    return {layer: (half["A"], half["B"]) for layer, half in halves.items()}


def plain_factors(settings: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Pairs:
    """By layer ``A`` and ``B`` with the scale in it, float32.

    Raises:
        BackboneError: it is more than plain LoRA, or damaged.
    """
    check_settings(settings)
    rank = int(settings.get("r", 8))
    scale = _scale(settings, rank, settings.get("lora_alpha", 8))
    factors = {}
    for layer, (a, b) in factor_pairs(weights).items():
        if a.shape[0] != rank:
            what = f"the factors of {layer:.200} have rank {a.shape[0]}, the configuration {rank}"
            raise BackboneError(f"the adapter is damaged: {what}", fix=_DAMAGED)
        factors[layer] = a.float(), scale * b.float()
    check_finite(factors)
    return factors


def check_finite(pairs: Pairs) -> None:
    """Refuse factors with values that are not finite.

    Raises:
        BackboneError: names the layer.
    """
    for layer, pair in pairs.items():
        if not all(bool(factor.isfinite().all()) for factor in pair):
            what = f"the adapter is damaged: the factors of {layer:.200} are not finite"
            raise BackboneError(what, fix=_DAMAGED)


def _scale(settings: Mapping[str, Any], rank: int, alpha: float) -> float:
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


# Over a backbone ------------------------------------------------------------------------


def check_layers(pairs: Pairs, settings: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse factors that do not fit a model's layers, or that are not all there.

    Raises:
        BackboneError: names the layer.
    """
    layers = {name: module for name, module in model.named_modules() if _linear(module)}
    output = model.get_output_embeddings()
    for layer, (a, b) in pairs.items():
        if layer not in layers:
            kind = _kind_of(model, layer)
            what = f"has layers that this backbone lacks: {layer:.200}"
            if kind:
                what = f"adapts {layer:.200}, a layer of the kind {kind}"
            raise BackboneError(f"the adapter {what}", fix=_OTHER)
        last = layers[layer] is output
        if reason := "it is the output layer" if last else not_adaptable(model, layer):
            what = f"this adapter changes {layer}, which cannot be adapted: {reason}"
            raise BackboneError(what, fix=_FIX)
        shape, expected = (b.shape[0], a.shape[1]), _shape(layers[layer])
        if shape != expected:
            what = f"{layer} is {expected[0]} x {expected[1]}, not {shape[0]} x {shape[1]}"
            raise BackboneError(f"the adapter does not fit this backbone: {what}", fix=_OTHER)
    for name, module in layers.items():
        if module is output or not_adaptable(model, name):
            continue
        target = _targets(settings, name)
        if target is not None and target != (name in pairs):
            what = "is a target and has no factors" if target else "has factors and is no target"
            raise BackboneError(f"the adapter is damaged: {name} {what}", fix=_DAMAGED)


def to_plain(
    settings: Mapping[str, Any], weights: Mapping[str, torch.Tensor], model: PreTrainedModel
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An adapter as plain LoRA over a model's layers; exactly the same update.

    Args:
        settings: of ``adapter_config.json``.
        weights: factors by peft's names.
        model: the backbone, unchanged.

    Returns:
        settings and weights; the factors are as they were where nothing had to be converted.

    Raises:
        BackboneError: it is of a kind that cannot be converted, damaged, or of another model.
    """
    check_settings(settings, convertible=True)
    pairs = factor_pairs(weights)
    check_layers(pairs, settings, model)
    rank, alpha = int(settings.get("r", 8)), settings.get("lora_alpha", 8)
    shape = {"r": rank, "lora_alpha": alpha, "use_rslora": bool(settings.get("use_rslora"))}
    if not is_plain(settings):
        pairs = _converted(settings, pairs, model)
        rank = max(a.shape[0] for a, _ in pairs.values())
        pairs = {layer: _padded(a, b, rank) for layer, (a, b) in pairs.items()}
        shape = {"r": rank, "lora_alpha": float(rank), "use_rslora": False}
    kept = {
        name: settings[name]
        for name in ("base_model_name_or_path", "revision", "lora_dropout", "peft_version")
        if isinstance(settings.get(name), str | int | float)
    }
    plain_settings = {
        **kept,
        **shape,
        "peft_type": "LORA",
        **_selection(settings, pairs),
        "task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        "bias": "none",
        "fan_in_fan_out": _transposed(model.get_submodule(next(iter(pairs)))),
        "inference_mode": True,
    }
    factors = {}
    for layer, (a, b) in pairs.items():
        factors[f"{PREFIX}{layer}.lora_A.weight"] = a
        factors[f"{PREFIX}{layer}.lora_B.weight"] = b
    plain_factors(plain_settings, factors)  # raises where they are not finite
    return plain_settings, factors


def _converted(settings: Mapping[str, Any], pairs: Pairs, model: PreTrainedModel) -> Pairs:
    """Factors ``A`` and ``B`` of the whole update, the scale in ``B``, of each layer's own rank."""
    ranks, alphas = (settings.get(name) or {} for name in _PATTERNS)
    converted = {}
    for layer, (a, b) in pairs.items():
        rank = _of_pattern(ranks, layer, int(settings.get("r", 8)), "rank_pattern")
        if type(rank) is not int or rank != a.shape[0]:
            what = f"the factors of {layer} have rank {a.shape[0]}, the configuration {rank!r:.40}"
            raise BackboneError(f"the adapter is damaged: {what}", fix=_DAMAGED)
        alpha = _of_pattern(alphas, layer, settings.get("lora_alpha", 8), "alpha_pattern")
        check_settings({"lora_alpha": alpha})
        scale = _scale(settings, rank, alpha)
        a, b = a.float(), scale * b.float()
        if (init := _init(settings)) in _RESIDUAL:
            module = model.get_submodule(layer)
            weight = module.weight.detach().float().cpu()  # type: ignore[operator, union-attr]
            a, b = _joined(a, b, *_first_factors(init, weight, _transposed(module), rank, scale))
        converted[layer] = a, b
    return converted


def _first_factors(
    init: str, weight: torch.Tensor, transposed: bool, rank: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What peft began with: ``A0`` and ``B0`` with the scale in it.

    Args:
        init: `pissa` or `olora`.
        weight: float32, as the layer has it.
        transposed: whether that is ``(inputs, outputs)``.
        rank: of the factors.
        scale: of the update; PiSSA divides by it, OLoRA does not.
    """
    import torch

    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight.t() if transposed else weight, full_matrices=False)
        return vh[:rank], u[:, :rank] * s[:rank]
    q, r = torch.linalg.qr(weight)
    q, r = q[:, :rank], r[:rank]
    # peft decomposes the weight as it lies, whichever way that is.
    return (q.t(), scale * r.t()) if transposed else (r, scale * q)


def _joined(
    a: torch.Tensor, b: torch.Tensor, a0: torch.Tensor, b0: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of ``B A - B0 A0``."""
    import torch

    return torch.cat([a, a0]).contiguous(), torch.cat([b, -b0], 1).contiguous()


def _padded(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the same product with zeros up to a rank."""
    from torch.nn.functional import pad

    more = rank - a.shape[0]
    return pad(a, (0, 0, 0, more)), pad(b, (0, more))


def _of_pattern(patterns: Mapping[str, Any], layer: str, default: Any, name: str) -> Any:
    """A layer's own value, or the default; the first pattern that fits counts, as in peft."""
    for pattern, value in patterns.items():
        if not _simple(pattern):
            what = f"{name} of the adapter has an odd pattern: {pattern!r:.60}"
            raise BackboneError(what, fix="name the layers in it")
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _simple(pattern: str) -> bool:
    """Whether a regular expression of somebody else's is harmless to try on a layer's name."""
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    nested = re.search(r"[*+}]\??\)+[*+{]", pattern)
    if len(pattern) > 500 or repeats > 4 or nested:
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _targets(settings: Mapping[str, Any], name: str) -> bool | None:
    """Whether the settings name a layer as adapted; None where that takes more than names."""
    if settings.get("layers_to_transform") is not None or settings.get("layers_pattern"):
        return None
    targets = _matches(settings.get("target_modules"), name)
    excluded = _matches(settings.get("exclude_modules") or [], name)
    if targets is False or excluded:
        return False
    return targets if excluded is False else None


def _matches(names: Any, layer: str) -> bool | None:
    """Whether a layer is one of those that are named as peft's settings do it; None: unknown."""
    if isinstance(names, list):
        return any(isinstance(n, str) and (layer == n or layer.endswith(f".{n}")) for n in names)
    if names == "all-linear":
        return True
    if isinstance(names, str) and _simple(names):
        return re.fullmatch(names, layer) is not None
    return None


def _selection(settings: Mapping[str, Any], pairs: Pairs) -> dict[str, Any]:
    """What chooses the adapted layers: as it was where it is by name and number, else each name.

    Regular expressions of somebody else's are not kept.
    """
    targets, excluded, numbers, pattern = (settings.get(name) for name in _SELECTION)
    texts = [*targets, *(excluded or [])] if isinstance(targets, list) else [None]
    by_name = isinstance(excluded or [], list) and all(isinstance(text, str) for text in texts)
    several = numbers if isinstance(numbers, list) else [numbers]
    by_number = numbers is None or all(type(number) is int for number in several)
    if by_name and by_number and not pattern:
        return {name: settings[name] for name in _SELECTION if settings.get(name) is not None}
    return {"target_modules": sorted(pairs)}


def _linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _transposed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is ``(inputs, outputs)``."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _shape(module: nn.Module) -> tuple[int, int]:
    """A linear layer's ``(outputs, inputs)``."""
    rows, columns = module.weight.shape  # type: ignore[union-attr, misc]
    return (columns, rows) if _transposed(module) else (rows, columns)  # type: ignore[return-value]


def _kind_of(model: PreTrainedModel, layer: str) -> str:
    """The type of a module that is there; "" if it is not."""
    try:
        return type(model.get_submodule(layer)).__name__
    except AttributeError:
        return ""
