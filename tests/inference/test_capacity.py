"""Rows and context by the memory that is free, and refusals that say what is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfi.errors import ConfigError
from pfi.inference.capacity import (
    LENGTH,
    ROWS,
    Footprint,
    cache_token_bytes,
    check_weights,
    fit_rows,
)

MIB, GIB = 1 << 20, 1 << 30
#: SmolLM2-135M: 30 layers, 3 heads of 64 for keys and values.
SMALL = SimpleNamespace(
    num_hidden_layers=30, num_key_value_heads=3, num_attention_heads=9, hidden_size=576
)


def fit(free: int, **asked: int) -> tuple[int, int]:
    return fit_rows(weights=98 * MIB, token_bytes=23040, free=free, longest=8192, **asked)


def test_bytes_of_a_token() -> None:
    assert cache_token_bytes(SMALL, 2) == 23040
    many = SimpleNamespace(**{**vars(SMALL), "num_key_value_heads": None, "head_dim": 128})
    assert cache_token_bytes(many, 4) == 2 * 30 * 9 * 128 * 4


def test_one_person_gets_four_rows_where_there_is_room() -> None:
    assert fit(16 * GIB) == (ROWS, LENGTH) == (4, 4096)
    # Which is a tenth of the 32 rows that a server used to take whatever there was.
    assert 4 * 4096 * 23040 < 32 * 4096 * 23040 / 7


def test_where_memory_is_short_rows_go_first_then_length() -> None:
    sizes = [fit(free) for free in (16 * GIB, 900 * MIB, 600 * MIB, 280 * MIB, 190 * MIB)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3
    for rows, length in sizes:
        assert length == 4096 or rows == 1
    assert fit(4 * GIB, rows=8) == (8, 4096)
    assert fit(1 * GIB, rows=8)[0] == 8 and fit(1 * GIB, rows=8)[1] < 4096
    assert fit(800 * MIB, length=8192) == (1, 8192)
    assert fit(16 * GIB, length=9000) == (4, 8192), "the backbone's own context"


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        ({}, "close other programs"),
        ({"rows": 32, "length": 4096}, "fewer rows or a shorter context"),
        ({"rows": 64}, "fewer rows, or close"),
    ],
)
def test_what_cannot_fit_is_refused_in_a_line(asked: dict[str, int], fix: str) -> None:
    free = 130 * MIB if not asked else 700 * MIB
    with pytest.raises(ConfigError, match=r"98 MiB for the weights.* MiB of memory are free") as no:
        fit(free, **asked)
    assert fix in str(no.value) and "\n" not in str(no.value)


@given(
    weights=st.integers(0, 8 * GIB),
    token_bytes=st.integers(1, 1 << 20),
    free=st.integers(0, 64 * GIB),
    longest=st.integers(64, 1 << 17),
    rows=st.none() | st.integers(1, 64),
    length=st.none() | st.integers(64, 1 << 17),
)
def test_what_is_given_fits(
    weights: int,
    token_bytes: int,
    free: int,
    longest: int,
    rows: int | None,
    length: int | None,
) -> None:
    sizes = {"weights": weights, "token_bytes": token_bytes, "free": free, "longest": longest}
    try:
        found = fit_rows(**sizes, rows=rows, length=length)
    except ConfigError:
        return
    assert weights + found[0] * found[1] * token_bytes <= free
    assert found[0] == (rows or found[0]) and found[1] <= min(length or LENGTH, longest)
    more = fit_rows(**{**sizes, "free": 2 * free}, rows=rows, length=length)
    assert more >= found or more[0] * more[1] >= found[0] * found[1]


def test_weights_that_do_not_fit_are_not_loaded() -> None:
    check_weights(GIB, GIB)
    with pytest.raises(ConfigError, match=r"take 2.0 GiB, and 1.0 GiB of memory are free"):
        check_weights(2 * GIB, GIB)


def test_a_footprint_says_what_is_taken() -> None:
    text = str(Footprint(98 * MIB, 360 * MIB, 4, 4096, 1))
    assert "98 MiB" in text and "360 MiB" in text and "4 answers" in text and "threads 1" in text
