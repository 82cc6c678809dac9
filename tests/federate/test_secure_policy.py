"""Quantisation, policies, terms, rosters, rounds and groups of secure aggregation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from secure_world import BROADCAST, POLICY

from pfi.errors import ConfigError, FederationError
from pfi.federate.secure import Identity, Policy, Roster, Rounds, SecureConfig, groups, load_policy
from pfi.federate.secure.quantise import quantise, signed, values
from pfi.federate.secure.terms import Terms

# Quantisation ----------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sums_are_exact_at_the_policys_very_edge(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([16, 32, 64]))
    clip = data.draw(st.floats(1e-3, 1e3))
    clients = data.draw(st.integers(4, 30))
    heaviest = data.draw(st.integers(1, 100))
    # The finest step that the modulus, or float64, allows.
    free = min((2 ** (bits - 1) - 1) // clients, 2**52)
    if free < heaviest:
        return
    step = clip * (1 + 2**-22) * heaviest / free
    config = SecureConfig(
        bits=bits, clip=clip, step=step, smallest=4, largest=clients, heaviest=heaviest
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    at_edge = data.draw(st.booleans())
    size = (clients, 2)
    drawn = rng.choice([-clip, clip], size) if at_edge else rng.uniform(-clip, clip, size)
    vectors = list(drawn.astype(np.float32))
    weights = rng.choice([1, heaviest], clients).tolist()
    total = np.zeros(3, config.dtype)
    for vector, weight in zip(vectors, weights, strict=True):
        total += quantise(vector, weight, config, bound=math.inf)
    expected = [
        sum(round(float(v[place]) * (w / step)) for v, w in zip(vectors, weights, strict=True))
        for place in range(2)
    ]
    assert signed(total).tolist() == [*expected, sum(weights)]
    exact = np.average(np.array(vectors, np.float64), axis=0, weights=weights)
    found = values(signed(total), config) / sum(weights)
    error = step / 2 * clients / sum(weights) + 1e-12 * clip
    assert np.abs(found - exact).max() <= error * (1 + 1e-6)


def test_float32_rounding_of_clip_is_no_overflow() -> None:
    config = SecureConfig(clip=0.1, step=1e-4)
    at = np.full(1, 0.1, np.float32)
    assert float(at[0]) > 0.1
    assert signed(quantise(at, 1, config)).tolist() == [1000, 1]
    with pytest.raises(FederationError, match="out of the policy's range"):
        quantise(np.nextafter(at, np.float32(1)) + np.float32(1e-7), 1, config)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.01, -1.01])
def test_values_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(FederationError, match=r"not finite|out of the policy's range"):
        quantise(np.array([0.0, bad], np.float32), 1, SecureConfig())


@pytest.mark.parametrize("weight", [0, -1, 1001, 1.5, np.nan])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(FederationError, match="weight"):
        quantise(np.zeros(2, np.float32), weight, SecureConfig())


# Policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"bits": 16}, {"largest": 10_000}, {"heaviest": 10**7}, {"step": 1e-9}, {"clip": 1e6}],
)
def test_a_policy_whose_sums_can_overflow_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="a sum can need"):
        SecureConfig(**change)  # type: ignore[arg-type]


def test_weights_alone_can_need_the_bits() -> None:
    with pytest.raises(ValidationError, match="a sum can need"):
        SecureConfig(clip=0.1, step=0.1, heaviest=2**27, largest=64)


def test_other_policies_that_make_no_sense() -> None:
    changes: list[dict[str, Any]] = [
        {"smallest": 65}, {"threshold": 0.4}, {"threshold": 1}, {"smallest": 3}, {"clip": np.inf}
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(ValidationError):
            SecureConfig(**change)
    for step in (1e-17, 2.1):
        with pytest.raises(ValidationError, match="a step has to be"):
            SecureConfig(bits=64, step=step, heaviest=1, largest=8)


def test_a_threshold_is_always_more_than_half() -> None:
    config = SecureConfig(threshold=0.5)
    assert [config.needed(n) for n in (4, 5, 6, 7)] == [3, 3, 4, 4]
    third = SecureConfig()
    # floor(2 n / 3) + 1, as Bonawitz et al. have it.
    assert all(third.needed(n) == 2 * n // 3 + 1 for n in range(4, 400))
    assert SecureConfig(threshold=1 - 1e-12).needed(8) == 8
    assert all(2 * config.needed(n) > n for n in range(4, 400))


def test_a_policy_file_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("federation: f\nlength: 3\nbits: 64\n", encoding="utf-8")
    assert load_policy(path) == SecureConfig(bits=64).pin("f", 3)
    for wrong in ("federation: f\n", "federation: f\nlength: 3\nother: 1\n", ":", "- 1\n"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(ConfigError, match="policy"):
            load_policy(path)
    with pytest.raises(ConfigError, match="policy"):
        load_policy(tmp_path / "missing.yaml")


def test_every_term_of_a_round_changes_its_digest() -> None:
    names = ("a", "b", "c", "d")
    roster = Roster({name: Identity.generate(name).public for name in names})
    base = Terms(POLICY, 1, names, roster, BROADCAST)
    others = [
        Terms(Policy(**{**POLICY.model_dump(), "bits": 64}), 1, names, roster, BROADCAST),
        Terms(Policy(**{**POLICY.model_dump(), "federation": "g"}), 1, names, roster, BROADCAST),
        Terms(POLICY, 2, names, roster, BROADCAST),
        Terms(POLICY, 1, names[:3], roster, BROADCAST),
        Terms(POLICY, 1, names, Roster({**roster, "a": bytes(32)}), BROADCAST),
        Terms(POLICY, 1, names, roster, "cd" * 32),
    ]
    assert len({terms.digest for terms in (base, *others)}) == 7
    assert len({base.bound("x", 0, 1), base.bound("x", 1, 0), base.bound("y", 0, 1)}) == 3


# Roster, rounds, groups ------------------------------------------------------------------


def test_a_signed_roster() -> None:
    operator = Ed25519PrivateKey.generate()
    public = operator.public_key().public_bytes_raw()
    roster = Roster({n: Identity.generate(n).public for n in "ab"}, "f", 3)
    data = roster.signed(operator)
    assert Roster.read(data, public, "f", newest=3) == roster
    with pytest.raises(FederationError, match="older than serial 4"):
        Roster.read(data, public, "f", newest=4)
    with pytest.raises(FederationError, match="it is of f"):
        Roster.read(data, public, "g")
    added = data.replace(b'"serial": 3', b'"serial": 4')
    assert added != data
    for wrong in (added, b"zz" + data, data[1:], b"", data.split(b"\n", 1)[1]):
        with pytest.raises(FederationError, match="signature"):
            Roster.read(wrong, public, "f")
    with pytest.raises(FederationError, match="signature"):
        Roster.read(data, Identity.generate("x").public, "f")


def test_a_roster_with_one_key_twice_or_a_short_one() -> None:
    key = Identity.generate("a").public
    with pytest.raises(FederationError, match="same key"):
        Roster({"a": key, "b": key})
    with pytest.raises(FederationError, match="32 bytes"):
        Roster({"a": key[:31]})


def test_an_identity_does_not_print_its_key() -> None:
    assert "private" not in repr(Identity.generate("a"))


def test_rounds_are_joined_once_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    path.write_text('{"f": 2}', encoding="utf-8")  # an earlier version's
    Rounds(path).join("f", 3, BROADCAST, ["a"])
    Rounds(path).join("g", 1, BROADCAST, ["a"])
    for again in (3, 2):
        with pytest.raises(FederationError, match="already joined"):
            Rounds(path).join("f", again, BROADCAST, ["a"])
    Rounds(path).join("f", 4, BROADCAST, ["a"])
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {name: past["last"] for name, past in written.items()} == {"f": 4, "g": 1}
    for damage in ("", "[]", '{"f": "x"}', '{"f": {"last": "4"}}', '{"f": {"sums": [1]}}'):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(FederationError, match="damaged"):
            Rounds(path).join("f", 9, BROADCAST, ["a"])


@given(st.integers(8, 100), st.integers(4, 12), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_groups_are_a_division_and_none_is_too_small(count: int, size: int, seed: int) -> None:
    names = [f"c{n}" for n in range(count)]
    if count < size:
        with pytest.raises(FederationError, match="fewer than"):
            groups(names, size, seed)
        return
    found = groups(names, size, seed)
    assert sorted(name for group in found for name in group) == sorted(names)
    sizes = [len(group) for group in found]
    assert min(sizes) >= size and max(sizes) - min(sizes) <= 1 and len(found) == count // size
    assert groups(names[::-1], size, seed) == found


def test_groups_depend_on_the_seed_and_names_are_unique() -> None:
    names = [f"c{n}" for n in range(32)]
    assert groups(names, 8, 0) != groups(names, 8, 1)
    with pytest.raises(FederationError, match="twice"):
        groups([*names, "c0"], 8, 0)


def test_quantised_entries_are_of_the_policys_type() -> None:
    for bits in (16, 32, 64):
        config = SecureConfig(bits=bits, step=0.1, heaviest=10, largest=8)  # type: ignore[arg-type]
        entries: NDArray[np.generic] = quantise(np.array([-1.0], np.float32), 2, config)
        assert entries.dtype == f"<u{bits // 8}"
        assert signed(entries).tolist() == [-20, 2]
