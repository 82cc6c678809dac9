"""``pfi demo``: the whole of pfi on made-up people, with nothing but the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfi.cli.common import add_command


def register(app: typer.Typer) -> None:
    """Add the command to the ``pfi`` app."""
    add_command(app, demo, ["pfi demo", "pfi demo --out runs/demo-2 --seed 1"])


def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Decides the people and the weights.")] = 0,
    users: Annotated[int, typer.Option(help="How many people to evaluate.")] = 12,
    people: Annotated[
        int, typer.Option(help="How many others the shared adapter learns from.")
    ] = 24,
    backbone: Annotated[str, typer.Option(help="'embedded', a folder, or a hub id.")] = "embedded",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
) -> None:
    """See personal models beat the generic one, on made-up people, in a few minutes.

    Writes openly labelled synthetic users, trains a shared adapter (centrally, and by
    federation) and personal ones over the embedded backbone, answers every question under
    every arm and writes a report.
    """
    import shutil

    from rich.console import Console

    from pfi.cli.study import build_config, run_study
    from pfi.datasets.demo import write_demo
    from pfi.evaluate.study.arms import DEFAULT_ARMS

    console = Console()
    if fresh and (out / "data" / "truth.json").exists():  # never another kind of run
        shutil.rmtree(out)
    data = out / "data"
    if not (data / "truth.json").exists():
        write_demo(data, seed=seed, train_users=people, users=users)
    console.print(
        f"{users} made-up people, {len(list(data.glob('LaMP_*')))} tasks "
        f"(synthetic, written by a program: {data / 'README.md'})",
        soft_wrap=True,
    )
    arms = [*DEFAULT_ARMS, "shared-fed:ffa"]
    given = {"data": data, "split": "test", "seed": seed, "backbone": backbone, "arms": arms}
    settings = [
        *("shared.epochs=2", "shared.max_length=384"),
        *("personal.epochs=4", "personal.max_length=384", "personal.learning_rate=0.002"),
        "record_tokens=144",
        *(f"federation.rounds={min(40, 2 * people)}", "federation.cohort=4"),
        *("federation.local.optimizer=sgd", "federation.local.learning_rate=0.1"),
        *("federation.local.steps=1", "federation.local.weight_decay=0"),
        *("federation.server.optimizer=fedadam", "federation.server.learning_rate=0.005"),
        *("federation.server.tau=1e-5", "federation.server.decay=linear"),
    ]
    config = build_config(None, given, settings)
    run_study(config, out, resume=(out / "config.yaml").exists())
    console.print(
        "\nNext, with your own data:\n"
        "  pfi init --task commit_message\n"
        "  pfi import git PATH/TO/A/REPOSITORY\n"
        "  pfi train\n"
        '  pfi ask "src/app.py (+3 -1)"\n'
        "or compare methods on LaMP files:  pfi study --help"
    )
