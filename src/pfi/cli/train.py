"""`pfi train`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import (
    Profile,
    TaskName,
    Threads,
    add_command,
    duration,
    flags,
    note,
    open_profile,
    progress,
    size,
    tell_forgetting,
)
from pfi.cli.gate import hint_after_training

#: Steps that are timed; how many times as long is unlike; seconds that are not worth a word.
_TIMED, _UNLIKE, _SHORT = 6, 1.5, 30.0

if TYPE_CHECKING:
    from pfi.profile.home import Home
    from pfi.profile.learn.training import Trained
    from pfi.profile.plan.expect import Expected


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    lines = [
        "pfi train",
        "pfi train --task LaMP_4 --epochs 2 --holdout 0.2",
        "pfi train --holdout 0",
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
        float | None,
        typer.Option(
            help="Newest share of the records that is measured on instead of trained on; 0: none, "
            "and the adapter is used unchecked. By default 0.15, at least 4 and at most 64."
        ),
    ] = None,
    real_only: Annotated[
        bool, typer.Option("--real-only", help="Leave out synthetic records.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="What trains: bank, or peft, the slower reference.")
    ] = "bank",
    seed: Annotated[int, typer.Option(help="Same seed, same adapter.")] = 0,
    threads: Threads = None,
    profile: Profile = "default",
) -> None:
    """Train your personal adapter of one task; it is used if it is better on records held back."""
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

        def say(text: str) -> None:
            # Above the bar, where there is one.
            shown.console.print(text, highlight=False, markup=False, soft_wrap=True)

        timing = _Timing(say)

        def on_step(step: int, steps: int, loss: float) -> None:
            timing.step(step, steps)
            shown.update(bar, completed=step, total=steps, description=f"training, loss {loss:.3f}")

        trained = run(
            home,
            chosen,
            {**parse_options(pairs, TrainConfig), **values},
            mix=mix,
            real_only=real_only,
            holdout=holdout,
            engine=engine,
            seed=seed,
            on_step=on_step,
            on_stage=lambda text: shown.update(bar, description=text),
            on_expected=timing.expected,
        )
    _report(home, trained, profile)
    if trained.used:
        hint_after_training(home, chosen)


class _Timing:
    """Says what a training will take, and says so again where the first steps tell otherwise."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._predicted, self._begun = say, 0.0, 0.0

    def expected(self, expected: Expected) -> None:
        """What was predicted."""
        self._predicted = expected.seconds
        self._say(_what_it_takes(expected))

    def step(self, step: int, steps: int) -> None:
        """A step has ended; the first ones are timed."""
        now = time.monotonic()
        if step == 1:
            self._begun = now
        if step == _TIMED and self._predicted:
            left = (now - self._begun) / (step - 1) * (steps - step)
            unlike = max(left, 1e-3) / self._predicted
            if not 1 / _UNLIKE < unlike < _UNLIKE and max(left, self._predicted) > _SHORT:
                self._say(f"By the first steps it takes about {duration(left)} more.")
            self._predicted = 0.0


def _what_it_takes(expected: Expected) -> str:
    """What a training is expected to take, in a line."""
    blocks = f"all {expected.of_blocks} blocks"
    if expected.blocks < expected.of_blocks:
        blocks = f"the last {expected.blocks} of {expected.of_blocks} blocks"
    return (
        f"Training takes about {duration(expected.seconds)} and {size(expected.memory)} of memory: "
        f"{expected.examples} examples of {expected.tokens / max(expected.examples, 1):.0f} tokens "
        f"each, {blocks} in {expected.precision}."
    )


def _report(home: Home, trained: Trained, profile: str) -> None:
    from pfi.profile.learn.training import FEW

    version, verdict = trained.version, trained.verdict
    if verdict is not None:
        _report_measured(trained)
    tell_forgetting(trained.forgetting, profile, version.task, version.version)
    if trained.weight < 1:
        note(f"It is {trained.note}.")
    if trained.left_out:
        note(
            f"{trained.left_out} synthetic records were left out: they were made from records "
            "that are held back, or may have been (see `pfi augment --holdout`)."
        )
    few = version.records + len(version.held_back) < FEW
    if few:
        note(_what_would_help(version.records + len(version.held_back), profile, version.task))
    elif verdict is None:
        note("Nothing was held back, so nothing says whether it helps.")
    records = f"{version.records} records"
    if trained.synthetic:
        records = f"{version.records} real and {trained.synthetic} synthetic records"
    loss = f"loss {version.first_loss:.3f} to {version.last_loss:.3f}"
    learnt = f"{records}, {loss}, {duration(version.seconds)}"
    if trained.used:
        undo = f"pfi adapters rollback{flags(profile, version.task)}"
        typer.echo(
            f"Adapter {version.version} for {version.task} is active: {learnt}. To undo: `{undo}`."
        )
        return
    stays = home.personal_adapters.active(version.task)
    stays = f"adapter {stays} stays in use" if stays else "no adapter is in use"
    command = f"pfi adapters use {version.version}{flags(profile)}"
    typer.echo(
        f"Adapter {version.version} for {version.task} was not taken into use, {stays}: {learnt}. "
        f"To use it anyway: `{command}`."
    )
    if not few and not (trained.forgetting and trained.forgetting.exceeded):
        note(_what_would_help(None, profile, version.task))


def _report_measured(trained: Trained) -> None:
    """What the held-back records say, in words and figures."""
    verdict = trained.verdict
    assert verdict is not None
    before = f"adapter {trained.against}" if trained.against else "no personal adapter"
    note(
        f"On the {verdict.records} latest held-back examples, with {before} -> with adapter "
        f"{trained.version.version}:"
    )
    for name, value in trained.after.items():
        note(f"  {name:<16} {trained.before[name]:.4f} -> {value:.4f}")
    if verdict.interval:
        low, high = verdict.interval
        note(
            f"  The loss fell on {verdict.improved} of {verdict.records}, by {verdict.gain:.3f} "
            f"on average (95 % interval {low:.3f} to {high:.3f})."
        )
    if verdict.metric and verdict.change:
        low, high = verdict.change
        note(f"  Gain of {verdict.metric}: 95 % interval {low:+.3f} to {high:+.3f}.")
    if trained.passed_over:
        note(
            f"  Adapter {trained.passed_over}, in use until now, has learnt from some of them, so "
            "it was not measured."
        )
    answer = "It is better" if verdict.better else "It is not better"
    note(f"{answer}: {verdict.reason}.")
    if verdict.interval is None:
        note("So few records say little.")


def _what_would_help(records: int | None, profile: str, task: str) -> str:
    """What helps more than training on few records."""
    more = f"`pfi augment{flags(profile, task)}` makes synthetic ones"
    memory = f"memory uses your records without training (`pfi ask{flags(profile, task)}`)"
    few = "" if records is None else f"{records} records are few to train on. "
    return f"{few}What helps: more records (`pfi import`); {more}; {memory}."
