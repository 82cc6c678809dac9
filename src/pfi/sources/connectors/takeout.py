"""Connector for Google Takeout: the mail, chats, notes and browser of a Google account at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pfi.errors import ConfigError, DataError
from pfi.readers.mail_files import files_of
from pfi.readers.report import ImportReport
from pfi.readers.takeout import Takeout, is_takeout, read_takeout
from pfi.records import Record
from pfi.sources.chats import ChatOptions
from pfi.sources.connectors import Connector, Options
from pfi.sources.connectors.browser import BrowserOptions, page_records
from pfi.sources.connectors.mail import MailOptions, read_mails
from pfi.sources.google_chat import chat_replies
from pfi.sources.google_keep import note_records


class TakeoutOptions(Options):
    """Options of the `takeout` connector."""

    me: list[str] = Field(
        [],
        description="your addresses, with commas between; by default those that the export names",
    )
    mail: bool = Field(True, description="read the mail that you sent with Gmail")
    chat: bool = Field(True, description="read your side of Google Chat")
    keep: bool = Field(True, description="read your notes in Google Keep")
    chrome: bool = Field(True, description="read Chrome's history and bookmarks")

    @field_validator("me", mode="before")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        return MailOptions(me=value).me


class TakeoutConnector(Connector[TakeoutOptions]):
    """Reads the parts of a Takeout one after the other."""

    name = "takeout"
    summary = "Google Takeout (zip or folder): your mail, side of chats, notes, pages in Chrome"
    options = TakeoutOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is a zip of a Takeout, a folder of them, or one unpacked."""
        return is_takeout(path)

    def read(self, path: Path, options: TakeoutOptions, report: ImportReport) -> Iterator[Record]:
        """Yield the records of each part: mail, chats, notes.

        A part that cannot be used does not keep the others from being read.

        Raises:
            DataError: there is no such source, or no part of it can be used.
            ConfigError: no part can be used, and of one it is not clear who this person is.
        """
        takeout = read_takeout(path)
        unclear: list[ConfigError | DataError] = []
        for part in _parts(takeout, path, options, report):
            try:
                yield from part
            except (ConfigError, DataError) as error:
                unclear.append(error)
                report.skip(_reason(error), path.name)
        if not report.read and unclear:
            raise unclear[0]
        report.require_records(path, "ask Google for Mail, Google Chat, Keep or Chrome")


def _reason(error: ConfigError | DataError) -> str:
    return " ".join(str(error).split())


def _parts(
    takeout: Takeout, path: Path, options: TakeoutOptions, report: ImportReport
) -> Iterator[Iterator[Record]]:
    """The parts that are there and wanted."""
    me = options.me or takeout.addresses
    if options.mail and takeout.mail:
        yield _mail(takeout, path, options, report)
    if options.chat and takeout.chats:
        chat = ChatOptions(me=me)
        source = f"takeout:{path.name}"
        for messages, group in takeout.chats:
            yield chat_replies(messages, group, me, chat, report, source)
    if options.keep and takeout.notes:
        source = f"takeout:{path.name}"
        yield chain.from_iterable(note_records(note, report, source) for note in takeout.notes)
    if options.chrome and takeout.browser:
        here = ImportReport()
        pages = page_records(takeout.browser, BrowserOptions(), here, f"takeout:{path.name}")
        yield _merged(pages, here, report)


def _mail(
    takeout: Takeout, path: Path, options: TakeoutOptions, report: ImportReport
) -> Iterator[Record]:
    """The mail, of the addresses given; else of those that it shows, else of the account's."""
    files = files_of(takeout.mail, path.name)
    if not files:
        return
    here = ImportReport()
    mail = read_mails(files, path, MailOptions(me=options.me), here, takeout.addresses)
    yield from _merged(mail, here, report)


def _merged(
    records: Iterator[Record], here: ImportReport, report: ImportReport
) -> Iterator[Record]:
    """Records of a part, whose counts join those of the whole at its end."""
    try:
        yield from records
    finally:
        report.merge(here)
