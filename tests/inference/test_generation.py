"""Batched scores and texts against plain transformers, one prompt at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_world import make_adapter, transformers_greedy, whole

from conftest import FAMILIES
from pfi.errors import ConfigError
from pfi.inference import decoding
from pfi.inference.answering import answers, combined, sampling_of
from pfi.inference.engine import Request
from pfi.inference.generation import generate
from pfi.inference.torch.engine import TorchEngine
from pfi.inference.torch.sampling import Nucleus
from pfi.models import attention as padding
from pfi.models.attention import _FAMILIES, takes_masks
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.scoring import score_labels
from pfi.tasks import get_task

Folder = Callable[[str], Path]
PROMPTS = [
    "a quick brown fox",
    "the lazy dog jumps over a film title " * 3,
    "1",
    "good film, bad book " * 2,
    "over the dog",
    "fine book 3",
]
LABELS = ["1", "good", "a lazy dog, fine", "good dog"]
NEW = 10


def tiny(family: str, tokenizer: Any) -> Backbone:
    """A random backbone of any decoder-only family, with attention that matters."""
    import transformers as t

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2}
    config = t.AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
        **sizes,
        **({"head_dim": 8} if family in ("gemma", "qwen3") else {}),
    )
    model = t.AutoModelForCausalLM.from_config(config).eval()
    return Backbone(family, model, tokenizer, False, 512)


def full_score(backbone: Backbone, prompt: str, label: str) -> float:
    """A label's log-probability by one plain pass over prompt and label."""
    model: Any = backbone.model
    ids, target = backbone.prompt_ids(prompt), backbone.target_ids(label)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *target]]), use_cache=False).logits
    chosen = logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
    return float(chosen[range(len(target)), target].sum())


def text_of(backbone: Backbone, ids: Sequence[int]) -> str:
    ends = [at for at, token in enumerate(ids) if token in backbone.end_ids]
    ids = ids[: min(ends, default=len(ids))]
    text = str(backbone.tokenizer.decode(list(ids), skip_special_tokens=True))
    return whole(text).strip()  # as an engine shows it


@dataclass(frozen=True)
class Ending(Backbone):
    """A backbone that ends its answers with another token."""

    end: int = 1

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset({self.end})

    def prompt_ids(self, prompt: str, limit: int | None = None) -> list[int]:
        """With the frame of the usual end token."""
        plain = Backbone(**{f.name: getattr(self, f.name) for f in fields(Backbone)})
        return plain.prompt_ids(prompt, limit)


def with_end(backbone: Backbone, end: int) -> Ending:
    return Ending(**{f.name: getattr(backbone, f.name) for f in fields(Backbone)}, end=end)


def sharpen(backbone: Backbone) -> Backbone:
    """Larger weights, so that prompts matter and greedy choices are far apart."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in backbone.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_end_early_leave_and_answers_stay_those_of_transformers(
    backbone_folder: Folder, family: str
) -> None:
    backbone = sharpen(load_backbone(backbone_folder(family)))
    outputs = [transformers_greedy(backbone, prompt, NEW) for prompt in PROMPTS]
    assert len({tuple(row) for row in outputs}) > 2, "the prompts make no difference"
    # As the end token take one that answers reach at different steps.
    ends = {
        t: [row.index(t) if t in row else NEW for row in outputs]
        for t in {token for row in outputs for token in row}
    }
    end = max(ends, key=lambda t: (len(set(ends[t])), -t))
    assert len(set(ends[end])) > 2, "no token ends the answers at different steps"
    ending = with_end(backbone, end)
    expected = [text_of(ending, row) for row in outputs]
    sizes: list[int] = []
    hook = backbone.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    assert generate(ending, PROMPTS, NEW) == expected
    assert sizes[0] == len(PROMPTS) > sizes[-1]
    hook.remove()
    assert generate(ending, PROMPTS, NEW, batch_size=2) == expected


@pytest.mark.parametrize("family", sorted(_FAMILIES))
def test_every_listed_family_takes_masks_and_positions(
    backbone_folder: Folder, family: str
) -> None:
    backbone = tiny(family, load_backbone(backbone_folder("llama")).tokenizer)
    assert takes_masks(backbone, 200)
    scores = score_labels(backbone, PROMPTS, LABELS, batch_tokens=300)
    for prompt, row in zip(PROMPTS, scores, strict=True):
        expected = [full_score(backbone, prompt, label) for label in LABELS]
        assert row == pytest.approx(expected, abs=1e-4)
    assert len({round(row[0], 2) for row in scores}) == len(PROMPTS)
    expected_texts = [text_of(backbone, transformers_greedy(backbone, p, NEW)) for p in PROMPTS]
    assert generate(backbone, PROMPTS, NEW) == expected_texts


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_models_of_other_kinds_give_the_same_by_their_own_means(
    backbone_folder: Folder, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = sharpen(load_backbone(backbone_folder(family)))
    sampling: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 4}

    def everything() -> tuple[Any, ...]:
        scores = torch.tensor(score_labels(backbone, PROMPTS, LABELS))
        texts = generate(backbone, PROMPTS, NEW), generate(backbone, PROMPTS, NEW, **sampling)
        return scores, *texts

    ours = everything()
    monkeypatch.setattr(padding, "_FAMILIES", set())
    monkeypatch.setattr(decoding, "_SEQ2SEQ", set())
    assert isinstance(decoding.start(backbone, [[5]], 1), decoding.SingleRows)
    theirs = everything()
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=0)
    assert ours[1:] == theirs[1:]
    assert ours[1] != ours[2]


def test_attention_that_reaches_less_far_than_a_row_is_left_to_the_model(
    backbone_folder: Folder,
) -> None:
    tokenizer = load_backbone(backbone_folder("llama")).tokenizer
    backbone = tiny("mistral", tokenizer)
    backbone.model.config.sliding_window = 8
    assert takes_masks(backbone, 8) and not takes_masks(backbone, 9)
    scores = score_labels(backbone, PROMPTS, LABELS)
    for prompt, row in zip(PROMPTS, scores, strict=True):
        expected = [full_score(backbone, prompt, label) for label in LABELS]
        assert row == pytest.approx(expected, abs=1e-4)
    expected_texts = [text_of(backbone, transformers_greedy(backbone, p, NEW)) for p in PROMPTS]
    assert generate(backbone, PROMPTS, NEW) == expected_texts


def test_half_precision_scores_are_close(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    half = replace(backbone, model=load_backbone(backbone_folder("llama")).model.bfloat16())
    exact = torch.tensor(score_labels(backbone, PROMPTS, LABELS))
    rounded = torch.tensor(score_labels(half, PROMPTS, LABELS))
    assert 0 < (exact - rounded).abs().max() < 0.3
    assert len(generate(half, PROMPTS, 3)) == len(PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_answers_follow_from_the_seed_and_the_prompts_number_alone(
    backbone_folder: Folder, family: str
) -> None:
    backbone = sharpen(load_backbone(backbone_folder(family)))
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 1}
    texts = generate(backbone, PROMPTS, NEW, **options)
    assert texts == generate(backbone, PROMPTS, NEW, batch_size=2, **options)
    assert texts[:3] == generate(backbone, PROMPTS[:3], NEW, **options)
    assert texts != generate(backbone, PROMPTS, NEW, **{**options, "seed": 2})
    same = generate(backbone, PROMPTS[:1] * 4, NEW, **options)
    assert same[0] == texts[0] and len(set(same)) > 1


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_sampling_draws_by_probability_within_the_nucleus(top_p: float) -> None:
    likely = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    pick = Nucleus(temperature=0.5, top_p=top_p, seed=0)
    # At temperature 0.5 the probabilities are those squared: .037 .593 .009 .231 .130
    draws = 4000
    logits = likely.log().expand(draws, -1)
    counts = Counter(pick(logits, range(draws)).tolist())
    kept = likely.square() if top_p == 1 else likely.square() * torch.tensor([0, 1, 0, 1, 0])
    for token, probability in enumerate((kept / kept.sum()).tolist()):
        assert counts[token] / draws == pytest.approx(probability, abs=0.03)
        assert (counts[token] > 0) == (probability > 0)
    # A flat distribution, whose nucleus is wider than what is ranked at first.
    flat = Nucleus(1.0, 0.9, 0)(torch.zeros(500, 3000), range(500))
    assert len(set(flat.tolist())) > 350
    # Beside one that is narrow: each row gets what it gets alone.
    mixed = torch.zeros(2, 3000)
    mixed[0, 7] = 30
    together = Nucleus(1.0, 0.9, 0)(mixed, [0, 1]).tolist()
    assert together == [7, int(Nucleus(1.0, 0.9, 0)(mixed[1:], [1]))]


def test_wrong_sampling_settings_are_refused(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ConfigError):
            generate(backbone, PROMPTS, 2, **wrong)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recorder(Backbone):
    """Notes, for every pass through the blocks, the slots it ran with and the tokens it got."""

    now: list[Any] = field(default_factory=lambda: [None])
    seen: list[tuple[list[int] | None, torch.Tensor]] = field(default_factory=list)

    @contextmanager
    def rows(self, slots: Sequence[int] | None) -> Iterator[None]:
        assert self.now == [None]
        self.now[:] = [None if slots is None else list(slots)]
        yield
        self.now[:] = [None]

    def watch(self) -> None:
        """Begin to note; an encoder and a decoder have an input layer each."""

        def note(module: Any, inputs: Any, output: Any) -> None:
            self.seen.append((self.now[0], inputs[0]))

        model: Any = self.model
        parts = [model.get_encoder(), model.get_decoder()] if self.seq2seq else [model]
        for part in parts:
            part.get_input_embeddings().register_forward_hook(note)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["scores", "text"])
def test_every_row_of_every_pass_has_its_own_prompts_slot(
    backbone_folder: Folder, family: str, kind: str
) -> None:
    plain = sharpen(load_backbone(backbone_folder(family)))
    backbone = Recorder(**{f.name: getattr(plain, f.name) for f in fields(Backbone)})
    prompts, slots = [*PROMPTS, *PROMPTS[:2]], [3, 1, 2, 1, 0, 3, 5, 4]
    ids = [backbone.prompt_ids(prompt) for prompt in prompts]
    expected = Counter((slot, tuple(row)) for slot, row in zip(slots, ids, strict=True))
    backbone.watch()
    if kind == "scores":
        score_labels(backbone, prompts, LABELS[1:], slots=slots, batch_tokens=300)
    else:
        generate(backbone, prompts, 4, slots=slots, batch_size=3)
    found: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for used, tokens in backbone.seen:
        assert used is not None and len(used) == len(tokens)
        for slot, row in zip(used, tokens.tolist(), strict=True):
            # Padding may stand on either side, labels follow the prompt.
            bare = row[next((at for at, t in enumerate(row) if t != backbone.pad_id), 0) :]
            for own in {tuple(r) for r in ids}:
                if tuple(bare[: len(own)]) == own:
                    found[slot, own] += 1
    assert found == expected


def test_answers_are_those_of_each_questions_own_adapter(backbone_folder: Folder) -> None:
    """Asked together, with different adapters, as merged into a backbone and asked alone."""
    plain = sharpen(load_backbone(backbone_folder("llama")))
    adapters = [make_adapter(plain, number) for number in range(2)]
    different = set()
    for name in ("LaMP_1", "LaMP_3", "LaMP_5"):
        task = get_task(name).model_copy(update={"max_new_tokens": 6})
        asked = [
            Request(plain.prompt_ids(PROMPTS[0]), ref, sampling_of(task))
            for ref in (
                combined([(f"{name} {i}", lambda own=own: own, 1.0)])
                for i, own in enumerate(adapters)
            )
        ]
        with TorchEngine(plain, capacity=2) as engine:
            together = answers(engine, task, asked)
        for own, found in zip(adapters, together, strict=True):
            with TorchEngine(plain.with_adapters([own]), capacity=1) as engine:
                alone = Request(asked[0].prompt, None, sampling_of(task))
                assert answers(engine, task, [alone]) == [found]
        different |= {tuple(together)} if together[0] != together[1] else set()
    assert different, "the adapters answer alike: this says nothing"
