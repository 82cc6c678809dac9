"""`pfi ask`, `pfi chat` and `pfi system`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import Profile, TaskName, Threads, add_command, flags, note, open_profile, short
from pfi.cli.memory import indexing
from pfi.errors import PfiError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pfi.profile.answer.conversation import Conversation
    from pfi.profile.answer.runtime import Prepared
    from pfi.profile.home import Home
    from pfi.profile.vault.feedback import Rating
    from pfi.tasks import Task

NoMemory = Annotated[bool, typer.Option("--no-memory", help="Retrieve no records.")]
Retrieved = Annotated[
    int | None,
    typer.Option("--records", "-k", min=0, help="How many records to retrieve."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        min=1,
        help="Longest answer in tokens; as the profile says, or the task where it is scored.",
    ),
]
CHAT_HELP = (
    "/quit ends, /new begins anew, /system TEXT tells the model how to answer, /more goes on with "
    "an answer that was cut, /task T changes the task, /why shows what the last answer rests on; "
    "/good, /bad and /correct TEXT say what it is or should have been."
)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    lines = [
        'pfi ask "Suggest a title for a talk on tea"',
        'pfi ask "The food was cold" --task LaMP_3 --why',
        "pfi ask - --task LaMP_4 < article.txt",
        'pfi ask --task write "Reply to: shall we meet on Friday?"',
    ]
    add_command(app, ask, lines)
    chats = [
        "pfi chat",
        'pfi chat --system "Answer in one sentence." --max-tokens 100',
        "pfi chat --task LaMP_4",
        "pfi chat < questions.txt",
    ]
    add_command(app, chat, chats)
    shown = ['pfi system "Answer briefly, and in German."', "pfi system", "pfi system --remove"]
    add_command(app, system, shown)


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
    max_tokens: MaxTokens = None,
    threads: Threads = None,
    profile: Profile = "default",
) -> None:
    """Ask your model one question; the TEXT - is read from standard input.

    Without --task a question that is not like your records goes to the backbone as it is.
    """
    from pfi.profile.answer.runtime import Runtime, pick_task, question_fields
    from pfi.profile.vault.imports import parse_options

    home = open_profile(profile)
    question = sys.stdin.read() if text == "-" else text
    others = parse_options(fields or [])
    with home.vault_session(), closing(Runtime(home)) as runtime:
        chosen = pick_task(home, task)
        with indexing() as runtime.on_index:
            prepared = runtime.prepare(
                question,
                chosen,
                k=0 if no_memory else k,
                fields=others,
                room=runtime.room(max_tokens) if chosen.free_form else None,
                named=task is not None,
            )
        _say_if_plain(prepared, profile)
        answer = runtime.answer(prepared, max_tokens)
        typer.echo(answer.text)
        if answer.cut:
            note(f"(cut at {answer.cut} tokens; --max-tokens allows more)")
        values = question_fields(prepared.task, question, _fields_of(prepared, chosen, others))
        _remember(home, prepared.task, values, answer.text)
    if why:
        _explain(prepared)


def _fields_of(prepared: Prepared, task: Task, others: Mapping[str, str]) -> Mapping[str, str]:
    """The further fields, of a question that was asked as it was meant."""
    return others if prepared.task.name == task.name else {}


def chat(
    task: TaskName = None,
    system: Annotated[
        str | None,
        typer.Option("--system", help="How to answer, in words; as `pfi system` says if none."),
    ] = None,
    k: Retrieved = None,
    no_memory: NoMemory = False,
    max_tokens: MaxTokens = None,
    threads: Threads = None,
    profile: Profile = "default",
) -> None:
    """Hold a conversation with your model; Ctrl-C ends an answer, /quit the conversation.

    Questions of a task with a prompt of its own stand alone; what is free, or not like your
    records, sees the turns before.
    """
    from pfi.profile.answer.conversation import Conversation, read_system
    from pfi.profile.answer.runtime import Runtime, pick_conversation

    home = open_profile(profile)
    chosen = pick_conversation(home, task)
    note(f"Task {chosen.name}. {CHAT_HELP}")
    with closing(Runtime(home)) as runtime:
        conversation = Conversation(
            runtime,
            chosen,
            system=read_system(home) if system is None else system,
            named=task is not None,
            k=0 if no_memory else k,
            max_tokens=max_tokens,
        )
        talk = _Talk(home, profile, conversation)
        while (line := talk.read_line()) is not None:
            try:
                if not talk.take(line.strip()):
                    break
            except KeyboardInterrupt:  # before the answer began
                note("Stopped.")
            except PfiError as error:
                # A wrong line should not end the talk.
                note(f"error: {' '.join(str(error).split())}")


class _Talk:
    """`pfi chat` on a terminal or a pipe.

    Args:
        home: the device.
        profile: its name.
        conversation: what is said.
    """

    def __init__(self, home: Home, profile: str, conversation: Conversation) -> None:
        self.home, self.profile, self.conversation = home, profile, conversation
        self._dropped = False

    def take(self, line: str) -> bool:
        """Act on a line; False where it ends the talk."""
        from pfi.profile.answer.runtime import pick_conversation

        talk = self.conversation
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command == "/quit":
            return False
        if command == "/why":
            _explain(talk.last.prepared) if talk.last else note("Nothing was answered yet.")
        elif command in ("/good", "/bad", "/correct"):
            self._rate(command, argument)
        elif command == "/task":
            talk.task, talk.named = pick_conversation(self.home, argument or None), bool(argument)
            note(f"Task {talk.task.name}.")
        elif command == "/new":
            talk.begin()
            self._dropped = False
            note("A new conversation.")
        elif command == "/system":
            talk.begin(argument)
            self._dropped = False
            note("A new conversation, " + (f"told: {argument}" if argument else "told nothing."))
        elif command == "/more":
            with self.home.vault_session():
                self._show(talk.more())
        elif command.startswith("/"):
            note(CHAT_HELP)
        elif command:
            with self.home.vault_session():
                with indexing() as talk.runtime.on_index:
                    prepared = talk.prepare(line)
                _say_if_plain(prepared, self.profile)
                if prepared.dropped_turns and not self._dropped:
                    self._dropped = True
                    note("(the oldest turns no longer fit, and are left out from here on)")
                self._show(talk.answer(prepared, line))
        return True

    def _show(self, pieces: Iterator[str]) -> None:
        """Print an answer as it comes; Ctrl-C ends it."""
        talk = self.conversation
        try:
            for text in pieces:
                typer.echo(text, nl=False)
                sys.stdout.flush()
        except KeyboardInterrupt:
            talk.stop()
        typer.echo()
        if talk.last is None:
            return
        if talk.last.cut:
            note(f"(cut at {talk.last.cut} tokens; /more goes on)")
        prepared = talk.last.prepared
        _remember(self.home, prepared.task, talk.last.fields, talk.last.answer)

    def _rate(self, command: str, text: str) -> None:
        """Give feedback on the last answer."""
        from pfi.profile.learn.feedback import give

        last = self.conversation.last
        if last is None:
            note("Nothing was answered yet.")
            return
        rating: Rating = "good" if command == "/good" else "bad"
        correcting = command == "/correct"
        entry = give(
            self.home,
            last.prepared.task,
            last.fields,
            answer=last.answer,
            correction=text if correcting else None,
            rating=None if correcting else rating,
        )
        note(f"Noted, batch {entry.batch}; `pfi refresh` learns from it.")

    def read_line(self) -> str | None:
        """The next line, or None at the end of the input."""
        if not sys.stdin.isatty():
            return sys.stdin.readline() or None
        while True:
            try:
                return input("> ")
            except EOFError:
                typer.echo()
                return None
            except KeyboardInterrupt:
                note("\n/quit or Ctrl-D ends the conversation.")


def system(
    text: Annotated[
        str | None, typer.Argument(help="How to answer, in words; none: show it.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Say nothing of it.")] = False,
    profile: Profile = "default",
) -> None:
    """What your model is told before every conversation, in `pfi chat` and the console.

    It is kept in the encrypted vault.
    """
    from pfi.profile.answer.conversation import read_system, write_system

    home = open_profile(profile)
    if text is not None or remove:
        write_system(home, "" if remove else text or "")
    if told := read_system(home):
        typer.echo(told)


def _remember(home: Home, task: Task, fields: Mapping[str, str], answer: str) -> None:
    """Keep an answer for `pfi feedback --last`; the talk goes on if that fails."""
    from pfi.profile.learn.feedback import remember

    try:
        remember(home, task, fields, answer)
    except StorageError as error:
        note(f"`pfi feedback --last` will not know this answer: {error}")


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
    if prepared.dropped_turns:
        note(f"earlier turns without room: {prepared.dropped_turns}")
    note(f"retrieved records: {len(prepared.records)}")
    for record in prepared.records:
        when = f"{record.time:%Y-%m-%d} " if record.time else ""
        text = short(" ".join([*record.input.values(), record.output]))
        note(f"  {when}{record.id}: {text}")
