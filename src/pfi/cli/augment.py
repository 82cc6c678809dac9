"""`pfi augment`: a teacher writes more records like yours, for training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
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
    printable,
    progress,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pfi.augment.client import ClientReport
    from pfi.augment.filters.filters import FilterCount
    from pfi.augment.teachers.teacher import Usage
    from pfi.profile.home import Home
    from pfi.profile.learn.augmenting import Made, Plan

#: A pace is told from this time on.
_PACE_SECONDS = 3.0
#: First calls that a dry run prints in full.
SHOWN = 3
PROTECTION = {
    "local": "nothing may leave",
    "redact": "identifiers and names replaced by placeholders",
    "none": "as it is, WITHOUT any protection",
}


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    lines = [
        "pfi augment",
        "pfi augment --teacher gguf --model qwen2.5-1.5b-instruct-q4_k_m.gguf",
        "pfi augment --teacher openai --model llama3.1 --url http://localhost:11434/v1",
        "pfi augment --teacher openai --model gpt-4o-mini --dry-run",
        "pfi augment --teacher openai --model gpt-4o-mini --budget-tokens 200000 --records 64",
        "pfi augment --pool texts.txt --set votes=5 --set filters.agreement=0.8",
        "pfi augment --remove",
    ]
    add_command(app, augment, lines)


def augment(
    task: TaskName = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Who writes: embedded (offline, weak), gguf (a GGUF file of yours, by --model), "
            "local (a model's folder, by --model), or openai (any OpenAI-compatible endpoint, by "
            "--url and --model)."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its name, file, folder or hub id.")] = None,
    url: Annotated[str | None, typer.Option(help="Its address, for openai.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="What may leave this device: nothing (local), text without identifiers "
            "(redact, the default), or text as it is (none)."
        ),
    ] = None,
    records: Annotated[int | None, typer.Option(help="Synthetic records wanted.")] = None,
    strategies: Annotated[
        str | None,
        typer.Option(help="How they are made, comma-separated: write, relabel, vary, profile."),
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(help="Most tokens, all runs of this profile together.")
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option(help="Most US dollars, likewise; needs the teacher's prices.")
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option(
            help="Texts to be answered as you would: one a line, JSON lines, CSV, TSV, or a LaMP "
            "questions file."
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Newest share of your records that nothing is made from, so that `pfi train` "
            "can measure on them; by default what it holds back by default."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent and its cost; send nothing.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what this teacher made for the task before.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Erase what teachers made for the task, and end.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before text leaves this device.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Any other setting, e.g. votes=5; repeatable."
        ),
    ] = None,
    threads: Threads = None,
    profile: Profile = "default",
) -> None:
    """Have a teacher write more records like yours; `pfi train` then learns from both.

    Nothing leaves this device without your consent, and all that does is in the ledger.
    Stopped, the same command goes on and pays nothing twice.  See docs/augment.md.
    """
    from pfi._util.settings import nested_settings
    from pfi.profile.answer.runtime import pick_task
    from pfi.profile.learn.augmenting import Augmentation, augment_config, joined
    from pfi.profile.learn.pool import read_pool

    home = open_profile(profile)
    chosen = pick_task(home, task)
    if remove:
        _remove(home, chosen.name)
        return
    given: dict[str, Any] = {
        "policy": policy,
        "records": records,
        "strategies": [name.strip() for name in strategies.split(",")] if strategies else None,
        "budget_tokens": budget_tokens,
        "budget_usd": budget_usd,
    }
    named = {"kind": teacher, "model": model, "base_url": url}
    values = nested_settings(settings or [])
    values |= {name: value for name, value in given.items() if value is not None}
    section = {name: value for name, value in named.items() if value is not None}
    values = joined(values, {"teacher": section} if section else {})
    config = augment_config(home, values)
    _check_flags(config.teacher.kind, model, url)
    texts = read_pool(pool.expanduser(), chosen) if pool else ()
    with progress(bar=False) as shown:
        line, standing = shown.add_task("starting", total=None), Standing()
        work = Augmentation(
            home,
            chosen,
            config,
            pool=texts,
            holdout=holdout,
            on_progress=lambda report: shown.update(line, description=standing(report)),
            on_stage=lambda text: shown.update(line, description=text),
        )
        plan = work.plan() if dry_run or work.teacher.host is not None else None
        if dry_run and plan is not None:
            shown.stop()
            _show_plan(plan, chosen.name)
            return
        if plan is not None:
            shown.stop()
            _ask(plan, yes=yes)
            shown.start()
        try:
            made = work.run(keep=keep)
        except KeyboardInterrupt:
            note("Stopped. The same command goes on, and pays for no answer twice.")
            raise
    _show_made(made, chosen.name, flags(profile, chosen.name))


def _check_flags(kind: str, model: str | None, url: str | None) -> None:
    """Refuse flags that the teacher would not look at.

    Raises:
        ConfigError: there are some.
    """
    from pfi.errors import ConfigError

    if url is not None and kind != "openai":
        raise ConfigError(f"--url is not for the {kind} teacher", fix="add --teacher openai")
    if model is not None and kind == "embedded":
        fix = "add --teacher gguf, --teacher local or --teacher openai"
        raise ConfigError("--model is not for the embedded teacher", fix=fix)


def _remove(home: Home, task: str) -> None:
    with home.open_vault() as vault:
        erased = vault.replace_made(task, None, [])
    typer.echo(f"Erased {erased} synthetic records of {task}.")
    if erased:
        note(f"Adapters keep what they learnt from them; next: `pfi train --task {task}`.")


# Before -----------------------------------------------------------------------------


def _ask(plan: Plan, *, yes: bool) -> None:
    """Go on only with the user's consent to what would leave.

    Raises:
        ConfigError: there is nobody to ask.
    """
    from pfi.errors import ConfigError

    note(_told(plan))
    if yes or plan.estimate.calls == plan.estimate.cached:
        return
    if not _interactive():
        raise ConfigError(
            f"text would leave this device for {plan.host}, and nobody can be asked",
            fix="look at it with --dry-run, then add --yes",
        )
    typer.confirm("Send it?", abort=True, err=True)


def _interactive() -> bool:
    return sys.stdin.isatty()


def _told(plan: Plan) -> str:
    """Who would get what, under which policy, and the cost."""
    found = plan.estimate
    if plan.host is None:
        to = f"{plan.teacher}, on this device: nothing leaves"
    else:
        to = f"{plan.teacher} at {plan.host}, policy {plan.policy}: {PROTECTION[plan.policy]}"
    calls = f"{found.calls} calls from {plan.records} real records"
    if found.calls > len(plan.first):
        calls += f" ({len(plan.first)} now, the others, here guessed, follow from answers)"
    if found.cached:
        calls += f", {found.cached} of them answered before or alike, which cost nothing"
    tokens = (
        f"about {found.prompt_tokens:,} tokens sent, at most {found.completion_tokens:,} received"
    )
    if found.usd is None:
        cost = "price not known (set teacher.usd_per_million_prompt and ..._completion)"
    else:
        cost = f"at most about ${found.usd:.4f}" if found.usd else "free"
    return f"To {to}.\n{calls}: {tokens}, {cost}."


def _show_plan(plan: Plan, task: str) -> None:
    for number, call in enumerate(plan.first[:SHOWN], 1):
        typer.echo(f"--- call {number} of the first {len(plan.first)} ---")
        for message in call.worded:
            typer.echo(f"[{message.role}]\n{printable(message.content)}")
    if plan.first:
        typer.echo("---")
    typer.echo(f"{task}, dry run: nothing was sent or written.\n{_told(plan)}")


# During and after -------------------------------------------------------------------


class Standing:
    """Says how far a teacher is: calls, tokens, and how long it will take at this pace.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, ClientReport] | None = None

    def __call__(self, report: ClientReport) -> str:
        """How things stand; the pace is that since the first answer, as a model loads before it."""
        # The counts of cached calls come late; what was paid for comes at once.
        text = f"{report.paid + report.cached} calls answered, {_cost(report.usage)}"
        now = self._clock()
        self._first = self._first or (now, report)
        begun, first = self._first
        seconds, paid = now - begun, report.paid - first.paid
        if not paid or seconds < _PACE_SECONDS:
            return text
        written = report.usage.completion_tokens - first.usage.completion_tokens
        text += f", {written / seconds:.1f} tokens written a second"
        if report.left:
            text += f", about {duration(report.left * seconds / paid)} left"
        return text


def _cost(usage: Usage) -> str:
    return f"{usage.tokens:,} tokens" + (f", ${usage.usd:.4f}" if usage.usd else "")


def _show_made(made: Made, task: str, tail: str) -> None:
    from pfi.augment.filters.filters import mostly_unlike

    client = made.client
    kinds = {"from before": client.cached, "without a usable answer": client.unusable}
    told = "".join(f", {count} {kind}" for kind, count in kinds.items() if count)
    typer.echo(f"{made.teacher}: {client.calls} calls{told}; {_cost(client.usage)} this time.")
    for problem, count in most_frequent(client.problems):
        note(f"Unusable: {count} x {printable(short(problem, 120))}.")
    for line in filter_table(made.augmented.counts):
        typer.echo(line)
    if unlike := mostly_unlike(made.augmented.counts):
        note(
            f"{unlike} of this teacher's drafts look unlike your records: it does not keep to "
            "their form. A stronger teacher would help more than more drafts."
        )
    if client.unpaid:
        note(
            f"The budget ended: {client.unpaid} calls were not made, {_cost(client.spent)} were "
            "spent in all runs together. Raise it and run again: answers so far are kept."
        )
    if not made.augmented.records:
        typer.echo(f"No synthetic record of {task} was made; the vault is as it was.")
        note("Ask for more with --records, loosen filters with --set, or take a stronger teacher.")
        return
    replaced = f", in the place of {made.replaced}" if made.replaced else ""
    known = len(made.augmented.records) - made.added
    there = f", {known} were there already" if known else ""
    plural = "" if made.added == 1 else "s"
    typer.echo(f"Added {made.added} synthetic record{plural} of {task}{replaced}{there}.")
    note(f"Next: `pfi train{tail}` learns from real and synthetic records together.")


def most_frequent(problems: Mapping[str, int]) -> list[tuple[str, int]]:
    """The three most frequent of some problems."""
    return sorted(problems.items(), key=lambda item: -item[1])[:3]


def filter_table(counts: Sequence[FilterCount]) -> list[str]:
    """The filters, one a line: what came, what was kept, what was dropped and why."""
    if not counts:
        return []
    width = max(len("filter"), *(len(count.name) for count in counts))
    lines = [f"{'filter':<{width}}  drafts   kept  dropped"]
    for count in counts:
        if not count.before and count is not counts[0]:
            break  # nothing was left for it
        most = sorted(count.dropped.items(), key=lambda item: -item[1])
        why = "; ".join(f"{number} {short(reason, 60)}" for reason, number in most[:3])
        more = f"; {sum(number for _, number in most[3:])} for other reasons" if most[3:] else ""
        gone = f"{count.before - count.kept}" + (f" ({why}{more})" if why else "")
        lines.append(f"{count.name:<{width}}  {count.before:>6}  {count.kept:>5}  {gone}")
    return lines
