"""Connector for text documents: Word, OpenDocument, rich text, plain text and PDF.

Only what this person wrote is kept: no changes and comments of others, no quotes, no notes, lists
of contents and forms, no documents that others began or saved, no PDFs that do not say whose they
are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from pfi.errors import ConfigError, DataError
from pfi.readers.dates import DateStyle, date_in_name
from pfi.readers.document_origin import (
    MAIL,
    OTHER,
    SEVERAL,
    SHARED,
    TALK,
    TEMPLATE,
    UNSIGNED,
    foreign_text,
    guess_me,
    is_somebody,
    name_key,
    named,
    others_document,
)
from pfi.readers.document_text import (
    LINK,
    PLACEHOLDER,
    QUOTED,
    Document,
    IsMine,
    Paragraph,
    Properties,
)
from pfi.readers.document_title import titled
from pfi.readers.docx_text import docx_document, docx_properties
from pfi.readers.exports import Member, is_archive, members, open_member
from pfi.readers.mail_quotes import find_cut
from pfi.readers.mail_words import simple
from pfi.readers.markdown_text import own_paragraphs
from pfi.readers.note_origin import foreign
from pfi.readers.note_pieces import LEAST_WORDS, PIECE_LIMIT, pieces
from pfi.readers.obsidian import VaultSettings
from pfi.readers.odt_text import odt_document, odt_properties
from pfi.readers.pdf_text import pdf_document, pdf_properties
from pfi.readers.plain_text import text_document
from pfi.readers.report import ImportReport
from pfi.readers.rtf_text import rtf_document, rtf_properties
from pfi.readers.values import FUTURE_SLACK, Unusable
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.connectors import Connector, Options
from pfi.sources.glance import is_known_export, names_in
from pfi.sources.pasted import copied
from pfi.sources.whatsapp_heads import head_of

#: How deep folders are looked through.
DEPTH = 12

_WORD = (".docx", ".docm")
_OPEN = (".odt", ".fodt")
_PDF, _RICH, _TEXT = ".pdf", ".rtf", ".txt"
_SUFFIXES = (*_WORD, *_OPEN, _RICH, _TEXT, _PDF)
#: What a document of Office begins with that is encrypted, or in the old form.
_OLE = b"\xd0\xcf\x11\xe0"
#: What else there may be in a folder of documents, and why it is not read.
_REFUSED = {
    **dict.fromkeys((".dotx", ".dotm", ".dot", ".ott"), "it is a template"),
    ".doc": "it is in Word's old form: save it as .docx",
    ".pages": "it is a document of Pages: export it as Word",
    ".wpd": "it is a document of WordPerfect: save it as .docx",
    ".sxw": "it is in OpenOffice's old form: save it as .odt",
    ".md": "it is Markdown: import it as markdown",
    ".markdown": "it is Markdown: import it as markdown",
}
_ALL = frozenset((*_SUFFIXES, *_REFUSED))
#: Plain text that people do not write as their own, by name.
_PROGRAM_FILES = re.compile(
    r"(?:licen[cs]e|copying|notice|third[-_ ]?party.*|requirements.*|constraints.*|robots|humans"
    r"|cmakelists|changelog|release[-_ ]?notes|readme|install|manifest|security|ads|llms(?:-full)?"
    r"|.*[-_.]log|log|sitemap|dependency[-_ ].*|top_level|entry_points|sources|credits|eula)\.txt",
    re.I,
)
_ADDRESS = re.compile(r"(?:- )?(?:https?://|www\.)\S+", re.I)
_LOREM = re.compile(r"(?:- )?lorem ipsum dolor", re.I)


class DocumentsOptions(Options):
    """Options of the `documents` connector."""

    me: list[str] = Field(
        [],
        description="your names as author of documents; by default the one whom most are by",
    )
    records: Literal["both", "titles", "texts"] = Field(
        "both", description="titles of documents, texts to continue in your style, or both"
    )
    skip: list[str] = Field(
        [], description="folders that are left out, by name; templates and hidden ones always are"
    )
    shared: bool = Field(
        False, description="read documents of yours that someone else began or saved last, too"
    )
    unsigned: bool = Field(
        False, description="read PDFs that do not say who wrote them, as if you did"
    )


@dataclass(frozen=True)
class _File:
    """A document that can be opened, and what it says about itself."""

    member: Member
    properties: Properties

    @property
    def suffix(self) -> str:
        return _suffix(self.member.name)


class DocumentsConnector(Connector[DocumentsOptions]):
    """Reads a title and one or more texts a document."""

    name = "documents"
    summary = "text documents (.docx, .odt, .rtf, .txt, .pdf), as titles and texts in your style"
    options = DocumentsOptions
    last = True

    def recognises(self, path: Path) -> bool:
        """Whether it is a document, or a folder or zip that holds documents for the most part."""
        if path.is_file() and _suffix(path.name) in _SUFFIXES:
            return path.stat().st_size > 0
        if not path.is_dir() and not is_archive(path):
            return False
        if (path / ".git").exists() or is_known_export(path):
            return False
        names = [name for name in names_in(path) if _is_shown(name)]
        return 2 * sum(_suffix(name) in _SUFFIXES for name in names) > len(names)

    def read(self, path: Path, options: DocumentsOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of every document, in the order of the paths, which are their ids.

        Raises:
            DataError: there is no document, or none can be used.
            ConfigError: it is not clear who this person is.
        """
        files = _files(path, options, report)
        style = DateStyle()
        for file in files:
            style.learn(PurePosixPath(file.member.name).stem)
        changed = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
        me = _own_names(files, options, report, path)
        folder = _Folder(me, options, report, style, changed, _is_document(path))
        source = f"documents:{path.name}"
        for file in files:
            name = file.member.name
            try:
                records = list(_records(file, folder, source))
            except (Unusable, DataError) as problem:
                report.skip(_reason(problem), _shown(name))
                continue
            report.read += len(records)
            yield from records
        if folder.undated:
            several = f"{len(folder.undated)} documents say"
            count = several if folder.undated[1:] else "1 document says"
            first = _shown(folder.undated[0])
            report.note(f"{count} no date, so the time of the file is taken (first: {first})")
        report.require_records(path, _fix(report))


@dataclass
class _Folder:
    """What holds for all documents of a source.

    Attributes:
        me: keys of the person's names.
        options: of the import.
        report: of the import.
        style: of the dates in names.
        changed: when the source was changed, for files in zips that do not say it of themselves.
        alone: whether it is one document, which was chosen as such.
        undated: names of documents that say no date.
    """

    me: frozenset[str]
    options: DocumentsOptions
    report: ImportReport
    style: DateStyle
    changed: datetime
    alone: bool
    undated: list[str] = field(default_factory=list)


def _files(path: Path, options: DocumentsOptions, report: ImportReport) -> list[_File]:
    """The documents of a source with what they say about themselves; others are reported."""
    skipped = {name.strip().casefold() for name in options.skip} | {"node_modules"}
    if _is_document(path):
        found = [open_member(path, path.name)]  # most are zips themselves
    else:
        found = members(path, _is_shown, depth=DEPTH)
    files = []
    for member in found:
        folders = [part.casefold() for part in PurePosixPath(member.name).parts[:-1]]
        if _suffix(member.name) not in _ALL or not skipped.isdisjoint(folders):
            continue
        try:
            files.append(_File(member, _properties(member)))
        except (Unusable, DataError) as problem:
            report.skip(_reason(problem), _shown(member.name))
    return files


def _properties(member: Member) -> Properties:
    """What a document says about itself.

    Raises:
        Unusable: it is of a kind that is not read, or damaged, encrypted or refused.
    """
    suffix = _suffix(member.name)
    if suffix in _REFUSED:
        raise Unusable(_REFUSED[suffix])
    if VaultSettings().is_template(PurePosixPath(member.name).parts):
        raise Unusable(TEMPLATE)
    if suffix in _WORD:
        with member.open() as stream:
            if stream.read(4) == _OLE:
                raise Unusable("it is encrypted: save it without a password")
        return docx_properties(member)
    if suffix in _OPEN:
        return odt_properties(member)
    if suffix == _RICH:
        return rtf_properties(member)
    if suffix == _PDF:
        return pdf_properties(member)
    if _PROGRAM_FILES.fullmatch(member.file_name):
        raise Unusable("it is a file of a program")
    return Properties()


def _document(file: _File, mine: IsMine) -> Document:
    """The text of a document; see `docx_document`."""
    if file.suffix in _WORD:
        return docx_document(file.member, mine)
    if file.suffix in _OPEN:
        return odt_document(file.member, mine)
    if file.suffix == _RICH:
        return rtf_document(file.member, mine)
    return pdf_document(file.member) if file.suffix == _PDF else text_document(file.member)


def _own_names(
    files: list[_File], options: DocumentsOptions, report: ImportReport, path: Path
) -> frozenset[str]:
    """The keys of the names that this person has as an author; empty if that does not matter.

    Raises:
        ConfigError: all documents name authors, and it is not clear which of them it is.
    """
    given = [name for name in options.me if name.strip()]
    if not given:
        # Of the PDFs that people have most are by others.
        guess = guess_me(file.properties for file in files if file.suffix != _PDF)
        given = [guess] if guess is not None else []
    if given:
        report.identify(given, {})
        return frozenset(map(name_key, given))
    authors = [named(file.properties) for file in files]
    if authors and all(authors):
        names = list(dict.fromkeys(name for several in authors for name in several))
        listed = ", ".join(map(repr, names[:8])) + (", ..." if names[8:] else "")
        fix = f"name yourself with me, one of {listed}"
        raise ConfigError("it is not clear who you are", where=str(path), fix=fix)
    return frozenset()


@dataclass(frozen=True)
class _Own:
    """What is one's own in a document."""

    title: str
    text: str
    time: datetime
    dated: bool


def _own(file: _File, folder: _Folder) -> _Own:
    """What is one's own in a document.

    Raises:
        Unusable: nothing is, or the document cannot be read.
    """
    properties, parts = file.properties, PurePosixPath(file.member.name).parts
    me, options = folder.me, folder.options
    reason = others_document(
        properties,
        me,
        pdf=file.suffix == _PDF,
        shared=options.shared,
        unsigned=options.unsigned or folder.alone,
    )
    if reason is not None:
        raise Unusable(reason)
    document = _document(file, lambda name: is_somebody(name) and name_key(name) in me)
    reviewers = set(map(name_key, document.reviewers))
    editor = name_key(properties.editor)
    if is_somebody(properties.editor) and editor not in me | reviewers and not options.shared:
        raise Unusable(SHARED)
    lines = [line for paragraph in document.paragraphs for line in paragraph.text.split("\n")]
    if sum(head_of(line) is not None for line in lines[:50]) > 1:
        raise Unusable(TALK)
    signed = any(name_key(name) in me for name in properties.authors)
    if file.suffix == _PDF and not named(properties) and not options.unsigned:
        folder.report.note("the PDF does not say who wrote it, and is taken as yours")
    stem = PurePosixPath(file.member.name).stem
    reason = foreign({}, "\n".join(lines), parts) or foreign_text(lines, signed=signed)
    if reason is not None:
        raise Unusable(reason)
    title, paragraphs = titled(document.paragraphs, stem, properties.title)
    texts = _without_others(paragraphs, document)
    for reason, (count, number) in document.dropped.items():
        for _ in range(count):
            folder.report.skip(reason, f"{_shown(file.member.name)}, paragraph {number}")
    time = properties.modified or properties.created or _past(date_in_name(stem, folder.style))
    shown = time or file.member.changed or folder.changed
    return _Own(title, "\n\n".join(texts), shown, time is not None)


def _without_others(paragraphs: list[Paragraph], document: Document) -> list[str]:
    """The texts of paragraphs without pasted mails and messages, quotes and what fills pages.

    What is left out is counted in the document.

    Raises:
        Unusable: it begins with someone else's mail or message.
    """
    texts = [paragraph.text for paragraph in paragraphs]
    lines = [(number, line) for number, text in enumerate(texts) for line in text.split("\n")]
    cut = find_cut([simple(line) for _, line in lines])
    end, reason = len(texts), ""
    if cut is not None and cut.above < len(lines):
        end, reason = lines[cut.above][0], MAIL
    pasted = next((number for number, line in lines if copied(line)), len(texts))
    if pasted < end:
        end, reason = pasted, TALK
    if texts and not end:
        raise Unusable(reason)
    if end < len(texts):
        document.drop(reason, len(texts) - end)
    kept = []
    for text in texts[:end]:
        if _ADDRESS.fullmatch(text):
            document.drop(LINK)
        elif _LOREM.match(text):
            document.drop(PLACEHOLDER)
        else:
            kept.append(text)
    own = own_paragraphs(kept)
    if len(own) < len(kept):
        document.drop(QUOTED, len(kept) - len(own))
    return own


def _records(file: _File, folder: _Folder, source: str) -> Iterator[Record]:
    """The records of one document.

    Raises:
        Unusable: there are none.
    """
    own, name, wanted = _own(file, folder), file.member.name, folder.options.records
    if count_words(own.text) < LEAST_WORDS:
        raise Unusable(f"it has fewer than {LEAST_WORDS} words of yours")
    if not own.dated:
        folder.undated.append(name)
    if wanted != "texts" and own.title:
        fields = {"text": own.text[:PIECE_LIMIT]}
        yield Record(f"{name}#title", "note_title", fields, own.title, own.time, source=source)
    elif wanted == "titles":
        raise Unusable("it has no title but a usual word")
    if wanted != "titles":
        for number, piece in enumerate(pieces(own.text), 1):
            yield Record(f"{name}#{number}", "continuation", {}, piece, own.time, source=source)


def _fix(report: ImportReport) -> str:
    """What to do where no document can be used."""
    if UNSIGNED in report.skipped:
        return "if you wrote it, add --set unsigned=true"
    if {OTHER, SHARED, SEVERAL} & report.skipped.keys():
        return "name yourself with --set me=NAME, or add --set shared=true"
    return f"give {', '.join(_SUFFIXES)} files, or a folder or zip of them"


def _is_document(path: Path) -> bool:
    return path.is_file() and _suffix(path.name) in _ALL


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_shown(name: str) -> bool:
    """Whether a file is not hidden, nor what Office keeps while a document is open."""
    return not any(part.startswith((".", "~$", "__MACOSX")) for part in PurePosixPath(name).parts)


def _past(time: datetime | None) -> datetime | None:
    return time if time is None or time <= datetime.now(UTC) + FUTURE_SLACK else None


def _reason(problem: Unusable | DataError) -> str:
    return problem.reason if isinstance(problem, Unusable) else problem.what


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
