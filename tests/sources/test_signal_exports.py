"""Signal's own export and sigtop's, made up in their shapes.

Shapes: the frames of signalapp/libsignal's `BackupJsonExporter` and of the tests of importers that
read its `main.jsonl`; sigtop's JSON is Signal Desktop's stored message, as vdalex/signal_db_export
shows one.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read

from pfi.records import Record
from pfi.sources.connectors import candidates

START = 1_711_963_500_000


def pairs(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.input["chat"], record.output) for record in records]


def item(second: int, author: str, side: str, chat: str = "10", **more: Any) -> dict[str, Any]:
    return {"chatItem": {"chatId": chat, "authorId": author, "dateSent": str(START + second * 1000),
                         side: {}, **more}}  # fmt: skip


def text(body: str, **more: Any) -> dict[str, Any]:
    return {"standardMessage": {"text": {"body": body, "bodyRanges": []}, **more}}


FRAMES: list[dict[str, Any]] = [
    {"version": 1, "backupTimeMs": "1711963500000", "mediaRootBackupKey": "AA=="},
    {"account": {"givenName": "Sam", "familyName": "Two", "username": "sam.02"}},
    {"recipient": {"id": "1", "self": {}}},
    {"recipient": {"id": "2", "contact": {"aci": "AAA=", "systemGivenName": "Nora",
                                          "systemFamilyName": "One"}}},
    {"recipient": {"id": "3", "contact": {"e164": "+15550001111", "profileGivenName": "Mia"}}},
    {"recipient": {"id": "4", "group": {"snapshot": {"title": {"title": "Garden"}}}}},
    {"chat": {"id": "10", "recipientId": "2"}},
    {"chat": {"id": "11", "recipientId": "4"}},
    item(0, "2", "incoming", **text("Is the ladder with you?")),
    item(1, "3", "incoming", "11", **text("Who brings the beans?")),
    item(2, "1", "outgoing", **text("Yes, in the cellar", quote={
        "authorId": "2", "text": {"body": "foreign: Is the ladder"}})),
    item(3, "2", "incoming", "11", **text("Not me")),
    item(4, "1", "outgoing", "11", **text("I do, \ufffc!", reactions=[{"emoji": "x"}])),
    item(5, "2", "directionless", updateMessage={"simpleUpdate": {"type": "IDENTITY_UPDATE"}}),
    item(6, "2", "incoming", remoteDeletedMessage={}),
    item(7, "1", "outgoing", **text("It answers what is gone")),
    item(8, "2", "incoming", **text("And the chairs?"), revisions=[
        {"standardMessage": {"text": {"body": "foreign, an older form"}}}]),
    item(9, "2", "outgoing", **text("foreign: it is not clear whose")),
    item(10, "1", "outgoing", stickerMessage={"sticker": {"emoji": "x"}}),
    item(11, "1", "outgoing", **text("They are there, too"), revisions=[
        {"standardMessage": {"text": {"body": "foreign, before I edited it"}}}]),
    item(12, "2", "incoming", **text("Fine")),
    item(13, "1", "outgoing", directStoryReplyMessage={"textReply": {"text": {"body": "foreign"}}}),
]  # fmt: skip
FRAMES[12]["chatItem"]["standardMessage"]["text"]["bodyRanges"] = [
    {"start": 6, "length": 1, "mentionAci": "AAA="}
]


@pytest.mark.parametrize("form", ["folder", "zip", "file"])
def test_signals_own_export(tmp_path: Path, form: str) -> None:
    lines = "\n".join(json.dumps(frame, ensure_ascii=False) for frame in FRAMES) + "\n{broken\n"
    folder = tmp_path / "signal-export-2026-01-01"
    folder.mkdir()
    (folder / "main.jsonl").write_text(lines, "utf-8")
    (folder / "metadata.json").write_text('{"version": 1}', "utf-8")
    path = folder / "main.jsonl" if form == "file" else folder
    if form == "zip":
        path = tmp_path / "signal-export.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(folder / "main.jsonl", "signal-export/main.jsonl")
    assert candidates(path) == ["signal"]
    records, report = read("signal", path)
    assert pairs(records) == [
        ("Is the ladder with you?", "Yes, in the cellar"),
        ("And the chairs?", "They are there, too"),
        ("A: Who brings the beans?\nB: Not me", "I do, @Nora One!"),
    ]
    assert report.me == ["Sam Two"]
    assert str(records[0].time) == "2024-04-01 09:25:02+00:00"
    assert report.skipped["it is a note of Signal"] == 1
    assert report.skipped["it is not clear who wrote it"] == 1
    assert report.skipped["it was deleted"] == 1
    assert report.skipped["it answers a story that is not there"] == 1
    assert report.skipped["the line is not JSON"] == 1
    assert report.examples["the line is not JSON"] == "main.jsonl, line 23"


def stored(second: int, kind: str, body: str, **more: Any) -> dict[str, Any]:
    return {"id": f"m{second}", "conversationId": "c", "type": kind, "body": body,
            "sent_at": START + second * 1000, "bodyRanges": [], **more}  # fmt: skip


def test_sigtop(tmp_path: Path) -> None:
    messages = [
        stored(0, "incoming", "Is the ladder with you?", sourceServiceId="n"),
        stored(1, "outgoing", "Yes, in the cellar", quote={"text": "foreign", "author": "n"}),
        stored(2, "call-history", "foreign"),
        stored(3, "incoming", "Thanks, Nora says", sourceServiceId="n"),
        stored(4, "outgoing", "foreign", deletedForEveryone=True),
        stored(5, "outgoing", "You are welcome, Nora"),
        stored(6, "incoming", "foreign story?", storyId="s", sourceServiceId="n"),
    ]
    folder = tmp_path / "json"
    folder.mkdir()
    path = folder / "Nora (+15550001111).json"
    path.write_text(json.dumps(messages), "utf-8")
    assert candidates(folder) == candidates(path) == ["signal"]
    records, _ = read("signal", path)
    assert pairs(records) == [
        ("Is the ladder with you?", "Yes, in the cellar"),
        ("Thanks, A says", "You are welcome, Nora"),
    ]


def test_other_lines_of_json_are_not_signals(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"account": {"a": 1}, "chat": {}}, {"chat": "x"}, {"recipient": 1}]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert "signal" not in candidates(path)


CHAT_MD = """[2024-03-05 10:00:00] Nora: Is the ladder with you?
[2024-03-05 10:00:05] Me: > foreign, quoted

Yes, in the cellar  (- Nora: 👍 -)
[2024-03-05 10:00:09] No-Sender: foreign
[2024-03-05 10:00:10] Nora: Look ![a.jpg](./media/a.jpg)
and tell me
[2024-03-05 10:00:15] Me: It is
behind the apples
[2024-03-05 10:00:16] Me: Outgoing video call
"""
SIGTOP = """Conversation: Nora (+15550001111)

From: Nora (+15550001111)
Type: incoming
Sent: Tue, 05 Mar 2024 11:00:00 +0100
Received: Tue, 05 Mar 2024 11:00:01 +0100

Is the ladder with you?

From: You
Type: outgoing
Sent: Tue, 05 Mar 2024 11:00:05 +0100

> From: Nora
>
> foreign, quoted

Yes, in the cellar

From: Nora (+15550001111)
Type: call-history
Sent: Tue, 05 Mar 2024 11:00:09 +0100

foreign

From: Nora (+15550001111)
Type: incoming
Sent: Tue, 05 Mar 2024 11:00:10 +0100

Look
and tell me

From: You
Type: outgoing
Sent: Tue, 05 Mar 2024 11:00:15 +0100
Attachment: a.jpg (image/jpeg, 5 bytes)

It is
behind the apples
"""


@pytest.mark.parametrize(
    ("name", "text", "known"),
    [
        ("Nora/chat.md", CHAT_MD, {"signal", "markdown"}),
        ("Nora (+15550001111).txt", SIGTOP, {"signal"}),
    ],
)
def test_chats_as_text_are_not_ones_own_notes(
    tmp_path: Path, name: str, text: str, known: set[str]
) -> None:
    folder = tmp_path / "chats"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    assert "signal" in candidates(folder)
    assert set(candidates(path)) <= known and "signal" in candidates(path)
    for source in (folder, path):
        records, _ = read("signal", source)
        assert pairs(records) == [
            ("Is the ladder with you?", "Yes, in the cellar"),
            ("Look \nand tell me" if "md" in name else "Look\nand tell me",
             "It is\nbehind the apples"),
        ]  # fmt: skip
        assert str(records[0].time) == "2024-03-05 10:00:05+00:00"


def test_other_texts_are_not_signals(tmp_path: Path) -> None:
    for name, text in {
        "index.md": "# My notes\n\nThe ladder.", "a.txt": "Conversation: a poem\n\nFrom: here",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_text(text, "utf-8")
        assert "signal" not in candidates(path)
