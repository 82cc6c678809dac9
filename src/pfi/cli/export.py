"""`pfi export`: take out what a profile holds."""

from __future__ import annotations

import typer

from pfi.cli import archive, model_export
from pfi.cli.common import examples

group = typer.Typer(
    help="Take out what a profile holds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples("pfi export archive me.pfi", "pfi export gguf mine.gguf"),
)


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    archive.add_to(group)
    model_export.add_to(group)
    app.add_typer(group, name="export")
