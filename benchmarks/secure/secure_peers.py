"""What the secure aggregation benchmark compares: pfi's protocol and Flower's SecAgg+, in process.

Both get the same float32 updates and weights and lose the same clients after secrets were shared.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.message import Message
from pfi.federate.secure import Identity, Policy, Roster, Rounds, SecureClient, SecureServer, run

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

CLIP, HEAVIEST = 1.0, 1000
CONFIGS = "secaggplus_configs"
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A cohort and its updates.

    Attributes:
        clients: asked.
        length: of a vector.
        dropouts: clients whose masked vectors never come.
        threshold: who must stay.
    """

    clients: int
    length: int
    dropouts: int
    threshold: int

    def updates(self) -> list[tuple[Vector, int]]:
        """Vector and weight of each client, always the same."""
        rng = np.random.default_rng(0)
        return [
            (rng.uniform(-CLIP, CLIP, self.length).astype(np.float32), int(rng.integers(1, 500)))
            for _ in range(self.clients)
        ]

    def mean(self, updates: list[tuple[Vector, int]]) -> NDArray[np.float64]:
        """The weighted mean of those who stay, the last ones having dropped out."""
        kept = updates[: self.clients - self.dropouts]
        vectors, weights = zip(*kept, strict=True)
        return np.average(np.array(vectors, np.float64), axis=0, weights=weights)


@dataclass
class Clock:
    """Processor and wall-clock seconds, and bytes sent to the server, by what was done."""

    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: float = 0.0
    sent: int = 0
    error: float = 0.0

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Add what happens inside to ``name``."""
        begun = time.process_time()
        yield
        self.cpu[name] += time.process_time() - begun

    @property
    def total(self) -> float:
        """Processor seconds of all."""
        return sum(self.cpu.values())


def pfi(case: Case) -> Clock:
    """Our protocol; every message is encoded to bytes and decoded again, both ways."""
    names = [f"{number:04d}" for number in range(case.clients)]
    policy = Policy(
        federation="benchmark",
        length=case.length,
        clip=CLIP,
        # The finest that 32 bits allow.
        step=CLIP * HEAVIEST * case.clients / 2**31 * 1.001,
        heaviest=HEAVIEST,
        smallest=case.clients,
        largest=case.clients,
        threshold=(case.threshold - 0.5) / case.clients,
    )
    assert policy.needed(case.clients) == case.threshold
    identities = {name: Identity.generate(name) for name in names}
    roster = Roster({name: one.public for name, one in identities.items()})
    updates, clock = case.updates(), Clock()
    lost = set(names[case.clients - case.dropouts :])

    def ask(messages: Mapping[str, Message]) -> Iterable[tuple[str, Message | FederationError]]:
        for name, message in messages.items():
            stage = str(message.values["stage"])
            if stage == "masked" and name in lost:
                continue
            # Without what was kept of a former encoding: each client's is a message of its own.
            message = Message(message.arrays, message.values)
            with clock.at(f"server {stage}"):
                data = message.encode()
            with clock.at(f"client {stage}"):
                reply = clients[name].handle(Message.decode(data)).encode()
            clock.sent += len(reply)
            with clock.at(f"server {stage}"):
                decoded = Message.decode(reply)
            yield name, decoded

    begun = time.perf_counter()
    clients = {name: SecureClient(identities[name], roster, policy, "", Rounds()) for name in names}
    with clock.at("client masked"):
        for name, (vector, weight) in zip(names, updates, strict=True):
            if name not in lost:
                clients[name].contribute(vector, weight)
    before, all_before = clock.total, time.process_time()
    server = SecureServer(policy, roster, 1, names, "")
    refused = run(server, ask)
    mean = server.mean()
    # What run itself does is the server's: requests, receive and close.
    whole = time.process_time() - all_before
    clock.cpu["server, receiving and unmasking"] = whole - (clock.total - before)
    clock.wall = time.perf_counter() - begun
    assert not refused
    clock.error = float(np.abs(mean - case.mean(updates)).max())
    return clock


def flower(case: Case, shares: int | None = None) -> Clock:
    """Flower's workflow and mod with an in-process grid; messages stay objects.

    Args:
        case: what is summed.
        shares: neighbours that a client shares its secrets with; all when None.
    """
    from flwr.app import ConfigRecord, Context, RecordDict
    from flwr.app import Message as FlowerMessage
    from flwr.client.mod import secaggplus_mod
    from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters
    from flwr.common import parameters_to_ndarrays as arrays_of
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server import LegacyContext, SimpleClientManager
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
    from flwr.server.workflow.constant import Key as WorkflowKey
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    updates, clock = case.updates(), Clock()
    ids = list(range(1, case.clients + 1))
    lost = set(ids[case.clients - case.dropouts :])
    fitted = {
        number: FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), weight, {})
        for number, (vector, weight) in zip(ids, updates, strict=True)
    }

    class Proxy:
        def __init__(self, number: int) -> None:
            self.node_id, self.cid = number, str(number)

    class Strategy(FedAvg):
        def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
            return [(Proxy(number), FitIns(ndarrays_to_parameters([]), {})) for number in ids]

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            self.mean = arrays_of(results[0][1].parameters)[0]
            return results[0][1].parameters, {}

    def context(number: int) -> Context:
        return Context(1, number, {}, RecordDict(), {})

    clients = {number: context(number) for number in ids}

    def app(message: FlowerMessage, context: Context) -> FlowerMessage:
        content = compat.fitres_to_recorddict(fitted[context.node_id], True)
        return FlowerMessage(content, reply_to=message)

    class Grid:
        def send_and_receive(self, messages: Any, *, timeout: Any = None) -> list[Any]:
            replies = []
            for message in messages:
                number = message.metadata.dst_node_id
                stage = message.content.config_records[CONFIGS]["stage"]
                if stage == "collect_masked_vectors" and number in lost:
                    continue
                # The mod takes entries out of the record, which in process is one for all.
                content = RecordDict({
                    name: ConfigRecord(dict(record)) if name == CONFIGS else record
                    for name, record in message.content.items()
                })  # fmt: skip
                message = FlowerMessage(content=content, metadata=message.metadata)
                with clock.at(f"client {stage}"):
                    reply = secaggplus_mod(message, clients[number], app)
                for value in reply.content.config_records[CONFIGS].values():
                    parts = value if isinstance(value, list) else [value]
                    clock.sent += sum(len(part) for part in parts if isinstance(part, bytes))
                replies.append(reply)
            return replies

    strategy = Strategy()
    legacy = LegacyContext(context(0), None, strategy, SimpleClientManager())
    parameters = compat.parameters_to_arrayrecord(ndarrays_to_parameters([]), True)
    legacy.state.array_records[MAIN_PARAMS_RECORD] = parameters
    legacy.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    workflow = SecAggPlusWorkflow(
        num_shares=1.0 if shares is None else shares,
        reconstruction_threshold=case.threshold if shares is None else shares // 2 + 1,
        max_weight=HEAVIEST,
        clipping_range=CLIP,
    )
    begun, all_before = time.perf_counter(), time.process_time()
    workflow(Grid(), legacy)  # type: ignore[arg-type]
    whole = time.process_time() - all_before
    clock.cpu["server, receiving and unmasking"] = whole - clock.total
    clock.wall = time.perf_counter() - begun
    clock.error = float(np.abs(strategy.mean - case.mean(updates)).max())
    return clock


def sharing(clients: int, threshold: int, limbs: bool) -> float:
    """Processor seconds to share two secrets of 32 bytes: plain integers, or numpy limbs.

    The limbs are 5 of 60 bits each, modulo 2**61 - 1, all polynomials evaluated at once.
    """
    from pfi.federate.secure import field as whole

    points = list(range(1, clients + 1))
    if not limbs:
        begun = time.process_time()
        for _ in range(2):
            whole.split(os.urandom(32), points, threshold)
        return time.process_time() - begun
    prime, low = np.uint64(2**61 - 1), np.uint64(2**32 - 1)
    begun = time.process_time()
    rows = np.random.default_rng().integers(0, 2**61 - 1, (threshold, 10, 1), np.uint64)
    x = np.array(points, np.uint64)
    value = np.zeros((10, clients), np.uint64)
    for row in rows:
        # value * x + row, the points being below 2**24: high and low halves apart.
        high = (value >> np.uint64(32)) * x
        top, rest = high >> np.uint64(29), high & np.uint64(2**29 - 1)
        value = ((rest << np.uint64(32)) % prime + top + ((value & low) * x) % prime + row) % prime
    return time.process_time() - begun
