"""What a person wrote in a mail: its text without quotes, signature, forwarded mail, disclaimers.

In doubt a line counts as someone else's, so that only this person's own words become a target.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser

from pfi.readers.html_text import html_to_text
from pfi.readers.values import Unusable

_HTML_LIMIT = 1 << 20
_DEPTH = 20

_BELOW = re.compile(
    r"\s*[-_*]{3,}\s*(original message|ursprüngliche nachricht|originalnachricht|message d'origine|"
    r"mensaje original|mensagem original|messaggio originale|oorspronkelijk bericht|"
    r"исходное сообщение|oryginalna wiadomość)\s*[-_*]{2,}\s*", re.I)  # fmt: skip
_FORWARDED = re.compile(
    r"\s*([-_*]{3,}\s*(forwarded message|weitergeleitete nachricht|message transféré|"
    r"mensaje reenviado|mensagem encaminhada|messaggio inoltrato|doorgestuurd bericht|"
    r"пересылаемое сообщение)\b.*|(begin forwarded message|anfang der weitergeleiteten nachricht|"
    r"début du message réexpédié|inizio messaggio inoltrato|inicio del mensaje reenviado)\s*:?)\s*",
    re.I)  # fmt: skip
#: The block of headers that Outlook puts over the mail that is answered.
_FROM_LINE = re.compile(
    r"\s*\*?(from|von|de|da|van|fra|från|od|от|kimden|发件人|差出人)\s?[:：]\*?\s*\S", re.I
)
_MORE_LINE = re.compile(
    r"\s*\*?(sent|date|to|subject|cc|gesendet|datum|an|betreff|envoyé|date|à|objet|enviado|enviada|"
    r"para|asunto|assunto|inviato|a|oggetto|verzonden|aan|onderwerp|sendt|til|emne|skickat|till|ämne|"
    r"wysłano|do|temat|отправлено|кому|тема|дата|gönderildi|kime|konu|发送时间|收件人|主题)\s?[:：]\*?",
    re.I)  # fmt: skip
_OPENED = re.compile(
    r"\s*(on|am|le|el|em|il|op|den|dnia|w dniu)\b.{4,300}?\b(wrote|schrieb|a écrit|escribió|"
    r"escreveu|ha scritto|schreef|skrev|napisał|napisała|pisze)\b.{0,200}[:：]\s*",
    re.I)  # fmt: skip
_WROTE = re.compile(
    rf"{_OPENED.pattern}|.{{3,300}}(wrote|schrieb|пишет|написал|написала|yazdı|写道)"
    r".{0,60}[:：]\s*", re.I)  # fmt: skip
_SENT_FROM = re.compile(
    r"\s*(sent from my|sent from (outlook|mail|yahoo|proton|gmail)|get outlook for|sent with|"
    r"von meinem .{2,30} gesendet|gesendet (von|mit)|diese nachricht wurde von meinem|"
    r"envoyé (de mon|depuis)|enviado (desde|do meu)|inviato da|verzonden vanaf|"
    r"télécharger outlook|outlook für)\b.{0,80}", re.I)  # fmt: skip
_SIGNATURE = re.compile(r"\s{0,3}--\s?\s*|\s*_{5,}\s*")
_LEGAL = re.compile(
    r"confidential|privileged|intended (only )?(for|solely)|intended recipient|disclos|"
    r"received (this|it) .{0,20}(in error|by mistake)|notify the sender|virus|"
    r"consider the environment|vertraulich|bestimmungsgemäß|irrtümlich|unbefugt|confidentiel|"
    r"destinataire|confidencial|destinatario|riservat|vertrouwelijk|unauthori[sz]ed",
    re.I)  # fmt: skip
_UNSUBSCRIBE = re.compile(r"\b(unsubscribe|mailman/listinfo|mailing list)\b", re.I)
_QUOTED = re.compile(r"\s{0,2}(>|\|(?= ))")


@dataclass(frozen=True)
class Text:
    """A mail's text, divided.

    Attributes:
        own: what its author wrote.
        quoted: what its author quoted of the mail that is answered.
        forwards: whether a mail is passed on below.
    """

    own: str
    quoted: str
    forwards: bool


#: What the standard library raises for mails that break the rules.
_BROKEN = (MessageError, ValueError, LookupError, RecursionError, TypeError, AttributeError)


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
    """A header as text, decoded and in one line; empty if there is none."""
    value = message.get(name)
    if value is None:
        return ""
    text = str(value)
    try:
        parts = decode_header(text)
    except (MessageError, ValueError, LookupError):
        parts = [(text, None)]
    found = "".join(
        part if isinstance(part, str) else _decoded(part, charset) for part, charset in parts
    )
    return " ".join(found.encode("utf-8", "replace").decode().split())


def _decoded(data: bytes, charset: str | None) -> str:
    """Bytes as text: as it is said, else as UTF-8, else as western European."""
    for name in (charset, "utf-8"):
        try:
            return data.decode(name or "utf-8")
        except (LookupError, ValueError):
            continue
    return data.decode("cp1252", "replace")


def body_of(message: Message) -> str:
    """The text that a mail shows, without attachments and the mails attached to it.

    Raises:
        Unusable: it is encrypted or broken.
    """
    try:
        _, text = _text_of(message, 0)
    except _BROKEN as error:
        raise Unusable("it cannot be parsed") from error
    if "-----BEGIN PGP MESSAGE-----" in text:
        raise Unusable("it is encrypted")
    return text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\u200b", "")


def _text_of(part: Message, depth: int) -> tuple[bool, str]:
    """Whether a part is plain text, and its text."""
    kind = part.get_content_type()
    if kind in ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"):
        raise Unusable("it is encrypted")
    if depth and (part.get_content_disposition() == "attachment" or part.get_filename()):
        return False, ""
    children = part.get_payload()
    if kind.startswith("multipart/") and isinstance(children, list):
        if depth > _DEPTH:
            raise Unusable("it nests too deeply")
        found = [_text_of(child, depth + 1) for child in children if isinstance(child, Message)]
        found = [(plain, text) for plain, text in found if text.strip()]
        if kind == "multipart/alternative":
            return next((each for each in found if each[0]), found[0] if found else (False, ""))
        return any(plain for plain, _ in found), "\n".join(text for _, text in found)
    if kind not in ("text/plain", "text/html"):
        return False, ""
    data = part.get_payload(decode=True)
    text = _decoded(data, part.get_content_charset()) if isinstance(data, bytes) else ""
    if kind == "text/html":
        return False, html_to_text(text[:_HTML_LIMIT])
    if str(part.get_param("format", "")).lower() == "flowed":
        text = _unflowed(text, str(part.get_param("delsp", "")).lower() == "yes")
    return True, text


def _unflowed(text: str, delete: bool) -> str:
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


def divide(text: str, others: Collection[str] = (), *, escaped: bool = False) -> Text:
    """Tell a mail's own words from all else.

    Args:
        text: what `body_of` gave.
        others: lines that are known to be someone else's.
        escaped: whether it comes from an mbox file, in which a `>` may be put before `From`.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    lines = [line for line in lines if not line.startswith("-----BEGIN PGP SIGNED")]
    if "-----BEGIN PGP SIGNATURE-----" in lines:
        lines = lines[: lines.index("-----BEGIN PGP SIGNATURE-----")]
    if escaped:
        lines = [_unescaped(lines, i) for i in range(len(lines))]
    lines, below, forwards = _cut(lines)
    own: list[str] = []
    quoted: list[str] = []
    signed = False
    for i, line in enumerate(lines):
        if _QUOTED.match(line):
            signed = False  # a signature ends where a quote begins
            quoted.append(_QUOTED.sub("", line, count=1).removeprefix(" "))
            if not i or not _QUOTED.match(lines[i - 1]):
                _drop_attribution(own)
        elif _SIGNATURE.fullmatch(line):
            signed = True
        elif not signed and not _SENT_FROM.fullmatch(line) and line.strip() not in others:
            own.append(line)
    quoted = [line for line in quoted if not _QUOTED.match(line)]
    for count in (3, 2, 1):
        if _attribution(quoted[:count]) == count:
            del quoted[:count]
    if not any(line.strip() for line in quoted) and not forwards:
        quoted = [line for line in below if not _QUOTED.match(line)]
    return Text(_tidy(_without_legal(own)), _tidy(_without_legal(quoted)), forwards)


def _unescaped(lines: list[str], i: int) -> str:
    """A line as it was before it went into an mbox; in doubt it stays a quote."""
    if not lines[i].startswith(">From "):
        return lines[i]
    near = [*lines[max(0, i - 1) : i], *lines[i + 1 : i + 2]]
    before = next((line for line in reversed(lines[:i]) if line.strip()), "")
    if any(line.startswith(">") for line in near) or before.rstrip().endswith(":"):
        return lines[i]
    return lines[i][1:]


def _cut(lines: list[str]) -> tuple[list[str], list[str], bool]:
    """The lines above another mail, those of that mail, and whether it is passed on."""
    for i, line in enumerate(lines):
        if _FORWARDED.fullmatch(line):
            return lines[:i], lines[i + 1 :], True
        if _BELOW.fullmatch(line):
            return lines[:i], _without_headers(lines[i + 1 :]), False
        if _FROM_LINE.match(line) and sum(
            bool(_MORE_LINE.match(next_)) for next_ in lines[i + 1 : i + 6]
        ) >= 2:  # fmt: skip
            head = lines[:i]
            while head and (not head[-1].strip() or set(head[-1].strip()) <= {"_", "-", "*"}):
                head.pop()
            return head, _without_headers(lines[i:]), False
        count = _attribution(lines[max(0, i - 2) : i + 1])
        if count and not _quote_follows(lines, i):
            return lines[: i + 1 - count], lines[i + 1 :], False
    return lines, [], False


def _attribution(lines: list[str]) -> int:
    """How many lines at the end say `On that day, somebody wrote:`."""
    if not lines or not lines[-1].rstrip().endswith((":", "：")) or _QUOTED.match(lines[-1]):
        return 0
    found = 0
    for count in range(1, min(3, len(lines)) + 1):
        if not lines[-count].strip():
            break
        joined = " ".join(lines[-count:])
        if re.search(r"\d|@", joined) and (_OPENED if found else _WROTE).fullmatch(joined):
            found = count
    return found


def _quote_follows(lines: list[str], i: int) -> bool:
    following = next((line for line in lines[i + 1 :] if line.strip()), "")
    return _QUOTED.match(following) is not None


def _drop_attribution(own: list[str]) -> None:
    """Take `On that day, somebody wrote:` off the end of lines that a quote follows."""
    while own and not own[-1].strip():
        own.pop()
    count = _attribution(own)
    if not count and own and re.search(r"(@|\d[:.]\d\d).*[:：]\s*$", own[-1]):
        count = 1
    del own[len(own) - count :]


def _without_headers(lines: list[str]) -> list[str]:
    """A mail's text without the headers above it."""
    rest = list(lines)
    while rest and (not rest[0].strip() or _FROM_LINE.match(rest[0]) or _MORE_LINE.match(rest[0])):
        rest.pop(0)
    return rest


def _without_legal(lines: list[str]) -> list[str]:
    """The lines without the disclaimers at their end and the notes of mailing lists."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    while len(paragraphs) > 1 and (
        not paragraphs[-1].strip()
        or len(set(map(str.lower, (m[0] for m in _LEGAL.finditer(paragraphs[-1]))))) >= 2
        or _UNSUBSCRIBE.search(paragraphs[-1])
    ):
        paragraphs.pop()
    return "\n\n".join(paragraphs).split("\n")


def _tidy(lines: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
