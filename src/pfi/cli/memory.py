"""`pfi memory`: what the memory holds, what it finds, and building it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

from pfi.cli.common import (
    AsJson,
    Profile,
    TaskName,
    add_command,
    examples,
    open_profile,
    print_json,
    progress,
    size,
)
from pfi.cli.records import lines_of, values_of

How = Annotated[
    Literal["auto", "recent", "bm25", "dense", "hybrid"] | None,
    typer.Option("--how", help="In place of the profile's way."),
]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="The index over your records, from which questions are helped.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples("pfi memory status", 'pfi memory search "rain at the harbour"'),
    )
    add_command(group, status, ["pfi memory status", "pfi memory status --json"])
    lines = [
        'pfi memory search "rain at the harbour"',
        "pfi memory search tea -k 3 --task LaMP_4 --how bm25",
    ]
    add_command(group, search, lines)
    add_command(group, rebuild, ["pfi memory rebuild"])
    app.add_typer(group, name="memory")


def status(profile: Profile = "default", as_json: AsJson = False) -> None:
    """Show how many records are indexed, the sentence model and the size on disk.

    New records are indexed when a question first needs them.
    """
    from pfi.profile.answer.memory import memory_status

    found = memory_status(open_profile(profile))
    if as_json:
        print_json(found)
        return
    typer.echo(f"search    {found['how']}")
    typer.echo(f"embedder  {found['embedder'] or 'none, records are found by words only'}")
    vectors = f", {found['vectors']} with a vector" if found["embedder"] else ""
    typer.echo(f"indexed   {found['indexed']} of {found['records']} real records{vectors}")
    for task, count in found["tasks"].items():
        typer.echo(f"  {task:<16} {count:>7}")
    typer.echo(f"on disk   {size(found['bytes'])}")


def search(
    text: Annotated[str, typer.Argument()],
    task: TaskName = None,
    k: Annotated[int, typer.Option("--records", "-k", min=1, help="How many.")] = 5,
    how: How = None,
    profile: Profile = "default",
    as_json: AsJson = False,
) -> None:
    """Show the records that the memory finds for TEXT, best first."""
    from pfi.profile.answer.runtime import Runtime, pick_task

    home = open_profile(profile)
    chosen = pick_task(home, task)
    if how is not None:
        home.config.search = {**home.config.search, "how": how}  # for this search only
    with indexing() as on_index:
        runtime = Runtime(home, on_index=on_index)
        found = runtime.memory(chosen).search(text, k)
        runtime.close()
    if as_json:
        print_json([values_of(record) for record in found])
        return
    if not found:
        typer.echo(f"The memory holds no records of task {chosen.name}.")
    for line in lines_of(found):
        typer.echo(line)


def rebuild(profile: Profile = "default") -> None:
    """Build the index anew from your records; it can be interrupted at any time."""
    from pfi.profile.answer.memory import memory_status, rebuild_memory

    home = open_profile(profile)
    with indexing() as on_index:
        rebuild_memory(home, on_progress=on_index)
    typer.echo(f"{memory_status(home)['indexed']} records are indexed.")


@contextmanager
def indexing() -> Iterator[Callable[[int, int], None]]:
    """Progress of indexing: a bar that appears when there is something to index."""
    with progress(bar=True) as shown:

        def tell(done: int, total: int) -> None:
            if not shown.tasks:
                shown.add_task("indexing new records", total=total)
            shown.update(shown.tasks[0].id, completed=done, total=total)

        yield tell
