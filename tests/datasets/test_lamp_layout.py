"""The layouts in which the files of the LaMP benchmark lie.

Shapes: the official addresses as in linfeng-du/PURPLE scripts/download.sh, and folders named
`LaMP_time_4` and `lamp_2_dev_data.json` as other repositories keep them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfi.datasets.lamp import available_tasks, read_users
from pfi.datasets.lamp_layout import task_of
from pfi.errors import ConfigError
from pfi.readers.report import ImportReport
from pfi.sources.connectors import detect, get_connector
from pfi.tasks import get_task

HEADLINE = {"id": "2100", "text": "The ferry was late again.", "title": "Ferry late"}
MOVIE = {"id": "1", "description": "A ship sinks.", "tag": "romance"}
NEWS = {"id": "1", "text": "A ship sank.", "title": "Ship", "category": "travel"}


def questions(path: Path, item: dict[str, str], prompt: str = "?") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"id": "210", "input": prompt, "profile": [item]}]))
    return path


@pytest.mark.parametrize(
    ("name", "item", "task"),
    [
        ("LaMP_4/dev/dev_questions.json", HEADLINE, "LaMP_4"),
        ("LaMP_4/train/train_questions.json", HEADLINE, "LaMP_4"),
        ("LaMP-4/dev_questions.json", HEADLINE, "LaMP_4"),
        ("LaMP_time_4/dev_questions.json", HEADLINE, "LaMP_4"),
        ("time/LaMP_4/dev/dev_questions.json", HEADLINE, "LaMP_4"),
        ("lamp4/test/test_questions.json", HEADLINE, "LaMP_4"),
        ("LaMP_2/new/train/train_questions.json", MOVIE, "LaMP_2M"),
        ("LaMP_2/train/train_questions.json", NEWS, "LaMP_2N"),
        ("LaMP-2M/dev_questions.json", MOVIE, "LaMP_2M"),
        ("lamp_2_dev_questions.json", NEWS, "LaMP_2N"),
        ("LaMP_3/old LaMP_4/dev_questions.json", HEADLINE, "LaMP_4"),
    ],
)
def test_the_task_is_found_in_the_names(
    tmp_path: Path, name: str, item: dict[str, str], task: str
) -> None:
    path = questions(tmp_path / name, item)
    assert detect(path) == "lamp" and task_of(path) == task
    lamp = get_connector("lamp")
    [record] = lamp.read(path, lamp.configure({}), ImportReport())
    assert record.task == task
    assert [r.id for r in lamp.read(tmp_path, lamp.configure({}), ImportReport())] == [record.id]


def test_the_first_question_tells_where_no_name_does(tmp_path: Path) -> None:
    prompt = "Generate a headline for the following article: The ferry was late."
    path = questions(tmp_path / "data.json", HEADLINE, prompt)
    assert detect(path) == "lamp" and task_of(path) == "LaMP_4"
    with pytest.raises(ConfigError, match="task is not clear"):
        task_of(questions(tmp_path / "x" / "dev_questions.json", HEADLINE | {"abstract": "?"}, "?"))
    lamp = get_connector("lamp")
    questions(tmp_path / "LaMP_4" / "dev" / "dev_questions.json", HEADLINE)
    with pytest.raises(ConfigError, match="holds 2 questions files"):
        list(lamp.read(tmp_path, lamp.configure({}), ImportReport()))


def test_a_study_reads_the_official_layout(tmp_path: Path) -> None:
    path = questions(tmp_path / "LaMP_4" / "dev" / "dev_questions.json", HEADLINE)
    questions(tmp_path / "LaMP_2" / "new" / "dev" / "dev_questions.json", MOVIE)
    golds = {"task": "LaMP_4", "golds": [{"id": "210", "output": "Late"}]}
    path.with_name("dev_outputs.json").write_text(json.dumps(golds))
    assert available_tasks(tmp_path, "dev") == ["LaMP_2M", "LaMP_4"]
    (user,) = read_users(tmp_path, get_task("LaMP_4"), "dev")
    assert user.questions[0].gold == "Late" and user.history[0].output == "Ferry late"
