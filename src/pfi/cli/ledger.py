"""`pfi ledger`: what left the device, when, to whom, under which policy."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import AsJson, Profile, add_command, examples, open_profile, printable, short

if TYPE_CHECKING:
    from pfi.privacy.ledger.entries import Entry
    from pfi.privacy.ledger.ledger import Ledger

LedgerFile = Annotated[
    Path | None,
    typer.Option("--path", help="A ledger file, e.g. a study's; the profile's if none."),
]
_WIDTH = 200


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="The list of everything that left this device.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples("pfi ledger show", "pfi ledger verify"),
    )
    lines = [
        "pfi ledger show",
        "pfi ledger show --last 3 --full",
        "pfi ledger show --to api.openai.com --json",
        "pfi ledger show --path runs/study/ledger.jsonl",
    ]
    add_command(group, show, lines)
    add_command(group, verify, ["pfi ledger verify", "pfi ledger verify --accept"])
    app.add_typer(group, name="ledger")


def show(
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=1, help="Only the newest entries.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print every payload whole.")] = False,
    to: Annotated[str | None, typer.Option("--to", help="Only what went to this host.")] = None,
    profile: Profile = "default",
    path: LedgerFile = None,
    as_json: AsJson = False,
) -> None:
    """Print what left, oldest first: when, to whom, under which policy, and the text itself.

    Binary payloads are in the ledger by size and hash only.
    """
    ledger = _ledger(profile, path)
    chosen: Iterator[Entry] = (e for e in ledger.entries() if to in (None, e.to))
    if last is not None:
        chosen = iter(deque(chosen, maxlen=last))
    if as_json:
        _print_json(chosen)
        return
    empty = True
    for entry in chosen:
        empty = False
        typer.echo(_described(entry, full))
    if empty:
        typer.echo(f"Nothing has left this device{f' to {to}' if to else ''}.")


def verify(
    profile: Profile = "default",
    path: LedgerFile = None,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Take the file as it is from here on, after a loss."),
    ] = False,
) -> None:
    """Check that no entry was changed, removed or added since it was written.

    The vault knows the newest entry, so that cut off entries and a file written anew are found,
    too. Texts that `pfi erase` erased are counted; that, when and where to they were sent stays.
    """
    ledger = _ledger(profile, path)
    found = ledger.accept() if accept else ledger.check()
    if found.entries:
        entries = "1 entry is" if found.entries == 1 else f"{found.entries} entries are"
        texts = "1 text was" if found.erased == 1 else f"{found.erased} texts were"
        erased = f"; {texts} erased" if found.erased else ""
        sealed = f"; {found.unread} sealed, not compared without the key" if found.unread else ""
        typer.echo(f"{entries} as written{erased}{sealed}.")
    else:
        typer.echo("Nothing has left this device.")


def _ledger(profile: str, path: Path | None) -> Ledger:
    from pfi.errors import StorageError
    from pfi.privacy.ledger.ledger import Ledger

    if path is None:
        return open_profile(profile).open_ledger()
    path = path.expanduser()
    if not path.is_file():
        raise StorageError("there is no ledger", where=str(path), fix="give the file's path")
    return Ledger(path)


def _described(entry: Entry, full: bool) -> str:
    entry = replace(entry, payload=entry.payload and _readable(entry.payload))
    count = f"{entry.bytes} byte{'' if entry.bytes == 1 else 's'}"
    head = (
        f"{entry.n}  {entry.time[:19].replace('T', ' ')} UTC  to {entry.to}  {entry.kind}  "
        f"policy {entry.policy}  from {entry.device}  {count}"
    )
    if entry.payload is None:
        what = "the text was erased" if entry.erased else "not text"
        if entry.cipher is not None:
            what = "the text is sealed: open the ledger with --profile to read it"
        return f"{printable(head)}\n    {what}; sha256 {entry.sha256}"
    body = entry.payload if full else short(entry.payload, _WIDTH)
    lines = [f"    {printable(line)}" for line in body.split("\n")]
    if full:
        lines.append(f"    sha256 {entry.sha256}")
    return "\n".join([printable(head), *lines])


def _readable(payload: str) -> str:
    """JSON as indented JSON, other text as it is."""
    try:
        value = json.loads(payload)
    except ValueError:
        return payload
    if not isinstance(value, dict | list):
        return payload
    return json.dumps(value, ensure_ascii=False, indent=2)


def _print_json(entries: Iterator[Entry]) -> None:
    """A JSON list, one entry in memory at a time."""
    typer.echo("[", nl=False)
    for n, entry in enumerate(entries):
        # ASCII: exact for every text, on every terminal.
        values = entry.to_dict()
        if entry.payload is None and entry.cipher is not None:
            values["sealed"] = True
        typer.echo(("," if n else "") + "\n  " + json.dumps(values), nl=False)
    typer.echo("\n]")
