"""Slack, Discord, Messenger, Instagram and Signal on made-up exports.

Shapes: Discord and Messenger as in mlomb/chat-analytics tests/samples, Discord's data package as
its `messages.csv` in several readers of it, Slack's export as its help page and `slackdump` lay it
out, Signal's `data.json` as carderne/signal-export writes it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read

from pfi.errors import ConfigError, DataError, PfiError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import detect, get_connector


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def pairs(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.input.get("chat", ""), record.output) for record in records]


# Slack ----------------------------------------------------------------------------------


def slack(folder: Path) -> Path:
    def said(ts: str, user: str, text: str, **more: Any) -> dict[str, Any]:
        return {"type": "message", "ts": f"17096400{ts}.000100", "user": user, "text": text, **more}

    users = [
        {"id": "U1", "name": "nora", "real_name": "Nora One", "profile": {"display_name": "nora"}},
        {"id": "U2", "name": "sam", "real_name": "Sam Two", "profile": {"email": "sam@x.example"}},
        {"id": "UB", "name": "robot", "is_bot": True},
    ]
    written(folder / "users.json", users)
    written(folder / "channels.json", [{"id": "C1", "name": "garden", "members": ["U1", "U2"]}])
    root = "1709640020.000100"
    written(folder / "garden" / "2024-03-05.json", [
        said("00", "U1", "Is the &lt;ladder&gt; with <@U2>? <https://x.example/a|here>"),
        said("05", "U2", "Yes, it stands in the cellar"),
        said("06", "U1", "joined", subtype="channel_join"),
        said("07", "UB", "FOREIGN build failed", subtype="bot_message", bot_id="B1"),
        said("10", "U1", "Who waters the beans?"),
        said("12", "U2", "&gt; FOREIGN quoted words\nI do, on Monday\n```\nFOREIGN code\n```"),
        said("20", "U2", "Shall we meet on Friday?", thread_ts=root),
    ])  # fmt: skip
    written(folder / "garden" / "2024-03-06.json", [
        said("30", "U1", "Friday suits me", thread_ts=root),
        said("40", "U2", "Then at eight o'clock", thread_ts=root),
        said("50", "U1", "No words of mine in this thread"),
        said("55", "U2", "", files=[{"id": "F"}], subtype="file_share"),
    ])  # fmt: skip
    return folder


@pytest.mark.parametrize("me", ["sam", "Sam Two", "sam@x.example", "U2"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_slack(tmp_path: Path, me: str, as_zip: bool) -> None:
    path = slack(tmp_path / "Garden Slack export")
    path = zipped(path) if as_zip else path
    assert detect(path) == "slack"
    records, report = read("slack", path, {"me": me})
    assert pairs(records) == [
        ("Is the <ladder> with @Sam Two? here", "Yes, it stands in the cellar"),
        ("Who waters the beans?", "I do, on Monday\nShall we meet on Friday?"),
        ("Friday suits me", "Then at eight o'clock"),
    ]
    assert "FOREIGN" not in str(pairs(records))
    assert report.skipped["it is a note of Slack, or of a program"] == 2
    assert report.me == ["Sam Two"]


def test_slack_needs_to_know_who_one_is(tmp_path: Path) -> None:
    path = slack(tmp_path / "export")
    with pytest.raises(ConfigError, match=r"who you are.*'nora', 'Sam Two'|'Sam Two', 'nora'"):
        read("slack", path)
    written(path / "dms.json", [{"id": "D1", "members": ["U1", "U2"]},
                                {"id": "D2", "members": ["U2", "U3"]}])  # fmt: skip
    assert len(read("slack", path)[0]) == 3, "the member of all direct chats"
    written(path / "garden" / "2024-03-07.json", "[{")
    _, report = read("slack", path)
    assert report.skipped["the file is not JSON"] == 1


# Discord --------------------------------------------------------------------------------


def discord(*messages: tuple[str, str], channel: str = "nora", **more: Any) -> dict[str, Any]:
    ids = {"nora": "9", "sam": "8", "robot": "7"}
    return {
        "guild": {"id": "0", "name": "Direct Messages"},
        "channel": {"id": "2", "type": "DirectTextChat", "name": channel},
        "messages": [
            {"id": str(n), "type": "Default", "timestamp": f"2024-04-01T10:00:{n:02}+00:00",
             "content": text,
             "author": {"id": ids[who], "name": who, "isBot": who == "robot"}, **more}
            for n, (who, text) in enumerate(messages)
        ],
    }  # fmt: skip


def test_discord_chats(tmp_path: Path) -> None:
    path = written(
        tmp_path / "nora.json",
        discord(
            ("nora", "Is the ladder with you?"),
            ("robot", "FOREIGN advertisement"),
            ("sam", "Yes <:smile:123456>, in the cellar <@9>"),
            ("nora", "Good"),
            ("sam", "> FOREIGN quoted\nYou are welcome"),
        ),
    )
    assert detect(path) == "discord"
    records, report = read("discord", path)
    assert pairs(records) == [
        ("Is the ladder with you?", "Yes :smile:, in the cellar"),
        ("Good", "You are welcome"),
    ]
    assert report.me == ["sam"] and report.authors == {"sam": 2, "nora": 2}
    calls = written(tmp_path / "calls.json", discord(("nora", "Hi"), ("sam", "x"), type="Call"))
    with pytest.raises(PfiError, match="note of Discord or a call"):
        read("discord", calls)
    written(path, discord(("nora", "Is the ladder with you?")))
    with pytest.raises(ConfigError, match="not clear who you are"):
        read("discord", path)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_discords_own_package(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "package"
    rows = [
        ("5", "2024-05-02 10:00:00+00:00", "late, and it goes on with many words of mine"),
        ("1", "2024-05-01 10:00:00+00:00", "the first half of a sentence"),
        ("2", "2024-05-01 10:01:00+00:00", 'and its "other" half'),
        ("3", "2024-05-01 12:00:00+00:00", "short"),
        ("4", "2024-05-01 13:00:00+00:00", "> FOREIGN words of somebody else that I quoted\nno"),
        ("6", "2024-05-03 13:00:00+00:00", ""),
    ]
    if form == "csv":
        lines = [f'{i},{t},"{text.replace(chr(34), chr(34) * 2)}",' for i, t, text in rows]
        text = "\n".join(["ID,Timestamp,Contents,Attachments", *lines])
    else:
        text = json.dumps([
            {"ID": int(i), "Timestamp": t.removesuffix("+00:00"), "Contents": c} for i, t, c in rows
        ])  # fmt: skip
    written(folder / "Messages" / "c123456" / f"messages.{form}", text)
    written(folder / "Messages" / "c123456" / "channel.json", {"id": "123456", "type": 1})
    for path in (folder, zipped(folder)):
        assert detect(path) == "discord"
        records, report = read("discord", path)
        assert [(r.id, r.task, r.output) for r in records] == [
            ("1", "continuation", 'the first half of a sentence\nand its "other" half'),
            ("5", "continuation", "late, and it goes on with many words of mine"),
        ]
        assert report.skipped["it has fewer than 8 words of yours"] == 2


# Messenger and Instagram ----------------------------------------------------------------


def garbled(text: str) -> str:
    """UTF-8 that was taken for Latin-1, as Meta writes it."""
    return text.encode().decode("latin-1")


def messenger(*messages: Any, other: str = "Nora Öne", start: int = 1711963500) -> dict[str, Any]:
    return {
        "participants": [{"name": garbled(other)}, {"name": "Sam Two"}],
        "messages": [
            {"sender_name": garbled(who), "timestamp_ms": (start + n) * 1000, **(
                {"content": garbled(text)} if isinstance(text, str) else text)}
            for n, (who, text) in reversed(list(enumerate(messages)))
        ],
        "title": garbled(other), "thread_path": "inbox/nora_1",
    }  # fmt: skip


NORA, SAM = "Nora Öne", "Sam Two"


def test_messenger_chat(tmp_path: Path) -> None:
    share = {"link": "https://x.example/a"}
    path = written(tmp_path / "message_1.json", messenger(
        (NORA, "Ist die Leiter bei dir? 🪜"), (SAM, "Ja, für dich im Keller"),
        (NORA, "Nora Öne hat die Gruppe Garten genannt."), (NORA, "Danke schön"),
        (SAM, {"content": "You sent an attachment.", "share": {"link": "https://y.example"}}),
        (SAM, {"content": "Gern, siehe https://x.example/a", "share": share}),
        (NORA, {"photos": [{"uri": "a.jpg"}], "content": "FOREIGN sent a photo."}),
        (SAM, garbled("Hat mit 😂 auf deine Nachricht reagiert ")),
        (NORA, "Bis bald"), (SAM, {"content": "FOREIGN", "call_duration": 5, "type": "Call"}),
        (SAM, {"is_unsent": True, "content": "gone"}), (SAM, "You left your keys here, bis bald"),
    ))  # fmt: skip
    assert detect(path) == "messenger"
    records, report = read("messenger", path)
    assert pairs(records) == [
        ("Ist die Leiter bei dir? 🪜", "Ja, für dich im Keller"),
        ("Danke schön", "Gern, siehe https://x.example/a"),
        ("Bis bald", "You left your keys here, bis bald"),
    ]
    assert report.me == [SAM]
    assert report.skipped == {
        "it is a note of Meta, a reaction or a call": 4,
        "the words beside a picture or link are Meta's": 1,
        "it was deleted": 1,
    }


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_whole_download_tells_whose_it_is(tmp_path: Path, as_zip: bool) -> None:
    folder = tmp_path / "instagram"
    inbox = folder / "your_instagram_activity" / "messages" / "inbox"
    written(inbox / "nora_1" / "message_1.json", messenger((NORA, "Later?"), (SAM, "Yes, later"),
                                                          start=1711970000))  # fmt: skip
    written(inbox / "nora_1" / "message_2.json", messenger((NORA, "Early?"), (SAM, "Yes, early")))
    group = messenger(("Ann", "Who comes?"), (NORA, "Me"), (SAM, "Me too, at five"), other="Ann")
    group["participants"].append({"name": garbled(NORA)})
    written(inbox / "group_2" / "message_1.json", group | {"title": "Garden"})
    written(folder / "personal_information" / "x_1.json", {"profile_user": []})
    path = zipped(folder) if as_zip else folder
    assert detect(path) == "messenger"
    records, report = read("messenger", path)
    assert pairs(records) == [
        ("A: Who comes?\nB: Me", "Me too, at five"), ("Early?", "Yes, early"),
        ("Later?", "Yes, later"),
    ]  # fmt: skip
    assert report.me == [SAM]


def test_messengers_encrypted_chats(tmp_path: Path) -> None:
    value = {
        "participants": ["Nora Öne", "Sam Two"], "threadName": "Nora Öne_12",
        "messages": [
            {"isUnsent": False, "media": [], "senderName": "Nora Öne", "text": "Später?",
             "timestamp": 1711963500000, "type": "text"},
            {"isUnsent": False, "media": [], "senderName": "Sam Two", "text": "Ja, später",
             "timestamp": 1711963501000, "type": "text"},
        ],
    }  # fmt: skip
    path = tmp_path / "Nora Öne_12.json"
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    assert detect(path) == "messenger"
    with pytest.raises(ConfigError, match="not clear who you are"):
        read("messenger", path)
    assert pairs(read("messenger", path, {"me": "Sam Two"})[0]) == [("Später?", "Ja, später")]


# Signal ---------------------------------------------------------------------------------


def signal(*messages: tuple[str, str], **more: Any) -> str:
    lines = [
        {"date": f"2024-03-05T10:00:{n:02}", "sender": who, "body": f"{text}  ", "quote": "",
         "sticker": "", "reactions": [], "attachments": [], **more}
        for n, (who, text) in enumerate(messages)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_signal(tmp_path: Path) -> None:
    folder = tmp_path / "signal-chats"
    text = signal(
        ("Nora", "Is the ladder with you?"), ("Me", "Yes, in the cellar"),
        ("Nora", "Missed voice call"), ("Me", "Outgoing video call (accepted, 5m 3s)"),
        ("No-Sender", "FOREIGN"), ("Nora", "Thanks"), ("Me", "You are welcome"),
    )  # fmt: skip
    quoted = {"date": "2024-03-05T10:01:00", "sender": "Nora", "body": "Well?", "quote": ""}
    mine = {"date": "2024-03-05T10:01:05", "sender": "Me", "body": "Fine", "quote": "\n> FOREIGN"}
    gone = {"date": "2024-03-05T10:01:09", "sender": "Me", "body": "FOREIGN", "deleted": True}
    text += "".join(json.dumps(line) + "\n" for line in (quoted, mine, gone)) + "{\n"
    written(folder / "Nora" / "data.json", text)
    written(folder / "Nora" / "chat.md", "[2024-03-05 10:00] Nora: x")
    assert detect(folder) == detect(folder / "Nora" / "data.json") == "signal"
    records, report = read("signal", folder, {"zone": "Europe/Berlin"})
    assert pairs(records) == [
        ("Is the ladder with you?", "Yes, in the cellar"), ("Thanks", "You are welcome"),
        ("Well?", "Fine"),
    ]  # fmt: skip
    assert records[0].time is not None and records[0].time.hour == 9
    assert report.skipped == {
        "it is a call": 2,
        "it is not clear who wrote it": 1,
        "it was deleted": 1,
        "the line is not JSON": 1,
    }


# All ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slack", "discord", "messenger", "signal"])
def test_damaged_sources_give_one_clear_line(tmp_path: Path, name: str) -> None:
    connector = get_connector(name)
    for number, text in enumerate(["", "{", "[]", '{"messages": [5]}', "\0", '{"a": 1}']):
        folder = tmp_path / f"{name}{number}"
        for file in ("users.json", "general/2024-01-01.json", "message_1.json", "data.json"):
            written(folder / file, text)
        assert not connector.recognises(folder) or name == "slack"
        with pytest.raises(PfiError) as caught:
            list(connector.read(folder, connector.configure({}), ImportReport()))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        list(connector.read(tmp_path / "none", connector.configure({}), ImportReport()))
