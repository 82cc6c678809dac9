"""`pfi adapters`: list the versions, choose one, go back; install a shared one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import (
    AsJson,
    Profile,
    TaskName,
    add_command,
    examples,
    note,
    open_profile,
    print_json,
)

if TYPE_CHECKING:
    from pfi.profile.adapters.store import AdapterStore
    from pfi.profile.home import Home


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="List your personal adapters, choose one, or go back.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples("pfi adapters list", "pfi adapters rollback --task LaMP_4"),
    )
    add_command(group, list_, ["pfi adapters list", "pfi adapters list --json"], name="list")
    add_command(group, use, ["pfi adapters use 0002", "pfi adapters use none --shared"])
    add_command(group, rollback, ["pfi adapters rollback", "pfi adapters rollback --task LaMP_4"])
    add_command(group, reset, ["pfi adapters reset", "pfi adapters reset --shared"])
    made = "runs/study/checkpoints"
    lines = [
        f"pfi adapters install {made}/shared/LaMP_4 --task LaMP_4",
        f"pfi adapters install {made}/shared/LaMP_4 -t LaMP_4 --prior {made}/gate/LaMP_4/pfi.json",
    ]
    add_command(group, install, lines)
    app.add_typer(group, name="adapters")


Shared = Annotated[bool, typer.Option("--shared", help="Of the shared adapters, not your own.")]


def list_(task: TaskName = None, profile: Profile = "default", as_json: AsJson = False) -> None:
    """List your versions and the shared ones, oldest first; those in use have a star."""
    home = open_profile(profile)
    stores = {"personal": home.personal_adapters, "shared": home.shared_adapters}
    found = [
        (kind, entry, store.active(entry.task) == entry.version)
        for kind, store in stores.items()
        for entry in store.list()
        if task in (None, entry.task)
    ]
    if as_json:
        print_json(
            [
                {**entry.model_dump(mode="json"), "kind": kind, "active": active}
                for kind, entry, active in found
            ]
        )
        return
    if not any(kind == "personal" for kind, _, _ in found):
        typer.echo("There are no adapters yet; `pfi train` makes one.")
    for kind, entry, active in found:
        star = "*" if active else " "
        loss = f"loss {entry.last_loss:.3f}" if entry.last_loss is not None else ""
        learnt = "shared" if kind == "shared" else f"{entry.records} records"
        typer.echo(
            f"{star} {entry.version}  {entry.task:<16} {entry.created:%Y-%m-%d %H:%M} UTC  "
            f"{learnt}  {loss}".rstrip()
        )
        if entry.verdict and not active:
            typer.echo(f"    {entry.verdict}")


def use(
    version: Annotated[str, typer.Argument()],
    task: TaskName = None,
    shared: Shared = False,
    profile: Profile = "default",
) -> None:
    """Make VERSION the active one of its task; `none` uses no adapter."""
    from pfi.errors import ConfigError
    from pfi.profile.answer.runtime import pick_task

    home = open_profile(profile)
    store, kind = _store(home, shared)
    if version == "none":
        chosen = pick_task(home, task).name
        store.use_none(chosen)
        typer.echo(f"Task {chosen} uses no {kind}adapter now.")
        _name_shared(home, chosen, shared)
        return
    manifest = store.verify(version)
    if task not in (None, manifest.task):
        what = f"version {version} is for task {manifest.task}, not {task}"
        raise ConfigError(what, fix="leave --task out")
    store.use(version)
    typer.echo(f"Task {manifest.task} uses {kind}adapter {version} now.")


def rollback(task: TaskName = None, shared: Shared = False, profile: Profile = "default") -> None:
    """Go back to the version that was active before."""
    from pfi.profile.answer.runtime import pick_task

    home = open_profile(profile)
    chosen = pick_task(home, task).name
    store, kind = _store(home, shared)
    version = store.rollback(chosen)
    now = f"{kind}adapter {version}" if version else f"no {kind}adapter"
    typer.echo(f"Task {chosen} uses {now} now.")
    if version is None:
        _name_shared(home, chosen, shared)


def _store(home: Home, shared: bool) -> tuple[AdapterStore, str]:
    """The store that is meant, and what an adapter of it is called."""
    return (home.shared_adapters, "shared ") if shared else (home.personal_adapters, "")


def _name_shared(home: Home, task: str, shared: bool) -> None:
    """Say that a shared adapter still answers, and how to do without."""
    if not shared and (version := home.shared_adapters.active(task)):
        note(
            f"Shared adapter {version} still answers it; `pfi adapters use none --shared "
            f"--task {task}` does without."
        )


def reset(
    shared: Shared = False,
    profile: Profile = "default",
) -> None:
    """Use no adapter for any task, where the list of those in use is refused.

    That is so where it was changed, or replaced by an older one. The versions stay.
    """
    home = open_profile(profile)
    store = home.shared_adapters if shared else home.personal_adapters
    store.reset()
    typer.echo("No adapter is in use now; `pfi adapters use` chooses one.")


def install(
    folder: Annotated[Path, typer.Argument()],
    task: TaskName = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="What the gate's choices gained for other users, as a study wrote it."),
    ] = None,
    profile: Profile = "default",
) -> None:
    """Take the shared adapter in FOLDER (peft format, e.g. of a study) into use for a task.

    Adapters trained from now on sit on top of it; those trained before keep what they sit on.
    """
    from pfi.gate.prior import WithPrior
    from pfi.models.adapters import Adapter
    from pfi.models.backbone import load_backbone
    from pfi.models.catalogue import backbone_fingerprint
    from pfi.profile.adapters.check import check_answers
    from pfi.profile.adapters.store import AdapterInfo
    from pfi.profile.answer.runtime import pick_task

    home = open_profile(profile)
    chosen = pick_task(home, task).name
    given, backbone = Adapter.load(folder), load_backbone(home.config.backbone)
    adapter = given.plain(backbone.model)
    check_answers(backbone.with_adapters([adapter]))
    parent = home.shared_adapters.active(chosen)
    name = home.config.backbone
    info = AdapterInfo(
        task=chosen, backbone=name, backbone_files=backbone_fingerprint(name), parent=parent
    )
    kept = WithPrior(adapter, prior) if prior else adapter
    version = home.shared_adapters.add(kept, info).version
    home.shared_adapters.use(version)
    if adapter.settings["r"] != given.settings.get("r", 8):
        typer.echo(f"Made plain LoRA of rank {adapter.settings['r']}; its answers are the same.")
    typer.echo(f"Task {chosen} uses shared adapter {version} now; `pfi train` builds on it.")
