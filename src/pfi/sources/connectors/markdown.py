"""Connector for Markdown notes, such as an Obsidian vault or Notion's export: titles and texts.

Only what this person wrote in words is kept: no code, quotes, embedded files or markup, no pages
and books that were saved as notes, no templates and what programs made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.readers.dates import DateStyle
from pfi.readers.exports import Member, is_archive, open_member
from pfi.readers.front_matter import NOTION_ID, divide_note
from pfi.readers.markdown_text import plain, without_fences, without_programs
from pfi.readers.note_dates import date_values, note_time
from pfi.readers.note_origin import (
    CLIPPED,
    READ,
    TEMPLATE,
    foreign,
    has_highlights,
    makers,
)
from pfi.readers.note_pieces import LEAST_WORDS, PIECE_LIMIT, pieces
from pfi.readers.notion import (
    check_form,
    export_members,
    has_parts,
    is_notion_name,
    without_links,
)
from pfi.readers.obsidian import VaultSettings, archived_settings, vault_settings
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

__all__ = ["MarkdownConnector", "MarkdownOptions", "plain"]

#: Largest note that is read, in bytes.
NOTE_LIMIT = 4 << 20
#: Shortest card of a board that says something.
CARD_WORDS = 8
#: What is looked at of each note to find out how dates are written, in bytes.
_HEAD = 4096

_SUFFIXES = (".md", ".markdown")
#: What notes have attached, and Notion's tables of databases.
_ATTACHED = (
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".heic", ".bmp", ".pdf", ".mp3", ".m4a",
    ".wav", ".ogg", ".opus", ".mp4", ".mov", ".webm", ".csv", ".canvas", ".base", ".zip", ".css",
)  # fmt: skip
#: Levels of folders in an unpacked export.
_DEPTH = 40
#: What a line begins with that says whose words stand above it.
_QUOTED = ("—", "–", "―", "~", "--")
_TITLE = re.compile(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
_NO_TITLE = re.compile(
    r"[\d\s\-_.:/T]*|(untitled|unbenannt|sans titre|sin título|note|notes|readme|index|todo|inbox)"
    r"[\s\d]*|\d{4}-\d{2}-\d{2}\b.{0,12}",
    re.I,
)


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
    """What is known of all notes together.

    Attributes:
        settings: of the vault.
        style: of the dates.
        me: the person's names as given, in small letters.
        maker: those, or the name of whoever made all pages of Notion's that say who did.
        changed: when the source was changed, for notes in archives that do not say it.
        prompts: lines of templates.
        undated: names of notes without a date.
    """

    settings: VaultSettings
    style: DateStyle
    me: frozenset[str]
    changed: datetime
    maker: frozenset[str] = frozenset()
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
    summary = "Markdown notes (a folder, zip, Obsidian, Notion), as titles and texts in your style"
    options = MarkdownOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a note, or a folder or archive of notes."""
        if is_archive(path):
            return _mostly_notes_in(path)
        if path.is_file():
            return path.suffix.lower() in _SUFFIXES
        if not path.is_dir() or (path / ".obsidian").is_dir():
            return path.is_dir()
        return not (path / ".git").exists() and (_mostly_notes(path) or has_parts(path))

    def read(self, path: Path, options: MarkdownOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of every note, in the order of the paths, which are their ids.

        Raises:
            DataError: there is no note, or none can be used.
            ConfigError: pages say that several people made them, and not which is this person.
        """
        source = f"markdown:{path.name}"
        notes, settings = _source(path, options, report)
        folder = _folder(notes, settings, options, path, report)
        for member in notes:
            try:
                records = list(_records(member, options, source, folder))
            except (Unusable, DataError) as problem:
                reason = problem.reason if isinstance(problem, Unusable) else problem.what
                report.skip(reason, _shown(member.name))
                continue
            report.read += len(records)
            yield from records
        if folder.undated:
            first = _shown(folder.undated[0])
            several = f"{len(folder.undated)} notes say" if folder.undated[1:] else "1 note says"
            report.note(f"{several} no date, so the time of the file is taken (first: {first})")
        report.require_records(path, f"give a folder or zip of {' or '.join(_SUFFIXES)} files")


def _source(
    path: Path, options: MarkdownOptions, report: ImportReport
) -> tuple[list[Member], VaultSettings]:
    """The notes of a source, and the settings of the vault that they are in.

    Raises:
        DataError: there is nothing at `path`, an archive is refused, or pages are HTML.
    """
    skipped = {name.strip().casefold() for name in options.skip} | {"node_modules"}
    if path.is_file() and not is_archive(path):
        return [open_member(path, path.name)], vault_settings(path.parent)
    if path.is_dir() and not has_parts(path):
        notes = _notes(path, skipped)
        if not notes:
            check_form([file.name for file in path.rglob("*.html")], path)
        return notes, vault_settings(path)
    files = export_members(path, lambda name: True, depth=_DEPTH)
    check_form([file.name for file in files], path)
    for file in files:
        if is_notion_name(file.name) and _suffix(file.name) == ".csv":
            report.skip("it is a table of a database, whose pages are read", _shown(file.name))
    settings = archived_settings(files)
    return [file for file in files if _is_note(file.name, skipped)], settings


def _folder(
    notes: list[Member],
    settings: VaultSettings,
    options: MarkdownOptions,
    path: Path,
    report: ImportReport,
) -> _Folder:
    """What the notes of a source have in common: how dates are written, lines of templates.

    Raises:
        ConfigError: pages say that several people made them, and not which is this person.
    """
    style = DateStyle(order=None if options.order == "auto" else options.order)
    me = frozenset(name.strip().casefold() for name in options.me)
    changed = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    folder = _Folder(settings, style, me, changed, me)
    for pattern in settings.formats:
        style.learn_format(pattern)
    lines: Counter[str] = Counter()
    authors: Counter[str] = Counter()
    for member in notes:
        stem = PurePosixPath(member.name).stem
        style.learn(NOTION_ID.sub("", stem))
        try:
            with member.open() as stream:
                head = stream.read(_HEAD).decode("utf-8", "replace")
        except DataError:
            continue
        front, text = divide_note(head.replace("\r\n", "\n"), stem)
        for value in date_values(front):
            style.learn(value)
        authors.update(makers(front))
        if settings.is_template(PurePosixPath(member.name).parts):
            lines.update(line.strip() for line in without_programs(text).splitlines())
    if authors and not me:
        folder.maker = _only_maker(authors, path, report)
    folder.prompts = {
        line
        for line in lines
        # Without who is quoted a quote would look like one's own words.
        if 1 < count_words(line) < LEAST_WORDS and not line.startswith(_QUOTED)
    }
    return folder


def _only_maker(authors: Counter[str], path: Path, report: ImportReport) -> frozenset[str]:
    """The one who made all pages that say who made them.

    Raises:
        ConfigError: several people did.
    """
    if len(authors) > 1:
        names = ", ".join(repr(name) for name, _ in authors.most_common(8))
        fix = f"name yourself with me, one of {names}"
        raise ConfigError("it is not clear who you are", where=str(path), fix=fix)
    report.identify(authors, {})
    return frozenset(authors)


def _records(
    member: Member, options: MarkdownOptions, source: str, folder: _Folder
) -> Iterator[Record]:
    """The records of one note.

    Raises:
        Unusable: there are none.
    """
    name = member.name
    note = _note(member, options, folder)
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
        for number, piece in enumerate(pieces(note.text), 1):
            yield Record(f"{name}#{number}", "continuation", {}, piece, note.time, source=source)


def _note(member: Member, options: MarkdownOptions, folder: _Folder) -> _Note:
    """A note from its file.

    Raises:
        Unusable: it cannot be read as text, or is not this person's.
        DataError: it cannot be read.
    """
    if member.size > NOTE_LIMIT:
        raise Unusable(f"it is larger than {NOTE_LIMIT} bytes")
    try:
        with member.open() as stream:
            whole = stream.read(NOTE_LIMIT + 1).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unusable("it is not UTF-8") from None
    file = PurePosixPath(member.name)
    parts = file.parts
    if folder.settings.is_template(parts):
        raise Unusable(TEMPLATE)
    front, text = divide_note(_unified(whole), file.stem)
    if front.get("type_", "1") != "1":
        raise Unusable("it is no note but one of Joplin's folders, tags or files")
    reason = foreign(front, without_fences(text), parts, folder.me, folder.maker)
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
    if is_notion_name(member.name):
        text = without_links(text)
    if folder.prompts:
        lines = text.split("\n")
        text = "\n".join(line for line in lines if line.strip() not in folder.prompts)
    time = note_time(front, (*parts[:-1], stem), plain(title), folder.style)
    changed = member.changed or folder.changed
    own = plain(text)
    if count_words(own) < LEAST_WORDS and has_highlights(text):
        raise Unusable(READ)
    return _Note(plain(title), own, time or changed, dated=time is not None)


def _cards(text: str) -> str:
    """The cards of a board that say something, without the names of its columns."""
    items = re.findall(r"^[ \t]*[-*+] \[.\] (.*(?:\n[ \t]+\S.*)*)", text, re.M)
    return "\n\n".join(item for item in items if count_words(item) >= CARD_WORDS)


def _notes(path: Path, skipped: set[str]) -> list[Member]:
    """The notes of a folder, without hidden and linked files.

    Raises:
        DataError: there is nothing at `path`.
    """
    if not path.is_dir():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    notes = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if _is_note(name, skipped) and file.is_file() and not _is_linked(path, name):
            notes.append(open_member(file, name))
    return notes


def _is_note(name: str, skipped: set[str]) -> bool:
    parts = PurePosixPath(name).parts
    return (
        _suffix(name) in _SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in parts)
        and not any(part.casefold() in skipped for part in parts[:-1])
    )


def _is_linked(folder: Path, name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any((folder / Path(*parts[: n + 1])).is_symlink() for n in range(len(parts)))


def _mostly_notes(path: Path) -> bool:
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    notes = sum(file.suffix.lower() in _SUFFIXES for file in files)
    return notes > 0 and 2 * notes > len(files)


def _mostly_notes_in(path: Path) -> bool:
    """Whether an archive holds notes for the most part, beside what is attached to them.

    Raises:
        DataError: it is damaged, encrypted or refused.
    """
    names = [file.name for file in export_members(path, lambda name: True)]
    notes = sum(_is_note(name, set()) for name in names)
    others = sum(_suffix(name) not in (*_SUFFIXES, *_ATTACHED) for name in names)
    return notes > others or (notes > 0 and any(".obsidian/" in name for name in names))


def _unified(text: str) -> str:
    """A text with line feeds, without zeros."""
    return text.replace("\r\n", "\n").replace("\0", "")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
