"""`pfi key`: what keeps the keys of a profile, and changing that."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pfi.cli.common import AsJson, Profile, add_command, examples, open_profile, print_json

To = Annotated[
    Literal["keyring", "passphrase", "file"],
    typer.Option("--to", help="What keeps the secret from now on."),
]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="What keeps the keys of a profile.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples("pfi key show", "pfi key change --to passphrase"),
    )
    add_command(group, show, ["pfi key show", "pfi key show --profile work --json"])
    lines = ["pfi key change --to passphrase", "pfi key change --to keyring --profile work"]
    add_command(group, change, lines)
    app.add_typer(group, name="key")


def show(profile: Profile = "default", as_json: AsJson = False) -> None:
    """Print what keeps the keys, and what that protects against; nothing secret."""
    from pfi.profile.keys.keys import describe_lock, read_keys_file

    path = open_profile(profile).path
    held = read_keys_file(path)
    where, protects = describe_lock(path)
    if as_json:
        values = {"profile": held.profile, "held": held.held, "public": held.public}
        print_json({**values, "where": where, "protects": protects})
        return
    typer.echo(f"keys     {where}")
    typer.echo(f"so       {protects}")
    typer.echo(f"id       {held.profile}")
    typer.echo(f"public   {held.public}  (signatures of this profile are checked with it)")


def change(to: To, profile: Profile = "default") -> None:
    """Let something else keep the keys; with the same kind, make its secret anew.

    The records and adapters stay as they are. A present passphrase is taken from PFI_PASSPHRASE,
    a new one from PFI_NEW_PASSPHRASE; else they are asked for. Copies of the profile that were
    made before, and an archive's, still need what kept their keys then.
    """
    from pfi.profile.keys.keys import change_lock, describe_lock, unlock
    from pfi.profile.keys.unlock import ask_new

    path = open_profile(profile).path
    unlock(path)  # a wrong passphrase is told before a new one is asked for
    change_lock(path, to, new=ask_new("PFI_NEW_PASSPHRASE") if to == "passphrase" else None)
    where, protects = describe_lock(path)
    typer.echo(f"The keys of profile {profile} are {where}: {protects}.")
