"""`pfi gate`: choose how much of the personal adapter and of memory answers use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import (
    AsJson,
    Profile,
    TaskName,
    Threads,
    add_command,
    examples,
    flags,
    note,
    open_profile,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from pfi.profile.answer.gate_file import Fitted
    from pfi.profile.home import Home
    from pfi.tasks import Task


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="Choose how much of your adapter and of your records answers use.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples("pfi gate fit", "pfi gate show"),
    )
    lines = [
        "pfi gate fit",
        "pfi gate fit --task LaMP_4 --set caution=0.5",
        "pfi gate fit --set weights=[0,1] --set ks=[0,2,4]",
    ]
    add_command(group, fit, lines)
    add_command(group, show, ["pfi gate show", "pfi gate show --json"])
    add_command(group, off, ["pfi gate off", "pfi gate off --task LaMP_4"])
    app.add_typer(group, name="gate")


def fit(
    task: TaskName = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A gate setting; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same choice.")] = 0,
    threads: Threads = None,
    profile: Profile = "default",
) -> None:
    """Try on your newest records what helps, and answer with that from now on.

    An adapter is trained on the older ones for it, as yours was, and not kept.
    """
    from pfi._util.settings import nested_settings
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.learn.gate import fit_gate, gate_config

    home = open_profile(profile)
    values = nested_settings(settings or [])
    gate_config(home, values)
    chosen = pick_task(home, task)
    with progress(bar=True) as shown:
        bar = shown.add_task("starting", total=None)
        fitted = fit_gate(
            home,
            chosen,
            values,
            seed=seed,
            on_stage=lambda text: shown.update(bar, description=text),
            on_step=lambda step, steps, loss: shown.update(
                bar, completed=step, total=steps, description=f"training, loss {loss:.3f}"
            ),
        )
    typer.echo(f"{fitted.task} is answered with {_what(fitted)}.")
    if not fitted.gain:
        note("Nothing else is believed to be better than that.")
    if fitted.personal is None:
        note(f"There is no personal adapter in use; `pfi train{flags(profile, task)}` makes one.")
    undo = f"pfi gate off{flags(profile, fitted.task)}"
    note(f"To go back to the profile's settings: `{undo}`.")


def show(profile: Profile = "default", as_json: AsJson = False) -> None:
    """Show what is chosen for each task, and whether it still counts.

    A choice counts only for the adapters that it was made with.
    """
    from pfi.profile.answer.gate_file import gate_status

    found = gate_status(open_profile(profile))
    if as_json:
        print_json([{**one.model_dump(mode="json"), "counts": counts} for one, counts in found])
        return
    if not found:
        typer.echo("Nothing is chosen, so the profile's settings count; `pfi gate fit` chooses.")
    for one, counts in found:
        state = "" if counts else "  STALE"
        typer.echo(f"{one.task:<16} {one.date:%Y-%m-%d %H:%M} UTC  {_what(one)}{state}")
        typer.echo(f"  made with {one.made_with}")
        if not counts:
            note(f"`pfi gate fit{flags(profile, one.task)}` chooses for what is in use now.")


def off(task: TaskName = None, profile: Profile = "default") -> None:
    """Forget what was chosen, for all tasks or for one: the profile's settings count again."""
    from pfi.profile.answer.gate_file import forget

    known = forget(open_profile(profile), task)
    typer.echo(f"Forgot the choice for {', '.join(known)}." if known else "Nothing was chosen.")


def hint_after_training(home: Home, task: Task) -> None:
    """Say that the gate can be fitted, where there is enough to do so."""
    from pfi.profile.learn.gate import can_fit

    if can_fit(home, task):
        command = f"pfi gate fit{flags(home.profile, task.name)}"
        note(f"Next: `{command}` tries on your newest records how much of it helps.")


def _what(fitted: Fitted) -> str:
    from pfi.profile.answer.gate_file import describe

    on = f"tried on {fitted.tried} records"
    if fitted.users:
        on = f"{on} and {fitted.users} other users"
    return f"{describe(fitted.choice)} (believed gain {fitted.gain:.3f}, {on})"
