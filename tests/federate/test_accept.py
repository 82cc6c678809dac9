"""Acceptance of a round's result on held-out devices, and going back to the last accepted one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon

from pfi.errors import FederationError
from pfi.federate.accept import Acceptance, AcceptConfig

Losses = Mapping[str, float]
RNG = np.random.default_rng(0)
START = {f"d{i}": float(v) for i, v in enumerate(RNG.uniform(0.3, 0.9, 12))}


def shifted(by: float, noise: float = 0.0, seed: int = 1, base: Losses = START) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {d: loss + by + noise * float(rng.standard_normal()) for d, loss in base.items()}


def begin(**settings: float) -> Acceptance[str]:
    return Acceptance(AcceptConfig.model_validate(settings), "start", START)


def giving(losses: Losses) -> Callable[[str], Losses]:
    return lambda state: losses


def test_better_and_slightly_worse_results_are_accepted() -> None:
    accept = begin()
    for round, by in enumerate((-0.05, -0.04, -0.06), 1):
        state, decision = accept.judge(round, f"r{round}", giving(shifted(by, 0.005)))
        assert (state, decision.verdict) == (f"r{round}", "accepted")
        assert accept.last_good == (round, f"r{round}")
    assert [d.round for d in accept.decisions] == [1, 2, 3]


def test_a_worse_result_goes_back_to_the_last_accepted_one() -> None:
    accept = begin()
    accept.judge(1, "r1", giving(shifted(-0.1)))
    worse = shifted(0.0, 0.01)
    state, decision = accept.judge(2, "r2", giving(worse))
    assert (state, decision.verdict, decision.back_to) == ("r1", "rejected", 1)
    differences = np.array([worse[d] - (START[d] - 0.1) for d in sorted(START)]) - 0.02
    smaller = min(
        wilcoxon(differences, alternative="greater").pvalue,
        ttest_1samp(differences, 0, alternative="greater").pvalue,
    )
    assert decision.p == pytest.approx(smaller) and smaller < 0.05
    assert accept.last_good == (1, "r1")
    state, decision = accept.judge(3, "r3", giving(shifted(-0.11)))
    assert (state, decision.accepted) == ("r3", True)


def test_noise_alone_seldom_rejects_and_a_real_rise_seldom_passes() -> None:
    def rejected(by: float) -> int:
        return sum(
            begin().judge(1, "r", giving(shifted(by, 0.05, seed)))[1].verdict == "rejected"
            for seed in range(60)
        )

    # At the tolerance itself each of two tests errs at alpha, far from it none does.
    assert rejected(0.0) <= 2
    assert rejected(0.02) <= 0.10 * 60 + 5
    assert rejected(0.08) >= 56


def test_small_rises_do_not_add_up() -> None:
    accept = begin(patience=9)
    base, verdicts = 0.0, []
    for round in range(1, 6):
        base += 0.015  # each within the tolerance of the one before
        verdicts.append(accept.judge(round, f"r{round}", giving(shifted(base)))[1].verdict)
    assert verdicts == ["accepted", "rejected", "rejected", "rejected", "rejected"]


def test_a_large_rise_needs_no_test() -> None:
    few = dict(list(START.items())[:5])
    settings = {"least": 5, "alpha": 0.001}
    for limit, verdict in ((0.2, "rejected"), (9.0, "accepted")):
        accept = Acceptance(AcceptConfig.model_validate({**settings, "limit": limit}), "s", few)
        # Five devices cannot reach a p of 0.001 by ranks; noise keeps the t-test from it as well.
        losses = {d: loss + by for (d, loss), by in zip(few.items(), (0, 2, 0, 2, 1), strict=True)}
        assert accept.judge(1, "r", giving(losses))[1].verdict == verdict


def test_losses_above_one_are_compared_in_shares() -> None:
    high = {device: 10 * loss + 3 for device, loss in START.items()}
    mean = float(np.mean(list(high.values())))
    for share, verdict in ((0.015, "accepted"), (0.04, "rejected")):
        accept = Acceptance(AcceptConfig(), "s", high)
        losses = shifted(share * mean, base=high)
        assert accept.judge(1, "r", giving(losses))[1].verdict == verdict


def test_a_lying_device_cannot_decide() -> None:
    for lie in (1e8, -1e8, 1e300, float("nan"), float("inf")):
        good = {**shifted(-0.01, 0.002), "d3": lie}
        bad = {**shifted(0.1, 0.002), "d3": lie}
        assert begin().judge(1, "r", giving(good))[1].verdict == "accepted", lie
        assert begin().judge(1, "r", giving(bad))[1].verdict == "rejected", lie


def test_a_broken_adapter_is_rejected() -> None:
    for value in (float("nan"), float("inf")):
        state, decision = begin().judge(1, "r", giving(dict.fromkeys(START, value)))
        assert (state, decision.verdict) == ("start", "rejected")
        assert "not finite" in decision.why
    assert begin().judge(1, "r", giving(dict.fromkeys(START, 1e300)))[1].verdict == "rejected"


def test_too_few_devices_decide_nothing_and_are_not_gone_back_to() -> None:
    accept = begin()
    few = dict(list(shifted(-0.1).items())[:4])
    unknown = {f"new{i}": 0.1 for i in range(9)}
    for round, losses in ((1, few), (2, {**few, **unknown})):
        state, decision = accept.judge(round, f"r{round}", giving(losses))
        assert (state, decision.verdict, decision.devices) == (f"r{round}", "unmeasured", 4)
    state, decision = accept.judge(3, "r3", giving(shifted(0.5)))
    assert (state, decision.back_to) == ("start", 0)
    with pytest.raises(FederationError, match="hold out more devices"):
        Acceptance(AcceptConfig(), "s", few)


def test_rejections_in_a_row_end_the_run() -> None:
    accept = begin(patience=3)
    bad = giving(shifted(0.5))
    accept.judge(1, "r1", bad)
    accept.judge(2, "r2", bad)
    accept.judge(3, "r3", giving(START))
    accept.judge(4, "r4", bad)
    accept.judge(5, "r5", bad)
    with pytest.raises(FederationError, match=r"3 rounds in a row.*round 3") as caught:
        accept.judge(6, "r6", bad)
    assert "robustness.md" in str(caught.value)
    assert len(accept.decisions) == 6  # the last one is on record as well


def test_a_checkpoint_goes_on_as_if_nothing_had_happened() -> None:
    rounds = [-0.1, -0.05, 0.3, -0.12, 0.0, 0.0]
    whole, part = begin(patience=3), begin(patience=3)
    for round, by in enumerate(rounds, 1):
        whole.judge(round, f"r{round}", giving(shifted(by, 0.01, round)))
        values = json.loads(json.dumps(part.values()))
        part = Acceptance.restored(part.config, values, part.last_good[1])
        part.judge(round, f"r{round}", giving(shifted(by, 0.01, round)))
    assert part.decisions == whole.decisions
    assert part.last_good == whole.last_good == (4, "r4")
    with pytest.raises(FederationError):
        Acceptance.restored(part.config, part.values(), "r4").judge(7, "r7", giving(shifted(1)))
    assert replace(whole.decisions[0], round=9) != whole.decisions[0]
