"""What all commands share: errors in one line, options, progress and printing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

from pfi.errors import PfiError

if TYPE_CHECKING:
    from rich.progress import Progress

    from pfi.profile.home import Home
    from pfi.train.forgetting import Forgetting

Profile = Annotated[
    str, typer.Option("--profile", "-p", envvar="PFI_PROFILE", help="Whose device to use.")
]
TaskName = Annotated[
    str | None, typer.Option("--task", "-t", help="Name of a task; `pfi tasks` lists them.")
]


def _use_threads(context: click.Context, count: int | None) -> int | None:
    """Compute with so many threads until the command ends."""
    if count is not None and not context.resilient_parsing:
        from pfi._util.threads import choose

        context.call_on_close(choose(count))
    return count


Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_use_threads,
        help="Threads that compute; as many as cores are free if none.",
    ),
]
#: How `--backbone` is explained everywhere.
BACKBONE = "'embedded', a model of `pfi models list`, a folder, a .gguf file or a hub id."
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class OneLineErrors(TyperGroup):
    """A group that prints errors a user can cause in one line and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; anything but a `PfiError` is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except PfiError as error:
            message = " ".join(str(error).split())
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(2) from error


class _Plain(click.Command):
    def get_help(self, ctx: click.Context) -> str:
        """The help; typer escapes brackets for rich even where rich does not print them."""
        return super().get_help(ctx).replace("\\[", "[")


class PlainHelp(_Plain, TyperCommand):
    """A command whose help is plain text."""


class PlainGroup(_Plain, TyperGroup):
    """A group of commands, with options of its own, whose help is plain text."""


def add_command(
    app: typer.Typer, run: Callable[..., None], shown: Sequence[str], *, name: str | None = None
) -> None:
    """Make a function a command of `app`, with examples at the end of its help."""
    app.command(name=name, cls=PlainHelp, epilog=examples(*shown))(run)


def examples(*lines: str) -> str:
    """The examples at the end of a command's help, one a line."""
    # \b keeps click from joining the lines.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def note(text: str) -> None:
    """Tell the user something that is no part of the answer."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def open_profile(profile: str) -> Home:
    """The profile's home; see `pfi.profile.open.open_home` for the errors."""
    from pfi.profile.home import home_path
    from pfi.profile.keys.keys import KEYS, describe_lock
    from pfi.profile.open import open_home

    old = not (home_path(profile) / KEYS).exists()
    home = open_home(profile)
    if old:
        where, protects = describe_lock(home.path)
        note(f"Encrypted what profile {profile} holds. Its keys are {where}: {protects}.")
    return home


def flags(profile: str, task: str | None = None) -> str:
    """How to name this profile and task in a suggested command."""
    from pfi.profile.config import DEFAULT_PROFILE

    parts = [] if profile == DEFAULT_PROFILE else [f"--profile {profile}"]
    return "".join(f" {part}" for part in [*parts, *([f"--task {task}"] if task else [])])


def tell_forgetting(found: Forgetting | None, profile: str, task: str, version: str) -> None:
    """Tell what an adapter makes the model forget, and what helps where that is too much."""
    if found is None:
        return
    note(found.sentence)
    if found.exceeded:
        note(
            f"That is too much to use it unasked: the loss on general text rises by "
            f"{found.rise:.2f} nats a token, and this profile's bound is {found.bound:g} "
            "(`forgetting: {bound: ...}` in its config.yaml). What helps: "
            f"`pfi train{flags(profile, task)} --set general=0.2`, which holds the model to what "
            "it was on general text; a lower --learning-rate; fewer --epochs. "
            f"To use it anyway: `pfi adapters use {version}{flags(profile)}`."
        )


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Text that cannot steer the terminal: control characters and lone surrogates spelt out."""
    return "".join(
        c if c.isprintable() or c in "\t\n" else c.encode("unicode_escape").decode() for c in text
    )


def short(text: str, width: int = 100) -> str:
    """A text on one line, cut to `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def shown_path(path: Path) -> str:
    """A path with `~` for the user's own folder."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)


@contextmanager
def progress(*, bar: bool) -> Iterator[Progress]:
    """Progress on stderr, shown on terminals only: a bar, or a spinner where no end is known."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    described = TextColumn("{task.description}")
    columns = (
        (described, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        if bar
        else (SpinnerColumn(), described)
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        yield shown


def federation_settings(path: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """The settings of a federation from a YAML file and `--set` pairs, checked; pairs win.

    Raises:
        ConfigError: they make no sense.
    """
    import yaml

    from pfi._util.settings import checked, nested_settings
    from pfi.errors import ConfigError
    from pfi.federate.config import FederateConfig
    from pfi.federate.strategies import check

    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot be read: {error}", where=str(path)) from error
        if not isinstance(values, dict):
            fix = "write lines of `key: value`"
            raise ConfigError("holds no settings", where=str(path), fix=fix)
    joined = _joined(values, nested_settings(pairs))
    where = str(path) if path else "--set"
    check(checked(FederateConfig, joined, where, "see docs/federate.md"), where)
    return joined


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    joined = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(joined.get(key), dict)
        joined[key] = _joined(joined[key], value) if both else value
    return joined
