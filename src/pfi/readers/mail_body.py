"""Mails from their bytes: headers, and the text that a mail shows."""

from __future__ import annotations

from dataclasses import dataclass
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser

from pfi.readers.html_text import Page, read_html
from pfi.readers.values import Unusable

_HTML_LIMIT = 1 << 20
_DEPTH = 20
_ENCRYPTED = ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime")
_CALENDAR = "text/calendar"

#: What the standard library raises for mails that break the rules.
_BROKEN = (MessageError, ValueError, LookupError, RecursionError, TypeError, AttributeError)


@dataclass(frozen=True)
class Body:
    """What a mail shows.

    Attributes:
        text: plain text; that of the HTML if there is only HTML.
        page: the HTML beside the plain text, which tells quotes that the plain text does not mark.
    """

    text: str
    page: Page | None = None


def parse_mail(data: bytes) -> Message:
    """A mail from its bytes, however broken.

    Raises:
        Unusable: it is beyond repair.
    """
    try:
        return BytesParser().parsebytes(data)
    except _BROKEN as error:
        raise Unusable("it cannot be parsed") from error


def header_text(message: Message, name: str) -> str:
    """A header as text, decoded and in one line; empty if there is none.

    Bytes that are not encoded as the rules ask for are UTF-8, else in the charset of the text.
    """
    value = next((v for key, v in message.raw_items() if key.lower() == name.lower()), None)
    if value is None:
        return ""
    text = str(value)
    try:
        raw = text.encode("ascii", "surrogateescape")
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        text = _decoded(raw, "utf-8", _charset(message))
    except UnicodeEncodeError:
        pass
    try:
        parts = decode_header(text)
    except (MessageError, ValueError, LookupError):
        parts = [(text, None)]
    decoded = "".join(
        # What stands between encoded words comes as bytes in a charset for raw bytes.
        part if isinstance(part, str) else _unescaped(part) if charset is None
        else _decoded(part, charset)
        for part, charset in parts
    )  # fmt: skip
    return " ".join(decoded.encode("utf-8", "replace").decode().split())


def _unescaped(part: bytes) -> str:
    """Text between encoded words, which `decode_header` gives as bytes, with escapes if need be."""
    try:
        return part.decode("raw-unicode-escape")
    except UnicodeDecodeError:
        return part.decode("latin-1")


def _charset(message: Message) -> str | None:
    """The charset of the first text of a mail that names one other than UTF-8."""
    try:
        for part in message.walk():
            if part.get_content_maintype() == "text" and (name := part.get_content_charset()):
                return None if name == "us-ascii" else name
    except _BROKEN:
        pass
    return None


def _decoded(data: bytes, *charsets: str | None) -> str:
    """Bytes as text in the first charset that fits, else as UTF-8, else as western European."""
    for name in (*charsets, "utf-8"):
        try:
            return data.decode(name or "utf-8")
        except (LookupError, ValueError):
            continue
    return data.decode("cp1252", "replace")


def is_calendar(message: Message) -> bool:
    """Whether a mail is an invitation or the answer to one, which a program words.

    Raises:
        Unusable: it is broken.
    """
    try:
        return any(
            part.get_content_type() == _CALENDAR and part.get_param("method")
            for part in message.walk()
        )
    except _BROKEN as error:
        raise Unusable("it cannot be parsed") from error


def body_of(message: Message) -> Body:
    """What a mail shows, without attachments and the mails attached to it.

    Raises:
        Unusable: it is encrypted or broken.
    """
    try:
        part = _shown(message, 0)
    except _BROKEN as error:
        raise Unusable("it cannot be parsed") from error
    if "-----BEGIN PGP MESSAGE-----" in part.text:
        raise Unusable("it is encrypted")
    return Body(_cleaned(part.text), part.page if part.plain else None)


def _cleaned(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\u00a0", " ").replace("\u200b", "")


@dataclass(frozen=True)
class _Shown:
    """The text of a part, whether it is plain text, and its HTML."""

    text: str = ""
    plain: bool = False
    page: Page | None = None


def _shown(part: Message, depth: int) -> _Shown:
    kind = part.get_content_type()
    if kind in _ENCRYPTED:
        raise Unusable("it is encrypted")
    if depth and (part.get_content_disposition() == "attachment" or part.get_filename()):
        return _Shown()
    children = part.get_payload()
    if kind.startswith("multipart/") and isinstance(children, list):
        if depth > _DEPTH:
            raise Unusable("it nests too deeply")
        shown = [_shown(child, depth + 1) for child in children if isinstance(child, Message)]
        return _together(kind, [each for each in shown if each.text.strip()])
    if kind not in ("text/plain", "text/html"):
        return _Shown()
    data = part.get_payload(decode=True)
    text = _decoded(data, part.get_content_charset()) if isinstance(data, bytes) else ""
    if kind == "text/html":
        page = read_html(text[:_HTML_LIMIT])
        return _Shown(page.text, page=page)
    if str(part.get_param("format", "")).lower() == "flowed":
        text = unflowed(text, str(part.get_param("delsp", "")).lower() == "yes")
    return _Shown(text, plain=True)


def _together(kind: str, shown: list[_Shown]) -> _Shown:
    """Parts as one: of alternatives the plain one, with the page of the other."""
    if kind == "multipart/alternative":
        best = next((each for each in shown if each.plain), shown[0] if shown else _Shown())
        page = next((each.page for each in shown if each.page), None)
        return _Shown(best.text, best.plain, page)
    pages = [each.page or Page(each.text) for each in shown]
    page = None
    if any(each.page for each in shown):
        page = Page(
            "\n".join(each.text for each in pages), "\n".join(each.signatures for each in pages)
        )
    text = "\n".join(each.text for each in shown)
    return _Shown(text, any(each.plain for each in shown), page)


def unflowed(text: str, delete: bool) -> str:
    """Lines that were broken for transport put together again (RFC 3676)."""
    lines: list[str] = []
    open_depth: int | None = None
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip(">"))
        content = line[depth:].removeprefix(" ") if depth else line.removeprefix(" ")
        flows = content.endswith(" ") and content != "-- "
        if flows and delete:
            content = content[:-1]
        if open_depth == depth and content != "-- ":
            lines[-1] += content
        else:
            lines.append(">" * depth + (" " if depth and content else "") + content)
        open_depth = depth if flows else None
    return "\n".join(lines)
