"""What answers: one interface over the bank in PyTorch and over llama.cpp.

An engine holds one backbone and any number of adapters; requests of different users run side
by side.  A reader that closes or drops a stream's iterator cancels that answer.  Importing this
loads no model library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from pfi.errors import ConfigError, PfiError
from pfi.inference.capacity import Footprint
from pfi.models.generation_config import GenerationSettings
from pfi.models.prompter import Prompter

if TYPE_CHECKING:
    from pfi.inference.constraints import Grammar
    from pfi.models.adapters import Adapter

Finish = Literal["stop", "length", "cancelled"]
#: Tokens and their log-probabilities, likeliest first.
Likeliest = tuple[tuple[int, float], ...]
#: Tokens of a thought where a model is asked to think; longer ones take the answer's room.
_THOUGHT = 1024


class EngineClosedError(PfiError, RuntimeError):
    """An engine is asked that was closed, as while a server ends; another try may be answered."""

    def __init__(self) -> None:
        super().__init__("the engine is closed")


@dataclass(frozen=True)
class AdapterRef:
    """Names an adapter that an engine may have to load.

    Attributes:
        key: another one for any other weights: profile, versions and weight are in it.  Cached
            prefixes are kept apart by it.
        load: reads the adapter, once for as long as the engine keeps it.
    """

    key: str
    load: Callable[[], Adapter] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Penalties come first and change greedy answers, too; then the temperature, and of what
    `top_k` leaves the nucleus of `top_p`; `min_p` leaves out the unlikely of either.

    Attributes:
        max_tokens: longest answer.
        temperature: greedy when 0.
        top_p: probability of the tokens that are sampled from.
        seed: of the draws; the system's randomness when None.
        stop: texts that end an answer; they are no part of it.
        top_k: how many of the likeliest tokens are sampled from; all when 0.
        min_p: a token is left out below this share of the likeliest one's probability.
        repetition_penalty: positive logits of tokens that the prompt or the answer has are divided
            by it, negative ones multiplied (CTRL, arXiv 1909.05858); the model's own when None.
        presence_penalty: subtracted from the logits of tokens that the answer has.
        frequency_penalty: subtracted for each time that it has them.
        logit_bias: pairs of a token and what is added to its logit, behind the penalties.
        grammar: what the answer is held to; anything goes when None. Of a thinking model's answer
            what follows its thoughts.
        top_logprobs: how many of the likeliest tokens are told of at each place.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    top_logprobs: int = 0

    def resolved(self, generation: GenerationSettings) -> Sampling:
        """With the penalty of a model's own settings where none is given."""
        if self.repetition_penalty is not None:
            return self
        return replace(self, repetition_penalty=generation.repetition_penalty or 1.0)


@dataclass(frozen=True)
class Request:
    """One prompt to go on with.

    Attributes:
        prompt: its tokens, framed as the model expects.
        adapter: over the backbone; none when None.
        sampling: how tokens are chosen.
        owner: whose it is: what is cached of one owner's prompts is of no use to another's, and
            nothing is cached of those of nobody.
    """

    prompt: Sequence[int]
    adapter: AdapterRef | None = None
    sampling: Sampling = Sampling()
    owner: str = ""


@dataclass(frozen=True)
class Scoring:
    """Targets to score after a prompt.

    Attributes:
        prompt: its tokens, framed as the model expects.
        targets: the tokens of each.
        adapter: over the backbone; none when None.
        owner: see ``Request``.
    """

    prompt: Sequence[int]
    targets: Sequence[Sequence[int]]
    adapter: AdapterRef | None = None
    owner: str = ""


@dataclass(frozen=True)
class Piece:
    """What was decoded since the piece before.

    Attributes:
        text: whole characters; may be empty.
        tokens: how many tokens it took; the one that ends an answer does not count.
        logprobs: of these tokens under the model, natural logarithm, before the temperature.
        finish: why the answer ends here; None while it goes on.
        ids: these tokens.
        top: for each of them the likeliest tokens at its place with their log-probabilities,
            likeliest first, as many as were asked for.
    """

    text: str
    tokens: int = 1
    logprobs: tuple[float, ...] = ()
    finish: Finish | None = None
    ids: tuple[int, ...] = ()
    top: tuple[Likeliest, ...] = ()


class Stream(Protocol):
    """An answer on its way; any thread may read it, one at a time."""

    @property
    def cached(self) -> int:
        """Tokens of the prompt that came from the prefix cache; known with the first piece."""
        ...

    def __iter__(self) -> Iterator[Piece]:
        """The pieces; the last one has a ``finish``.

        Raises:
            PfiError: the adapter cannot be loaded, the prompt is too long, or the grammar is too
                complex for what was answered.
        """
        ...

    def cancel(self) -> None:
        """Decode no further; the iterator ends with a piece whose ``finish`` says so."""
        ...


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done since it was made, and what it holds now.

    Attributes:
        requests: asked of it, those for scores included.
        prompt_tokens: of requests that were begun.
        cached_tokens: those among them that came from the prefix cache.
        new_tokens: decoded.
        running, waiting: requests now.
        adapters: held now.
        adapter_loads: so far.
        steps: passes of the model for new tokens; with ``new_tokens`` the mean batch.
        prefix_bytes: taken by the prefix cache now.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    running: int = 0
    waiting: int = 0
    adapters: int = 0
    adapter_loads: int = 0
    steps: int = 0
    prefix_bytes: int = 0


class Engine(Protocol):
    """Answers requests of many users, from any thread."""

    #: ``torch`` or ``llama.cpp``.
    name: str
    prompter: Prompter

    def generate(self, request: Request) -> Stream:
        """Queue a request.

        An answer is cut where prompt and answer fill the backbone's context.

        Raises:
            ConfigError: the prompt leaves no room for an answer, or the sampling makes no sense.
        """
        ...

    def generate_all(self, requests: Sequence[Request]) -> list[Stream]:
        """Queue several requests at once, so that they share batches from the first pass on.

        Raises:
            ConfigError: see ``generate``; then none is queued.
        """
        ...

    def score(
        self,
        prompt: Sequence[int],
        targets: Sequence[Sequence[int]],
        adapter: AdapterRef | None = None,
        owner: str = "",
    ) -> list[float]:
        """The log-probability of each target, given the prompt; natural logarithm, summed."""
        ...

    def score_all(self, asked: Sequence[Scoring]) -> list[list[float]]:
        """As ``score`` for several prompts at once, each with targets of its own."""
        ...

    def forget(self, owner: str) -> None:
        """Drop what is cached of an owner's prompts, for instance since a record was erased."""
        ...

    def stats(self) -> EngineStats:
        """Counts so far."""
        ...

    def footprint(self) -> Footprint:
        """What it takes of the machine."""
        ...

    def close(self) -> None:
        """End what runs and let go of the model."""
        ...


@dataclass(frozen=True)
class OnePiece:
    """A stream of an answer that is known."""

    text: str
    tokens: int = 1
    cached: int = 0

    def __iter__(self) -> Iterator[Piece]:
        """The only piece."""
        yield Piece(self.text, self.tokens, finish="stop")

    def cancel(self) -> None:
        """Too late."""


def text_of(stream: Stream) -> str:
    """The whole answer."""
    return "".join(piece.text for piece in stream)


def most_tokens(
    request: Request, max_length: int, *, seq2seq: bool = False, thoughts: int = 0
) -> int:
    """The most tokens that a request's answer may have, after a check of the request.

    Args:
        request: what is asked.
        max_length: the backbone's context, in tokens.
        seq2seq: whether the answer has a context of its own.
        thoughts: tokens of thoughts before the answer, which do not count as its own.

    Raises:
        ConfigError: see ``Engine.generate``.
    """
    sampling, length = request.sampling, len(request.prompt)
    if not length:
        raise ConfigError("the prompt is empty", fix="give some text")
    room = max_length if seq2seq else max_length - length
    if length > max_length or room < 1:
        what = f"the prompt has {length} tokens, and the backbone's context {max_length}"
        raise ConfigError(what, where="prompt", fix="give a shorter prompt")
    check_sampling(sampling)
    return min(sampling.max_tokens + thoughts, room)


def thought_tokens(prompter: Prompter) -> int:
    """The most tokens that a model may think before an answer."""
    return _THOUGHT if prompter.thinking and prompter.thoughts else 0


def check_sampling(sampling: Sampling) -> None:
    """Refuse settings that make no sense.

    Raises:
        ConfigError: one of them does not.
    """
    if sampling.max_tokens < 1:
        raise ConfigError(f"{sampling.max_tokens} is no length", where="max_tokens", fix="give 1")
    if not 0 <= sampling.temperature < math.inf:
        what = f"the temperature is {sampling.temperature}"
        raise ConfigError(what, where="temperature", fix="give 0 (greedy) or more")
    if not 0 < sampling.top_p <= 1:
        what = f"top_p is {sampling.top_p}"
        raise ConfigError(what, where="top_p", fix="give a probability above 0 and up to 1")
    if not sampling.top_k >= 0 or sampling.top_k % 1:
        what = f"top_k is {sampling.top_k}"
        raise ConfigError(what, where="top_k", fix="give 0 (all tokens) or a whole number above")
    if not 0 <= sampling.min_p <= 1:
        what = f"min_p is {sampling.min_p}"
        raise ConfigError(what, where="min_p", fix="give a share from 0 to 1")
    penalty = sampling.repetition_penalty
    if penalty is not None and not 0 < penalty < math.inf:
        what = f"the repetition penalty is {penalty}"
        fix = "give 1 (none), or a number above 0"
        raise ConfigError(what, where="repetition_penalty", fix=fix)
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(sampling, name) <= 2:
            what = f"the {name.replace('_', ' ')} is {getattr(sampling, name)}"
            raise ConfigError(what, where=name, fix="give a number from -2 to 2")
    if sampling.top_logprobs < 0:
        what = f"top_logprobs is {sampling.top_logprobs}"
        raise ConfigError(what, where="top_logprobs", fix="give 0 or more")
    if not all(sampling.stop):
        raise ConfigError("a text that ends the answer is empty", where="stop", fix="leave it out")


def generation_defaults(prompter: Prompter) -> Sampling:
    """How a model's own `generation_config` says that its answers are sampled; greedy if it does
    not say.

    For conversations; a task's answers are greedy, see `answering.sampling_of`.
    """
    own = prompter.generation
    if not own.sample:
        return Sampling(repetition_penalty=own.repetition_penalty)
    return Sampling(
        temperature=1.0 if own.temperature is None else own.temperature,
        top_p=1.0 if own.top_p is None else own.top_p,
        top_k=own.top_k or 0,
        min_p=own.min_p or 0.0,
        repetition_penalty=own.repetition_penalty,
    )


class Penalties:
    """Which logits of one answer's next token are lowered, and by how much.

    Args:
        sampling: with the penalties; ``repetition_penalty`` is not None.
        prompt: the tokens before the answer; the start token alone for an encoder-decoder model.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.repetition = sampling.repetition_penalty or 1.0
        self.presence, self.frequency = sampling.presence_penalty, sampling.frequency_penalty
        # For the repetition penalty the prompt counts, for the others the answer alone.
        seen = prompt if self.repetition != 1.0 else ()
        self._counts = dict.fromkeys(seen, 0)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.repetition != 1.0 or bool(self.presence or self.frequency)

    def add(self, token: int) -> None:
        """Another token of the answer."""
        self._counts[token] = self._counts.get(token, 0) + 1

    @property
    def tokens(self) -> list[int]:
        """The tokens whose logits change, each once."""
        return list(self._counts)

    @property
    def subtracted(self) -> list[float]:
        """What is subtracted from each of them behind the repetition penalty."""
        if not self.presence and not self.frequency:
            return [0.0] * len(self._counts)
        return [
            (self.presence if count else 0.0) + self.frequency * count
            for count in self._counts.values()
        ]


def check_targets(
    prompt: Sequence[int],
    targets: Sequence[Sequence[int]],
    max_length: int,
    *,
    seq2seq: bool = False,
) -> None:
    """Check what is to be scored; as ``most_tokens`` for ``Engine.score``.

    Raises:
        ConfigError: the prompt or a target is empty, or they are too long together.
    """
    if not all(targets):
        raise ConfigError("a target is empty", fix="give some tokens")
    most_tokens(Request(prompt), max_length, seq2seq=True)
    longest = max(map(len, targets))
    if longest > (max_length if seq2seq else max_length - len(prompt)):
        what = f"a prompt of {len(prompt)} tokens leaves no room for {longest} more"
        raise ConfigError(what, where="prompt", fix="give a shorter prompt")
