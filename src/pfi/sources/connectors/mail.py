"""Connector for mail: this person's subjects and replies, from mbox, Maildir, .eml and folders.

Only mail sent from this person's addresses is a target; what others wrote is only ever input.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pfi.errors import ConfigError, DataError
from pfi.readers.mail_files import (
    Place,
    folder_name,
    headers_of,
    in_maildir,
    is_mail,
    is_mbox,
    mail_files,
    mails,
    read_mail,
)
from pfi.readers.mail_text import Text, body_of, divide, header_text, parse_mail
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, past_time
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.connectors import Connector, Options

#: Longest text and longest answered mail, in characters; longer ones are cut.
TEXT_LIMIT = 3000
#: Longest reply; longer ones are left out.
REPLY_LIMIT = 4000
#: Shortest text that a subject can be told from.
LEAST_WORDS = 4
#: Share of the sent mail that an address needs to be taken for this person's.
CLEAR = 0.8

_PREFIX = re.compile(
    r"\s*(re|aw|antw|sv|vs|res|odp|ynt|ref|回复|答复)\s*(\[\d+\]|\(\d+\))?\s*[:：]\s*",
    re.I,
)
_FORWARD = re.compile(r"\s*(fw|fwd|wg|tr|rv|enc|i|doorst|转发)\s*[:：]\s*", re.I)
_SENT = re.compile(
    r"sent|sent[ -]?(mail|items|messages)?|gesendet\w*|gesendete[ -]\w+|envoy[ée]\w*|"
    r"(éléments|messages) envoyés|enviad\w+|(elementos|mensajes|itens|e-mails) enviad\w+|"
    r"inviat\w+|posta inviata|verzonden\w*|verzonden items|skickat|sendt|отправленные|wysłane|"
    r"gönderilmiş|gönderilen\w*|已发送|送信済み",
    re.I,
)
_IDS = re.compile(r"<[^<>\s]{3,500}>")
_WORTH = 25  # characters of a line that two mails do not share by chance


class MailOptions(Options):
    """Options of the `mail` connector."""

    me: list[str] = Field(
        [],
        description="your addresses, with commas between; by default the one that nearly all "
        "mail in the folder for sent mail is from",
    )
    records: Literal["both", "subjects", "replies"] = Field(
        "both", description="subjects of the mails you began, replies to others, or both"
    )

    @field_validator("me", mode="before")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return value
        found = [a.strip().lower() for part in parts for a in str(part).split(",") if a.strip()]
        if wrong := [address for address in found if "@" not in address]:
            raise ValueError(f"{wrong[0]!r} is not an address")
        return found


@dataclass
class _Survey:
    """What a first reading of all headers tells."""

    where: dict[int, int] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    senders: Counter[str] = field(default_factory=Counter)


class MailConnector(Connector[MailOptions]):
    """Reads one record a mail of this person."""

    name = "mail"
    summary = "the mail you sent (mbox, Maildir, .eml), as subjects and replies"
    options = MailOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is an mbox, a mail, or a folder with some."""
        if path.is_file():
            return is_mbox(path) or (path.suffix.lower() == ".eml" and is_mail(path))
        if not path.is_dir():
            return False
        if (path / "cur").is_dir() and (path / "new").is_dir():
            return True
        files = [file for file in sorted(path.iterdir()) if file.is_file()][:50]
        return any(file.suffix.lower() in (".eml", ".emlx") or is_mbox(file) for file in files)

    def read(self, path: Path, options: MailOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a mail of this person, in the order of the files.

        Raises:
            DataError: there is no mail, or none of it can be used.
            ConfigError: it is not clear which address is this person's.
        """
        files = mail_files(path)
        survey = _survey(files, path)
        if not survey.senders:
            fix = "give an mbox file, a Maildir, an .eml file or a folder of these"
            raise DataError("there is no mail with a sender", path=path, fix=fix)
        me = frozenset(options.me) or _guess(survey, path)
        if not me & survey.senders.keys():
            what = f"no mail is from {', '.join(sorted(me))}"
            raise ConfigError(what, where=str(path), fix=f"name yours with me: {_listed(survey)}")
        seen: set[int] = set()
        for place, data in mails(files):
            spot = _spot(files[place.file], place)
            try:
                head = parse_mail(headers_of(data))
                if _sender(head) not in me:
                    raise Unusable("someone else wrote it")
                key = _key(header_text(head, "Message-ID") or data.decode("latin-1"))
                if key in seen:
                    raise Unusable("it repeats a mail")
                seen.add(key)
                mail = _Mail(parse_mail(data), is_mbox(files[place.file]), f"{key:016x}")
                record = mail.record(files, survey, options, f"mail:{path.name}")
            except Unusable as problem:
                report.skip(problem.reason, spot)
            except DataError as error:
                report.skip(error.what, spot)
            else:
                report.read += 1
                yield record
        report.require_records(path, f"mail of {', '.join(sorted(me))} was looked for")


@dataclass(frozen=True)
class _Mail:
    """One mail of this person."""

    message: Message
    escaped: bool
    id: str

    def record(
        self, files: list[Path], survey: _Survey, options: MailOptions, source: str
    ) -> Record:
        """Its reply or its subject.

        Raises:
            Unusable: it has neither.
        """
        kind = self.message.get_content_type()
        automatic = header_text(self.message, "Auto-Submitted").lower() or "no"
        if not automatic.startswith("no") or kind in ("text/calendar", "multipart/report"):
            raise Unusable("a program wrote it")
        time = _date(self.message)
        subject = header_text(self.message, "Subject")
        answered = _IDS.findall(header_text(self.message, "In-Reply-To"))
        answered += _IDS.findall(header_text(self.message, "References"))[::-1]
        if answered or _PREFIX.match(subject):
            if options.records == "subjects":
                raise Unusable("it is a reply")
            fields, text = self._reply(files, survey, answered)
            return Record(f"{self.id}-reply", "email_reply", fields, text, time, source=source)
        if options.records == "replies":
            raise Unusable("it is not a reply")
        if _FORWARD.match(subject):
            raise Unusable("it is forwarded")
        text = divide(body_of(self.message), escaped=self.escaped).own
        if count_words(text) < LEAST_WORDS:
            raise Unusable(f"it has fewer than {LEAST_WORDS} words of yours")
        if not subject:
            raise Unusable("it has no subject")
        fields = {"text": text[:TEXT_LIMIT]}
        return Record(f"{self.id}-subject", "LaMP_6", fields, subject, time, source=source)

    def _reply(
        self, files: list[Path], survey: _Survey, answered: list[str]
    ) -> tuple[dict[str, str], str]:
        parent = _parent(files, survey, answered)
        known = {line.strip() for line in (parent.own if parent else "").split("\n")}
        others = {line for line in known if len(line) >= _WORTH}
        text = divide(body_of(self.message), others, escaped=self.escaped)
        if text.forwards:
            raise Unusable("it is forwarded")
        asked = (parent.own if parent else "") or text.quoted
        if not asked:
            raise Unusable("the mail that it answers is not there")
        if not text.own:
            raise Unusable("it has no words of yours")
        if len(text.own) > REPLY_LIMIT:
            raise Unusable(f"it is longer than {REPLY_LIMIT} characters")
        return {"message": asked[:TEXT_LIMIT]}, text.own


def _parent(files: list[Path], survey: _Survey, answered: list[str]) -> Text | None:
    """The mail that was answered, if it is in the source."""
    for id_ in answered:
        packed = survey.where.get(_key(id_))
        if packed is None:
            continue
        place = Place(packed >> 48, packed & ((1 << 48) - 1))
        try:
            message = parse_mail(read_mail(files, place))
            return divide(body_of(message), escaped=is_mbox(files[place.file]))
        except Unusable:
            continue
    return None


def _survey(files: list[Path], root: Path) -> _Survey:
    """Who sends, and where every mail is, in some 200 bytes a mail."""
    survey = _Survey()
    sent_files = [_SENT.fullmatch(folder_name(file, root)) is not None for file in files]
    for place, data in mails(files):
        try:
            head = parse_mail(headers_of(data))
        except Unusable:
            continue
        if id_ := header_text(head, "Message-ID"):
            survey.where.setdefault(_key(id_), place.file << 48 | place.start)
        if sender := _sender(head):
            survey.senders[sender] += 1
            labels = header_text(head, "X-Gmail-Labels").split(",")
            survey.sent[sender] += sent_files[place.file] or any(
                _SENT.fullmatch(label.strip()) for label in labels
            )
    return survey


def _guess(survey: _Survey, path: Path) -> frozenset[str]:
    """The address that nearly all sent mail is from.

    Raises:
        ConfigError: there is none.
    """
    for address, count in survey.sent.most_common(1):
        if count and count >= CLEAR * survey.sent.total():
            return frozenset([address])
    fix = f"name your address with me: {_listed(survey)}"
    raise ConfigError("it is not clear which address is yours", where=str(path), fix=fix)


def _listed(survey: _Survey) -> str:
    """The likeliest addresses, those that send most first."""
    ranked = sorted(survey.senders, key=lambda a: (-survey.sent[a], -survey.senders[a], a))
    return ", ".join(ranked[:5]) + (", ..." if len(ranked) > 5 else "")


def _sender(head: Message) -> str:
    """The address that a mail is from; empty if there is none."""
    # The header as it is: an encoded name may hold what looks like another address.
    try:
        found = getaddresses([str(head.get("From", ""))])
    except (ValueError, IndexError, TypeError):
        return ""
    return next((address.lower() for _, address in found if "@" in address), "")


def _date(message: Message) -> datetime:
    """When it was sent; a time without a zone is taken as UTC.

    Raises:
        Unusable: that is not said.
    """
    received = str(message.get("Received", "")).rpartition(";")[2]
    for text in (header_text(message, "Date"), received):
        try:
            found = past_time(parsedate_to_datetime(text.strip()).isoformat())
        except (ValueError, TypeError, IndexError, OverflowError, AttributeError):
            continue
        if found is not None:
            return found
    raise Unusable("it has no date")


def _key(text: str) -> int:
    """A number that stands for an id of a mail."""
    digest = hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _spot(file: Path, place: Place) -> str:
    if in_maildir(file) or not place.start:
        return file.name
    return f"{file.name}, byte {place.start}"
