"""`pfi chat` and `pfi system` over a pipe: turns, what is told first, answers that are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfi.cli.app import app
from pfi.inference.engine import text_of
from pfi.profile.answer.conversation import read_system
from pfi.profile.answer.runtime import Runtime
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn.feedback import last_answer
from pfi.profile.open import create_home


@pytest.fixture
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_folder: Callable[[str], Path]
) -> Home:
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    config = HomeConfig(backbone=str(backbone_folder("llama")), embedder="none")
    return create_home("default", root=tmp_path, lock="file", config=config)


def pfi(*arguments: str, stdin: str = "", code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout, result.stderr


def test_a_conversation_over_a_pipe(home: Home) -> None:
    out, told = pfi("chat", "--max-tokens", "4", stdin="first fox\nsecond dog\n/new\nfirst fox\n")
    one, two, again = out.splitlines()
    assert one == again
    assert "cut at 4 tokens; /more goes on" in told
    runtime = Runtime(home)
    turns = [("user", "first fox"), ("assistant", one.strip())]
    from pfi.tasks import get_task

    asked = runtime.prepare("second dog", get_task("instruction"), history=turns)
    sampling = runtime.sampling(asked.task, {"max_tokens": 4})
    assert text_of(runtime.stream(asked, sampling)) == two
    runtime.close()


def test_more_goes_on_and_what_was_answered_is_remembered_whole(home: Home) -> None:
    out, told = pfi("chat", "--max-tokens", "3", stdin="the fox\n/more\n/more\n")
    assert told.count("/more goes on)") == 3 and "cut at 9 tokens" in told
    assert last_answer(home).answer == "".join(out.splitlines()).strip()
    _, told = pfi("chat", stdin="/more\n")
    assert "error: the last answer was not cut" in told


def test_the_system_prompt_of_a_profile_and_of_a_talk(home: Home) -> None:
    assert pfi("system")[0] == ""
    assert pfi("system", "Answer as a fox.")[0] == "Answer as a fox.\n"
    assert read_system(home) == "Answer as a fox."
    own, _ = pfi("chat", "--max-tokens", "6", stdin="hello\n")
    none, _ = pfi("chat", "--max-tokens", "6", "--system", "", stdin="hello\n")
    later, told = pfi(
        "chat", "--max-tokens", "6", "--system", "", stdin="/system Answer as a fox.\nhello\n"
    )
    assert own == later != none and "told: Answer as a fox." in told
    assert pfi("system", "--remove")[0] == "" and read_system(home) == ""


def test_ask_says_where_it_was_cut(home: Home) -> None:
    _, told = pfi("ask", "the fox", "--max-tokens", "2")
    assert "(cut at 2 tokens; --max-tokens allows more)" in told


def test_ctrl_c_ends_the_answer_and_not_the_talk(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfi.profile.answer.conversation import Conversation

    pieces, pressed = Conversation._pieces, []

    def press(self: Conversation, prepared: object) -> object:
        for text in pieces(self, prepared):  # type: ignore[arg-type]
            yield text
            if not pressed:
                pressed.append(text)
                raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "_pieces", press)
    out, _ = pfi("chat", "--max-tokens", "5", stdin="the fox\nthe dog\n")
    first, second = out.splitlines()
    assert pressed == [first] and second
