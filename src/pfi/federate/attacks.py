"""What bad clients may send, for audits and benchmarks of robust rules; each names its paper.

The attackers see all honest updates of the round and act together, which is the worst case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pfi.tasks import Example

Updates = NDArray[np.float32]
#: Takes the honest updates ``(n, width)``, the number of bad clients and a generator; gives the
#: bad updates ``(bad, their width)``.
Attack = Callable[[Updates, int, np.random.Generator], Updates]


def _repeated(update: NDArray[np.floating], bad: int) -> Updates:
    return np.repeat(update.astype(np.float32)[None], bad, axis=0)


def sign_flip(
    honest: Updates, bad: int, rng: np.random.Generator, *, strength: float = 4.0
) -> Updates:
    """The honest mean turned round and scaled (Li et al., 1811.03761)."""
    return _repeated(-strength * honest.mean(axis=0, dtype=np.float64), bad)


def gaussian(
    honest: Updates, bad: int, rng: np.random.Generator, *, strength: float = 10.0
) -> Updates:
    """Noise with ``strength`` times the median honest norm (Blanchard et al., 1703.02757)."""
    norm = float(np.median(np.linalg.norm(honest, axis=1)))
    noise = rng.standard_normal((bad, honest.shape[1]))
    return (strength * norm / np.sqrt(honest.shape[1]) * noise).astype(np.float32)


def inner_product(
    honest: Updates, bad: int, rng: np.random.Generator, *, strength: float | None = None
) -> Updates:
    """IPM (Xie et al., 1903.03936): a turned mean that makes the plain mean point backwards.

    The smallest strength that does is ``n / bad``; by default it is a tenth larger.  The same
    vector as in ``sign_flip``, with another aim.
    """
    if strength is None:
        strength = 1.1 * len(honest) / max(1, bad)
    return sign_flip(honest, bad, rng, strength=strength)


def little_is_enough(
    honest: Updates, bad: int, rng: np.random.Generator, *, strength: float | None = None
) -> Updates:
    """ALIE (Baruch et al., 1902.06156): a shift of each coordinate that hides in its spread.

    By default as many standard deviations as leave enough honest clients farther out than the
    bad ones, so that these seem to be the majority.
    """
    if strength is None:
        total = len(honest) + bad
        needed = total // 2 + 1 - bad
        share = (len(honest) - needed) / len(honest)
        strength = NormalDist().inv_cdf(min(max(share, 1e-3), 1 - 1e-3))
    mean, spread = honest.mean(axis=0, dtype=np.float64), honest.std(axis=0, dtype=np.float64)
    return _repeated(mean - strength * spread, bad)


def hidden_flip(
    honest: Updates, bad: int, rng: np.random.Generator, *, strength: float | None = None
) -> Updates:
    """A turned mean within honest updates as they differ: of the same length, in two camps.

    Ours, against rules that look for what is too long, too alike or in one direction.  The camps
    lie on both sides of the turned mean, along the direction in which honest updates differ most.

    Args:
        honest: ``(n, width)``.
        bad: how many send it.
        rng: not used.
        strength: length of the turned mean, as a multiple of the honest one's; by default half
            of the square of an update's length goes into it.
    """
    mean = honest.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    norm = float(np.median(np.linalg.norm(honest, axis=1)))
    part = norm / np.sqrt(2.0) if strength is None else min(strength * length, norm)
    centred = honest - mean
    aside = np.linalg.eigh(centred @ centred.T)[1][:, -1] @ centred
    aside *= np.sqrt(norm**2 - part**2) / max(float(np.linalg.norm(aside)), 1e-300)
    turned = -part / max(length, 1e-300) * mean
    sides = np.where(np.arange(bad) % 2, 1.0, -1.0)[:, None]
    return (turned + sides * aside).astype(np.float32)


def mimic(honest: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """Copies of one honest update, so that it outweighs others (Karimireddy et al., 2006.09365).

    It is the one farthest along the direction in which honest updates differ most.
    """
    centred = honest - honest.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    # The last eigenvector of the products holds each update's place along that direction.
    return _repeated(honest[int(np.argmax(np.abs(vectors[:, -1])))], bad)


def scaling(
    honest: Updates, bad: int, rng: np.random.Generator, *, target: Updates | None = None
) -> Updates:
    """Model replacement (Bagdasaryan et al., 1807.00459): the plain mean becomes ``target``.

    By default the target is the honest mean turned round, ten times as long.

    Args:
        honest: ``(n, width)``.
        bad: how many send it.
        rng: not used.
        target: ``(width,)``, what the attacker wants the aggregate to be.
    """
    mean = honest.mean(axis=0, dtype=np.float64)
    wanted = -10.0 * mean if target is None else target
    total = len(honest) + bad
    return _repeated((total * wanted - len(honest) * mean) / max(1, bad), bad)


def not_a_number(honest: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """An honest-looking update with a single NaN."""
    updates = _repeated(honest.mean(axis=0, dtype=np.float64), bad)
    updates[np.arange(bad), rng.integers(honest.shape[1], size=bad)] = np.nan
    return updates


def wrong_rank(honest: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """Updates as long as those of an adapter of half the rank."""
    return _repeated(honest.mean(axis=0, dtype=np.float64)[: max(1, honest.shape[1] // 2)], bad)


#: Attacks on updates by name; `label_flip` is one on data.
ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "sign-flip": sign_flip,
        "gaussian": gaussian,
        "ipm": inner_product,
        "alie": little_is_enough,
        "hidden-flip": hidden_flip,
        "mimic": mimic,
        "scaling": scaling,
        "nan": not_a_number,
        "wrong-rank": wrong_rank,
    }
)


def strongest(
    honest: Updates,
    bad: int,
    rng: np.random.Generator,
    rule: Callable[[Updates], NDArray[np.floating]],
    *,
    strengths: Sequence[float] = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0),
) -> Updates:
    """The worst of `ipm`, `alie` and `hidden-flip` for a rule that is known (as in 2302.01772).

    Of all strengths it is the one that moves the result farthest from the honest mean.

    Args:
        honest: ``(n, width)``.
        bad: how many bad clients there are.
        rng: for the attacks.
        rule: makes ``(width,)`` of ``(n + bad, width)``.
        strengths: those tried.
    """
    mean = honest.mean(axis=0, dtype=np.float64)
    best, worst = None, -np.inf
    for attack in (inner_product, little_is_enough, hidden_flip):
        for strength in strengths:
            updates = attack(honest, bad, rng, strength=strength)
            moved = rule(np.concatenate([honest, updates])) - mean
            away = float(np.linalg.norm(moved))
            if away > worst:
                best, worst = updates, away
    assert best is not None
    return best


def label_flip(examples: Sequence[Example], labels: Sequence[str]) -> list[Example]:
    """Examples whose target is the label at the other end (Tolpegin et al., 2007.08432).

    Targets that are no label, as free text, are passed on to the next example.

    Args:
        examples: of a bad client.
        labels: the task's, in its order.
    """
    last = len(labels) - 1
    turned = {label: labels[last - place] for place, label in enumerate(labels)}
    if last % 2 == 0:  # the label in the middle would stay
        turned[labels[last // 2]] = labels[0]
    return [
        replace(example, target=turned.get(example.target, examples[place - 1].target))
        for place, example in enumerate(examples)
    ]
