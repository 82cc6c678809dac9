"""The command line put together: every group of commands registers itself here."""

from __future__ import annotations

from typing import Annotated

import typer

from pfi._util.version import __version__
from pfi.cli import (
    adapters,
    archive,
    augment,
    demo,
    erase,
    export,
    federate,
    feedback,
    gate,
    key,
    ledger,
    memory,
    models,
    personalize,
    plan,
    profile,
    records,
    serve,
    study,
    talk,
    train,
)
from pfi.cli.common import OneLineErrors, PlainHelp, examples

app = typer.Typer(
    cls=OneLineErrors,
    name="pfi",
    help="A language model of your own: it learns from your records, on your device.",
    epilog=examples(
        "pfi init",
        "pfi import git ~/code/project",
        "pfi train",
        'pfi ask "src/app.py (+3 -1)"',
        "pfi COMMAND --help",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A bug's traceback is plain and shows no local variables: those hold private text.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pfi {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Options of `pfi` itself."""


for group in (
    profile,
    models,
    key,
    plan,
    records,
    erase,
    archive,
    export,
    augment,
    train,
    adapters,
    gate,
    talk,
    serve,
    memory,
    feedback,
    study,
    personalize,
    federate,
    ledger,
    demo,
):
    group.register(app)
for command in app.registered_commands:
    command.cls = PlainHelp
