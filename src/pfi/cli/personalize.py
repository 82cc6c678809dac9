"""``pfi personalize``: an adapter for each of many users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import BACKBONE, add_command, note, progress

if TYPE_CHECKING:
    from pfi.train.config import TrainConfig
    from pfi.train.many_users.run import Summary

EXAMPLES = [
    "pfi personalize --data lamp --task LaMP_3 --out runs/people",
    "pfi personalize --data lamp --task LaMP_3 --users 100 --set epochs=5 --out runs/few",
    "pfi personalize --data lamp --task LaMP_5 --shared runs/study/checkpoints/shared/LaMP_5 "
    "--out runs/on-shared",
    "pfi personalize --data lamp --task LaMP_3 --out runs/people --workers 4 --resume",
]


def register(app: typer.Typer) -> None:
    """Add the command to the ``pfi`` app."""
    add_command(app, personalize, EXAMPLES)


def personalize(
    data: Annotated[Path, typer.Option(help="Folder with <task>/<split>_questions.json.")],
    task: Annotated[str, typer.Option("--task", "-t", help="Whose records to learn from.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/personalize"),
    split: Annotated[str, typer.Option(help="Reads <split>_questions.json.")] = "dev",
    users: Annotated[int, typer.Option(min=0, help="Random sample of users; 0: all.")] = 0,
    backbone: Annotated[str, typer.Option(help=BACKBONE)] = "embedded",
    shared: Annotated[
        Path | None, typer.Option(help="Folder of an adapter to lie beneath all of them.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What trains: bank or peft.")] = "bank",
    adapt_layers: Annotated[
        str, typer.Option(help="Blocks that are adapted: all, or last:N, which is faster.")
    ] = "all",
    working_set: Annotated[
        int, typer.Option(min=1, help="Adapters that a worker trains at once.")
    ] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Use the Ray cluster of RAY_ADDRESS, or a local one.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same adapters.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A training setting; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """Train an adapter for each of many users.

    Adapters are on disk, memory holds a working set of them; see docs/personalize.md.
    """
    from pfi.models.adapters import Adapter
    from pfi.train.many_users.lamp import LampJobs
    from pfi.train.many_users.run import personalize as run

    config = train_config([f"layers={adapt_layers}", *(settings or [])])
    beneath = Adapter.load(shared) if shared else None
    jobs = LampJobs(data, task, split, users or None, seed, backbone)
    with progress(bar=True) as shown:
        bar = shown.add_task("reading the users", total=None)
        total = len(jobs)
        shown.update(bar, total=total, description="users")
        try:
            summary = run(
                jobs,
                out,
                backbone=backbone,
                config=config,
                shared=beneath,
                engine=engine,
                workers=workers,
                ray=ray,
                resume=resume,
                working_set=working_set,
                on_progress=lambda done, _: shown.update(bar, completed=done),
            )
        except KeyboardInterrupt:
            note("Stopped. The same command with --resume goes on.")
            raise
    typer.echo(told(summary, out))
    tail = "" if backbone == "embedded" else f" --backbone {backbone}"
    note(
        f"Whether they help, compared on the users' questions: "
        f"`pfi study --data {data} --tasks {task} --split {split}{tail}`."
    )


def train_config(settings: list[str]) -> TrainConfig:
    """The training settings of ``--set`` pairs.

    Raises:
        ConfigError: one of them makes no sense.
    """
    from pydantic import ValidationError

    from pfi.errors import ConfigError
    from pfi.profile.vault.imports import parse_options
    from pfi.train.config import TrainConfig

    try:
        return TrainConfig.model_validate(parse_options(settings, TrainConfig))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--set {'.'.join(map(str, first['loc']))}"
        fix = "see docs/studies.md for the training settings"
        raise ConfigError(first["msg"], where=where, fix=fix) from error


def told(summary: Summary, out: Path) -> str:
    """The result in a paragraph."""
    parts = [
        f"{summary.trained:,} of {summary.users:,} users have an adapter in {out / 'adapters'}"
    ]
    if summary.without_examples:
        parts.append(f"{summary.without_examples:,} had nothing to learn from")
    parts += [f"{count:,} stopped early: {why}" for why, count in sorted(summary.stopped.items())]
    rate = f"{summary.seconds:.0f} s, {summary.users_per_hour:,.0f} users an hour"
    return f"{'; '.join(parts)}. {rate}. {out / 'results'} has a line for every user."
