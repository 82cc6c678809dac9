"""Own words only: mails of two people, as many programs and languages write them.

Each sentence has a word that is nowhere else.  No word of the other person may be in an output, and
each of one's own must be in exactly one record.
"""

from __future__ import annotations

import gzip
import html
import textwrap
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mail_shapes import (
    APPS,
    FORWARDS,
    GMAIL,
    HEADERS,
    LINES,
    SHORT_LINES,
    TITLES,
    headers,
    say,
)

from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors.mail import MailConnector

SAM = "sam@example.org"
PEOPLE = [
    ("Mia One", "mia@example.net"), ("One, Mia", "mia.one@example.net"),
    ("Μία Ένα", "mia@example.gr"), ("一 美亜", "mia@example.jp"), ("מיה אחת", "mia@example.il"),
    ("Mia-Sophie van der Meer (Sales)", "m.s@sales.example.com"),
]  # fmt: skip
SUBJECTS = ["Figures", "Zahlen zum Quartal", "数字について", "Отчёт за квартал"]
#: What the other person writes; {w} is a planted word.
THEIRS = [
    "Could you send me the figures of the third quarter {w} today, and print them for the board?",
    "Thanks {w}", "{w}", "Regards, {w}", "Die Sitzung {w} beginnt um neun Uhr im großen Saal.",
    "会議は水曜日の午後三時からに変わりました{w}。",
    "الاجتماع {w} في الساعة التاسعة صباحًا في القاعة الكبيرة.",
    "See https://example.com/{w} for more, or call +49 30 1234567.", "- {w} is on the list",
]  # fmt: skip
#: What one writes oneself, some of it much like what programs write.
MINE = [
    "Yes, I will send them {w} in the evening.", "{w}",
    "Das mache ich {w} gern!",
    "The meeting {w} is on 3 May at 10:30.", "Please write to info@firm.example, {w}.",
    "Note: bring a {w}.", "Three things {w}:", "- first {w}", "はい、{w}送ります。",
    "נשלח לך {w} מחר.",
    "From my side there is {w} to add.", "I sent it {w} from the office.",
    "On Monday {w} I am away.",
    "I wrote {w} to her on 2 April 2012, as you asked.", "Отправлю {w} вечером.",
]  # fmt: skip


@dataclass
class Words:
    """Planted words, each used once."""

    mine: list[str] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)

    def own(self, template: str) -> str:
        self.mine.append(f"qmine{len(self.mine)}q")
        return template.format(w=self.mine[-1])

    def other(self, template: str) -> str:
        self.theirs.append(f"ztheir{len(self.theirs)}z")
        return template.format(w=self.theirs[-1])


@dataclass
class Reply:
    """A mail of one's own: plain text, perhaps HTML, and the mail that it answers."""

    asked: list[str]
    text: str
    page: str
    own: list[str]


def paragraphs(lines: list[str], blank: int) -> list[str]:
    """Lines with an empty one after every `blank`."""
    parts = [lines[i : i + blank] for i in range(0, len(lines), blank)]
    return "\n\n".join("\n".join(part) for part in parts).split("\n")


def wrapped(line: str, draw: st.DrawFn) -> list[str]:
    """A line of a program as it is sent: whole, or broken at 60 to 78 characters or in `<...>`."""
    how = draw(st.sampled_from(["whole", "wrap", "<", ">"]))
    if how == "wrap":
        return textwrap.wrap(
            line, draw(st.integers(60, 78)), break_long_words=False, break_on_hyphens=False
        )
    if how == "<" and line.count("<") == 1:
        return line.replace("<", "<\n").split("\n")
    if how == ">" and line.count(">") == 1 and "<" in line and line.index(">") > len(line) - 20:
        return line.replace(">", "\n>").split("\n")
    return [line]


@st.composite
def replies(draw: st.DrawFn, words: Words, index: int) -> tuple[Reply, tuple[str, str], str, bool]:
    """A reply, who is answered, the subject, and whether the answered mail is in the source."""
    person = draw(st.sampled_from(PEOPLE))
    subject = draw(st.sampled_from(SUBJECTS))
    when = datetime(2012, 4, 2, 18, 26) + timedelta(minutes=draw(st.integers(0, 90)))
    asked = [
        words.other(t) for t in draw(st.lists(st.sampled_from(THEIRS), min_size=1, max_size=5))
    ]
    asked = paragraphs(asked, draw(st.integers(1, 4)))
    own = [words.own(t) for t in draw(st.lists(st.sampled_from(MINE), min_size=1, max_size=4))]
    present = draw(st.booleans())
    style = draw(st.sampled_from(["top", "top", "headers", "bottom", "inside", "html"]))
    shown = list(asked)
    if draw(st.booleans()):
        width = draw(st.integers(50, 76))
        shown = [part for line in asked for part in (textwrap.wrap(line, width) or [""])]
    marked = [f"> {line}".rstrip() for line in shown]
    locale = draw(st.sampled_from(sorted(GMAIL)))
    line = say(draw(st.sampled_from([GMAIL[locale], GMAIL[locale], *LINES])), locale, when, *person)
    page = ""
    if style == "headers":
        locale = draw(st.sampled_from(sorted(HEADERS)))
        title = draw(st.sampled_from(["", "", *TITLES]))
        first = draw(st.sampled_from(["from", "date"]))
        block = headers(locale, when, *person, "Sam Two", subject, first)
        lines = [*own, "", *filter(None, [title]), *block, "", *shown]
    elif style == "bottom":
        lines = [*wrapped(line, draw), "", *marked, "", *own]
    elif style == "inside":
        lines = [*wrapped(line, draw), *marked, "", own[0], "", *marked[:1], "", *own[1:]]
    elif style == "html":
        lines, page = [*own, "", line, "", *shown], html_page(draw, own, asked, line, person)
    elif draw(st.booleans()):
        lines = [*own, "", *wrapped(line, draw), "", *marked]
    elif draw(st.booleans()):
        short = say(draw(st.sampled_from(SHORT_LINES)), locale, when, *person)
        lines = [*own, "", short, *marked]
    else:
        lines = [*own, "", *wrapped(line, draw), "", *shown]
    if style not in ("bottom", "inside", "html") and draw(st.booleans()):
        lines[len(own) : len(own)] = ["", draw(st.sampled_from(APPS))]
    reply = Reply(asked, "\n".join(lines), page, own)
    return reply, person, subject, present


def html_page(
    draw: st.DrawFn, own: list[str], asked: list[str], line: str, person: tuple[str, str]
) -> str:
    """The same reply as HTML, as one of many programs writes it."""

    def blocks(lines: list[str]) -> str:
        return "".join(f"<div>{html.escape(each) or '<br>'}</div>" for each in lines)

    said, mine, theirs = html.escape(line), blocks(own), blocks(asked)
    name, address = map(html.escape, person)
    head = f"<b>From:</b> {name} &lt;{address}&gt;<br><b>Sent:</b> Monday<br><b>Subject:</b> x<br>"
    quote = f"<blockquote type='cite'>{theirs}</blockquote>"
    prefix = draw(st.sampled_from(["", "x_", "x_x_"]))
    shapes = [
        f"{mine}<br><div class='gmail_quote'><div dir='ltr' class='gmail_attr'>{said}<br></div>"
        f"<blockquote class='gmail_quote'>{theirs}</blockquote></div>",
        f"{mine}<div><br>{quote}</div>",
        f"{mine}<div class='moz-cite-prefix'>{said}</div>{quote}",
        f"{mine}<hr tabindex='-1' style='width:98%'><div id='{prefix}divRplyFwdMsg'>{head}</div>"
        f"{theirs}",
        f"{mine}<div style='border:none;border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0cm 0cm 0cm'>"
        f"<p>{head}</p></div>{theirs}",
        f"{mine}<div id='ydp12yahoo_quoted_1' class='{prefix}yahoo_quoted'>{said}{theirs}</div>",
        f"{mine}<div class='protonmail_quote'>{said}<blockquote>{theirs}</blockquote></div>",
        f"{mine}<div class='protonmail_signature_block'>Sent with Proton Mail.</div>"
        f"<div class='protonmail_quote'>{said}{theirs}</div>",
        f"{mine}<div name='quote' style='border-left:2px solid #C3D9E5;'>{head}{theirs}</div>",
        f"{mine}<br id='lineBreakAtBeginningOfSignature'><div>Ametumwa kwa iPhone</div>"
        f"<div>{quote}</div>",
        f"{mine}<div id='Signature'>Sam Two, Street 1</div><div id='appendonsend'></div>{theirs}",
        f"{quote}{mine}",
    ]
    return f"<html><head><title>x</title></head><body>{draw(st.sampled_from(shapes))}</body></html>"


def message(
    number: int, sender: str, to: str, subject: str, text: str, page: str = ""
) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, to, subject
    mail["Message-ID"] = f"<{number}@x>"
    mail["Date"] = f"Mon, 02 Apr 2012 19:{number // 60 % 60:02}:{number % 60:02} +0200"
    mail.set_content(text)
    if page:
        mail.add_alternative(page, subtype="html")
    return mail


@st.composite
def mailboxes(draw: st.DrawFn) -> tuple[list[EmailMessage], Words, str]:
    """Mails of two people, what is planted in them, and how they are stored."""
    mails, words = [], Words()
    for index in range(draw(st.integers(1, 4))):
        reply, (name, address), subject, present = draw(replies(words, index))
        number = 10 * index
        if present:
            asked = "\n".join(reply.asked)
            mails.append(message(number, f'"{name}" <{address}>', SAM, subject, asked))
        text = reply.text
        mail = message(number + 1, f"Sam Two <{SAM}>", address, f"Re: {subject}", text, reply.page)
        mail["In-Reply-To"] = f"<{number}@x>"
        mails.append(mail)
    if draw(st.booleans()):
        title, (name, address) = draw(st.sampled_from(FORWARDS)), PEOPLE[0]
        block = headers("en", datetime(2012, 4, 2), name, address, "Sam Two", "x")
        lines = ["For your information.", "", title, *block, "", words.other(THEIRS[0])]
        mails.append(message(99, SAM, address, "Fwd: x", "\n".join(lines)))
    return mails, words, draw(st.sampled_from(["mbox", "maildir", "eml", "mh", "gz", "zip"]))


def stored(folder: Path, mails: list[EmailMessage], how: str) -> Path:
    """The mails as a program keeps them."""
    box = b"".join(b"From x Mon Apr 02 17:00:00 2012\n" + mail.as_bytes() + b"\n" for mail in mails)
    if how == "mbox":
        (folder / "a.mbox").write_bytes(box)
        return folder / "a.mbox"
    if how == "gz":
        (folder / "a.mbox.gz").write_bytes(gzip.compress(box))
        return folder / "a.mbox.gz"
    if how == "zip":
        with zipfile.ZipFile(folder / "mail.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("Mail/a.mbox", box)
        return folder / "mail.zip"
    inside = {"maildir": folder / "cur", "eml": folder / "sub", "mh": folder / "inbox"}[how]
    inside.mkdir()
    (folder / "new").mkdir()
    for number, mail in enumerate(mails, 1):
        name = {"maildir": f"{number}.host:2,S", "eml": f"{number}.eml", "mh": str(number)}[how]
        (inside / name).write_bytes(mail.as_bytes())
    return folder


def read(path: Path) -> list[Record]:
    connector = MailConnector()
    return list(connector.read(path, connector.configure({"me": SAM}), ImportReport()))


@settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(mailboxes())
def test_only_own_words_are_outputs_and_each_is_there(
    tmp_path_factory: pytest.TempPathFactory, box: tuple[list[EmailMessage], Words, str]
) -> None:
    mails, words, how = box
    records = read(stored(tmp_path_factory.mktemp("mail"), mails, how))
    outputs = "\n".join(record.output for record in records)
    shown = "\n\n".join(mail.as_string() for mail in mails)
    assert not [word for word in words.theirs if word in outputs], (outputs, shown)
    lost = [word for word in words.mine if outputs.count(word) != 1]
    assert not lost, (lost, outputs, shown)
    # Neither what programs say nor the other's name or address is one's own.
    for name, address in PEOPLE:
        assert address not in outputs and name not in outputs, (outputs, shown)
    for line in APPS:
        assert line not in outputs, (outputs, shown)
