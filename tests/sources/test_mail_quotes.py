"""Each kind of quote, introduction, header and signature: what stays is what the person wrote.

Shapes as in the fixtures of crisp-oss/email-reply-parser, crisp-oss/email-forward-parser,
mailgun/talon, alfonsrv/mail-parser-reply and mikel/mail.
"""

from __future__ import annotations

from datetime import datetime
from itertools import product
from time import process_time

import pytest
from mail_shapes import APPS, FORWARDS, GMAIL, HEADERS, LINES, SHORT_LINES, TITLES, headers, say

from pfi.readers.html_text import read_html
from pfi.readers.mail_body import Body, body_of, header_text, parse_mail
from pfi.readers.mail_text import divide

WHEN = datetime(2012, 4, 2, 18, 26)
MIA = ("Mia One", "mia@example.net")
OWN = "Yes, I will send them in the evening."
THEIRS = "Could you send me the figures of the third quarter today, and print them?\n\nThanks\nMia"
MARKED = "> Could you send me the figures?\n> Mia"


def own(tail: str, **known: object) -> str:
    return divide(f"{OWN}\n\n{tail}\n", **known).own  # type: ignore[arg-type]


@pytest.mark.parametrize("locale", sorted(GMAIL))
def test_introductions_of_every_language(locale: str) -> None:
    line = say(GMAIL[locale], locale, WHEN, *MIA)
    assert own(f"{line}\n\n{MARKED}") == own(f"{line}\n\n{THEIRS}") == OWN
    text = divide(f"{line}\n\n{MARKED}\n\n{OWN}")
    assert (text.own, text.quoted) == (OWN, "Could you send me the figures?\nMia")


@pytest.mark.parametrize("template", [*LINES, *SHORT_LINES])
def test_introductions_of_other_programs(template: str) -> None:
    for locale in ("en", "de", "ru", "ja"):
        line = say(template, locale, WHEN, *MIA)
        assert own(f"{line}\n{MARKED}") == OWN
        if "{a}" in template:
            assert own(f"{line}\n\n{THEIRS}") == OWN


@pytest.mark.parametrize(
    "lines",
    [
        "man. 2. apr. 2012 kl. 18.26 skrev Mia One <\nmia@example.net>:",
        "man. 2. apr. 2012 kl. 18:26 skrev Mia One <mia@example.net\n>:",
        "po 2. 4. 2012 v 18:26 odesílatel Mia One <mia@example.net>\nnapsal:",
        '02.04.2012 18:26 пользователь "Mia One" <\nmia@example.net> написал:',
        "On Monday, April 2, 2012 at 6:26 PM\nMia One <mia@example.net>\nwrote:",
        "On Monday,\n2 April 2012 at 18:26 Mia One <mia@example.net> wrote:",
        "2 Nisan 2012 18:26 tarihinde, Mia One <mia@example.net>\nşunları yazdı:",
    ],
)
def test_introductions_over_several_lines(lines: str) -> None:
    assert own(f"{lines}\n\n{MARKED}") == OWN
    assert own(f"{lines}\n\n{THEIRS}") == OWN
    assert divide(f"{lines}\n\n{MARKED}\n\n{OWN}").own == OWN


@pytest.mark.parametrize("locale", sorted(HEADERS))
def test_headers_of_every_language(locale: str) -> None:
    for title, first in product(["", *TITLES], ["from", "date"]):
        block = "\n".join(headers(locale, WHEN, *MIA, "Sam Two", "Figures", first))
        text = divide(f"{OWN}\n\n{title}\n{block}\n\n{THEIRS}", subject="Figures")
        assert text.own == OWN
        assert text.quoted.startswith("Could you") and "Figures" not in text.quoted


@pytest.mark.parametrize(
    "block",
    [
        "Date: Mon, 2 Apr 2012 18:26:45 +0400\nSubject: Figures\nFrom: mia@example.net\nTo: me",
        'Message du : 02/04/2012 18:26\nDe : "Mia One" <mia@example.net>\nA : sam@example.org\n'
        "Copie à : \nSujet : Chiffres",
        "*From:* Mia\n*Date:* today\n*To:* Me",
        "From: Mia One\n\nSent: Monday, April 2, 2012\n\nTo: Sam Two; Anna Three;\n Bo Four\n\n"
        "Subject: Figures",
        "От: Mia\nОтправлено: \u200eпонедельник\u200e, \u200e2\u200e апреля 2012 г. \u200e15\u200e:"
        "\u200e05\nКому: Sam",
        "Received: from a by b\nMessage-ID: <1@x>\nMIME-Version: 1.0\nX-Mailer: y",
    ],
)
def test_other_headers(block: str) -> None:
    assert own(f"{block}\n\n{THEIRS}") == OWN


@pytest.mark.parametrize("title", FORWARDS)
def test_what_is_passed_on(title: str) -> None:
    block = "\n".join(headers("de", WHEN, *MIA, "Sam Two", "Figures"))
    text = divide(f"{OWN}\n\n{title}\n{block}\n\n{THEIRS}")
    assert text.forwards and text.own == OWN


@pytest.mark.parametrize("line", APPS)
def test_lines_of_telephones_and_programs(line: str) -> None:
    assert own(line) == OWN
    assert own(f"{line}\n\n{say(GMAIL['en'], 'en', WHEN, *MIA)}\n{MARKED}") == OWN


@pytest.mark.parametrize(
    "text",
    [
        "The meeting is on 3 May 2012 at 10:30.",
        "Three things:\n- the ladder\n- the chairs",
        "From: London\nTo: Paris\nI take the train.",
        "I wrote to mia@example.net on 2 April 2012, as you asked.",
        "I sent it to you from my iPhone on Monday, and it took two minutes to arrive there.",
        "Notes\n-----\n\nOne, two.\n\n----\n\nThree.",
        "One outstanding question I had:\n\nLocally, when I run it",
        "I need this:\n-- first point\n-- second point",
        "נשלח לך מחר.",
        "On Thursday:\n\nthe harbour is closed.",
    ],
)
def test_ones_own_stays(text: str) -> None:
    assert divide(text).own == text
    assert divide(f"{text}\n\n{say(GMAIL['en'], 'en', WHEN, *MIA)}\n{MARKED}").own == text


def test_a_quoted_line_that_was_broken_stays_a_quote() -> None:
    quote = (
        "> In the third quarter the figures of the harbour were better than those,\n"
        "which we had before\n> in the second"
    )
    assert own(f"{quote}") == OWN
    answers = "> Is it ready?\nYes it is.\n> And when\nTomorrow.\n> do you come?"
    assert divide(answers).own == "Yes it is.\nTomorrow."


def test_what_stands_in_the_answered_mail_is_not_ones_own() -> None:
    # Without any mark, wrapped otherwise, with short lines.
    shown = (
        "Could you send me the figures of the third\nquarter today, and print them?\n\nThanks\nMia"
    )
    assert own(shown, others=[THEIRS]) == OWN
    assert own("Thanks\nMia", others=[THEIRS]) == f"{OWN}\n\nThanks\nMia"  # by chance
    below = divide(
        f"Mia, 2 April 2012 18:26:\n{THEIRS}\n\n{OWN}", [THEIRS], people=["mia one", "mia,"]
    )
    assert below.own == OWN
    asked = "来週の会議は水曜日の午後三時からです"
    assert own(asked, others=[asked]) == OWN
    assert own("会議です", others=[asked]) == f"{OWN}\n\n会議です"


PAGES = [
    "<div id='x_x_divRplyFwdMsg'>{head}</div>{theirs}",
    "<div style='border:none;border-top:solid #E1E1E1 1.0pt'><p>{head}</p></div>{theirs}",
    "<div class='ydp1234yahoo_quoted'>{theirs}</div>",
    "<div class='moz-cite-prefix'>{head}</div><blockquote type=cite>{theirs}</blockquote>",
    "<div name='quote' style='border-left:2px solid #C3D9E5'>{head}{theirs}</div>",
    "<div class='protonmail_quote'>{head}{theirs}</div>",
    "<br id='lineBreakAtBeginningOfSignature'><div>Ametumwa</div><blockquote>{theirs}</blockquote>",
    "<div id='ms-outlook-mobile-signature'>Ametumwa</div><hr tabindex='-1'>{theirs}",
    "<div class='gmail_quote_container gmail_quote'>{head}{theirs}</div>",
]


@pytest.mark.parametrize("shape", PAGES)
def test_html_tells_what_plain_text_does_not(shape: str) -> None:
    theirs = "".join(f"<div>{line}</div>" for line in THEIRS.split("\n") if line)
    head = (
        "<b>Kutoka:</b> Mia &lt;mia@x.net&gt;<br><b>Ilitumwa:</b> 2/4/2012 18:26<br>"
        "<b>Mada:</b> Figures"
    )
    page = read_html(f"<p>{OWN}</p>{shape.format(head=head, theirs=theirs)}")
    block = "Kutoka: Mia <mia@x.net>\nIlitumwa: 2/4/2012 18:26\nMada: Figures"
    plain = f"{OWN}\n\nAmetumwa\n\n{block}\n\n{THEIRS}"
    kept = divide(Body(plain, page)).own
    assert kept.startswith(OWN) and "figures of" not in kept and "Thanks" not in kept
    assert ("Ametumwa" in kept) == ("Ametumwa" not in shape)
    assert ("Kutoka" in kept) == ("{head}" not in shape)
    assert divide(page.text).own == OWN


def test_pgp_footers_and_disclaimers() -> None:
    signed = (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{OWN}\n"
        "-----BEGIN PGP SIGNATURE-----\n\niQEz\n-----END PGP SIGNATURE-----\n"
    )
    assert divide(signed).own == OWN
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nabc\n-----END PGP PUBLIC KEY BLOCK-----"
    assert own(key) == OWN
    footer = "_______________________________________________\nclub mailing list\nclub@example.org"
    assert own(footer) == OWN
    assert own("______________________\nMore of mine.") == f"{OWN}\n\nMore of mine."
    assert own("Disclaimer\n\nThis e-mail is confidential. If you are not the intended recipient"
               " any disclosure is forbidden.") == OWN  # fmt: skip
    assert own("Diese E-Mail wurde von Avast-Antivirussoftware geprüft. www.avast.com") == OWN


@pytest.mark.parametrize(
    ("header", "body", "subject"),
    [
        ("Rückfrage".encode(), b"charset=utf-8", "Rückfrage"),
        ("Café fermé".encode("latin-1"), b"charset=iso-8859-1", "Café fermé"),
        ("Отчёт".encode("koi8-r"), b"charset=koi8-r", "Отчёт"),
        ("Отчёт".encode(), b"charset=koi8-r", "Отчёт"),
        (b"Trademark\x99", b"charset=us-ascii", "Trademark™"),
        (b"=?utf-8?q?Caf=C3=A9?= caf\xc3\xa9", b"charset=utf-8", "Café café"),
        (b"=?utf-8?q?Caf=C3=A9?= \xe6\x97\xa5", b"charset=utf-8", "Café 日"),
    ],
)  # fmt: skip
def test_raw_bytes_in_headers(header: bytes, body: bytes, subject: str) -> None:
    mail = parse_mail(b"Subject: " + header + b"\nContent-Type: text/plain; " + body + b"\n\nx\n")
    assert header_text(mail, "Subject") == subject
    assert body_of(mail).text == "x\n"


@pytest.mark.parametrize(
    "piece",
    [":\n", "_____\n", ">From x\n", "--a" + "-" * 50, "a" * 60, "<@", "[", "avast ", "To: x\n",
     "-- \n", "x: <\n", "\n: ", "> a <b@c\n"],
)  # fmt: skip
def test_hostile_mail_takes_no_long_time(piece: str) -> None:
    text = (piece * 300_000)[:300_000] + "x\n>"
    start = process_time()
    divide(text, [text[:50_000]], escaped=True)
    assert process_time() - start < 20
