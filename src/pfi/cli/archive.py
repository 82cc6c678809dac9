"""`pfi export archive` and `pfi restore`: a whole profile in one encrypted file, and back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pfi.cli.common import (
    Profile,
    add_command,
    flags,
    note,
    open_profile,
    progress,
    shown_path,
    size,
)

if TYPE_CHECKING:
    from pfi.profile.archive.archive import Archived

VARIABLE = "PFI_ARCHIVE_PASSPHRASE"


def register(app: typer.Typer) -> None:
    """Add `restore` to `app`."""
    lines = [
        "pfi restore me.pfi",
        "pfi restore me.pfi --profile laptop",
        "pfi restore me.pfi --identity ~/age.key",
    ]
    add_command(app, restore, lines)


def add_to(group: typer.Typer) -> None:
    """Add `archive` to the group `pfi export`."""
    lines = [
        "pfi export archive me.pfi",
        "pfi export archive me.pfi --to age1...",
    ]
    add_command(group, archive, lines)


def archive(
    file: Annotated[Path, typer.Argument()],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="age1...", help="Who can open it, instead of a passphrase; repeatable."
        ),
    ] = None,
    profile: Profile = "default",
) -> None:
    """Put the whole profile into one encrypted FILE: to move it, or to keep it safe.

    Records, feedback, settings, adapters, the ledger and the gate's choices go in; memory is
    built again, keys and memberships in federations stay. The file is in the format of age
    (age-encryption.org). The passphrase is taken from PFI_ARCHIVE_PASSPHRASE, else asked for.
    """
    from pfi.errors import ConfigError
    from pfi.profile.archive.archive import write_archive
    from pfi.profile.keys.unlock import SHORTEST, ask_new

    home = open_profile(profile)
    passphrase = None if to else ask_new(VARIABLE)
    if passphrase is not None and len(passphrase) < SHORTEST:
        what = f"the passphrase is shorter than {SHORTEST} characters"
        raise ConfigError(what, fix="use several words")
    with progress(bar=False) as shown:
        shown.add_task("writing", total=None)
        done = write_archive(home, file.expanduser(), to=to, passphrase=passphrase)
    typer.echo(f"Wrote {shown_path(file)}: {_told(done)}.")
    note("Without its passphrase or identity nobody can open it, you neither.")


def restore(
    file: Annotated[Path, typer.Argument()],
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", help="Name of the new profile, not the one it had."),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The age identity of a recipient, from age-keygen."),
    ] = None,
    key: Annotated[
        Literal["auto", "keyring", "passphrase", "file"],
        typer.Option(
            help="What keeps its keys; auto: a passphrase if PFI_PASSPHRASE is set, else the OS "
            "keyring where there is one, else a file."
        ),
    ] = "auto",
) -> None:
    """Make a new profile of the archive in FILE; an existing one is never changed.

    Everything is checked before the profile is there. It gets keys of its own. The passphrase is
    taken from PFI_ARCHIVE_PASSPHRASE, else asked for.
    """
    from pfi.profile.archive.archive import read_archive
    from pfi.profile.archive.format import read_identities, wants_passphrase

    path = file.expanduser()
    opening = _opening(path, identity, wants_passphrase(path), read_identities)
    with progress(bar=False) as shown:
        shown.add_task("reading", total=None)
        home, done = read_archive(path, profile, lock=key, **opening)
    typer.echo(f"Made profile {home.profile} in {shown_path(home.path)}: {_told(done)}.")
    note(f"The archive was made on {done.created} by the device with key {done.public}.")
    note(f"Memberships in federations do not move. Next: `pfi status{flags(home.profile)}`.")


def _opening(path: Path, identity: Path | None, wanted: bool, read: Any) -> dict[str, Any]:
    """What opens an archive."""
    from pfi.errors import ConfigError

    if wanted is (identity is not None):
        what = "was made for a passphrase" if wanted else "was made for a recipient"
        fix = "leave --identity out" if wanted else "give the recipient's file with --identity"
        raise ConfigError(f"the archive {what}", where=str(path), fix=fix)
    if identity is not None:
        return {"identities": read(identity.expanduser())}
    if text := os.environ.get(VARIABLE):
        return {"passphrase": text}
    if not sys.stdin.isatty():
        fix = f"set {VARIABLE}, or run this on a terminal"
        raise ConfigError("the archive's passphrase is needed", where=str(path), fix=fix)
    return {"passphrase": typer.prompt("Passphrase of the archive", hide_input=True, err=True)}


def _told(done: Archived) -> str:
    parts = [(done.records, "record"), (done.adapters, "adapter")]
    counts = (f"{number} {name}{'' if number == 1 else 's'}" for number, name in parts)
    return f"profile {done.name}, {', '.join(counts)}, {size(done.bytes)}"
