"""One shared adapter for each of several kinds of clients: IFCA (2006.04088), where a client picks
by its losses, and clusters by the similarity of updates, where the server does (after 1910.01991).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi._util.seeds import generator, seed_of
from pfi.errors import FederationError
from pfi.federate.aggregate.mean import Combined, Combiner, Vector, WeightedMean
from pfi.federate.message import Array, Message, Value
from pfi.federate.strategy import Strategy
from pfi.federate.work import (
    Aggregate,
    Client,
    Losses,
    Memory,
    Model,
    State,
    Train,
    Trained,
    Update,
    Work,
    remembered,
    unpack,
)

#: Makes the combiner of one cluster's updates, given their size.
MakeCombiner = Callable[[int], Combiner]
#: Clients that are compared in pairs; others are put in the nearest cluster.
_COMPARED = 2000


class Clustered(Strategy):
    """Several rows in the state, each with the combination of its own clients' updates.

    Not linear as a whole, for that would need updates of every cluster's size from every client.
    But a cluster's combiner is any there is, so robust rules work within each.
    """

    @abstractmethod
    def group(self, state: State, client: str, message: Message) -> str:
        """The name of the row in the state that an update is of.

        Raises:
            FederationError: there is none.
        """

    @abstractmethod
    def after(self, state: State, updates: Mapping[str, tuple[str, Array]]) -> State:
        """The next state once all rows are moved.

        Args:
            state: with the moved rows.
            updates: by client: the row's name, and what ``noted`` made of the update.
        """

    def noted(self, vector: Vector) -> Array:
        """What is kept of an update until the round ends: nothing."""
        return np.zeros(0, np.float32)

    def aggregate(
        self, state: State, round: int, combiner: MakeCombiner = WeightedMean
    ) -> Aggregate:
        """See ``Strategy``."""
        return _Groups(self, state, combiner)


class _Groups(Aggregate):
    def __init__(self, strategy: Clustered, state: State, make: MakeCombiner) -> None:
        self.strategy, self.state, self.make = strategy, state, make
        self.combiners: dict[str, Combiner] = {}
        self.updates: dict[str, tuple[str, Array]] = {}

    def add(self, client: str, message: Message) -> None:
        """See ``Aggregate``."""
        width = self.strategy.layout.width
        vector, weight = unpack(message, width)
        name = self.strategy.group(self.state, client, message)
        if name not in self.combiners:
            self.combiners[name] = self.make(width)
        self.combiners[name].add(client, vector, weight)
        self.updates[client] = name, self.strategy.noted(vector)

    def result(self) -> tuple[State, Combined | None]:
        """See ``Aggregate``; the vector is that of all rows that were moved, one after another."""
        state, vectors, clients = dict(self.state), [np.zeros(0)], 0
        refused: dict[str, str] = {}
        for name, combiner in sorted(self.combiners.items()):
            combined = combiner.result()
            refused.update(combined.refused)
            clients += combined.clients
            if combined.clients:
                state.update(self.strategy.optimizer.step(state, name, combined.vector))
                vectors.append(combined.vector)
        updates = {name: update for name, update in self.updates.items() if name not in refused}
        combined = Combined(np.concatenate(vectors), clients, refused)
        return self.strategy.after(state, updates), combined


class IFCA(Clustered):
    """IFCA: a client is sent all rows, trains the one with its lowest loss, and says which.

    The first rows differ in A; as their B are zero they answer alike, and equal losses are
    decided by the client's name, so that every row is trained.  A newcomer answers with the row
    that most clients chose in the last round.
    """

    name = "ifca"
    computes = "for each cluster the mean of its clients' A and B; clients pick by their losses"
    stateful = True

    def start(self) -> State:
        """Rows that differ."""
        rows = {
            f"row.{n}": self.layout.fresh(generator(self.config.seed, "start", n))
            for n in range(self.config.clusters.count)
        }
        return {**rows, "sizes": np.zeros(self.config.clusters.count, np.int64)}

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """All rows, and which of them most clients chose."""
        return self.once(state, lambda: self._all(state))

    def _all(self, state: State) -> Message:
        rows = np.stack([state[f"row.{n}"] for n in range(self.config.clusters.count)])
        return Message({"rows": rows}, {"largest": int(np.argmax(state["sizes"]))})

    def model(self, state: State) -> Model:
        """The row that most clients chose."""
        return Model(state[f"row.{np.argmax(state['sizes'])}"], self.layout)

    def own_model(self, message: Message, memory: Memory) -> Model:
        """The row that the client chose last, or most did."""
        own = remembered(memory, "cluster", np.int64, (1,))
        chosen = self._cluster(message, "largest") if own is None else int(own[0])
        return Model(self._rows(message)[chosen], self.layout)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Pick a row and train it."""
        rows = self._rows(message)
        found: list[float] = yield Losses(list(rows))
        losses = np.array(found)
        if not np.isfinite(losses).any():
            raise FederationError("its loss with every cluster's row is not finite")
        best = np.flatnonzero(losses <= np.nanmin(losses) * (1 + 1e-6))
        chosen = int(best[seed_of(self.config.seed, "cluster", client.id) % len(best)])
        row = rows[chosen]
        trained: Trained = yield Train(row, pull=row, mu=self.config.local.prox)
        memory["cluster"] = np.array([chosen], np.int64)
        values: dict[str, Value] = {"cluster": chosen}
        return Update(trained.row - row, trained.examples, values, part=str(chosen))

    def group(self, state: State, client: str, message: Message) -> str:
        """See ``Clustered``."""
        return f"row.{self._cluster(message, 'cluster')}"

    def after(self, state: State, updates: Mapping[str, tuple[str, Array]]) -> State:
        """Count who chose what."""
        if not updates:
            return state
        sizes = np.zeros_like(state["sizes"])
        for name, _ in updates.values():
            sizes[int(name.removeprefix("row."))] += 1
        return {**state, "sizes": sizes}

    def _rows(self, message: Message) -> Array:
        return message.array("rows", np.float32, (self.config.clusters.count, self.layout.width))

    def _cluster(self, message: Message, name: str) -> int:
        number = message.number(name)
        if number not in range(self.config.clusters.count):
            raise FederationError(f"a message names the cluster {number}, which there is none of")
        return int(number)


class Similarity(Clustered):
    """All learn together first; then clients whose updates point alike go on by themselves.

    The server keeps a sketch of each client's updates, which preserves their cosines, less the
    cohort's mean, and groups clients once by average linkage.  So it has to see updates, and it
    learns who is like whom.  The row as it was learnt together
    stays: who joins later trains it first, is put in the cluster nearest to its update, and so
    has that row until then.
    """

    name = "similarity"
    computes = "for each cluster the mean of its clients' A and B; the server groups by updates"
    _read: tuple[Array, dict[str, int]] | None = None

    def start(self) -> State:
        """One row, and no client known."""
        size = self.config.clusters.sketch
        return {
            **super().start(),
            "rounds": np.zeros(1, np.int64),
            "clients": _names([]),
            "sketches": np.zeros((0, size), np.float32),
            "clusters": np.zeros(0, np.int64),
            "centre": np.zeros(size, np.float32),
        }

    def broadcast(self, state: State, client: str, round: int) -> Message:
        """The row of the client's cluster."""
        name = self._name(state, client)
        return self.once(state, lambda: Message({"row": state[name]}), name)

    def model(self, state: State) -> Model:
        """The row that was learnt together."""
        return Model(state["row"], self.layout)

    def work(self, message: Message, memory: Memory, client: Client) -> Work:
        """Train the row that was sent."""
        row = self.received(message)
        trained: Trained = yield Train(row, pull=row, mu=self.config.local.prox)
        return Update(trained.row - row, trained.examples)

    def group(self, state: State, client: str, message: Message) -> str:
        """See ``Clustered``."""
        return self._name(state, client)

    def noted(self, vector: Vector) -> Array:
        """The sketch of an update."""
        return self._sketch.of(vector)

    def after(self, state: State, updates: Mapping[str, tuple[str, Array]]) -> State:
        """Note who pointed where; when it is time make clusters, and later add who is new."""
        if not updates:
            return state
        clustered, known = "row.0" in state, dict(self._known(state))
        # Sorted, so that the result does not depend on who was first.
        noted = {client: updates[client][1] for client in sorted(updates)}
        for client in noted:
            known.setdefault(client, len(known))
        before, size = len(state["clusters"]), self.config.clusters.sketch
        sketches, clusters = np.zeros((len(known), size), np.float32), np.full(len(known), -1)
        sketches[:before], clusters[:before] = state["sketches"], state["clusters"]
        centre = state["centre"] if clustered else np.mean(list(noted.values()), axis=0)
        for client, sketch in noted.items():
            if clusters[known[client]] < 0:
                sketches[known[client]] += sketch - centre
        rounds, count = state["rounds"] + 1, self.config.clusters.count
        if not clustered and rounds[0] >= self.config.clusters.together and len(known) >= 2 * count:
            clustered, centre = True, centre.astype(np.float32)
            clusters[:_COMPARED] = _groups(sketches[:_COMPARED], count)
            state = {**state, **{f"row.{n}": state["row"] for n in range(count)}, "centre": centre}
        if clustered:
            means = np.stack([_unit(sketches[clusters == n]).mean(axis=0) for n in range(count)])
            fresh = clusters < 0
            clusters[fresh] = (_unit(sketches[fresh]) @ _unit(means).T).argmax(axis=1)
        arrays = {"sketches": sketches, "clusters": clusters, "rounds": rounds}
        return {**state, **arrays, "clients": _names(list(known))}

    @cached_property
    def _sketch(self) -> Sketch:
        return Sketch(self.layout.width, self.config.clusters.sketch, self.config.seed)

    def _known(self, state: State) -> dict[str, int]:
        """Where each known client is in the state's arrays."""
        if self._read is None or self._read[0] is not state["clients"]:
            names = json.loads(state["clients"].tobytes())
            self._read = state["clients"], {name: n for n, name in enumerate(names)}
        return self._read[1]

    def _name(self, state: State, client: str) -> str:
        place = self._known(state).get(client)
        cluster = -1 if place is None else int(state["clusters"][place])
        return "row" if cluster < 0 else f"row.{cluster}"


class Sketch:
    """The direction of a vector in few numbers, each the sum of a random share of it with random
    signs: cosines of vectors are those of their sketches, but for ``1 / sqrt(size)``.

    Args:
        width: numbers of a vector.
        size: of a sketch.
        seed: decides shares and signs.
    """

    def __init__(self, width: int, size: int, seed: int) -> None:
        rng = generator(seed, "sketch")
        self._size, self._places = size, rng.integers(0, size, width, np.int32)
        self._signs = rng.integers(0, 2, width, np.int8) * 2 - 1

    def of(self, vector: Vector) -> NDArray[np.float32]:
        """The sketch ``(size,)`` of a vector ``(width,)``, of length one."""
        signed = self._signs * vector.astype(np.float64)
        return _unit(np.bincount(self._places, signed, self._size)).astype(np.float32)


def _groups(sketches: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The cluster of each client, numbered in the order of their first clients."""
    from scipy.cluster.hierarchy import average, cut_tree  # type: ignore[import-untyped]
    from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

    directions = _unit(sketches)
    apart = np.clip(1 - directions @ directions.T, 0, 2)
    np.fill_diagonal(apart, 0)
    labels = cut_tree(average(squareform(apart, checks=False)), count)[:, 0]
    _, first, places = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places].astype(np.int64)


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows ``(..., size)`` at length one; zeros stay."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(norms, np.finfo(np.float32).tiny)


def _names(names: list[str]) -> NDArray[np.uint8]:
    """Names as an array, for a state holds nothing else."""
    return np.frombuffer(json.dumps(names).encode(), np.uint8)
