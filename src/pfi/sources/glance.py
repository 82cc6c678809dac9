"""What a file or folder is that no connector reads: in words, with what to do about it.

Only names, first bytes and the outline of JSON are looked at; nothing is run or unpacked.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pfi.readers.exports import is_archive, is_zip
from pfi.readers.json_head import outline
from pfi.readers.notion import export_members

__all__ = ["Sight", "is_known_export", "look", "names_in"]

_HEAD = 1 << 16
#: Entries of a folder that are looked at.
_ENTRIES = 2000
_EXPORT_JSON = "export again and choose JSON"
_UNPACK = "unpack it, and give the folder"


class Sight(NamedTuple):
    """What something is, as it follows "this is", and what the user can do."""

    what: str
    fix: str


#: What files begin with.
_MAGIC: list[tuple[bytes, Sight]] = [
    (b"%PDF-", Sight("a PDF", "name it .pdf, so that it is read as a document")),
    (b"SQLite format 3\0", Sight("a database", "")),  # see _database
    (b"\x1f\x8b", Sight("a compressed file (gzip)", _UNPACK)),
    (b"BZh", Sight("a compressed file (bzip2)", _UNPACK)),
    (b"\xfd7zXZ", Sight("a compressed file (xz)", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Sight("a 7-Zip archive", _UNPACK)),
    (b"Rar!", Sight("a RAR archive", _UNPACK)),
    (b"!BDN", Sight("an Outlook data file (.pst)",
                    "import it into Thunderbird, or save the mail as .eml or mbox, and give that")),
    (b"\xd0\xcf\x11\xe0", Sight("an old Office document or an Outlook message (.msg)",
                                "save it in a newer form: mail as .eml, tables as .csv")),
    (b"{\\rtf", Sight("a rich text document", "name it .rtf, so that it is read as a document")),
    (b"\x89PNG", Sight("an image", "there are no words of yours in it that pfi can read")),
    (b"\xff\xd8\xff", Sight("an image", "there are no words of yours in it that pfi can read")),
    (b"GIF8", Sight("an image", "there are no words of yours in it that pfi can read")),
    (b"ID3", Sight("a recording", "there are no words of yours in it that pfi can read")),
    (b"OggS", Sight("a recording", "there are no words of yours in it that pfi can read")),
    (b"RIFF", Sight("an image, a recording or a film",
                    "there are no words of yours in it that pfi can read")),
    (b"\0\0\0\x0cjP", Sight("an image", "there are no words of yours in it that pfi can read")),
    (b"BEGIN:VCARD", Sight("an address book (vCard)", "it holds nothing that you wrote")),
    (b"BEGIN:VCALENDAR", Sight("a calendar (iCalendar)", "pfi reads no calendars")),
    (b"<?xml", Sight("an XML file", "export as JSON, CSV or text, and give that")),
]  # fmt: skip

#: Names of files that tell more than their bytes.
_NAMES: list[tuple[str, Sight]] = [
    (r"msgstore.*\.crypt\d*|.*\.crypt1[245]", Sight(
        "an encrypted backup of WhatsApp",
        "in each chat choose More, Export chat, Without media, and give the zip or text file")),
    (r"signal-.*\.backup", Sight(
        "an encrypted backup of Signal",
        "export the chats in Signal's settings or with signal-export, and give the folder")),
    (r".*\.(docx?|odt|pages|rtf)", Sight("a text document", "save it as .docx, .odt or .txt")),
    (r".*\.(xlsx?|ods|numbers)", Sight(
        "a workbook of a spreadsheet", "save the sheet as CSV (UTF-8), and give that")),
    (r".*\.(pptx?|odp|key)", Sight("a presentation", "pfi reads no presentations")),
    (r".*\.(epub|mobi|azw3?)", Sight("a book", "it holds nothing that you wrote")),
    (r".*\.enex", Sight("an export of Evernote", "export as Markdown, and give the folder")),
    (r".*\.(heic|heif|jpe?g|png|gif|webp|tiff?|bmp|svg)", Sight(
        "an image", "there are no words of yours in it that pfi can read")),
    (r".*\.(mp3|m4a|wav|ogg|opus|mp4|mov|avi|mkv|webm)", Sight(
        "a recording or a film", "there are no words of yours in it that pfi can read")),
]  # fmt: skip

#: Tables by which a program's database is known.
_TABLES: list[tuple[set[str], Sight]] = [
    ({"message", "chat", "handle"}, Sight(
        "the database of Messages (chat.db)", "pfi does not read it yet")),
    ({"message", "jid"}, Sight(
        "the database of WhatsApp", "in each chat choose More, Export chat, and give the zip")),
    ({"ZWAMESSAGE"}, Sight(
        "the database of WhatsApp", "in each chat choose More, Export chat, and give the zip")),
    ({"sms", "recipient"}, Sight(
        "the database of Signal", "export the chats with signal-export, and give its folder")),
    ({"ZICCLOUDSYNCINGOBJECT"}, Sight(
        "the database of Apple Notes", "export the notes as Markdown")),
    ({"col", "notes", "cards"}, Sight("a collection of Anki", "export the notes as CSV or text")),
]  # fmt: skip

#: Paths by which an export in a folder or zip is known; the first that fits counts.
_EXPORTS: list[tuple[str, Sight]] = [
    (r"(.*/)?messages\d*\.html", Sight(
        "an export of Telegram as HTML",
        f"{_EXPORT_JSON}: in Telegram Desktop, Export chat history, machine-readable JSON")),
    (r"(.*/)?(your_)?(instagram|facebook)_activity/.*\.html|(.*/)?(inbox|messages)/.*\.html", Sight(
        "an export of Instagram or Facebook as HTML", f"{_EXPORT_JSON} as the format")),
    (r"(.*/)?word/document\d*\.xml|(.*/)?content\.xml", Sight(
        "a text document", "name it .docx or .odt, so that it is read as a document")),
    (r"(.*/)?[^/]* [0-9a-f]{32}\.html", Sight(
        "an export of Notion as HTML", "export again and choose Markdown & CSV")),
    (r"xl/workbook\.xml", Sight(
        "a workbook of Excel", "save the sheet as CSV (UTF-8), and give that")),
    (r"ppt/presentation\.xml", Sight("a presentation", "pfi reads no presentations")),
    (r"META-INF/container\.xml", Sight("a book (EPUB)", "it holds nothing that you wrote")),
    (r"(.*/)?data/(tweets?|account)\.js", Sight(
        "an archive of Twitter or X without posts", "ask X for the archive again")),
    (r"(.*/)?outbox\.json", Sight(
        "an archive of Mastodon without posts", "ask the server for the archive again")),
    (r"(.*/)?(linked_?in.*|Connections\.csv)", Sight(
        "an archive of LinkedIn", "pfi does not read it; its messages.csv can be read as a table")),
    (r"(.*/)?(iCloud|Apple ID|Apple_Media_Services|Apple Account).*", Sight(
        "data of Apple's privacy page or iCloud",
        "unpack the inner zips, and give the folder of notes, mail or bookmarks in it")),
    (r"(.*/)?projects\.json", Sight(
        "a part of Claude's data export", "give the whole zip, or its conversations.json")),
    (r"Takeout/.*", Sight(
        "an export of Google Takeout", "give its Mail folder, or Chrome's History.json")),
]  # fmt: skip

_HTML: list[tuple[bytes, Sight]] = [
    (b'class="message default', _EXPORTS[0][1]),
    (b"tgme", _EXPORTS[0][1]),
    (b'class="chatlog"', Sight(
        "an export of DiscordChatExporter as HTML", f"{_EXPORT_JSON} as the format")),
    (b"_a6-g", _EXPORTS[1][1]),
]  # fmt: skip


def look(path: Path) -> Sight | None:
    """What a file or folder is, as far as a glance tells; None if it does not.

    Raises:
        DataError: it is a zip that is damaged, encrypted or refused.
    """
    with suppress(OSError):
        if path.is_dir():
            return _folder(path)
        for pattern, sight in _NAMES:
            if re.fullmatch(pattern, path.name, re.I):
                return sight
        if path.stat().st_size == 0:
            return Sight("an empty file", "export again, and look that the file is not empty")
        if is_archive(path):
            return _zip(path)
        with path.open("rb") as file:
            head = file.read(_HEAD)
        return _file(path, head)
    return None


def _file(path: Path, head: bytes) -> Sight | None:
    if head.startswith(b"SQLite format 3\0"):
        return _database(path)
    for magic, sight in _MAGIC:
        if head.startswith(magic):
            return sight
    if head[4:8] == b"ftyp":
        return Sight("an image, a recording or a film", _MAGIC[-3][1].fix)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"<":
        found = next((sight for mark, sight in _HTML if mark in head), None)
        return found or Sight("a web page", "export as JSON, CSV or text, and give that")
    if start[:1] in b"{[" and start:
        return _json(path)
    if b"\0" in head[:4096]:
        return Sight("a binary file that pfi does not know", "export as JSON, CSV or text")
    return _text(path, start)


def _json(path: Path) -> Sight | None:
    with path.open("rb") as file:
        spots = outline(file)
    top, items = spots.keys_at(), spots.keys_at("*")
    keys = sorted((top - {"*"}) or items)[:8]
    if not keys:
        return Sight("a JSON file without objects", "give the export of a program")
    shown = ", ".join(map(repr, keys))
    where = "" if top - {"*"} else "with a list of objects "
    fix = "if it is a table, save it as JSON lines (.jsonl) with a map, or as CSV"
    if {"prompt_template", "docs"} & items:
        return Sight("the projects of Claude's data export", "give its conversations.json")
    return Sight(f"a JSON file {where}of no kind that pfi knows (keys {shown})", fix)


def _text(path: Path, start: bytes) -> Sight | None:
    line = start.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    marks = Counter(c for c in line if c in ",;\t|")
    if path.suffix.lower() in (".csv", ".tsv", ".tab") or (marks and path.suffix.lower() == ".txt"):
        fix = "say what the columns are: `pfi import table PATH --set map.instruction=COLUMN`"
        return Sight(f"a table with the columns {line[:120]}", fix)
    if path.suffix.lower() in (".md", ".markdown", ".txt"):
        return Sight(
            "a text",
            "give the folder of your notes as markdown; a chat begins with a date in each line",
        )
    return None


def _database(path: Path) -> Sight:
    tables: set[str] = set()
    with suppress(sqlite3.Error):
        # Read only and without a journal, so that nothing is written beside it.
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 999")
            tables = {str(name) for (name,) in rows}
    for wanted, sight in _TABLES:
        if wanted <= tables:
            return sight
    named = f" (tables {', '.join(sorted(tables)[:6])})" if tables else ""
    return Sight(f"a database of another program{named}", "use that program's export")


def is_known_export(path: Path) -> bool:
    """Whether the names in a folder or zip are those of a program's export that is not read.

    Raises:
        DataError: it is a zip that is damaged, encrypted or refused.
    """
    return _known(names_in(path)) is not None


def names_in(path: Path) -> list[str]:
    """The paths of the first files in a folder or archive.

    Raises:
        DataError: it is an archive that is damaged, encrypted or refused.
    """
    return _names_in_folder(path) if path.is_dir() else _names_in_zip(path)


def _names_in_zip(path: Path) -> list[str]:
    names: list[str] = []

    def note(name: str) -> bool:
        if len(names) < _ENTRIES:
            names.append(name)
        return False

    export_members(path, note)
    return names


def _zip(path: Path) -> Sight | None:
    names = _names_in_zip(path)
    return _known(names) or _counted(names, "a zip" if is_zip(path) else "an archive (tar)")


def _folder(path: Path) -> Sight | None:
    names = _names_in_folder(path)
    if not names:
        return Sight("an empty folder", "give the folder that holds the files")
    return _known(names) or _counted(names, "a folder")


def _names_in_folder(path: Path) -> list[str]:
    entries = islice((p for p in path.rglob("*") if p.is_file()), _ENTRIES)
    return [entry.relative_to(path).as_posix() for entry in entries]


def _known(names: list[str]) -> Sight | None:
    for pattern, sight in _EXPORTS:
        fits: Callable[[str], object] = re.compile(pattern, re.I).fullmatch
        if any(fits(name) for name in names):
            return sight
    return None


def _counted(names: list[str], kind: str) -> Sight | None:
    suffixes = Counter(Path(name).suffix.lower() or "without a suffix" for name in names)
    shown = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4))
    return Sight(f"{kind} with {shown}", "give the file or folder of one export in it")
