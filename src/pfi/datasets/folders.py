"""Folders that a program fills with data: written whole, never over what is somebody's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pfi._util.files import write_atomic
from pfi.errors import StorageError


def write_folder(folder: Path, files: Mapping[str, str], *, label: str, about: str) -> None:
    """Write files by name below a folder; those of an earlier call are replaced.

    Args:
        folder: made if missing.
        files: the texts, the label among them; it goes first, so that a folder that was cut short
            is still known by it.
        label: the file by which the folder is known.
        about: what stands in it.

    Raises:
        StorageError: the folder holds something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder, label, about)
        for name, text in {label: files[label], **files}.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, text)
    except OSError as error:
        raise StorageError(
            f"the demo cannot be written: {error.strerror}",
            where=str(folder),
            fix="choose a folder that you may write to",
        ) from error


def _refuse_foreign(folder: Path, label: str, about: str) -> None:
    """Never write over what is not an earlier demo: real histories have the same file names."""
    if not any(path for path in folder.iterdir() if not path.name.startswith(".")):
        return
    file = folder / label
    if not file.is_file() or about not in file.read_text(encoding="utf-8", errors="replace"):
        raise StorageError(
            "the folder is not empty and holds no demo",
            where=str(folder),
            fix="choose an empty or a new folder",
        )
