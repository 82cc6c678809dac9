"""Server optimisers against the paper's formulas number by number, and against torch.optim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pfi.federate.aggregate.optimizers import ServerConfig, ServerOptimizer
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layer, Layout
from pfi.federate.strategies import get_strategy
from pfi.federate.strategy import LinearStrategy


def updates(rounds: int = 12, width: int = 7) -> np.ndarray:
    """Of very different sizes, so that FedYogi's sign goes both ways."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(rounds, width)) * 10.0 ** rng.uniform(-3, 0, (rounds, 1))


def run(config: ServerConfig, start: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    state = {"row": start.astype(np.float32), "other": np.ones(2, np.float32)}
    for update in steps:
        state = {**state, **ServerOptimizer(config).step(state, "row", update)}
    return state


def by_the_paper(config: ServerConfig, start: np.ndarray, steps: np.ndarray) -> list[float]:
    """Algorithm 2 of 2003.00295, one number at a time."""
    found = []
    for i, x in enumerate(start):
        m, v = 0.0, config.tau**2
        for update in steps:
            delta = float(update[i])
            m = config.beta1 * m + (1 - config.beta1) * delta
            match config.optimizer:
                case "fedadagrad":
                    v = v + delta**2
                case "fedyogi":
                    gap = v - delta**2
                    v = v - (1 - config.beta2) * delta**2 * ((gap > 0) - (gap < 0))
                case "fedadam":
                    v = config.beta2 * v + (1 - config.beta2) * delta**2
            x = float(np.float32(x + config.learning_rate * m / (math.sqrt(v) + config.tau)))
        found.append(x)
    return found


@pytest.mark.parametrize("optimizer", ["fedadagrad", "fedadam", "fedyogi"])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.5)])
def test_adaptive_ones_follow_the_paper(optimizer: str, betas: tuple[float, float]) -> None:
    config = ServerConfig(
        optimizer=optimizer,
        learning_rate=0.05,
        beta1=betas[0],
        beta2=betas[1],
        tau=0.02,
    )
    start, steps = np.linspace(-1, 1, 7), updates()
    state = run(config, start, steps)
    assert state["row"].dtype == np.float32
    np.testing.assert_allclose(state["row"], by_the_paper(config, start, steps), rtol=2e-6)
    assert state["row.first"].shape == state["row.second"].shape == (7,)
    assert set(state) == {"row", "other", "row.first", "row.second"}


def test_they_differ_from_each_other() -> None:
    start, steps = np.zeros(7), updates()
    names = ("fedavg", "fedadagrad", "fedadam", "fedyogi")
    rows = [run(ServerConfig(optimizer=name), start, steps)["row"] for name in names]
    for i, one in enumerate(rows):
        assert not any(np.allclose(one, other, rtol=1e-3) for other in rows[i + 1 :])


def test_fedavg_adds_the_update_and_keeps_nothing() -> None:
    steps = updates(1)
    state = run(ServerConfig(learning_rate=0.5), np.ones(7), steps)
    np.testing.assert_allclose(state["row"], 1 + 0.5 * steps[0], rtol=1e-6)
    assert set(state) == {"row", "other"}


def torch_run(optimizer: type, start: np.ndarray, steps: np.ndarray, **settings: float):
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    made = optimizer([x], **settings)
    for update in steps:
        x.grad = -torch.tensor(update)
        made.step()
    return x.detach().numpy()


def test_momentum_is_that_of_torch() -> None:
    start, steps = np.linspace(-1, 1, 7), updates()
    state = run(ServerConfig(learning_rate=0.3, momentum=0.9), start, steps)
    expected = torch_run(torch.optim.SGD, start, steps, lr=0.3, momentum=0.9)
    np.testing.assert_allclose(state["row"], expected, rtol=1e-5, atol=1e-6)


def test_fedadagrad_without_first_moment_is_that_of_torch() -> None:
    start, steps = np.linspace(-1, 1, 7), updates()
    config = ServerConfig(optimizer="fedadagrad", learning_rate=0.1, beta1=0.0, tau=0.01)
    expected = torch_run(
        torch.optim.Adagrad, start, steps, lr=0.1, eps=0.01, initial_accumulator_value=0.01**2
    )
    np.testing.assert_allclose(run(config, start, steps)["row"], expected, rtol=1e-5, atol=1e-6)


def test_fedadam_is_that_of_torch_once_its_bias_correction_is_gone() -> None:
    """From one nearly constant update on, both go by ``learning_rate`` a step."""
    steps = np.tile(np.linspace(0.5, 2, 7), (3000, 1)) * np.linspace(1, 0.9, 3000)[:, None]
    config = ServerConfig(optimizer="fedadam", learning_rate=0.01, tau=1e-3)
    ours = run(config, np.zeros(7), steps)["row"] - run(config, np.zeros(7), steps[:-500])["row"]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-3}
    whole = torch_run(torch.optim.Adam, np.zeros(7), steps, **settings)
    theirs = whole - torch_run(torch.optim.Adam, np.zeros(7), steps[:-500], **settings)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadagrad", "fedadam", "fedyogi"])
def test_state_is_all_that_is_needed_to_go_on(optimizer: str) -> None:
    """A run cut in two, its state copied in between, is the run in one."""
    config = ServerConfig(optimizer=optimizer, learning_rate=0.1, momentum=0.5)
    start, steps = np.zeros(7), updates()
    whole = run(config, start, steps)
    state = {name: array.copy() for name, array in run(config, start, steps[:5]).items()}
    before = {name: array.copy() for name, array in state.items()}
    for update in steps[5:]:
        new = ServerOptimizer(config).step(state, "row", update)
        for name, array in before.items():
            np.testing.assert_array_equal(state[name], array)  # a step changes no array in place
        state = {**state, **new}
        before = {name: array.copy() for name, array in state.items()}
    for name, array in whole.items():
        np.testing.assert_array_equal(state[name], array)


def test_the_rate_rises_and_falls_to_zero_over_the_rounds() -> None:
    config = ServerConfig(learning_rate=2.0, warmup=0.25, decay="linear")
    optimizer, state = ServerOptimizer(config, 8), {"row": np.zeros(1, np.float32)}
    moved = []
    for _ in range(9):
        before = state["row"]
        state = {**state, **optimizer.step(state, "row", np.ones(1))}
        moved.append(float((state["row"] - before)[0]))
    assert moved == pytest.approx([1, 2, 2, 2 * 5 / 6, 2 * 4 / 6, 1, 2 / 3, 1 / 3, 0], abs=1e-6)


def test_factors_that_take_turns_fall_to_zero_as_well() -> None:
    layout = Layout((Layer("q", 3, 3),), 1, 1.0)
    server = {"learning_rate": 1.0, "decay": "linear"}
    config = FederateConfig.model_validate({"strategy": "rolora", "rounds": 8, "server": server})
    strategy = get_strategy("rolora")(layout, config)
    assert isinstance(strategy, LinearStrategy)
    state, moved = strategy.start(), []
    for round in range(8):
        name = "a" if round % 2 else "b"
        after = strategy.apply(state, np.ones(strategy.size), round)
        moved.append(float((after[name] - state[name])[0]))
        state = after
    assert moved == pytest.approx([1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25], abs=1e-6)
