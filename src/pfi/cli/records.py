"""`pfi import` and `pfi connectors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import Profile, add_command, flags, note, open_home, progress

if TYPE_CHECKING:
    from pfi.device import Imported


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    lines = [
        "pfi connectors",
        "pfi import git ~/code/project",
        "pfi import table notes.csv --set task=instruction --set map.answer=Reply",
    ]
    add_command(app, import_, lines, name="import")
    add_command(app, connectors, ["pfi connectors", "pfi connectors git"])


def import_(
    kind: Annotated[str, typer.Argument()],
    path: Annotated[Path, typer.Argument()],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="An option of the connector; repeatable."
        ),
    ] = None,
    profile: Profile = "default",
) -> None:
    """Read your files into the profile's records; importing twice adds nothing twice.

    KIND says what to read (`pfi connectors` lists the kinds), PATH is the file or folder.
    """
    from pfi.data.connectors import get_connector
    from pfi.device import import_records, parse_options

    home = open_home(profile)
    options = parse_options(settings or [], get_connector(kind).options)
    with progress(bar=False) as shown:
        counter = shown.add_task("reading", total=None)
        result = import_records(
            home,
            kind,
            path.expanduser(),
            options,
            on_record=lambda done: shown.update(counter, description=f"{done} records read"),
        )
    typer.echo(f"Added {result.added}, already there {result.already_there}{_skipped(result)}.")
    if not result.added and not result.already_there:
        note(f"Nothing was found to import; see `pfi connectors {kind}` for what it reads.")
    elif result.added:
        note(f"Next: `pfi train{flags(profile)}`.")


def _skipped(result: Imported) -> str:
    report = result.report
    reasons = [
        f"{count} because {reason} (first: {report.examples.get(reason, 'unknown')})"
        for reason, count in report.skipped.most_common()
    ]
    return f", skipped {report.skipped.total()}: {'; '.join(reasons)}" if reasons else ""


def connectors(
    kind: Annotated[str | None, typer.Argument()] = None,
) -> None:
    """List the kinds of files that can be imported, or the options of one KIND."""
    from pfi.data.connectors import connectors, get_connector
    from pfi.device.imports import option_kinds

    if kind is None:
        for found in connectors().values():
            typer.echo(f"{found.name:<16} {found.summary}")
        return
    connector = get_connector(kind)
    typer.echo(f"{connector.name}: {connector.summary}")
    for name, info in connector.options.model_fields.items():
        default = (
            "required"
            if info.is_required()
            else f"default {info.get_default(call_default_factory=True)!r}"
        )
        kinds = option_kinds(connector.options, name)
        usage = f"{name}.NAME=..." if dict in kinds else f"{name}=..."
        typer.echo(f"  --set {usage}  {info.description or ''} ({default})")
    if not connector.options.model_fields:
        typer.echo("  (no options)")
