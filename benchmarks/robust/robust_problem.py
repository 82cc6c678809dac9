"""A federated problem that runs in milliseconds a round: one hidden layer, all clients in one pass.

Data: digits or tumours, which come with scikit-learn (Dirichlet split, 1909.06335), or made-up
clusters.  Bad clients are drawn by seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator
from pfi.federate.aggregate.robust import RobustCombiner, RobustConfig
from pfi.federate.attacks import ATTACKS, strongest

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """Clients' examples and held-out ones.

    Attributes:
        inputs, labels: by client, ``(examples, inputs)`` and ``(examples,)``.
        held_out, answers: of nobody in the federation.
        classes, hidden: sizes of the model; without hidden units it is linear.
        rate: learning rate of the clients.
        rounds, steps, batch: how long is learnt.
    """

    inputs: list[Floats]
    labels: list[Ints]
    held_out: Floats
    answers: Ints
    classes: int
    hidden: int = 32
    rate: float = 0.1
    rounds: int = 30
    steps: int = 5
    batch: int = 16

    @property
    def width(self) -> int:
        size = self.inputs[0].shape[1]
        if not self.hidden:
            return (size + 1) * self.classes
        return (size + 1) * self.hidden + (self.hidden + 1) * self.classes

    @cached_property
    def _joined(self) -> tuple[Floats, Ints, Ints, Ints]:
        """All examples one after another, and where each client's begin and how many they are."""
        sizes = np.array([len(labels) for labels in self.labels])
        first = np.cumsum(sizes) - sizes
        return np.concatenate(self.inputs), np.concatenate(self.labels), first, sizes

    def fresh(self, seed: int) -> Floats:
        """Parameters to start from ``(width,)``."""
        if not self.hidden:
            return np.zeros(self.width, np.float32)
        rng = generator(seed, "start")
        size = self.inputs[0].shape[1]
        made = np.zeros(self.width, np.float32)
        cut = size * self.hidden
        made[:cut] = rng.standard_normal(cut) * np.sqrt(2 / size)
        at = cut + self.hidden
        last = self.hidden * self.classes
        made[at : at + last] = rng.standard_normal(last) * np.sqrt(1 / self.hidden)
        return made

    def _parts(self, flat: Floats) -> list[Floats]:
        """The layers' weights and biases of ``(clients, width)``, as views."""
        size = self.inputs[0].shape[1]
        sizes = [size, self.hidden, self.classes] if self.hidden else [size, self.classes]
        parts, at = [], 0
        for first, second in pairwise(sizes):
            parts.append(flat[:, at : at + first * second].reshape(-1, first, second))
            at += first * second
            parts.append(flat[:, at : at + second].reshape(-1, 1, second))
            at += second
        return parts

    def gradient(self, flat: Floats, inputs: Floats, labels: Ints) -> Floats:
        """Of the mean cross-entropy: ``(clients, width)`` from ``(clients, batch, ...)``."""
        parts = self._parts(flat)
        found = np.empty_like(flat)
        into = self._parts(found)
        below = np.maximum(inputs @ parts[0] + parts[1], 0) if self.hidden else inputs
        scores = below @ parts[-2] + parts[-1]
        scores -= scores.max(axis=2, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=2, keepdims=True)
        np.put_along_axis(
            scores, labels[..., None], np.take_along_axis(scores, labels[..., None], 2) - 1, 2
        )
        scores /= labels.shape[1]
        into[-2][:] = below.transpose(0, 2, 1) @ scores
        into[-1][:] = scores.sum(axis=1, keepdims=True)
        if self.hidden:
            back = (scores @ parts[2].transpose(0, 2, 1)) * (below > 0)
            into[0][:] = inputs.transpose(0, 2, 1) @ back
            into[1][:] = back.sum(axis=1, keepdims=True)
        return found

    def updates(
        self, start: Floats, clients: list[int], rng: np.random.Generator, flip: bool = False
    ) -> Floats:
        """What local steps make of ``start``, less it: ``(clients, width)``."""
        flat = np.repeat(start[None], len(clients), axis=0)
        inputs, labels, first, sizes = self._joined
        for _ in range(self.steps):
            drawn = rng.random((len(clients), self.batch)) * sizes[clients, None]
            rows = first[clients, None] + drawn.astype(int)
            x, y = inputs[rows], labels[rows]
            if flip:
                y = self.classes - 1 - y
            flat -= self.rate * self.gradient(flat, x, y)
        return flat - start

    def accuracy(self, flat: Floats) -> float:
        """Share of the held-out examples that are right."""
        with np.errstate(all="ignore"):
            parts = self._parts(flat[None])
            below = self.held_out[None]
            if self.hidden:
                below = np.maximum(below @ parts[0] + parts[1], 0)
            scores = (below @ parts[-2] + parts[-1])[0]
        if not np.isfinite(scores).all():
            return float((self.answers == 0).mean())  # says the first class always
        return float((scores.argmax(axis=1) == self.answers).mean())


def split(labels: Ints, clients: int, alpha: float | None, rng: np.random.Generator) -> list[Ints]:
    """Positions of each client's examples: equally many, classes by Dirichlet(``alpha``)."""
    order = rng.permutation(len(labels))
    if alpha is None:
        return [np.sort(part) for part in np.array_split(order, clients)]
    kinds = int(labels.max()) + 1
    left = [list(order[labels[order] == kind]) for kind in range(kinds)]
    size = len(labels) // clients
    parts = []
    for _ in range(clients):
        taste, mine = rng.dirichlet(np.full(kinds, alpha)), []
        for _ in range(size):
            there = np.array([taste[k] + 1e-9 if left[k] else 0.0 for k in range(kinds)])
            mine.append(left[int(rng.choice(kinds, p=there / there.sum()))].pop())
        parts.append(np.array(mine))
    return parts


def digits(seed: int, alpha: float | None, clients: int = 40) -> Problem:
    """The digits of scikit-learn, a fifth held out."""
    from sklearn.datasets import load_digits

    rng = generator(seed, "digits", alpha)
    inputs, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    inputs, labels = (inputs[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    cut = len(labels) // 5
    parts = split(labels[cut:], clients, alpha, rng)
    return Problem(
        [inputs[cut:][part] for part in parts],
        [labels[cut:][part] for part in parts],
        inputs[:cut],
        labels[:cut],
        10,
        rate=0.2,
    )


def clusters(seed: int, alpha: float | None, clients: int = 10) -> Problem:
    """Three made-up clusters in eight dimensions."""
    rng = generator(seed, "clusters", alpha)
    labels = rng.integers(3, size=clients * 20 + 200)
    centres = 2 * rng.standard_normal((3, 8))
    inputs = (centres[labels] + rng.standard_normal((len(labels), 8))).astype(np.float32)
    parts = split(labels[200:], clients, alpha, rng)
    return Problem(
        [inputs[200:][part] for part in parts],
        [labels[200:][part] for part in parts],
        inputs[:200],
        labels[:200],
        3,
        hidden=0,
        rounds=6,
        rate=0.2,
    )


def tumours(seed: int, alpha: float | None, clients: int = 40) -> Problem:
    """The breast-cancer data of scikit-learn, benign or malignant, a fifth held out."""
    from sklearn.datasets import load_breast_cancer

    rng = generator(seed, "tumours", alpha)
    inputs, labels = load_breast_cancer(return_X_y=True)
    order = rng.permutation(len(labels))
    inputs, labels = inputs[order], labels[order].astype(np.int64)
    inputs = ((inputs - inputs.mean(axis=0)) / inputs.std(axis=0)).astype(np.float32)
    cut = len(labels) // 5
    parts = split(labels[cut:], clients, alpha, rng)
    return Problem(
        [inputs[cut:][part] for part in parts],
        [labels[cut:][part] for part in parts],
        inputs[:cut],
        labels[:cut],
        2,
        hidden=16,
        rate=0.05,
    )


def run(
    problem: Problem,
    config: RobustConfig | None,
    attack: str | None,
    share: float,
    seed: int,
) -> float:
    """Held-out accuracy after all rounds.

    Args:
        problem: the clients' examples.
        config: the rule; None is the plain weighted mean without any check.
        attack: a name in ``ATTACKS``, `label-flip`, `strongest` or None.
        share: of bad clients.
        seed: of the start, the bad clients and the batches.
    """
    count = len(problem.labels)
    order = generator(seed, "bad").permutation(count)
    bad = round(share * count) if attack else 0
    good = sorted(order[bad:].tolist())
    names = [f"client-{c}" for c in range(count)]
    state = problem.fresh(seed)
    last: NDArray[np.float64] | None = None
    rng, noise = generator(seed, "batches"), generator(seed, "attack")
    for round_ in range(problem.rounds):
        honest = problem.updates(state, good, rng)
        weights = [float(len(problem.labels[c])) for c in good]
        false: list[Floats] = []
        if bad and attack == "label-flip":
            false = list(problem.updates(state, sorted(order[:bad].tolist()), noise, flip=True))
        elif bad and attack == "strongest":
            rule = _rule_for(config, last, round_)
            false = list(strongest(honest, bad, noise, rule))
        elif bad and attack:
            false = list(ATTACKS[attack](honest, bad, noise))
        if config is None:
            last = _plain(list(honest) + false, weights + [max(weights)] * bad, problem.width)
        else:
            combiner = RobustCombiner(problem.width, config, last=last, seed=round_)
            for n, vector in enumerate(list(honest) + false):
                # The bad ones claim as much as anyone.
                weight = weights[n] if n < len(good) else max(weights)
                combiner.add(names[n], vector, weight)
            last = combiner.result().vector
        with np.errstate(all="ignore"):
            state = (state + last).astype(np.float32)
        if not (np.abs(state) < 1e6).all():
            break  # lost; honest clients could not compute with it
    return problem.accuracy(state)


def _rule_for(
    config: RobustConfig | None, last: NDArray[np.float64] | None, seed: int
) -> Callable[[Floats], NDArray[np.float64]]:
    def rule(updates: Floats) -> NDArray[np.float64]:
        if config is None:
            return updates.mean(axis=0, dtype=np.float64)
        combiner = RobustCombiner(updates.shape[1], config, last=last, seed=seed)
        for n, update in enumerate(updates):
            combiner.add(str(n), update, 1.0)
        return combiner.result().vector

    return rule


def _plain(updates: list[Floats], weights: list[float], width: int) -> NDArray[np.float64]:
    """The mean as a loop that checks nothing; with an update of another length it fails."""
    total = np.zeros(width)
    for update, weight in zip(updates, weights, strict=True):
        if len(update) != width:
            return np.zeros(width)  # adding it is an error: the round brings nothing
        total += weight * update.astype(np.float64)
    return total / sum(weights)
