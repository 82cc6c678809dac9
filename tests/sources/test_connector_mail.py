"""The mail connector on made-up mail: only one's own words are a target."""

from __future__ import annotations

import mailbox
import tracemalloc
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import EmailMessage, Message
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import ConfigError, DataError, PfiError
from pfi.readers.html_text import html_to_text
from pfi.readers.mail_text import divide
from pfi.readers.report import ImportReport
from pfi.records import History, Record
from pfi.sources.connectors import detect, get_connector

ME, ANNA = "me@example.org", "anna@example.org"
BODY = "Dear Anna,\n\nthe harbour report is ready for you.\n"
WHEN = "Wed, 25 Jan 2023 10:05:07 +0100"


def read(
    path: Path, options: Mapping[str, object] | None = None
) -> tuple[list[Record], ImportReport]:
    """Everything that the connector yields, twice: the records must be the same."""
    connector, report = get_connector("mail"), ImportReport()
    records = list(connector.read(path, connector.configure(options or {}), report))
    again = list(connector.read(path, connector.configure(options or {}), ImportReport()))
    assert again == records and report.read == len(records)
    History("me", records)
    return records, report


def mail(text: str = BODY, **headers: str) -> EmailMessage:
    """A mail of this person unless the headers say otherwise."""
    message = EmailMessage()
    usual = {"From": f"Me <{ME}>", "To": ANNA, "Subject": "Harbour report", "Date": WHEN}
    for name, value in {**usual, **headers}.items():
        if value:
            message[name.replace("_", "-")] = value
    message.set_content(text)
    return message


def mbox(path: Path, *messages: Message | bytes) -> Path:
    box = mailbox.mbox(str(path))
    for message in messages:
        box.add(message)
    box.close()
    return path


def one(path: Path, *messages: Message | bytes, **options: object) -> Record:
    [record] = read(mbox(path, *messages), {"me": ME, **options})[0]
    return record


def test_subjects_and_replies(tmp_path: Path) -> None:
    asked = mail(
        "Is it ready?\n\nYours, Anna\n-- \nAnna Berg\nPhone 1", From=ANNA, Message_ID="<1@x>"
    )
    answer = mail(
        "Yes, it is.\n\nOn Wed, 25 Jan 2023, Anna wrote:\n> Is it ready?\n>\n> Yours, Anna\n\nMe\n",
        Subject="Re: Harbour", In_Reply_To="<1@x>", Message_ID="<2@x>",
    )  # fmt: skip
    path = mbox(tmp_path / "all.mbox", answer, mail(Message_ID="<3@x>"), asked, answer)
    records, report = read(path, {"me": f"Other@example.org, {ME.upper()}"})
    reply, subject = records
    assert (reply.task, dict(reply.input)) == (
        "email_reply",
        {"message": "Is it ready?\n\nYours, Anna"},
    )
    assert reply.output == "Yes, it is.\n\nMe"
    assert (subject.task, subject.output) == ("LaMP_6", "Harbour report")
    assert subject.input["text"] == BODY.strip() and subject.source == "mail:all.mbox"
    assert subject.time == datetime(2023, 1, 25, 9, 5, 7, tzinfo=UTC)
    assert report.skipped == {"someone else wrote it": 1, "it repeats a mail": 1}
    assert [r.task for r in read(path, {"me": ME, "records": "replies"})[0]] == ["email_reply"]
    assert [r.task for r in read(path, {"me": ME, "records": "subjects"})[0]] == ["LaMP_6"]


def test_the_quote_stands_in_for_a_missing_mail(tmp_path: Path) -> None:
    text = "Yes.\n\nAm 25.01.2023 um 10:05 schrieb Anna:\n> Bereit?\n>> older\n> Gruß\n"
    record = one(tmp_path / "a", mail(text, Subject="AW: Hafen", References="<gone@x>"))
    assert (record.input["message"], record.output) == ("Bereit?\nGruß", "Yes.")


SENT_BY = [
    "On Wed, Jan 25, 2023 at 10:05 AM Anna Berg <anna@example.org> wrote:\n\nTHEIRS\n",
    "On Wed, Jan 25, 2023 at 10:05 AM Anna Berg\n<anna@example.org> wrote:\n> THEIRS\n> THEIRS\n",
    "-----Original Message-----\nFrom: Anna\nTHEIRS\n",
    "-----Urspr\u00fcngliche Nachricht-----\nTHEIRS\n",
    "________________________________\nFrom: Anna <anna@example.org>\nSent: today\nTo: Me\n"
    "Subject: x\n\nTHEIRS\n",
    "Von: Anna\nGesendet: Mittwoch\nAn: Me\nBetreff: x\n\nTHEIRS\n",
    "*From:* Anna\n*Date:* today\n*To:* Me\n\nTHEIRS\n",
    "Le mer. 25 janv. 2023 \u00e0 10:05, Anna a \u00e9crit :\n> THEIRS\n",
    "> THEIRS\n> THEIRS\n",
    "  > THEIRS\n",
    ">From THEIRS\n> THEIRS\n",
    "Anna schrieb am 25.01.2023:\n>From THEIRS\n",
    "2023\u5e741\u67085\u65e5 Anna <anna@example.org> \u5199\u9053\uff1a\n> THEIRS\n",
]


@pytest.mark.parametrize("quote", SENT_BY)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_quotes_are_never_ones_own(quote: str, ending: str, tmp_path: Path) -> None:
    text = f"This is mine.\n\n{quote}"
    message = mail(text, Subject="Re: x").as_bytes(policy=SMTP)
    box = b"From x Wed Jan 25 10:05:07 2023\r\n" + message
    path = tmp_path / "a"
    path.write_bytes(box.replace(b"\r\n", ending.encode()))
    [record] = read(path, {"me": ME})[0]
    assert record.output == "This is mine." and "THEIRS" in record.input["message"]


def test_unmarked_quotes_are_found_in_the_answered_mail(tmp_path: Path) -> None:
    line = "Could you send me the harbour report by Friday?"
    asked = mail(f"{line}\nThanks", From=ANNA, Message_ID="<1@x>")
    answer = mail(f"{line}\nYes I can.\n", Subject="Re: x", In_Reply_To="<1@x>")
    record = one(tmp_path / "a", asked, answer)
    assert record.output == "Yes I can." and line in record.input["message"]


@pytest.mark.parametrize(
    "tail",
    ["-- \nMe\nSome Street 1", "--\nMe", "Sent from my iPhone", "Von meinem iPhone gesendet",
     "This e-mail is confidential and intended only for the intended recipient. If you received it"
     " in error, notify the sender."],
)  # fmt: skip
def test_signatures_and_disclaimers_are_cut(tail: str, tmp_path: Path) -> None:
    record = one(tmp_path / "a", mail(f"{BODY}\n{tail}\n"))
    assert record.input["text"] == BODY.strip()


def test_lines_that_are_left_out_are_counted(tmp_path: Path) -> None:
    quote = "On Monday, Ann <ann@example.com> wrote:\n> Shall we?\n> Or not?"
    first = mail(BODY, **{"Message-ID": "<1@x>"})
    second = mail(f"Yes, let us do that then.\n\n{quote}", **{"Message-ID": "<2@x>"})
    second.replace_header("Subject", "Re: hello")
    third = mail(f"{BODY}\n\n-- \nMe\nPhone 123", **{"Message-ID": "<3@x>"})
    report = ImportReport()
    connector = get_connector("mail")
    path = mbox(tmp_path / "m.mbox", first, second, third)
    list(connector.read(path, connector.configure({"me": ["me@example.org"]}), report))
    (note,) = [note for note in report.notes if "left out" in note]
    assert note.startswith("lines left out as quotes, signatures or notices: 6, in 2 of the mails")
    assert "(first: m.mbox, byte " in note


def test_what_is_passed_on_is_not_ones_own(tmp_path: Path) -> None:
    passed = (
        "---------- Forwarded message ---------\nFrom: Anna\nTHEIRS with many words of others\n"
    )
    path = mbox(
        tmp_path / "a",
        mail(f"See below, please, dear Bo.\n\n{passed}", Message_ID="<1@x>"),
        mail(passed, Subject="Fwd: x", Message_ID="<2@x>"),
        mail(f"ok\n{passed}", Subject="Re: x", Message_ID="<3@x>"),
    )
    records, report = read(path, {"me": ME})
    assert [record.input["text"] for record in records] == ["See below, please, dear Bo."]
    assert report.skipped == {"it is forwarded": 2}
    attached = MIMEMultipart()
    attached["From"], attached["Subject"], attached["Date"] = ME, "x", WHEN
    attached.attach(MIMEText("One two three four five."))
    inner = MIMEMultipart("alternative")
    inner.attach(MIMEText("THEIRS inside"))
    attached.attach(MIMEMessage(inner))
    assert one(tmp_path / "b", attached).input["text"] == "One two three four five."


def test_parts_and_encodings(tmp_path: Path) -> None:
    message = mail("Gr\u00fc\u00dfe aus K\u00f6ln, wie geht es\n", Subject="Gr\u00fc\u00dfe \u2713")
    message.add_alternative("<p>wrong</p>", subtype="html")
    message.add_attachment("THEIRS", filename="notes.txt")
    message.add_attachment(b"\0" * 100, maintype="image", subtype="png", filename="x.png")
    record = one(tmp_path / "a", message)
    assert record.input["text"] == "Gr\u00fc\u00dfe aus K\u00f6ln, wie geht es"
    assert record.output == "Gr\u00fc\u00dfe \u2713"
    raw = (
        f"From: {ME}\nSubject: =?iso-8859-1?q?Caf=E9?= =?utf-8?b?w6k=?=\nDate: {WHEN}\n"
        "Content-Type: text/plain; charset=no-such\n\none two three caf"
    ).encode() + b"\xe9 five\n"
    record = one(tmp_path / "b", raw)
    assert (record.output, record.input["text"]) == (
        "Caf\u00e9\u00e9",
        "one two three caf\u00e9 five",
    )
    flowed = f"From: {ME}\nSubject: x\nDate: {WHEN}\nContent-Type: text/plain; format=flowed\n\n"
    record = one(tmp_path / "c", (flowed + "One two \nthree four \nfive.\n-- \nMe\n").encode())
    assert record.input["text"] == "One two three four five."


def test_html_only_mail(tmp_path: Path) -> None:
    page = (
        "<html><head><style>p {}</style></head><body><p>Yes, <b>it</b> is&nbsp;ready"
        "<br>at&amp;last</p><div style='display: none'>hidden</div>"
        "<div class='gmail_signature'>Me, Street 1</div><div class=gmail_quote>"
        "<div>On Wed, 25 Jan 2023 Anna wrote:</div><blockquote><p>THEIRS<p>more</blockquote></div>"
        "<p>Bye</body>"
    )
    message = mail(Subject="Re: x", Message_ID="<1@x>")
    message.set_content(page, subtype="html")
    record = one(tmp_path / "a", message)
    assert record.output == "Yes, it is ready\nat&last\nBye"
    assert "THEIRS" in record.input["message"]
    apple = "<div>Mine</div><blockquote type=cite><div>Yours</div><blockquote>THEIRS</blockquote>"
    message.set_content(apple, subtype="html")
    record = one(tmp_path / "c", message)
    assert (record.output, record.input["message"]) == ("Mine", "Yours")
    outlook = "<p>Mine</p><div id='divRplyFwdMsg'><b>From:</b> Anna<br></div><div>THEIRS</div>"
    message.set_content(outlook, subtype="html")
    record = one(tmp_path / "b", message)
    assert (record.output, record.input["message"]) == ("Mine", "THEIRS")


def test_maildir_eml_and_folders(tmp_path: Path) -> None:
    box = mailbox.Maildir(str(tmp_path / "Maildir"))
    box.add(mail("Is it ready now?", From=ANNA, Message_ID="<1@x>"))
    sent = box.add_folder("Sent")
    for number in range(3):
        sent.add(mail(f"It is ready {number}", Subject="Re: x", In_Reply_To="<1@x>",
                      Message_ID=f"<{number}@me>"))  # fmt: skip
    records, _ = read(tmp_path / "Maildir")  # whose mail it is is clear from the folder
    assert sorted(record.output for record in records) == [f"It is ready {n}" for n in range(3)]
    assert {record.input["message"] for record in records} == {"Is it ready now?"}
    single = tmp_path / "a.eml"
    single.write_bytes(mail().as_bytes())
    assert read(single, {"me": ME})[0][0].output == "Harbour report"
    mbox(tmp_path / "Sent", mail(Message_ID="<9@me>", Subject="Another"))
    (tmp_path / "readme.txt").write_text("no mail")
    assert {r.output for r in read(tmp_path)[0]} >= {"Another"}
    for path in (tmp_path / "Maildir", single, tmp_path / "Sent", tmp_path):
        assert detect(path) == "mail"


def test_whose_mail_it_is(tmp_path: Path) -> None:
    path = mbox(tmp_path / "all.mbox", mail(From=ANNA), mail(From=ANNA), mail())
    with pytest.raises(ConfigError, match=f"not clear which address.*me: {ANNA}, {ME}"):
        read(path)
    with pytest.raises(ConfigError, match=f"no mail is from bo@x.*{ANNA}"):
        read(path, {"me": "bo@x"})
    with pytest.raises(ConfigError, match="'me' is not an address"):
        read(path, {"me": "Me"})
    labelled = mbox(tmp_path / "takeout.mbox", mail(From=ANNA), mail(X_Gmail_Labels="Opened,Sent"))
    assert len(read(labelled)[0]) == 1
    unclear = mbox(
        tmp_path / "Sent", mail(Message_ID="<1@x>"), mail(Message_ID="<2@x>"), mail(From=ANNA)
    )
    with pytest.raises(ConfigError, match=f"not clear which address.*me: {ME}, {ANNA}"):
        read(unclear)
    # A name that looks like an address, even encoded, is not the sender.
    spoofed = mail(BODY, From="x@x")
    del spoofed["From"]
    raw = spoofed.as_bytes().replace(
        b"To:", b"From: =?utf-8?q?me=40example=2Eorg=2C?= <evil@example.org>\nTo:"
    )
    spoofed_too = raw.replace(b"=?utf-8?q?me=40example=2Eorg=2C?=", b'"me@example.org, x"')
    _, report = read(mbox(tmp_path / "b", raw, spoofed_too, mail()), {"me": ME})
    assert report.skipped == {"someone else wrote it": 2}


def test_broken_mail_is_skipped(tmp_path: Path) -> None:
    head = f"From: {ME}\nSubject: x\n"
    broken = [
        f"{head}Date: {WHEN}\nContent-Type: multipart/mixed; boundary=\n\none two three four\n",
        f"{head}Date: {WHEN}\nContent-Type: multipart/mixed; boundary=b\n\n--b\n--b\n--b",
        f"{head}Date: {WHEN}\nContent-Type: text/plain; charset*=x'y\n\nx",
        f"{head}Date: {WHEN}\nContent-Transfer-Encoding: base64\n\n!!!!",
        f"{head}Date: never\n\none two three four",
        f"{head}Date: Wed, 25 Jan 2999 10:05:07 +0100\n\none two three four",
        f"{head}Date: {WHEN}\nContent-Type: multipart/encrypted\n\nx",
        f"{head}Date: {WHEN}\nAuto-Submitted: auto-replied\n\none two three four",
        "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(400)),
        f"From: =?utf-8?q?{'x' * 300}\nSubject: =?x?y?z?=\n\n",
        f"{head.replace('Subject: x', 'Subject: ')}Date: {WHEN}\n\none two three four five",
    ]
    head_of_nest = f"{head}Date: {WHEN}\n"
    broken[8] = head_of_nest + broken[8]
    path = mbox(
        tmp_path / "a", *(text.encode("utf-8", "surrogateescape") for text in broken), mail()
    )
    records, report = read(path, {"me": ME})
    assert records[-1].output == "Harbour report"
    assert report.skipped.total() + len(records) == len(broken) + 1
    assert {"it has no date", "it is encrypted", "a program wrote it", "it has no subject"} <= set(
        report.skipped
    )


def test_no_mail(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError):
            read(path)
    (tmp_path / "empty.mbox").write_bytes(b"")
    with pytest.raises(DataError, match="no mail with a sender"):
        read(tmp_path / "empty.mbox")


def test_huge_mail_takes_little_memory(tmp_path: Path) -> None:
    path = mbox(tmp_path / "a", mail(Message_ID="<1@x>"))
    with path.open("ab") as file:
        file.write(
            b"From x Wed Jan 25 10:05:07 2023\n" + mail(Message_ID="<2@x>").as_bytes() + b"\n"
        )
        for _ in range(60):
            file.write(b"x" * 1_000_000)
    with path.open("ab") as file:
        file.write(b"\n\nFrom x Wed Jan 25 10:05:07 2023\n" + mail(Message_ID="<3@x>").as_bytes())
    connector = get_connector("mail")
    tracemalloc.start()
    records = list(connector.read(path, connector.configure({"me": ME}), ImportReport()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(records) == 3 and peak < 30_000_000


LINES = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=12)
LINE = st.sampled_from(["mine", "From here", "yes: it", "> quoted", "--x"]) | LINES.map(
    "m{}".format
)
OWN = st.lists(LINE, min_size=4, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(OWN, min_size=1, max_size=4))
def test_mbox_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]]) -> None:
    """What the standard library wrote is found again, but for what is quoted."""
    path = tmp_path_factory.mktemp("mail") / "a.mbox"
    messages = [
        mail("\n".join([*lines, "the end of it"]), Message_ID=f"<{n}@x>")
        for n, lines in enumerate(texts)
    ]
    records, report = read(mbox(path, *messages), {"me": ME})
    assert not report.skipped
    for record, lines in zip(records, texts, strict=True):
        near = [i for i, line in enumerate(lines) if line.startswith("> ")]
        kept = [
            line
            for i, line in enumerate(lines)
            if not line.startswith("> ")
            # beside a quote, an escaped line counts as quoted
            and not (line.startswith("From ") and {i - 1, i + 1} & {*near, *_froms(lines)})
        ]
        found = [line for line in record.input["text"].split("\n") if line]
        assert [line for line in found if not line.startswith("From ")] == [
            line for line in [*kept, "the end of it"] if not line.startswith("From ")
        ]
        assert not any(line.startswith(">") for line in found)


def _froms(lines: list[str]) -> list[int]:
    return [i for i, line in enumerate(lines) if line.startswith("From ")]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_records_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, headed: bool
) -> None:
    path = tmp_path_factory.mktemp("mail") / "a.eml"
    path.write_bytes(f"From: {ME}\nDate: {WHEN}\n".encode() + data if headed else data)
    try:
        read(path, {"me": ME})
    except PfiError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(
    ["<div class=gmail_quote>", "</div>", "<blockquote>", "</blockquote>", "x", "<br>", "<p", ">",
     "<!--", "-->", "<![CDATA[", "<style>", "</style>", "&amp", "\0", "</p>", "<script>"]),
    max_size=30))  # fmt: skip
def test_html_never_raises(pieces: list[str]) -> None:
    divide(html_to_text("".join(pieces)))
