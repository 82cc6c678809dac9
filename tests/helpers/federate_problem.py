"""A federation without a model: every client's loss is a quadratic of its row, trained exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfi._util.seeds import seed_of
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layer, Layout
from pfi.federate.message import Message
from pfi.federate.strategies import STRATEGIES
from pfi.federate.strategy import Strategy
from pfi.federate.work import Client, Losses, Train, Trained, Update, Work, pack

LAYERS = (Layer("q", 5, 4), Layer("v", 3, 6))
Log = list[tuple[str, Any, Any]]


@dataclass
class Quadratic:
    """``(x - best)ᵀ H (x - best) / 2``."""

    hessian: np.ndarray
    best: np.ndarray
    examples: int = 1

    def loss(self, x: np.ndarray) -> float:
        away = x.astype(np.float64) - self.best
        return float(away @ self.hessian @ away / 2)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return self.hessian @ (x - self.best)


@dataclass
class Problem:
    """Clients by name, and how they train."""

    clients: dict[str, Quadratic]
    rate: float
    steps: int
    #: Every request and its reply, by client, of the last round.
    log: Log = field(default_factory=list)

    def reply(self, name: str, request: Any) -> Any:
        problem = self.clients[name]
        found: Any
        if isinstance(request, Losses):
            found = [problem.loss(row) for row in request.rows]
        else:
            found = self.train(problem, request)
        self.log.append((name, request, found))
        return found

    def train(self, problem: Quadratic, request: Train) -> Trained:
        """Plain gradient descent in float64."""
        x = request.row.astype(np.float64)
        mask = np.ones(len(x)) if request.mask is None else request.mask
        for _ in range(self.steps):
            gradient = problem.gradient(x)
            if request.pull is not None:
                gradient = gradient + request.mu * (x - request.pull)
            if request.correction is not None:
                gradient = gradient + request.correction
            x = x - self.rate * mask * gradient
        loss = problem.loss(x)
        return Trained(x.astype(np.float32), problem.examples, self.steps, loss)

    def optimum(self, names: Sequence[str] | None = None, *, equal: bool = False) -> np.ndarray:
        """Where the mean loss of clients, by examples, is least."""
        chosen = [self.clients[name] for name in names or self.clients]
        weights = [1.0 if equal else p.examples for p in chosen]
        hessian = sum(w * p.hessian for w, p in zip(weights, chosen, strict=True))
        side = sum(w * p.hessian @ p.best for w, p in zip(weights, chosen, strict=True))
        return np.linalg.solve(hessian, side)


def quadratics(width: int, count: int, seed: int = 0, spread: float = 1.0) -> dict[str, Quadratic]:
    """Clients that differ in what is best and in their curvature."""
    rng = np.random.default_rng(seed)
    made = {}
    for n in range(count):
        turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
        hessian = turn @ np.diag(rng.uniform(0.3, 3.0, width)) @ turn.T
        made[f"c{n}"] = Quadratic(hessian, spread * rng.standard_normal(width), 1 + n)
    return made


def strategy_of(name: str, config: dict[str, Any] | None = None, rank: int = 2) -> Strategy:
    """A strategy over two small layers; its clients train with SGD."""
    given = {"rank": rank, "optimizer": "sgd", "learning_rate": 0.05}
    settings = {"strategy": name, "scaffold": {"clients": 16}, "local": given, **(config or {})}
    read = FederateConfig.model_validate(settings)
    return STRATEGIES[name](Layout(LAYERS, STRATEGIES[name].rank(read), 2.0), read)


def drive(work: Work, reply: Callable[[Any], Any]) -> Update | Message:
    """Do a client's work."""
    answer = None
    while True:
        try:
            request = work.send(answer)
        except StopIteration as end:
            return end.value
        answer = reply(request)


@dataclass
class Run:
    """Rounds of a strategy over a problem; what crosses is encoded and decoded."""

    strategy: Strategy
    problem: Problem
    state: dict[str, Any] = field(default_factory=dict)
    memories: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    down: list[bytes] = field(default_factory=list)
    up: list[bytes] = field(default_factory=list)
    round: int = 0

    def __post_init__(self) -> None:
        self.state = self.strategy.start()

    def client(self, name: str) -> Client:
        problem, seed = self.problem.clients[name], seed_of(0, name, self.round)
        rank = self.strategy.layout.rank
        return Client(name, self.round, problem.examples, self.problem.steps, rank, seed)

    def sent(self, name: str) -> Message:
        """What a client is sent now, whose arrays nobody may change."""
        message = Message.decode(self.strategy.broadcast(self.state, name, self.round).encode())
        for array in message.arrays.values():
            array.flags.writeable = False
        return message

    def work(self, name: str, message: Message) -> Message:
        """A client's reply."""
        memory, client = self.memories.setdefault(name, {}), self.client(name)
        work = self.strategy.work(message, memory, client)
        outcome = drive(work, lambda request: self.problem.reply(name, request))
        if isinstance(outcome, Update):
            outcome = pack(outcome, message, self.strategy.config.compress, memory, client)
        for array in memory.values():
            array.flags.writeable = False
        return outcome

    def go(self, rounds: int = 1, cohort: Callable[[int], Sequence[str]] | None = None) -> None:
        for _ in range(rounds):
            self.problem.log.clear()
            taking = self.strategy.aggregate(self.state, self.round)
            for name in cohort(self.round) if cohort else list(self.problem.clients):
                message = self.sent(name)
                reply = self.work(name, message).encode()
                self.down.append(message.encode())
                self.up.append(reply)
                taking.add(name, Message.decode(reply))
            self.state = taking.result()[0]
            self.round += 1
