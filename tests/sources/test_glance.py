"""What `auto` says of files that no connector reads, and that none is taken for another's."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from pfi.errors import ConfigError, DataError
from pfi.sources.connectors import candidates, recognised
from pfi.sources.glance import look

TELEGRAM = '<html><body><div class="message default clearfix" id="message1">hi</div></body></html>'
FILES: dict[str, tuple[bytes, str, str]] = {
    "letter": (b"%PDF-1.7\n%\xe2", "a PDF", "name it .pdf"),
    "photo.jpg": (b"\xff\xd8\xff\xe0", "an image", ""),
    "photo": (b"\x89PNG\r\n\x1a\n", "an image", ""),
    "msgstore.db.crypt15": (b"\x80\x01x", "an encrypted backup of WhatsApp", "Export chat"),
    "signal-2024-01-01.backup": (b"\0\0", "an encrypted backup of Signal", "signal-export"),
    "mail.pst": (b"!BDN\0\0", "an Outlook data file", "Thunderbird"),
    "note.msg": (b"\xd0\xcf\x11\xe0\xa1", "an old Office document or an Outlook message", ".eml"),
    "a.tgz": (b"\x1f\x8b\x08", "a compressed file", "unpack"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack"),
    "messages.html": (TELEGRAM.encode(), "an export of Telegram as HTML", "choose JSON"),
    "message_1.html": (b"<html><div class=\"_a6-g\">", "Instagram or Facebook as HTML", "JSON"),
    "page.html": (b"<!doctype html><html><p>x", "a web page", ""),
    "empty.json": (b"", "an empty file", ""),
    "odd.json": (b'{"theme": "dark"}', "a JSON file of no kind that pfi knows (keys 'theme')", ""),
    "projects.json": (b'[{"uuid": "1", "prompt_template": "x", "docs": []}]', "Claude's data", "c"),
    "data.csv": (b"Frage;Antwort\r\na;b\r\n", "a table with the columns Frage;Antwort", "map."),
    "notes.enex": (b"<?xml", "an export of Evernote", "Markdown"),
    "book.xlsx": (b"PK\x05\x06" + b"\0" * 18, "a workbook", "CSV"),
    "people.vcf": (b"BEGIN:VCARD\r\n", "an address book", ""),
    "blob": (b"\0\1\2", "a binary file", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_named(tmp_path: Path, name: str) -> None:
    data, what, fix = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        recognised(path)
    assert what in str(caught.value) and fix in (caught.value.fix or "")
    assert "\n" not in str(caught.value) and ".." not in str(caught.value)


ZIPS = {
    "telegram.zip": (["ChatExport/messages.html", "ChatExport/css/style.css"], "Telegram as HTML"),
    "instagram.zip": (
        ["your_instagram_activity/messages/inbox/a_1/message_1.html"], "Instagram or Facebook"),
    "icloud.zip": (["iCloud Notes/Notes/a.txt"], "Apple"),
    "document.zip": (["word/document.xml"], "a text document"),
    "other.zip": (["a.png", "b.png", "c.wav"], "a zip with 2 .png, 1 .wav"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_zips_and_folders_are_named(tmp_path: Path, name: str) -> None:
    names, what = ZIPS[name]
    folder = tmp_path / "folder"
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for one in names:
            archive.writestr(one, "x")
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            (folder / one).write_text("x")
    for path in (tmp_path / name, folder):
        sight = look(path)
        assert sight is not None and what.replace("a zip", "") in sight.what


def test_databases_are_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    for tables, what in (
        (["message", "chat", "handle"], "Messages"), (["message", "jid"], "WhatsApp"),
        (["a", "b"], "another program (tables a, b)"),
    ):  # fmt: skip
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as database:
            for table in tables:
                database.execute(f"CREATE TABLE {table} (x)")
        before = path.read_bytes()
        sight = look(path)
        assert sight is not None and what in sight.what
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


DISCORD = {
    "guild": {"id": "0", "name": "Direct Messages"},
    "channel": {"id": "2", "type": "DirectTextChat", "name": "nora"},
    "messages": [{"id": "3", "type": "Default", "timestamp": "2024-04-01T10:00:00+00:00",
                  "content": "Is the ladder with you?", "author": {"id": "9", "name": "nora"}}],
}  # fmt: skip
MESSENGER = {
    "participants": [{"name": "Nora One"}, {"name": "Sam Two"}],
    "messages": [{"sender_name": "Nora One", "timestamp_ms": 1711963501000,
                  "content": "Is the ladder with you?", "type": "Generic"}],
    "title": "Nora One", "thread_path": "inbox/nora_1",
}  # fmt: skip


@pytest.mark.parametrize("value", [DISCORD, MESSENGER], ids=["discord", "messenger"])
def test_no_program_is_taken_for_telegram(tmp_path: Path, value: object) -> None:
    """Shapes: mlomb/chat-analytics tests/samples/discord and tests/samples/messenger."""
    for name in ("result.json", "message_1.json"):
        path = tmp_path / name
        path.write_text(json.dumps(value))
        assert "telegram" not in candidates(path)


def test_errors_end_in_one_stop() -> None:
    assert str(DataError("it is odd", path="x", fix="give one of a, b, ...")) == (
        "x: it is odd. give one of a, b, ..."
    )
    assert str(DataError("it is odd.", fix="mend it.")) == "it is odd. mend it."
