"""A client's side of a round: a message in, a reply out; simulated clients many at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pfi._util.files import write_atomic
from pfi._util.seeds import generator, seed_of
from pfi.errors import FederationError, StorageError
from pfi.federate.agreement import check_terms, terms
from pfi.federate.config import FederateConfig
from pfi.federate.engine import Engine
from pfi.federate.measures import Measures, blurred
from pfi.federate.message import Failure, Message
from pfi.federate.secure.client import SecureClient
from pfi.federate.secure.parties import Parties
from pfi.federate.strategies import check, get_strategy
from pfi.federate.strategy import Strategy
from pfi.federate.users import Population
from pfi.federate.work import Client, Memory, Update, Work, bound_of, bounded, pack
from pfi.models.backbone import Backbone
from pfi.models.bank.packing import Piece
from pfi.privacy.crypto.sealing import SealError, seal, unseal
from pfi.privacy.ledger.entries import fingerprint

_MOST_ROUNDS = 1 << 31


class Memories:
    """What clients keep at home, by round, so that a round that is repeated begins alike.

    Args:
        folder: made when something is first kept.
        key: 32 bytes that files are sealed with; None keeps them plain, as a study's are.
        context: whose they are; bound into what is sealed.
    """

    def __init__(self, folder: Path, *, key: bytes | None = None, context: str = "") -> None:
        self.folder, self._key, self._context = folder, key, context
        self._ending = ".safetensors" if key is None else ".sealed"
        if key is not None:
            for file in folder.glob("*/*.safetensors"):  # an older pfi's
                sealed = file.with_suffix(self._ending)
                write_atomic(sealed, seal(key, file.read_bytes(), self._bound(sealed)))
                file.unlink()

    def load(self, client: str, round: int) -> Memory:
        """What a client kept of the latest round before this one.

        Raises:
            StorageError: it is damaged.
        """
        earlier = self._before(client, round)
        if not earlier:
            return {}
        path = self._file(client, earlier[-1])
        try:
            data = path.read_bytes()
            if self._key is not None:
                data = unseal(self._key, data, self._bound(path))
            return dict(Message.decode(data).arrays)
        except (OSError, FederationError, SealError) as error:
            what = f"what a client kept is damaged: {error}"
            raise StorageError(what, where=str(path), fix="remove it to start anew") from error

    def save(self, client: str, round: int, memory: Memory) -> None:
        """Keep what a client has after a round; of earlier rounds one is kept."""
        if not memory:
            return
        path = self._file(client, round)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = Message(memory).encode()
        if self._key is not None:
            data = seal(self._key, data, self._bound(path))
        write_atomic(path, data, private=True)
        for number in self._before(client, round)[:-1]:
            self._file(client, number).unlink(missing_ok=True)

    def _before(self, client: str, round: int) -> list[int]:
        """The rounds before this one of which something is kept, in order."""
        files = (self.folder / fingerprint(client)).glob(f"*{self._ending}")
        return sorted(number for file in files if (number := int(file.stem)) < round)

    def _file(self, client: str, round: int) -> Path:
        return self.folder / fingerprint(client) / f"{round}{self._ending}"

    def _bound(self, path: Path) -> str:
        return f"{self._context}|{path.parent.name}/{path.name}"


class Clients:
    """Answers messages for clients of a population, many in one pass of the bank.

    Args:
        backbone: the frozen model.
        population: the clients' data.
        config: of the federation.
        memories: what clients keep at home.
        working_set: clients trained together.
        cached_tokens: of clients' examples that stay in memory from round to round; with 0 they are
            read anew each time, where they may change.
        measures: what clients measured; in memory, for a simulation, when None.
        device: a real one: noise on what is measured is the system's and not drawn by the seed, and
            a message has to say by which settings the server asks.
    """

    def __init__(
        self,
        backbone: Backbone,
        population: Population,
        config: FederateConfig,
        memories: Memories,
        working_set: int = 16,
        *,
        cached_tokens: int = 1 << 20,
        measures: Measures | None = None,
        device: bool = False,
    ) -> None:
        kind = get_strategy(check(config).strategy)
        self.config, self.population, self.memories = config, population, memories
        self.engine = Engine(backbone, config.local, kind.rank(config), working_set)
        self.strategy: Strategy = kind(self.engine.layout, config)
        self._pieces: OrderedDict[str, Sequence[Piece]] = OrderedDict()
        self._cached, self._cached_tokens = 0, cached_tokens
        self._remembers = self.strategy.stateful or config.compress.remembers
        self._base_of: Message | None = None
        self.terms = terms(config, self.engine.layout.backbone)
        self._measures, self._device = measures or Measures(most=config.rounds + 1), device
        #: Keys and policy of secure aggregation, where it is on.
        self.parties: Parties | None = None
        self._summing: dict[str, SecureClient] = {}

    def answer(self, messages: Mapping[str, Message]) -> dict[str, bytes | Failure]:
        """The replies of some clients of one round, done together."""
        return dict(self.answers(messages))

    def answers(self, messages: Mapping[str, Message]) -> Iterator[tuple[str, bytes | Failure]]:
        """The same one by one, in the order of the messages, each as soon as it may come."""
        early: dict[str | None, bytes | Failure] = {}
        order = iter(messages)
        following = next(order, None)
        for name, reply in self._replies(messages):
            early[name] = reply
            while following in early:
                assert following is not None
                yield following, early.pop(following)
                following = next(order, None)

    def _replies(self, messages: Mapping[str, Message]) -> Iterator[tuple[str, bytes | Failure]]:
        """Replies as they are ready."""
        summed = {name for name, m in messages.items() if m.values.get("kind") == "secure"}
        for name in summed:
            yield name, self._secure(name, messages[name])
        yield from self._work_of({n: m for n, m in messages.items() if n not in summed})

    def _work_of(self, messages: Mapping[str, Message]) -> Iterator[tuple[str, bytes | Failure]]:
        """Replies that need the model."""
        works: list[tuple[Client, Sequence[Piece], Work]] = []
        memories: dict[str, Memory] = {}
        for name, message in messages.items():
            try:
                round = _round_of(message)
                check_terms(self.terms, message.values, needed=self._device)
                if (answer := self._measured_before(name, round, message)) is not None:
                    yield name, answer
                    continue
                pieces = self._pieces_of(name)
                if not pieces:
                    raise FederationError("it has no examples")
                self._use_base(message)
                client = self._client(name, round, pieces)
                memories[name] = self.memories.load(name, round) if self._remembers else {}
                works.append((client, pieces, self._work(message, memories[name], client)))
            except FederationError as error:
                yield name, Failure(error.what)
        for place, outcome in self.engine.outcomes(works):
            client = works[place][0]
            trained = messages[client.id].values["kind"] != "evaluate"
            memory = memories[client.id] if trained else {}
            yield client.id, self._reply(outcome, messages[client.id], memory, client)

    def _work(self, message: Message, memory: Memory, client: Client) -> Work:
        kind = message.values.get("kind")
        if kind == "train":
            return self.strategy.work(message, memory, client)
        if kind == "evaluate":
            return self.strategy.evaluate(message, memory, client)
        if kind == "finish":
            return self.strategy.finish(message, memory, client)
        raise FederationError(f"a message asks for {kind!r}, which this client does not know")

    def _reply(
        self,
        outcome: Update | Message | FederationError,
        message: Message,
        memory: Memory,
        client: Client,
    ) -> bytes | Failure:
        if isinstance(outcome, FederationError):
            return Failure(outcome.what)
        try:
            if isinstance(outcome, Update):
                outcome = self._packed(outcome, message, memory, client)
            elif message.values["kind"] == "evaluate":
                outcome = self._measured(outcome, message, client)
        except FederationError as error:
            return Failure(error.what)
        self.memories.save(client.id, client.round, memory)
        return outcome.encode()

    def _packed(self, update: Update, message: Message, memory: Memory, client: Client) -> Message:
        """What a client sends of its update; under secure aggregation that it is ready."""
        privacy = self.config.privacy
        if self.config.secure is None:
            return pack(update, message, self.config.compress, memory, client, privacy)
        if self.parties is None:
            raise FederationError("there are no keys for secure aggregation")
        bound = bound_of(message, privacy)
        weight = 1 if self.config.private else round(update.weight)  # with noise all count the same
        rng = generator(client.seed, "rounding")
        summing = self.parties.client(client.id, message.digest)
        summing.contribute(bounded(update, bound), weight, bound=bound, rng=rng)
        self._summing[client.id] = summing
        return Message(values={"ready": True})

    def _measured_before(self, name: str, round: int, message: Message) -> bytes | None:
        """A reply that was given to the same question; None for another message.

        Raises:
            FederationError: the client may not measure that.
        """
        kind = message.values.get("kind")
        if kind == "train":
            self._measures.train(name)
        if kind != "evaluate":
            return None
        if not self.config.held_out:
            raise FederationError("nobody measures in this federation: `held_out` is 0")
        loss = self._measures.known(name, round, message.digest)
        return None if loss is None else Message(values={"loss": loss}).encode()

    def _measured(self, outcome: Message, message: Message, client: Client) -> Message:
        """What a client sends of its loss: by how many examples only where updates say so, too."""
        noise = self.config.loss_noise
        drawn = np.random.default_rng() if self._device else generator(client.seed, "loss")
        loss = blurred(float(outcome.values["loss"]), noise, drawn.standard_normal)
        self._measures.keep(client.id, client.round, message.digest, loss)
        counted = {} if self.config.hides else {"examples": outcome.values["examples"]}
        return Message(values={"loss": loss, **counted})

    def _secure(self, name: str, message: Message) -> bytes | Failure:
        """A client's reply to a stage of secure aggregation."""
        try:
            if name not in self._summing:
                raise FederationError("it has no update for a secure sum")
            return self._summing[name].handle(message).encode()
        except FederationError as error:
            self._summing.pop(name, None)
            return Failure(error.what)

    def _client(self, name: str, round: int, pieces: Sequence[Piece]) -> Client:
        layout = self.engine.layout
        rank = min(self.population.rank(name) or layout.rank, layout.rank)
        seed = seed_of(self.config.seed, "client", name, round)
        return Client(name, round, len(pieces), self.engine.steps(pieces), rank, seed)

    def _pieces_of(self, name: str) -> Sequence[Piece]:
        """A client's examples as tokens; those of the latest clients stay in memory."""
        if name in self._pieces:
            self._pieces.move_to_end(name)
            return self._pieces[name]
        pieces = self.engine.encode(self.population.examples(name))
        self._pieces[name] = pieces
        self._cached += sum(map(len, pieces))
        while self._cached > self._cached_tokens:
            self._cached -= sum(map(len, self._pieces.popitem(last=False)[1]))
        return pieces

    def _use_base(self, message: Message) -> None:
        if message is not self._base_of:
            self.engine.set_base(self.strategy.base(message))
            self._base_of = message


def _round_of(message: Message) -> int:
    """The number of a message's round.

    Raises:
        FederationError: it is no whole number of a sensible size.
    """
    number = message.number("round")
    if not (0 <= number < _MOST_ROUNDS and number == int(number)):
        raise FederationError(f"there is no round {number:g}")
    return int(number)
