"""The report's section on augmentation: its sums are those of the events, a user counts once,
text of teachers cannot break out, and damaged events do not break the page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import EVIL, ONE, Page, headline_of, page_of, study, write_run

from pfi.evaluate.report.augment import _MOST_NAMES, read_augmented
from pfi.evaluate.report.plots import history_plot, label_plot
from pfi.evaluate.report.text import money

TASK = "LaMP_3"


def augmented(user: str, task: str = TASK, **changes: Any) -> dict[str, Any]:
    """An event as a study logs it; keys can be changed."""
    filters = [
        {"name": "well-formed", "before": 10, "kept": 9, "dropped": {"no output": 1}},
        {"name": "copies", "before": 9, "kept": 6, "dropped": {"real": 1, "synthetic": 2}},
    ]
    return {
        "event": "augmented",
        "time": 1.5,
        "task": task,
        "user": user,
        "teacher": "big-model",
        "real": 8,
        "drafts": 10,
        "records": 6,
        "unfiltered": 6,
        "filters": [{**f, "examples": []} for f in filters],
        "confidence": 0.9,
        "labels_real": {"1": 2, "5": 6},
        "labels_synthetic": {"1": 3, "4": 0, "5": 3},
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "usd": 0.02,
        "examples": [example(f"written for {user}"), example(f"again for {user}")],
        **changes,
    }


def example(text: str, **changes: Any) -> dict[str, Any]:
    made = {"teacher": "big-model", "strategy": "write", "template": "write-1", "seeds": ["r1"]}
    made |= {"source": "", "confidence": 0.75, "scores": {"rouge": 0.1}}
    values = {"id": "s-0", "task": TASK, "input": {"text": text}, "output": "4", "source": ""}
    return {**values, "made": made, **changes}


def rows(page: Page, table: str) -> list[list[str]]:
    """The texts of a table's body, by row."""
    found = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', page.source, re.DOTALL)
    assert found
    return [
        [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
        for row in re.findall(r"<tr.*?</tr>", found[1].replace("\n", ""), re.DOTALL)
    ]


def funnel(page: Page, task: str) -> dict[str, str]:
    """The text of each filter's row."""
    pattern = rf'<tr data-task="{task}" data-filter="([^"]*)">(.*?)</tr>'
    return {
        name: " ".join(re.sub(r"<[^>]*>", " ", row).split())
        for name, row in re.findall(pattern, page.source, re.DOTALL)
    }


def with_arms(metrics: dict[str, Any], **arms: str) -> dict[str, Any]:
    """The metrics with further arms, each the cells of another."""
    more = {name.replace("_rag", "+rag"): metrics["arms"][like] for name, like in arms.items()}
    return {**metrics, "arms": {**metrics["arms"], **json.loads(json.dumps(more))}}


# Sums -----------------------------------------------------------------------------------


def test_sums_and_medians_are_those_of_the_events(tmp_path: Path) -> None:
    log = [
        augmented("a", real=4, records=2, drafts=5, confidence=0.5, usd=0.5),
        augmented("b", real=8, records=6),
        augmented("c", real=100, records=0, confidence=None, filters=[], examples=[]),
        augmented("a", task="LaMP_1", teacher="small", usd=0, labels_real={}, labels_synthetic={}),
    ]
    page = page_of(write_run(tmp_path, study(users=4, tasks=("LaMP_1", TASK)), log))
    first, second = rows(page, "augmented")
    assert first[0].startswith("Citation identification") and second[0].startswith("Review")
    confidence = (0.5 * 2 + 0.9 * 6) / 8
    assert [" ".join(cell.split()) for cell in second[1:]] == [
        "3", "8", "25", "2 · 8 none for 1 user", "3,000 · 600", "$0.54",
        f"{confidence:.3f}", "big-model",
    ]  # fmt: skip
    assert first[1:] == ["1", "8", "10", "6 · 6", "1,000 · 200", "–", "0.900", "small"]
    assert funnel(page, TASK) == {
        "well-formed": "well-formed 20 → 18 2 no output",
        "copies": "copies 18 → 12 4 synthetic 2 real",
    }
    bars = re.findall(r"<i style=\"width: ([\d.]+)%", page.source)
    assert bars == ["90.0", "60.0", "90.0", "60.0"]  # of the first filter's drafts, on each task


def test_of_a_users_events_the_last_counts(tmp_path: Path) -> None:
    log = [
        augmented("a", records=1, usd=5.0, examples=[example("from the killed run")]),
        augmented("b", records=2),
        augmented("a", records=9, usd=0.5, examples=[example("after the resume")]),
        augmented("a", task="LaMP_1", records=7),
    ]
    run = write_run(tmp_path, None, log)
    found, skipped = read_augmented(run / "events.jsonl")
    assert skipped == 0
    assert found[TASK].users == 2 and sorted(found[TASK].records) == [2, 9]
    assert found[TASK].totals["usd"] == pytest.approx(0.52)
    assert found["LaMP_1"].records == [7]
    page = page_of(run)
    assert "after the resume" in page.text and "from the killed run" not in page.text


def test_without_such_events_there_is_no_section(tmp_path: Path) -> None:
    log = [
        {"event": "answered", "arm": "rag", "task": "LaMP_1", "user": "u",
         "answers": [{"id": "q", "prompt": '"augmented"', "answer": "augmented"}]},
    ]  # fmt: skip
    page = page_of(write_run(tmp_path, study(users=3), log))
    assert 'id="augmentation"' not in page.source and "over personal" not in page.text
    assert read_augmented(tmp_path / "none.jsonl") == ({}, 0)


def test_a_run_killed_before_its_results_shows_what_was_augmented(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, None, [augmented("a")]))
    assert rows(page, "augmented")[0][0].startswith("Review rating")


# Untrusted and damaged ------------------------------------------------------------------


def test_text_of_teachers_is_escaped(tmp_path: Path) -> None:
    made = {"teacher": EVIL, "strategy": EVIL, "confidence": 1}
    record = {"id": EVIL, "input": {EVIL: EVIL}, "output": EVIL, "made": made}
    evil = augmented(
        EVIL,
        teacher=EVIL,
        filters=[{"name": EVIL, "before": 2, "kept": 1, "dropped": {EVIL: 1}}],
        labels_real={EVIL: 1},
        labels_synthetic={EVIL: 2},
        examples=[record],
    )
    task = '"><script>a</script>'
    log = [evil, {**evil, "task": task}, {**evil, "task": "LaMP_1"}]
    page = page_of(write_run(tmp_path, study(users=3, tasks=ONE), log))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.text.count("<script>alert('x')</script><img src=\"http://evil") >= 9
    assert "<script>a</script>" in page.text
    assert page.source.count("<svg") == 5  # two of the study, three of labels


@pytest.mark.parametrize(
    "odd",
    [None, float("nan"), float("inf"), -3, 10**400, 1e300, True, "x"],
    ids=["null", "nan", "inf", "negative", "huge-int", "huge-float", "true", "text"],
)
def test_odd_figures_show_as_a_dash(tmp_path: Path, odd: Any) -> None:
    figures = ("real", "drafts", "records", "confidence", "prompt_tokens", "usd")
    event = augmented("a", **dict.fromkeys(figures, odd))
    event["labels_real"] = {"1": odd, "2": 1e15, "3": 1e15}
    event["labels_synthetic"] = {"1": odd, "2": 1}
    event["filters"] = [{"name": "odd", "before": odd, "kept": odd, "dropped": {"why": odd}}]
    event["examples"][0]["made"]["confidence"] = odd
    page = page_of(write_run(tmp_path, None, [event]))
    row = rows(page, "augmented")[0]
    assert row[2:] == ["–", "–", "– · –", "– · 200", "–", "–", "big-model"]
    assert funnel(page, TASK)["odd"] == "odd 0 → 0 –"
    assert "confidence –" in page.text


def test_damaged_events_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path, study(users=3, tasks=ONE), [augmented("a", records=4)])
    with (run / "events.jsonl").open("ab") as file:
        for changes in ({"user": None}, {"filters": 3}, {"labels_real": [1]}, {"examples": [1]}):
            file.write(json.dumps({**augmented("a"), **changes}).encode() + b"\n")
        file.write(b'["augmented"]\n{"event": ["augmented"]}\n\xff "augmented"\n')
        file.write(json.dumps(augmented("a"))[:60].encode())
    page = page_of(run)
    assert "Events of augmentation that cannot be read and are left out: 4." in page.text
    assert "Lines of events.jsonl that cannot be read and are left out: 2." in page.text
    assert rows(page, "augmented")[0][4] == "4 · 4"


def test_memory_does_not_grow_with_the_names_in_the_log(tmp_path: Path) -> None:
    many = {f"reason {i}": 1 for i in range(3 * _MOST_NAMES)}
    filters = [{"name": "f", "before": 9999, "kept": 0, "dropped": many}]
    filters += [{"name": f"filter {i}"} for i in range(3 * _MOST_NAMES)]
    log = [augmented("a", filters=filters, teacher=f"t{i}", labels_real=many) for i in range(3)]
    found, _ = read_augmented(write_run(tmp_path, None, log) / "events.jsonl")
    sums = found[TASK]
    assert len(sums.filters) == _MOST_NAMES
    assert len(sums.filters["f"].dropped) == _MOST_NAMES + 1
    assert sum(sums.filters["f"].dropped.values()) == 3 * _MOST_NAMES  # none is lost
    assert sum(n for _, n in sums.filters["f"].reasons) == 3 * _MOST_NAMES
    assert len(sums.labels_real) == _MOST_NAMES + 1


# Labels, examples, gains ----------------------------------------------------------------


def plots_of(page: Page, start: str) -> list[str]:
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    return [label for label in labels if label.startswith(start)]


def test_labels_are_summed_over_users_in_the_tasks_order(tmp_path: Path) -> None:
    log = [
        augmented("a", labels_real={"5": 3, "1": 1}, labels_synthetic={"5": 1, "1": 1, "3": 2}),
        augmented("b", labels_real={"5": 3, "1": 1}, labels_synthetic={"5": 6}),
        augmented("c", task="LaMP_4", labels_real={}, labels_synthetic={}),
    ]
    page = page_of(write_run(tmp_path, None, log))
    assert plots_of(page, "Share of each label") == [
        "Share of each label among the records (real, 8; synthetic, 10): "
        "1 25 % and 10 %; 3 0 % and 20 %; 5 75 % and 70 %."
    ]
    # Total variation: (|.25 - .1| + |0 - .2| + |.75 - .7|) / 2.
    assert "20 % of the synthetic records would need another label" in page.text
    assert "var(--real)" in page.source and "var(--synthetic)" in page.source


def test_labels_of_a_choice_are_ordered_by_use_and_the_rare_ones_put_together() -> None:
    from pfi.evaluate.report.augment import TaskAugmentation, augment_view
    from pfi.evaluate.report.data import MainMetric

    sums = TaskAugmentation()
    sums.labels_real.update({f"label {i:02}": i for i in range(1, 26)})
    sums.labels_synthetic.update({"label 25": 4, "label 01": 1})
    view = augment_view(MainMetric("mystery", "mystery", "charm", 1, known=False), sums, "k")
    assert view.labels
    text = re.findall(
        r"label \d\d|other", view.labels.plot.svg.split("aria-label")[1].split(">")[0]
    )
    assert text == [f"label {i:02}" for i in range(25, 5, -1)] + ["other"]


def test_examples_are_of_different_users_first(tmp_path: Path) -> None:
    log = [augmented(user) for user in "abc"]
    page = page_of(write_run(tmp_path, None, log))
    shown = re.findall(r"(?:written|again) for \w", page.text)
    assert shown == ["written for a", "written for b", "written for c", "again for a"]
    assert "write, by big-model, confidence 0.75" in page.text
    log = [augmented(user) for user in "abcdefg"]
    (tmp_path / "more").mkdir()
    page = page_of(write_run(tmp_path / "more", None, log))
    assert re.findall(r"(?:written|again) for (\w)", page.text) == list("abcd")


def test_gain_over_personal_is_plotted_against_the_real_records(tmp_path: Path) -> None:
    metrics = with_arms(
        study(users=6, tasks=(TASK,)), cdcda="generic", cdcda_rag="pfi", personal_rag="rag"
    )
    reals = [2, 3, 5, 8, 13, 21]
    log = [augmented(f"u{i}", real=n) for i, n in enumerate(reals[:5])]
    page = page_of(write_run(tmp_path, metrics, log))
    found = plots_of(page, "Gain of cdcda+rag over personal+rag")
    assert found == [
        "Gain of cdcda+rag over personal+rag in mae, against the number of real records, for 5 "
        "users from 2 to 13 real records." + found[0].split("real records.", 1)[1]
    ]
    arms = metrics["arms"]
    new, old = (arms[arm][TASK]["users"] for arm in ("pfi", "rag"))
    better = sum(new[f"u{i}"]["score"] < old[f"u{i}"]["score"] for i in range(5))
    section = page.source.split("by number of real records")[1].split("</figure>")[0]
    assert f'cdcda+rag against personal+rag<br>\n<span class="better">▲ {better} better' in section


def test_without_the_arms_there_is_no_plot_of_gains(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, study(users=4, tasks=(TASK,)), [augmented("u0")]))
    assert "by number of real records" not in page.text and 'id="augmentation"' in page.source


# Arms -----------------------------------------------------------------------------------


def test_gain_over_personal_stands_in_the_cell_with_its_mark(tmp_path: Path) -> None:
    metrics = with_arms(study(users=4), cdcda="rag", cdcda_rag="rag")
    found = {"LaMP_1": (0.0124, [0.001, 0.02]), "LaMP_3": (-0.5, [-0.6, -0.4]),
             "LaMP_4": (0.25, [-1.0, 1.0])}  # fmt: skip
    for task, (mean, ends) in found.items():
        metrics["arms"]["cdcda"][task]["gain_over_personal"] = {"mean": mean, "ci95": ends}
    page = page_of(write_run(tmp_path, metrics, []))
    lines = [page.cells["cdcda", task]["over-personal"] for task in found]
    assert lines == [
        "over personal +0.012 [+0.001, +0.020] ▲",
        "over personal −0.500 [−0.600, −0.400] ▼",
        "over personal +0.250 [−1.000, +1.000]",
    ]
    assert all("gain +" in page.cells["cdcda", t]["gain"] or "gain −" in
               page.cells["cdcda", t]["gain"] for t in found)  # fmt: skip
    assert "over-personal" not in page.cells["cdcda+rag", "LaMP_1"]
    line = re.search(r"<li>(cdcda: .*?)</li>", page.source)
    assert line
    assert (
        "better than personal on 2 of 3 tasks (beyond chance on 1), worse beyond chance on 1"
        in (line[1])
    )


def test_ablations_and_teachers_are_not_the_best_personalised_arm(tmp_path: Path) -> None:
    metrics = study(users=4, arms=("generic", "shared", "rag", "personal"), tasks=ONE)
    metrics = with_arms(metrics, cdcda="personal", synthetic_only="personal", teacher="personal")
    arms = metrics["arms"]
    arms["cdcda-unfiltered"] = arms.pop("synthetic_only")
    means = {"personal": 0.3, "cdcda": 0.4, "cdcda-unfiltered": 0.5, "teacher": 0.9}
    for arm, mean in {**dict.fromkeys(("generic", "shared", "rag"), 0.1), **means}.items():
        arms[arm]["LaMP_1"]["metrics"]["accuracy"]["mean"] = mean
    arms["cdcda"]["LaMP_1"]["gain"] = {"mean": 0.2, "ci95": [0.1, 0.3]}
    arms["personal"]["LaMP_1"]["gain"] = {"mean": -0.2, "ci95": [-0.3, -0.1]}
    page = page_of(write_run(tmp_path, metrics, []))
    assert "beats shared on 1 of 1 task" in headline_of(page)
    assert plots_of(page, "Gain of cdcda over shared")
    best = [arm for (arm, _), cell in page.cells.items() if cell["best"]]
    assert best == ["cdcda-unfiltered"]  # the best of the user's own models
    assert "teacher: a teacher answers" in page.text
    order = list(dict.fromkeys(arm for arm, _ in page.cells))
    assert order == ["generic", "shared", "rag", "personal", "cdcda", "cdcda-unfiltered", "teacher"]


# Words and plots ------------------------------------------------------------------------


def test_a_wide_range_of_records_has_no_formulas_on_its_axis() -> None:
    plot = history_plot([1, 30, 400], [0.1, 0.2, 0.3], ("a", "b"), "m", "k", "real records")
    assert "$" not in plot.svg and ">100<" in plot.svg
    assert ">real records in the history<" in plot.svg


def test_money_as_text() -> None:
    assert [money(usd) for usd in (None, 0, 0.00123, 0.25, 1234.5)] == [
        "–", "–", "$0.0012", "$0.25", "$1,234.50",
    ]  # fmt: skip


def test_label_plots_are_the_same_each_time_and_stand_a_page_with_others() -> None:
    made = [label_plot(["a", "b"], [1, 3], [2, 0], "k").svg for _ in range(2)]
    assert made[0] == made[1]
    assert "a 25 % and 100 %; b 75 % and 0 %" in made[0]
    ids = re.findall(r'\bid="([^"]+)"', made[0])
    assert ids and all(name.startswith("k-") for name in ids)
    assert not re.search(r"#0[0-9]0[0-9a]0[0-9a]", made[0])
