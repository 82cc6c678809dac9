"""``pfi demo``: the whole of pfi on made-up people, with nothing but the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfi.cli.common import BACKBONE, Threads, add_command, duration

#: What the demo took on the embedded model on two idle cores, in seconds, and what these cores
#: multiply, in FLOP a second; a part of it does not depend on the model.  SmolLM2-135M, which has
#: 19 times the weights, took 22 times as long.
_SECONDS, _FLOPS, _FIXED, _GROWTH = 253.0, 175e9, 15.0, 1.13
_USERS, _PEOPLE = 12, 24


def register(app: typer.Typer) -> None:
    """Add the command to the ``pfi`` app."""
    add_command(
        app,
        demo,
        ["pfi demo", "pfi demo --out runs/demo-2 --seed 1", "pfi demo --backbone smollm2-135m"],
    )


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder to write; runs/demo, or runs/demo-NAME of another backbone."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the people and the weights.")] = 0,
    users: Annotated[int, typer.Option(help="How many people to evaluate.")] = _USERS,
    people: Annotated[
        int, typer.Option(help="How many others the shared adapter learns from.")
    ] = _PEOPLE,
    backbone: Annotated[str, typer.Option(help=BACKBONE)] = "embedded",
    threads: Threads = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
) -> None:
    """See personal models beat the generic one, on made-up people, in a few minutes.

    On a real model, as with `--backbone smollm2-135m`, it takes longer; how long is said first.

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
    if backbone != "embedded":
        seconds = expected_seconds(backbone, users, people)  # refuses what is no backbone
        console.print(
            f"On {backbone} this takes about {duration(seconds)} on this machine if nothing else "
            "runs; stopped, it goes on when it is called again",
            soft_wrap=True,
        )
    if out is None:
        model = Path(backbone).name.removesuffix(".gguf")
        out = Path("runs", "demo" if backbone == "embedded" else f"demo-{model}")
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


def expected_seconds(backbone: str, users: int, people: int) -> float:
    """How long the demo takes on this machine on another backbone, from what was measured.

    Raises:
        BackboneError: there is no such backbone here.
    """
    from pfi.profile.backbones import backbone_shape
    from pfi.profile.plan.machine import CACHED, measure_processor

    active = backbone_shape(backbone).active / backbone_shape("embedded").active
    share = 0.5 * users / _USERS + 0.5 * people / _PEOPLE
    speed = _FLOPS / measure_processor("cpu", CACHED).flops
    return (_FIXED + (_SECONDS - _FIXED) * share * _GROWTH * active) * speed
