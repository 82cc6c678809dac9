"""The report's section on the gate: its sums are those of the events, a user counts once, and
damaged events break nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import EVIL, ONE, Page, headline_of, page_of, study, write_run
from test_report_augment import plots_of, rows, with_arms

from pfi.evaluate.report.data import in_order
from pfi.evaluate.report.gate import read_gated
from pfi.evaluate.report.plots import gate_plot

TASK = "LaMP_3"


def gated(user: str, weight: float = 0.0, k: int = 0, **changes: Any) -> dict[str, Any]:
    """An event as a study logs it; keys can be changed."""
    return {
        "event": "gated",
        "time": 1.5,
        "arm": "pfi",
        "task": TASK,
        "user": user,
        "weight": weight,
        "k": k,
        "by_likeness": False,
        "if_unsure": False,
        "gain": 0.25 if weight or k else 0.0,
        "tried": 4,
        **changes,
    }


def table(page: Page) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in row] for row in rows(page, "gated")]


def test_sums_are_those_of_the_events(tmp_path: Path) -> None:
    log = [
        gated("a"),
        gated("b", 1.0, 2, gain=0.5, tried=8),
        gated("c", 0.5, 4, if_unsure=True, gain=0.1, tried=0),
        gated("d", 1.0, 0, by_likeness=True, if_unsure=True, gain=0.2, tried=2),
        gated("e", 0.0, 0, by_likeness=True, tried=0),
        gated("a", 1.0, 1, task="LaMP_1"),
        gated("a", 1.0, 1, task="LaMP_1", arm="pfi+synthetic"),
    ]
    metrics = study(users=5, tasks=("LaMP_1", TASK))
    page = page_of(write_run(tmp_path, metrics, log))
    first, second, third = table(page)
    assert [row[0] for row in (first, second, third)] == [
        "Citation identification pfi", "Citation identification pfi+synthetic",
        "Review rating pfi",
    ]  # fmt: skip
    measured = metrics["arms"]["pfi"][TASK]["gain"]
    low, high = (f"{end:+.3f}".replace("-", "−") for end in measured["ci95"])
    assert third[1:] == [
        "5", "40 %", "0.50", "1.2", "2 1 · 2", "2.0 none for 2 users", "+0.160",
        f"{measured['mean']:+.3f} [{low}, {high}]".replace("-", "−"),
    ]  # fmt: skip
    assert second[8] == "–"  # this arm has no results
    # LaMP_1 has a plot for each of its arms.
    assert plots_of(page, "Users by weight") == [
        *["Users by weight of the personal adapter and by retrieved records: "
          "weight 1, 1 records: 1."] * 2,
        "Users by weight of the personal adapter and by retrieved records: "
        "weight 0, 0 records: 2; weight 0.5, 4 records: 1; weight 1, 2 records: 1; "
        "weight 1 by likeness, 0 records: 1.",
    ]  # fmt: skip


def test_of_a_users_events_the_last_counts(tmp_path: Path) -> None:
    log = [gated("a", 1.0, 4), gated("b", 1.0, 4), gated("a")]
    found, skipped = read_gated(write_run(tmp_path, None, log) / "events.jsonl")
    assert skipped == 0 and list(found) == [(TASK, "pfi")]
    assert (found[TASK, "pfi"].nothing, found[TASK, "pfi"].k) == (0.5, 2.0)


def test_a_plot_shows_what_else_there_was_to_choose(tmp_path: Path) -> None:
    run = write_run(tmp_path, study(users=3, tasks=ONE), [gated("a")])
    bare = page_of(run)
    config = "gate: {weights: [0, 0.25, 1], ks: [0, 3], per_question: true}\n"
    (run / "config.yaml").write_text(config)
    page = page_of(run)
    part = page.source.split('<section id="gate">')[1].split("</section>")[0]
    for label in (">0.25<", ">1 by likeness<", ">3<"):
        assert label in part and label not in bare.source.split('<section id="gate">')[1]
    for damaged in ("gate: 3\n", "gate: {ks: [x]}\n", "gate: {weights: []}\n"):
        (run / "config.yaml").write_text(damaged)
        assert table(page_of(run)) == table(page)


def test_a_plot_has_room_for_the_choices_of_most_users(tmp_path: Path) -> None:
    log = [gated(f"u{k}-{i}", 1.0, k) for k in range(20) for i in range(k + 1)]
    page = page_of(write_run(tmp_path, study(users=3, tasks=ONE), log))
    (label,) = plots_of(page, "Users by weight")
    # Nothing to choose is always there and takes one of the twelve columns.
    shown = re.findall(r"weight 1, (\d+) records: (\d+)", label)
    assert shown == [(str(k), str(k + 1)) for k in range(8, 20)]
    assert f"{sum(range(1, 9))} more elsewhere" in page.text


def test_without_such_events_there_is_no_section(tmp_path: Path) -> None:
    log = [
        {"event": "answered", "arm": "rag", "task": "LaMP_1", "user": "u",
         "answers": [{"id": "q", "prompt": '"gated"', "answer": "gated"}]},
    ]  # fmt: skip
    page = page_of(write_run(tmp_path, study(users=3), log))
    assert 'id="gate"' not in page.source
    assert read_gated(tmp_path / "none.jsonl") == ({}, 0)


def test_a_run_killed_before_its_results_shows_what_was_chosen(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, None, [gated("a", 1.0, 2)]))
    assert table(page)[0] == ["Review rating pfi", "1", "0 %", "1.00", "2.0", "0 0 · 0", "4.0",
                              "+0.250", "–"]  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [
        {"weight": 1.5}, {"weight": -0.1}, {"weight": float("nan")}, {"weight": None},
        {"weight": "much"}, {"k": -1}, {"k": 10**9}, {"k": 1.5}, {"k": None}, {"user": None},
        {"task": None}, {"by_likeness": "perhaps"},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_events_are_left_out_and_counted(tmp_path: Path, odd: dict[str, Any]) -> None:
    run = write_run(tmp_path, study(users=3, tasks=ONE), [gated("a", 1.0), gated("b") | odd])
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'["gated"]\n{"event": ["gated"]}\n' + json.dumps(gated("c")).encode()[:50])
    page = page_of(run)
    assert "Events of the gate that cannot be read and are left out: 1." in page.text
    assert table(page)[0][1] == "1"


@pytest.mark.parametrize("odd", [None, float("nan"), 10**400, True, "x", -1], ids=str)
def test_odd_figures_show_as_a_dash(tmp_path: Path, odd: Any) -> None:
    gain = None if odd == -1 and odd is not True else odd  # a gain may be below zero
    log = [gated("a", 1.0, gain=gain, tried=odd)]
    row = table(page_of(write_run(tmp_path, study(users=3, tasks=ONE), log)))[0]
    assert row[6:8] == ["–", "–"]


def test_names_are_escaped(tmp_path: Path) -> None:
    log = [gated(EVIL, 1.0, arm=EVIL, task=EVIL), gated("a", arm="<b>")]
    page = page_of(write_run(tmp_path, study(users=3, tasks=ONE), log))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "&lt;b&gt;</figcaption>" in page.source
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))


def test_plots_are_the_same_each_time() -> None:
    made = [gate_plot(["0", "1"], [0, 2], [[3, 0], [0, 1]], "k").svg for _ in range(2)]
    assert made[0] == made[1]
    assert all(name.startswith("k-") for name in re.findall(r'\bid="([^"]+)"', made[0]))
    assert "var(--personal)" in made[0] and not re.search(r"#0[0-9]0[0-9a]0[0-9a]", made[0])


# Arms with a gate or a number of records among the others -----------------------------------


def test_arms_stand_in_their_order_with_their_numbers_of_records() -> None:
    arms = ["mystery", "pfi", "teacher", "rag@4", "rag-bm25@10", "rag-bm25@2", "rag", "shared",
            "pfi+synthetic", "rag@x"]  # fmt: skip
    assert in_order(arms) == [
        "shared", "rag", "rag@x", "rag@4", "rag-bm25@2", "rag-bm25@10", "pfi", "pfi+synthetic",
        "teacher", "mystery",
    ]  # fmt: skip


def test_an_arm_with_a_gate_may_be_the_best_personalised_one(tmp_path: Path) -> None:
    metrics = study(users=4, arms=("generic", "shared", "rag", "personal"), tasks=ONE)
    metrics = with_arms(metrics, pfi="personal")
    for arm, mean in (("personal", 0.3), ("pfi", 0.4)):
        cell = metrics["arms"][arm]["LaMP_1"]
        cell["metrics"]["accuracy"]["mean"] = mean
        cell["gain"] = {"mean": mean - 0.35, "ci95": [mean - 0.36, mean - 0.34]}
    page = page_of(write_run(tmp_path, metrics, []))
    assert "beats shared on 1 of 1 task" in headline_of(page)
    assert len(re.findall(r"<li>pfi: ", page.source)) == 1
