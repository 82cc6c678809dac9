"""The round loop: ask a cohort, combine what comes back, step, measure, save.

Updates are taken one by one, so memory does not grow with the cohort.  Every round ends with a
checkpoint; a run that was killed repeats the unfinished round and ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfi.errors import ConfigError, FederationError
from pfi.federate.accept import Acceptance, sensible_loss
from pfi.federate.aggregate.combiners import Combining
from pfi.federate.aggregate.mean import Combined
from pfi.federate.agreement import terms
from pfi.federate.config import FederateConfig
from pfi.federate.events import Round, headline, unusable
from pfi.federate.message import Failure, Fleet, Message, Reachable, Value
from pfi.federate.roles import Roles
from pfi.federate.secure.groups import run_groups
from pfi.federate.secure.parties import Parties, secure_sums
from pfi.federate.store import RunStore
from pfi.federate.strategies import check
from pfi.federate.strategy import LinearStrategy, Strategy
from pfi.federate.work import Aggregate, State

#: So often a round is asked while too few devices answer.
_TRIES = 8
#: Called with a line for people, the rounds done and the rounds planned.
OnRound = Callable[[str, int, int], None]


@dataclass
class Tally:
    """What is counted during a round; see ``Round``."""

    clients: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    down: int = 0
    up: int = 0


class Federation:
    """Learns a shared adapter in rounds, writing what it does into a run folder.

    Args:
        config: all settings.
        strategy: over the backbone's layers.
        fleet: who can be asked.
        out: the run folder.
        resume: go on from its last checkpoint.
        on_round: told of the progress.
        simulated: noise is drawn by the seed, so that a run can be repeated.
        parties: keys and policy of secure aggregation, where it is on.

    Attributes:
        train: clients that may be in a cohort.
        held_out: clients that only measure.
        state: what the server has learnt.
        stopped: why no more rounds are done before the last one, or None.

    Raises:
        ConfigError: settings contradict each other, or the fleet is too small.
        StorageError: the folder holds another run, or a damaged one.
    """

    def __init__(
        self,
        config: FederateConfig,
        strategy: Strategy,
        fleet: Fleet,
        out: Path,
        *,
        resume: bool = False,
        on_round: OnRound | None = None,
        simulated: bool = True,
        parties: Parties | None = None,
    ) -> None:
        self.config, self.strategy, self.fleet, self.out = check(config), strategy, fleet, out
        self._on_round = on_round or (lambda *_: None)
        self._terms = terms(config, strategy.layout.backbone)
        self._store = RunStore(out, config, resume=resume)
        checkpoint = self._store.load()
        self._roles = Roles.of(checkpoint, config)
        self.train, self.held_out = self._roles.divide(fleet.clients())
        width = strategy.size if isinstance(strategy, LinearStrategy) else 0
        self._combining = Combining(config, self.train, width, simulated=simulated)
        self._parties = parties
        if config.secure is not None and parties is None:
            fix = "make them with `pfi federate keys`"
            raise ConfigError("secure aggregation has no keys", where="secure", fix=fix)
        self._acceptance: Acceptance[State] | None = None
        self.stopped: str | None = None
        self._summed = False  # whether secure sums were begun in the round in work
        self.state, self._next = strategy.start(), 0
        self._pending: Round | None = None
        if checkpoint is not None:
            self._restore(checkpoint)
        self._store.begin()

    def run(self) -> State:
        """The rounds that are left.

        Returns:
            the server's state after the last one.

        Raises:
            FederationError: held-out clients rejected too many rounds one after another, or no
                round was usable: then there is nothing that could be given to anybody.
        """
        if self.config.accept is not None and self._acceptance is None:
            losses = self.measure(self.state, 0)
            self._acceptance = Acceptance(self.config.accept, self.state, losses)
        while self._pending is not None or self._next < self.config.rounds:
            if self._pending is None:
                if not self._combining.allows():
                    self.stopped = "the privacy budget is spent"
                    break
                self._pending = self._counted(self._next)
                self._next += 1
                # On the disk before anybody sees the result: what a round spends is spent.
                self._store.save(self._next, self._checkpoint())
            self._conclude(self._pending)
        if (error := unusable(self._store.rounds(), self.config.least, self.stopped)) is not None:
            raise error
        if self.strategy.finishes:
            messages = self._messages(self.train, "finish", self._next)
            for _ in self.fleet.ask(self._next, messages, self.config.seconds):
                pass  # what was done stays at home
        self._store.finish(self.strategy, self._combining.spent(), self.stopped)
        return self.state

    # One round ----------------------------------------------------------------------

    def _counted(self, number: int) -> Round:
        """A round that counts: where devices come and go, one with too few of them is asked again.

        Raises:
            FederationError: they are too few again and again.
        """
        again = 0
        while True:
            done = self._round(number, again)
            if self._draws_from_all or self._summed or done.clients >= self.config.least:
                return done
            again += 1
            if again >= _TRIES:
                # Nothing is known of who would be there another time.
                why = sorted({*done.failed.values(), *done.refused.values()})[:3]
                what = f"too few devices answered {again} times: {'; '.join(why) or 'nobody'}"
                fix = "see the devices' logs, then go on with --resume"
                raise FederationError(what, where=f"round {number + 1}", fix=fix)
            self._store.note({**done.to_dict(), "event": "empty"})

    @property
    def _draws_from_all(self) -> bool:
        """Whether cohorts are drawn from the whole fleet, those that are away included."""
        return self._combining.private or not isinstance(self.fleet, Reachable)

    def _cohort(self, number: int, again: int) -> list[str]:
        """Whom a round asks: of those who are there, unless lots have to be over all."""
        if self._draws_from_all or not isinstance(self.fleet, Reachable):
            return self._combining.cohort(number)
        secure = self.config.secure
        least = max(self.config.least, secure.smallest if secure else 1)
        available = self.fleet.available(self.train, min(least, len(self.train)), again)
        return self._combining.cohort(number, available, again)

    def _round(self, number: int, again: int = 0) -> Round:
        started = time.perf_counter()
        cohort = self._cohort(number, again)
        done, self._summed = Tally(), False
        messages = self._messages(cohort, "train", number, extra=self._combining.extra_values)
        done.down += sum(map(len, messages.values()))
        combined: Combined | None
        if self.config.secure is not None:
            state, combined = self._securely(number, messages, done)
        else:
            state, combined = self._openly(number, cohort, messages, done)
        if combined is not None:
            done.clients = combined.clients
            done.refused = dict(combined.refused)
        # An empty round would show by the state that stays: with privacy it has its noise.
        kept = done.clients >= self.config.least or self._combining.private
        why = None
        if kept and not _finite(state, combined):
            kept, why = False, "what it came to is not finite"
        if kept:
            self.state = state
            if combined is not None:
                self._combining.taken(combined)
        return Round(
            number,
            len(messages),
            done.clients,
            done.failed,
            done.refused,
            done.down,
            done.up,
            time.perf_counter() - started,
            kept=kept,
            why=why,
        )

    def _openly(
        self, number: int, cohort: Sequence[str], messages: Mapping[str, bytes], done: Tally
    ) -> tuple[State, Combined | None]:
        """A round in which the server sees every update."""
        taking = self._aggregate(cohort, number)
        for client, reply in self._ask(number, messages, done):
            if self.config.spare and done.clients == self.config.cohort:
                done.failed[client] = "it was one of the spare clients"
                continue
            try:
                taking.add(client, reply)
                done.clients += 1
            except FederationError as error:
                done.failed[client] = error.what
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                # Whatever a client sends, only its own update is lost.
                done.failed[client] = f"its update cannot be read: {error}"
        with np.errstate(over="ignore", invalid="ignore"):  # the state is looked at below
            return taking.result()

    def _securely(
        self, number: int, messages: Mapping[str, bytes], done: Tally
    ) -> tuple[State, Combined]:
        """A round in which the server sees sums of groups only."""
        assert self._parties is not None and isinstance(self.strategy, LinearStrategy)
        ready = [client for client, _ in self._ask(number, messages, done)]
        # All are sent the same, so that they can see that they are.
        sent = {hashlib.sha256(data).hexdigest() for data in messages.values()}
        if len(sent) > 1:
            raise ConfigError(
                f"{self.strategy.name} sends clients different things, which secure sums forbid",
                where="secure",
                fix="take another strategy",
            )
        servers = []
        if ready:
            servers = secure_sums(self._parties, ready, self.config.seed, number, *sent)
        # Devices answer a broadcast once: from here on the round is not asked again.
        self._summed = bool(servers)

        def ask(stage: Mapping[str, Message]) -> Iterator[tuple[str, Message]]:
            encoded = {
                client: Message(message.arrays, {**message.values, "kind": "secure"}).encode()
                for client, message in stage.items()
            }
            done.down += sum(map(len, encoded.values()))
            yield from self._ask(number, encoded, done)

        errors, whys = run_groups(servers, ask)
        done.failed.update(whys)
        whole = [server for server, error in zip(servers, errors, strict=True) if error is None]
        for server, error in zip(servers, errors, strict=True):
            if error is not None:
                for client in server.terms.names:
                    done.failed.setdefault(client, f"its group failed: {error.what}")
        combined = self._combining.across(whole, list(messages), number)
        if not combined.clients and not combined.vector.any():
            return self.state, combined
        return self.strategy.take(self.state, combined, number), combined

    def _ask(
        self, number: int, messages: Mapping[str, bytes], done: Tally
    ) -> Iterator[tuple[str, Message]]:
        """Replies that can be read; other clients have failed."""
        for client, reply in self.fleet.ask(number, messages, self.config.seconds):
            if isinstance(reply, Failure):
                done.failed[client] = reply.why
                continue
            done.up += len(reply)
            try:
                yield client, Message.decode(reply)
            except FederationError as error:
                done.failed[client] = error.what

    def _aggregate(self, cohort: Sequence[str], number: int) -> Aggregate:
        """What takes the updates of a round."""
        if isinstance(self.strategy, LinearStrategy):
            combiner = self._combining.combiner(cohort, number)
            return self.strategy.aggregate(self.state, number, combiner)
        return self.strategy.aggregate(self.state, number)

    def _conclude(self, done: Round) -> None:
        """Measure and judge a round's result, and log the round."""
        number = done.number + 1
        last = number == self.config.rounds
        every = 1 if self._acceptance else self.config.evaluate_every
        if self.held_out and (last or number % every == 0):
            losses = self.measure(self.state, number)
            finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
            done = self._judged(replace(done, losses=finite), losses)
        spent = self._combining.spent()
        if spent is not None:
            done = replace(done, epsilon=spent.epsilon, spent=spent.sentence)
        self._pending = None
        self._store.append(done)
        self._store.save(self._next, self._checkpoint())
        self._on_round(headline(done.to_dict()), self._next, self.config.rounds)

    def _judged(self, done: Round, losses: Mapping[str, float]) -> Round:
        """A measured round, taken back where the losses say so."""
        if self._acceptance is None:
            return done
        number = done.number + 1
        try:
            self.state, decision = self._acceptance.judge(number, self.state, lambda _: losses)
        except FederationError as error:
            self._store.append(replace(done, kept=False, why=error.what))
            raise
        return replace(done, kept=done.kept and decision.accepted, why=done.why or decision.why)

    def _messages(
        self,
        clients: Sequence[str],
        kind: str,
        number: int,
        *,
        state: State | None = None,
        extra: Mapping[str, float] | None = None,
    ) -> dict[str, bytes]:
        """What clients are sent; those that are sent the same get the same bytes."""
        encoded: dict[int, tuple[Message, bytes]] = {}
        messages = {}
        shared = self.state if state is None else state
        for client in clients:
            content = self.strategy.broadcast(shared, client, number)
            if id(content) not in encoded:
                values = {**content.values, **(extra or {}), **self._terms}
                values |= {"kind": kind, "round": number}
                encoded[id(content)] = (content, Message(content.arrays, values).encode())
            messages[client] = encoded[id(content)][1]
        return messages

    def measure(self, state: State, number: int) -> dict[str, float]:
        """The losses of the held-out clients that answer, under a state; infinite where no number
        of a sensible size was measured."""
        messages = self._messages(self.held_out, "evaluate", number, state=state)
        losses = {}
        for client, reply in self.fleet.ask(number, messages, self.config.seconds):
            if isinstance(reply, Failure):
                continue
            try:
                values = Message.decode(reply).values
            except FederationError:
                continue  # a reply that cannot be read is none
            losses[client] = sensible_loss(values.get("loss"))
        return losses

    # Checkpoints --------------------------------------------------------------------

    def _checkpoint(self) -> Message:
        """All that a run goes on from; as secret as updates are."""
        arrays = {f"state.{name}": array for name, array in self.state.items()}
        arrays |= {f"combining.{k}": array for k, array in self._combining.arrays().items()}
        arrays |= {f"roles.{name}": array for name, array in self._roles.arrays().items()}
        values: dict[str, Value] = {
            "next": self._next,
            "combining": self._combining.values(),
            "pending": json.dumps(None if self._pending is None else self._pending.to_dict()),
        }
        if self._acceptance is not None:
            good = self._acceptance.last_good[1]
            arrays |= {f"good.{name}": array for name, array in good.items()}
            values["acceptance"] = json.dumps(self._acceptance.values())
        return Message(arrays, values)

    def _restore(self, checkpoint: Message) -> None:
        parts: dict[str, dict[str, Any]] = {
            "state": {}, "combining": {}, "good": {}, "roles": {},
        }  # fmt: skip
        for name, array in checkpoint.arrays.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = array
        self.state, self._next = parts["state"], int(checkpoint.number("next"))
        self._combining.restore(parts["combining"], str(checkpoint.values["combining"]))
        pending = json.loads(str(checkpoint.values["pending"]))
        self._pending = Round.from_dict(pending) if pending else None
        if self.config.accept is not None and "acceptance" in checkpoint.values:
            values = json.loads(str(checkpoint.values["acceptance"]))
            self._acceptance = Acceptance.restored(self.config.accept, values, parts["good"])


def divide(clients: Sequence[str], config: FederateConfig) -> tuple[list[str], list[str]]:
    """Clients as those that train and those that only measure, for a run that begins.

    Raises:
        ConfigError: none is left to train.
    """
    return Roles(config).divide(clients)


def _finite(state: State, combined: Combined | None) -> bool:
    """Whether a round came to something that the next one can begin with."""
    arrays = [*state.values(), *([] if combined is None else [combined.vector])]
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
