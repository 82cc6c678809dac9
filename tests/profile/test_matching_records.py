"""Which records a free question is shown: those that match, before and after a gate is fitted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pfi.gate.choices import Choice, GateConfig
from pfi.inference.torch.engine import TorchEngine
from pfi.models.backbone import load_backbone
from pfi.profile.answer.gate_file import Fitted, write_gate
from pfi.profile.answer.runtime import Runtime
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

CHAT = get_task("instruction")
NOTES = (
    *((f"Where is the {thing}?", "On the shelf.") for thing in ("bike", "tent", "drill")),
    ("What is the PIN of the safe?", "The PIN is 7391."),
)
UNMATCHED = ("zzzz qqqq", "北京在哪里？", "Where is Beijing?", "Write a poem about the sea.")


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    with TorchEngine(load_backbone("embedded")) as opened:
        yield opened


def make_home(root: Path, records: int) -> Home:
    """Four notes, and as many more of the same wording as make up the number."""
    home = create_home("p", root=root, config=HomeConfig(embedder="none"), lock="file")
    more = [(f"Where is the {a}{b}?", "On the shelf.") for a in "bdfgk" for b in "aeiou"]
    with home.open_vault() as vault:
        vault.add(
            Record(f"r{n}", CHAT.name, {"instruction": asked}, said)
            for n, (asked, said) in enumerate([*NOTES, *more][:records])
        )
    return home


def fit_gate(home: Home, k: int) -> None:
    """As a fitted gate that wants so many records for every question."""
    gate = Fitted(
        task=CHAT.name,
        choice=Choice(k=k),
        sure=1.0,
        gain=0.1,
        tried=8,
        users=0,
        backbone=home.config.backbone,
        personal=None,
        shared=None,
        settings=GateConfig(),  # type: ignore[call-arg]
        date=datetime.now(UTC),
    )
    write_gate(home, {CHAT.name: gate})


@pytest.mark.parametrize("gate", [None, 4])
@pytest.mark.parametrize("records", [4, 24])
def test_only_what_matches_is_shown(
    tmp_path: Path, engine: TorchEngine, records: int, gate: int | None
) -> None:
    """Not what is worded alike, nor the latest to fill up, nor where more are asked for."""
    home = make_home(tmp_path, records)
    if gate is not None:
        fit_gate(home, gate)
    with closing(Runtime(home, engine)) as runtime:

        def shown(question: str, k: int | None = None) -> list[str]:
            return [record.id for record in runtime.prepare(question, CHAT, k=k).records]

        assert shown("Where did I leave my bike?") == ["r0"]
        assert shown("the PIN please", 2) == ["r3"]
        for question in UNMATCHED:
            assert shown(question) == [] == shown(question, 4)
            assert "7391" not in runtime.prepare(question, CHAT, k=4).prompt


def test_a_match_is_shown_though_the_question_as_a_whole_is_unlike_the_records(
    tmp_path: Path, engine: TorchEngine
) -> None:
    with closing(Runtime(make_home(tmp_path, 24), engine)) as runtime:
        made = runtime.prepare("Somebody stole our drill yesterday", CHAT)
        assert made.likeness is not None and made.likeness.off_topic
        assert [record.id for record in made.records] == ["r2"]
        assert "records of yours have to do with it" in made.gate


def test_examples_of_a_named_task_are_not_judged(tmp_path: Path, engine: TorchEngine) -> None:
    """They show how the user writes, whatever about."""
    task = get_task("note_title")
    home = make_home(tmp_path, 4)
    with home.open_vault() as vault:
        vault.add([Record("title", task.name, {"text": "Roses need water."}, "Roses")])
    with closing(Runtime(home, engine)) as runtime:
        assert len(runtime.prepare("Shares fell again.", task).records) == 1
