"""Writing and fingerprinting files.

A file is written to a temporary name in its own folder, fsynced and renamed, so that a reader
sees the old file or the new one, never half of either.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace `path` with `data` (text as UTF-8); missing parent folders are made.

    Raises:
        OSError: the folder cannot be written.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}.tmp"
    try:
        # Not tempfile: its files are private to the owner, these follow the umask.
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON with a final newline.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
        OSError: the folder cannot be written.
    """
    # json.dumps would hold a list of all the pieces, which takes ten times the memory.
    text = io.StringIO()
    for piece in json.JSONEncoder(ensure_ascii=False, indent=2, allow_nan=False).iterencode(obj):
        text.write(piece)
    write_atomic(path, text.getvalue() + "\n")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as 64 hex digits; the file is read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; systems that cannot open folders skip this."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
