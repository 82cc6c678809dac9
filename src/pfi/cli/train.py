"""`pfi train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import Profile, TaskName, add_command, flags, note, open_profile, progress
from pfi.cli.gate import hint_after_training

if TYPE_CHECKING:
    from pfi.profile.learn.training import Trained


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    lines = [
        "pfi train",
        "pfi train --task LaMP_4 --epochs 2 --holdout 0.2",
        "pfi train --adapt-layers last:2 --set precision=bfloat16",
        "pfi train --set max_length=512 --set weight_decay=0",
        "pfi train --set mix.ratio=2 --set mix.order=synthetic-first",
    ]
    add_command(app, train, lines)


def train(
    task: TaskName = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the records.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    adapt_layers: Annotated[
        str | None,
        typer.Option(help="Blocks that are adapted: all, or last:N, which is faster."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Any other training setting, or mix.KEY for synthetic records; repeatable.",
        ),
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(
            help="Newest share of the records to measure on, before and after, instead of "
            "training on it."
        ),
    ] = 0.0,
    real_only: Annotated[
        bool, typer.Option("--real-only", help="Leave out synthetic records.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="What trains: bank, or peft, the slower reference.")
    ] = "bank",
    seed: Annotated[int, typer.Option(help="Same seed, same adapter.")] = 0,
    profile: Profile = "default",
) -> None:
    """Train your personal adapter of one task; it is used from its end on."""
    from pfi._util.settings import nested_settings
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.learn.training import train as run
    from pfi.profile.vault.imports import parse_options

    home = open_profile(profile)
    from pfi.train.config import TrainConfig

    chosen = pick_task(home, task)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "rank": rank,
        "layers": adapt_layers,
    }
    values = {name: value for name, value in given.items() if value is not None}
    pairs = settings or []
    mix = nested_settings(pair for pair in pairs if pair.startswith("mix.")).get("mix", {})
    pairs = [pair for pair in pairs if not pair.startswith("mix.")]
    with progress(bar=True) as shown:
        bar = shown.add_task("starting", total=None)
        trained = run(
            home,
            chosen,
            {**parse_options(pairs, TrainConfig), **values},
            mix=mix,
            real_only=real_only,
            holdout=holdout,
            engine=engine,
            seed=seed,
            on_step=lambda step, steps, loss: shown.update(
                bar, completed=step, total=steps, description=f"training, loss {loss:.3f}"
            ),
            on_stage=lambda text: shown.update(bar, description=text),
        )
    _report(trained, profile)
    hint_after_training(home, chosen)


def _report(trained: Trained, profile: str) -> None:
    version = trained.version
    if trained.measured:
        note(f"On the {trained.measured} latest held-back examples, before and after:")
        for name, value in trained.after.items():
            note(f"  {name:<16} {trained.before[name]:.4f} -> {value:.4f}")
    if trained.left_out:
        note(
            f"{trained.left_out} synthetic records were left out: they were made from records "
            "that are held back, or may have been (see `pfi augment --holdout`)."
        )
    records = f"{version.records} records"
    if trained.synthetic:
        records = f"{version.records} real and {trained.synthetic} synthetic records"
    loss = f"loss {version.first_loss:.3f} to {version.last_loss:.3f}"
    seconds = f"{version.seconds:.0f} s"
    undo = f"pfi adapters rollback{flags(profile, version.task)}"
    typer.echo(
        f"Adapter {version.version} for {version.task} is active: {records}, "
        f"{loss}, {seconds}. To undo: `{undo}`."
    )
