"""The planner: which engine, bits, context, rank, and whether to train on this machine.

``plan`` is a pure function.  Every way to answer that fits the limits is ranked by one order, so
that more room never gives a worse plan.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pfi.errors import ConfigError
from pfi.models.gguf.families import BY_MODEL_TYPE
from pfi.profile.answer.engines import Bits, EngineName
from pfi.profile.plan.machine import Machine
from pfi.profile.plan.predict import Figures, Model, TrainingFigures, answering, training
from pfi.profile.plan.shapes import ModelShape

#: Ways to answer, and how near their weights are to the backbone's own: 2 as good as the same.
WAYS: list[tuple[EngineName, Bits, int]] = [
    ("torch", "f32", 2),
    ("torch", "bf16", 2),
    ("llama.cpp", "f16", 2),
    ("llama.cpp", "q8_0", 1),
    ("llama.cpp", "q4_k_m", 0),
]
_NEARNESS = {(engine, bits): near for engine, bits, near in WAYS}
#: Model kinds that llama.cpp can be given, see ``models/gguf/families.py``.
LLAMA_KINDS = frozenset(BY_MODEL_TYPE)
_LEAST_CONTEXT, _WANTED_CONTEXT = 256, 1024
ASSUMED_WATTS = 30.0
_BATTERY_SHARE = 0.1  # of its charge that training may take without being asked


class Limits(BaseModel):
    """What a plan may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory: int | None = Field(None, gt=0, description="bytes of a process; all that is free")
    seconds: float | None = Field(None, gt=0, description="of a training; any when None")
    energy: float | None = Field(None, gt=0, description="watt-hours of a training")
    watts: float | None = Field(None, gt=0, description="drawn while training, where known")
    speed: float = Field(10.0, gt=0, description="tokens a second that are fast enough to read")


@dataclass(frozen=True)
class Option:
    """One engine and format at its best: what it would give, or why it is not possible."""

    engine: EngineName
    bits: Bits
    context: int = 0
    rank: int = 0
    figures: Figures | None = None
    refused: str | None = None
    own: bool = False  # the backbone's own GGUF file; `bits` is what comes nearest to it

    @property
    def nearness(self) -> int:
        """How near the weights are to the backbone's own: 2 as good as the same."""
        return 2 if self.own else _NEARNESS[self.engine, self.bits]

    def worth(self, speed: float) -> tuple[float, ...]:
        """What a user gets; greater is better."""
        assert self.figures is not None
        decode = self.figures.decode
        return (
            min(decode, speed),
            min(self.context, _WANTED_CONTEXT),
            self.nearness,
            self.context,
            self.rank,
            decode,
        )


@dataclass(frozen=True)
class Training:
    """Whether to train here.

    Attributes:
        here: whether.
        rank: of the adapter.
        blocks: how many of the last blocks are adapted; all when None.
        figures: predicted; of what was chosen, else of the least that can be done.
        energy: watt-hours.
        reason: in words.
    """

    here: bool
    rank: int
    blocks: int | None
    figures: TrainingFigures
    energy: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """What suits this machine, with the reason of every choice.

    Attributes:
        chosen: how to answer.
        training: whether and how to train here.
        reasons: in words, by what is chosen: engine, context, rank, train.
        options: every engine and format, the chosen one too.
        speed: tokens a second that were asked for.
    """

    chosen: Option
    training: Training
    reasons: dict[str, str]
    options: list[Option]
    speed: float = field(repr=False, default=10.0)

    @property
    def worth(self) -> tuple[float, ...]:
        """What a user gets; greater is better."""
        return (*self.chosen.worth(self.speed), float(self.training.here))

    def settings(self) -> dict[str, Any]:
        """The profile's settings that carry it out; those of ``train`` are within ``train``."""
        chosen, made = self.chosen, self.training
        layers = "all" if made.blocks is None else f"last:{made.blocks}"
        train: dict[str, Any] = {"rank": made.rank, "layers": layers}
        return {
            "engine": chosen.engine,
            "bits": "auto" if chosen.own else chosen.bits,
            "context": chosen.context,
            "train": train,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "settings": self.settings()}


def plan(machine: Machine, model: Model, limits: Limits) -> Plan:
    """What suits this machine best within the limits.

    Raises:
        ConfigError: nothing fits; it says what would be needed.
    """
    options = [_best(machine, model, limits, engine, bits) for engine, bits in ways(model.shape)]
    possible = [option for option in options if option.figures and not option.refused]
    if not possible:
        raise _impossible(machine, options, model.shape.name, limits)
    chosen = max(possible, key=lambda option: option.worth(limits.speed))
    made = _training(machine, model, limits)
    reasons = {
        "engine": _why_engine(chosen, options, limits),
        "context": _why_context(chosen, model),
        "rank": _why_rank(made, model),
        "train": made.reason,
    }
    return Plan(chosen, made, reasons, options, limits.speed)


# Answering ---------------------------------------------------------------------------


def ways(shape: ModelShape) -> list[tuple[EngineName, Bits]]:
    """The ways to answer with a model; llama.cpp takes a GGUF file as it is."""
    if shape.bits is None:
        return [(engine, bits) for engine, bits, _ in WAYS]
    nearest = min(
        (bits for engine, bits, _ in WAYS if engine == "llama.cpp"),
        key=lambda bits: abs(shape.size(bits) - shape.file),
    )
    torch_ways = [(engine, bits) for engine, bits, _ in WAYS if engine == "torch"]
    return [*torch_ways, ("llama.cpp", nearest)]


def _best(machine: Machine, model: Model, limits: Limits, engine: EngineName, bits: Bits) -> Option:
    """An engine's best context and rank within the limits."""
    if engine == "llama.cpp":
        if not machine.llama_cpp:
            return Option(engine, bits, refused="not installed: pip install 'pfi[llama]'")
        if model.shape.seq2seq or model.shape.kind not in LLAMA_KINDS:
            return Option(engine, bits, refused=f"it is not offered for {model.shape.kind} models")
    own = engine == "llama.cpp" and model.shape.bits is not None
    found: list[Option] = []
    for context in contexts(model.shape.context):
        for rank in ranks(model.rank):
            figures = answering(machine, model, engine, bits, context, rank)
            found.append(Option(engine, bits, context, rank, figures, own=own))
    fitting = [option for option in found if not _too_much(option, machine, limits)]
    if fitting:
        return max(fitting, key=lambda option: option.worth(limits.speed))
    least = _least(found)
    return replace(least, refused=_too_much(least, machine, limits))


def contexts(longest: int) -> list[int]:
    """Context lengths to choose from: doubling, up to the backbone's own."""
    found = []
    length = min(_LEAST_CONTEXT, longest)
    while length < longest:
        found.append(length)
        length *= 2
    return [*found, longest]


def ranks(wanted: int) -> list[int]:
    """Ranks to choose from: the one asked for, and its halves down to 2."""
    return [wanted >> at for at in range(max(1, int(math.log2(max(wanted, 1)))))]


def room(machine: Machine, limits: Limits) -> int:
    """Bytes that a process may use."""
    return min(machine.memory_free, limits.memory or machine.memory_free)


def _too_much(option: Option, machine: Machine, limits: Limits) -> str | None:
    """What of the limits an option would break, in words."""
    figures = option.figures
    assert figures is not None
    if figures.memory > room(machine, limits):
        return f"needs {size(figures.memory)} of memory"
    if machine.gpu and figures.gpu_memory > machine.gpu.memory_free:
        return f"needs {size(figures.gpu_memory)} of the graphics processor's memory"
    if figures.disk > machine.disk_free:
        return f"needs {size(figures.disk)} of disk"
    return None


def _least(options: list[Option]) -> Option:
    """The one that needs the least memory."""
    return min(options, key=lambda option: option.figures.memory if option.figures else 0)


def _impossible(machine: Machine, options: list[Option], name: str, limits: Limits) -> ConfigError:
    """An error that says what each engine would need at the least."""
    least = [
        _least([option for option in options if option.engine == engine and option.figures])
        for engine in dict.fromkeys(option.engine for option in options if option.figures)
    ]
    least.sort(key=lambda option: option.figures.memory if option.figures else 0)
    given = limits.memory is not None and limits.memory <= machine.memory_free
    most = size(room(machine, limits)) + ("" if given else " of free memory")
    needs = [f"{o.engine} {o.bits} with {o.context} tokens {o.refused}" for o in least]
    return ConfigError(
        f"{name} cannot answer within {most}: {', '.join(needs)}",
        where="--memory" if given else "this machine",
        fix="allow for that, or choose a smaller backbone",
    )


# Training ----------------------------------------------------------------------------


def _training(machine: Machine, model: Model, limits: Limits) -> Training:
    """The most thorough training that fits; fewer blocks take less time and memory."""
    layers = model.shape.layers
    blocks = list(dict.fromkeys([layers, math.ceil(layers / 2), math.ceil(layers / 4)]))
    watts, told = _watts(machine, limits)
    energy, saving = _energy_limit(machine, limits)
    refused = ""
    for rank in ranks(model.rank):
        for count in blocks:
            figures = training(machine, model, rank, count)
            spent = watts * figures.seconds / 3600
            why = _too_costly(figures, spent, machine, limits, energy, saving)
            if not why:
                reason = f"{_about(figures.seconds)} and {spent:.2f} Wh{told} {_for(model)}"
                if count < layers:
                    reason += f", with the last {count} of {layers} blocks: for all, {refused}"
                chosen = None if count == layers else count
                return Training(True, rank, chosen, figures, spent, reason)
            refused = refused or why
    figures = training(machine, model, rank, count)
    spent = watts * figures.seconds / 3600
    why = _too_costly(figures, spent, machine, limits, energy, saving)
    least = f"even rank {rank} on the last {count} of {layers} blocks"
    reason = f"not here: {least} {why} {_for(model)}"
    return Training(False, ranks(model.rank)[0], None, figures, spent, reason)


def _watts(machine: Machine, limits: Limits) -> tuple[float, str]:
    """The power drawn while training, and where the figure is from."""
    if limits.watts:
        return limits.watts, f" (at the {limits.watts:g} W given)"
    if machine.watts:
        return machine.watts, f" (at {machine.watts:.0f} W measured)"
    return ASSUMED_WATTS, f" (assuming {ASSUMED_WATTS:g} W; give --power-watts)"


def _energy_limit(machine: Machine, limits: Limits) -> tuple[float | None, str]:
    """Watt-hours that a training may take, and whose wish that is."""
    if limits.energy is not None:
        return limits.energy, "is the limit"
    if machine.battery:
        share = _BATTERY_SHARE * (machine.battery_wh or 0.0)
        return share, "is what it may take of the battery; plug it in, or give --energy"
    return None, ""


def _too_costly(
    figures: TrainingFigures,
    spent: float,
    machine: Machine,
    limits: Limits,
    energy: float | None,
    saving: str,
) -> str | None:
    """Which limit a training would break, in words."""
    if figures.memory > room(machine, limits):
        most = size(room(machine, limits))
        return f"needs {size(figures.memory)} of memory, and there are {most}"
    if machine.gpu and figures.gpu_memory > machine.gpu.memory_free:
        return f"needs {size(figures.gpu_memory)} of the graphics processor's memory"
    if limits.seconds is not None and figures.seconds > limits.seconds:
        return f"takes {_about(figures.seconds)}, and {_about(limits.seconds)} is the limit"
    if energy is not None and spent > energy:
        return f"takes {spent:.2f} Wh, and {energy:.2f} Wh {saving}"
    return None


# Words -------------------------------------------------------------------------------


def _why_engine(chosen: Option, options: list[Option], limits: Limits) -> str:
    near = chosen.nearness
    nearer = [o for o in options if o.nearness > near and o.refused is None]
    refused = [o for o in options if o.nearness > near and o.refused]
    assert chosen.figures is not None
    rate = f"{chosen.figures.decode:.0f} tokens a second"
    if near == 2:
        same = "the fastest that keeps the weights as they are, or nearly so"
        return f"{same}: {rate}"
    if nearer:
        best = max(o.figures.decode for o in nearer if o.figures)
        wanted = f"{limits.speed:g} tokens a second"
        if best < limits.speed:
            return f"{rate}; with finer weights {best:.1f}, and {wanted} are wanted"
        return f"{rate}; finer weights leave no room for as long a context"
    least = _least([o for o in refused if o.figures] or [chosen])
    return f"{rate}; finer weights do not fit: {least.engine} {least.bits} {least.refused}"


def _why_context(chosen: Option, model: Model) -> str:
    longest = model.shape.context
    if chosen.context == longest:
        return f"the backbone's own {longest} tokens fit"
    return f"twice as much does not fit in memory; the backbone could take {longest}"


def _why_rank(made: Training, model: Model) -> str:
    if made.rank == model.rank:
        return "as the profile's training settings say"
    return f"{model.rank} does not fit in memory"


def _for(model: Model) -> str:
    work = model.work
    if work.assumed:
        return f"for {work.examples} records (assumed: there are none yet)"
    return f"for {work.examples} records"


def _about(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes for people, rounded up, so that what is told to be needed suffices."""
    if count < 1 << 30:
        return f"{math.ceil(count / (1 << 20))} MiB"
    return f"{math.ceil(10 * count / (1 << 30)) / 10:.1f} GiB"
