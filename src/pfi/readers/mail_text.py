"""What a person wrote in a mail: its text without quotes, signature, forwarded mail, disclaimers.

In doubt a line counts as someone else's, so that only this person's own words become a target.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from pfi.readers.html_text import Page
from pfi.readers.mail_body import Body
from pfi.readers.mail_quotes import (
    attribution,
    find_cut,
    is_broken_address,
    is_quoted,
    unquoted,
)
from pfi.readers.mail_words import mailed, simple
from pfi.readers.verbatim import repeated_lines, squeezed

#: Of a mail's text so much is looked at, in characters and lines; people write less.
_LENGTH, _LINES = 400_000, 10_000
#: Share of an answered mail that must stand word for word in a reply that says nothing above it,
#: before what stands below counts as the answer.
_WHOLE = 0.98
#: A quoted line that a program broke is at least so long, and what it broke off at most.
_BROKEN_LINE, _BROKEN_OFF = 65, 80

_SENT_FROM = re.compile(
    r"\s*(sent from my|sent from (outlook|mail|yahoo|proton|gmail)|get outlook for|sent with|"
    r"von meinem .{2,30} gesendet|gesendet (von|mit)|diese nachricht wurde von meinem|"
    r"envoyé (de mon|depuis|à partir de)|enviado (desde|do meu)|inviato da|verzonden vanaf|"
    r"télécharger outlook|outlook für)\b.{0,80}", re.I)  # fmt: skip
#: What mail is sent with: devices and programs, which no language translates.
_DEVICE = re.compile(
    r"(?i)iphon|ipad|ipod|\bios\b|android|outlook|galaxy|samsung|huawei|honor|xiaomi|redmi|小米|华为|"
    r"oppo|oneplus|pixel|nokia|motorola|xperia|\blg\b|\bhtc\b|blackberry|windows|yahoo|\baol\b|\bgmx\b|"
    r"web\.de|proton|tuta|k-9|thunderbird|bluemail|blue mail|spark|airmail|mailspring|em client|"
    r"gmail|yandex|яндекс|mail\.ru|\bqq|foxmail|naver|네이버|smartphone|tablet|handy|mobil|móvil|сотов|телефон|"
    r"apple|\bmail\b|phone|telefon|cellulare|téléphone|携帯"
)
_OUTLOOK = re.compile(
    r"(?i)outlook\W.{0,40}\b(ios|android)\b|aka\.ms/\w+|proton\.me/|overview\.mail\.yahoo"
)
_LINK = re.compile(r"[<(\[]*\s*https?://\S+|\[[^\]]*\]")
_SENT_FROM_WORDS, _SENT_FROM_LENGTH = 14, 160

_SIGNATURE = re.compile(r"\s{0,3}--\s?\s*")
_FOOTER_RULE = re.compile(r"\s*_{5,}\s*")
_FOOTER = re.compile(r"@|https?:|www\.|mailto:")
_FOOTER_LINES, _FOOTER_LENGTH = 12, 2000
_LEGAL = re.compile(
    r"confidential|privileged|intended (only )?(for|solely)|intended recipient|disclos|"
    r"received (this|it) .{0,20}(in error|by mistake)|notify the sender|virus|avast|"
    r"consider the environment|vertraulich|bestimmungsgemäß|irrtümlich|unbefugt|confidentiel|"
    r"destinataire|confidencial|destinatario|riservat|vertrouwelijk|unauthori[sz]ed|"
    r"fortrolig|konfidenti|luottamuksell|poufn|důvěrn|bizalmas|конфиденциальн|конфіденційн|"
    r"gizli|機密|机密|保密|기밀|סודי|سري",
    re.I)  # fmt: skip
_UNSUBSCRIBE = re.compile(
    r"\b(unsubscribe|mailman/listinfo|mailing list|google groups|groups\.io|abmelden|"
    r"se désabonner|darse de baja|cancelar la suscripción|uitschrijven)\b|отписаться|退订", re.I
)  # fmt: skip
_SCANNED = re.compile(
    r"(?i)\b(avast|avg|norton|mcafee|kaspersky|eset|bitdefender)\b.*(https?:|www\.|virus|вирус)|"
    r"\b(has|have) been (scanned|checked) (for|by)\b|mimecast"
)
_LEGAL_TITLE = re.compile(
    r"(?i)\W*(disclaimer|confidentiality( notice)?|haftungsausschluss|vertraulichkeitshinweis|"
    r"avis de confidentialité|aviso legal|aviso de confidencialidad|avviso di riservatezza)\W*"
)
_ARMOUR = re.compile(r"-----BEGIN PGP (PUBLIC KEY BLOCK|SIGNATURE|PRIVATE KEY BLOCK)-----")
_SIGNED = re.compile(r"-----BEGIN PGP SIGNED")
_HASH = re.compile(r"(Hash|Charset|NotDashEscaped|Version|Comment): ")


@dataclass(frozen=True)
class Text:
    """A mail's text, divided.

    Attributes:
        own: what its author wrote.
        quoted: what its author quoted of the mail that is answered.
        forwards: whether a mail is passed on below.
        left_out: lines of its text that are not its author's own: quotes, signatures, notices.
    """

    own: str
    quoted: str
    forwards: bool
    left_out: int = 0


def divide(
    body: Body | str,
    others: Collection[str] = (),
    *,
    people: Collection[str] = (),
    subject: str = "",
    escaped: bool = False,
) -> Text:
    """Tell a mail's own words from all else.

    Args:
        body: what a mail shows, as `mail_body.body_of` gives it, or plain text.
        others: texts that are known to be someone else's, such as the mail that is answered.
        people: keys (`mail_words.key`) of names and addresses of those who are answered.
        subject: of the mail, without `Re:`.
        escaped: whether it comes from an mbox file, in which a `>` may be put before `From`.
    """
    if isinstance(body, str):
        body = Body(body)
    lines = [line.rstrip() for line in body.text[:_LENGTH].split("\n")[:_LINES]]
    shown = sum(bool(line.strip()) for line in lines)
    lines = _joined_addresses(_without_armour(lines))
    if escaped:
        lines = [_unescaped(lines, i) for i in range(len(lines))]
    view = [simple(line) for line in lines]
    cut = find_cut(view, people, subject)
    above, below = (lines[: cut.above], lines[cut.below :]) if cut else (lines, [])
    own, quoted = _own_and_quoted(above, people)
    if not any(line.strip() for line in own) and cut and not cut.forwards and not any(quoted):
        own = _answer_below(below, others)
    own = [own[i] for i in sorted(set(range(len(own))) - repeated_lines(own, others))]
    if body.page:
        own = _shown_as_own(own, body.page, people, subject)
    own = _without_app(_without_legal(own))
    if not any(line.strip() for line in quoted) and not (cut and cut.forwards):
        quoted = [line for line in below if not is_quoted(line)]
    left_out = max(0, shown - sum(bool(line.strip()) for line in own))
    return Text(_tidy(own), _tidy(_without_legal(quoted)), bool(cut and cut.forwards), left_out)


def _without_armour(lines: list[str]) -> list[str]:
    """Lines without what PGP puts around them, and without keys and signatures."""
    kept: list[str] = []
    head = inside = False
    for line in lines:
        if _SIGNED.match(line):
            head = True
        elif _ARMOUR.match(line):
            inside = True
        elif inside:
            inside = not line.startswith("-----END PGP")
        elif head and _HASH.match(line):
            continue
        else:
            head = head and not line
            kept.append(line)
    return kept


def _joined_addresses(lines: list[str]) -> list[str]:
    """Lines where an address that was broken before its `>` is whole again."""
    joined: list[str] = []
    for line in lines:
        if joined and is_broken_address(simple(joined[-1]), line):
            joined[-1] += line
        else:
            joined.append(line)
    return joined


def _unescaped(lines: list[str], i: int) -> str:
    """A line as it was before it went into an mbox; in doubt it stays a quote."""
    if not re.match(r">+From ", lines[i]):
        return lines[i]
    near = [*lines[max(0, i - 1) : i], *lines[i + 1 : i + 2]]
    above = (lines[number] for number in range(i - 1, -1, -1))
    before = next((line for line in above if line.strip()), "")
    if any(line.startswith(">") for line in near) or before.rstrip().endswith(":"):
        return lines[i]
    return lines[i][1:]


def _own_and_quoted(lines: list[str], people: Collection[str]) -> tuple[list[str], list[str]]:
    """The lines of one's own, and what is marked as a quote, without its marks."""
    own: list[str] = []
    quoted: list[str] = []
    signed = False
    for i, line in enumerate(lines):
        if is_quoted(line):
            signed = False  # a signature ends where a quote begins
            quoted.append(unquoted(line))
            if not i or not is_quoted(lines[i - 1]):
                _drop_attribution(own, line, people)
        elif _SIGNATURE.fullmatch(line) or _begins_footer(lines, i):
            signed = True
        elif _is_broken_off(lines, i):
            quoted[-1] += " " + line.strip()
        elif not signed and not _SENT_FROM.fullmatch(line) and not _FOOTER_RULE.fullmatch(line):
            own.append(line)
    quoted = [line for line in quoted if not is_quoted(line)]
    return own, _without_attribution(quoted, people)


def _begins_footer(lines: list[str], i: int) -> bool:
    """Whether a rule of underscores stands above the footer of a mailing list."""
    if not _FOOTER_RULE.fullmatch(lines[i]):
        return False
    rest: list[str] = []
    for number in range(i + 1, len(lines)):
        if lines[number].strip():
            rest.append(lines[number])
        if len(rest) > _FOOTER_LINES:
            return False
    return any(_FOOTER.search(line) for line in rest)


def _is_broken_off(lines: list[str], i: int) -> bool:
    """Whether a line is the rest of a quoted one that a program broke without marking it."""
    if not 0 < i < len(lines) - 1 or not lines[i].strip():
        return False
    before, line, after = lines[i - 1], lines[i], lines[i + 1]
    return (
        is_quoted(before) and is_quoted(after) and len(before) >= _BROKEN_LINE
        and len(line) <= _BROKEN_OFF and not re.search(r"[.!?:]\s*$", before)
    )  # fmt: skip


def _drop_attribution(own: list[str], quote: str, people: Collection[str]) -> None:
    """Take `On that day, somebody wrote:` off the end of lines that a quote follows."""
    while own and not own[-1].strip():
        own.pop()
    view = [*map(simple, own[-8:]), quote]
    count = attribution(view, len(view) - 2, people) if own else 0
    del own[len(own) - count :]


def _without_attribution(quoted: list[str], people: Collection[str]) -> list[str]:
    """A quote without `On that day, somebody wrote:` at its beginning."""
    for first in (0, 1, 2, 3):
        view = [*map(simple, quoted[: first + 1]), "> "]
        if len(view) > 1 and attribution(view, len(view) - 2, people) == first + 1:
            return quoted[first + 1 :]
    return quoted


def _answer_below(below: list[str], others: Collection[str]) -> list[str]:
    """What stands below a quote that is not marked but known word for word."""
    repeated = repeated_lines(below, others)
    length = sum(len(squeezed(below[i])) for i in repeated)
    known = [len(letters) for other in others if (letters := squeezed(other))]
    if not repeated or not known or length < _WHOLE * min(known):
        return []
    return [line for i, line in enumerate(below) if i > min(repeated) and i not in repeated]


def _shown_as_own(own: list[str], page: Page, people: Collection[str], subject: str) -> list[str]:
    """Lines without those that the same mail's HTML marks as a quote or signature."""
    text = divide(page.text, people=people, subject=subject)
    if not text.own or not (text.quoted or page.signatures or text.forwards):
        return own
    mine = squeezed(text.own)
    rest = [*page.text.split("\n"), *page.signatures.split("\n")]
    theirs = [line for line in rest if squeezed(line) not in mine]
    keys = [squeezed(line) for line in own]
    whole = set(map(squeezed, theirs))
    repeated = repeated_lines(own, ["\n".join(theirs)])
    dropped = {i for i, key in enumerate(keys) if key and (i in repeated or key in whole)}
    kept = sum(len(key) for i, key in enumerate(keys) if i not in dropped)
    if kept and not any(key in mine for key in keys if key):
        return own  # the HTML says something else
    return [line for i, line in enumerate(own) if i not in dropped or keys[i] in mine]


def _without_app(lines: list[str]) -> list[str]:
    """The lines without `Sent from my phone` at their end, in any language."""
    kept = list(lines)
    while kept and (not kept[-1].strip() or _is_app_line(kept[-1])):
        kept.pop()
    return kept


def _is_app_line(line: str) -> bool:
    if len(line) > _SENT_FROM_LENGTH:
        return False
    bare = _LINK.sub(" ", simple(line)).strip(" .!>|*_-")
    words = bare.split()
    if not words or len(words) > _SENT_FROM_WORDS:
        return False
    if _OUTLOOK.search(simple(line)) and len(words) <= 8:
        return True
    if not _DEVICE.search(bare):
        return False
    # The word for `sent` begins the line or ends it; in a sentence of one's own it seldom does.
    return (
        mailed(" ".join(words[:1]))
        or mailed(" ".join(words[-2:]))
        or (not bare.isascii() and mailed(bare) and len(words) <= 8)
    )


def _without_legal(lines: list[str]) -> list[str]:
    """The lines without the disclaimers at their end and the notes of mailing lists."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    while len(paragraphs) > 1 and (
        not paragraphs[-1].strip()
        or len(set(map(str.lower, (m[0] for m in _LEGAL.finditer(paragraphs[-1]))))) >= 2
        or _UNSUBSCRIBE.search(paragraphs[-1])
        or _SCANNED.search(paragraphs[-1][:_FOOTER_LENGTH])
        or _LEGAL_TITLE.fullmatch(paragraphs[-1])
    ):
        paragraphs.pop()
    return "\n\n".join(paragraphs).split("\n")


def _tidy(lines: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
