"""`pfi ask` and `pfi chat`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import Profile, TaskName, add_command, flags, note, open_profile, short
from pfi.cli.memory import indexing
from pfi.errors import PfiError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pfi.profile.answer.runtime import Prepared, Runtime
    from pfi.profile.home import Home
    from pfi.profile.vault.feedback import Rating
    from pfi.tasks import Task

NoMemory = Annotated[bool, typer.Option("--no-memory", help="Retrieve no records.")]
Retrieved = Annotated[
    int | None,
    typer.Option("--records", "-k", min=0, help="How many records to retrieve."),
]
CHAT_HELP = (
    "/quit ends, /task T changes the task, /why shows what the last answer rests on; "
    "/good, /bad and /correct TEXT say what it is or should have been."
)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    lines = [
        'pfi ask "Suggest a title for a talk on tea"',
        'pfi ask "The food was cold" --task LaMP_3 --why',
        "pfi ask - --task LaMP_4 < article.txt",
    ]
    add_command(app, ask, lines)
    add_command(app, chat, ["pfi chat", "pfi chat --task LaMP_4", "pfi chat < questions.txt"])


def ask(
    text: Annotated[str, typer.Argument()],
    task: TaskName = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", "-f", metavar="NAME=TEXT", help="A further input field; repeatable."
        ),
    ] = None,
    k: Retrieved = None,
    no_memory: NoMemory = False,
    why: Annotated[
        bool, typer.Option("--why", help="Show the records and the adapter behind the answer.")
    ] = False,
    profile: Profile = "default",
) -> None:
    """Ask your model one question; the TEXT - is read from standard input."""
    from pfi.profile.answer.runtime import Runtime, pick_task, question_fields
    from pfi.profile.vault.imports import parse_options

    home = open_profile(profile)
    question = sys.stdin.read() if text == "-" else text
    with home.vault_session(), closing(Runtime(home)) as runtime:
        with indexing() as runtime.on_index:
            prepared = runtime.prepare(
                question,
                pick_task(home, task),
                k=0 if no_memory else k,
                fields=parse_options(fields or []),
            )
        _say_if_plain(prepared, profile)
        answer = runtime.answer(prepared)
        typer.echo(answer.text)
        values = question_fields(prepared.task, question, parse_options(fields or []))
        _remember(home, prepared.task, values, answer.text)
    if why:
        _explain(prepared)


def chat(
    task: TaskName = None,
    k: Retrieved = None,
    no_memory: NoMemory = False,
    profile: Profile = "default",
) -> None:
    """Ask your model line by line; every line is a question of its own."""
    from pfi.profile.answer.runtime import Runtime, pick_task, question_fields

    home = open_profile(profile)
    chosen = pick_task(home, task)
    note(f"Task {chosen.name}. {CHAT_HELP}")
    k = 0 if no_memory else k
    last: tuple[Prepared, str, str] | None = None  # with the question and the answer
    with closing(Runtime(home)) as runtime:
        while (line := _read_line()) is not None:
            command, _, argument = line.strip().partition(" ")
            try:
                if command == "/quit":
                    break
                if command == "/why":
                    _explain(last[0]) if last else note("Nothing was answered yet.")
                elif command in ("/good", "/bad", "/correct"):
                    _rate(home, last, command, argument.strip())
                elif command == "/task":
                    chosen = pick_task(home, argument.strip() or None)
                    note(f"Task {chosen.name}.")
                elif command.startswith("/"):
                    note(CHAT_HELP)
                elif command:
                    with home.vault_session():
                        last = _reply(runtime, chosen, line.strip(), k, profile)
                        _remember(home, chosen, question_fields(chosen, last[1], {}), last[2])
            except PfiError as error:
                # A wrong line should not end the talk.
                note(f"error: {' '.join(str(error).split())}")


def _reply(
    runtime: Runtime, task: Task, text: str, k: int | None, profile: str
) -> tuple[Prepared, str, str]:
    with indexing() as runtime.on_index:
        prepared = runtime.prepare(text, task, k=k)
    _say_if_plain(prepared, profile)
    pieces = []
    stream = runtime.stream(prepared)
    try:
        for piece in stream:
            typer.echo(piece.text, nl=False)
            sys.stdout.flush()
            pieces.append(piece.text)
    except KeyboardInterrupt:  # ends the answer, not the talk
        stream.cancel()
    typer.echo()
    return prepared, text, task.parse("".join(pieces))


def _remember(home: Home, task: Task, fields: Mapping[str, str], answer: str) -> None:
    """Keep an answer for `pfi feedback --last`; the talk goes on if that fails."""
    from pfi.profile.learn.feedback import remember

    try:
        remember(home, task, fields, answer)
    except StorageError as error:
        note(f"`pfi feedback --last` will not know this answer: {error}")


def _rate(home: Home, last: tuple[Prepared, str, str] | None, command: str, text: str) -> None:
    """Give feedback on the last answer of a chat."""
    from pfi.profile.answer.runtime import question_fields
    from pfi.profile.learn.feedback import give

    if last is None:
        note("Nothing was answered yet.")
        return
    prepared, question, answer = last
    rating: Rating = "good" if command == "/good" else "bad"
    correcting = command == "/correct"
    entry = give(
        home,
        prepared.task,
        question_fields(prepared.task, question, {}),
        answer=answer,
        correction=text if correcting else None,
        rating=None if correcting else rating,
    )
    note(f"Noted, batch {entry.batch}; `pfi refresh` learns from it.")


def _read_line() -> str | None:
    """The next line, or None at the end of the input."""
    if sys.stdin.isatty():
        try:
            return input("> ")
        except EOFError:
            typer.echo()
            return None
    return sys.stdin.readline() or None


_said: set[tuple[str, str]] = set()


def _say_if_plain(prepared: Prepared, profile: str) -> None:
    """Say once per task that nothing was trained for it."""
    task = prepared.task.name
    if prepared.personal is None and (profile, task) not in _said:
        _said.add((profile, task))
        command = f"pfi train{flags(profile, task)}"
        base = "the shared adapter" if prepared.shared else "the plain backbone"
        note(f"No personal adapter for {task} is in use; {base} answers. `{command}` makes one.")


def _explain(prepared: Prepared) -> None:
    note(f"task: {prepared.task.name}")
    weight = f", weight {prepared.weight:g}" if prepared.personal else ""
    note(f"personal adapter: {prepared.personal or 'none'}{weight}")
    note(f"shared adapter: {prepared.shared or 'none'}")
    note(f"gate: {prepared.gate}")
    note(f"retrieved records: {len(prepared.records)}")
    for record in prepared.records:
        when = f"{record.time:%Y-%m-%d} " if record.time else ""
        text = short(" ".join([*record.input.values(), record.output]))
        note(f"  {when}{record.id}: {text}")
