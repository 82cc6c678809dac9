"""What does not fit a round is refused: of other rounds, senders, sets, policies; malformed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from secure_world import BROADCAST, POLICY, VICTIM, World, asked, changed, numbered

from pfi.errors import FederationError
from pfi.federate.message import Message
from pfi.federate.secure import (
    STAGES,
    Identity,
    Policy,
    Rounds,
    SecureClient,
    SecureConfig,
    SecureServer,
    crypto,
    field,
)
from pfi.federate.secure import client as client_module
from pfi.federate.secure.client import agreed, commitment, mask_key
from pfi.federate.secure.terms import Terms, as_rows

KEY = crypto.KEY_BYTES


@pytest.fixture
def world() -> World:
    """Six clients, of whom four have to stay."""
    return World(6)


# Bindings: what fits one round, sender, receiver or purpose fits no other ----------------


def _replayed_keys(world: World) -> None:
    """A client's keys of the round before; had it dropped out, the server would know them."""
    world.step("keys")
    old = world.server.requests("shares")[VICTIM].arrays
    world.start(2)
    world.step("keys")
    request = world.server.requests("shares")[VICTIM]
    keys, signatures = (request.arrays[name].copy() for name in ("keys", "signatures"))
    keys[5], signatures[5] = old["keys"][5], old["signatures"][5]
    world.handle(VICTIM, changed(request, keys=keys, signatures=signatures))


def test_keys_of_an_earlier_round_are_refused(world: World) -> None:
    with pytest.raises(FederationError, match="signature of its keys is not valid in this round"):
        _replayed_keys(world)


def test_and_are_taken_without_the_terms_in_the_signature(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Terms, "digest", bytes(32))
    _replayed_keys(world)


@pytest.mark.parametrize("how", ["swapped", "replayed", "malformed", "of another receiver"])
def test_shares_that_are_not_the_senders_for_this_client_are_refused(
    world: World, how: str
) -> None:
    world.until("masked")
    before = world.server.requests("masked")
    if how == "replayed":
        world.start(2)
        world.until("masked")
    request = world.server.requests("masked")[VICTIM]
    sealed = request.arrays["sealed"].copy()
    if how == "swapped":
        sealed[[1, 2]] = sealed[[2, 1]]
    elif how == "replayed":
        sealed[1] = before[VICTIM].arrays["sealed"][1]
    elif how == "malformed":
        sealed[1] = 0
    else:
        sealed[1] = before["device-03"].arrays["sealed"][1]
    with pytest.raises(FederationError, match="shares from client device-01 were"):
        world.handle(VICTIM, changed(request, sealed=sealed))


def test_changed_shares_are_taken_where_sealing_does_not_authenticate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unauthenticated(key: bytes, sealed: bytes, bound: bytes) -> bytes:
        # ChaCha20-Poly1305 enciphers from block 1 of its keystream (RFC 8439, section 2.8).
        start = (1).to_bytes(4, "little") + bytes(12)
        stream = Cipher(algorithms.ChaCha20(key, start), mode=None).decryptor()
        return stream.update(sealed[: -crypto.TAG_BYTES])

    monkeypatch.setattr(client_module, "unseal", unauthenticated)
    world.until("masked")
    request = world.server.requests("masked")[VICTIM]
    sealed = request.arrays["sealed"].copy()
    sealed[3, 7] ^= 1
    world.handle(VICTIM, changed(request, sealed=sealed))
    held = world.clients[VICTIM]._held[3]
    committed = world.server._replies["shares"][3][1][0].tobytes()
    terms = world.server.terms
    assert commitment(terms, 3, 0, held[:33]) != committed[:KEY]
    assert commitment(terms, 3, 0, held[33:]) == committed[KEY:]


@pytest.mark.parametrize("how", ["swapped", "of another set", "of another purpose"])
def test_survivors_signatures_that_are_not_for_this_set_are_refused(world: World, how: str) -> None:
    world.until("unmask")
    terms, request = world.server.terms, world.server.requests("unmask")[VICTIM]
    rows = request.arrays["signatures"].copy()
    signer, whole = world.identities["device-01"], list(range(6))
    if how == "swapped":
        rows[[1, 0]] = rows[[0, 1]]
    elif how == "of another set":
        rows[1] = as_rows([terms.sign(signer, "survivors", agreed(whole, whole[:5]))])[0]
    else:
        rows[1] = as_rows([terms.sign(signer, "keys", agreed(whole, whole))])[0]
    with pytest.raises(FederationError, match="signature of its survivors"):
        world.handle(VICTIM, changed(request, signatures=rows))


def test_a_dealer_whose_shares_restore_no_secret_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All masked vectors were added by then: the round ends without a sum."""
    world.step("keys")
    messages = world.server.requests("shares")
    too_large = [(2**256 + 5).to_bytes(33, "big")] * 6
    for name in world.names:
        with monkeypatch.context() as patch:
            if name == "device-05":
                patch.setattr(field, "split", lambda *_: too_large)
            world.server.receive("shares", name, world.handle(name, messages[name]))
    world.server.close("shares")
    world.step("masked")
    world.step("survivors")
    with pytest.raises(FederationError, match="client device-05: shares do not belong to one"):
        world.step("unmask")
    with pytest.raises(FederationError, match="no sum"):
        world.server.sum()


def test_no_client_gives_both_shares_of_one_other(world: World) -> None:
    """Whoever is listed as left and again as dropped out: one kind of share comes, and once."""
    world.step("keys")
    world.step("shares")
    world.step("masked", lost=["device-05"])
    world.step("survivors")
    request = world.server.requests("unmask")[VICTIM]
    held = dict(world.clients[VICTIM]._held)
    shares = [row.tobytes() for row in world.handle(VICTIM, request).arrays["shares"]]
    assert shares == [held[n][33:] for n in range(5)] + [held[5][:33]]
    for again in ("survivors", "unmask"):
        with pytest.raises(FederationError, match="nothing is expected any more"):
            world.handle(VICTIM, changed(request, stage=again))
    assert world.clients[VICTIM]._held == {}


def _two_halves(world: World) -> None:
    """One half is told that the victim is left, the other that it dropped out."""
    world.until("survivors")
    terms, first = world.server.terms, world.server.requests("survivors")
    told = {n: [0, 1, 2, 3, 4, 5] if n < 3 else [1, 2, 3, 4, 5] for n in range(6)}
    signatures = [
        world.handle(world.names[n], changed(first[VICTIM], members=numbered(*kept)))
        for n, kept in told.items()
    ]
    rows = np.concatenate([reply.arrays["signature"] for reply in signatures])
    got = {}
    for number, name in enumerate(world.names):
        half = [0, 1, 2] if number < 3 else [3, 4, 5]
        request = changed(
            first[VICTIM], stage="unmask", members=numbered(*half), signatures=rows[half]
        )
        got[number] = world.handle(name, request).arrays["shares"][0].tobytes()
    seed = field.combine([got[n] for n in (0, 1, 2)], field.weights([1, 2, 3]))
    private = field.combine([got[n] for n in (3, 4, 5)], field.weights([4, 5, 6]))
    entries = world.sent["masked"][VICTIM].arrays["entries"].copy()
    own = crypto.derive(seed, terms.digest, terms.seed_key(0))
    crypto.add_mask(entries, own, negative=True)
    for other in range(1, 6):
        public = world.server._replies["keys"][other][0][KEY:]
        key = mask_key(terms, X25519PrivateKey.from_private_bytes(private), public, 0, other)
        crypto.add_mask(entries, key or b"", negative=True)
    assert (entries == world.entries(VICTIM)).all()


def test_two_halves_cannot_be_told_two_sets_of_survivors(world: World) -> None:
    with pytest.raises(FederationError, match="3 clients are left, 4 are needed"):
        _two_halves(world)


def test_and_could_be_at_a_threshold_of_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the sum of 3 + 3 shares give an update away is the threshold alone."""
    monkeypatch.setattr(SecureConfig, "needed", lambda self, cohort: cohort // 2)
    _two_halves(World(6))


# The server's policy ---------------------------------------------------------------------


@pytest.mark.parametrize("field_name", sorted(Policy.model_fields))
def test_no_field_of_the_policy_is_the_servers_to_set(world: World, field_name: str) -> None:
    other: dict[str, Any] = {
        "bits": 64, "threshold": 0.6, "smallest": 5, "largest": 41, "clip": 0.5, "step": 1e-3,
        "heaviest": 40, "federation": "another", "length": 6,
    }  # fmt: skip
    stated = {**POLICY.model_dump(), field_name: other[field_name]}
    with pytest.raises(FederationError, match=f"another policy: {field_name} "):
        asked(world, "keys", policy=json.dumps(stated))


@pytest.mark.parametrize("change", [{"extra": 1}, {"bits": None}])
def test_nor_are_more_fields_or_fewer(world: World, change: dict[str, Any]) -> None:
    stated = {k: v for k, v in {**POLICY.model_dump(), **change}.items() if v is not None}
    with pytest.raises(FederationError, match="another policy"):
        asked(world, "keys", policy=json.dumps(stated))


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "no json"},
        {"policy": "[]"},
        {"cohort": "{}"},
        {"cohort": "[1]"},
        {"round": 1.5},
        {"round": True},
        {"round": -1},
        {"cohort": "[" * 100_000},
    ],
)
def test_malformed_terms_are_refused(world: World, change: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match="terms of a round are malformed"):
        asked(world, "keys", **change)


@pytest.mark.parametrize("missing", ["policy", "cohort", "round", "broadcast"])
def test_missing_terms_are_refused(world: World, missing: str) -> None:
    message = world.server.requests("keys")[VICTIM]
    values = {name: value for name, value in message.values.items() if name != missing}
    with pytest.raises(FederationError, match="malformed"):
        world.handle(VICTIM, Message(values=values))


@pytest.mark.parametrize("stage", ["", "keys2", "handle", "__init__", "read_terms", "shares", 3])
def test_unknown_and_early_stages_are_refused_and_end_the_round(world: World, stage: Any) -> None:
    with pytest.raises(FederationError, match="is asked, not keys"):
        world.handle(VICTIM, changed(world.server.requests("keys")[VICTIM], stage=stage))
    with pytest.raises(FederationError, match="nothing is expected any more"):
        world.handle(VICTIM, world.server.requests("keys")[VICTIM])


@pytest.mark.parametrize("stage", ["shares", "masked", "survivors", "unmask"])
@pytest.mark.parametrize("members", [(0, 1, 2), (1, 2, 3, 4), (0, 1, 2, 3, 5)])
def test_who_is_left_is_checked_at_every_stage(
    world: World, stage: str, members: tuple[int, ...]
) -> None:
    """Too few; without the client itself; with one who had dropped out."""
    gone_at = {"shares": "keys", "masked": "keys", "survivors": "shares", "unmask": "masked"}
    for earlier in STAGES[: STAGES.index(stage)]:
        world.step(earlier, lost=["device-05"] if earlier == gone_at[stage] else [])
    request = world.server.requests(stage)[VICTIM]
    # Rows of the fourth in place of those of the last, of whom there are none.
    rows = [min(number, 4) for number in members]
    arrays = {name: array[rows] for name, array in request.arrays.items()}
    arrays["members"] = numbered(*members)
    other = Message(arrays, request.values)
    refusal = {3: "3 clients are left", 4: "not among those left", 5: "dropped out before"}
    if stage == "shares":
        refusal[5] = "device-05's signature of its keys"
    if stage == "unmask" and len(members) == 4:
        world.handle(VICTIM, other)  # who signed need not be asked
        return
    with pytest.raises(FederationError, match=refusal[len(members)]):
        world.handle(VICTIM, other)


@pytest.mark.parametrize("stage", ["shares", "masked", "survivors", "unmask"])
def test_the_round_is_checked_at_every_stage(world: World, stage: str) -> None:
    with pytest.raises(FederationError, match="a message of round 2, not 1"):
        asked(world, stage, round=2)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("shares", {"keys": np.zeros((6, 63), np.uint8)}),
        ("shares", {"signatures": np.zeros((5, 64), np.uint8)}),
        ("shares", {"members": np.arange(6)}),
        ("shares", {"members": np.arange(6, dtype=np.int32).reshape(2, 3)}),
        ("shares", {"members": np.array(3, np.int32)}),
        ("shares", {"members": numbered()}),
        ("shares", {"members": numbered(-1, 0, 1, 2, 3, 4)}),
        ("shares", {"members": numbered(0, 1, 2, 3, 4, 6)}),
        ("masked", {"sealed": np.zeros((6, 81), np.uint8)}),
        ("unmask", {"signatures": np.zeros((6, 63), np.uint8)}),
    ],
)
def test_malformed_arrays_are_refused_by_clients(
    world: World, stage: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(FederationError):
        asked(world, stage, **changes)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("keys", {"keys": np.zeros((1, 63), np.uint8)}),
        ("keys", {"signature": np.zeros((1, 64), np.uint8)}),
        ("shares", {"sealed": np.zeros((5, 82), np.uint8)}),
        ("shares", {"commitments": np.zeros((6, 63), np.uint8)}),
        ("masked", {"entries": np.zeros(6, np.uint64)}),
        ("masked", {"entries": np.zeros(7, np.uint32)}),
        ("survivors", {"signature": np.zeros((1, 64), np.uint8)}),
        ("unmask", {"shares": np.zeros((5, 33), np.uint8)}),
        ("unmask", {"shares": np.full((6, 33), 255, np.uint8)}),
        ("masked", {"stage": "keys"}),
        ("masked", {"round": 2}),
    ],
)
def test_malformed_replies_are_refused_and_the_round_goes_on(
    world: World, stage: str, changes: dict[str, Any]
) -> None:
    world.until(stage)
    requests = world.server.requests(stage)
    reply = world.handle(VICTIM, requests[VICTIM])
    with pytest.raises(FederationError):
        world.server.receive(stage, VICTIM, changed(reply, **changes))
    # As if it had dropped out; its own right reply would still be taken.
    for name in world.names[1:]:
        world.server.receive(stage, name, world.handle(name, requests[name]))
    world.server.close(stage)
    rest = ["keys", "shares", "masked", "survivors", "unmask"]
    for later in rest[rest.index(stage) + 1 :]:
        world.step(later)
    kept = world.names[1:] if stage in rest[:3] else world.names
    assert (world.server.sum() == world.expected(kept)).all()


def test_one_bad_key_is_refused_by_the_server_and_the_others_go_on(world: World) -> None:
    requests = world.server.requests("keys")
    terms = world.server.terms
    first = world.handle(world.names[0], requests[world.names[0]])
    world.server.receive("keys", world.names[0], first)
    copied = first.arrays["keys"][0].tobytes()
    for pair, why in ((bytes(64), "small order"), (copied, "two public keys")):
        signature = terms.sign(world.identities["device-05"], "keys", pair)
        arrays = {"keys": as_rows([pair]), "signature": as_rows([signature])}
        with pytest.raises(FederationError, match=why):
            world.server.receive("keys", "device-05", changed(first, **arrays))


def test_a_server_of_another_roster_or_model_gets_no_signature_that_fits(world: World) -> None:
    """Clients told of other terms are to each other as of another round."""
    mallory = Identity.generate("device-05")
    identities = {**world.identities, "device-05": mallory}
    other = World(6, round=2, identities=identities)
    world.start(2)
    for name in world.names[:3]:
        other.clients[name] = world.clients[name]
    with pytest.raises(FederationError, match="signature of its keys"):
        other.step("keys")


def test_a_commitment_tells_shares_apart() -> None:
    world = World(4)
    terms = world.server.terms
    same = commitment(terms, 0, 1, b"share")
    assert same != commitment(terms, 1, 0, b"share") != commitment(terms, 0, 1, b"other")


def test_a_server_with_a_cohort_out_of_the_policy_or_roster_is_not_made(world: World) -> None:
    for cohort in (world.names[:3], [*world.names, "sybil"], [*world.names, VICTIM]):
        with pytest.raises(FederationError):
            SecureServer(POLICY, world.roster, 2, cohort, BROADCAST)
    few = Policy(**{**POLICY.model_dump(), "largest": 5})
    with pytest.raises(FederationError, match="at most 5"):
        SecureServer(few, world.roster, 2, world.names, BROADCAST)


def test_a_refused_update_is_not_kept(world: World) -> None:
    name = "device-00"
    client = SecureClient(world.identities[name], world.roster, POLICY, BROADCAST, Rounds())
    with pytest.raises(FederationError):
        client.contribute(np.full(5, 2.0, np.float32), 1)
    assert client._entries is None


def test_a_mask_key_of_small_order_is_refused_by_clients_too(world: World) -> None:
    """Where the server lets a colluder's pass, whose mask it could compute."""
    world.step("keys")
    for name, request in world.server.requests("shares").items():
        if name == VICTIM:
            keys, signatures = (request.arrays[n].copy() for n in ("keys", "signatures"))
            pair = keys[5, :KEY].tobytes() + bytes(KEY)
            signature = world.server.terms.sign(world.identities["device-05"], "keys", pair)
            keys[5], signatures[5] = as_rows([pair])[0], as_rows([signature])[0]
            request = changed(request, keys=keys, signatures=signatures)
        world.server.receive("shares", name, world.handle(name, request))
    world.server.close("shares")
    with pytest.raises(FederationError, match="device-05's public key is of small order"):
        world.handle(VICTIM, world.server.requests("masked")[VICTIM])


def test_a_stage_is_closed_once(world: World) -> None:
    world.step("keys")
    with pytest.raises(FederationError, match="stage keys is not open, shares is"):
        world.server.close("keys")
