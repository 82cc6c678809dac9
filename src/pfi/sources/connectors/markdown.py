"""Connector for a folder of Markdown notes, such as an Obsidian vault: titles and texts.

Only what this person wrote in words is kept: no code, quotes, embedded files or markup, no pages
and books that were saved as notes, no templates and what programs made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.dates import DateStyle
from pfi.readers.front_matter import NOTION_ID, divide_note
from pfi.readers.markdown_text import plain, without_fences, without_programs
from pfi.readers.note_dates import date_values, note_time
from pfi.readers.note_origin import CLIPPED, READ, TEMPLATE, foreign, has_highlights
from pfi.readers.obsidian import VaultSettings, vault_settings
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

__all__ = ["MarkdownConnector", "MarkdownOptions", "plain"]

#: Largest note that is read, in bytes, and longest piece of one, in characters.
NOTE_LIMIT = 4 << 20
PIECE_LIMIT = 1200
#: Shortest text that a title is told from, or that is continued.
LEAST_WORDS = 12
#: Shortest card of a board that says something.
CARD_WORDS = 8
#: What is looked at of each note to find out how dates are written, in bytes.
_HEAD = 4096

_SUFFIXES = (".md", ".markdown")
#: What a line begins with that says whose words stand above it.
_QUOTED = ("—", "–", "―", "~", "--")
_TITLE = re.compile(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
_NO_TITLE = re.compile(
    r"[\d\s\-_.:/T]*|(untitled|unbenannt|sans titre|sin título|note|notes|readme|index|todo|inbox)"
    r"[\s\d]*|\d{4}-\d{2}-\d{2}\b.{0,12}",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?…]+[\"”’)\]]*\s+|[。！？]+[」』）]*|\n+")


class MarkdownOptions(Options):
    """Options of the `markdown` connector."""

    records: Literal["both", "titles", "texts"] = Field(
        "both", description="titles of notes, texts to continue in your style, or both"
    )
    skip: list[str] = Field(
        [], description="folders that are left out, by name; templates and hidden ones always are"
    )
    clippings: bool = Field(
        False, description="read what was saved from pages and books too, as if you wrote it"
    )
    me: list[str] = Field(
        [], description="your names as `author` of notes; notes of other authors are left out"
    )
    order: Literal["auto", "dmy", "mdy"] = Field(
        "auto", description="order of day and month in dates like 1/2/2024; auto finds it"
    )


@dataclass
class _Folder:
    """What is known of all notes together."""

    settings: VaultSettings
    style: DateStyle
    me: frozenset[str]
    prompts: set[str] = field(default_factory=set)
    undated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Note:
    """One note, without its markup."""

    title: str
    text: str
    time: datetime
    dated: bool


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
        skipped = {name.strip().casefold() for name in options.skip} | {"node_modules"}
        folder = _folder(path, root, skipped, options)
        for file in _notes(path, skipped):
            name = file.relative_to(root).as_posix()
            try:
                made = list(_records(file, name, options, source, folder))
            except (Unusable, DataError) as problem:
                reason = problem.reason if isinstance(problem, Unusable) else problem.what
                report.skip(reason, name.encode("utf-8", "replace").decode())
                continue
            report.read += len(made)
            yield from made
        if folder.undated:
            first = folder.undated[0].encode("utf-8", "replace").decode()
            several = f"{len(folder.undated)} notes say" if folder.undated[1:] else "1 note says"
            report.note(f"{several} no date, so the time of the file is taken (first: {first})")
        report.require_records(path, f"give a folder of {' or '.join(_SUFFIXES)} files")


def _folder(path: Path, root: Path, skipped: set[str], options: MarkdownOptions) -> _Folder:
    """What the notes of a folder have in common: how dates are written, lines of templates."""
    settings = vault_settings(root)
    style = DateStyle(order=None if options.order == "auto" else options.order)
    me = frozenset(name.strip().casefold() for name in options.me)
    folder = _Folder(settings, style, me)
    for pattern in settings.formats:
        style.learn_format(pattern)
    lines: Counter[str] = Counter()
    for file in _notes(path, skipped):
        style.learn(NOTION_ID.sub("", file.stem))
        try:
            with file.open("rb") as stream:
                head = stream.read(_HEAD).decode("utf-8", "replace")
        except OSError:
            continue
        front, text = divide_note(head.replace("\r\n", "\n"), file.stem)
        for value in date_values(front):
            style.learn(value)
        if settings.is_template(file.relative_to(root).parts):
            lines.update(line.strip() for line in without_programs(text).splitlines())
    folder.prompts = {
        line
        for line in lines
        # Without who is quoted a quote would look like one's own words.
        if 1 < count_words(line) < LEAST_WORDS and not line.startswith(_QUOTED)
    }
    return folder


def _records(
    file: Path, name: str, options: MarkdownOptions, source: str, folder: _Folder
) -> Iterator[Record]:
    """The records of one note.

    Raises:
        Unusable: there are none.
    """
    note = _note(file, name, options, folder)
    if count_words(note.text) < LEAST_WORDS:
        raise Unusable(f"it has fewer than {LEAST_WORDS} words")
    if not note.dated:
        folder.undated.append(name)
    titled = bool(note.title) and not _NO_TITLE.fullmatch(note.title)
    if options.records != "texts" and titled:
        fields = {"text": note.text[:PIECE_LIMIT]}
        yield Record(f"{name}#title", "note_title", fields, note.title, note.time, source=source)
    elif options.records == "titles":
        raise Unusable("it has no title but a date or a usual word")
    if options.records != "titles":
        for number, piece in enumerate(_pieces(note.text), 1):
            yield Record(f"{name}#{number}", "continuation", {}, piece, note.time, source=source)


def _note(file: Path, name: str, options: MarkdownOptions, folder: _Folder) -> _Note:
    """A note from its file.

    Raises:
        Unusable: it cannot be read as text, or is not this person's.
    """
    try:
        status = file.stat()
        if status.st_size > NOTE_LIMIT:
            raise Unusable(f"it is larger than {NOTE_LIMIT} bytes")
        whole = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise Unusable("it is not UTF-8") from None
    except OSError as error:
        raise Unusable(f"it cannot be read ({error.strerror})") from error
    parts = tuple(name.split("/"))
    if folder.settings.is_template(parts):
        raise Unusable(TEMPLATE)
    front, text = divide_note(whole.replace("\r\n", "\n").replace("\0", ""), file.stem)
    if front.get("type_", "1") != "1":
        raise Unusable("it is no note but one of Joplin's folders, tags or files")
    reason = foreign(front, without_fences(text), parts, folder.me)
    if reason is None and folder.settings.is_reading(parts):
        reason = READ
    if reason is not None and not (options.clippings and reason in (CLIPPED, READ)):
        raise Unusable(reason)
    head = _TITLE.search(text)
    first = head is not None and not text[: head.start()].strip()
    stem = NOTION_ID.sub("", file.stem)
    title = front.get("title")
    if not isinstance(title, str) or not title.strip():
        title = head[1] if head is not None and first else stem
    if head is not None and first:
        text = text[head.end() :]  # a title must not be in the text that it is told from
    if "kanban-plugin" in front:
        text = _cards(text)
    if folder.prompts:
        lines = text.split("\n")
        text = "\n".join(line for line in lines if line.strip() not in folder.prompts)
    time = note_time(front, (*parts[:-1], stem), plain(title), folder.style)
    changed = datetime.fromtimestamp(int(status.st_mtime), UTC)
    own = plain(text)
    if count_words(own) < LEAST_WORDS and has_highlights(text):
        raise Unusable(READ)
    return _Note(plain(title), own, time or changed, dated=time is not None)


def _cards(text: str) -> str:
    """The cards of a board that say something, without the names of its columns."""
    items = re.findall(r"^[ \t]*[-*+] \[.\] (.*(?:\n[ \t]+\S.*)*)", text, re.M)
    return "\n\n".join(item for item in items if count_words(item) >= CARD_WORDS)


def _pieces(text: str) -> list[str]:
    """A text in pieces of whole paragraphs, each long enough to be continued.

    Of a paragraph that is longer than a piece the sentences are divided.
    """
    pieces: list[str] = []
    piece = ""
    for paragraph in _paragraphs(text):
        if (
            piece
            and len(piece) + len(paragraph) > PIECE_LIMIT
            and count_words(piece) >= LEAST_WORDS
        ):
            pieces.append(piece)
            piece = ""
        piece = f"{piece}\n\n{paragraph}".strip()
    if count_words(piece) >= LEAST_WORDS:
        pieces.append(piece)
    elif piece and pieces:
        pieces[-1] += f"\n\n{piece}"  # too short to stand alone, and nothing is lost
    return pieces


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        while len(paragraph) > PIECE_LIMIT:
            ends = [m.end() for m in _SENTENCE_END.finditer(paragraph, 1, PIECE_LIMIT)]
            end = ends[-1] if ends else PIECE_LIMIT
            yield paragraph[:end].strip()
            paragraph = paragraph[end:]
        yield paragraph


def _notes(path: Path, skipped: set[str]) -> Iterator[Path]:
    """The notes of a folder, without hidden and linked files.

    Raises:
        DataError: there is nothing at `path`.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if file.suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        if any(part.casefold() in skipped for part in parts[:-1]):
            continue
        if file.is_file() and not any(
            (path / Path(*parts[: n + 1])).is_symlink() for n in range(len(parts))
        ):
            yield file


def _mostly_notes(path: Path) -> bool:
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    notes = sum(file.suffix.lower() in _SUFFIXES for file in files)
    return notes > 0 and 2 * notes > len(files)
