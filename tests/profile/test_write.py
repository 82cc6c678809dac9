"""The task `write`: records of every task with own words serve it, and are erased from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pfi.tasks
from pfi.errors import ConfigError
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.answer.memory import memory_status, open_memory, task_memory
from pfi.profile.answer.runtime import pick_conversation
from pfi.profile.config import HomeConfig
from pfi.profile.erase.erasure import erase
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import as_request, get_task, source_tasks, tasks_served

DAY = datetime(2024, 1, 1, tzinfo=UTC)
WRITE = get_task("write")


def record(n: int, task: str, output: str, **fields: str) -> Record:
    return Record(f"r{n}", task, fields, output, DAY + timedelta(days=n))


MAIL = record(1, "email_reply", "Friday suits me, see you.", message="Shall we meet on Friday?")
CHAT = record(2, "chat_reply", "yep!", message="coming?")
TITLE = record(3, "note_title", "Roof", text="The roof of the shed leaks")
TEXT = record(4, "continuation", "one two three four five six seven eight nine ten")
SHORT = record(5, "continuation", "too short")
FOLDER = record(6, "bookmark_folder", "tools", title="A saw", url="saw.example")
STARS = record(7, "LaMP_3", "5", text="Great food")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = create_home("p", root=tmp_path, lock="file", config=HomeConfig(embedder="none"))
    with made.open_vault() as vault:
        vault.add([MAIL, CHAT, TITLE, TEXT, SHORT, FOLDER, STARS])
    return made


def test_the_tasks_that_serve_it_are_those_of_own_words() -> None:
    assert {"email_reply", "chat_reply", "note_title", "commit_message", "LaMP_4"} <= {
        *source_tasks("write")
    }
    assert not {"bookmark_folder", "page_site", "LaMP_3", "LaMP_1"} & {*source_tasks("write")}
    assert source_tasks("LaMP_4") == ("LaMP_4",) and source_tasks("my_own") == ("my_own",)
    assert tasks_served("email_reply") == ("email_reply", "write")
    assert tasks_served("LaMP_3") == ("LaMP_3",)


def test_a_history_has_the_records_of_all_as_requests(home: Home) -> None:
    with home.open_vault() as vault:
        history = vault.history("write", origin="real")
        assert [r.id for r in history] == ["r1", "r2", "r3", "r4"]  # oldest first
        mail = history[0]
        asked = get_task("email_reply").prompt(MAIL.input)
        assert (mail.task, dict(mail.input), mail.output) == (
            "write", {"request": asked}, MAIL.output
        )  # fmt: skip
        text = history[3]
        assert text.input["request"].startswith("Continue the following text in my style: one two")
        start = text.input["request"].partition(": ")[2]
        assert f"{start} {text.output}" == TEXT.output
        assert list(history) == list(vault.history("write", origin="real"))  # every time
        assert vault.history("write", origin="synthetic") == history[:0]
        assert vault.added_since("write", DAY) >= {"r1", "r2", "r3", "r4"}
        assert len(vault.history("email_reply")) == 1  # its own task has it still


def test_own_records_of_it_stay_as_they_are(home: Home) -> None:
    own = record(9, "write", "Sure.", request="Say yes")
    with home.open_vault() as vault:
        vault.add([own])
        assert vault.history("write")[-1] == own
    assert as_request(own, WRITE) is own


@pytest.mark.parametrize("used", [False, True])
def test_memory_finds_over_all_of_them(home: Home, used: bool) -> None:
    if used:
        home.config.task = "write"
    with open_memory(home) as store:
        assert ("write" in store.sizes()) == used  # indexed once more only where it is in use
        found = task_memory(home, store, WRITE).search("shall we meet", 1)
        assert [(r.id, r.task, r.output) for r in found] == [("r1", "write", MAIL.output)]
        assert "Write my reply" in found[0].input["request"]
    assert memory_status(home)["indexed"] == 7


def test_erasing_a_record_drops_the_adapter_that_learnt_it_as_a_request(home: Home) -> None:
    class Stub:
        def to_bytes(self) -> dict[str, bytes]:
            return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}

    now = datetime.now(UTC)
    for task in ("write", "LaMP_3"):
        info = AdapterInfo(task=task, backbone="embedded", read=now)
        home.personal_adapters.use(home.personal_adapters.add(Stub(), info).version)
    assert pick_conversation(home).name == "write"
    erased = erase(home, ["r1"])
    assert home.personal_adapters.active("write") is None and len(erased.dropped) == 1
    assert home.personal_adapters.active("LaMP_3") is not None
    with home.open_vault() as vault:
        assert "r1" not in {r.id for r in vault.history("write")}


def test_a_task_from_a_file_cannot_have_the_records_of_all(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = (Path(pfi.tasks.__file__).parent / "definitions/write.yaml").read_text()
    file.write_text(text.replace("name: write", "name: mine"))
    with pytest.raises(ConfigError, match="records of all tasks"):
        get_task(str(file))
    file.write_text(text.replace("'{request}'", "'{request} {other}'"))
    with pytest.raises(ConfigError, match="records: all"):
        get_task(str(file))
