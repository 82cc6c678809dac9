"""`pfi export gguf`, `peft` and `merged`: your model as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import (
    Profile,
    TaskName,
    add_command,
    note,
    open_profile,
    progress,
    shown_path,
    size,
)

if TYPE_CHECKING:
    from pfi.profile.export.export import Exported

Out = Annotated[Path, typer.Argument()]


def add_to(group: typer.Typer) -> None:
    """Add these commands to the group `pfi export`."""
    lines = [
        "pfi export gguf mine.gguf",
        "pfi export gguf mine.gguf --bits q4_k_m --most-loss 0.1",
        "pfi export gguf mine.gguf --adapter separate --task LaMP_4",
    ]
    add_command(group, gguf, lines)
    add_command(group, peft, ["pfi export peft my-adapter"])
    add_command(group, merged, ["pfi export merged my-model"])


def gguf(
    out: Out,
    task: TaskName = None,
    bits: Annotated[
        str,
        typer.Option(
            help="Of the weights: f32, f16, q8_0, q4_k_m; auto: q8_0, or a GGUF backbone's own."
        ),
    ] = "auto",
    adapter: Annotated[
        str,
        typer.Option(
            help="merged: in the weights, for any program; separate: as a second file, exact."
        ),
    ] = "merged",
    most_loss: Annotated[
        float,
        typer.Option(help="Most that quantising may cost on your records, in nats a token."),
    ] = 0.05,
    force: Annotated[
        bool, typer.Option("--force", help="Write it whatever that costs, or unmeasured.")
    ] = False,
    profile: Profile = "default",
) -> None:
    """Write the model as OUT, a GGUF file for llama.cpp, Ollama, LM Studio and others.

    What quantising costs is measured on your own records, those held back from training where
    there are some, and written into a .json file beside OUT.
    """
    from pfi.errors import ConfigError
    from pfi.inference.llama.gguf import bits_of
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.export.export import Placement, Report, export_gguf

    placements: tuple[Placement, ...] = ("separate", "merged")
    chosen = next((each for each in placements if each == adapter), None)
    if chosen is None:
        raise ConfigError(f"--adapter is {adapter!r}", fix="give separate or merged")
    home = open_profile(profile)
    with progress(bar=True) as shown:
        bar = shown.add_task("starting", total=None)
        report = Report(
            lambda text: shown.update(bar, description=text, total=None),
            lambda done, total: shown.update(bar, completed=done, total=total),
        )
        made = export_gguf(
            home,
            pick_task(home, task),
            out,
            bits="auto" if bits.lower() == "auto" else bits_of(bits),
            placement=chosen,
            most_loss=most_loss,
            force=force,
            report=report,
        )
    _tell(made)
    if made.quality is not None:
        typer.echo(f"Quality: {made.quality}.")
        for name, value in made.quality.metrics.items():
            typer.echo(f"  {name}: {made.quality.exact_metrics[name]:.3f} -> {value:.3f}")


def peft(out: Out, task: TaskName = None, profile: Profile = "default") -> None:
    """Write the adapters in use as one adapter in the folder OUT, in peft's format."""
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.export.export import export_peft

    home = open_profile(profile)
    _tell(export_peft(home, pick_task(home, task), out))


def merged(out: Out, task: TaskName = None, profile: Profile = "default") -> None:
    """Write the backbone with the adapters merged in as the folder OUT, for transformers."""
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.export.export import export_merged

    home = open_profile(profile)
    _tell(export_merged(home, pick_task(home, task), out))


def _tell(made: Exported) -> None:
    held = made.learnt
    parts = [f"shared adapter {held.shared}"] if held.shared else []
    if held.personal and held.weight:
        parts.append(f"personal adapter {held.personal} at weight {held.weight:g}")
    inside = " and ".join(parts) or "no adapter"
    for file in made.files:
        files = file.rglob("*") if file.is_dir() else [file]
        count = sum(each.stat().st_size for each in files if each.is_file())
        typer.echo(f"Wrote {shown_path(file)} ({size(count)}).")
    typer.echo(f"Task {held.task} over {held.backbone} with {inside}.")
    if held.personal and held.weight:
        note("It is not encrypted, and whoever has it can ask what it learnt from your records.")
