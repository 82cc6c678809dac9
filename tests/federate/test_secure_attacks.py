"""Attacks on a secure sum: each is refused, and succeeds once the one check against it is gone."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray
from secure_world import POLICY, VICTIM, World, asked, changed, numbered

from pfi.errors import FederationError
from pfi.federate.message import Message
from pfi.federate.secure import (
    Policy,
    Rounds,
    SecureConfig,
    SecureServer,
    checks,
    crypto,
    field,
    run,
)
from pfi.federate.secure.client import mask_key
from pfi.federate.secure.quantise import quantise
from pfi.federate.secure.terms import as_rows

KEY = crypto.KEY_BYTES


def _other_policy() -> str:
    return Policy(**{**POLICY.model_dump(), "threshold": 0.9}).text()


# What the server may try with one client -------------------------------------------------


def policy(world: World) -> None:
    asked(world, "keys", policy=_other_policy())


def broadcast(world: World) -> None:
    asked(world, "keys", broadcast="cd" * 32)


def fresh(world: World) -> None:
    world.step("keys")
    world.start(world.round)
    world.step("keys")


def not_ahead(world: World) -> None:
    """All later rounds would be refused, until the server's clock is there."""
    asked(world, "keys", round=time.time_ns() // 10**6 + 2 * 24 * 3600 * 1000)


def same_cohort(world: World) -> None:
    """The same broadcast with a client fewer: the difference of both sums is its update."""
    world.until("survivors")
    world.start(2)
    asked(world, "keys", cohort=json.dumps(world.names[:-1]))


def same_survivors(world: World) -> None:
    """The same cohort, of which the server says that one dropped out this time."""
    world.until("unmask")
    world.start(2)
    for stage in ("keys", "shares"):
        world.step(stage)
    world.step("masked", lost=["device-05"])
    world.step("survivors")


def sets_apart(world: World) -> None:
    """Another broadcast, by a bit, to a client fewer."""
    world.until("unmask")
    world.broadcast = "cd" * 32
    world.start(2)
    names = world.names[:-1]
    world.server = SecureServer(world.policy, world.roster, 2, names, world.broadcast)
    world.until("survivors")


def cohort_min(world: World) -> None:
    asked(world, "keys", cohort=json.dumps(world.names[:3]))


def cohort_max(world: World) -> None:
    world.policy = Policy(**{**POLICY.model_dump(), "largest": 5})
    policy = world.policy.text()
    world.clients[VICTIM] = world.client(VICTIM)
    asked(world, "keys", policy=policy)


def cohort_distinct(world: World) -> None:
    asked(world, "keys", cohort=json.dumps([VICTIM] * 4))


def cohort_known(world: World) -> None:
    asked(world, "keys", cohort=json.dumps([*world.names, "sybil"]))


def cohort_has(world: World) -> None:
    asked(world, "keys", cohort=json.dumps(world.names[1:]))


def stage(world: World) -> None:
    """Two sets of survivors signed: with and without another client."""
    asked(world, "survivors")
    world.handle(VICTIM, changed(world.server.requests("survivors")[VICTIM]))


def same_round(world: World) -> None:
    asked(world, "survivors", round=world.round + 1)


def members(world: World) -> None:
    """One client four times passes for the threshold of four."""
    asked(world, "survivors", members=numbered(0, 0, 0, 0))


def enough(world: World) -> None:
    asked(world, "survivors", members=numbered(0, 1, 2))


def left(world: World) -> None:
    """A client that never shared its secrets passes for a survivor."""
    world.step("keys")
    world.step("shares", lost=["device-05"])
    world.step("masked")
    request = world.server.requests("survivors")[VICTIM]
    world.handle(VICTIM, changed(request, members=numbered(0, 1, 2, 3, 5)))


def present(world: World) -> None:
    asked(world, "survivors", members=numbered(1, 2, 3, 4, 5))


def signed_keys(world: World) -> None:
    """The server puts its own keys in all others' place and reads the victim's entries."""
    world.step("keys")
    terms, request = world.server.terms, world.server.requests("shares")[VICTIM]
    mine = {n: (X25519PrivateKey.generate(), X25519PrivateKey.generate()) for n in range(1, 6)}
    keys = request.arrays["keys"].copy()
    public = keys[0].tobytes()
    for number, (one, other) in mine.items():
        keys[number] = as_rows([crypto.public_of(one) + crypto.public_of(other)])[0]
    reply = world.handle(VICTIM, changed(request, keys=keys))

    def opened(number: int) -> bytes:
        bound = terms.bound("shares", 0, number)
        key = crypto.agree(mine[number][0], public[:KEY], terms.digest, b"seal" + bound)
        plain = crypto.unseal(key or b"", reply.arrays["sealed"][number].tobytes(), bound)
        assert plain is not None
        return plain

    shares = [opened(number)[field.SHARE_BYTES :] for number in range(1, 5)]
    seed = field.combine(shares, field.weights([2, 3, 4, 5]))
    sealed = [bytes(82)]
    for number, (one, _) in mine.items():
        bound = terms.bound("shares", number, 0)
        key = crypto.agree(one, public[:KEY], terms.digest, b"seal" + bound)
        sealed.append(crypto.seal(key or b"", bytes(66), bound))
    masked = world.handle(VICTIM, Message(
        {"members": numbered(*range(6)), "sealed": as_rows(sealed)},
        {"stage": "masked", "round": world.round},
    ))  # fmt: skip
    entries = masked.arrays["entries"].copy()
    crypto.add_mask(entries, crypto.derive(seed, terms.digest, terms.seed_key(0)), negative=True)
    for number, (_, other) in mine.items():
        key = mask_key(terms, other, public[KEY:], number, 0)
        crypto.add_mask(entries, key or b"", negative=True)
    assert (entries == world.entries(VICTIM)).all()


def signed_survivors(world: World) -> None:
    """Each client is told of other survivors, and the sum of three is unmasked, not of four.

    Every one of the last three is told of as dropped out to four clients, so the server gets four
    shares of its mask key, and four shares of the seeds of the first three.
    """
    world.until("survivors")
    terms, first = world.server.terms, world.server.requests("survivors")
    told = {0: (3, 4), 1: (4, 5), 2: (3, 5), 3: (4, 5), 4: (3, 5), 5: (3, 4)}
    everyone = list(range(6))
    sets = {n: [m for m in everyone if m not in gone] for n, gone in told.items()}
    signatures = {}
    for number, kept in sets.items():
        name = world.names[number]
        reply = world.handle(name, changed(first[name], members=numbered(*kept)))
        signatures[number] = reply.arrays["signature"][0]
    of_seed: dict[int, dict[int, bytes]] = {n: {} for n in everyone}
    of_key: dict[int, dict[int, bytes]] = {n: {} for n in everyone}
    for number, kept in sets.items():
        name = world.names[number]
        request = changed(
            first[name],
            stage="unmask",
            members=numbered(*kept),
            signatures=np.stack([signatures[n] for n in kept]),
        )
        for dealer, share in enumerate(world.handle(name, request).arrays["shares"]):
            (of_seed if dealer in kept else of_key)[dealer][number] = share.tobytes()

    def restored(shares: dict[int, bytes]) -> bytes:
        some = sorted(shares)[:4]
        return field.combine([shares[n] for n in some], field.weights([n + 1 for n in some]))

    three = world.names[:3]
    total = np.sum([world.sent["masked"][name].arrays["entries"] for name in three], 0, "<u4")
    for number in range(3):
        seed = crypto.derive(restored(of_seed[number]), terms.digest, terms.seed_key(number))
        crypto.add_mask(total, seed, negative=True)
        for dealer in (3, 4, 5):
            private = X25519PrivateKey.from_private_bytes(restored(of_key[dealer]))
            public = world.server._replies["keys"][number][0][KEY:]
            key = mask_key(terms, private, public, dealer, number)
            crypto.add_mask(total, key or b"", negative=True)
    assert (total.view(np.int32) == world.expected(three)).all()


def own_keys(world: World) -> None:
    """A device that lost its list of rounds is given its keys of before: their shares are known."""
    twin = world.client(VICTIM)
    world.rounds[VICTIM] = Rounds()
    world.clients[VICTIM] = world.client(VICTIM)
    old = twin.handle(world.server.requests("keys")[VICTIM])
    world.step("keys")
    request = world.server.requests("shares")[VICTIM]
    keys, signatures = (request.arrays[name].copy() for name in ("keys", "signatures"))
    keys[0], signatures[0] = old.arrays["keys"][0], old.arrays["signature"][0]
    world.handle(VICTIM, changed(request, keys=keys, signatures=signatures))


def _with_keys_of_a_colluder(world: World, change: Callable[[NDArray[np.uint8]], bytes]) -> None:
    """The last client signs other keys; the victim is shown them."""
    world.step("keys")
    request = world.server.requests("shares")[VICTIM]
    keys, signatures = (request.arrays[name].copy() for name in ("keys", "signatures"))
    pair = change(keys)
    signature = world.server.terms.sign(world.identities["device-05"], "keys", pair)
    keys[5], signatures[5] = as_rows([pair])[0], as_rows([signature])[0]
    world.handle(VICTIM, changed(request, keys=keys, signatures=signatures))


def keys_distinct(world: World) -> None:
    _with_keys_of_a_colluder(world, lambda keys: keys[4].tobytes())


def key_usable(world: World) -> None:
    _with_keys_of_a_colluder(world, lambda keys: bytes(KEY) + keys[5, KEY:].tobytes())


def opened(world: World) -> None:
    world.until("masked")
    request = world.server.requests("masked")[VICTIM]
    sealed = request.arrays["sealed"].copy()
    sealed[3, 7] ^= 1
    world.handle(VICTIM, changed(request, sealed=sealed))


# What cannot be shared, restored or summed -----------------------------------------------


def points(world: World) -> None:
    """A share at zero is the secret itself."""
    assert field.split(b"s" * 32, [0, 1, 2], 2)[0] == b"\0" + b"s" * 32


def element(world: World) -> None:
    assert field.read((field.PRIME + 5).to_bytes(33, "big")) == field.PRIME + 5


def secret(world: World) -> None:
    assert field.combine([(2**256 + 5).to_bytes(33, "big")], [1]) == (5).to_bytes(32, "big")


def shape(world: World) -> None:
    world.clients[VICTIM].contribute(np.zeros(6, np.float32), 1)


def finite(world: World) -> None:
    with np.errstate(invalid="ignore"):
        world.clients[VICTIM].contribute(np.full(5, np.nan, np.float32), 1)


def in_range(world: World) -> None:
    """A sum that overflows, without a word."""
    config = SecureConfig(bits=16, step=0.01, heaviest=40, smallest=4, largest=8)
    vector = np.array([3.0], np.float32)
    entries = [quantise(vector, 40, config) for _ in range(4)]
    assert np.sum(entries, 0, config.dtype).view(np.int16)[0] != 4 * 40 * 300


def weight(world: World) -> None:
    world.clients[VICTIM].contribute(world.vectors[VICTIM], 1.5)


# What a client, or anybody on the way, may try with the server ---------------------------


def open_stage(world: World) -> None:
    world.step("keys")
    world.server.requests("keys")


def awaited(world: World) -> None:
    """A vector that no one has shares to unmask."""
    world.step("keys")
    world.step("shares", lost=["device-05"])
    request = world.server.requests("masked")[VICTIM]
    reply = world.handle(VICTIM, request)
    world.server.receive("masked", "device-05", reply)


def once(world: World) -> None:
    """An update that counts twice."""
    world.until("masked")
    request = world.server.requests("masked")[VICTIM]
    reply = world.handle(VICTIM, request)
    for _ in range(2):
        world.server.receive("masked", VICTIM, reply)


def committed(world: World) -> None:
    """A changed share makes the sum a random one."""
    world.until("unmask")
    requests = world.server.requests("unmask")
    for name in world.names:
        reply = world.handle(name, requests[name])
        if name == VICTIM:
            shares = reply.arrays["shares"].copy()
            shares[2, 20] ^= 1
            reply = changed(reply, shares=shares)
        world.server.receive("unmask", name, reply)
    world.server.close("unmask")
    assert (world.server.sum() != world.expected(world.names)).any()


def restored(world: World) -> None:
    """A client shares another mask key than it makes its masks with, and drops out."""
    world.step("keys")
    client: Any = world.clients["device-05"]
    true, client._masking = client._masking, X25519PrivateKey.generate()
    world.step("shares")
    client._masking = true
    world.step("masked", lost=["device-05"])
    world.step("survivors")
    world.step("unmask")
    assert (world.server.sum() != world.expected(world.names[:5])).any()


def _with_entries(world: World, change: Callable[[NDArray[np.uint32]], None]) -> None:
    """A client that masks other numbers than its policy allows, which nobody can see."""
    client: Any = world.clients[VICTIM]
    change(client._entries)
    run(world.server, world.ask())


def possible_weight(world: World) -> None:
    """Weights that cancel, and the mean is no number."""
    others = sum(world.weights[name] for name in world.names[1:])
    _with_entries(world, lambda entries: entries.__setitem__(-1, 2**32 - others))
    assert world.server.weight() == 0


def possible_values(world: World) -> None:
    _with_entries(world, lambda entries: entries.__setitem__(0, 2**30))
    assert world.server.mean()[0] > 100 * world.policy.clip


# Each with the check that refuses it and what that says; where the check only keeps a crash from
# happening, the error that comes without it.
ATTACKS: Sequence[tuple[Callable[[World], None], str, str, type[Exception] | None]] = [
    (policy, "policy", "threshold 0.9 not 0.5", None),
    (broadcast, "broadcast", "another broadcast", None),
    (fresh, "fresh", "already joined", None),
    (not_ahead, "not_ahead", "a clock that is a day ahead", None),
    (same_cohort, "same_cohort", "answered with another cohort", None),
    (same_survivors, "same_survivors", "summed with other clients", None),
    (sets_apart, "sets_apart", "and 1 differ, not 4", None),
    (cohort_min, "cohort_min", "3 clients are asked, at least 4", None),
    (cohort_max, "cohort_max", "6 clients are asked, at most 5", None),
    (cohort_distinct, "cohort_distinct", "listed twice", None),
    (cohort_known, "cohort_known", "not in the roster: 'sybil'", KeyError),
    (cohort_has, "cohort_has", "not in the cohort", ValueError),
    (stage, "stage", "stage 'survivors' is asked, not unmask", None),
    (same_round, "same_round", "a message of round 2, not 1", None),
    (members, "members", "not rising", None),
    (enough, "enough", "3 clients are left, 4 are needed", None),
    (left, "left", "dropped out before", None),
    (present, "present", "not among those left", None),
    (signed_keys, "signed", "device-01's signature of its keys", None),
    (signed_survivors, "signed", "signature of its survivors", None),
    (own_keys, "own_keys", "replaced this client's own keys", None),
    (keys_distinct, "keys_distinct", "two public keys are the same", None),
    (key_usable, "key_usable", "small order", AssertionError),
    (opened, "opened", "from client device-03 were changed", AssertionError),
    (points, "points", "at zero", None),
    (element, "element", "no element", None),
    (secret, "secret", "do not belong", None),
    (shape, "shape", "shape", None),
    (finite, "finite", "not finite", None),
    (in_range, "in_range", "out of the policy's range", None),
    (weight, "weight", "weight of 1.5", None),
    (possible_weight, "possible_weight", "a sum of weights of 0", None),
    (possible_values, "possible_values", "beyond what its clients may send", None),
    (open_stage, "open_stage", "stage keys is not open, shares is", None),
    (awaited, "awaited", "device-05 was not asked", None),
    (once, "once", "replied twice", None),
    (committed, "committed", "not the one it was given", None),
    (restored, "restored", "device-05's key restore another key", None),
]


@pytest.fixture
def world() -> World:
    """Six clients, of whom four have to stay."""
    return World(6)


def test_every_check_has_an_attack() -> None:
    known = {
        name
        for name, found in inspect.getmembers(checks, inspect.isfunction)
        if found.__module__ == checks.__name__ and not name.startswith("_")
    }
    assert known == {check for _, check, _, _ in ATTACKS}


@pytest.mark.parametrize(("attack", "check", "message", "crash"), ATTACKS)
def test_attacks_are_refused(
    world: World, attack: Any, check: str, message: str, crash: type[Exception] | None
) -> None:
    with pytest.raises(FederationError, match=message):
        attack(world)


@pytest.mark.parametrize(("attack", "check", "message", "crash"), ATTACKS)
def test_attacks_succeed_without_the_check(
    world: World,
    attack: Any,
    check: str,
    message: str,
    crash: type[Exception] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, check, lambda *_: None)
    if check in ("committed", "restored"):  # a random sum shows by its weight, too
        monkeypatch.setattr(checks, "possible_weight", lambda *_: None)
    if crash is None:
        attack(world)
    else:
        with pytest.raises(crash):
            attack(world)
