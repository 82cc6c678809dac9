"""`pfi feedback` and `pfi refresh`: say what answers should have been, and learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import (
    AsJson,
    PlainGroup,
    Profile,
    TaskName,
    add_command,
    examples,
    flags,
    note,
    open_profile,
    print_json,
    printable,
    progress,
    short,
    tell_forgetting,
)
from pfi.cli.gate import hint_after_training
from pfi.errors import ConfigError

if TYPE_CHECKING:
    from pfi.profile.home import Home
    from pfi.profile.learn.refresh import Refreshed
    from pfi.profile.vault.feedback import Feedback, Rating
    from pfi.tasks import Task

BatchName = Annotated[str, typer.Argument(metavar="BATCH")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    lines = [
        'pfi feedback --last --correct "Rain floods the market"',
        "pfi feedback --last --good",
        'pfi feedback --last --better-than "Heavy rain again"',
        'pfi feedback --text "The food was cold" --task LaMP_3 --answer 4 --correct 2',
        "pfi feedback --file corrections.jsonl --task LaMP_4",
        "pfi feedback list",
    ]
    group = typer.Typer(
        cls=PlainGroup,
        help="Say of an answer what it should have been; `pfi refresh` learns from it.",
        invoke_without_command=True,
        rich_markup_mode=None,
        epilog=examples(*lines),
    )
    group.callback()(give)
    shown = ["pfi feedback list", "pfi feedback list --entries", "pfi feedback list --json"]
    add_command(group, list_, shown, name="list")
    add_command(group, undo, ["pfi feedback undo corrections"])
    add_command(group, trust, ["pfi feedback trust corrections"])
    app.add_typer(group, name="feedback")
    lines = ["pfi refresh", "pfi refresh --dry-run", "pfi refresh --task LaMP_4 --set replay=2"]
    add_command(app, refresh, lines)


# Giving -----------------------------------------------------------------------------


def give(
    context: typer.Context,
    last: Annotated[bool, typer.Option("--last", help="About the last answer.")] = False,
    back: Annotated[
        int | None, typer.Option(min=0, help="About the answer this many before the last one.")
    ] = None,
    correct: Annotated[str | None, typer.Option(help="What it should have been.")] = None,
    good: Annotated[bool, typer.Option("--good", help="It is good.")] = False,
    bad: Annotated[bool, typer.Option("--bad", help="It is bad.")] = False,
    better_than: Annotated[str | None, typer.Option(help="An answer that is worse.")] = None,
    text: Annotated[str | None, typer.Option(help="The question, if not the last one.")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", "-f", metavar="NAME=TEXT", help="A further input field; repeatable."
        ),
    ] = None,
    answer: Annotated[str | None, typer.Option(help="Its answer.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Many at once: a JSONL file, one answer a line.")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="What it is undone by; the day, or the file's name, if none."),
    ] = None,
    task: TaskName = None,
    profile: Profile = "default",
) -> None:
    """Say of an answer what it should have been, whether it is good, or what it is better than."""
    if context.invoked_subcommand is not None:
        return
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.learn import feedback
    from pfi.profile.vault.imports import parse_options

    home = open_profile(profile)
    single = {"--correct": correct, "--good": good, "--bad": bad, "--better-than": better_than}
    given = [name for name, value in single.items() if value not in (None, False)]
    if file is not None:
        about = {"--last": last, "--back": back, "--text": text, "--answer": answer}
        given += [name for name, value in about.items() if value not in (None, False)]
        if given:
            raise ConfigError(f"{given[0]} does not go with --file", fix="leave one of them out")
        chosen = pick_task(home, task) if task or home.config.task else None
        stored = feedback.give_file(home, file, task=chosen, batch=batch)
        name = feedback.file_batch(file) if batch is None else batch
        made = sum(entry.record is not None for entry in stored)
        typer.echo(f"Stored {len(stored)} answers as batch {name}, which make {made} records.")
        note(f"To undo: `pfi feedback undo {name}{flags(profile)}`.")
        refresh_if_due(home)
        return
    if not given:
        fix = "add --correct TEXT, --good, --bad or --better-than TEXT"
        raise ConfigError("nothing is said of the answer", fix=fix)
    if good and bad:
        raise ConfigError("an answer is not good and bad", fix="leave one of them out")
    if (text is not None) == (last or back is not None):
        raise ConfigError(
            "it is not clear which answer this is about", fix="give --last, --back N or --text TEXT"
        )
    if text is None:
        shown = feedback.last_answer(home, back or 0)
        if answer is not None or fields or task:
            what = "--answer, --field and --task are known of the last answer"
            raise ConfigError(what, fix="leave them out, or give --text")
        of, values, said = feedback.task_of(home, shown.task), dict(shown.input), shown.answer
        note(f"About: {printable(short(' '.join(values.values())))}")
    else:
        of = pick_task(home, task)
        values = feedback.question_fields(of, text, parse_options(fields or []))
        said = answer or ""
    rating: Rating | None = "good" if good else "bad" if bad else None
    entry = feedback.give(
        home,
        of,
        values,
        answer=said,
        correction=correct,
        rating=rating,
        better_than=better_than,
        batch=batch,
    )
    _thank(entry, profile)
    refresh_if_due(home)


def _thank(entry: Feedback, profile: str) -> None:
    made = "a record" if entry.record else "kept"
    if entry.correction is not None or entry.better_than is not None:
        made = "a record and a preference" if entry.record else "a preference"
    if entry.correction is not None and not entry.answer.strip():
        made = "a record" if entry.record else "kept"
    typer.echo(f"Noted: {made}, batch {entry.batch}.")
    if entry.trust == "doubtful":
        note(f"Its batch is doubtful; `pfi feedback trust {entry.batch}{flags(profile)}`?")


# Batches ----------------------------------------------------------------------------


def list_(
    entries: Annotated[
        bool, typer.Option("--entries", help="Show every answer and what was said of it.")
    ] = False,
    as_json: AsJson = False,
    profile: Profile = "default",
) -> None:
    """List the batches of feedback; a doubtful one is learnt from no more."""
    home = open_profile(profile)
    with home.open_vault() as vault:
        batches, found = vault.feedback.batches(), vault.feedback.entries()
    if as_json:
        print_json([_plain(entry) for entry in found])
        return
    if not batches:
        typer.echo("There is no feedback yet; `pfi feedback --last --good` gives some.")
    for batch in batches:
        typer.echo(
            f"{batch.name:<16} {', '.join(batch.tasks):<16} {batch.last:%Y-%m-%d %H:%M} UTC  "
            f"{batch.entries} answers  {batch.records} records  {batch.trust}".rstrip()
        )
        for entry in found if entries else []:
            if entry.batch == batch.name:
                typer.echo(f"  {_line(entry)}")


def _line(entry: Feedback) -> str:
    said: str = entry.rating or ""
    if entry.correction is not None:
        said = f"should be: {entry.correction}"
    elif entry.better_than is not None:
        said = f"better than: {entry.better_than}"
    question = short(" ".join(entry.input.values()), 40)
    return printable(f"{question} -> {short(entry.answer, 40)}; {short(said, 60)}")


def _plain(entry: Feedback) -> dict[str, Any]:
    names = ("batch", "task", "answer", "correction", "rating", "better_than", "record", "trust")
    values = {name: getattr(entry, name) for name in names}
    return {**values, "time": entry.time.isoformat(), "input": dict(entry.input)}


def undo(batch: BatchName, profile: Profile = "default") -> None:
    """Erase a batch of feedback, and the records that it made."""
    from pfi.profile.learn import feedback

    home = open_profile(profile)
    undone = feedback.undo(home, batch)
    typer.echo(
        f"Erased {undone.entries} answers and {len(undone.records)} records of batch {batch}."
    )
    for task, version in undone.learnt.items():
        command = f"pfi adapters rollback{flags(profile, task)}"
        note(
            f"Adapter {version} for {task} may have learnt from it: `{command}` goes back to the "
            f"version before, `pfi train{flags(profile, task)}` makes one without it."
        )


def trust(batch: BatchName, profile: Profile = "default") -> None:
    """Learn from a batch as from your own records, even if a refresh found it doubtful."""
    from pfi.profile.learn import feedback

    feedback.trust(open_profile(profile), batch)
    typer.echo(f"Batch {batch} is trusted; `pfi refresh{flags(profile)}` learns from it.")


# Learning ---------------------------------------------------------------------------


def refresh(
    task: TaskName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if nothing says that it pays.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say whether it would train.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A refresh setting; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same adapter.")] = 0,
    profile: Profile = "default",
) -> None:
    """Bring memory up to date, and your adapter where recent records say that it pays.

    A new version is used only if it beats the present one on recent records that neither has
    learnt from.
    """
    from pfi._util.settings import nested_settings
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.learn.refresh import refresh_config

    home = open_profile(profile)
    values = nested_settings(settings or [])
    refresh_config(home, values)
    _refresh(home, pick_task(home, task), values, force=force, dry_run=dry_run, seed=seed)


def refresh_if_due(home: Home) -> None:
    """Refresh the tasks with as many new records as the profile's `refresh_after` says."""
    if home.config.refresh_after is None:
        return
    from pfi.profile.learn.feedback import task_of
    from pfi.profile.learn.refresh import due

    for name in due(home):
        note(f"Refreshing {name}, as refresh_after is {home.config.refresh_after}.")
        _refresh(home, task_of(home, name))


def _refresh(home: Home, task: Task, settings: dict[str, Any] | None = None, **how: Any) -> None:
    from pfi.profile.learn.refresh import refresh as run

    with progress(bar=True) as shown:
        bar = shown.add_task("starting", total=None)
        done = run(
            home,
            task,
            settings,
            on_step=lambda step, steps, loss: shown.update(
                bar, completed=step, total=steps, description=f"training, loss {loss:.3f}"
            ),
            on_stage=lambda text: shown.update(bar, description=text),
            **how,
        )
    _report(done, home.profile)
    if done.version is not None:
        hint_after_training(home, task)


def _report(done: Refreshed, profile: str) -> None:
    if done.indexed:
        note("Memory is up to date.")
    if done.outcome in ("no need", "due"):
        would = "would train" if done.outcome == "due" else "does not train"
        typer.echo(f"{done.task}: {would}: {done.why}.")
        return
    note(f"{done.task}: trained, as {done.drift.why}.")
    for check in done.checks:
        mark = "ok" if check.passed else "NOT ok"
        records = {"recent": "new", "own": "own", "feedback": "feedback", "harm": "own"}[check.of]
        beside = " without and with the feedback" if check.of == "harm" else ""
        note(
            f"  {check.records} held-back {records} records: loss{beside} {check.before:.3f} -> "
            f"{check.after:.3f} nats a token, {mark}"
        )
    made = done.version or done.stored
    if made is not None:
        tell_forgetting(done.forgetting, profile, done.task, made.version)
    if done.version is not None:
        undo_it = f"pfi adapters rollback{flags(profile, done.task)}"
        version = done.version.version
        typer.echo(
            f"Adapter {version} for {done.task} is active: {done.why}. To undo: `{undo_it}`."
        )
    elif done.stored is not None:
        typer.echo(
            f"Adapter {done.stored.version} for {done.task} was not taken into use: {done.why}."
        )
    else:
        typer.echo(f"{done.task}: nothing changed: {done.why}.")
    for batch in done.doubtful:
        name = f"{batch}{flags(profile)}"
        note(
            f"Feedback of batch {batch} makes the model worse on your own records and is left out "
            f"from now on. `pfi feedback undo {name}` erases it; `pfi feedback trust {name}` "
            "keeps it, if it is you who has changed."
        )
