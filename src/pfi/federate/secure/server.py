"""The server's side of a secure sum: it passes keys and shares on, and learns the sum only.

Bonawitz et al. (CCS 2017), the variant for active servers.  Masked vectors are added as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from pfi.errors import FederationError
from pfi.federate.message import Message, Value
from pfi.federate.secure import checks, field
from pfi.federate.secure.client import SEALED_BYTES, agreed, commitment, mask_key
from pfi.federate.secure.crypto import KEY_BYTES as KEY
from pfi.federate.secure.crypto import SIGNATURE_BYTES, add_mask, agree, derive, public_of
from pfi.federate.secure.policy import Policy
from pfi.federate.secure.quantise import signed, values
from pfi.federate.secure.roster import Roster
from pfi.federate.secure.terms import STAGES, Terms, as_bytes, as_rows, request


class SecureServer:
    """One secure sum.

    For each stage: ``requests``, then ``receive`` for each reply, then ``close``; at last ``sum``.

    Args:
        policy: the one that the clients pinned.
        roster: the long-term keys.
        round: its number, higher than any used before in the federation.
        cohort: who is asked.
        broadcast: hex digest of what the clients were sent to begin with.
    """

    def __init__(
        self, policy: Policy, roster: Roster, round: int, cohort: Sequence[str], broadcast: str
    ) -> None:
        names = tuple(sorted(cohort))
        checks.cohort_distinct(names)
        checks.cohort_known(names, roster)
        checks.cohort_min(len(names), policy.smallest)
        checks.cohort_max(len(names), policy.largest)
        self.terms = Terms(policy, round, names, roster, broadcast)
        self._number = {name: number for number, name in enumerate(names)}
        self._open: str | None = STAGES[0]
        self._asked = list(range(len(names)))
        #: What was taken, by stage and client.
        self._replies: dict[str, dict[int, Any]] = {stage: {} for stage in STAGES}
        self._total: NDArray[Any] = np.zeros(policy.length + 1, policy.dtype)
        self._done = False

    def requests(self, stage: str) -> dict[str, Message]:
        """What each client is sent at the open stage."""
        checks.open_stage(self._open, stage)
        make: Callable[[], dict[int, Message]] = getattr(self, f"_ask_{stage}")
        return {self.terms.names[number]: message for number, message in make().items()}

    def receive(self, stage: str, client: str, message: Message) -> None:
        """Take a client's reply.

        Raises:
            FederationError: it is refused, and the client counts as dropped out unless it sends
                another in time.
        """
        checks.open_stage(self._open, stage)
        checks.stage(stage, message.values.get("stage"))
        checks.same_round(self.terms.round, message.values.get("round"))
        checks.awaited(client, [self.terms.names[number] for number in self._asked])
        checks.once(client, [self.terms.names[number] for number in self._replies[stage]])
        number = self._number[client]
        self._replies[stage][number] = getattr(self, f"_take_{stage}")(number, message)

    def close(self, stage: str) -> None:
        """Go on with who has replied.

        Raises:
            FederationError: fewer replied than are needed; the round ends without a sum.
        """
        checks.open_stage(self._open, stage)
        self._open = None
        checks.enough(len(self._replies[stage]), self.terms.needed)
        self._asked = self._left(stage)
        if stage == STAGES[-1]:
            self._restore()
            self._done = True
        else:
            self._open = STAGES[STAGES.index(stage) + 1]

    def survivors(self) -> list[str]:
        """Whose updates are in the sum, known once their masked vectors are."""
        return [self.terms.names[number] for number in self._left("masked")]

    def sum(self) -> NDArray[np.int64]:
        """The exact sum of the clients' entries: ``(length + 1,)``, the sum of weights last.

        Raises:
            FederationError: not all stages were closed.
        """
        if not self._done:
            raise FederationError("there is no sum", where="secure aggregation")
        return signed(self._total)

    def weight(self) -> int:
        """The sum of weights."""
        return int(self.sum()[-1])

    def total(self) -> NDArray[np.float64]:
        """The weighted sum of the updates, ``(length,)``."""
        return values(self.sum(), self.terms.policy)

    def mean(self) -> NDArray[np.float64]:
        """The weighted mean of the updates, ``(length,)``.

        Raises:
            FederationError: it is beyond what clients may send: one of them did not keep to it.
        """
        entries, policy = self.sum(), self.terms.policy
        largest = int(np.abs(entries[:-1]).max(initial=0))
        rounding = len(self.survivors()) / 2
        checks.possible_values(largest, self.weight() * policy.limit / policy.step + rounding)
        return self.total() / self.weight()

    def _left(self, stage: str) -> list[int]:
        """Who replied at a stage, in order."""
        return sorted(self._replies[stage])

    # What is asked ----------------------------------------------------------------------

    def _ask_keys(self) -> dict[int, Message]:
        terms = self.terms
        stated: dict[str, Value] = {
            "stage": "keys",
            "round": terms.round,
            "broadcast": terms.broadcast,
            "policy": terms.policy.text(),
            "cohort": json.dumps(terms.names),
        }
        return dict.fromkeys(self._asked, Message(values=stated))

    def _ask_shares(self) -> dict[int, Message]:
        keys, signatures = zip(*(self._replies["keys"][n] for n in self._asked), strict=True)
        return self._same(keys=as_rows(keys), signatures=as_rows(signatures))

    def _ask_masked(self) -> dict[int, Message]:
        # By dealer and receiver, the receivers being all who sent keys.
        sealed = np.stack([self._replies["shares"][dealer][0] for dealer in self._asked])
        place = {number: row for row, number in enumerate(self._left("keys"))}
        return {number: self._request(sealed=sealed[:, place[number]]) for number in self._asked}

    def _ask_survivors(self) -> dict[int, Message]:
        return self._same()

    def _ask_unmask(self) -> dict[int, Message]:
        signatures = [self._replies["survivors"][number] for number in self._asked]
        return self._same(signatures=as_rows(signatures))

    def _same(self, **arrays: NDArray[Any]) -> dict[int, Message]:
        return dict.fromkeys(self._asked, self._request(**arrays))

    def _request(self, **arrays: NDArray[Any]) -> Message:
        members = np.array(self._asked, np.int32)
        return request(self._open or "", self.terms.round, members=members, **arrays)

    # What is taken ----------------------------------------------------------------------

    def _take_keys(self, number: int, message: Message) -> tuple[bytes, bytes]:
        keys = message.array("keys", np.uint8, (1, 2 * KEY)).tobytes()
        signature = message.array("signature", np.uint8, (1, SIGNATURE_BYTES)).tobytes()
        self.terms.check_signature(number, "keys", keys, signature)
        # Refused here, as one client's bad keys would make all others refuse the round.
        for part in (keys[:KEY], keys[KEY:]):
            usable = agree(X25519PrivateKey.generate(), part, b"", b"")
            checks.key_usable(usable, self.terms.names[number])
        pairs = [keys, *(pair for pair, _ in self._replies["keys"].values())]
        checks.keys_distinct([part for pair in pairs for part in (pair[:KEY], pair[KEY:])])
        return keys, signature

    def _take_shares(self, number: int, message: Message) -> tuple[NDArray[Any], NDArray[Any]]:
        count = len(self._asked)
        sealed = message.array("sealed", np.uint8, (count, SEALED_BYTES))
        return sealed, message.array("commitments", np.uint8, (count, 2 * KEY))

    def _take_masked(self, number: int, message: Message) -> None:
        policy = self.terms.policy
        self._total += message.array("entries", policy.dtype, (policy.length + 1,))

    def _take_survivors(self, number: int, message: Message) -> bytes:
        signature = message.array("signature", np.uint8, (1, SIGNATURE_BYTES)).tobytes()
        claim = agreed(self._left("shares"), self._asked)
        self.terms.check_signature(number, "survivors", claim, signature)
        return signature

    def _take_unmask(self, number: int, message: Message) -> dict[int, bytes]:
        dealers = self._left("shares")
        rows = as_bytes(message.array("shares", np.uint8, (len(dealers), field.SHARE_BYTES)))
        row, left = self._left("keys").index(number), set(self._left("masked"))
        for dealer, share in zip(dealers, rows, strict=True):
            both = self._replies["shares"][dealer][1][row].tobytes()
            expected = both[KEY:] if dealer in left else both[:KEY]
            ok = commitment(self.terms, dealer, number, share) == expected
            checks.committed(ok, self.terms.names[number])
        return dict(zip(dealers, rows, strict=True))

    # The sum ----------------------------------------------------------------------------

    def _restore(self) -> None:
        """Take off the masks: own ones of who is left, and those with who is not.

        Raises:
            FederationError: shares restore no secret, or it cannot be a sum of these clients.
        """
        terms, total = self.terms, self._total
        shares = self._replies["unmask"]
        holders = self._left("unmask")[: terms.needed]
        weights = field.weights([number + 1 for number in holders])
        masking = {number: pair[KEY:] for number, (pair, _) in self._replies["keys"].items()}
        left = self._left("masked")
        for dealer in self._left("shares"):
            try:
                secret = field.combine([shares[number][dealer] for number in holders], weights)
            except FederationError as error:
                what = f"client {terms.names[dealer]}: {error.what}"
                raise FederationError(what, where="secure aggregation") from error
            if dealer in left:
                key = derive(secret, terms.digest, terms.seed_key(dealer))
                add_mask(total, key, negative=True)
                continue
            private = X25519PrivateKey.from_private_bytes(secret)
            checks.restored(public_of(private), masking[dealer], terms.names[dealer])
            for other in left:
                common = mask_key(terms, private, masking[other], dealer, other)
                assert common is not None
                # The other has added it if its number is the lower one.
                add_mask(total, common, negative=other < dealer)
        weight = int(signed(total)[-1])
        checks.possible_weight(weight, len(left), terms.policy.heaviest)
