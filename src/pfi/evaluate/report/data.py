"""A run folder as the report reads it: results, training curves and answers.

A run may have been killed or resumed: what is missing becomes a note, lines of the event log
that are damaged are skipped, and of two results for the same thing the last one counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SkipValidation,
    ValidationError,
    model_validator,
)

from pfi.errors import PfiError, StorageError
from pfi.evaluate.study.arms import ARMS, central
from pfi.tasks import METRICS, get_task

#: Events of that many users are kept for curves and examples.
_MOST_KEPT = 256
#: What an engine's reason says where a loss or a gradient was NaN or infinite.
_NOT_FINITE = re.compile(r"\bwas (nan|-?inf)\b")

#: The order in which arms are shown; others follow as they come.
ARM_ORDER = tuple(ARMS)
#: The arms that adapt a device's model to one user, among which a headline may choose: no
#: ablation (synthetic records alone or unfiltered, no shared adapter), and no teacher.
PERSONALISED = tuple(
    arm.name
    for arm in ARMS.values()
    if (kind := arm.kind) and kind.over_shared and kind.real and kind.synthetic != "unfiltered"
)
#: The arms in which a teacher answers: upper bounds, never the best arm.
UPPER_BOUNDS = tuple(arm.name for arm in ARMS.values() if arm.teacher)


def finite(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 300 digits
        return None
    return number if math.isfinite(number) else None


def _interval(value: Any) -> tuple[float, float] | None:
    ends = [finite(v) for v in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return ends[0], ends[1]


def _present(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


#: A number; anything that is not finite becomes None, so that nothing shows as NaN.
Finite = Annotated[float | None, BeforeValidator(finite)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_interval)]


class Lenient(BaseModel):
    """Takes null as "left out" and numbers as ids; keys it does not know are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return _present(value)


class Estimate(Lenient):
    """A mean over users and its 95 % bootstrap interval."""

    mean: Finite = None
    ci95: Interval = None


class UserScore(NamedTuple):
    """One user's mean of the main metric and their number of records; there may be very many."""

    score: float | None
    history: float | None


def _user_scores(value: Any) -> dict[str, UserScore]:
    if not isinstance(value, dict) or not all(isinstance(v, dict | None) for v in value.values()):
        raise ValueError("not the scores of users")
    return {
        user: UserScore(finite(v.get("score")), finite(v.get("history")))
        for user, v in value.items()
        if v is not None
    }


class Cell(Lenient):
    """What one arm reached on one task."""

    metrics: Annotated[dict[str, Estimate], BeforeValidator(_present)] = {}
    n_users: int = 0
    n_questions: int = 0
    harmed: Finite = None
    worst_decile: Finite = None
    seconds: Finite = None
    gain: Estimate | None = None
    gain_over_personal: Estimate | None = None
    gain_over_central: Estimate | None = None
    users: Annotated[SkipValidation[dict[str, UserScore]], BeforeValidator(_user_scores)] = {}


class Forgetting(Lenient):
    """What a kind of adapter makes the backbone forget, as means over adapters."""

    adapters: int = 0
    text_loss_before: Finite = None
    text_loss: Finite = None
    answer_loss_before: Finite = None
    answer_loss: Finite = None
    agreement: Finite = None

    @property
    def rise(self) -> float | None:
        """What the loss on general text has risen by."""
        if self.text_loss is None or self.text_loss_before is None:
            return None
        return self.text_loss - self.text_loss_before


class Results(Lenient):
    """The content of ``metrics.json``: ``arms[arm][task]`` is a `Cell`.

    Attributes:
        forgetting: by task and kind of adapter, where it was measured.
        so_far: of a run that is not at its end, by task how many users of how many.
    """

    arms: dict[str, Annotated[dict[str, Cell], BeforeValidator(_present)]] = {}
    config: dict[str, Any] = {}
    machine: Any = None
    forgetting: Annotated[dict[str, dict[str, Forgetting]], BeforeValidator(_present)] = {}
    so_far: dict[str, tuple[int, int]] = {}

    @property
    def arm_names(self) -> list[str]:
        """The arms in the order in which they are shown."""
        return in_order(self.arms)

    @property
    def task_names(self) -> list[str]:
        """The tasks as they come; each at least one arm has."""
        return list(dict.fromkeys(task for cells in self.arms.values() for task in cells))

    def cell(self, arm: str, task: str) -> Cell:
        """The arm's result on the task; an empty one where there is none."""
        return self.arms.get(arm, {}).get(task) or Cell()


class Trained(Lenient):
    """An adapter (shared, personal or another kind) was trained; one loss for each step."""

    event: Literal["trained"]
    task: str
    adapter: str
    user: str | None = None
    losses: list[Finite] = []
    seconds: Finite = None
    stopped: str | None = None


class Answer(Lenient):
    """One answer to one question."""

    id: str
    prompt: str = ""
    answer: str = ""
    gold: str | None = None


class Answered(Lenient):
    """An arm answered one user's questions."""

    event: Literal["answered"]
    arm: str
    task: str
    user: str
    answers: list[Answer] = []


@dataclass(frozen=True)
class MainMetric:
    """The metric that decides on a task.

    Attributes:
        sign: 1 where higher is better, -1 where lower is, 0 where that is not known.
        known: whether the installation knows the task.
    """

    task: str
    title: str
    metric: str
    sign: int
    known: bool = True

    @property
    def arrow(self) -> str:
        """The direction of better."""
        return {1: "↑", -1: "↓"}.get(self.sign, "")


class Training(NamedTuple):
    """What all adapters of a task and kind took: seconds, and how many met a loss not finite."""

    seconds: float | None = None
    broken: int = 0


@dataclass
class RunData:
    """Everything that the report shows of one run.

    Attributes:
        trained: for the curves; of each task and kind of adapter the first `_MOST_KEPT`.
        answered: for the examples; of each task the first `_MOST_KEPT` users'.
        training: by task and kind of adapter.
    """

    name: str
    results: Results
    config: dict[str, Any]
    trained: list[Trained] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    training: dict[tuple[str, str], Training] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def in_order(arms: Iterable[str]) -> list[str]:
    """The arms in the order in which they are shown; ``rag@4`` follows ``rag``.

    Arms with a federated shared adapter follow those with a central one.
    """
    place = {arm: i for i, arm in enumerate(ARM_ORDER)}

    def order(arm: str) -> tuple[int, bool, int]:
        like = central(arm)
        name, _, k = (like or arm).partition("@")
        number = int(k) if k.isdecimal() and len(k) < 9 else 0
        return place.get(name, len(place)), bool(like), number

    return sorted(arms, key=order)


def real_only(arm: str) -> str:
    """The arm that differs from this one by the synthetic records; "" if it uses none."""
    return (ARMS[arm].without_synthetic if arm in ARMS else None) or ""


def sign_of(metric: str) -> int:
    """1 where higher is better, -1 where lower is, 0 for a metric that is not known."""
    if metric not in METRICS:
        return 0
    return 1 if METRICS[metric].higher_is_better else -1


def main_metric(results: Results, task: str) -> MainMetric:
    """The task's main metric; the first one reported where the task is not known here."""
    try:
        known = get_task(task)
        return MainMetric(task, known.title, known.main_metric, sign_of(known.main_metric))
    except PfiError:
        found = (m for arm in results.arm_names for m in results.cell(arm, task).metrics)
        metric = next(found, "")
        return MainMetric(task, task, metric, sign_of(metric), known=False)


@dataclass(frozen=True)
class TaskView:
    """A task as the report shows it.

    Attributes:
        best: the arms with the best mean (more than one on a tie), upper bounds aside.
        personalised: the best personalised arm, None where none was run.
    """

    main: MainMetric
    n_users: int
    n_questions: int
    best: tuple[str, ...]
    personalised: str | None


def task_view(results: Results, task: str) -> TaskView:
    """What the report says of a task, over the arms that have results on it."""
    main = main_metric(results, task)
    cells = {arm: results.cell(arm, task) for arm in results.arm_names}
    means = {arm: main_estimate(cell, main).mean for arm, cell in cells.items()}
    scores = {arm: main.sign * mean for arm, mean in means.items() if mean is not None}
    own_model = {arm: score for arm, score in scores.items() if arm not in UPPER_BOUNDS}
    top = max(own_model.values(), default=0.0)
    best = tuple(arm for arm, score in own_model.items() if score == top) if main.sign else ()
    own = [arm for arm in reversed(PERSONALISED) if arm in scores]
    return TaskView(
        main,
        max((cell.n_users or len(cell.users) for cell in cells.values()), default=0),
        max((cell.n_questions for cell in cells.values()), default=0),
        best if len(own_model) > 1 else (),
        max(own, key=scores.__getitem__, default=None),
    )


def main_estimate(cell: Cell, main: MainMetric) -> Estimate:
    """The cell's main metric; an empty estimate where it has none."""
    return cell.metrics.get(main.metric) or Estimate()


def verdict(gain: Estimate | None) -> str:
    """``better`` or ``worse`` (the interval excludes zero), ``unsure``, or "" without a gain."""
    if gain is None or gain.mean is None:
        return ""
    low, high = gain.ci95 or (0.0, 0.0)
    return "better" if low > 0 else "worse" if high < 0 else "unsure"


def parse_results(content: Any, where: str = "metrics") -> Results:
    """Check the content of ``metrics.json``.

    Raises:
        StorageError: it does not have the shape of a study's results.
    """
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"not the results of a study ({place or 'top level'}: {first['msg']})"
        raise StorageError(what, where=where, fix="Run the study again") from error


def read_run(run: Path) -> RunData:
    """Read ``config.yaml``, ``metrics.json`` and ``events.jsonl``; each may be missing.

    Raises:
        StorageError: there is no such folder, or ``metrics.json`` is damaged.
    """
    if not run.is_dir():
        fix = "Give the folder of a study, e.g. runs/my-study"
        raise StorageError("there is no such run folder", where=str(run), fix=fix)
    notes: list[str] = []
    path = run / "metrics.json"
    results = Results()
    if path.exists():
        try:
            results = parse_results(json.loads(path.read_bytes()), str(path))
        except ValueError as error:
            fix = "Go on with the study with --resume; it writes the file anew"
            raise StorageError("not a JSON file", where=str(path), fix=fix) from error
    else:
        notes.append("metrics.json is missing: the run has not finished.")
    config = _read_config(run / "config.yaml", notes) or results.config
    data = RunData(run.resolve().name, results, hide_secrets(config), notes=notes)
    _read_events(run / "events.jsonl", data)
    return data


def _read_config(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append("config.yaml is missing.")
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        notes.append("config.yaml cannot be read.")
        return {}
    return content if isinstance(content, dict) else {}


def _read_events(path: Path, data: RunData) -> None:
    """Fill in what the event log says; of the many users' events only light figures are kept."""
    if not path.exists():
        data.notes.append("events.jsonl is missing: no training curves and no examples.")
        return
    trained: dict[tuple[str, str], dict[str | None, Trained]] = {}
    answered: dict[str, dict[str, dict[str, Answered]]] = {}
    took: dict[tuple[str, str], dict[str | None, tuple[float | None, bool]]] = {}
    skipped = 0
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                event = json.loads(line)
                kind = event.get("event") if isinstance(event, dict) else None
                if kind == "trained":
                    done = Trained.model_validate(event)
                    key = (done.task, done.adapter)
                    _keep(trained.setdefault(key, {}), done.user, done)
                    broken = _NOT_FINITE.search(done.stopped or "") is not None
                    took.setdefault(key, {})[done.user] = (done.seconds, broken)
                elif kind == "answered":
                    told = Answered.model_validate(event)
                    people = answered.setdefault(told.task, {})
                    _keep(people, told.user, {**people.get(told.user, {}), told.arm: told})
            except ValueError:  # also what JSON, UTF-8 and pydantic errors are
                skipped += 1
    if skipped:
        what = "Lines of events.jsonl that cannot be read and are left out"
        data.notes.append(f"{what}: {skipped}.")
    data.trained = [event for kept in trained.values() for event in kept.values()]
    data.answered = [
        event for kept in answered.values() for arms in kept.values() for event in arms.values()
    ]
    for key, users in took.items():
        known = [seconds for seconds, _ in users.values() if seconds is not None]
        broken_count = sum(broken for _, broken in users.values())
        data.training[key] = Training(sum(known) if known else None, broken_count)


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep the latest value of the first `_MOST_KEPT` keys that come."""
    if key in kept or len(kept) < _MOST_KEPT:
        kept[key] = value


_SECRET = re.compile(r"(^|_)(api_?key|key|secret|password|passphrase|token)$", re.IGNORECASE)


def hide_secrets(value: Any) -> Any:
    """The configuration with keys and passwords blanked (a report gets passed on), free of NaN."""
    if isinstance(value, dict):
        return {
            str(k): "(hidden)" if v and _SECRET.search(str(k)) else hide_secrets(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [hide_secrets(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
