"""Training, augmentation, refreshing and the gate as jobs: started, watched and cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Form
from fastapi.responses import Response

from pfi.augment.client import ClientReport
from pfi.errors import ConfigError
from pfi.profile.home import Home
from pfi.profile.learn.augmenting import Plan
from pfi.serve.console.jobs import Job, Work
from pfi.serve.console.view import ROOT, ConsoleRoute, Signed, Visit, count, number, said
from pfi.tasks import Task

if TYPE_CHECKING:
    from pfi.train.forgetting import Forgetting

router = APIRouter(route_class=ConsoleRoute)
_TITLES = {
    "train": "Training your adapter",
    "refresh": "Refreshing your model",
    "gate": "Fitting the gate",
    "augment": "Asking the teacher for synthetic records",
}
#: What a refresh checks on, one and many.
_CHECKED = {
    "recent": (
        "new record that neither has learnt from",
        "new records that neither has learnt from",
    ),
    "own": ("record of your own", "records of your own"),
    "feedback": ("record of your feedback", "records of your feedback"),
    "harm": (
        "record of your own, without and with the feedback",
        "records of your own, without and with the feedback",
    ),
}
_PROTECTION = {
    "local": "nothing may leave",
    "redact": "names and identifiers are replaced by placeholders",
    "none": "as it is, WITHOUT any protection",
}


@router.get("/progress")
def page(visit: Signed) -> Response:
    """The running job, those before it, and what can be started."""
    with visit.home.open_vault() as vault:
        found = vault.summary()
    return visit.page(
        "progress.html",
        jobs=visit.console.jobs.all(visit.profile),
        tasks=[entry.task for entry in found],
        real={entry.task: entry.records - entry.synthetic for entry in found},
        config=visit.home.config,
        augment=_teacher_words(visit.home),
    )


@router.get("/progress/now")
def now(visit: Signed, began: int = 0) -> Response:
    """The running job as a part of a page; once it has ended, the whole page is asked for."""
    job = visit.job()
    if job is not None and began == job.number and not job.running:
        return Response(headers={"HX-Refresh": "true"})
    return visit.page("_job.html")


@router.post("/progress/start")
def start(
    visit: Signed,
    kind: Annotated[str, Form()],
    task: Annotated[str, Form()] = "",
    holdout: Annotated[float | None, Form()] = None,
    force: Annotated[bool, Form()] = False,
) -> Response:
    """Begin a job.

    Raises:
        ConfigError: there is no such job, or one is running.
    """
    home, chosen = visit.home, visit.task(task)
    if kind == "train":
        work = _train(home, chosen, holdout)
    elif kind == "refresh":
        work = _refresh(home, chosen, force)
    elif kind == "gate":
        work = _gate(home, chosen)
    else:
        raise ConfigError(f"there is no job {kind!r}", fix="train, refresh, gate or augment")
    return _begin(visit, kind, chosen, work)


@router.post("/progress/cancel")
def cancel(visit: Signed) -> Response:
    """Stop the running job at its next step."""
    if visit.console.jobs.cancel(visit.profile) is None:
        return said("Nothing is running.")
    return visit.page("_job.html")


def _begin(visit: Visit, kind: str, task: Task, work: Work) -> Response:
    visit.console.jobs.start(visit.profile, kind, f"{_TITLES[kind]} for {task.title}", work)
    return Response(status_code=204, headers={"HX-Redirect": f"{ROOT}/progress"})


def refresh_if_due(visit: Visit) -> None:
    """Begin a refresh where the profile's `refresh_after` asks for one and nothing is running."""
    from pfi.profile.learn.feedback import task_of
    from pfi.profile.learn.refresh import due

    home = visit.home
    if home.config.refresh_after is None or visit.console.jobs.busy():
        return
    for name in due(home)[:1]:
        with suppress(ConfigError):  # another one was quicker
            task = task_of(home, name)
            title = f"{_TITLES['refresh']} for {task.title}"
            visit.console.jobs.start(visit.profile, "refresh", title, _refresh(home, task, False))


# Work -------------------------------------------------------------------------------


def _train(home: Home, task: Task, holdout: float | None) -> Work:
    def work(job: Job) -> Sequence[str]:
        from pfi.profile.learn.training import train

        done = train(home, task, holdout=holdout, on_step=job.on_step, on_stage=job.on_stage)
        version = done.version
        records = count(version.records, "record")
        if done.synthetic:
            records = f"{version.records:,} real and {done.synthetic:,} synthetic records"
        state = "is in use" if done.used else "was not taken into use"
        lines = [f"Adapter {version.version} {state}. It has learnt from {records}."]
        if done.measured:
            pairs = [
                f"{name} {number(done.before[name])} → {number(value)}"
                for name, value in done.after.items()
            ]
            of = count(done.measured, "held-back record")
            lines.append(f"On {of}, before and after: {', '.join(pairs)}.")
        if done.verdict is not None:
            better = "It is better" if done.verdict.better else "It is not better"
            lines.append(f"{better}: {done.verdict.reason}.")
        return lines + _forgetting(done.forgetting)

    return work


def _refresh(home: Home, task: Task, force: bool) -> Work:
    def work(job: Job) -> Sequence[str]:
        from pfi.profile.learn.refresh import refresh

        done = refresh(home, task, force=force, on_step=job.on_step, on_stage=job.on_stage)
        if done.outcome in ("no need", "due"):
            return [f"Memory is up to date. No training was needed: {done.why}."]
        lines = []
        if done.version is not None:
            lines.append(f"Adapter {done.version.version} is in use: {done.why}.")
        else:
            lines.append(f"Nothing changed: {done.why}.")
        for check in done.checks:
            mark = "✓" if check.passed else "not good enough"
            lines.append(
                f"{count(check.records, *_CHECKED[check.of])}: loss {number(check.before)} → "
                f"{number(check.after)} {mark}"
            )
        lines += [
            f"Feedback of batch {batch} makes the model worse and is left out from now on."
            for batch in done.doubtful
        ]
        return lines + _forgetting(done.forgetting)

    return work


def _forgetting(found: Forgetting | None) -> list[str]:
    if found is None:
        return []
    lines = [found.sentence.replace("->", "→")]
    if found.exceeded:
        lines.append(
            f"It forgets more than this profile's bound of {found.bound:g} nats a token. To use it "
            "anyway, choose it among the adapters."
        )
    return lines


def _gate(home: Home, task: Task) -> Work:
    def work(job: Job) -> Sequence[str]:
        from pfi.profile.answer.gate_file import describe
        from pfi.profile.learn.gate import fit_gate

        fitted = fit_gate(home, task, on_step=job.on_step, on_stage=job.on_stage)
        tried = count(fitted.tried, "record")
        return [f"Answers use {describe(fitted.choice)} from now on, tried on {tried}."]

    return work


# Augmentation -----------------------------------------------------------------------


def _teacher_words(home: Home) -> dict[str, str | int | float | None]:
    """Which teacher the profile has, and its budget."""
    from pfi.profile.learn.augmenting import augment_config

    config = augment_config(home, {})
    return {
        "kind": config.teacher.kind,
        "model": config.teacher.model,
        "url": config.teacher.base_url if config.teacher.kind == "openai" else "",
        "policy": config.policy,
        "tokens": config.budget_tokens,
        "usd": config.budget_usd,
    }


@router.post("/progress/plan")
def plan(visit: Signed, task: Annotated[str, Form()] = "") -> Response:
    """What augmentation would send and cost; nothing is sent."""
    from pfi.profile.learn.augmenting import Augmentation, augment_config

    chosen = visit.task(task)
    made = Augmentation(visit.home, chosen, augment_config(visit.home, {})).plan()
    return visit.page("_plan.html", plan=made, task=chosen, protection=_protection(made))


def _protection(made: Plan) -> str:
    return "nothing leaves this device" if made.host is None else _PROTECTION[made.policy]


@router.post("/progress/augment")
def augment(
    visit: Signed, task: Annotated[str, Form()], agreed: Annotated[str, Form()] = ""
) -> Response:
    """Begin augmentation; for a teacher elsewhere only to the host that was agreed to.

    Raises:
        ConfigError: text would leave for another host, or a job is running.
    """
    from pfi.profile.learn.augmenting import Augmentation, augment_config

    chosen = visit.task(task)
    home, config = visit.home, augment_config(visit.home, {})

    def work(job: Job) -> Sequence[str]:
        def on_progress(report: ClientReport) -> None:
            spent = f", ${report.usage.usd:.4f}" if report.usage.usd else ""
            answered = count(report.paid + report.cached, "call")
            job.on_stage(f"{answered} answered, {report.usage.tokens:,} tokens{spent}")

        made = Augmentation(
            home, chosen, config, on_progress=on_progress, on_stage=job.on_stage
        ).run()
        lines = [
            f"{made.teacher}: {count(made.client.calls, 'call')}, "
            f"{made.client.usage.tokens:,} tokens this time.",
            f"Added {count(made.added, 'synthetic record')}."
            + (f" They replace {made.replaced} older ones." if made.replaced else ""),
        ]
        for kept in made.augmented.counts:
            if kept.before > kept.kept:
                lines.append(f"Filter {kept.name}: {kept.kept} of {kept.before} kept.")
        if made.client.unpaid:
            lines.append(f"The budget ended; {made.client.unpaid} calls were not made.")
        return lines

    host = Augmentation(home, chosen, config).teacher.host
    if host is not None and agreed != host:
        what = f"text would leave this device for {host}"
        raise ConfigError(what, fix="look at the plan and agree to it first")
    return _begin(visit, "augment", chosen, work)
