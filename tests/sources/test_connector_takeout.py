"""Google Takeout as downloaded: mail, chats and notes of one account, in any language.

The layout is that of google_takeout_parser (purarue) and of the importers for Google Keep in
obsidianmd/obsidian-importer; the chats' keys are those of Google Chat's `messages.json`.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pfi.errors import ConfigError, DataError
from pfi.readers.report import ImportReport
from pfi.records import History, Record
from pfi.sources.connectors import detect, get_connector

SAM, MIA = "sam@example.org", "mia@example.net"
NOTE = "The long ladder stands in the cellar behind the apples, next to the two old chairs."


def mail(sender: str, subject: str, text: str, labels: str, number: int, more: str = "") -> str:
    return (
        f"From {number}@xxx Mon Apr 02 17:00:00 +0000 2012\nX-Gmail-Labels: {labels}\n"
        f"Message-ID: <{number}@x>\n{more}Date: Mon, 02 Apr 2012 19:00:00 +0200\n"
        f"From: {sender}\nTo: x@example.net\nSubject: {subject}\n\n{text}\n\n"
    )


MBOX = (
    mail(SAM, "Ladder", NOTE, "Gesendet,Ge\u00f6ffnet", 1)
    + mail(MIA, "Theirs", "Words that somebody else wrote to me.", "Posteingang", 2)
    + mail(SAM, "Not sent", "Words that were never sent to anybody.", "Entw\u00fcrfe", 3)
    + mail(SAM, "Junk", "Buy these pills that I did not write of.", "Spam", 4)
)


def message(address: str, text: str, minute: int, **more: str) -> dict[str, object]:
    name = {SAM: "Sam Two", MIA: "Mia One"}.get(address, "Bot")
    kind = "Human" if address in (SAM, MIA) else "Bot"
    return {
        "creator": {"name": name, "email": address, "user_type": kind},
        "created_date": f"Freitag, 14. Oktober 2022 um 17:{minute:02}:41 UTC",
        "text": text, "topic_id": "t", "message_id": f"d/t/{minute}", **more,
    }  # fmt: skip


CHAT = {
    "messages": [
        message(MIA, "Where is the ladder, Sam Two?", 1),
        message("bot@example.com", "A reminder from a program.", 2),
        message(SAM, "In the cellar.", 3),
        message(MIA, "Thanks!", 4),
        message(SAM, "Gone.", 5, message_state="DELETED"),
        message(SAM, "You are welcome.", 6),
    ]
}
USER = {"user": {"name": "Sam Two", "email": "Sam@Example.org", "user_type": "Human"}}


def keep(**more: object) -> dict[str, object]:
    return {
        "color": "DEFAULT", "isTrashed": False, "isPinned": False, "isArchived": False,
        "textContent": NOTE, "title": "Ladder", "userEditedTimestampUsec": 1665769181000000,
        "createdTimestampUsec": 1665000000000000, **more,
    }  # fmt: skip


def visit(minute: int) -> dict[str, object]:
    return {
        "title": "Rye bread for beginners", "url": "https://baking.example/rye",
        "time_usec": 1665769181000000 + minute * 60_000_000, "client_id": "x",
        "page_transition": "LINK",
    }  # fmt: skip


def files(**more: object) -> dict[str, str]:
    chat = "Takeout/Google Chat/Groups/DM 1"
    contents: dict[str, object] = {
        "Takeout/archive_browser.html": "<html></html>",
        "Takeout/Gmail/Alle E-Mails, einschlie\u00dflich Spam und Papierkorb.mbox": MBOX,
        f"{chat}/messages.json": CHAT,
        f"{chat}/group_info.json": {"members": [USER["user"], CHAT["messages"][0]["creator"]]},  # type: ignore[index]
        "Takeout/Google Chat/Users/User 1/user_info.json": USER,
        "Takeout/Google Notizen/Leiter.json": keep(),
        "Takeout/Google Notizen/Weg.json": keep(isTrashed=True),
        "Takeout/Google Notizen/Zusammen.json": keep(sharees=[{"email": MIA, "isOwner": False}]),
        "Takeout/Chrome/History.json": {"Browser History": [visit(1), visit(2)]},
        "Takeout/Google Fotos/a.jpg.json": {"title": "a.jpg", "creationTime": {}},
        **more,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in contents.items()
    }


def zipped(path: Path, contents: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
    return path


def read(path: Path, **options: object) -> tuple[list[Record], ImportReport]:
    connector, report = get_connector("takeout"), ImportReport()
    records = list(connector.read(path, connector.configure(options), report))
    again = list(connector.read(path, connector.configure(options), ImportReport()))
    assert again == records and report.read == len(records)
    History("me", records)
    return records, report


EXPECTED = {
    ("LaMP_6", "Ladder"),
    ("chat_reply", "In the cellar."),
    ("chat_reply", "You are welcome."),
    ("note_title", "Ladder"),
    ("continuation", NOTE),
    ("page_site", "baking.example"),
}


def test_a_zip_is_read_as_downloaded(tmp_path: Path) -> None:
    path = zipped(tmp_path / "takeout-20240501T000000Z-001.zip", files())
    assert detect(path) == "takeout"
    records, report = read(path)
    assert {(record.task, record.output) for record in records} == EXPECTED
    asked = {record.output: record.input for record in records}
    assert asked["In the cellar."] == {"chat": "Where is the ladder, Sam Two?"}
    assert asked["You are welcome."] == {"chat": "Thanks!"}
    assert report.skipped == {
        "someone else wrote it": 1, "it is a draft": 1, "it is junk or a chat": 1,
        "a bot wrote it, or it has no author": 1, "it is in the trash": 1,
        "it is shared with others, who may have written it": 1,
    }  # fmt: skip


def test_parts_and_folders_are_the_same_takeout(tmp_path: Path) -> None:
    everything = files()
    names = sorted(everything)
    half = len(names) // 2
    folder = tmp_path / "zips"
    folder.mkdir()
    first = zipped(
        folder / "takeout-20240501T000000Z-001.zip", {n: everything[n] for n in names[:half]}
    )
    zipped(folder / "takeout-20240501T000000Z-002.zip", {n: everything[n] for n in names[half:]})
    unpacked = tmp_path / "unpacked"
    for name, text in everything.items():
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_text(text)
    ids = []
    for path in (first, folder, unpacked, unpacked / "Takeout"):
        assert detect(path) == "takeout"
        records, _ = read(path)
        assert {(record.task, record.output) for record in records} == EXPECTED
        ids.append([record.id for record in records])
    assert all(each == ids[0] for each in ids)


def tarred(path: Path, contents: Mapping[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_tgz_are_read_as_downloaded(tmp_path: Path) -> None:
    everything = files()
    names = sorted(everything)
    half = len(names) // 2
    folder = tmp_path / "tars"
    folder.mkdir()
    first = tarred(
        folder / "takeout-20240501T000000Z-001.tgz", {n: everything[n] for n in names[:half]}
    )
    tarred(folder / "takeout-20240501T000000Z-002.tgz", {n: everything[n] for n in names[half:]})
    whole = tarred(tmp_path / "takeout-20240501T000000Z-001.tar.gz", everything)
    for path in (first, folder, whole):
        assert detect(path) == "takeout"
        assert {(record.task, record.output) for record in read(path)[0]} == EXPECTED


def test_each_part_can_be_left_out(tmp_path: Path) -> None:
    path = zipped(tmp_path / "takeout-20240501T000000Z-001.zip", files())
    for part, task in (("mail", "LaMP_6"), ("chat", "chat_reply"), ("keep", "continuation"),
                       ("chrome", "page_site")):  # fmt: skip
        assert task not in {record.task for record in read(path, **{part: False})[0]}
    with pytest.raises(DataError, match="Mail, Google Chat, Keep or Chrome"):
        read(path, mail=False, chat=False, keep=False, chrome=False)


def test_a_part_that_cannot_be_used_does_not_keep_the_others(tmp_path: Path) -> None:
    broken = files()
    del broken["Takeout/Google Chat/Users/User 1/user_info.json"]
    path = zipped(tmp_path / "takeout-20240501T000000Z-001.zip", broken)
    records, report = read(path)
    assert "chat_reply" not in {record.task for record in records}
    assert len(records) == len(EXPECTED) - 2
    assert any("it is not clear who you are" in reason for reason in report.skipped)
    assert len(read(path, me=SAM)[0]) == len(EXPECTED)
    with pytest.raises(ConfigError, match="not clear who you are"):
        read(path, mail=False, keep=False, chrome=False)


def test_addresses_of_the_account_help_where_labels_do_not(tmp_path: Path) -> None:
    name = "Takeout/Gmail/Alle E-Mails, einschlie\u00dflich Spam und Papierkorb.mbox"
    contents = files(**{name: MBOX.replace("Gesendet,", "")})
    path = zipped(tmp_path / "takeout-20240501T000000Z-001.zip", contents)
    assert ("LaMP_6", "Ladder") in {(r.task, r.output) for r in read(path)[0]}
