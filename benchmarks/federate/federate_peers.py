"""What the federation benchmark compares, each in a process of its own.

Every peer computes federated averaging of LoRA factors: each client starts from the same
factors, takes plain gradient steps on its records, and the differences are averaged by the
number of records.  A process is told over its standard input to do a ``round``, one that is
``idle``, with no local steps, or to ``save`` its factors, so that all take turns and the machine's
other work falls on all of them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from federate_data import Setting
from numpy.typing import NDArray

from pfi.models.adapters import Adapter
from pfi.tasks import Example
from pfi.train.job import encode
from pfi.train.peft_reference import Batch, collate, target_loss

MAX_LENGTH = 256
#: One vector of all factors, in the order of their names; see ``flat``.
Factors = Callable[[], NDArray[np.float32]]
#: Called before the first round and after each, with the current factors; what is to follow: a
#: round, one without local steps, or nothing.
Between = Callable[[Factors], "bool | Literal['idle']"]
Peer = Callable[[Setting, Between], None]


def flat(weights: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    """Factors by peft's names as one vector."""
    parts = [weights[name].detach().reshape(-1).numpy() for name in sorted(weights)]
    return np.concatenate(parts)


class Local:
    """The local work that all but pfi share: a peft model, and every client's batch."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(1)
        backbone = setting.backbone()
        self.setting = setting
        self.model: Any = Adapter.load(setting.initial).apply(backbone.model)
        self.parameters = {
            name.replace(".default", ""): parameter
            for name, parameter in self.model.named_parameters()
            if ".lora_" in name
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.batches: list[Batch] = []
        for person in setting.people():
            examples = [Example(prompt, target, {}, "") for prompt, target in person]
            rows = [encode(backbone, example, MAX_LENGTH) for example in examples]
            self.batches.append(collate(backbone, rows))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of the target tokens."""
        return target_loss(self.model, batch, seq2seq=False)

    def train(self, client: int, idle: bool = False) -> None:
        """Plain gradient steps on one client's batch."""
        optimizer = torch.optim.SGD(self.parameters.values(), lr=self.setting.learning_rate)
        for _ in range(0 if idle else self.setting.steps):
            self.loss(self.batches[client]).backward()
            optimizer.step()
            optimizer.zero_grad()

    def count(self, client: int) -> int:
        """How many records a client has."""
        return len(self.batches[client].weights)

    def factors(self) -> NDArray[np.float32]:
        return flat(self.parameters)


# The bare loop ----------------------------------------------------------------------


def bare(setting: Setting, between: Between) -> None:
    """Nothing but the local steps and a running sum."""
    local = Local(setting)
    parameters = list(local.parameters.values())
    while follows := between(local.factors):
        start = [parameter.detach().clone() for parameter in parameters]
        total = [torch.zeros_like(parameter) for parameter in parameters]
        weight = 0
        for client in range(setting.clients):
            with torch.no_grad():
                for parameter, first in zip(parameters, start, strict=True):
                    parameter.copy_(first)
            local.train(client, follows == "idle")
            count = local.count(client)
            weight += count
            with torch.no_grad():
                for added, parameter, first in zip(total, parameters, start, strict=True):
                    added.add_(parameter - first, alpha=count)
        with torch.no_grad():
            for parameter, first, added in zip(parameters, start, total, strict=True):
                parameter.copy_(first + added / weight)


# pfl --------------------------------------------------------------------------------


def pfl(setting: Setting, between: Between) -> None:
    """pfl's federated averaging on its simulated backend."""
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    local = Local(setting)

    class Module(torch.nn.Module):
        """The two methods that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.model = local.model

        def loss(self, **batch: torch.Tensor) -> torch.Tensor:
            return local.loss(Batch(**batch))

        def metrics(self, **batch: torch.Tensor) -> dict[str, Any]:
            return {}

    class Turns(TrainingProcessCallback):  # type: ignore[misc]
        """Waits for the next round."""

        follows: Any = True

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            self.follows = between(local.factors)
            return not self.follows, Metrics()

    turns = Turns()

    class Model(PyTorchModel):  # type: ignore[misc]
        """Takes no steps in an idle round."""

        def do_multiple_epochs_of(self, user: Any, params: Any, *rest: Any, **more: Any) -> Any:
            if turns.follows == "idle":
                params = replace(params, local_num_epochs=0)
            return super().do_multiple_epochs_of(user, params, *rest, **more)

    turns.follows = between(local.factors)
    if not turns.follows:
        return
    datasets = [
        PyTorchTensorDataset(vars(batch), user_id=str(client))
        for client, batch in enumerate(local.batches)
    ]
    data = FederatedDataset(
        datasets.__getitem__, MinimizeReuseUserSampler(list(range(setting.clients)))
    )
    model = Model(Module(), torch.optim.SGD, torch.optim.SGD(local.parameters.values(), lr=1.0))
    # Its own measuring of clients before and after training is left out.
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=1 << 30,
            evaluation_frequency=1 << 31,
            train_cohort_size=setting.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=None,
            local_num_epochs=setting.steps,
            local_learning_rate=setting.learning_rate,
        ),
        callbacks=[turns],
    )


# Flower -----------------------------------------------------------------------------


@functools.cache
def _of_this_process(path: str) -> Local:
    """A ClientApp has no state: each of Ray's processes keeps its model here."""
    return Local(Setting.load(Path(path)))


def _flower_apps(setting: Setting, between: Between) -> tuple[Any, Any]:
    """Flower's two apps: the client's training, and its strategy of federated averaging."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    path = str(Path(setting.folder) / "setting.json")
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        from federate_peers import _of_this_process  # found by name in each of Ray's processes

        local, client = _of_this_process(path), int(context.node_config["partition-id"])
        sent = message.content["arrays"].to_torch_state_dict()
        with torch.no_grad():
            for name, parameter in local.parameters.items():
                parameter.copy_(sent[name])
        local.train(client, bool(message.content["config"]["idle"]))
        arrays = ArrayRecord(local.parameters)
        metrics = MetricRecord({"num-examples": local.count(client)})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content=content, reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(Adapter.load(setting.initial).weights)
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
        while follows := between(lambda now=arrays: flat(now.to_torch_state_dict())):
            config = ConfigRecord({"idle": follows == "idle"})
            arrays = strategy.start(grid, arrays, num_rounds=1, train_config=config).arrays

    return server_app, client_app


def flower_ray(setting: Setting, between: Between) -> None:
    """Flower's simulation engine, with one Ray process for the clients."""
    from flwr.simulation import run_simulation

    server, client = _flower_apps(setting, between)
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    init = {"num_cpus": 1, "object_store_memory": 200_000_000, "log_to_driver": False}
    config: Any = {"client_resources": resources, "init_args": init}
    run_simulation(server, client, setting.clients, backend_config=config)


def flower_in_process(setting: Setting, between: Between) -> None:
    """The same apps over a Grid of our own that calls the ClientApp in this process."""
    from flwr.app import Context, Message, RecordDict
    from flwr.serverapp import Grid
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    server, client = _flower_apps(setting, between)

    class Here(Grid):
        """Every message is answered at once."""

        def set_run(self, run: Any) -> None: ...

        @property
        def run(self) -> Any:
            return None

        def create_message(self, *_: Any, **__: Any) -> Message:
            raise NotImplementedError

        def get_node_ids(self) -> Iterator[int]:
            yield from range(1, setting.clients + 1)

        def push_messages(self, messages: Any) -> list[str]:
            raise NotImplementedError

        def pull_messages(self, message_ids: Any) -> list[Message]:
            raise NotImplementedError

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            return [client(message, context(message.metadata.dst_node_id)) for message in messages]

    def context(node: int) -> Context:
        config = {"partition-id": node - 1, "num-partitions": setting.clients}
        return Context(1, node, config, RecordDict(), {})

    server(Here(), context(0))


# pfi --------------------------------------------------------------------------------


class Enough(Exception):
    """No further round is wanted."""


class People:
    """The clients' records, as pfi's simulation asks for them."""

    def __init__(self, setting: Setting) -> None:
        self._people = setting.people()

    def clients(self) -> list[str]:
        return [str(number) for number in range(len(self._people))]

    def examples(self, client: str) -> list[Example]:
        return [Example(prompt, target, {}, "") for prompt, target in self._people[int(client)]]

    def rank(self, client: str) -> None:
        return None


def pfi(setting: Setting, between: Between, working_set: int) -> None:
    """pfi's simulation, with that many clients in one pass."""
    from pfi.federate.config import FederateConfig, LocalConfig, SimulateConfig
    from pfi.federate.rounds import Federation
    from pfi.federate.simulate import SimulatedFleet

    torch.set_num_threads(1)
    counts = [len(person) for person in setting.people()]
    fewest, most = min(counts), max(counts)
    local = LocalConfig(
        rank=setting.rank,
        alpha=setting.adapter_config.alpha,
        epochs=(setting.steps - 1) * most / fewest + 0.1,  # at least as many steps for the fewest
        steps=setting.steps,
        batch_size=most,
        optimizer="sgd",
        learning_rate=setting.learning_rate,
        weight_decay=0.0,
        clip=1e9,
        max_length=MAX_LENGTH,
    )
    config = FederateConfig(
        rounds=1 << 20,
        cohort=setting.clients,
        held_out=0.0,
        local=local,
        simulate=SimulateConfig(working_set=working_set),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fleet = SimulatedFleet(setting.backbone(), People(setting), config, folder / "clients")
        layout = fleet.strategy.layout

        def places(row: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            """Views of a row by peft's names."""
            found = {}
            for i, layer in enumerate(layout.layers):
                found[f"base_model.model.{layer.name}.lora_A.weight"] = layout.a(row, i)
                found[f"base_model.model.{layer.name}.lora_B.weight"] = layout.b(row, i).T
            return found

        def factors() -> NDArray[np.float32]:
            row = places(federation.state["row"])
            return flat({name: torch.from_numpy(part.copy()) for name, part in row.items()})

        run = fleet._clients.engine._run
        advance = run._advance

        def pass_over(group: Any) -> None:
            for step in group:
                step.active.losses.append(0.0)
                step.active.step += 1

        def after(*_: object) -> None:
            follows = between(factors)
            if not follows:
                raise Enough
            run._advance = pass_over if follows == "idle" else advance

        federation = Federation(config, fleet.strategy, fleet, folder / "run", on_round=after)
        row = places(federation.state["row"])
        for name, factor in Adapter.load(setting.initial).weights.items():
            row[name][...] = factor.numpy()
        try:
            after()
            federation.run()
        except Enough:
            fleet.close()


PEERS: dict[str, Peer] = {
    "bare loop": bare,
    "pfl": pfl,
    "Flower, in process": flower_in_process,
    "Flower, Ray": flower_ray,
    "pfi, one at a time": functools.partial(pfi, working_set=1),
    "pfi, 32 in a pass": functools.partial(pfi, working_set=32),
}

# The process ------------------------------------------------------------------------


def family() -> list[int]:
    """This process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds() -> float:
    """Processor time of this process and of all that descend from it."""
    total = time.process_time()
    for pid in family():
        try:
            stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
        except OSError:
            continue
        own, system, ended, ended_system = stat.rpartition(")")[2].split()[11:15]
        ticks = int(ended) + int(ended_system)
        if pid != os.getpid():
            ticks += int(own) + int(system)
        total += ticks / os.sysconf("SC_CLK_TCK")
    return total


def peak_bytes() -> int:
    """The largest resident sizes of this process and its descendants, added up."""
    total = 0
    for pid in family():
        try:
            lines = Path("/proc", str(pid), "status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return total


def serve(name: str, setting: Setting, commands: IO[str], answers: IO[str]) -> None:
    """Do what the lines say: ``round``, ``idle``, ``save <file>``; the end ends it."""
    began: tuple[float, float] | None = None

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def between(factors: Factors) -> bool | Literal["idle"]:
        nonlocal began
        if began is None:
            answer(peak=peak_bytes())
        else:
            clock, cpu = time.perf_counter() - began[0], cpu_seconds() - began[1]
            answer(clock=clock, cpu=cpu, peak=peak_bytes())
        for line in commands:
            command, _, file = line.strip().partition(" ")
            if command in ("round", "idle"):
                began = time.perf_counter(), cpu_seconds()
                return True if command == "round" else "idle"
            np.save(file, factors())
            answer()
        return False

    PEERS[name](setting, between)


def main() -> None:
    """``python federate_peers.py <peer> <setting.json>``."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.argv[1], Setting.load(Path(sys.argv[2])), sys.stdin, answers)


if __name__ == "__main__":
    main()
