"""`pfi plan`: what engine, format and training suit this machine."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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
    progress,
    size,
)
from pfi.errors import ConfigError

if TYPE_CHECKING:
    from pfi.profile.plan.planning import Planned

_UNITS = {
    "bytes": {
        **dict.fromkeys(("", "b"), 1.0),
        **{f"{p}b": 1000.0**at for at, p in enumerate("kmgt", 1)},
        **{f"{p}{i}": 1024.0**at for at, p in enumerate("kmgt", 1) for i in ("", "ib")},
    },
    "seconds": {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},
    "energy": {"": 1.0, "wh": 1.0, "kwh": 1000.0, "j": 1 / 3600, "kj": 1 / 3.6},
}
_SHOWN = {"bytes": "2GiB", "seconds": "10min", "energy": "20Wh"}


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    lines = [
        "pfi plan",
        "pfi plan --memory 2GiB --seconds 10min --apply",
        "pfi plan --energy 5Wh --power-watts 12 --json",
    ]
    add_command(app, plan, lines)


def plan(
    task: TaskName = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory of a process, as 2GiB.")
    ] = None,
    seconds: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest training, as 600 or 10min.")
    ] = None,
    energy: Annotated[
        str | None, typer.Option(metavar="ENERGY", help="Most energy of a training, as 20Wh.")
    ] = None,
    power_watts: Annotated[
        float | None,
        typer.Option(help="What this machine draws while training, where it does not tell."),
    ] = None,
    speed: Annotated[
        float, typer.Option(help="Tokens a second that are fast enough for you.")
    ] = 10.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Predict only: do not try the backbone.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the plan into the profile's settings.")
    ] = False,
    as_json: AsJson = False,
    profile: Profile = "default",
) -> None:
    """Measure this machine, and choose engine, format, context, rank and where to train."""
    from pfi._util.settings import checked
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.plan.planner import Limits
    from pfi.profile.plan.planning import apply_plan, plan_for

    values = {
        "memory": None if memory is None else round(quantity(memory, "bytes", "--memory")),
        "seconds": None if seconds is None else quantity(seconds, "seconds", "--seconds"),
        "energy": None if energy is None else quantity(energy, "energy", "--energy"),
        "watts": power_watts,
        "speed": speed,
    }
    limits = checked(Limits, values, "limits")
    home = open_profile(profile)
    with progress(bar=False) as shown:
        stage = shown.add_task("starting")
        found = plan_for(
            home,
            pick_task(home, task),
            limits,
            quick=quick,
            on_stage=lambda text: shown.update(stage, description=text),
        )
    changed = apply_plan(home, found.plan) if apply else {}
    if as_json:
        model = found.model
        print_json(
            {
                "machine": asdict(found.machine),
                "model": {
                    "name": model.shape.name,
                    "parameters": model.shape.parameters,
                    "measured": asdict(model.measured) if model.measured else None,
                    "work": asdict(model.work),
                },
                "limits": limits.model_dump(),
                "plan": found.plan.as_dict(),
                "changed": changed,
            }
        )
        return
    _print(found)
    if not apply:
        note(f"`pfi plan{flags(profile, task)} --apply` writes this into the profile's settings.")
    elif changed:
        told = ", ".join(f"{name}: {value}" for name, value in changed.items())
        note(f"Written into the profile's settings: {told}.")
    else:
        note("The profile's settings say so already.")


def quantity(text: str, kind: str, where: str) -> float:
    """A number with a unit, as ``2GiB``, ``10min`` or ``20Wh``.

    Args:
        text: what was given.
        kind: ``bytes``, ``seconds`` or ``energy`` (in watt-hours).
        where: the option.

    Raises:
        ConfigError: it is no positive number with a unit of this kind.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    scale = _UNITS[kind].get(found[2].lower()) if found else None
    if not found or scale is None or not float(found[1]) * scale > 0:
        raise ConfigError(f"{text!r} makes no sense", where=where, fix=f"give {_SHOWN[kind]}, say")
    return float(found[1]) * scale


def _print(found: Planned) -> None:
    """The machine, the ways to answer, and the plan."""
    machine, model, made = found.machine, found.model, found.plan
    speed = machine.speed
    typer.echo(
        f"Machine   {size(machine.memory_free)} of {size(machine.memory_total)} memory free, "
        f"{size(machine.disk_free)} disk free, {machine.threads} threads on {machine.cores} "
        f"cores, reads {speed.read / 1e9:.0f} GB/s, multiplies {speed.flops / 1e9:.0f} GFLOP/s"
        + ("" if machine.battery is None else f", {'battery' if machine.battery else 'mains'}")
    )
    if machine.gpu:
        gpu = machine.gpu
        typer.echo(
            f"GPU       {gpu.name}, {size(gpu.memory_free)} free, reads "
            f"{gpu.speed.read / 1e9:.0f} GB/s, multiplies {gpu.speed.flops / 1e9:.0f} GFLOP/s"
        )
    line = f"Backbone  {model.shape.name}, {model.shape.parameters / 1e6:.1f} M parameters"
    if model.measured:
        line += f"; tried: {model.measured.decode:.0f} tokens/s"
        if model.measured.train:
            line += f", {model.measured.train:.0f} tokens/s in training"
    typer.echo(line)
    typer.echo("\n  engine     bits     context  tokens/s  prompt tokens/s  memory")
    for option in made.options:
        figures = option.figures
        mark = ">" if option == made.chosen else " "
        held = model.shape.bits if option.own else option.bits
        head = f"{mark} {option.engine:<10} {held:<8}"
        if option.refused or figures is None:
            typer.echo(f"{head} {option.refused}")
            continue
        typer.echo(
            f"{head} {option.context:>7}  {figures.decode:>8.1f}  {figures.prefill:>15.0f}  "
            f"{size(figures.memory)}"
        )
    chosen, trained = made.chosen, made.training
    held = model.shape.bits if chosen.own else chosen.bits
    typer.echo(f"\nAnswer with {chosen.engine} {held}: {made.reasons['engine']}.")
    typer.echo(f"Context {chosen.context}: {made.reasons['context']}.")
    typer.echo(f"Rank {trained.rank}: {made.reasons['rank']}.")
    typer.echo(f"Train {'here' if trained.here else 'elsewhere'}: {trained.reason}.")
