"""The stream protocol: predict, then learn; nothing of a step reaches itself or an earlier one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfi.cli.study import build_config
from pfi.datasets.demo import write_demo
from pfi.datasets.lamp import read_users
from pfi.errors import ConfigError, StorageError
from pfi.evaluate.stream import run as stream_run
from pfi.evaluate.stream.metrics import points_scale, scored, stream_metrics
from pfi.evaluate.stream.replay import POLICIES, changed_labels, make_stream
from pfi.evaluate.stream.report import stream_table, write_stream_report
from pfi.evaluate.stream.run import StreamStudy
from pfi.evaluate.study.checkpoints import Checkpoints
from pfi.evaluate.study.config import StreamConfig, StudyConfig
from pfi.evaluate.study.events import EventLog
from pfi.inference.answering import answers, label_scores
from pfi.inference.engine import Request
from pfi.memory.index import Memory
from pfi.models.backbone import load_backbone
from pfi.models.scoring import score_ids
from pfi.records import History, Question, Record, User
from pfi.tasks import get_task
from pfi.train.config import TrainConfig

Folder = Callable[[str], Path]
QUICK = TrainConfig(rank=2, epochs=1, batch_size=8, learning_rate=3e-2, max_length=128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=1, train_users=2, users=3)
    return folder


def config(data: Path, backbone: Path, **changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "data": data,
        "protocol": "stream",
        "tasks": ["LaMP_3"],
        "split": "test",
        "backbone": str(backbone),
        "shared": QUICK,
        "personal": QUICK,
        "bootstrap": 20,
        "max_prompt": 560,
        "retrieval_budget": 96,
        "stream": {"steps": 10},
        **changes,
    }
    return StudyConfig.model_validate(values)


def streamed(run: Path) -> dict[str, dict[str, Any]]:
    """The ``streamed`` events of a run with one task, by user."""
    return {e["user"]: e for e in EventLog(run / "events.jsonl") if e["event"] == "streamed"}


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without what differs from run to run."""
    copy = json.loads(json.dumps(metrics))
    for cell in copy["tasks"].values():
        del cell["seconds"]
    return copy


# Streams ------------------------------------------------------------------------------


def records(outputs: Sequence[str], task: str = "LaMP_3") -> list[Record]:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    return [
        Record(f"r{i}", task, {"text": f"book {i}", "title": f"paper {i}"}, output,
               start + timedelta(days=i))
        for i, output in enumerate(outputs)
    ]  # fmt: skip


def rng_of(record: str) -> random.Random:
    return random.Random(record)


def test_a_stream_asks_every_record_in_time_order_and_then_the_questions() -> None:
    task, made = get_task("LaMP_3"), records("12345")
    late = datetime(2021, 1, 1, tzinfo=UTC)
    question = Question("q", "u", "LaMP_3", "the prompt", {"text": "x"}, late, "2")
    user = User("u", History("u", reversed(made)), (question,))
    stream = make_stream(task, user, StreamConfig(), [], rng_of)
    assert [s.record for s in stream.steps] == ["r0", "r1", "r2", "r3", "r4"]
    assert [(s.step, s.seen, s.gold) for s in stream.steps] == [
        (i, i, str(i + 1)) for i in range(5)
    ]
    assert all(s.prompt == task.prompt(r.input) for s, r in zip(stream.steps, made, strict=True))
    more = make_stream(task, user, StreamConfig(questions=True, steps=3), [], rng_of)
    assert [(s.record, s.step, s.seen) for s in more.steps[2:]] == [("r2", 2, 2), ("q", 3, 3)]
    last = make_stream(task, user, StreamConfig(), [], rng_of, 2)
    assert [s.record for s in last.steps] == ["r3", "r4"]


def test_a_new_paper_is_the_right_option_and_no_earlier_record_names_it() -> None:
    task = get_task("LaMP_1")
    own = records([""] * 6, "LaMP_1")
    strangers = [Record(f"s{i}", "LaMP_1", {"title": f"strange {i}"}, "") for i in range(3)]
    stream = make_stream(task, User("u", History("u", own)), StreamConfig(), strangers, rng_of)
    assert [s.seen for s in stream.steps] == [1, 2, 3, 4, 5]  # the first has no past
    for step in stream.steps:
        right = step.fields[f"option_{step.gold[1]}"]
        wrong = step.fields[f"option_{3 - int(step.gold[1])}"]
        assert right == f"paper {step.seen}" and wrong.startswith("strange")
        assert step.fields["title"] in {f"paper {i}" for i in range(step.seen)}
        assert [own[int(i[1:])].input["title"] for i in step.shown] == [step.fields["title"]]


def test_the_planted_change_turns_scales_and_rotates_a_users_labels() -> None:
    scale, news = get_task("LaMP_3"), get_task("LaMP_2N")
    made = records(["5", "5", "1", "4"])
    stream = make_stream(scale, User("u", History("u", made)), StreamConfig(flip=0.5), [], rng_of)
    assert stream.flipped == 2
    assert [s.gold for s in stream.steps] == ["5", "5", "5", "2"]
    assert [r.output for r in stream.records] == ["5", "5", "5", "2"]  # learnt from as asked
    changed = changed_labels(news, records(["crime", "crime", "sports", "women", "women", "women"]))
    assert changed == {"women": "crime", "crime": "sports", "sports": "women"}
    alone = changed_labels(news, records(["travel"] * 3))
    assert alone["travel"] == "education"
    assert changed_labels(news, []) == {}


# Runs ---------------------------------------------------------------------------------


def edit_outputs(data: Path, place: int) -> str:
    """Change the score of one record of every test user; returns the new score."""
    path = data / "LaMP_3" / "test_questions.json"
    items = json.loads(path.read_text())
    for item in items:
        profile = sorted(item["profile"], key=lambda entry: str(entry["date"]))
        entry = profile[place]
        entry["score"] = "1" if str(entry["score"]) != "1" else "5"
    path.write_text(json.dumps(items))
    return str(path)


@pytest.mark.parametrize("settings", [{}, {"replay": 0, "anew": True, "every": 3}])
def test_a_records_output_reaches_neither_its_own_step_nor_an_earlier_one(
    backbone_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    """All label scores up to and including the step stay as they were; later ones do not."""

    def all_scores(engine: Any, task: Any, asked: list[Any]) -> list[str]:
        return [json.dumps(row) for row in label_scores(engine, task, asked)]

    monkeypatch.setattr(stream_run, "answers", all_scores)
    folder, place = tmp_path / "data", 5
    write_demo(folder, seed=1, train_users=2, users=2)
    found = []
    for name in ("before", "after"):
        made = config(folder, backbone_folder("llama"), k=4, stream={"steps": 10, **settings})
        if name == "after":
            made = made.model_copy(update={"shared_from": tmp_path / "before"})
        StreamStudy(made, tmp_path / name).run()
        found.append(streamed(tmp_path / name))
        edit_outputs(folder, place)
    before, after = found
    assert list(before) == list(after) and len(before) == 2
    later = dict.fromkeys(POLICIES, 0.0)
    for user in before:
        steps = list(zip(before[user]["steps"], after[user]["steps"], strict=True))
        assert steps[place][0]["gold"] != steps[place][1]["gold"]
        for policy in POLICIES:
            apart = [
                float(np.abs(np.subtract(json.loads(a[policy]), json.loads(b[policy]))).max())
                for a, b in steps
            ]
            assert max(apart[: place + 1]) < 1e-4, policy
            later[policy] = max(later[policy], *apart[place + 1 :])
    assert later.pop("never") < 1e-4
    assert min(later.values()) > 1e-3  # the change does reach later steps


def test_policies_are_the_shared_adapter_and_plain_retrieval(
    data: Path, backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[tuple[int, ...], set[str]] = {}

    def record(engine: Any, task: Any, requests: list[Request]) -> list[str]:
        for request in requests:
            key = request.adapter.key if request.adapter else ""
            asked.setdefault(tuple(request.prompt), set()).add(key)
        return answers(engine, task, requests)

    monkeypatch.setattr(stream_run, "answers", record)
    made = config(data, backbone_folder("llama"))
    StreamStudy(made, tmp_path / "run").run()
    task = get_task("LaMP_3")
    shared = Checkpoints(tmp_path / "run").load("shared", "LaMP_3")
    assert shared is not None
    plain = load_backbone(made.backbone)
    backbone = plain.with_adapters([shared])
    events = streamed(tmp_path / "run")
    users = read_users(data, task, "test")
    assert [user.id for user in users] == list(events)
    for user in users:
        prompts, filled = [], []
        for i, r in enumerate(user.history[:10]):
            prompt = task.prompt(r.input)
            found = Memory(task, user.history[:i]).search(task.query_text(r.input), made.retrieve)
            prompts.append(tuple(plain.prompt_ids(prompt, 560)))
            text = task.retrieval_prompt(prompt, found, plain.trim, 96)
            filled.append(tuple(plain.prompt_ids(text, 560)))
        steps = events[user.id]["steps"]
        for policy, ids in (("never", prompts), ("memory", filled)):
            labels = [[plain.target_ids(label) for label in task.labels]] * len(ids)
            expected = [task.choose(row) for row in score_ids(backbone, ids, labels)]
            assert [s[policy] for s in steps] == expected
        for i, (bare, full) in enumerate(zip(prompts, filled, strict=True)):
            # Before the first update nothing but the shared adapter answers; then both do.
            assert len(asked[bare]) == len(asked[full]) == (1 if i < 4 else 2)


def test_updates_come_every_few_records_and_learn_from_what_the_settings_say(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    sizes = {}
    for replay in (None, 0, 2):
        made = config(data, backbone_folder("llama"), users=1,
                      stream={"first": 3, "every": 4, "steps": 12, "replay": replay})  # fmt: skip
        if sizes:
            made = made.model_copy(update={"shared_from": tmp_path / "None"})
        StreamStudy(made, tmp_path / str(replay)).run()
        (event,) = streamed(tmp_path / str(replay)).values()
        sizes[replay] = [(u["records"], u["examples"]) for u in event["updates"]]
    assert sizes == {
        None: [(3, 3), (7, 7), (11, 11)],
        0: [(3, 3), (7, 4), (11, 4)],
        2: [(3, 3), (7, 6), (11, 6)],
    }


class _Stop(Exception):
    """Stands for a kill at one moment of a run."""


def test_a_stopped_run_resumes_to_the_same_metrics(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    made = config(
        data,
        backbone_folder("llama"),
        tasks=["LaMP_3", "LaMP_4"],
        working_set=2,
        stream={"first": 2, "every": 2, "steps": 5},
    )
    moments = 0

    def count(text: str, done: int, planned: int) -> None:
        nonlocal moments
        moments += 1

    whole = comparable(StreamStudy(made, tmp_path / "whole", on_progress=count).run())
    assert whole["tasks"]["LaMP_4"]["n_questions"] == 15
    for part in (4, 8):
        out, left = tmp_path / f"part-{part}", moments * part // 10

        def stop(text: str, done: int, planned: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Stop

        with pytest.raises(_Stop):
            StreamStudy(made, out, on_progress=stop).run()
        with (out / "events.jsonl").open("a") as file:
            file.write('{"event": "streamed", "task": "LaM')  # a line torn by the kill
        assert comparable(StreamStudy(made, out, resume=True).run()) == whole
        log = [e for e in EventLog(out / "events.jsonl") if e["event"] == "streamed"]
        assert len({(e["task"], e["user"]) for e in log}) == len(log) == 6


def test_settings_that_streams_do_not_have_are_refused(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    folder = backbone_folder("llama")
    for changes, match in (
        ({"workers": 2}, "one process"),
        ({"arms": ["shared"]}, "no arms"),
        ({"tasks": ["LaMP_4"], "stream": {"flip": 0.5}}, "no labels"),
    ):
        with pytest.raises(ConfigError, match=match):
            StreamStudy(config(data, folder, **changes), tmp_path / "run")
    made = build_config(None, {"data": data, "protocol": "stream"}, ["stream.every=7"])
    assert (made.protocol, made.stream.every, made.stream.first) == ("stream", 7, 4)


# Figures ------------------------------------------------------------------------------


def event(user: str, scores: dict[str, Sequence[int]], flipped: int | None = None) -> Any:
    """A LaMP_2N event: 1 where a policy is right."""
    length = len(scores["never"])
    steps = [
        {"step": i, "seen": i, "record": f"r{i}", "gold": "crime"}
        | {policy: "crime" if scores[policy][i] else "women" for policy in POLICIES}
        for i in range(length)
    ]
    return {"event": "streamed", "task": "LaMP_2N", "user": user, "records": length,
            "flipped": flipped, "seconds": 1.0, "updates": [], "steps": steps}  # fmt: skip


def figures(events: list[Any], **stream: Any) -> dict[str, Any]:
    made = StudyConfig(data=Path(), protocol="stream", stream=StreamConfig(**stream))
    return stream_metrics(made, [get_task("LaMP_2N")], events)


def test_figures_are_means_over_users_of_their_own_means() -> None:
    long = dict.fromkeys(POLICIES, [0] * 8) | {
        "both": [0] * 4 + [1] * 4,
        "memory": [0] * 6 + [1] * 2,
    }
    short = dict.fromkeys(POLICIES, [1] * 6)
    metrics = figures([event("a", long), event("b", short)])
    cell = metrics["tasks"]["LaMP_2N"]
    final = cell["after_first_update"]
    assert (cell["n_users"], cell["n_questions"], final["n_users"]) == (2, 14, 2)
    # By hand: user a has steps 4..7, user b steps 4..5.
    assert final["policies"]["both"]["mean"] == pytest.approx((1.0 + 1.0) / 2)
    assert final["policies"]["memory"]["mean"] == pytest.approx((0.5 + 1.0) / 2)
    assert final["policies"]["never"]["mean"] == pytest.approx((0.0 + 1.0) / 2)
    assert final["gains"]["both over memory"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert final["gains"]["both over memory"]["ci95"] == pytest.approx([0.0, 0.5])
    assert metrics["points"]["both over never"]["mean"] == pytest.approx(50.0)
    first, second = cell["windows"]
    assert [(w["from"], w["to"], w["n_users"]) for w in (first, second)] == [(0, 3, 2), (4, 7, 2)]
    assert first["policies"]["both"]["mean"] == pytest.approx(0.5)
    assert second["policies"]["both"]["cumulative"] == pytest.approx((4 / 8 + 1) / 2)
    assert second["policies"]["both"]["over_never"]["mean"] == pytest.approx(0.5)


def test_recovery_is_the_first_window_back_at_the_level() -> None:
    """Ten users alike: the level has no spread, so only a full window is back."""
    right, wrong = [1] * 8, [0] * 8
    scores = {
        "never": right + wrong,
        "memory": [*right, 0, 0, 0, 0, 0, 1, 1, 1],
        "adapter": [*right, 0, 0, 0, 0, 1, 1, 1, 1],
        "both": right + right,
    }
    events = [event(f"u{i}", scores, flipped=8) for i in range(10)]
    cell = figures(events, flip=0.5)["tasks"]["LaMP_2N"]
    assert [w["from"] for w in cell["windows"]] == [-8, -4, 0, 4]
    recovered = {policy: found["recovered"] for policy, found in cell["flip"].items()}
    assert recovered == {"never": None, "memory": None, "adapter": 4, "both": 0}
    few = {policy: [*row[:12], 1] for policy, row in scores.items()}
    alone = [event("u", dict.fromkeys(POLICIES, right + wrong[:4]), flipped=8) for _ in range(3)]
    for i, other in enumerate(alone):
        other["user"] = f"v{i}"
    rare = figures([event("w", few, flipped=8), *alone], flip=0.5)["tasks"]["LaMP_2N"]
    assert rare["flip"]["adapter"]["recovered"] is None  # one user of four reaches the window
    assert cell["flip"]["adapter"]["before"] == {"mean": 1.0, "ci95": [1.0, 1.0]}


def test_scores_are_errors_turned_round() -> None:
    steps = [{"step": 0, "gold": "5", **dict.fromkeys(POLICIES, "3"), "both": "5"}]
    found = scored(get_task("LaMP_3"), {"user": "u", "records": 1, "flipped": None, "steps": steps})
    assert found.scores.tolist() == [[-2.0, -2.0, -2.0, 0.0]]
    assert (points_scale(get_task("LaMP_3")), points_scale(get_task("LaMP_4"))) == (25.0, 100.0)


def test_the_report_shows_every_task_and_policy(
    data: Path, backbone_folder: Folder, tmp_path: Path
) -> None:
    made = config(data, backbone_folder("llama"), tasks=["LaMP_2M", "LaMP_3"],
                  stream={"flip": 0.5, "first": 2, "steps": 12, "questions": True})  # fmt: skip
    metrics = StreamStudy(made, tmp_path / "run").run()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert metrics["tasks"]["LaMP_3"]["n_questions"] == 3 * (12 + 4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 2 and "labels change" in page and "<script" not in page
    for task in ("LaMP_2M", "LaMP_3"):
        final = metrics["tasks"][task]["after_first_update"]["policies"]
        for policy in POLICIES:
            cell = page.partition(f'data-task="{task}" data-policy="{policy}"')[2]
            shown = cell.partition('value="')[2].partition('"')[0]
            assert float(shown) == pytest.approx(final[policy]["mean"])
    assert stream_table(metrics).row_count == 2 + 3
    (tmp_path / "run" / "metrics.json").write_text('{"arms": {}}')
    with pytest.raises(StorageError, match="no figures of a stream"):
        write_stream_report(tmp_path / "run")
