#!/usr/bin/env python
"""Pretrain the embedded backbone: tokenizer, language modelling, instruction formats.

Three steps, each resumable and each with a time budget rather than a step count, so
that the learning-rate schedule always reaches zero on the machine at hand:

    DATA="--data ../shared/data/pretrain --out build/pretrain"
    python scripts/pretrain.py tokenizer $DATA
    python scripts/pretrain.py text $DATA --minutes 60
    python scripts/pretrain.py instruct $DATA --minutes 60
    python scripts/pretrain.py export --out build/pretrain --to src/pfi/models/embedded

Only sources in ``OPEN_SOURCES`` are read; everything else in the corpus is skipped, so
the weights may be redistributed.  Method: Llama architecture, Muon (Jordan et al. 2024)
on hidden matrices and AdamW elsewhere, bf16 autocast over float32 weights, packed
sequences, warm-up / constant / linear-to-zero schedule.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Source prefix -> (licence, sampling weight).  A source that is not here is never read.
OPEN_SOURCES: dict[str, tuple[str, float]] = {
    "books/": ("public domain (US)", 30.0),
    "textbooks/openstax-sociology": ("CC BY", 5.0),
    "textbooks/openstax-economics": ("CC BY", 4.0),
    "textbooks/openstax-psychology": ("CC BY", 4.0),
    "encyclopedic/wiki-split": ("CC BY-SA 4.0", 8.0),
    "encyclopedic/wikitext-2": ("CC BY-SA 3.0", 0.2),
    "encyclopedic/factbook": ("CC0 / public domain", 3.0),
    "dialog/topical-chat": ("CDLA", 9.0),
    "email/dpdk": ("BSD-3-Clause / GPL-2.0", 7.0),
    "email/ovs": ("Apache-2.0", 6.0),
    "email/notmuch": ("GPL-3.0+", 2.0),
    "news/huffpost": ("CC BY 4.0", 6.0),
    "speeches": ("public domain", 4.0),
    "papers/acl": ("CC BY 4.0 (ACL Anthology)", 3.0),
    "papers/naacl": ("CC BY 4.0 (ACL Anthology)", 4.0),
    "papers/emnlp": ("CC BY 4.0 (ACL Anthology)", 3.0),
    "papers/coling": ("CC BY 4.0 (ACL Anthology)", 3.0),
}

SPECIAL_TOKENS = ["<|pad|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {  # name: hidden size, intermediate size, layers, heads
    "7m": (256, 704, 6, 4),
    "25m": (448, 1216, 10, 7),
}
CONTEXT = 2048


def open_source(source: str) -> str | None:
    """The key of ``OPEN_SOURCES`` that admits ``source``, or None."""
    for key in OPEN_SOURCES:
        if source == key or (key.endswith("/") and source.startswith(key)):
            return key
    return None


def read_documents(data: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(source key, text)`` of every openly licensed document below ``data``."""
    for path in sorted(data.glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                key = open_source(document["source"])
                if key is not None:
                    yield key, document["text"]


def train_tokenizer(data: Path, out: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the open documents; digits are split one by one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    # Books are two thirds of the open text: a quarter of them keeps the merges balanced.
    texts = (
        text for i, (key, text) in enumerate(read_documents(data)) if key != "books/" or i % 4 == 0
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out / "tokenizer")
    return fast


@dataclass
class Stream:
    """One group's tokens, cut into windows whose order changes every epoch."""

    tokens: np.ndarray  # (n,) uint16
    weights: np.ndarray  # (n,) float16: loss weight of predicting each token
    share: float
    cursor: int = 0
    epoch: int = 0

    def window(self, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The next ``length + 1`` tokens and their loss weights."""
        rng = np.random.default_rng([seed, self.epoch, length, len(self.tokens)])
        phase = int(rng.integers(length))
        count = max(1, (len(self.tokens) - phase - 1) // length)
        if self.cursor >= count:
            self.epoch, self.cursor = self.epoch + 1, 0
            return self.window(length, seed)
        start = phase + int(rng.permutation(count)[self.cursor]) * length
        self.cursor += 1
        piece = slice(start, start + length + 1)
        return self.tokens[piece], self.weights[piece]


class Mixture:
    """Draws packed batches from several streams in proportion to their shares."""

    def __init__(self, streams: dict[str, Stream], seed: int) -> None:
        self.streams = {k: s for k, s in streams.items() if len(s.tokens) > CONTEXT + 1}
        self.seed = seed
        total = sum(s.share for s in self.streams.values())
        self.probabilities = [s.share / total for s in self.streams.values()]

    def batch(self, step: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids ``(rows, length + 1)`` and loss weights ``(rows, length + 1)``."""
        rng = np.random.default_rng([self.seed, step])
        names = rng.choice(list(self.streams), size=rows, p=self.probabilities)
        windows = [self.streams[str(name)].window(length, self.seed) for name in names]
        ids = torch.from_numpy(np.stack([w[0] for w in windows]).astype(np.int64))
        weights = torch.from_numpy(np.stack([w[1] for w in windows]).astype(np.float32))
        return ids, weights

    def state(self) -> dict[str, list[int]]:
        return {k: [s.cursor, s.epoch] for k, s in self.streams.items()}

    def restore(self, state: dict[str, list[int]]) -> None:
        for key, (cursor, epoch) in state.items():
            if key in self.streams:
                self.streams[key].cursor, self.streams[key].epoch = cursor, epoch


def text_streams(
    data: Path, out: Path, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Stream], dict[str, np.ndarray]]:
    """Tokenise the open documents once (cached in ``out``); one document in 100 is held out."""
    cache = out / "tokens.safetensors"
    if not cache.exists():
        grouped: dict[str, list[list[int]]] = {}
        held_out: dict[str, list[list[int]]] = {}
        texts, keys = [], []
        for key, text in read_documents(data):
            keys.append(key)
            texts.append(text)
        for start in range(0, len(texts), 2000):
            ids = tokenizer(texts[start : start + 2000], add_special_tokens=False)["input_ids"]
            for i, row in enumerate(ids, start):
                target = held_out if i % 100 == 99 else grouped
                target.setdefault(keys[i], []).append([tokenizer.bos_token_id, *row])
        tensors = {}
        for prefix, groups in (("train", grouped), ("valid", held_out)):
            for key, rows in groups.items():
                order = np.random.default_rng(0).permutation(len(rows))
                flat = np.concatenate([np.array(rows[i], dtype=np.uint16) for i in order])
                tensors[f"{prefix}|{key}"] = torch.from_numpy(flat)
        save_file(tensors, cache)
    train: dict[str, Stream] = {}
    valid: dict[str, np.ndarray] = {}
    for name, tensor in load_file(cache).items():
        prefix, key = name.split("|", 1)
        tokens = tensor.numpy()
        if prefix == "valid":
            valid[key] = tokens
        else:
            share = OPEN_SOURCES[key][1]
            train[key] = Stream(tokens, np.ones(len(tokens), dtype=np.float16), share)
    return train, valid


#: Share of each kind of instruction example; the rest of the mixture is plain text.
INSTRUCTION_SHARES = {
    "LaMP_4": 9.0,
    "LaMP_5": 9.0,
    "LaMP_6": 14.0,
    "topic": 7.0,
    "related": 4.0,
    "rewrite": 12.0,
    "continuation": 5.0,
    "chat": 5.0,
    "repeat": 4.0,
    "facts": 1.0,
}
PLAIN_SHARE = 30.0
PROMPT_WEIGHT = 0.1  # of predicting a prompt's token, against 1 for a target's


def instruction_streams(
    data: Path, tokenizer: PreTrainedTokenizerFast, seed: int
) -> dict[str, Stream]:
    """Instruction examples in the chat format, packed; targets weigh ten times a prompt."""
    from instruct_data import instruction_pairs

    user, assistant, end = (
        tokenizer.convert_tokens_to_ids(token) for token in ("<|user|>", "<|assistant|>", "<|end|>")
    )
    streams = {}
    for kind, pairs in instruction_pairs(read_documents(data), seed).items():
        tokens: list[int] = []
        weights: list[float] = []
        options = {"add_special_tokens": False, "split_special_tokens": True}
        prompts = tokenizer([prompt for prompt, _ in pairs], **options)["input_ids"]
        targets = tokenizer([target for _, target in pairs], **options)["input_ids"]
        for prompt, target in zip(prompts, targets, strict=True):
            tokens += [user, *prompt, assistant, *target, end]
            weights += [0.0, *[PROMPT_WEIGHT] * len(prompt), 0.0, *[1.0] * (len(target) + 1)]
        print(f"{kind}: {len(pairs)} examples, {len(tokens) / 1e6:.2f}M tokens", flush=True)
        streams[kind] = Stream(
            np.array(tokens, dtype=np.uint16),
            np.array(weights, dtype=np.float16),
            INSTRUCTION_SHARES[kind],
        )
    return streams


def export(
    instruct: Checkpoint, tokenizer: PreTrainedTokenizerFast, to: Path, plot: Path | None
) -> None:
    """Write the finished backbone (bfloat16 safetensors), tokenizer and training log."""
    model = LlamaForCausalLM.from_pretrained(instruct.folder / "model", dtype=torch.bfloat16)
    to.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    stages = {"instruct": instruct.progress()}
    text = Checkpoint(instruct.folder.parent / "text")
    if text.exists():
        stages = {"text": text.progress(), **stages}
    for stage in stages.values():
        stage.pop("streams")
    (to / "training.json").write_text(json.dumps(stages, indent=1) + "\n")
    if plot is not None:
        plot_losses(stages, plot)


def plot_losses(training: dict[str, dict], to: Path) -> None:
    """Held-out loss against tokens over all stages, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="million tokens", ylabel="held-out loss (nats a token)")
    before = 0
    for name, stage in training.items():
        tokens = [(before + entry["tokens"]) / 1e6 for entry in stage["log"]]
        losses = [np.mean(list(entry["valid"].values())) for entry in stage["log"]]
        axes.plot(tokens, losses, marker="o", markersize=3, label=name)
        before += stage["tokens"]
    axes.grid(alpha=0.3)
    axes.legend()
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=120)


def build_model(size: str, vocab_size: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of the named size, embeddings tied."""
    hidden, intermediate, layers, heads = SIZES[size]
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_theta=10000.0,
            bos_token_id=1,
            eos_token_id=4,
            pad_token_id=0,
        )
    )


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=0.01, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_scale(progress: float, warmup: float, decay: float) -> float:
    """Linear warm-up over ``warmup``, constant, linear to zero over the last ``decay``."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    if progress > 1 - decay:
        return max((1 - progress) / decay, 0.0)
    return 1.0


class Checkpoint:
    """Model, optimiser state, data position and log of a run, in safetensors and JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self) -> bool:
        return (self.folder / "progress.json").exists()

    def save(
        self,
        model: LlamaForCausalLM,
        optimizers: list[torch.optim.Optimizer],
        progress: dict,
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {}
        for i, optimizer in enumerate(optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    state[f"{i}.{index}.{key}"] = torch.as_tensor(value).contiguous()
        model.save_pretrained(self.folder / "model")
        save_file(state, self.folder / "optimizer.tmp")
        (self.folder / "optimizer.tmp").replace(self.folder / "optimizer.safetensors")
        (self.folder / "progress.tmp").write_text(json.dumps(progress))
        (self.folder / "progress.tmp").replace(self.folder / "progress.json")

    def restore_optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        saved = load_file(self.folder / "optimizer.safetensors")
        for i, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in saved.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == i:
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def progress(self) -> dict:
        return json.loads((self.folder / "progress.json").read_text())


def weighted_loss(model: Callable, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean next-token cross-entropy of ``ids`` ``(rows, length + 1)``."""
    logits = model(input_ids=ids[:, :-1]).logits
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    target_weights = weights[:, 1:].flatten()
    return (losses * target_weights).sum() / target_weights.sum().clamp(min=1.0)


@torch.no_grad()
def validate(
    model: LlamaForCausalLM, valid: dict[str, np.ndarray], device: str
) -> dict[str, float]:
    """Mean loss per group on at most 16 held-out windows of 512 tokens each."""
    scores = {}
    for key, tokens in valid.items():
        count = min(16, (len(tokens) - 1) // 512)
        if count == 0:
            continue
        rows = np.stack([tokens[i * 512 : i * 512 + 513] for i in range(count)])
        ids = torch.from_numpy(rows.astype(np.int64)).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            scores[key] = float(weighted_loss(model, ids, torch.ones_like(ids)))
    return scores


@dataclass
class Plan:
    """One training stage: how long, which lengths, which schedule."""

    minutes: float
    lengths: list[tuple[float, int]]  # from this progress on, this sequence length
    warmup: float
    decay: float
    tokens_per_step: int
    seed: int


def train(
    model: LlamaForCausalLM,
    mixture: Mixture,
    valid: dict[str, np.ndarray],
    plan: Plan,
    checkpoint: Checkpoint,
    initial: Checkpoint | None,
) -> None:
    """Run ``plan`` until its time is spent; a killed run goes on from its checkpoint."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    micro_tokens = 65536 if device == "cuda" else 2048
    model = model.to(device)
    optimizers = build_optimizers(model)
    base_rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    log: list[dict] = []
    step = tokens = 0
    spent = 0.0
    if checkpoint.exists():
        saved = checkpoint.progress()
        step, tokens, spent, log = saved["step"], saved["tokens"], saved["seconds"], saved["log"]
        mixture.restore(saved["streams"])
        checkpoint.restore_optimizers(optimizers)
    elif initial is not None:
        initial.restore_optimizers(optimizers)
    compiled = torch.compile(model)
    started = last_save = time.monotonic()
    running = 0.0
    budget = plan.minutes * 60

    def snapshot() -> None:
        log.append({"step": step, "tokens": tokens, "seconds": round(spent), "loss": running})
        log[-1]["valid"] = validate(model, valid, device)
        progress = {"step": step, "tokens": tokens, "seconds": spent, "log": log}
        progress |= {"streams": mixture.state(), "plan": asdict(plan)}
        progress["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {device}"
        checkpoint.save(model, optimizers, progress)
        mean = sum(log[-1]["valid"].values()) / max(1, len(log[-1]["valid"]))
        print(f"saved at step {step}: valid {mean:.3f}", flush=True)

    while spent < budget:
        progress = spent / budget
        length = [n for start, n in plan.lengths if progress >= start][-1]
        rows = max(1, micro_tokens // length)
        micro_steps = max(1, plan.tokens_per_step // (rows * length))
        scale = learning_rate_scale(progress, plan.warmup, plan.decay)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        ids, weights = mixture.batch(step, rows * micro_steps, length)
        ids, weights = ids.to(device), weights.to(device)
        for start in range(0, len(ids), rows):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = weighted_loss(
                    compiled, ids[start : start + rows], weights[start : start + rows]
                )
            (loss / micro_steps).backward()
            running = loss.item() if running == 0 else 0.99 * running + 0.01 * loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += ids.shape[0] * length
        now = time.monotonic()
        spent += now - started
        started = now
        if not math.isfinite(running):
            raise SystemExit(f"loss is not finite at step {step}: lower the learning rate")
        if step % 20 == 0:
            print(
                f"step {step}  {tokens / 1e6:.2f}M tokens  {spent / 60:.1f} min  "
                f"length {length}  lr x{scale:.2f}  loss {running:.3f}",
                flush=True,
            )
        if now - last_save > 240:
            snapshot()
            last_save = started = time.monotonic()
    snapshot()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["tokenizer", "text", "instruct", "export"])
    parser.add_argument("--data", type=Path, help="folder of *.jsonl.xz shards")
    parser.add_argument("--out", type=Path, required=True, help="working folder")
    parser.add_argument("--size", choices=SIZES, default="7m")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, help="export: folder of the finished backbone")
    parser.add_argument("--plot", type=Path, help="export: PNG of the loss curve")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    if args.stage == "tokenizer":
        train_tokenizer(args.data, args.out, args.vocab)
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out / "tokenizer")
    text, instruct = Checkpoint(args.out / "text"), Checkpoint(args.out / "instruct")
    if args.stage == "export":
        export(instruct, tokenizer, args.to, args.plot)
        return
    streams, valid = text_streams(args.data, args.out, tokenizer)
    if args.stage == "text":
        model = build_model(args.size, len(tokenizer))
        if text.exists():
            model = LlamaForCausalLM.from_pretrained(text.folder / "model", dtype=torch.float32)
        lengths = [(0.0, 256), (0.5, 512)]
        plan = Plan(args.minutes, lengths, 0.03, 0.0, args.tokens_per_step, args.seed)
        train(model, Mixture(streams, args.seed), valid, plan, text, None)
    elif args.stage == "instruct":
        source = instruct if instruct.exists() else text
        model = LlamaForCausalLM.from_pretrained(source.folder / "model", dtype=torch.float32)
        plain = sum(stream.share for stream in streams.values())
        for stream in streams.values():
            stream.share *= PLAIN_SHARE / plain
        if text.exists():
            Mixture(streams, args.seed).restore(text.progress()["streams"])
        streams |= instruction_streams(args.data, tokenizer, args.seed)
        plan = Plan(
            args.minutes, [(0.0, 512), (0.6, 1024)], 0.0, 1.0, args.tokens_per_step, args.seed
        )
        train(model, Mixture(streams, args.seed), valid, plan, instruct, text)


if __name__ == "__main__":
    main()
