"""Connector for a folder of Markdown notes, such as an Obsidian vault: titles and texts.

Only what this person wrote in words is kept: no code, quotes, embedded files or markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from pfi.errors import DataError
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.readers.words import count_words
from pfi.records import Record, parse_time
from pfi.sources.connectors import Connector, Options

#: Largest note that is read, in bytes, and longest piece of one, in characters.
NOTE_LIMIT = 4 << 20
PIECE_LIMIT = 1200
#: Shortest text that a title is told from, or that is continued.
LEAST_WORDS = 12

_SUFFIXES = (".md", ".markdown")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.S | re.M)
_TITLE = re.compile(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,}).*?(?:^[ \t]{0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)
_DATES = ("date", "created", "creation date", "date created", "created_at", "updated", "modified")
_NO_TITLE = re.compile(
    r"[\d\s\-_.:/T]*|(untitled|unbenannt|sans titre|sin título|note|notes|readme|index|todo|inbox)"
    r"[\s\d]*|\d{4}-\d{2}-\d{2}\b.{0,12}",
    re.I,
)
_TAG = r"(?<![\w/&#])#([^\W\d][\w/-]*)"
#: What is taken out of a note, and what is left of it, in this order.
_MARKUP: list[tuple[re.Pattern[str], str]] = [
    (_FENCE, ""),
    (re.compile(r"<!--.*?-->|%%.*?%%|\$\$.*?\$\$", re.S), ""),
    (re.compile(r"^[ \t]{0,3}>.*$", re.M), ""),  # quotes and callouts
    (re.compile(r"^(?: {4}|\t)(?![ \t]*(?:[-*+]|\d+[.)]) ).*$", re.M), ""),  # indented code
    (re.compile(r"^[ \t]*\|.*$", re.M), ""),  # tables
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.M), ""),
    (re.compile(r"^[ \t]*\[\^?[^\]\n]+\]:.*$", re.M), ""),  # notes and addresses of links
    (re.compile(r"^[\w ]{1,40}::.*$", re.M), ""),  # fields of Dataview
    (re.compile(rf"^[ \t]*(?:{_TAG}[ \t,]*)+$", re.M), ""),
    (re.compile(r"!\[\[[^\]\n]*\]\]|!\[[^\]\n]*\]\([^)\n]*\)"), ""),
    (re.compile(r"\[\[([^\]|#\n]*)(?:#[^\]|\n]*)?\|([^\]\n]+)\]\]"), r"\2"),
    (re.compile(r"\[\[([^\]|#\n]+)(?:#[^\]|\n]*)?\]\]"), r"\1"),
    (re.compile(r"\[\[#([^\]|\n]+)\]\]"), r"\1"),
    (re.compile(r"\[([^\]\n]+)\]\([^)\n]*\)"), r"\1"),
    (re.compile(r"\[\^[^\]\n]+\]|<https?://[^>\s]+>|https?://\S+|[ \t]\^[\w-]+$", re.M), ""),
    (re.compile(r"^([ \t]*[-*+]) \[.\] ", re.M), r"\1 "),
    (re.compile(r"^#{1,6}[ \t]+", re.M), ""),
    (re.compile(_TAG), r"\1"),
    (re.compile(r"(\*\*|__|==|~~)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<!\w)([*_])(?=\S)([^*_\n]+?)(?<=\S)\1(?!\w)"), r"\2"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"</?[A-Za-z][^>\n]*>"), ""),
    (re.compile(r"[ \t]+$", re.M), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
]


class MarkdownOptions(Options):
    """Options of the `markdown` connector."""

    records: Literal["both", "titles", "texts"] = Field(
        "both", description="titles of notes, texts to continue in your style, or both"
    )
    skip: list[str] = Field(
        [], description="folders that are left out, by name; templates and hidden ones always are"
    )


@dataclass(frozen=True)
class _Note:
    """One note, without its markup."""

    title: str
    text: str
    time: datetime


class MarkdownConnector(Connector[MarkdownOptions]):
    """Reads a title and one or more texts a note."""

    name = "markdown"
    summary = "a folder of Markdown notes (Obsidian), as titles and texts in your style"
    options = MarkdownOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a note or a folder of notes."""
        if path.is_file():
            return path.suffix.lower() in _SUFFIXES
        if not path.is_dir() or (path / ".obsidian").is_dir():
            return path.is_dir()
        return not (path / ".git").exists() and _mostly_notes(path)

    def read(self, path: Path, options: MarkdownOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of every note, in the order of the paths, which are their ids.

        Raises:
            DataError: there is no note, or none can be used.
        """
        root = path if path.is_dir() else path.parent
        source = f"markdown:{path.name}"
        for file in _notes(path, {name.strip().casefold() for name in options.skip}):
            name = file.relative_to(root).as_posix()
            try:
                made = list(_records(file, name, options, source))
            except (Unusable, DataError) as problem:
                reason = problem.reason if isinstance(problem, Unusable) else problem.what
                report.skip(reason, name.encode("utf-8", "replace").decode())
                continue
            report.read += len(made)
            yield from made
        report.require_records(path, f"give a folder of {' or '.join(_SUFFIXES)} files")


def _records(file: Path, name: str, options: MarkdownOptions, source: str) -> Iterator[Record]:
    """The records of one note.

    Raises:
        Unusable: there are none.
    """
    note = _note(file)
    if count_words(note.text) < LEAST_WORDS:
        raise Unusable(f"it has fewer than {LEAST_WORDS} words")
    titled = bool(note.title) and not _NO_TITLE.fullmatch(note.title)
    if options.records != "texts" and titled:
        fields = {"text": note.text[:PIECE_LIMIT]}
        yield Record(f"{name}#title", "note_title", fields, note.title, note.time, source=source)
    elif options.records == "titles":
        raise Unusable("it has no title but a date or a usual word")
    if options.records != "titles":
        for number, piece in enumerate(_pieces(note.text), 1):
            yield Record(f"{name}#{number}", "continuation", {}, piece, note.time, source=source)


def _note(file: Path) -> _Note:
    """A note from its file.

    Raises:
        Unusable: it cannot be read as text.
    """
    try:
        status = file.stat()
        if status.st_size > NOTE_LIMIT:
            raise Unusable(f"it is larger than {NOTE_LIMIT} bytes")
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise Unusable("it is not UTF-8") from None
    except OSError as error:
        raise Unusable(f"it cannot be read ({error.strerror})") from error
    text = text.replace("\r\n", "\n").replace("\0", "")
    front: Mapping[Any, Any] = {}
    if match := _FRONT.match(text):
        front = _front(match[1])
        text = text[match.end() :]
    head = _TITLE.search(text)
    title = front.get("title")
    if not isinstance(title, str) or not title.strip():
        title = head[1] if head is not None and not text[: head.start()].strip() else file.stem
    if head is not None and not text[: head.start()].strip():
        text = text[head.end() :]  # a title must not be in the text that it is told from
    return _Note(plain(title), plain(text), _time(front, status.st_mtime))


def _front(text: str) -> Mapping[Any, Any]:
    """The values at the beginning of a note; none if they cannot be read."""
    try:
        # Merged mappings may be made to double again and again.
        found = yaml.safe_load(text) if len(text) < 20_000 and "<<" not in text else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _time(front: Mapping[Any, Any], changed: float) -> datetime:
    """When a note was written: as it says itself, else when its file was last changed."""
    values = {str(key).casefold(): value for key, value in front.items()}
    for key in _DATES:
        value = values.get(key)
        if isinstance(value, int) and value < 10**8:  # a year, or a date without dashes
            value = str(value)
        try:
            # YAML reads dates itself; what is left may be text or a number.
            time = past_time(parse_time(value).isoformat() if value else None)  # type: ignore[union-attr]
        except (Unusable, ValueError, TypeError, AttributeError, OverflowError):
            continue
        if time is not None:
            return time
    return datetime.fromtimestamp(int(changed), UTC)


def plain(text: str) -> str:
    """Markdown as the words that its author wrote."""
    for pattern, left in _MARKUP:
        text = pattern.sub(left, text)
    return text.strip()


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of whole paragraphs, each long enough to be continued."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if piece and len(piece) + len(paragraph) > PIECE_LIMIT:
            if count_words(piece) >= LEAST_WORDS:
                yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}".strip()[: 2 * PIECE_LIMIT]
    if count_words(piece) >= LEAST_WORDS:
        yield piece


def _notes(path: Path, skipped: set[str]) -> Iterator[Path]:
    """The notes of a folder, without templates, hidden and linked files.

    Raises:
        DataError: there is nothing at `path`.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    skipped = skipped | {"templates", "template", "vorlagen", "node_modules"}
    templates = _templates(path)
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if file.suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        if any(part.casefold() in skipped for part in parts[:-1]):
            continue
        if templates and file.relative_to(path).as_posix().startswith(f"{templates}/"):
            continue
        if file.is_file() and not any(
            (path / Path(*parts[: n + 1])).is_symlink() for n in range(len(parts))
        ):
            yield file


def _templates(path: Path) -> str:
    """The folder that Obsidian keeps templates in; empty if none is set."""
    try:
        found = json.loads((path / ".obsidian" / "templates.json").read_text("utf-8"))
        folder = found.get("folder", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return folder.strip("/") if isinstance(folder, str) else ""


def _mostly_notes(path: Path) -> bool:
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    notes = sum(file.suffix.lower() in _SUFFIXES for file in files)
    return notes > 0 and 2 * notes > len(files)
