"""The report's section on federated shared adapters: its figures are those of the events and of
metrics.json, and damaged events break nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
from test_report import EVIL, ONE, Page, page_of, study, write_run
from test_report_augment import plots_of, rows, with_arms

from pfi.evaluate.report.data import in_order
from pfi.evaluate.report.federated import _LOOKS, Curve, reach_plot, read_rounds

TASK, ARM = "LaMP_3", "shared-fed:fedex"


def round_of(number: int, **changes: Any) -> dict[str, Any]:
    """An event as a study logs it; keys can be changed."""
    return {
        "event": "round",
        "time": 1.5,
        "task": TASK,
        "arm": ARM,
        "round": number,
        "asked": 4,
        "clients": 3,
        "failed": 1,
        "bytes_down": 4000,
        "bytes_up": 1200,
        "loss": 2.0 - number / 10,
        "seconds": 0.5,
        "kept": True,
        **changes,
    }


def log(rounds: int = 3, **changes: Any) -> list[dict[str, Any]]:
    return [round_of(number, **changes) for number in range(1, rounds + 1)]


def federated(users: int = 12) -> dict[str, Any]:
    """Figures with arms over a federated adapter, half of whose users are worse by 0.1."""
    metrics = study(users=users, arms=("shared", "rag"), tasks=(TASK,))
    metrics = with_arms(metrics, **{ARM: "shared", f"{ARM}_rag@1": "rag"})
    cell = metrics["arms"][ARM][TASK]
    cell["gain"] = cell["gain_over_central"] = {"mean": -0.05, "ci95": [-0.08, -0.02]}
    for i in range(users // 2):
        cell["users"][f"u{i}"]["score"] += 0.1  # an error
    cell["worst_decile"] = 0.9
    metrics["arms"][f"{ARM}+rag@1"][TASK]["gain_over_central"] = None
    return metrics


def table(page: Page, name: str) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in row] for row in rows(page, name)]


# What it took ---------------------------------------------------------------------------


def test_sums_are_those_of_the_rounds(tmp_path: Path) -> None:
    events = [
        *log(2, epsilon=1.25),
        round_of(3, asked=8, bytes_down=9000, bytes_up=1_000_000, failed=0, loss=None, epsilon=2.5),
        *log(1, task="LaMP_1", arm="shared-fed:flora", loss=None),
    ]
    page = page_of(write_run(tmp_path, study(4, ("shared",), ("LaMP_1", TASK)), events))
    assert table(page, "rounds") == [
        ["Citation identification flora", "1", "4.0", "1", "1,000", "300", "0.01", "–", "–"],
        ["Review rating fedex", "3", "5.3", "2", "1,062", "62,650", "1.02", "1.800", "2.50"],
    ]


def test_of_a_rounds_events_the_last_counts_and_order_does_not(tmp_path: Path) -> None:
    events = [round_of(2), round_of(1, bytes_up=9), round_of(1), round_of(2, loss=1.5)]
    found, skipped = read_rounds(write_run(tmp_path, None, events) / "events.jsonl")
    assert skipped == 0 and list(found) == [(TASK, ARM)]
    rounds = found[TASK, ARM]
    assert [number for number, _ in rounds.ordered] == [1, 2]
    assert (rounds.loss, rounds.total("up"), rounds.each("up")) == (1.5, 2400, 300)
    assert rounds.reached()["megabytes, all clients"] == pytest.approx([0.0052, 0.0104])


def test_without_such_events_there_is_no_section(tmp_path: Path) -> None:
    events = [
        {"event": "answered", "arm": "rag", "task": "LaMP_1", "user": "u",
         "answers": [{"id": "q", "prompt": '"round"', "answer": "round"}]},
    ]  # fmt: skip
    page = page_of(write_run(tmp_path, study(3, ("shared",), ONE), events))
    assert 'id="federation"' not in page.source
    assert read_rounds(tmp_path / "none.jsonl") == ({}, 0)


def test_a_run_killed_before_its_results_shows_its_rounds(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, None, log(2)))
    assert table(page, "rounds")[0][:2] == ["Review rating fedex", "2"]
    assert 'id="gaps"' not in page.source
    assert plots_of(page, "held-out loss against rounds")


# Against central training ---------------------------------------------------------------


def test_the_gap_is_that_of_the_figures_turned(tmp_path: Path) -> None:
    metrics = federated()
    page = page_of(write_run(tmp_path, metrics, log()))
    own, memory = table(page, "gaps")
    cells = {arm: tasks[TASK] for arm, tasks in metrics["arms"].items()}

    def spread(arm: str) -> str:
        return f"{pstdev(user['score'] for user in cells[arm]['users'].values()):.3f}"

    def score(arm: str) -> str:
        mae = cells[arm]["metrics"]["mae"]
        return f"{mae['mean']:.3f} [{mae['ci95'][0]:.3f}, {mae['ci95'][1]:.3f}]"

    assert own == [
        f"Review rating {ARM}", score("shared"), score("shared"), "+0.050 [+0.020, +0.080] ▼",
        "50 %", f"0.900 {cells['shared']['worst_decile']:.3f}",
        f"{spread(ARM)} {spread('shared')}",
    ]  # fmt: skip
    # Of an arm without a gain over the central one only its own figures are shown.
    assert memory[0] == f"Review rating {ARM}+rag@1" and memory[2:5] == ["–", "–", "–"]
    assert memory[5].endswith(" –") and memory[6] == f"{spread('rag')} –"


@pytest.mark.parametrize(
    ("ends", "mark"), [([0.01, 0.02], "▲"), ([-0.02, -0.01], "▼"), ([-0.01, 0.02], "")]
)
def test_marks_say_what_is_beyond_chance(tmp_path: Path, ends: list[float], mark: str) -> None:
    metrics = federated()
    gain = {"mean": sum(ends) / 2, "ci95": ends}
    metrics["arms"][ARM][TASK]["gain_over_central"] = gain
    gap = table(page_of(write_run(tmp_path, metrics, log())), "gaps")[0][3]
    assert gap.endswith(mark or "]") and gap.startswith("−" if ends[0] > 0 else "")


def test_where_all_rests_on_it_the_arms_over_it_are_shown(tmp_path: Path) -> None:
    metrics = with_arms(study(6, ("shared", "rag"), (TASK,)), **{ARM: "shared"})
    for how, arms in (("fed:fedex", ["shared", "rag"]), ("central", []), ("[1]", [])):
        folder = tmp_path / how
        folder.mkdir()
        page = page_of(write_run(folder, metrics, log(), f"shared_how: {how}\n"))
        found = table(page, "gaps")
        assert [row[0] for row in found] == [f"Review rating {arm}" for arm in [ARM, *arms]]
        # The arm that is called shared was not learnt centrally, as far as the figures say.
        assert all(row[2:5] == ["–", "–", "–"] for row in found)
        assert all(row[5].endswith(" –") for row in found)


def test_arms_stand_behind_those_with_a_central_adapter() -> None:
    arms = ["personal", "shared-fed:b+rag@2", "rag-bm25", "shared-fed:b", "rag@4", "shared-fed:a",
            "rag", "shared", "shared-fed:b+rag"]  # fmt: skip
    assert in_order(arms) == [
        "shared", "shared-fed:b", "shared-fed:a", "rag", "rag@4", "shared-fed:b+rag",
        "shared-fed:b+rag@2", "rag-bm25", "personal",
    ]  # fmt: skip


# Plots ----------------------------------------------------------------------------------


def test_plots_show_loss_and_score_against_what_they_took(tmp_path: Path) -> None:
    metrics = with_arms(federated(), **{"shared-fed:flora": "rag"})
    for arm in (ARM, "shared-fed:flora"):
        metrics["arms"][arm][TASK]["metrics"]["mae"]["mean"] = 0.7 if arm == ARM else 0.65
    metrics["arms"]["shared"][TASK]["metrics"]["mae"]["mean"] = 0.6
    events = [
        *(round_of(n, epsilon=n / 2, bytes_down=10**6, bytes_up=10**6) for n in (1, 2)),
        *log(4, arm="shared-fed:flora", bytes_down=0, bytes_up=500_000),
    ]
    page = page_of(write_run(tmp_path, metrics, events))
    assert plots_of(page, "held-out loss") == [
        "held-out loss against rounds: fedex: from 1.900 at 1 to 1.800 at 2. "
        "flora: from 1.900 at 1 to 1.600 at 4.",
        "held-out loss against megabytes, all clients: fedex: from 1.900 at 2 to 1.800 at 4. "
        "flora: from 1.900 at 0.5 to 1.600 at 2.",
        "held-out loss against epsilon: fedex: from 1.900 at 0.5 to 1.800 at 1.",
    ]
    assert plots_of(page, "mae") == [
        "mae ↓ against rounds: fedex: 0.700 at 2. flora: 0.650 at 4. Learnt centrally: 0.600.",
        "mae ↓ against megabytes, all clients: fedex: 0.700 at 4. flora: 0.650 at 2. "
        "Learnt centrally: 0.600.",
        "mae ↓ against epsilon: fedex: 0.700 at 1. Learnt centrally: 0.600.",
    ]


def test_scores_by_rounds_are_left_out_where_all_have_as_many(tmp_path: Path) -> None:
    metrics = with_arms(federated(), **{"shared-fed:flora": "rag"})
    events = [*log(3, loss=None), *log(3, arm="shared-fed:flora", loss=None)]
    page = page_of(write_run(tmp_path, metrics, events))
    assert not plots_of(page, "held-out loss") and not plots_of(page, "mae ↓ against rounds")
    assert len(plots_of(page, "mae")) == 1


def test_plots_are_the_same_each_time_and_tell_federations_apart() -> None:
    curves = [Curve("a", 0, [(1, 2.0), (2, 1.5)]), Curve("b", 1, [(3, 1.0)], (0.5, 1.5))]
    made = [reach_plot(curves, ("rounds", "loss"), "k", 1.2) for _ in range(2)]
    assert made[0] is not None and made[0] == made[1]
    svg = made[0].svg
    assert all(name.startswith("k-") for name in re.findall(r'\bid="([^"]+)"', svg))
    assert "var(--better)" in svg and "var(--worse)" in svg
    assert not re.search(r"#0[0-9]0[0-9a]0[0-9a]", svg)
    assert len({(marker, str(line)) for marker, line, _ in _LOOKS}) == len(_LOOKS) == 30
    assert reach_plot([Curve("a", 0, [])], ("rounds", "loss"), "k") is None


def test_very_many_rounds_and_federations_are_drawn(tmp_path: Path) -> None:
    events = [e for i in range(12) for e in log(1, arm=f"shared-fed:s{i}", loss=None)] + log(300)
    page = page_of(write_run(tmp_path, federated(), events))
    assert len(table(page, "rounds")) == 13


# Damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [{"round": 0}, {"round": -1}, {"round": 1.5}, {"round": None}, {"round": "x"},
     {"round": 10**9}, {"task": None}, {"arm": None}],
    ids=str,
)  # fmt: skip
def test_damaged_events_are_left_out_and_counted(tmp_path: Path, odd: dict[str, Any]) -> None:
    run = write_run(tmp_path, None, [round_of(1), round_of(2) | odd])
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'["round"]\n{"event": ["round"]}\n' + json.dumps(round_of(3)).encode()[:50])
    found, skipped = read_rounds(run / "events.jsonl")
    assert skipped == 1 and list(found[TASK, ARM].by_number) == [1]
    if odd == {"round": 0}:
        page = page_of(run)
        assert "Events of federation that cannot be read and are left out: 1." in page.text


@pytest.mark.parametrize("odd", [None, float("nan"), 10**400, True, "x"], ids=str)
def test_odd_figures_count_for_nothing(tmp_path: Path, odd: Any) -> None:
    names = ("asked", "failed", "bytes_down", "bytes_up", "epsilon", "loss")
    run = write_run(tmp_path, None, [round_of(1, **dict.fromkeys(names, odd))])
    rounds = read_rounds(run / "events.jsonl")[0][TASK, ARM]
    assert rounds.by_number[1] == (0, 0, 0, 0, None, None)
    assert rounds.each("up") is None and rounds.loss is rounds.epsilon is None
    if odd is None:
        row = table(page_of(run), "rounds")[0]
        assert row[1:] == ["1", "0.0", "0", "–", "–", "0.00", "–", "–"]


def test_figures_of_odd_users_and_tasks(tmp_path: Path) -> None:
    metrics = federated()
    metrics["arms"][ARM][TASK]["users"] = {"u0": {"score": None}, "other": {"score": 1.0}}
    metrics["arms"][ARM]["mystery"] = {"gain_over_central": {"mean": 0.1, "ci95": None}}
    page = page_of(write_run(tmp_path, metrics, [*log(), *log(task="mystery")]))
    by_name = {row[0]: row for row in table(page, "gaps")}
    assert by_name[f"Review rating {ARM}"][4] == "–"  # no user has a score with both
    assert by_name[f"mystery {ARM}"][3] == "−0.100"


def test_names_are_escaped(tmp_path: Path) -> None:
    events = [round_of(1, arm=EVIL, task=EVIL), round_of(1, arm="shared-fed:<b>")]
    page = page_of(write_run(tmp_path, study(3, ("shared",), ONE), events))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "<small>&lt;b&gt;</small>" in page.source
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))
