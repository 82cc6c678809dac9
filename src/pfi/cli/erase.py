"""`pfi erase`: records, a source or everything, from all that knows of them; with a statement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pfi.cli.common import (
    AsJson,
    Profile,
    TaskName,
    add_command,
    note,
    open_profile,
    print_json,
    progress,
    shown_path,
)
from pfi.cli.records import Source, lines_of

if TYPE_CHECKING:
    from pfi.profile.home import Home
    from pfi.records import Record

#: Records that are shown before they are erased.
_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    lines = [
        "pfi erase mails-17 mails-18",
        "pfi erase --source git:old-project --adapters retrain",
        "pfi erase --task LaMP_3 --before 2020-01-01 --yes",
        "pfi erase --all --statement erased.json",
        "pfi erase --check erased.json",
    ]
    add_command(app, erase, lines)


def erase(
    records: Annotated[list[str] | None, typer.Argument(metavar="[RECORD]...")] = None,
    source: Source = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="DATE", help="Older than this day.")
    ] = None,
    task: TaskName = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything; the profile stays, empty.")
    ] = False,
    profile_too: Annotated[
        bool, typer.Option("--profile-too", help="With --all: the profile and its keys as well.")
    ] = False,
    adapters: Annotated[
        Literal["drop", "retrain"],
        typer.Option(
            help="Adapters that learnt from them: removed, or also trained anew without them."
        ),
    ] = "drop",
    statement: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the signed statement here.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only check a statement and say it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    profile: Profile = "default",
    as_json: AsJson = False,
) -> None:
    """Erase records for good, by RECORD id or all that meet the conditions given.

    They leave the vault, the memory, the cached answers of teachers, the texts in the ledger, the
    gate's choices, and the personal adapters that learnt from them, with the synthetic records
    made from them. A signed statement says what was done and what cannot be undone: what has left
    the device, or was written to files outside the profile, is out of reach.
    """
    from pfi.errors import ConfigError
    from pfi.profile.erase import statement as statements

    named = bool(records or source or before or task)
    if check is not None:
        if named or everything:
            raise ConfigError("--check only reads a statement", fix="leave the rest out")
        _say(statements.check(check), as_json)
        return
    if profile_too and not everything:
        raise ConfigError("--profile-too removes the profile", fix="add --all")
    if everything and named:
        raise ConfigError("--all and records are given", fix="give one of them")
    if profile_too and _finish_removal(profile):
        return
    home = open_profile(profile)
    finished = _finish(home)
    if everything:
        told = _erase_all(home, profile_too, statement, yes)
    elif named or not finished:
        chosen = _chosen(home, records or [], source, before, task)
        if not chosen:
            typer.echo("There are no such records.")
            return
        _agree(home, chosen, yes)
        by = "records" if records else "source" if source else "conditions"
        told = _erase(home, chosen, adapters, by)
    else:
        told = statements.check(statements.latest(home))
    if not profile_too:
        _keep(told, statement)
    _say(told, as_json)


def _keep(told: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        from pfi._util.files import write_json

        write_json(file, told)
        note(f"The signed statement is in {shown_path(file)}.")


def _finish_removal(profile: str) -> bool:
    from pfi.profile.erase.erasure import finish_removal
    from pfi.profile.home import home_path

    if finished := finish_removal(home_path(profile)):
        note(f"The removal of profile {profile}, which was interrupted, is finished now.")
    return finished


def _finish(home: Home) -> bool:
    """Go on with what was interrupted, training included; whether there was anything."""
    from pfi.profile.erase.erasure import finish_erasures
    from pfi.profile.erase.retrain_settings import SETTING

    finished = bool(finish_erasures(home))
    if finished:
        note("An erasure that was interrupted is finished now.")
    with home.open_vault() as vault:
        waiting = bool(vault.setting(SETTING))
    if waiting:
        note("Adapters that an erasure removed are trained anew first.")
        _retrain(home)
    return finished or waiting


def _erase(
    home: Home, chosen: list[Record], adapters: Literal["drop", "retrain"], by: str
) -> dict[str, Any]:
    from pfi.profile.erase import statement as statements
    from pfi.profile.erase.erasure import erase

    with progress(bar=False) as shown:
        shown.add_task("erasing", total=None)
        done = erase(home, [record.id for record in chosen], adapters=adapters, by=by)
    if done.answers or done.payloads:
        note("Answers and texts of which it is not known what they rest on went as well.")
    if not done.statement["adapters"]["to retrain"]:
        return done.statement
    _retrain(home)
    return statements.check(statements.latest(home))


def _retrain(home: Home) -> None:
    from pfi.profile.learn.retraining import retrain

    with progress(bar=False) as shown:
        counter = shown.add_task("training", total=None)
        found = retrain(home, on_stage=lambda text: shown.update(counter, description=text))
    for task, version in found.items():
        if version is None:
            note(
                f"Task {task} has no new adapter in use: too few records are left to train on, or "
                "what was learnt is no better than what is in use (`pfi adapters list`)."
            )


def _erase_all(home: Home, profile_too: bool, file: Path | None, yes: bool) -> dict[str, Any]:
    from pfi.profile.erase.erasure import erase_everything, remove_profile

    with home.open_vault() as vault:
        count = vault.count()
    what = f"All {_count(count, 'record')} and what was learnt from them"
    if profile_too:
        what += f", and the profile {home.profile} with its keys,"
    _ask(f"{what} would go for good", yes)
    with progress(bar=False) as shown:
        shown.add_task("erasing", total=None)
        if profile_too:
            return remove_profile(home, lambda told: _keep(told, file))
        return erase_everything(home).statement


def _chosen(
    home: Home, ids: list[str], source: str | None, before: str | None, task: str | None
) -> list[Record]:
    """The records that are meant, newest first."""
    from pfi.errors import ConfigError, DataError
    from pfi.records import parse_time

    if bool(ids) == bool(source or before or task):
        what = "ids and conditions are given" if ids else "it is not said what to erase"
        raise ConfigError(what, fix="give ids, or --source, --before, --task or --all")
    try:
        until = parse_time(before)
    except ValueError as error:
        fix = "write for example 2024-01-31"
        raise ConfigError(str(error), where="--before", fix=fix) from error
    with home.open_vault() as vault:
        known = set(ids) if ids else None
        found = list(vault.find(ids=known, task=task, source=source, before=until))
    if missing := sorted(set(ids) - {record.id for record in found}):
        fix = "`pfi records` lists them; nothing was erased"
        raise DataError("there is no such record", record=missing[0], fix=fix)
    return found


def _agree(home: Home, chosen: list[Record], yes: bool) -> None:
    """Show what would be erased and ask, unless that was agreed to before."""
    for line in lines_of(chosen[:_SHOWN]):
        note(line)
    if len(chosen) > _SHOWN:
        note(f"... and {len(chosen) - _SHOWN} more")
    if yes:
        return
    with home.open_vault() as vault:
        ids = {record.id for record in chosen}
        made = sum(record.id not in ids for record in vault.made_from(ids))
    also = f" and {_count(made, 'synthetic record')} made from them" if made else ""
    _ask(f"{_count(len(chosen), 'record')}{also} would be erased for good", yes)


def _ask(what: str, yes: bool) -> None:
    from pfi.errors import ConfigError

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}, and nobody can be asked", fix="add --yes")
    typer.confirm(f"{what}. Go on?", abort=True, err=True)


def _say(told: dict[str, Any], as_json: bool) -> None:
    from pfi.profile.erase import statement as statements

    if as_json:
        print_json(told)
        return
    for line in statements.lines(told):
        typer.echo(line)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
