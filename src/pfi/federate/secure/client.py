"""A client's side of a secure sum: Bonawitz et al. (CCS 2017), the variant for active servers.

It shares its two secrets with the others, masks its vector, signs who is left, and then gives for
every other client a share of the one secret or of the other, never of both.
"""

from __future__ import annotations

import json
import math
import secrets
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.message import Message
from pfi.federate.secure import checks, field
from pfi.federate.secure.crypto import KEY_BYTES as KEY
from pfi.federate.secure.crypto import (
    SIGNATURE_BYTES,
    TAG_BYTES,
    add_mask,
    agree,
    derive,
    hash_of,
    public_of,
    seal,
    unseal,
)
from pfi.federate.secure.history import Rounds
from pfi.federate.secure.policy import Policy
from pfi.federate.secure.quantise import quantise
from pfi.federate.secure.roster import Identity, Roster
from pfi.federate.secure.terms import STAGES, Terms, as_bytes, as_rows, request

#: A share of the mask key and one of the seed, as they are sealed for another client.
SEALED_BYTES = 2 * field.SHARE_BYTES + TAG_BYTES


class SecureClient:
    """A device in one round; it answers each stage once and nothing after a refusal.

    Args:
        identity: the device's.
        roster: the pinned long-term keys of all devices.
        policy: the pinned policy.
        broadcast: hex digest of what the device was sent to begin with.
        rounds: which rounds it joined; has to outlive the process.
    """

    def __init__(
        self, identity: Identity, roster: Roster, policy: Policy, broadcast: str, rounds: Rounds
    ) -> None:
        self._identity, self._roster, self._policy = identity, roster, policy
        self._broadcast, self._rounds = broadcast, rounds
        self._next: str | None = STAGES[0]
        self._entries: NDArray[Any] | None = None
        self._direction: list[float] = []

    def contribute(
        self,
        vector: NDArray[np.floating[Any]],
        weight: float,
        *,
        bound: float = math.inf,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Give the update, before the masked vector is asked for.

        Args:
            vector: ``(policy.length,)``, within the policy's clip.
            weight: a whole number of examples, which counts as the policy's heaviest where it is
                more; travels masked, too.
            bound: largest L2 norm of what is sent, rounding included.
            rng: of random rounding under a bound; the system's randomness when None.

        Raises:
            FederationError: it does not fit the policy; nothing was sent then.
        """
        policy = self._policy
        checks.shape(vector.shape, policy.length)
        if bound < math.inf:
            checks.finite(bool(np.isfinite(vector).all()))
            # No longer by this, and an honest update is never refused for one large value.
            vector = np.clip(vector, -policy.clip, policy.clip)
        weight = min(weight, policy.heaviest)
        self._entries = quantise(vector, weight, policy, bound=bound, rng=rng)
        self._direction = self._rounds.direction(policy.federation, vector)

    def handle(self, message: Message) -> Message:
        """Answer the server.

        Raises:
            FederationError: the message is refused; the client then answers nothing more.
        """
        stated = message.values.get("stage")
        try:
            checks.stage(self._next, stated)
            if stated != "keys":
                checks.same_round(self._terms.round, message.values.get("round"))
            reply: Message = getattr(self, f"_{stated}")(message)
        except BaseException:
            self._next = None
            raise
        place = STAGES.index(str(stated)) + 1
        self._next = STAGES[place] if place < len(STAGES) else None
        return reply

    # Stages ---------------------------------------------------------------------------

    def _keys(self, message: Message) -> Message:
        """Two fresh key pairs, signed: one seals shares, one makes masks."""
        self._terms = terms = self._read_terms(message)
        self._me = terms.names.index(self._identity.name)
        self._rounds.join(self._policy.federation, terms.round, terms.broadcast, terms.names)
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._keys_sent = public_of(self._sealing) + public_of(self._masking)
        signature = terms.sign(self._identity, "keys", self._keys_sent)
        return request(
            "keys", terms.round, keys=as_rows([self._keys_sent]), signature=as_rows([signature])
        )

    def _read_terms(self, message: Message) -> Terms:
        """The round's terms, if they are the pinned ones."""
        values = message.values
        try:
            stated = json.loads(str(values["policy"]))
            names = json.loads(str(values["cohort"]))
            number, broadcast = values["round"], values["broadcast"]
            if not (isinstance(stated, dict) and type(number) is int and 0 <= number < 2**53):
                raise ValueError("a value of another type")
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError("the cohort is no list of names")
        except (LookupError, ValueError, RecursionError) as error:
            raise FederationError(
                f"the terms of a round are malformed: {error}", where="secure aggregation"
            ) from error
        checks.policy(json.loads(self._policy.text()), stated)
        checks.broadcast(self._broadcast, str(broadcast))
        checks.cohort_distinct(names)
        checks.cohort_known(names, self._roster)
        checks.cohort_has(self._identity.name, names)
        checks.cohort_min(len(names), self._policy.smallest)
        checks.cohort_max(len(names), self._policy.largest)
        return Terms(self._policy, number, tuple(names), self._roster, self._broadcast)

    def _shares(self, message: Message) -> Message:
        """Shares of the mask key and of a fresh seed, sealed for each other client."""
        terms, me = self._terms, self._me
        self._members = members = terms.read_members(message)
        checks.present(me, members)
        keys = as_bytes(message.array("keys", np.uint8, (len(members), 2 * KEY)))
        signatures = message.array("signatures", np.uint8, (len(members), SIGNATURE_BYTES))
        for number, pair, signature in zip(members, keys, as_bytes(signatures), strict=True):
            terms.check_signature(number, "keys", pair, signature)
        self._public = dict(zip(members, keys, strict=True))
        checks.own_keys(self._keys_sent, self._public[me])
        checks.keys_distinct([part for pair in keys for part in (pair[:KEY], pair[KEY:])])

        points = [number + 1 for number in members]
        self._seed = secrets.token_bytes(KEY)
        of_key = field.split(self._masking.private_bytes_raw(), points, terms.needed)
        of_seed = field.split(self._seed, points, terms.needed)
        sealed, commitments = [], []
        for number, one, other in zip(members, of_key, of_seed, strict=True):
            plain = one + other
            commitments.append(
                commitment(terms, me, number, one) + commitment(terms, me, number, other)
            )
            if number == me:
                self._held = {me: plain}
                sealed.append(bytes(SEALED_BYTES))
            else:
                bound = terms.bound("shares", me, number)
                sealed.append(seal(self._sealing_key(number, bound), plain, bound))
        return request(
            "shares", terms.round, sealed=as_rows(sealed), commitments=as_rows(commitments)
        )

    def _sealing_key(self, other: int, bound: bytes) -> bytes:
        key = agree(self._sealing, self._public[other][:KEY], self._terms.digest, b"seal" + bound)
        checks.key_usable(key, self._terms.names[other])
        assert key is not None
        return key

    def _masked(self, message: Message) -> Message:
        """The vector under its own mask and one with each other client who is left."""
        if self._entries is None:
            raise FederationError("the update was not given in time", where="secure aggregation")
        terms, me = self._terms, self._me
        members = terms.read_members(message, self._members)
        checks.present(me, members)
        sealed = as_bytes(message.array("sealed", np.uint8, (len(members), SEALED_BYTES)))
        policy, names = self._policy, terms.names
        self._rounds.send(
            policy.federation, terms.broadcast, names, self._direction, policy.smallest
        )
        entries, self._entries = self._entries, None
        add_mask(entries, derive(self._seed, terms.digest, terms.seed_key(me)))
        for number, text in zip(members, sealed, strict=True):
            if number == me:
                continue
            bound = terms.bound("shares", number, me)
            plain = unseal(self._sealing_key(number, bound), text, bound)
            checks.opened(plain, terms.names[number])
            assert plain is not None
            self._held[number] = plain
            key = mask_key(terms, self._masking, self._public[number][KEY:], me, number)
            checks.key_usable(key, terms.names[number])
            assert key is not None
            add_mask(entries, key, negative=me > number)
        self._members = members
        # Nothing after this needs them, so nothing after this can give them away.
        del self._sealing, self._masking, self._seed
        return request("masked", terms.round, entries=entries)

    def _survivors(self, message: Message) -> Message:
        """A signature under who is left: the one set for which this client will unmask."""
        self._left = self._terms.read_members(message, self._members)
        checks.present(self._me, self._left)
        policy, names = self._policy, [self._terms.names[number] for number in self._left]
        self._rounds.sign(policy.federation, self._terms.broadcast, names, policy.smallest)
        signature = self._terms.sign(self._identity, "survivors", agreed(self._members, self._left))
        return request("survivors", self._terms.round, signature=as_rows([signature]))

    def _unmask(self, message: Message) -> Message:
        """A share of the seed of each client who is left, of the mask key of each who is not."""
        terms = self._terms
        signers = terms.read_members(message, self._left)
        signatures = message.array("signatures", np.uint8, (len(signers), SIGNATURE_BYTES))
        claim = agreed(self._members, self._left)
        for number, signature in zip(signers, as_bytes(signatures), strict=True):
            terms.check_signature(number, "survivors", claim, signature)
        left, size = set(self._left), field.SHARE_BYTES
        shares = [
            self._held[number][size:] if number in left else self._held[number][:size]
            for number in self._members
        ]
        self._held = {}
        return request("unmask", terms.round, shares=as_rows(shares))


def agreed(before: list[int], left: list[int]) -> bytes:
    """Who shared secrets and who of them sent a masked vector, as it is signed."""
    return hash_of(np.array(before, "<i4").tobytes(), np.array(left, "<i4").tobytes())


def commitment(terms: Terms, dealer: int, holder: int, share: bytes) -> bytes:
    """What the server checks a returned share with; a share is random, so it tells nothing."""
    return hash_of(terms.bound("commitment", dealer, holder), share)


def mask_key(
    terms: Terms, private: X25519PrivateKey, public: bytes, me: int, other: int
) -> bytes | None:
    """The key of the mask that two clients have in common; None for a key of small order."""
    bound = terms.bound("mask", min(me, other), max(me, other))
    return agree(private, public, terms.digest, b"mask" + bound)
