"""Settings of a federation: one model for YAML, flags and Python."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pfi.federate.accept import AcceptConfig
from pfi.federate.aggregate.optimizers import ServerConfig
from pfi.federate.aggregate.robust import RobustConfig, bad_groups
from pfi.federate.compress import CompressConfig
from pfi.federate.privacy.dp_fedavg import PrivacyConfig
from pfi.federate.secure.policy import SecureConfig
from pfi.train.config import TrainConfig

#: Of a loss in nats, where nothing is set: far below what a round changes at first, and of the
#: size of what one record changes in the loss of a few.
_LOSS_NOISE = 0.05


class LocalConfig(TrainConfig):
    """How a client trains in a round: ``epochs`` over its examples, at a constant rate."""

    epochs: float = Field(1.0, gt=0, description="passes over a client's examples in a round")
    steps: int = Field(0, ge=0, description="at most so many steps in a round; 0: no limit")
    batch_size: int = Field(4, ge=1, description="examples a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="of the local steps")
    prox: float = Field(0.0, ge=0, description="FedProx: pull to what was broadcast")


class SimulateConfig(BaseModel):
    """How clients are simulated on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, ge=1, description="processes, each with the backbone; change no result")
    working_set: int = Field(16, ge=1, description="clients trained together in one pass")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of clients that never reply")
    late: float = Field(0.0, ge=0, lt=1, description="share of clients whose reply comes too late")


class ClusterConfig(BaseModel):
    """Of `ifca` and `similarity`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(2, ge=2, description="clusters")
    together: int = Field(
        3, ge=1, description="rounds that all clients learn together first; not of ifca"
    )
    sketch: int = Field(
        1024, ge=16, description="numbers kept of a client's updates to compare it; not of ifca"
    )


class DittoConfig(BaseModel):
    """Of Ditto."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: float = Field(
        0.1, ge=0, description="lambda: how strongly the personal row is pulled to the shared one"
    )


class DualConfig(BaseModel):
    """Of FedDPA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(4, ge=1, description="of the personal half, on top of local.rank")
    when: Literal["T", "F"] = Field(
        "T", description="the personal half is trained in every round (T) or after the last (F)"
    )


class KSeedConfig(BaseModel):
    """Of FedKSeed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(4096, ge=1, le=1 << 20, description="candidate seeds, each one direction")
    epsilon: float = Field(1e-3, gt=0, description="how far losses are measured from the row")
    learning_rate: float = Field(
        50.0,
        gt=0,
        description="along a direction of length one: the paper's, times the numbers of a row",
    )


class ScaffoldConfig(BaseModel):
    """Of SCAFFOLD."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clients: int = Field(
        0, ge=0, description="clients in the whole federation, not only in a cohort; must be set"
    )


class FlexConfig(BaseModel):
    """FlexLoRA's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: bool = Field(
        False,
        description="average changes, not products: what was cut off for a client of a small "
        "rank stays in the mean",
    )


class HetConfig(BaseModel):
    """HetLoRA's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Literal["norm", "examples"] = Field(
        "norm", description="of the mean: the Frobenius norm of a client's BA, or its examples"
    )
    keep: float = Field(
        1.0, gt=0, le=1, description="share of its ranks that a client keeps on pruning; 1: never"
    )
    penalty: float = Field(
        0.01, ge=0, description="of the norms of the ranks that pruning would take"
    )


class FederateConfig(BaseModel):
    """A federation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: str = Field("average", description="rule of aggregation, see docs/federate.md")
    rounds: int = Field(20, ge=1, description="rounds in all")
    cohort: int = Field(16, ge=1, description="clients asked in a round")
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed", description="cohorts of this size, or of this size on average (each by itself)"
    )
    spare: float = Field(0.0, ge=0, description="share of clients asked beyond the cohort")
    least: int = Field(1, ge=1, description="fewest updates that a round is worth something with")
    seconds: float | None = Field(None, gt=0, description="how long a round waits for replies")
    evaluate_every: int = Field(5, ge=1, description="rounds between measures on held-out clients")
    held_out: float = Field(
        0.1, ge=0, lt=1, description="share of the clients that only measure, never train"
    )
    measure_noise: float | None = Field(
        None,
        ge=0,
        description="deviation of the noise on a loss that a device measures, in nats; none: 0.05 "
        "with `privacy` or `secure`, else 0",
    )
    seed: int = Field(0, description="decides cohorts, orders and initial factors")
    local: LocalConfig = Field(LocalConfig(), description="a client's work in a round")
    server: ServerConfig = Field(ServerConfig(), description="the server's optimiser")
    clusters: ClusterConfig = Field(
        ClusterConfig(), description="the strategies ifca and similarity"
    )
    ditto: DittoConfig = Field(DittoConfig(), description="the strategy ditto")
    dual: DualConfig = Field(DualConfig(), description="the strategy feddpa")
    kseed: KSeedConfig = Field(KSeedConfig(), description="the strategy fedkseed")
    scaffold: ScaffoldConfig = Field(ScaffoldConfig(), description="the strategy scaffold")
    flexlora: FlexConfig = Field(FlexConfig(), description="the strategy flexlora")
    hetlora: HetConfig = Field(HetConfig(), description="the strategy hetlora")
    compress: CompressConfig = Field(CompressConfig(), description="of updates on their way up")
    robust: RobustConfig | None = Field(
        None, description="a rule that withstands bad clients, in place of the mean"
    )
    privacy: PrivacyConfig = Field(PrivacyConfig(), description="what of a client may be seen")
    secure: SecureConfig | None = Field(
        None, description="secure aggregation: the server sees sums of groups only"
    )
    accept: AcceptConfig | None = Field(
        None, description="held-out clients judge every round; a bad one is taken back"
    )
    simulate: SimulateConfig = Field(SimulateConfig(), description="clients on one machine")

    @property
    def private(self) -> bool:
        """Whether the shared adapter has noise."""
        return self.privacy.mechanism != "none"

    @property
    def loss_noise(self) -> float:
        """Deviation of the noise on a loss that a device measures, in nats."""
        if self.measure_noise is not None:
            return self.measure_noise
        return _LOSS_NOISE if self.hides else 0.0

    @property
    def hides(self) -> bool:
        """Whether devices keep to themselves what is not needed of them, such as counts."""
        return self.private or self.secure is not None

    @model_validator(mode="after")
    def _sums_can_be(self) -> FederateConfig:
        """Refuse settings under which no round could ever be usable."""
        secure, fixed = self.secure, self.sampling == "fixed"
        if fixed and not self.private and self.least > self.cohort:
            raise ValueError(f"`least` {self.least}: a cohort of {self.cohort} is never enough")
        if secure is None:
            return self
        if self.cohort < secure.smallest:
            raise ValueError(
                f"a `cohort` of {self.cohort} makes no secure sum of `secure.smallest` "
                f"{secure.smallest} clients: ask more, or take a smaller one"
            )
        most = round(self.cohort * (1 + self.spare)) if fixed else 2 * secure.smallest - 1
        if secure.largest < min(most, 2 * secure.smallest - 1):
            raise ValueError(
                f"`secure.largest` {secure.largest}: a group can have {2 * secure.smallest - 1} "
                f"clients where `secure.smallest` is {secure.smallest}"
            )
        if self.private and secure.step > self.privacy.clip:
            raise ValueError("`secure.step` above `privacy.clip`: each value would be rounded away")
        return self

    @model_validator(mode="after")
    def _combines(self) -> FederateConfig:
        private = self.private
        if private and self.robust is not None:
            raise ValueError("`robust` and `privacy`: noise is accounted for the mean only")
        if private and self.spare:
            raise ValueError("`spare` and `privacy`: the chance to take part has to be known")
        if self.secure is not None and self.privacy.adaptive is not None:
            raise ValueError("`secure` and `privacy.adaptive`: nobody sees how many were clipped")
        if self.secure is not None and self.compress.active:
            raise ValueError("`secure` and `compress`: a masked vector cannot be made smaller")
        if self.secure is not None and self.robust is not None:
            share = bad_groups(self.robust.bad, self.secure.smallest)
            if share >= 0.5:
                what = f"`robust.bad` {self.robust.bad} makes {share:.0%} of groups of"
                raise ValueError(f"{what} {self.secure.smallest} bad: expect fewer bad clients")
            if self.cohort // self.secure.smallest < 3:
                raise ValueError("`robust` and `secure`: a cohort has to make three groups")
        if self.secure is not None and self.simulate.workers > 1:
            raise ValueError("`secure` is simulated by one worker")
        return self
