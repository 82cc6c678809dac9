"""The control groups of a process: where the limits of containers stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def control_groups(controller: str, root: Path, own: Path) -> Iterator[tuple[Path, int]]:
    """The folders of a process's control groups, innermost first, each with its version, 1 or 2.

    Args:
        controller: what is controlled, `cpu` or `memory`.
        root: where control groups are mounted.
        own: the file that names the process's own; without it there are none.
    """
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, version = root, 2
        elif controller in controllers.split(","):
            base, version = root / controller, 1
        else:
            continue
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(base):
                break
            yield place, version
