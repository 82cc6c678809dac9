"""What there is to choose from, by hand: all of it, in its order."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pfi.gate.choices import (
    NOTHING,
    Choice,
    GateConfig,
    choices,
    mixing_weights,
    plain_choices,
)
from pfi.gate.trials import divide
from pfi.records import History, Record


def test_all_choices_in_their_order() -> None:
    config = GateConfig(weights=[0.5, 0.0], ks=[2, 0])
    by = {k: Choice(0.5, k, by_likeness=True) for k in (2, 0)}
    plain = [NOTHING, Choice(0.5, 2), Choice(0.0, 2), Choice(0.5, 0), by[2], by[0]]
    assert plain_choices(config) == plain
    unsure = [Choice(c.weight, c.k, c.by_likeness, if_unsure=True) for c in plain[1:]]
    assert choices(config) == plain + unsure
    fixed = config.model_copy(update={"per_question": False})
    assert choices(fixed) == plain_choices(fixed) == plain[:4]
    # NOTHING comes first even where no weight is 0, and once where one is.
    assert plain_choices(GateConfig(weights=[1.0, 1.0], ks=[0], per_question=False)) == [
        NOTHING,
        Choice(1.0, 0),
    ]


def test_weights_that_an_answer_may_ask_for() -> None:
    config = GateConfig(weights=[0.0, 0.8, 0.3], ks=[0])
    assert mixing_weights(config) == pytest.approx([0.2, 0.3, 0.4, 0.6, 0.8])
    assert 0.0 not in mixing_weights(config)
    fixed = config.model_copy(update={"per_question": False})
    assert mixing_weights(fixed) == [0.3, 0.8]
    assert mixing_weights(GateConfig(weights=[0.0], ks=[0])) == []


def test_likeness_counts_in_quarters_of_the_choices_own_weight() -> None:
    by = Choice(0.8, 0, by_likeness=True)
    assert [by.weight_at(x) for x in (0.0, 0.12, 0.13, 0.5, 0.87, 0.88)] == pytest.approx(
        [0, 0, 0.2, 0.4, 0.6, 0.8]
    )
    assert Choice(0.8, 0).weight_at(0.0) == 0.8


def test_settings_are_fixed_and_bounded() -> None:
    config = GateConfig()
    with pytest.raises(ValidationError):
        config.caution = 0.0  # type: ignore[misc]
    for wrong in (
        {"caution": -0.1}, {"weights": []}, {"weights": [1.1]}, {"weights": [-0.1]}, {"ks": [33]},
        {"ks": [-1]}, {"ks": []}, {"held_back": 0.0}, {"held_back": 1.0}, {"least": 0},
        {"most": 0}, {"signal": "luck"}, {"more": 1},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            GateConfig.model_validate(wrong)


@pytest.mark.parametrize(
    ("count", "newest"),
    [(0, 0), (5, 0), (6, 3), (9, 3), (10, 4), (14, 5), (15, 5), (100, 5)],  # at least 3, at most 5
)
def test_how_many_records_are_tried_on(count: int, newest: int) -> None:
    config = GateConfig(held_back=0.35, least=3, most=5)
    history = History("u", [Record(f"r{n}", "t", {}, "x") for n in range(count)])
    older, newer = divide(config, history)
    assert (len(older), len(newer)) == (count - newest, newest)
