"""The report of a study: its figures are those of metrics.json, it needs no network, user text
cannot break out of it, and runs that were killed still give a page.
"""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pfi.errors import StorageError
from pfi.evaluate.report.plots import binned_means, mean_curve, scatter_plot, training_plot
from pfi.evaluate.report.report import write_report
from pfi.evaluate.report.terminal import terminal_table
from pfi.evaluate.report.text import number

ARMS = ("generic", "shared", "rag", "personal", "pfi")
#: task -> (main metric, other metric, level, step of improvement)
TASKS = {
    "LaMP_1": ("accuracy", "macro_f1", 0.55, 0.05),
    "LaMP_3": ("mae", "rmse", 0.60, -0.06),
    "LaMP_4": ("rouge_1", "rouge_l", 0.15, 0.01),
}
ONE = ("LaMP_1",)
EVIL = "</script><script>alert('x')</script><img src=\"http://evil.example/a.png\"> & \x00 \ud800"


def estimate(values: list[float]) -> dict[str, Any]:
    mean, half = (
        float(np.mean(values)),
        1.96 * float(np.std(values)) / len(values) ** 0.5,
    )
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def study(
    users: int = 20, arms: tuple[str, ...] = ARMS, tasks: tuple[str, ...] = tuple(TASKS)
) -> dict[str, Any]:
    """The content of a metrics.json; arms later in ARMS are better, `personal` is uneven."""
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {arm: {} for arm in arms}
    for task in tasks:
        main, other, level, step = TASKS[task]
        base = rng.normal(level, abs(step), users)
        history = rng.integers(5, 400, users)
        scores = {
            arm: base + step * ARMS.index(arm) + rng.normal(0, abs(step) * 0.8, users)
            for arm in ARMS
        }
        direction = -1 if main == "mae" else 1
        for arm in arms:
            values = [round(float(v), 4) for v in np.abs(scores[arm])]
            ordered = sorted(values, reverse=direction < 0)
            gain = harmed = None
            if "shared" in arms and arm != "shared":
                differences = direction * (np.array(values) - np.abs(scores["shared"]).round(4))
                gain = estimate(list(differences))
                harmed = None if arm == "generic" else float((differences < 0).mean())
            found[arm][task] = {
                "metrics": {
                    main: estimate(values),
                    other: estimate([v * 0.9 for v in values]),
                },
                "n_users": users,
                "n_questions": users * 3,
                "harmed": harmed,
                "worst_decile": float(np.mean(ordered[: max(1, users // 10)])),
                "seconds": 1.5 * (ARMS.index(arm) + 1),
                "gain": gain,
                "users": {
                    f"u{i}": {"score": v, "history": int(history[i])} for i, v in enumerate(values)
                },
            }
    return {
        "arms": found,
        "config": {"seed": 1},
        "machine": {"cpu": "test cpu", "cores": 2},
    }


def events(
    users: int = 20, arms: tuple[str, ...] = ARMS, tasks: tuple[str, ...] = tuple(TASKS)
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    found: list[dict[str, Any]] = [{"event": "started"}]
    for task in tasks:
        curve = (2.5 * np.exp(-np.arange(400) / 120) + 1 + rng.normal(0, 0.08, 400)).tolist()
        found.append(_trained(task, "shared", None, curve))
        for i in range(users):
            steps = int(rng.integers(10, 40))
            losses = 1.2 * np.exp(-np.arange(steps) / 15) + 0.6 + rng.normal(0, 0.05, steps)
            found.append(_trained(task, "personal", f"u{i}", losses.tolist()))
        for arm in arms:
            for i in range(users):
                found.append(_answered(arm, task, f"u{i}", f"{arm} says {i % 3}"))
    return found


def _trained(task: str, adapter: str, user: str | None, losses: list[float]) -> dict[str, Any]:
    event = {"event": "trained", "task": task, "adapter": adapter, "user": user}
    return {
        **event,
        "examples": 9,
        "steps": len(losses),
        "losses": losses,
        "seconds": 2.0,
    }


def _answered(
    arm: str,
    task: str,
    user: str,
    answer: str,
    prompt: str = "A question?",
    gold: str = "gold",
) -> dict[str, Any]:
    answers = [{"id": f"{user}-q", "prompt": prompt, "answer": answer, "gold": gold}]
    event = {"event": "answered", "arm": arm, "task": task, "user": user, "history": 9}
    return {**event, "seconds": 0.1, "answers": answers}


def write_run(
    folder: Path,
    metrics: Any = None,
    log: list[dict[str, Any]] | None = None,
    config: str = "",
) -> Path:
    run = folder / "first-study"
    run.mkdir()
    if metrics is not None:
        (run / "metrics.json").write_text(json.dumps(metrics))
    if log is not None:
        (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    if config:
        (run / "config.yaml").write_text(config)
    return run


class Page(HTMLParser):
    """What a browser would find: elements, attributes, text, and the cells of the result table."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: dict[tuple[str, str], dict[str, Any]] = {}
        self._cell: dict[str, Any] | None = None
        self._field = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "td" and "data-arm" in found:
            key = str(found["data-arm"]), str(found["data-task"])
            self._cell = self.cells.setdefault(key, {"best": found.get("class") == "best"})
        elif self._cell is not None and found.get("class"):
            self._field = str(found["class"]).split()[0]
            if tag == "data":
                self._cell["exact"] = float(str(found["value"]))

    def handle_endtag(self, tag: str) -> None:
        self._field = ""
        if tag == "td":
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None and self._field:
            self._cell[self._field] = self._cell.get(self._field, "") + data


def page_of(run: Path) -> Page:
    page = Page(write_report(run))
    assert not re.search(r"\bnan\b|\binf\b", page.text.lower())
    return page


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return study()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, Any]) -> Page:
    config = "name: first study\ncommand: pfi study run --seed 1\nbackbone: tiny\n"
    config += "teacher: {api_key: hunter2, model: big}\n"
    return page_of(write_run(tmp_path_factory.mktemp("run"), metrics, events(), config))


def test_table_holds_the_figures_of_metrics(full: Page, metrics: dict[str, Any]) -> None:
    assert set(full.cells) == {(arm, task) for arm in ARMS for task in TASKS}
    for (arm, task), shown in full.cells.items():
        cell = metrics["arms"][arm][task]
        main = cell["metrics"][TASKS[task][0]]
        assert shown["exact"] == main["mean"]
        assert shown["value"] == f"{main['mean']:.3f}"
        low, high = (f"{end:.3f}" for end in main["ci95"])
        assert shown["interval"] == f"[{low}, {high}]"
        assert shown["worst"] == f"worst tenth {cell['worst_decile']:.3f}"
        if cell["harmed"] is None:
            assert "harmed" not in shown
        else:
            assert shown["harmed"] == f"harmed {100 * cell['harmed']:.0f} %"
        if cell["gain"] is None:
            assert "gain" not in shown
        else:
            assert f"gain {cell['gain']['mean']:+.3f}".replace("-", "−") in shown["gain"]


def test_best_arm_follows_the_direction_of_the_metric(full: Page, metrics: dict[str, Any]) -> None:
    for task, (main, *_) in TASKS.items():
        means = {arm: metrics["arms"][arm][task]["metrics"][main]["mean"] for arm in ARMS}
        best = (min if main == "mae" else max)(means, key=means.__getitem__)
        assert [arm for arm in ARMS if full.cells[arm, task]["best"]] == [best]


def test_gain_marks_follow_the_interval(full: Page, metrics: dict[str, Any]) -> None:
    seen = set()
    for (arm, task), shown in full.cells.items():
        gain = metrics["arms"][arm][task]["gain"]
        if gain:
            mark = "▲" if gain["ci95"][0] > 0 else "▼" if gain["ci95"][1] < 0 else ""
            seen.add(mark)
            assert ("▲" in shown["gain"], "▼" in shown["gain"]) == (
                mark == "▲",
                mark == "▼",
            )
    assert {"▲", "▼"} <= seen


def test_page_needs_no_network_and_runs_nothing(full: Page) -> None:
    assert "http://" not in full.source and "https://" not in full.source
    assert not [tag for tag, _ in full.tags if tag in ("script", "link", "img", "iframe")]
    for _, attributes in full.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in full.source
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", full.source))
    assert "default-src 'none'" in full.source


def test_plots_are_sound_svg_with_text_for_those_who_do_not_see(full: Page) -> None:
    plots = re.findall(r"<svg.*?</svg>", full.source, flags=re.DOTALL)
    assert len(plots) == 9  # scatter, history and training for each of three tasks
    for plot in plots:
        root = ET.fromstring(plot)
        assert root.attrib["role"] == "img" and len(root.attrib["aria-label"]) > 20
    ids = re.findall(r'\bid="([^"]+)"', full.source)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', full.source)
    assert targets and set(targets) <= set(ids)
    assert not re.search(r"#0[0-9]0[0-9a]0[0-9a]", full.source)  # no stand-in colour is left


def test_tables_have_headers(full: Page) -> None:
    scopes = [attributes.get("scope") for tag, attributes in full.tags if tag == "th"]
    assert scopes and set(scopes) == {"col", "row"}


def test_secrets_of_the_configuration_stay_out(full: Page) -> None:
    assert "hunter2" not in full.source and "(hidden)" in full.text
    assert "backbone tiny · cpu test cpu" in full.text and "pfi study run --seed 1" in full.text


def test_scatter_counts_are_those_of_the_users(full: Page, metrics: dict[str, Any]) -> None:
    for task, (main, *_) in TASKS.items():
        arms = metrics["arms"]
        means = {a: arms[a][task]["metrics"][main]["mean"] for a in ("personal", "pfi")}
        sign = -1 if main == "mae" else 1
        arm = max(means, key=lambda a: sign * means[a])
        new, old = arms[arm][task]["users"], arms["generic"][task]["users"]
        better = sum(sign * (new[u]["score"] - old[u]["score"]) > 0 for u in new)
        text = f"{main}: {arm} against generic. {better} better"
        assert any(text in (a.get("aria-label") or "") for tag, a in full.tags if tag == "svg")


def headline_of(page: Page) -> str:
    found = re.search(r'<p id="headline">(.*?)</p>', page.source)
    assert found
    return found[1]


def set_gains(metrics: dict[str, Any], gains: list[tuple[float, float, float]]) -> None:
    for task, (mean, low, high) in zip(TASKS, gains, strict=True):
        for arm in ("personal", "pfi"):
            metrics["arms"][arm][task]["gain"] = {"mean": mean, "ci95": [low, high]}


@pytest.mark.parametrize(
    ("gains", "parts"),
    [
        ([(0.1, 0.05, 0.2), (0.1, -0.1, 0.3), (-0.1, -0.2, -0.05)],
         ["beats shared on 2 of 3 tasks", "excludes zero on 1.", "worse on 1 task (News headlines)",
          "excludes zero on 1."]),
        ([(0.1, -0.1, 0.2)] * 3, ["on 3 of 3 tasks", "no 95 % interval", "may be chance"]),
        ([(-0.1, -0.3, 0.2)] * 3, ["does not beat shared on any of the 3 tasks", "worse on 3"]),
    ],
)  # fmt: skip
def test_headline_says_what_the_figures_say(
    tmp_path: Path, gains: list[tuple[float, float, float]], parts: list[str]
) -> None:
    metrics = study(users=3)
    set_gains(metrics, gains)
    found = headline_of(page_of(write_run(tmp_path, metrics)))
    assert [part for part in parts if part not in found] == []


def test_text_of_users_and_models_is_escaped(tmp_path: Path) -> None:
    metrics = study(users=3)
    evil_arm, evil_task = '"><script>a</script>$x', "<b onclick=x>$\\frac$ --> \udc00"
    metrics["arms"]["pfi"][evil_task] = metrics["arms"]["pfi"]["LaMP_1"]
    metrics["arms"]["generic"][evil_task] = metrics["arms"]["generic"]["LaMP_1"]
    metrics["arms"][evil_arm] = metrics["arms"]["rag"]
    metrics["machine"] = {"cpu": EVIL}  # shown twice: at the head and at the end
    log = [
        _answered("generic", "LaMP_1", "u0", EVIL, prompt=EVIL, gold=EVIL),
        _answered("pfi", "LaMP_1", "u0", "plain"),
        _answered(evil_arm, evil_task, EVIL, "one"),
        _answered("pfi", evil_task, EVIL, "two"),
    ]
    page = page_of(write_run(tmp_path, metrics, log, config='name: "</title><script>1</script>"\n'))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img"}
    assert not [a for _, a in page.tags if "onclick" in a]
    assert page.text.count("<script>alert('x')</script>") == 5  # question, gold, answer, machine
    assert (evil_arm, "LaMP_1") in page.cells


def test_of_two_results_for_the_same_user_the_last_counts(tmp_path: Path) -> None:
    log = [
        _answered("generic", "LaMP_1", "u0", "from the killed run"),
        _answered("pfi", "LaMP_1", "u0", "gold"),
        _answered("generic", "LaMP_1", "u0", "after the resume"),
        _trained("LaMP_1", "shared", None, [9.0, 8.0]),
        _trained("LaMP_1", "shared", None, [5.0, 4.0]),
    ]
    page = page_of(write_run(tmp_path, study(users=3, tasks=ONE), log))
    assert "after the resume" in page.text and "from the killed run" not in page.text
    assert "shared: from 5.000 to 4.000 in 2 steps" in page.source


def test_examples_are_four_disputed_questions_of_different_users(
    tmp_path: Path,
) -> None:
    log = []
    for user in range(6):
        for arm in ("shared", "pfi"):
            answer = "same" if user == 0 else arm
            event = _answered(arm, "LaMP_1", f"u{user}", answer, prompt=f"question {user}")
            event["answers"].append({**event["answers"][0], "id": "second", "prompt": "once more"})
            log.append(event)
    page = page_of(write_run(tmp_path, study(users=3, tasks=ONE), log))
    assert re.findall(r"question \d", page.text) == [f"question {i}" for i in (1, 2, 3, 4)]
    assert "once more" not in page.text


def test_damaged_and_truncated_lines_are_skipped(tmp_path: Path) -> None:
    log = [*events(3, tasks=ONE), _trained("LaMP_1", "personal-only", "u0", [1.0])]
    run = write_run(tmp_path, study(users=3, tasks=ONE), log)
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'[1]\n\n{"event": "trained", "task": 3, "losses": "x"}\n')
        file.write(b'\xff\xfe\n{"event": "answered", "arm": "pfi", "ta')
    page = page_of(run)
    assert "cannot be read and are left out: 3." in page.text
    assert "Examples on which the arms disagree" in page.text


@pytest.mark.parametrize(
    ("metrics", "log", "note"),
    [
        (None, None, "metrics.json is missing"),
        (None, events(2, tasks=ONE), "metrics.json is missing"),
        ({"arms": {}}, [], "no scored results"),
        (study(users=3, tasks=ONE), None, "events.jsonl is missing"),
        (
            study(4, ("generic", "shared"), ONE),
            events(2, tasks=ONE),
            "There is no personalised arm",
        ),
        (study(4, ("generic", "personal"), ONE), [], "There is no shared arm"),
        (study(4, ("shared", "pfi"), ONE), [], "There is no generic arm"),
        (study(1, tasks=ONE), events(1, tasks=ONE), "has one user"),
    ],
)
def test_partial_runs_give_a_page_with_a_note(
    tmp_path: Path, metrics: Any, log: list[dict[str, Any]] | None, note: str
) -> None:
    assert note in page_of(write_run(tmp_path, metrics, log)).text


def test_figures_that_are_missing_or_not_finite_show_as_a_dash(tmp_path: Path) -> None:
    metrics = study(users=3)
    cell = metrics["arms"]["pfi"]["LaMP_1"]
    cell["metrics"]["accuracy"] = {
        "mean": float("nan"),
        "ci95": [float("nan"), float("inf")],
    }
    cell["gain"], cell["worst_decile"] = (
        {"mean": float("nan"), "ci95": None},
        float("inf"),
    )
    cell["users"]["u0"]["score"] = None
    del metrics["arms"]["shared"]["LaMP_3"]
    log = [
        _trained("LaMP_1", "shared", None, [float("nan")]),
        _trained("LaMP_3", "personal", "u", []),
    ]
    page = page_of(write_run(tmp_path, metrics, log, config="rate: .nan\n"))
    assert "exact" not in page.cells["pfi", "LaMP_1"]
    assert "The arm shared has no results on LaMP_3." in page.text


def test_unknown_tasks_and_metrics_are_shown_without_a_best_arm(tmp_path: Path) -> None:
    metrics = study(users=5, tasks=ONE)
    for cells in metrics["arms"].values():
        cells["mystery"] = {
            **cells["LaMP_1"],
            "metrics": {"charm": cells["LaMP_1"]["metrics"]["accuracy"]},
        }
    page = page_of(write_run(tmp_path, metrics))
    assert not any(page.cells[arm, "mystery"]["best"] for arm in ARMS)
    assert page.cells["pfi", "mystery"]["exact"] == page.cells["pfi", "LaMP_1"]["exact"]
    assert "The task mystery is not known" in page.text


def test_a_run_that_cannot_be_read_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such run folder"):
        write_report(tmp_path / "none")
    run = write_run(tmp_path, {"arms": [1, 2]})
    with pytest.raises(StorageError, match=r"metrics.json.*arms"):
        write_report(run)
    (run / "metrics.json").write_text('{"arms": {')
    with pytest.raises(StorageError, match="not a JSON file"):
        write_report(run)


def test_terminal_table(metrics: dict[str, Any]) -> None:
    metrics = {
        **metrics,
        "arms": {**metrics["arms"], "[red]odd[/red]": metrics["arms"]["rag"]},
    }
    wide = shown(metrics, 200)
    assert "LaMP_3  mae ↓" in wide and "LaMP_1  accuracy ↑" in wide and "[red]odd[/red]" in wide
    rows = {line.split()[1]: line for line in wide.splitlines() if line.startswith("│ LaMP")}
    assert list(rows) == list(TASKS)
    cells = [cell.strip() for cell in rows["LaMP_3"].split("│")[2:-1]]
    assert len(cells) == len(ARMS) + 1
    for arm, cell in zip(ARMS, cells, strict=False):
        main = metrics["arms"][arm]["LaMP_3"]["metrics"]["mae"]
        half = (main["ci95"][1] - main["ci95"][0]) / 2
        assert cell == f"{main['mean']:.3f} ± {half:.3f}" + " *" * (arm == "pfi")


def shown(metrics: dict[str, Any], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(terminal_table(metrics))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 64, 44])
def test_terminal_table_that_is_too_wide_has_arms_as_rows(
    metrics: dict[str, Any], width: int
) -> None:
    arms = {**metrics["arms"], "cdcda-unfiltered+rag": metrics["arms"]["rag"]}
    narrow = shown({**metrics, "arms": arms}, width)
    assert max(map(len, narrow.splitlines())) <= width and "…" not in narrow
    found: dict[str, list[str]] = {arm: [] for arm in arms}
    for line in narrow.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            found[name] += cells
    for arm, cells in found.items():
        means = [arms[arm][t]["metrics"][m]["mean"] for t, (m, *_) in TASKS.items()]
        assert [cell.split()[0] for cell in cells] == [f"{mean:.3f}" for mean in means]
    # A table of more blocks has its title and its caption once.
    assert (narrow.count("Main metric"), narrow.count("↑ higher")) == (1, 1)
    assert narrow.count("┏") == {80: 1, 64: 2, 44: 3}[width]


def test_terminal_table_of_an_empty_study() -> None:
    assert "task" in shown({"arms": {}, "config": {}, "machine": {}}, 80)


def test_numbers_as_text() -> None:
    assert number(-0.0001, sign=True) == "0.000"
    assert number(-0.5) == "−0.500"
    assert number(0.25, sign=True) == "+0.250"
    assert number(None) == "–"


def test_binned_means_keep_equal_lengths_together_and_cover_the_mean() -> None:
    x = np.array([1.0] * 10 + [5.0] * 10)
    y = np.array([0.0, 1.0] * 5 + [2.0, 4.0] * 5)
    found = binned_means(x, y)
    assert [(b, m) for b, m, _, _ in found] == [(1.0, 0.5), (5.0, 3.0)]
    assert all(low < mean < high for _, mean, low, high in found)
    assert binned_means(x[:3], y[:3]) == []


def test_mean_curve_ends_where_half_of_the_users_do() -> None:
    mean, low, high = mean_curve([[4.0, 2.0, 1.0], [2.0, 2.0], [3.0, None, 9.0, 9.0]])
    np.testing.assert_allclose(mean, [3.0, 2.0, 5.0])
    assert (low <= mean).all() and (mean <= high).all()
    assert training_plot([], [[None], []], "k") is None


def test_plots_are_the_same_each_time() -> None:
    made = [scatter_plot([0.1, 0.2], [0.2, 0.1], 1, ("a", "b"), "m", "k").svg for _ in range(2)]
    assert made[0] == made[1]
