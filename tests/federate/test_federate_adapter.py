"""Federated models saved as plain peft folders, and what a strategy's rounds do to a real model.

peft itself loads and merges what was saved; the engine of simulations trains.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federate_rounds import LAYOUT, averaged, error, make, members, play, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import FederationError
from pfi.federate.aggregate.exact import as_adapter, compress, exact
from pfi.federate.config import FederateConfig, LocalConfig
from pfi.federate.engine import Engine
from pfi.federate.layout import Layer, Layout
from pfi.federate.message import Message
from pfi.federate.strategies import get_strategy
from pfi.federate.work import Client, Losses, Model
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.backbone import load_backbone
from pfi.models.bank.bank import AdapterBank
from pfi.tasks import Example

Folder = Callable[[str], Path]


def random_model(layout: Layout, *, based: bool, seed: int = 0) -> Model:
    """Factors, and a base of full rank."""
    rng = np.random.default_rng(seed)
    row = rng.normal(size=layout.width).astype(np.float32) * 0.2
    shapes = [(layer.outputs, layer.inputs) for layer in layout.layers]
    base = [rng.normal(size=shape).astype(np.float32) * 0.1 for shape in shapes]
    return Model(row, layout, base if based else None)


def bank_of(folder: Path) -> AdapterBank:
    return AdapterBank(load_backbone(str(folder)), AdapterConfig(rank=3, alpha=6.0), 1)


# As one LoRA --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("based", [True, False])
def test_peft_merges_what_was_saved_to_the_same_weights(
    family: str, based: bool, backbone_folder: Folder, tmp_path: Path
) -> None:
    from peft import PeftModel

    bank = bank_of(backbone_folder(family))
    layout = Layout.of(bank)
    model = random_model(layout, based=based)
    as_adapter(model, bank.settings).save(tmp_path)

    plain = load_backbone(str(backbone_folder(family))).model
    before = {k: v.detach().clone().double() for k, v in plain.named_parameters()}
    merged = PeftModel.from_pretrained(plain, str(tmp_path)).merge_and_unload()
    after = dict(merged.named_parameters())
    names = [f"{layer.name}.weight" for layer in layout.layers]
    moved = dict(zip(names, model.products(), strict=True))
    for name, weight in before.items():
        if name in moved:
            product = torch.from_numpy(moved[name])
            weight = weight + (product.T if family == "gpt2" else product)
        wrong = (after[name].double() - weight).abs().max()
        assert wrong <= 1e-6 * weight.abs().max()


def test_an_adapter_of_a_bank_is_given_back_as_it_was(backbone_folder: Folder) -> None:
    bank = bank_of(backbone_folder("llama"))
    slot = bank.new(3)
    bank.weights[slot] += 0.1
    row = bank.weights[slot].numpy().copy()
    made, own = as_adapter(Model(row, Layout.of(bank)), bank.settings), bank.adapter(slot)
    assert made.settings == own.settings
    assert set(made.weights) == set(own.weights)
    assert all(torch.equal(made.weights[k], own.weights[k]) for k in own.weights)


def test_what_was_saved_goes_into_a_bank_and_answers_alike(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    backbone = load_backbone(str(backbone_folder("llama")))
    bank = AdapterBank(backbone, AdapterConfig(rank=3, alpha=6.0), 1)
    model = random_model(Layout.of(bank), based=True)
    as_adapter(model, bank.settings).save(tmp_path)
    found = Adapter.load(tmp_path)
    rank = found.settings["r"]
    wide = AdapterBank(backbone, AdapterConfig(rank=rank, alpha=rank), 1)
    slot = wide.add(found)
    ids = torch.arange(2, 12)[None]
    with wide.backbone.rows([slot]), torch.no_grad():
        got = wide.backbone.model(ids).logits
    bank.shift([torch.from_numpy(part) for part in model.base])
    held = bank.take()
    bank.weights[held] = torch.from_numpy(model.row)
    with bank.backbone.rows([held]), torch.no_grad():
        wanted = bank.backbone.model(ids).logits
    assert torch.allclose(got, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_a_federated_model_needs_no_more_ranks_than_were_added_up(name: str) -> None:
    layout = Layout((Layer("a", 40, 50), Layer("b", 60, 30)), 2, 2.0)
    strategy = make(name, layout)
    state = play(strategy, strategy.start(), members(5, 3, ranks=[2, 2]))
    model = strategy.model(state)
    plain = exact(model)
    assert plain.base is None and plain.layout.rank == 4
    assert error(plain.products(), model.products()) < 1e-6
    state = play(strategy, state, members(5, 3, ranks=[2, 2]), 1)
    added = {"flora": 8, "fedex": 4 + layout.rank}[name]
    assert exact(strategy.model(state)).layout.rank == added


def test_models_that_change_nothing_are_plain_adapters_too() -> None:
    strategy = make("flora")
    start = exact(strategy.model(strategy.start()))
    assert not any(product.any() for product in start.products())
    zeros = [np.zeros((layer.outputs, layer.inputs), np.float32) for layer in LAYOUT.layers]
    model = Model(np.zeros(LAYOUT.width, np.float32), LAYOUT, zeros)
    assert exact(model).layout.rank == 1
    assert compress(model, 2)[1] == 0.0


# Compression --------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 7, 20])
def test_compression_is_the_best_of_its_rank_and_says_what_it_costs(rank: int) -> None:
    model = random_model(LAYOUT, based=True)
    made, cost = compress(model, rank)
    assert made.base is None and made.layout == LAYOUT.with_rank(rank)
    lost = whole_size = 0.0
    for product in model.products():
        values = np.linalg.eigvalsh(product.T @ product)[::-1]
        lost, whole_size = lost + values[rank:].clip(0).sum(), whole_size + values.sum()
    assert cost == pytest.approx(np.sqrt(lost / whole_size), abs=1e-6)
    assert error(made.products(), model.products()) == pytest.approx(cost, abs=1e-9)


def test_compression_refuses_what_makes_no_sense() -> None:
    model = random_model(LAYOUT, based=True)
    with pytest.raises(FederationError):
        compress(model, 0)
    model.base[0][0, 0] = np.nan
    with pytest.raises(FederationError, match="not finite"):
        compress(model, 2)
    with pytest.raises(FederationError, match="not finite"):
        exact(model)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    rank=st.integers(1, 4),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 99),
)
def test_exact_is_exact(sizes: list[tuple[int, int]], rank: int, scale: float, seed: int) -> None:
    layers = tuple(Layer(f"layer {i}", *size) for i, size in enumerate(sizes))
    model = random_model(Layout(layers, rank, scale), based=True, seed=seed)
    plain = exact(model)
    assert plain.layout.rank <= max(min(size) for size in sizes)
    assert error(plain.products(), model.products()) < 1e-6


# With a model ---------------------------------------------------------------------------------

EXAMPLES = [
    Example(prompt, target, {}, str(i))
    for i, (prompt, target) in enumerate(
        [("a quick brown", " fox"), ("good film", " good"), ("bad book", " bad"), ("1 2 3", " 4")]
    )
]


@pytest.fixture(scope="module")
def engine(backbone_folder: Folder) -> Engine:
    local = LocalConfig(rank=3, alpha=6.0, learning_rate=0.02, batch_size=2, epochs=2)
    return Engine(load_backbone(str(backbone_folder("llama"))), local, 3, 4)


def one_round(engine: Engine, name: str, state: Any, number: int, ranks: list[int]) -> Any:
    """A round of clients that learn from real examples; the new state, and the clients."""
    config = FederateConfig(strategy=name, local=engine.config)
    strategy = get_strategy(name)(engine.layout, config)
    state = strategy.start() if state is None else state
    cohort = members(*range(1, len(ranks) + 1), ranks=ranks)
    messages = [strategy.broadcast(state, member.id, number) for member in cohort]
    base = strategy.base(messages[0])
    engine.set_base(base)
    pieces = [engine.encode(EXAMPLES[: member.examples]) for member in cohort]
    works = []
    for i, member in enumerate(cohort):
        client = Client(member.id, number, member.examples, 2, member.rank, 100 * number + i)
        works.append((client, pieces[i], strategy.work(messages[i], {}, client)))
    taking = strategy.aggregate(state, number)
    for member, reply in zip(cohort, engine.run(works), strict=True):
        assert isinstance(reply, Message)
        taking.add(member.id, reply)
        cut = engine.layout.with_rank(member.rank)
        row = cut.resized(reply.array("row", np.float32), engine.layout)
        if name == "fedex":
            row += np.where(engine.layout.mask(ranks=slice(member.rank, None)), state["row"], 0)
        member.end = whole(engine.layout, row, base)
    return strategy, taking.result()[0], cohort


@pytest.mark.parametrize("name", ["flora", "fedex", "flexlora"])
def test_rounds_with_a_model_are_exact_and_learn(engine: Engine, name: str) -> None:
    state, losses = None, []
    pieces = engine.encode(EXAMPLES)
    for number in range(3):
        strategy, state, cohort = one_round(engine, name, state, number, [1, 3, 2])
        model = strategy.model(state)
        found = strategy.mean(state) if name == "flexlora" else model.products()
        assert error(found, averaged(cohort)) < 1e-6
        engine.set_base(model.base)

        def asking(row: Any = model.row) -> Any:
            found = yield Losses([row])
            return Message(values={"loss": found[0]})

        client = Client("x", 0, 4, 1, 3, 0)
        losses.append(engine.run([(client, pieces, asking())])[0].number("loss"))
    engine.set_base(None)
    assert losses[2] < losses[0]


def test_a_saved_base_has_the_loss_that_rounds_measured(engine: Engine, tmp_path: Path) -> None:
    from pfi.models.scoring import mean_losses

    strategy, state, _ = one_round(engine, "flora", None, 0, [3, 2])
    engine.set_base(None)
    model = strategy.model(state)
    as_adapter(model, engine.bank.settings).save(tmp_path)
    plain = load_backbone(str(engine.bank.backbone.name))
    pieces = engine.encode(EXAMPLES)
    with_adapter = plain.with_adapters([Adapter.load(tmp_path)])
    got = mean_losses(with_adapter, pieces)
    without = mean_losses(plain, pieces)
    engine.set_base(model.base)
    wanted = mean_losses(engine.bank.backbone, pieces)
    engine.set_base(None)
    assert np.allclose(got, wanted, atol=1e-5)
    assert not np.allclose(got, without, atol=1e-3)
