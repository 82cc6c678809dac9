"""`pfi ask` and `pfi chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import Profile, TaskName, add_command, flags, note, open_home, short
from pfi.errors import PfiError

if TYPE_CHECKING:
    from pfi.device import Prepared, Runtime
    from pfi.tasks import Task

NoMemory = Annotated[bool, typer.Option("--no-memory", help="Retrieve no records.")]
Retrieved = Annotated[
    int | None,
    typer.Option("--records", "-k", min=0, help="How many records to retrieve."),
]
CHAT_HELP = "/quit ends, /task T changes the task, /why shows what the last answer rests on."


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
    from pfi.device import Runtime, parse_options, pick_task

    home = open_home(profile)
    runtime = Runtime(home)
    question = sys.stdin.read() if text == "-" else text
    prepared = runtime.prepare(
        question,
        pick_task(home, task),
        k=0 if no_memory else k,
        fields=parse_options(fields or []),
    )
    _say_if_plain(prepared, profile)
    answer = runtime.answer(prepared)
    typer.echo(answer.text)
    if why:
        _explain(prepared)


def chat(
    task: TaskName = None,
    k: Retrieved = None,
    no_memory: NoMemory = False,
    profile: Profile = "default",
) -> None:
    """Ask your model line by line; every line is a question of its own."""
    from pfi.device import Runtime, pick_task

    home = open_home(profile)
    runtime = Runtime(home)
    chosen = pick_task(home, task)
    note(f"Task {chosen.name}. {CHAT_HELP}")
    k = 0 if no_memory else k
    last: Prepared | None = None
    while (line := _read_line()) is not None:
        command, _, argument = line.strip().partition(" ")
        try:
            if command == "/quit":
                break
            if command == "/why":
                _explain(last) if last else note("Nothing was answered yet.")
            elif command == "/task":
                chosen = pick_task(home, argument.strip() or None)
                note(f"Task {chosen.name}.")
            elif command.startswith("/"):
                note(CHAT_HELP)
            elif command:
                last = _reply(runtime, chosen, line.strip(), k, profile)
        except PfiError as error:
            # A wrong line should not end the talk.
            note(f"error: {' '.join(str(error).split())}")


def _reply(runtime: Runtime, task: Task, text: str, k: int | None, profile: str) -> Prepared:
    prepared = runtime.prepare(text, task, k=k)
    _say_if_plain(prepared, profile)
    for piece in runtime.stream(prepared):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
    return prepared


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
    note(f"personal adapter: {prepared.personal or 'none'}")
    note(f"shared adapter: {prepared.shared or 'none'}")
    note(f"retrieved records: {len(prepared.records)}")
    for record in prepared.records:
        when = f"{record.time:%Y-%m-%d} " if record.time else ""
        text = short(" ".join([*record.input.values(), record.output]))
        note(f"  {when}{record.id}: {text}")
