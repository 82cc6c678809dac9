"""One measurement of the benchmark, made in a process of its own: training, decoding or limit.

`measure(spec)` takes and returns plain dicts, which travel as JSON; `personalize.py` says which
measurements there are.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from personalize_data import stage
from personalize_peers import (
    Trained,
    generate_plain,
    mixed_model,
    steps_of,
    with_loop,
    with_trainer,
)

from pfi.inference.generation import generate
from pfi.models.adapters import Adapter, lora_config
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import Example
from pfi.train.config import TrainConfig
from pfi.train.job import Job, encode
from pfi.train.peft_reference import collate, target_loss
from pfi.train.trainers import TRAINERS

DECODE_PROMPT, DECODE_NEW, DECODE_USERS = 56, 64, 16


class Clock:
    """Wall-clock and CPU seconds of this process while it runs."""

    def __init__(self, device: torch.device) -> None:
        self.wall = self.cpu = 0.0
        self._device = device

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> None:
        wall, cpu = self._now()
        self.wall += wall - self._since[0]
        self.cpu += cpu - self._since[1]


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also counts what this process was before exec
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_people(spec: dict[str, Any]) -> list[dict[str, list[Example]]]:
    """Every person's examples to `train` on and those `held_back`."""
    people = json.loads(Path(spec["data"]).read_text(encoding="utf-8"))["people"]
    return [
        {
            part: [Example(prompt, target, {}, "") for prompt, target in person[part]][:most]
            for part, most in (("train", spec["examples"]), ("held_back", None))
        }
        for person in people[: spec["people"]]
    ]


def config_of(spec: dict[str, Any]) -> TrainConfig:
    keys = ("batch_size", "max_length", "epochs", "layers", "precision")
    return TrainConfig(warmup=0.0, **{key: spec[key] for key in keys})


def load(spec: dict[str, Any]) -> Backbone:
    torch.set_num_threads(spec["threads"])
    return load_backbone(spec["model_path"], device=spec["device"])


def with_engine(
    backbone: Backbone, jobs: Iterable[Job], config: TrainConfig, working_set: int
) -> Iterator[Trained]:
    """Our engine, with that many users in one pass."""
    kind: Any = TRAINERS["bank"]
    accepted = "working_set" in inspect.signature(kind).parameters
    engine = kind(working_set=working_set) if accepted else kind()
    for job, result in engine.train_many(backbone, jobs, config):
        assert result is not None and not result.stopped, result and result.stopped
        yield Trained(job.id, result.adapter, fmean(result.losses))


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Train an adapter for every job; jobs beyond the people repeat them with another seed."""
    backbone, config, people = load(spec), config_of(spec), read_people(spec)
    loaded = peak_memory()
    jobs = [
        Job(str(i), people[i % len(people)]["train"], seed=spec["seed"] + i)
        for i in range(spec["jobs"])
    ]

    def run(jobs: list[Job], config: TrainConfig) -> Iterator[Trained]:
        if spec["method"] == "bank":
            return with_engine(backbone, jobs, config, spec["working_set"])
        return (with_trainer if spec["method"] == "trainer" else with_loop)(backbone, jobs, config)

    # One step each as a warm-up: imports, thread pools and allocators are not what is compared.
    few = config.model_copy(update={"epochs": 1e-6})
    for _ in run(jobs[: spec["working_set"]], few):
        pass
    clock, losses, first, size = Clock(backbone.device), [], {}, 0
    clock.start()
    for trained in run(jobs, config):
        clock.stop()  # what becomes of an adapter is the same for all methods and not counted
        losses.append(trained.loss)
        size = sum(w.numel() * w.element_size() for w in trained.adapter.weights.values())
        if int(trained.id) < len(people):
            first[int(trained.id)] = trained.adapter
        clock.start()
    clock.stop()
    # The kernel counts pages by processor and adds up late: a peak may read some pages lower.
    peak, steps = max(loaded, peak_memory()), steps_of(len(jobs[0].load()), config)
    found = {
        "engine": TRAINERS["bank"].__name__ if spec["method"] == "bank" else spec["method"],
        "steps": steps,
        "ms_per_user_step": 1000 * clock.wall / (len(jobs) * steps),
        "wall_s_per_user": clock.wall / len(jobs),
        "cpu_s_per_user": clock.cpu / len(jobs),
        "users_per_hour": 3600 * len(jobs) / clock.wall,
        "loaded_bytes": loaded,
        "peak_bytes": peak,
        "adapter_bytes": size,
        "train_loss": fmean(losses),
    }
    if backbone.device.type == "cuda":
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    found["held_back_loss"] = fmean(
        held_back_loss(backbone, person["held_back"], first[i], spec["max_length"])
        for i, person in enumerate(people)
    )
    found["held_back_loss_before"] = fmean(
        held_back_loss(backbone, person["held_back"], None, spec["max_length"]) for person in people
    )
    return found


@torch.no_grad()
def held_back_loss(
    backbone: Backbone, examples: Sequence[Example], adapter: Adapter | None, max_length: int
) -> float:
    """Mean cross-entropy of the target tokens, in float32, with the adapter merged."""
    merged = backbone.with_adapters([adapter] if adapter else [])
    total = tokens = 0
    for example in examples:
        row = encode(merged, example, max_length)
        loss = target_loss(merged.model, collate(merged, [row]), seq2seq=False)
        total, tokens = total + loss.item() * len(row[1]), tokens + len(row[1])
    return total / tokens


# Decoding -------------------------------------------------------------------------------


def some_adapters(backbone: Backbone, count: int) -> list[Adapter]:
    """Adapters with random factors, none of which leaves the model as it is."""
    from peft import get_peft_model

    adapters = []
    for seed in range(count):
        torch.manual_seed(seed)
        model: Any = get_peft_model(backbone.model, lora_config(TrainConfig(), backbone.model))
        adapter = Adapter.of(model)
        model.unload()
        weights = {k: torch.randn_like(v) * 0.02 for k, v in adapter.weights.items()}
        adapters.append(Adapter(adapter.settings, weights))
    return adapters


class Endless:
    """While active, no backbone has an end token, so that every row is decoded to the limit."""

    def __enter__(self) -> None:
        self._kept = Backbone.end_ids
        Backbone.end_ids = property(lambda self: frozenset())  # type: ignore[assignment, method-assign]

    def __exit__(self, *_: Any) -> None:
        Backbone.end_ids = self._kept  # type: ignore[method-assign]


def decode(spec: dict[str, Any]) -> dict[str, Any]:
    """Greedy decoding of a batch: prompts of equal length, a fixed number of new tokens."""
    backbone, people, rows = load(spec), read_people(spec), spec["batch"]
    adapters = some_adapters(backbone, DECODE_USERS)
    prompts = [example.prompt for person in people for example in person["train"]]
    prompts = [prompts[i % len(prompts)] for i in range(rows)]
    slots = [i % DECODE_USERS for i in range(rows)]
    ids = [backbone.prompt_ids(prompt, DECODE_PROMPT) for prompt in prompts]
    method, model = spec["method"], backbone.model
    if spec["precision"] == "bfloat16" and method != "bank":
        model.to(torch.bfloat16)
    if method == "bank":
        from pfi.models.bank.bank import AdapterBank

        bank = AdapterBank(backbone, TrainConfig(), DECODE_USERS, precision=spec["precision"])
        places = [bank.add(adapter) for adapter in adapters]
        slots, model = [places[slot] for slot in slots], bank.backbone.model
    if method == "peft":
        model, names = mixed_model(backbone, adapters)
    tokens = torch.tensor(ids, device=backbone.device) if len({*map(len, ids)}) == 1 else None
    assert tokens is not None, "the prompts are not of one length"

    def once(new: int) -> None:
        if method == "base":
            generate(backbone, prompts, new, batch_size=rows, max_prompt=DECODE_PROMPT)
        elif method == "bank":
            more: dict[str, Any] = {"batch_size": rows, "max_prompt": DECODE_PROMPT}
            if "slots" in inspect.signature(generate).parameters:
                generate(bank.backbone, prompts, new, slots=slots, **more)
            else:
                with bank.backbone.rows(slots):
                    generate(bank.backbone, prompts, new, **more)
        else:
            more = {"adapter_names": [names[slot] for slot in slots]} if method == "peft" else {}
            generate_plain(model, tokens, new, backbone.pad_id, **more)

    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    seconds: list[float] = []
    with Endless():
        once(4)
        handle = model.get_input_embeddings().register_forward_hook(count)
        while len(seconds) < 3 and (not seconds or sum(seconds) < spec["decode_seconds"]):
            passes[0] = 0
            clock = Clock(backbone.device)
            clock.start()
            once(DECODE_NEW)
            clock.stop()
            # A row that ended early would make its method look fast.
            assert passes[0] >= DECODE_NEW, f"{passes[0]} passes for {DECODE_NEW} tokens"
            seconds.append(clock.wall)
        handle.remove()
    return {
        "tokens_per_s": rows * DECODE_NEW / median(seconds),
        "runs": len(seconds),
        "peak_bytes": peak_memory(),
    }


# The limit ------------------------------------------------------------------------------


def limits(spec: dict[str, Any]) -> dict[str, Any]:
    """The limit for each of the spec's `points`, pairs of adapted layers and users at once."""
    backbone, config, people = load(spec), config_of(spec), read_people(spec)
    rows = [
        encode(backbone, example, config.max_length)
        for person in people
        for example in person["train"]
    ]
    length = fmean(len(prompt) + len(target) for prompt, target in rows)
    targets = fmean(len(target) for _, target in rows)
    points = []
    for layers, users in spec["points"]:
        here = config.model_copy(update={"layers": layers})
        count = users * config.batch_size
        work = products(backbone, here, round(count * length), max(1, round(count * targets)))
        seconds = sum(
            share * product_seconds(part, backbone.device, spec["limit_seconds"])
            for part, share in work
        )
        flop = sum(
            share * 2 * n * weight.numel() * (1 + backward)
            for part, share in work
            for weight, n, backward in part
        )
        points.append(
            {
                "layers": layers,
                "working_set": users,
                "ms_per_user_step": 1000 * seconds / users,
                "gflop_per_s": flop / seconds / 1e9,
                "tokens_a_row": length,
                "products": [
                    {"weight": list(weight.shape), "rows": n, "backward": back, "share": share}
                    for part, share in work
                    for weight, n, back in part
                ],
            }
        )
    return {"points": points}


#: A product: the weight, how many rows it is applied to, whether its input needs a gradient.
Product = tuple[torch.Tensor, int, bool]


def products(
    backbone: Backbone, config: TrainConfig, tokens: int, targets: int
) -> list[tuple[list[Product], float]]:
    """The matrix products that a step cannot do without, and how often a step each part runs.

    The backbone's linear layers forward on all tokens, and backward (towards the input) where a
    lower adapter needs it; the output layer on target positions only. With upper layers only,
    the lower blocks run forward once a record and not once an epoch.
    """
    model: Any = backbone.model
    blocks = list(model.model.layers)
    first = 0 if config.layers == "all" else len(blocks) - int(config.layers.partition(":")[2])
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    lower: list[Product] = []
    upper: list[Product] = []
    for number, block in enumerate(blocks):
        for name, layer in block.named_modules():
            if isinstance(layer, torch.nn.Linear):
                on_input = name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj")
                backward = number > first or (number == first and not on_input)
                weight = layer.weight.detach().to(dtype)
                (upper if number >= first else lower).append((weight, tokens, backward))
    head = model.get_output_embeddings().weight.detach().to(dtype)
    upper.append((head, targets, True))
    return [(upper, 1.0), (lower, 1 / config.epochs)]


@torch.inference_mode()
def product_seconds(part: list[Product], device: torch.device, at_least: float) -> float:
    """Median time of all products of a part, in order, forward and then backward."""
    if not part:
        return 0.0
    x = {(w.shape[1], n): torch.randn(n, w.shape[1]).to(w) for w, n, _ in part}
    g = {(w.shape[0], n): torch.randn(n, w.shape[0]).to(w) for w, n, _ in part}
    passes: list[float] = []
    while len(passes) < 3 or sum(passes) < at_least:
        clock = Clock(device)
        clock.start()
        for weight, n, _ in part:
            F.linear(x[weight.shape[1], n], weight)
        for weight, n, backward in reversed(part):
            if backward:
                torch.matmul(g[weight.shape[0], n], weight)
        clock.stop()
        passes.append(clock.wall)
    return median(passes)


def about(spec: dict[str, Any]) -> dict[str, Any]:
    """The machine, the versions and the model's size."""
    import peft
    import transformers

    from pfi.evaluate.study.study import machine

    backbone = load(spec)
    return {
        "machine": machine(),
        "cpus": os.cpu_count(),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "parameters": sum(p.numel() for p in backbone.model.parameters()),
        "blocks": backbone.model.config.num_hidden_layers,
    }


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Do what the spec's `kind` says."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    kinds = {"train": train, "decode": decode, "limit": limits, "about": about, "stage": stage}
    return kinds[spec["kind"]](spec)
