"""``pfi study``: compare methods on many users' data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import BACKBONE, Threads, add_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pfi.evaluate.study.config import StudyConfig
    from pfi.evaluate.study.study import OnProgress

EXAMPLES = [
    "pfi study --data lamp --tasks LaMP_3,LaMP_5 --split dev --users 20 --out runs/first",
    "pfi study --data lamp --arms shared,personal --backbone ./my-model --out runs/mine",
    "pfi study --data lamp --set personal.epochs=5 --set retrieve=4 --out runs/tuned",
    "pfi study --data lamp --protocol stream --split dev --set stream.every=8 --out runs/stream",
    "pfi study --data lamp --workers 4 --set working_set=32 --out runs/large",
    "pfi study --config runs/tuned/config.yaml --out runs/tuned --resume",
    "pfi study --out runs/tuned --so-far",
]


def register(app: typer.Typer) -> None:
    """Add the command to the ``pfi`` app."""
    add_command(app, study, EXAMPLES)


def study(
    data: Annotated[
        Path | None, typer.Option(help="Folder with <task>/<split>_questions.json.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/study"),
    tasks: Annotated[str, typer.Option(help="Tasks, comma-separated; all by default.")] = "",
    arms: Annotated[str, typer.Option(help="Arms, comma-separated (see docs/studies.md).")] = "",
    protocol: Annotated[
        str, typer.Option(help="questions (default), or stream: histories in time order.")
    ] = "",
    split: Annotated[str, typer.Option(help="Which <split>_questions.json to answer.")] = "",
    users: Annotated[int, typer.Option(help="Random sample of users a task; 0: all.")] = 0,
    backbone: Annotated[str, typer.Option(help=BACKBONE)] = "",
    seed: Annotated[int | None, typer.Option(help="Decides samples and weights.")] = None,
    engine: Annotated[
        str, typer.Option(help="bank: many adapters in one pass (default); peft: one by one.")
    ] = "",
    workers: Annotated[int, typer.Option(help="Processes; changes no result. 0: one.")] = 0,
    threads: Threads = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any setting.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, e.g. personal.epochs=5.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    so_far: Annotated[
        bool, typer.Option("--so-far", help="Only report what the run in --out has answered.")
    ] = False,
) -> None:
    """Compare methods (arms) on many users' data and write a report."""
    overrides: dict[str, Any] = {
        "data": data,
        "tasks": _names(tasks),
        "arms": _names(arms),
        "protocol": protocol,
        "split": split,
        "users": users,
        "backbone": backbone,
        "seed": seed,
        "engine": engine,
        "workers": workers,
        "threads": threads,
    }
    given = {key: value for key, value in overrides.items() if value not in (None, "", [], 0)}
    if seed == 0:
        given["seed"] = 0
    if so_far:
        # A run says itself what it is of.
        settings = build_config(config or out / "config.yaml", given, set_ or [])
        run_study(settings, out, resume=True, so_far=True)
    else:
        run_study(build_config(config, given, set_ or []), out, resume=resume)


def build_config(path: Path | None, given: dict[str, Any], settings: list[str]) -> StudyConfig:
    """Join a YAML file, flags and ``--set`` pairs; the later ones win.

    Raises:
        ConfigError: a file, flag or pair is wrong.
    """
    from pydantic import ValidationError

    from pfi.errors import ConfigError
    from pfi.evaluate.study.config import StudyConfig

    values = _read_settings(path) if path is not None else {}
    values |= given
    for name in ("shared", "personal"):
        # A partial section keeps the study's defaults for the settings that it leaves out.
        defaults = StudyConfig.model_fields[name].default.model_dump()
        values[name] = {**defaults, **(values.get(name) or {})}
    for pair in settings:
        _set(values, pair)
    if "data" not in values:
        raise ConfigError("no data was given", fix="add --data FOLDER, or try `pfi demo`")
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        raise ConfigError(first["msg"], where=setting, fix="see docs/studies.md") from error


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    from pfi.errors import ConfigError

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise ConfigError("holds no settings", where=str(path), fix="write lines of `key: value`")
    return values


def _set(values: dict[str, Any], pair: str) -> None:
    """Put the value of one ``--set`` pair into the settings."""
    import yaml

    from pfi.errors import ConfigError

    key, found, text = pair.partition("=")
    *parents, last = key.split(".")
    target: Any = values
    try:
        if not found:
            raise ValueError("not of the form key=value")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"{parent} has no settings of its own")
        target[last] = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        message = str(error).splitlines()[0]
        raise ConfigError(message, where=f"--set {pair}", fix="see docs/studies.md") from error


def run_study(
    config: StudyConfig, out: Path, *, resume: bool, so_far: bool = False
) -> dict[str, Any]:
    """Run a study with a progress bar, or only count what it has, and print its table."""
    from rich.console import Console

    from pfi.evaluate.report.terminal import terminal_table
    from pfi.evaluate.stream.report import stream_table
    from pfi.evaluate.stream.run import StreamStudy
    from pfi.evaluate.study.study import Study

    stream = config.protocol == "stream"
    protocol, table = (StreamStudy, stream_table) if stream else (Study, terminal_table)
    console = Console()
    with _progress(console) as on_progress:
        study = protocol(config, out, resume=resume, on_progress=on_progress)
        metrics = study.so_far() if so_far else study.run()
    console.print(table(metrics))
    for task, (done, users) in metrics.get("so_far", {}).items():
        console.print(f"{task}: {done} of {users} users so far", highlight=False)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return metrics


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _progress(console: Any) -> Any:
    """A context with a callback that draws one bar (and plain lines when piped)."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    @contextmanager
    def bar() -> Iterator[OnProgress]:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=console, transient=True) as progress:
            row = progress.add_task("loading", total=None)
            last = ""

            def update(text: str, done: int, planned: int) -> None:
                nonlocal last
                progress.update(row, description=text, completed=done, total=planned or None)
                step = " ".join(text.split()[:2])
                if not console.is_terminal and step != last:
                    console.print(f"{step} ({done}/{planned} answered)")
                    last = step

            yield update

    return bar()
