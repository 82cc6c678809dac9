"""Rounds without a model, for tests: training is a random move of the factors, and what full
matrices would do is worked out beside it in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import seed_of
from pfi.federate.config import FederateConfig
from pfi.federate.layout import Layer, Layout, Row
from pfi.federate.message import Message
from pfi.federate.strategies import get_strategy
from pfi.federate.strategy import Strategy
from pfi.federate.work import Client, Losses, State, Train, Trained, Update, pack

#: Tall, wide and square, so that nothing transposed fits everywhere.
LAYERS = (Layer("q", 9, 12), Layer("up", 14, 8), Layer("k", 10, 10))
LAYOUT = Layout(LAYERS, 4, 2.0)
Products = list[NDArray[np.float64]]


@dataclass
class Member:
    """A client of a test, and what its round was like.

    Attributes:
        id: its name.
        examples: its weight.
        rank: the largest it can train.
        row: its factors after training.
        start, end: its whole products before and after training.
        sent: its reply.
        memory: what it keeps at home.
    """

    id: str
    examples: int = 5
    rank: int = LAYOUT.rank
    row: Row | None = None
    start: Products = field(default_factory=list)
    end: Products = field(default_factory=list)
    sent: Message = field(default_factory=Message)
    memory: dict[str, Any] = field(default_factory=dict)


def members(*examples: int, ranks: Sequence[int] = ()) -> list[Member]:
    """Clients with these numbers of examples, of the layout's rank or of others."""
    ranks = ranks or [LAYOUT.rank] * len(examples)
    pairs = zip(examples, ranks, strict=True)
    return [Member(f"client {i}", count, rank) for i, (count, rank) in enumerate(pairs)]


def make(name: str, layout: Layout = LAYOUT, **settings: Any) -> Strategy:
    """A strategy of that name; its rows may have more ranks than the layout."""
    local = {"rank": layout.rank, "alpha": layout.scale * layout.rank}
    if name == "scaffold":
        local |= {"optimizer": "sgd"}
        settings = {"scaffold": {"clients": 16}, **settings}
    config = FederateConfig(strategy=name, **{"local": local, **settings})
    kind = get_strategy(name)
    return kind(layout.with_rank(kind.rank(config)), config)


def moved(layout: Layout, request: Train, rank: int, seed: int, size: float = 0.3) -> Row:
    """A row after training: what may be trained is moved at random."""
    allowed = layout.mask(ranks=slice(rank))
    if request.mask is not None:
        allowed &= request.mask
    move = np.random.default_rng(seed).normal(size=layout.width) * size
    return (request.row + allowed * move).astype(np.float32)


Training = Callable[[Layout, Train, int, int], Row]


def work(
    strategy: Strategy, member: Member, message: Message, number: int, train: Training = moved
) -> Message:
    """A client's reply to a broadcast; its products before and after training are kept."""
    seed = seed_of(0, member.id, number)
    client = Client(member.id, number, member.examples, 3, member.rank, seed)
    asking, reply = strategy.work(message, member.memory, client), None
    base = strategy.base(message)
    try:
        while True:
            request = asking.send(reply)
            if isinstance(request, Losses):
                reply = [float(np.square(row).sum()) for row in request.rows]
                continue
            layout = strategy.layout
            row = train(layout, request, member.rank, seed)
            if request.purpose == "shared":
                member.row = row
                member.start = whole(layout, request.row, base)
                member.end = whole(layout, row, base)
            reply = Trained(row, member.examples, 3, 0.5)
    except StopIteration as end:
        sent = end.value
    if isinstance(sent, Update):
        sent = pack(sent, message, strategy.config.compress, member.memory, client)
    member.sent = Message.decode(sent.encode())
    return member.sent


def whole(layout: Layout, row: Row, base: Any) -> Products:
    """Base and products in float64."""
    found = layout.products(row)
    return found if base is None else [p + np.float64(b) for p, b in zip(found, base, strict=True)]


def play(
    strategy: Strategy,
    state: State,
    cohort: Sequence[Member],
    number: int = 0,
    *,
    train: Training = moved,
    slip: Callable[[Member, Message], Message] | None = None,
) -> State:
    """One round; a slip changes what clients send."""
    taking = strategy.aggregate(state, number)
    for member in cohort:
        message = Message.decode(strategy.broadcast(state, member.id, number).encode())
        sent = work(strategy, member, message, number, train)
        taking.add(member.id, slip(member, sent) if slip else sent)
    return taking.result()[0]


def averaged(cohort: Sequence[Member]) -> Products:
    """The clients' whole products averaged by examples, as full matrices in float64."""
    shares = np.array([member.examples for member in cohort], float)
    shares /= shares.sum()
    return [
        sum(share * member.end[i] for share, member in zip(shares, cohort, strict=True))
        for i in range(len(cohort[0].end))
    ]


def changes(cohort: Sequence[Member]) -> Products:
    """How far the clients' products moved on average, by examples."""
    before = [replace(member, end=member.start) for member in cohort]
    return [a - b for a, b in zip(averaged(cohort), averaged(before), strict=True)]


def error(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The distance over all layers, relative to what is wanted."""
    away = sum(float(np.square(a - b).sum()) for a, b in zip(found, wanted, strict=True))
    return float(np.sqrt(away / sum(float(np.square(b).sum()) for b in wanted)))


def products_of(strategy: Strategy, state: State) -> Products:
    """What the server has learnt, as full matrices."""
    mean = getattr(strategy, "mean", None)
    return mean(state) if mean else strategy.model(state).products()


def stacked(layout: Layout, rows: Sequence[tuple[float, NDArray[Any]]]) -> tuple[Layout, Row]:
    """Rows as one of a higher rank, whose update is the weighted sum of theirs (FLoRA, 2409.05976).

    One factor carries the weight: weighting both would square it.

    Args:
        layout: of the rows.
        rows: each with its weight.
    """
    wide = layout.with_rank(layout.rank * len(rows))
    made = np.zeros(wide.width, np.float32)
    for n, (weight, row) in enumerate(rows):
        ranks = slice(n * layout.rank, (n + 1) * layout.rank)
        for i in range(len(layout.layers)):
            wide.a(made, i)[ranks] = layout.a(row, i)
            wide.b(made, i)[ranks] = weight * layout.b(row, i)
    return wide, made
