"""DPO: equal to TRL's losses and to peft with plain autograd; it raises held-out margins."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pfi.errors import DataError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.train.job import Job, TrainResult
from pfi.train.loop import BankRun
from pfi.train.objectives import Preference, dpo_loss, ipo_loss
from pfi.train.preferences import PreferenceConfig, answer_log_probs, train_preferences

Folder = Callable[[str], Path]
WORDS = ["brown", "lazy", "film", "book", "title", "fox", "dog", "jumps", "over", "good"]
CONFIG = PreferenceConfig(rank=4, alpha=8, epochs=4, batch_size=3, sft_weight=0.0)

#: What ``DPOTrainer._compute_loss`` of trl 1.16.0 gave for single pairs: log-probabilities of
#: answers (policy's chosen, rejected; reference's chosen, rejected), their tokens, beta, label
#: smoothing, the loss ``sigmoid`` (with smoothing ``aot``, which for one pair is conservative
#: DPO), and the loss ``ipo``.
TRL = [
    (-33.932, -30.56, -17.402, -11.098, 5, 4, 0.1, 0.0, 0.557254689128, 11.83704025),
    (-16.792, -31.568, -12.829, -19.587, 5, 2, 0.1, 0.0, 0.370542966468, 0.03916441),
    (-20.683, -11.992, -30.476, -25.116, 3, 5, 0.1, 0.0, 0.873502981595, 19.0136695511),
    (-39.329, -32.598, -36.184, -13.096, 6, 1, 0.5, 0.0, 0.000280583191278, 323.202491361),
    (-36.055, -27.675, -19.414, -4.927, 4, 3, 0.5, 0.0, 0.0461136883548, 5.86810250694),
    (-24.825, -36.607, -38.698, -19.603, 5, 3, 0.5, 0.0, 1.97307956335e-07, 55.39229476),
    (-3.429, -36.82, -36.724, -4.638, 4, 6, 0.1, 0.1, 0.6562023823, 75.4712083403),
    (-33.169, -27.058, -1.045, -20.25, 3, 2, 0.1, 0.1, 2.35496730613, 151.388416),
    (-29.481, -28.442, -3.456, -36.764, 2, 2, 0.1, 0.1, 3.12295643114, 491.66410225),
    (-32.33, -6.557, -22.177, -4.557, 3, 5, 0.5, 0.3, 2.87037441787, 15.8749121111),
    (-39.921, -20.082, -12.756, -12.353, 1, 5, 0.5, 0.3, 6.80266018845, 708.58180864),
    (-13.977, -36.968, -8.925, -32.178, 5, 5, 0.5, 0.3, 0.721490773459, 1.10754576),
]


def pairs_of(count: int, first: int = 0) -> list[Preference]:
    """Pairs with a rule: a prompt about a fox wants ``good film``, one about a dog ``bad book``.

    Prompts and answers differ in length, and so do weights.
    """
    made = []
    for i in range(first, first + count):
        filler = " ".join(WORDS[(i * k + k) % 5] for k in range(1, 2 + i % 4))
        animal, answers = ("fox", ("good film", "bad")) if i % 2 else ("dog", ("bad", "good film"))
        made.append(Preference(f"a quick {filler} {animal}", *answers, (1.0, 0.5, 2.0)[i % 3]))
    return made


def adapter_for(backbone: Backbone, config: PreferenceConfig, seed: int) -> Adapter:
    """An adapter that changes answers."""
    bank = AdapterBank(backbone, config, 1)
    slot = bank.new(seed)
    bank.weights[slot] += 0.05 * torch.randn(bank.width, generator=torch.manual_seed(seed))
    return bank.adapter(slot)


def plain_log_prob(model: Any, backbone: Backbone, prompt: str, answer: str) -> torch.Tensor:
    """The log-probability of an answer from a full log-softmax, without padding or packing."""
    asked, target = backbone.prompt_ids(prompt), backbone.target_ids(answer)
    if backbone.seq2seq:
        shifted = [model.config.decoder_start_token_id, *target[:-1]]
        logits = model(
            input_ids=torch.tensor([asked]), decoder_input_ids=torch.tensor([shifted])
        ).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*asked, *target]])).logits[0]
        logits = logits[len(asked) - 1 : -1]
    chances = logits.log_softmax(1)
    return sum(chances[i, token] for i, token in enumerate(target))


def train(backbone: Backbone, pairs: list[Preference], **changes: Any) -> TrainResult:
    kept = {k: changes.pop(k) for k in ("seed", "start", "tokens", "on_step") if k in changes}
    config = PreferenceConfig.model_validate({**CONFIG.model_dump(), **changes})
    return train_preferences(backbone, pairs, config, **kept)


def gap(one: Adapter, other: Adapter) -> float:
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[k] - other.weights[k]).abs().max()) for k in one.weights)


# Losses -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TRL)
def test_losses_equal_those_of_trl(row: tuple[float, ...]) -> None:
    *found, chosen, rejected, beta, smoothing, sigmoid, ipo = row
    a, b, c, d = (torch.tensor([x], dtype=torch.float64) for x in found)
    losses = dpo_loss(a, b, c, d, beta, smoothing)
    assert losses.tolist() == pytest.approx([sigmoid], rel=1e-10)
    losses = ipo_loss(a / chosen, b / rejected, c / chosen, d / rejected, beta)
    assert losses.tolist() == pytest.approx([ipo], rel=1e-10)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_losses_equal_those_of_the_trl_at_hand(kind: str) -> None:
    """With TRL installed, its trainer's own method on log-probabilities drawn at random."""
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    own = getattr(trl.DPOTrainer, "_compute_loss", None)
    if own is None:
        pytest.skip("this TRL has no DPOTrainer._compute_loss")
    random = torch.manual_seed(0)
    tokens = torch.tensor([[4, 2, 3], [1, 5, 3]])  # of three pairs' chosen and rejected answers
    mask = torch.zeros(6, 6, dtype=torch.long)
    for i, count in enumerate(tokens.flatten()):
        mask[i, 1 : 1 + count] = 1
    logs = -5 * torch.rand(6, 5, generator=random) * mask[:, 1:]
    before = -8 * torch.rand(2, 3, generator=random)
    zeros = torch.zeros(6, 5)
    output = SimpleNamespace(
        log_probs=logs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
    )
    metrics: dict[str, Any] = {"train": _Lists()}
    same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        accelerator=same, ld_alpha=None, aux_loss_enabled=False, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=0.3,
        label_smoothing=0.0, use_weighting=False, _tp_size=1, _total_train_tokens=0,
        _metrics=metrics, model=SimpleNamespace(training=True),
    )  # fmt: skip
    inputs = {
        "input_ids": mask, "attention_mask": mask, "completion_mask": mask,
        "ref_chosen_logps": before[0], "ref_rejected_logps": before[1],
    }  # fmt: skip

    expected = own(trainer, lambda **_: output, inputs, False)
    policy = logs.sum(1).view(2, 3)
    if kind == "ipo":
        policy, before = policy / tokens, before / tokens
        found = ipo_loss(policy[0], policy[1], before[0], before[1], 0.3)
    else:
        found = dpo_loss(policy[0], policy[1], before[0], before[1], 0.3)
    assert float(found.mean()) == pytest.approx(float(expected), rel=1e-5)


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


# Gradients and reference --------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"label_smoothing": 0.2, "sft_weight": 0.7}, {"loss": "ipo", "beta": 0.4}]
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_gradients_equal_peft_and_plain_autograd(
    backbone_folder: Folder, family: str, changes: dict[str, Any]
) -> None:
    backbone, pairs = load_backbone(backbone_folder(family)), pairs_of(5)
    config = PreferenceConfig.model_validate({**CONFIG.model_dump(), **changes})
    start = adapter_for(backbone, config, 3)
    config = config.model_copy(update={"batch_size": len(pairs)})
    # With 60 tokens there are several micro-batches.
    run = BankRun(backbone, iter(()), config, None, 1, 60, config.objective())
    active = run.enter(Job("pairs", pairs, 0, start))
    assert active is not None
    slot = active.slot
    # A model that has moved on from its reference, so that every pair has another slope.
    run.bank.weights[slot] += 0.05 * torch.randn(run.bank.width, generator=torch.manual_seed(5))
    [loss], gradient = run.gradients([run.next_step(active)])

    before = start.apply(copy.deepcopy(backbone.model))
    model: Any = run.bank.adapter(slot).apply(copy.deepcopy(backbone.model))
    total = torch.zeros(())
    for pair in pairs:
        own, reference, counts = [], [], []
        for answer in (pair.chosen, pair.rejected):
            own.append(plain_log_prob(model, backbone, pair.prompt, answer))
            with torch.no_grad():
                reference.append(plain_log_prob(before, backbone, pair.prompt, answer))
            counts.append(len(backbone.target_ids(answer)))
        gains = [x - y for x, y in zip(own, reference, strict=True)]
        if config.loss == "ipo":
            gain = gains[0] / counts[0] - gains[1] / counts[1]
            part = (gain - 1 / (2 * config.beta)) ** 2
        else:
            chance = torch.sigmoid(config.beta * (gains[0] - gains[1]))
            smoothing = config.label_smoothing
            part = -(1 - smoothing) * chance.log() - smoothing * (1 - chance).log()
        part = part - config.sft_weight * own[0] / counts[0]
        total = total + pair.weight * part / len(pairs)
    total.backward()

    assert loss == pytest.approx(total.item(), rel=1e-5)
    factors = dict(model.named_parameters())
    for target in run.bank.targets:
        name = f"base_model.model.{target.name}"
        for kind, found in (("A", target.a(gradient)[0]), ("B", target.b(gradient)[0].T)):
            expected = factors[f"{name}.lora_{kind}.default.weight"].grad
            largest = float(expected.abs().max())
            assert largest > 0
            assert float((found - expected).abs().max()) < 1e-5 * largest


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_the_first_loss_is_ln_2_because_the_reference_is_the_start(
    backbone_folder: Folder, family: str, goes_on: bool
) -> None:
    backbone = load_backbone(backbone_folder(family))
    pairs = [Preference(pair.prompt, pair.chosen, pair.rejected) for pair in pairs_of(3)]
    start = adapter_for(backbone, CONFIG, 1) if goes_on else None
    result = train(backbone, pairs, start=start)
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert result.losses[-1] < math.log(2) - 1e-3
    assert train(backbone, pairs, start=start, loss="ipo").losses[0] == pytest.approx(25, rel=1e-5)
    model = start.apply(copy.deepcopy(backbone.model)) if start else backbone.model
    with torch.no_grad():
        likelihoods = [
            plain_log_prob(model, backbone, pair.prompt, pair.chosen)
            / len(backbone.target_ids(pair.chosen))
            for pair in pairs
        ]
    expected = math.log(2) - 0.5 * float(sum(likelihoods)) / 3
    found = train(backbone, pairs, start=start, sft_weight=0.5).losses[0]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "t5"])
def test_log_probs_are_those_of_the_plain_model(backbone_folder: Folder, family: str) -> None:
    backbone, pairs = load_backbone(backbone_folder(family)), pairs_of(5)
    adapter = adapter_for(backbone, CONFIG, 2)
    bank = AdapterBank(backbone, CONFIG, 2)
    bank.new(0)
    slot = bank.add(adapter)
    wrapped = adapter.apply(copy.deepcopy(backbone.model))
    for model, found in (
        (backbone.model, answer_log_probs(backbone, pairs)),
        (wrapped, answer_log_probs(bank.backbone, pairs, slot=slot, tokens=70)),
    ):
        with torch.no_grad():
            expected = [
                [plain_log_prob(model, backbone, p.prompt, text) for text in (p.chosen, p.rejected)]
                for p in pairs
            ]
        assert torch.allclose(found, torch.tensor(expected), rtol=1e-5, atol=1e-4)


# Training -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_rule_is_learnt_for_unseen_prompts_and_the_backbone_stays(
    backbone_folder: Folder, family: str
) -> None:
    backbone = load_backbone(backbone_folder(family))
    kept = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    unseen = pairs_of(8, first=12)
    assert not {pair.prompt for pair in unseen} & {pair.prompt for pair in pairs_of(12)}
    before = answer_log_probs(backbone, unseen)
    result = train(backbone, pairs_of(12), epochs=10, learning_rate=1e-2)
    bank = AdapterBank(backbone, CONFIG, 1)
    after = answer_log_probs(bank.backbone, unseen, slot=bank.add(result.adapter))
    raised = (after[:, 0] - after[:, 1]) - (before[:, 0] - before[:, 1])
    assert raised.min() > 1
    assert result.steps == 40
    assert result.examples == 12
    assert all(torch.equal(v, kept[k]) for k, v in backbone.model.state_dict().items())


def test_a_likelihood_term_keeps_the_chosen_answer_likely(backbone_folder: Folder) -> None:
    """DPO by itself mostly lowers the rejected one."""
    backbone = load_backbone(backbone_folder("t5"))
    pairs = pairs_of(8)
    bank = AdapterBank(backbone, CONFIG, 2)
    chosen = []
    for weight in (0.0, 0.2):
        result = train(backbone, pairs, epochs=8, learning_rate=3e-3, sft_weight=weight)
        chosen.append(
            answer_log_probs(bank.backbone, pairs, slot=bank.add(result.adapter))[:, 0].mean()
        )
    assert chosen[1] > chosen[0] + 1


def test_the_same_arguments_give_the_same_adapter_whatever_the_passes(
    backbone_folder: Folder,
) -> None:
    backbone, pairs = load_backbone(backbone_folder("llama")), pairs_of(7)
    told: list[tuple[int, int]] = []
    one = train(backbone, pairs, seed=4, on_step=lambda step, steps, _: told.append((step, steps)))
    again = train(backbone, pairs, seed=4)
    small = train(backbone, pairs, seed=4, tokens=1)
    other = train(backbone, pairs, seed=5)
    assert gap(one.adapter, again.adapter) == 0
    assert one.losses == again.losses
    assert gap(one.adapter, small.adapter) < 2e-5
    assert gap(one.adapter, other.adapter) > 1e-3
    assert told == [(i, one.steps) for i in range(1, one.steps + 1)]


def test_dropout_is_the_same_whatever_the_passes(backbone_folder: Folder) -> None:
    backbone, pairs = load_backbone(backbone_folder("llama")), pairs_of(6)
    one, small = (train(backbone, pairs, dropout=0.3, tokens=tokens) for tokens in (500, 1))
    assert gap(one.adapter, small.adapter) < 2e-5
    assert gap(one.adapter, train(backbone, pairs).adapter) > 1e-4


def test_bfloat16_learns_about_the_same(backbone_folder: Folder) -> None:
    backbone, pairs = load_backbone(backbone_folder("llama")), pairs_of(8)
    exact, rough = (
        train(backbone, pairs, epochs=8, learning_rate=5e-3, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert rough.losses[-1] == pytest.approx(exact.losses[-1], abs=0.1)
    assert rough.losses[-1] < 0.6
    assert all(v.dtype == torch.float32 for v in rough.adapter.weights.values())


def test_the_best_epoch_is_kept_where_pairs_are_held_back(backbone_folder: Folder) -> None:
    """The newest pairs contradict the others, so that every epoch makes them worse."""
    backbone, pairs = load_backbone(backbone_folder("llama")), pairs_of(6)
    turned = [Preference(pair.prompt, pair.rejected, pair.chosen) for pair in pairs_of(2)]
    settings = {"learning_rate": 5e-3, "epochs": 6, "batch_size": 2}
    result = train(backbone, [*pairs, *turned], held_back=0.25, patience=2, **settings)
    assert result.stopped == "the held-back loss rose after step 9"
    assert result.examples == 6
    epoch = train(backbone, pairs, **settings)
    assert gap(result.adapter, epoch.adapter) > 1e-3


def test_training_stops_before_it_takes_a_step_that_is_not_finite(
    backbone_folder: Folder,
) -> None:
    backbone, pairs = load_backbone(backbone_folder("llama")), pairs_of(3)
    broken = Preference("a fox", "good", "bad", weight=math.nan)
    result = train(backbone, [*pairs, broken], batch_size=4)
    assert result.stopped == "the loss was nan in step 1"
    assert result.steps == 0
    assert all(bool(torch.isfinite(v).all()) for v in result.adapter.weights.values())


def test_a_long_prompt_is_cut_alike_for_both_answers(backbone_folder: Folder) -> None:
    backbone = load_backbone(backbone_folder("llama"))
    prompt = "a quick brown fox " * 12
    long = Preference(prompt, "good", "bad " * 12)
    room = 64 - len(backbone.target_ids(long.rejected, 32))
    ids = backbone.prompt_ids(prompt, room)
    shown = backbone.tokenizer.decode(ids, skip_special_tokens=True).removesuffix("\n")
    assert backbone.prompt_ids(str(shown)) == ids
    found = answer_log_probs(backbone, [long], max_length=64)[0, 0]
    with torch.no_grad():
        expected = plain_log_prob(backbone.model, backbone, str(shown), "good")
    assert float(found) == pytest.approx(float(expected), abs=1e-4)


def test_what_cannot_be_trained_on_is_refused(backbone_folder: Folder) -> None:
    with pytest.raises(DataError, match="no preferences"):
        train(load_backbone(backbone_folder("llama")), [])
    with pytest.raises(DataError, match="two different answers"):
        Preference("a fox", "good", "good", record_id="r1")
    with pytest.raises(ValidationError, match="label_smoothing"):
        PreferenceConfig(loss="ipo", label_smoothing=0.1)
