"""Everything that is refused, one condition each: tests take each away and see its attack succeed.

All raise FederationError.  The stages are those of Bonawitz et al. (CCS 2017, eprint 2017/281).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfi.errors import FederationError


def _refuse(refused: bool, what: str, fix: str | None = None) -> None:
    if refused:
        raise FederationError(what, where="secure aggregation", fix=fix)


# What a client refuses: the terms of a round -------------------------------------------


def policy(pinned: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """The server states the policy that the client pinned."""
    unlike = [name for name in {**pinned, **stated} if pinned.get(name) != stated.get(name)]
    listed = ", ".join(f"{n} {stated.get(n)!r:.40} not {pinned.get(n)!r}" for n in sorted(unlike))
    _refuse(bool(unlike), f"the server states another policy: {listed}", "give both the same file")


def fresh(round: int, last: int) -> None:
    """A device takes part in no round twice, nor in one older than its last."""
    _refuse(round <= last, f"round {round} is not newer than round {last}, already joined")


def not_ahead(round: int, latest: float) -> None:
    """A round is not numbered by a clock that is far ahead: all later ones would be refused."""
    _refuse(round > latest, f"round {round} is numbered by a clock that is a day ahead or more")


def same_cohort(same: bool) -> None:
    """One broadcast is summed with one cohort: two sums of it may differ in one client's update."""
    _refuse(not same, "this broadcast was answered with another cohort")


def same_survivors(same: bool) -> None:
    """A round that is repeated has the same clients in its sum, which then tells nothing new."""
    _refuse(not same, "this broadcast was summed with other clients")


def sets_apart(differ: int, fewest: int) -> None:
    """An update that was sent before is in the same sum again, or in one with many others.

    A difference of two such sums tells the updates of those that are in one of them only.
    """
    _refuse(
        0 < differ < fewest,
        f"almost this update was in a sum of other clients, and {differ} differ, not {fewest}",
        "wait for the clients of the last round, or for a change in what is learnt",
    )


def broadcast(expected: str, stated: str) -> None:
    """All clients began with the same model and settings (2111.07380)."""
    _refuse(expected != stated, "the others were sent another broadcast than this client")


def cohort_min(size: int, smallest: int) -> None:
    """Enough clients are asked for each to be hidden among."""
    _refuse(size < smallest, f"{size} clients are asked, at least {smallest} must be")


def cohort_max(size: int, largest: int) -> None:
    """The sum of so many cannot overflow."""
    _refuse(size > largest, f"{size} clients are asked, at most {largest} may be")


def cohort_distinct(names: Sequence[str]) -> None:
    """No client is listed twice, and the order is the agreed one."""
    _refuse(any(a >= b for a, b in pairwise(names)), "a client is listed twice")


def cohort_known(names: Collection[str], roster: Collection[str]) -> None:
    """All of the cohort are in the roster."""
    unknown = sorted(set(names) - set(roster))
    _refuse(
        bool(unknown),
        f"not in the roster: {', '.join(map(repr, unknown[:5]))}",
        "update the roster",
    )


def cohort_has(name: str, names: Collection[str]) -> None:
    """The client itself is in the cohort."""
    _refuse(name not in names, f"client {name} is not in the cohort it is asked with")


# What a client refuses: the stages -----------------------------------------------------


def stage(expected: str | None, stated: object) -> None:
    """Stages come in their order, each once; nothing comes after a refusal or the end."""
    wanted = f"not {expected}" if expected else "and nothing is expected any more"
    _refuse(expected is None or stated != expected, f"stage {stated!r:.40} is asked, {wanted}")


def same_round(expected: int, stated: object) -> None:
    """The message is of the round that was joined."""
    _refuse(stated != expected, f"a message of round {stated!r:.40}, not {expected}")


def members(numbers: NDArray[np.int32], size: int) -> None:
    """Clients are numbered within the cohort, in rising order, none twice."""
    rising = numbers.ndim == 1 and bool((np.diff(numbers) > 0).all())
    inside = bool(((numbers >= 0) & (numbers < size)).all())
    _refuse(not (rising and inside), "a list of clients is not rising or not of the cohort")


def enough(count: int, threshold: int) -> None:
    """So many are left that the sum may be known."""
    _refuse(count < threshold, f"{count} clients are left, {threshold} are needed")


def left(now: Collection[int], before: Collection[int]) -> None:
    """Who is left was there before."""
    _refuse(not set(now) <= set(before), "clients are listed who had dropped out before")


def present(number: int, now: Collection[int]) -> None:
    """A client that is asked is among those who are left."""
    _refuse(number not in now, "a client is asked that is not among those left")


def signed(valid: bool, name: str, what: str) -> None:
    """A client's own long-term key signed this for this round."""
    _refuse(not valid, f"client {name}'s signature of its {what} is not valid in this round")


def own_keys(mine: bytes, stated: bytes) -> None:
    """The client's own keys come back as it sent them."""
    _refuse(mine != stated, "the server replaced this client's own keys")


def keys_distinct(keys: Sequence[bytes]) -> None:
    """No two public keys are the same, of one client or of two."""
    _refuse(len(set(keys)) != len(keys), "two public keys are the same")


def key_usable(key: bytes | None, name: str) -> None:
    """A public key is not of small order, with which every agreement gives zero."""
    _refuse(key is None, f"client {name}'s public key is of small order")


def opened(plain: bytes | None, name: str) -> None:
    """Sealed shares are the sender's, for this client and this round, and unchanged."""
    _refuse(plain is None, f"the shares from client {name} were changed, swapped or replayed")


# What cannot be shared, restored or put into the sum -----------------------------------


def points(points: Sequence[int], prime: int) -> None:
    """Shares lie at distinct points other than zero, where the secret is."""
    reduced = {point % prime for point in points}
    _refuse(len(reduced) != len(points) or 0 in reduced, "shares at zero or twice at one point")


def element(value: int, prime: int) -> None:
    """A share is an element of the field."""
    _refuse(value >= prime, "a share is no element of the field")


def secret(value: int, limit: int) -> None:
    """What shares restore is of the size of a secret."""
    _refuse(value >= limit, "shares do not belong to one secret")


def shape(actual: tuple[int, ...], length: int) -> None:
    """The vector has the policy's length."""
    _refuse(actual != (length,), f"a vector of shape {actual}, the policy's is ({length},)")


def finite(ok: bool) -> None:
    """Values are numbers."""
    _refuse(not ok, "a vector has values that are not finite")


def in_range(largest: float, limit: float) -> None:
    """No value is larger than the policy allows, so that the sum cannot overflow."""
    _refuse(
        largest > limit,
        # Without the value: the server is told why a client cannot take part.
        f"a value is out of the policy's range of {limit:.6g}",
        "clip the update, or pin a policy with a larger range",
    )


def weight(value: float, max_weight: int) -> None:
    """A weight is a whole number up to the policy's heaviest, so that the sum cannot overflow."""
    ok = 1 <= value <= max_weight and int(value) == value
    _refuse(not ok, f"a weight of {value!r} is not a whole number from 1 to {max_weight}")


# What the server refuses ---------------------------------------------------------------


def open_stage(current: str | None, named: str) -> None:
    """Replies are to the stage that is open."""
    _refuse(current != named, f"stage {named} is not open" + (f", {current} is" * bool(current)))


def awaited(name: str, asked: Collection[str]) -> None:
    """Who replies was asked."""
    _refuse(name not in asked, f"client {name} was not asked")


def once(name: str, answered: Collection[str]) -> None:
    """A client replies once."""
    _refuse(name in answered, f"client {name} replied twice")


def committed(ok: bool, name: str) -> None:
    """A share is the one that its dealer made for whoever returns it."""
    _refuse(not ok, f"client {name} returned a share that is not the one it was given")


def possible_weight(weight: int, clients: int, heaviest: int) -> None:
    """A sum of weights is one of clients that each weigh at least 1 and at most the heaviest.

    A client that masks another number could make the sum zero, or any other client's weight
    nothing beside its own.
    """
    _refuse(
        not clients <= weight <= clients * heaviest,
        f"a sum of weights of {weight} is not one of {clients} clients of 1 to {heaviest}",
    )


def possible_values(largest: int, limit: float) -> None:
    """No value of a sum is beyond what its clients' clipped values can come to."""
    _refuse(largest > limit, "a sum has values beyond what its clients may send")


def restored(key: bytes, public: bytes, name: str) -> None:
    """A restored private key is that of the public one."""
    _refuse(key != public, f"the shares of client {name}'s key restore another key")
