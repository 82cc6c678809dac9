"""``pfi demo``: the whole of pfi on made-up people or on real ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfi.cli.common import (
    BACKBONE,
    Threads,
    add_command,
    duration,
    printable,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pfi.profile.plan.shapes import ModelShape

#: People to evaluate, others, and rounds of federation; fewer where a model takes much longer.
_USERS, _PEOPLE, _ROUNDS = 12, 16, 16
_FEW_USERS, _FEW_PEOPLE, _FEW_ROUNDS = 4, 8, 8

#: The model of the demo on real people, how many are evaluated, and how many others there are.
_REAL_MODEL, _REAL_USERS, _REAL_PEOPLE = "smollm2-135m", 10, 14
_REAL_ARMS = ["generic", "generic+rag", "shared", "rag", "personal", "personal+rag"]
_SHOWN = 3  # answers side by side
#: What a demo on SmolLM2-135M takes, as tokens of training: a person whom the shared adapter learns
#: from, one who is evaluated, with all answers, and a round of federation.
_TOKENS = {"made up": (18_000, 11_000, 3_000), "real": (5_500, 20_000, 0)}
_START = 30.0  # seconds until the first step, and for the report


@dataclass(frozen=True)
class _Demo:
    """What a demo's study is made of.

    Attributes:
        about: what the user is told of its people.
        arms: methods to compare.
        settings: ``key=value`` pairs of the study.
    """

    about: str
    arms: Sequence[str]
    settings: Sequence[str]


def register(app: typer.Typer) -> None:
    """Add the command to the ``pfi`` app."""
    lines = ["pfi demo", "pfi demo --out runs/demo-2 --seed 1", "pfi demo --real"]
    add_command(app, demo, [*lines, "pfi demo --backbone smollm2-135m"])


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder to write; runs/demo, runs/demo-real, or with the name of another "
            "backbone at its end."
        ),
    ] = None,
    real: Annotated[
        bool, typer.Option("--real", help="A real model and real people: mails of developers.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides the people and the weights.")] = 0,
    users: Annotated[
        int | None,
        typer.Option(
            help=f"How many people to evaluate; {_USERS}, {_FEW_USERS} on a large model, "
            f"{_REAL_USERS} real ones."
        ),
    ] = None,
    people: Annotated[
        int | None,
        typer.Option(
            help=f"How many others the shared adapter learns from; {_PEOPLE}, {_FEW_PEOPLE} on a "
            f"large model, {_REAL_PEOPLE} real ones."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help=f"{BACKBONE} By default 'embedded', with --real {_REAL_MODEL}."),
    ] = None,
    threads: Threads = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
) -> None:
    """See personal models beat the generic one, on made-up people, in a few minutes.

    Writes openly labelled synthetic users, trains a shared adapter (centrally, and by
    federation) and personal ones over the embedded backbone, answers every question under
    every arm and writes a report. On a larger model fewer people are made up by default.

    With --real the model is SmolLM2-135M, fetched where it is missing, and the people are
    developers of Open vSwitch: it learns to write the subject line of a mail as each of them does.

    How long a real model takes is said first; stopped, it goes on when it is called again.
    """
    import shutil

    from rich.console import Console

    from pfi.cli.study import build_config, run_study
    from pfi.profile.backbones import backbone_shape

    console = Console()
    model = backbone or (_REAL_MODEL if real else "embedded")
    if real:
        _fetch(model)
    shape = backbone_shape(model)  # refuses what is no backbone
    usual = _usual_numbers(shape, real=real)
    users = usual[0] if users is None else users
    people = usual[1] if people is None else people
    if out is None:
        parts = ["demo", *(["real"] if real else [])]
        if model != (_REAL_MODEL if real else "embedded"):
            parts.append(Path(model).name.removesuffix(".gguf"))
        out = Path("runs", "-".join(parts))
    if real or model != "embedded":
        seconds = expected_seconds(shape, users, people, real=real)
        console.print(
            f"On {model} this takes about {duration(seconds)} on this machine if nothing else "
            "runs; stopped, it goes on when it is called again",
            soft_wrap=True,
        )
    data = out / "data"
    if fresh and _is_demo(data, real=real):  # never another kind of run
        shutil.rmtree(out)
    given = {"data": data, "split": "test", "seed": seed, "backbone": model}
    study = (_real if real else _made_up)(data, seed, users, people, shape)
    console.print(study.about, soft_wrap=True)
    config = build_config(None, given | {"arms": list(study.arms)}, list(study.settings))
    run_study(config, out, resume=(out / "config.yaml").exists())
    if real:
        _show_answers(out, data, console)
    console.print(
        "\nNext, with your own data:\n"
        f"  pfi init --task commit_message{f' --backbone {model}' if real else ''}\n"
        "  pfi import git PATH/TO/A/REPOSITORY\n"
        "  pfi train\n"
        '  pfi ask "src/app.py (+3 -1)"\n'
        "or compare methods on LaMP files:  pfi study --help",
        soft_wrap=True,
    )


def _fetch(model: str) -> None:
    """Install a model of the list where it is missing."""
    from pfi.cli.models import fetch_model
    from pfi.models.catalogue import entries, read_installed

    if model in entries() and read_installed(model) is None:
        fetch_model(model)


def _is_large(shape: ModelShape) -> bool:
    """Whether made-up people are fewer by default, as the demo would take an hour and more."""
    from pfi.train.precision import SMALL

    return shape.parameters >= SMALL


def _usual_numbers(shape: ModelShape, *, real: bool) -> tuple[int, int]:
    """How many people are evaluated, and how many others there are, where nobody says."""
    if real:
        return _REAL_USERS, _REAL_PEOPLE
    return (_FEW_USERS, _FEW_PEOPLE) if _is_large(shape) else (_USERS, _PEOPLE)


def _rounds(shape: ModelShape, people: int) -> int:
    return min(_FEW_ROUNDS if _is_large(shape) else _ROUNDS, people)


def _is_demo(data: Path, *, real: bool) -> bool:
    """Whether a folder holds a demo's people, so that its run may be deleted."""
    return (data / ("SOURCE.md" if real else "truth.json")).exists()


def _made_up(data: Path, seed: int, users: int, people: int, shape: ModelShape) -> _Demo:
    """Write made-up people where they are missing; how they are studied."""
    from pfi.datasets.demo import write_demo
    from pfi.evaluate.study.arms import DEFAULT_ARMS

    if not _is_demo(data, real=False):
        write_demo(data, seed=seed, train_users=people, users=users)
    about = (
        f"{users} made-up people, {len(list(data.glob('LaMP_*')))} tasks "
        f"(synthetic, written by a program: {data / 'README.md'})"
    )
    settings = [
        *("shared.epochs=2", "shared.max_length=384"),
        *("personal.epochs=4", "personal.max_length=384", "personal.learning_rate=0.002"),
        f"personal.layers=last:{min(3, shape.layers)}",
        "record_tokens=144",
        *(f"federation.rounds={_rounds(shape, people)}", "federation.cohort=4"),
        *("federation.local.optimizer=sgd", "federation.local.learning_rate=0.1"),
        *("federation.local.steps=1", "federation.local.weight_decay=0"),
        *("federation.server.optimizer=fedadam", "federation.server.learning_rate=0.005"),
        *("federation.server.tau=1e-5", "federation.server.decay=linear"),
    ]
    return _Demo(about, [*DEFAULT_ARMS, "shared-fed:ffa"], settings)


def _real(data: Path, seed: int, users: int, people: int, shape: ModelShape) -> _Demo:
    """Write real people's mails where they are missing; how they are studied.

    Raises:
        ConfigError: the sample has fewer people.
        StorageError: the folder has those of a run with other numbers.
    """
    from pfi.datasets.patch_mails import holds_mails, mail_files, write_mails
    from pfi.errors import StorageError

    files = mail_files(seed=seed, people=people, users=users)
    if (data.parent / "config.yaml").exists() and not holds_mails(data, files):
        raise StorageError(
            "the run there is about other people",
            where=str(data.parent),
            fix="give the same --users, --people and --seed, another --out, or --fresh",
        )
    write_mails(data, files)
    about = (
        f"{users} developers of Open vSwitch and {people} others: what subject line does each "
        f"write? (real mails, names replaced: {data / 'SOURCE.md'})"
    )
    settings = [
        *("shared.epochs=1", "shared.batch_size=8", "shared.max_length=320"),
        *("personal.epochs=2", "personal.max_length=320"),
        "record_tokens=128",
    ]
    return _Demo(about, _REAL_ARMS, settings)


def _show_answers(out: Path, data: Path, console: Console) -> None:
    """The first question of the first people: what two arms answered, and what they wrote."""
    from pfi.datasets.lamp import open_users, read_outputs
    from pfi.datasets.patch_mails import TASK
    from pfi.tasks import get_task

    arms = ("generic", "personal")
    answers = {arm: read_outputs(out / "predictions" / arm / f"{TASK}.json")[1] for arm in arms}
    for user in open_users(data, get_task(TASK), "test")[:_SHOWN]:
        question = user.questions[0]
        shown = {arm: answers[arm][question.id] for arm in arms}
        shown[f"{user.id} wrote"] = question.gold or ""
        lines = [f"\n{short(question.fields['text'])}"]
        lines += [f"  {name:<11}{short(text)}" for name, text in shown.items()]
        text = printable("\n".join(lines))
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def expected_seconds(shape: ModelShape, users: int, people: int, *, real: bool = False) -> float:
    """How long the demo takes on this machine if nothing else runs."""
    import torch

    from pfi.profile.plan.expect import matrix_speed
    from pfi.profile.plan.predict import training_rate
    from pfi.train.precision import multiplies_bfloat16

    half = _is_large(shape) and multiplies_bfloat16("cpu")
    dtype = torch.bfloat16 if half else torch.float32
    flops = matrix_speed(dtype, "cpu").idle
    rate = training_rate(shape, flops, "bf16" if half else "f32")
    person, user, round_ = _TOKENS["real" if real else "made up"]
    tokens = people * person + users * user + _rounds(shape, people) * round_
    return _START + tokens / rate
