"""`pfi import`, `pfi connectors` and `pfi records`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import (
    AsJson,
    Profile,
    TaskName,
    add_command,
    flags,
    note,
    open_profile,
    print_json,
    printable,
    progress,
    short,
)
from pfi.cli.feedback import refresh_if_due

if TYPE_CHECKING:
    from pfi.profile.vault.imports import Imported
    from pfi.records import Record

Source = Annotated[
    str | None, typer.Option("--source", metavar="PREFIX", help="From a source that starts so.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    lines = [
        "pfi connectors",
        "pfi import git ~/code/project",
        "pfi import git ~/code/project --check",
        "pfi import table notes.csv --set task=instruction --set map.answer=Reply",
    ]
    add_command(app, import_, lines, name="import")
    add_command(app, connectors, ["pfi connectors", "pfi connectors git"])
    lines = ["pfi records", "pfi records --task LaMP_4 --limit 5", "pfi records --search harbour"]
    add_command(app, list_, lines, name="records")


def import_(
    kind: Annotated[str, typer.Argument()],
    path: Annotated[Path, typer.Argument()],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="An option of the connector; repeatable."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Store nothing: show what would be read, with examples."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what you erased here; it asks otherwise.")
    ] = False,
    profile: Profile = "default",
) -> None:
    """Read your files into the profile's records; importing twice adds nothing twice.

    KIND says what to read (`pfi connectors` lists the kinds; `auto` looks), PATH is the file or
    folder. At the end it says who you are taken for and shows examples of what was taken as
    yours. What you erased stays out, unless you say otherwise.
    """
    from pfi.profile.vault.imports import check_records, import_records, parse_options
    from pfi.sources.connectors import get_connector, recognised

    path = path.expanduser()

    def understood() -> tuple[str, dict[str, Any]]:
        found = recognised(path) if kind == "auto" else kind
        if kind == "auto":
            note(f"This is read as {found}.")
        return found, parse_options(settings or [], get_connector(found).options)

    if check:  # needs no profile
        named, options = understood()
        result = _counting(partial(check_records, named, path, options))
        typer.echo(f"Nothing is stored{_skipped(result)}.")
        _believed(result, 10)
        return
    home = open_profile(profile)
    named, options = understood()
    result = _counting(partial(import_records, home, named, path, options, again=again))
    if result.erased and _wanted_again(result.erased):
        both = _counting(partial(import_records, home, named, path, options, again=True))
        result = replace(both, added=both.added + result.added, already_there=result.already_there)
    repeated = f", repeated in the source {result.check.repeated}" if result.check.repeated else ""
    there = f"already there {result.already_there}"
    typer.echo(f"Added {result.added}, {there}{repeated}{_skipped(result)}.")
    _believed(result, 3)
    if not result.added and not result.already_there:
        note(f"Nothing was found to import; see `pfi connectors {named}` for what it reads.")
    elif result.added:
        note(f"Next: `pfi train{flags(profile)}`.")
    refresh_if_due(home)


def _wanted_again(erased: int) -> bool:
    """Whether records that were erased are to come back; nobody to ask means no."""
    if not _asked_at_terminal():
        return False
    what = "1 record was" if erased == 1 else f"{erased} records were"
    return typer.confirm(f"{what} erased here before. Import them again?", err=True)


def _asked_at_terminal() -> bool:
    return sys.stdin.isatty()


def _counting(read: Callable[..., Imported]) -> Imported:
    """What `read` gives, with a count of the records shown meanwhile."""
    with progress(bar=False) as shown:
        counter = shown.add_task("reading", total=None)
        return read(
            on_record=lambda done: shown.update(counter, description=f"{done} records read")
        )


def _believed(result: Imported, examples: int) -> None:
    """Say what was believed about a source; its texts go to who runs this, and nowhere else."""
    report, check = result.report, result.check
    for fact in check.facts(report):
        note(printable(fact))
    if examples > 3:
        for name, count in report.authors.most_common(examples):
            note(printable(f"  {'you' if name in report.me else '   '} {count:>7}  {name}"))
        for year, count in sorted(check.years.items()):
            note(f"      {count:>7}  {year}")
    for example in check.examples(examples):
        if example.theirs:
            note(printable(f"  theirs: {short(example.theirs, 90)}"))
        if example.mine:
            note(printable(f"  yours:  {short(example.mine, 90)}"))
    for warning in check.warnings(report):
        note(printable(f"Look at this: {warning}."))


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
    from pfi.profile.vault.imports import option_kinds
    from pfi.sources.connectors import connectors, get_connector

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


def list_(
    task: TaskName = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many at most.")] = 20,
    source: Source = None,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Only those that contain TEXT.")
    ] = None,
    profile: Profile = "default",
    as_json: AsJson = False,
) -> None:
    """List the profile's records, newest first: id, day, task, origin and the text.

    `pfi memory search` finds the records that a question would be answered with.
    """
    with open_profile(profile).open_vault() as vault:
        found = list(vault.find(task=task, source=source, text=search, limit=limit))
    if as_json:
        print_json([values_of(record) for record in found])
        return
    if not found and (task or source or search):
        note("There are no such records.")  # no line of the list, which scripts read
    elif not found:
        typer.echo("No records yet.")
    for line in lines_of(found):
        typer.echo(line)


def lines_of(records: list[Record]) -> list[str]:
    """Records, one a line: id, day, task, origin and the beginning of the text."""
    width = min(max((len(record.id) for record in records), default=0), 40)
    lines = []
    for record in records:
        day = f"{record.time:%Y-%m-%d}" if record.time else "undated"
        text = short(" ".join([*record.input.values(), record.output]), 80)
        head = f"{record.id:<{width}}  {day:<10}  {record.task}  {record.origin}"
        lines.append(printable(f"{head}  {text}"))
    return lines


def values_of(record: Record) -> dict[str, Any]:
    """A record as plain values for JSON."""
    return {
        "id": record.id,
        "time": record.time.isoformat() if record.time else None,
        "task": record.task,
        "origin": record.origin,
        "source": record.source,
        "input": dict(record.input),
        "output": record.output,
    }
