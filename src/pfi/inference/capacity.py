"""How many answers of which length fit into the memory that is free, before it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pfi._util.memory import mebibytes
from pfi.errors import ConfigError

#: How an engine holds weights.
Bits = Literal["f32", "bf16", "f16", "q8_0", "q4_k_m"]
#: Answers side by side, each with its prompt's keys and values; enough for one person.
ROWS = 4
#: Tokens of a prompt with its answer, where the backbone accepts more and nothing else is asked.
LENGTH = 4096
#: A shorter context is of little use: fewer tokens than that are refused instead.
SHORTEST = 512
#: Share of the free memory that keys and values may take, and what passes and libraries need.
_SHARE, _PASSES = 0.5, 256 << 20
_FIX = "close other programs, or choose a smaller backbone (`pfi plan` says which fit)"


@dataclass(frozen=True)
class Footprint:
    """What an engine takes of the machine.

    Attributes:
        weights: bytes of the backbone.
        cache: bytes of keys and values, at the most.
        rows: answers side by side.
        length: tokens of each, with its prompt.
        threads: that compute now.
    """

    weights: int
    cache: int
    rows: int
    length: int
    threads: int

    def __str__(self) -> str:
        return (
            f"weights {mebibytes(self.weights)}, keys and values up to {mebibytes(self.cache)} "
            f"({self.rows} answers side by side, {self.length} tokens each), "
            f"threads {self.threads}"
        )


def cache_token_bytes(config: Any, number: int) -> int:
    """Bytes of one token's keys and values in all layers, ``number`` bytes each.

    Args:
        config: the backbone's transformers configuration.
        number: 2 for 16 bits, 4 for 32.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head * number)


def fit_rows(
    *,
    weights: int,
    token_bytes: int,
    free: int,
    longest: int,
    rows: int | None = None,
    length: int | None = None,
) -> tuple[int, int]:
    """How many answers, and how long each, for an engine that takes their memory at its start.

    What is asked for is given if it fits at all.  Else keys and values take half of what the
    weights leave: first rows are given up, then length.

    Args:
        weights: bytes, not loaded yet.
        token_bytes: of keys and values.
        free: bytes.
        longest: tokens that the backbone accepts.
        rows, length: as asked for; chosen when None.

    Raises:
        ConfigError: it does not fit.
    """
    room = free - weights - min(_PASSES, free // 4)
    most = room if rows is not None and length is not None else int(_SHARE * room)
    chosen, tokens = rows or ROWS, min(length or LENGTH, longest)
    least = min(SHORTEST, tokens)

    def fits() -> bool:
        return chosen * tokens * token_bytes <= most

    while rows is None and chosen > 1 and not fits():
        chosen -= 1
    while length is None and tokens > least and not fits():
        tokens = max(least, tokens // 2)
    if fits() or chosen * tokens * token_bytes <= room:
        return chosen, tokens
    cache = mebibytes(chosen * tokens * token_bytes)
    what = (
        f"it needs {mebibytes(weights)} for the weights and {cache} for keys and values "
        f"({chosen} x {tokens} tokens), and {mebibytes(free)} of memory are free"
    )
    given = [name for name, value in (("rows", rows), ("context", length)) if value is not None]
    fix = f"set fewer {' or a shorter '.join(given)}, or {_FIX}" if given else _FIX
    raise ConfigError(what, where="memory", fix=fix)


def check_weights(weights: int, free: int) -> None:
    """Refuse to load weights that do not fit, rather than have the system end the process.

    Raises:
        ConfigError: they do not.
    """
    if weights > free:
        what = f"the weights take {mebibytes(weights)}, and {mebibytes(free)} of memory are free"
        raise ConfigError(what, where="memory", fix=_FIX)
