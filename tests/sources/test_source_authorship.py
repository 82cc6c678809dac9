"""Whose words become outputs: planted words of two people in every form of tables, assistants' and
chats' exports.

No word of the other one is ever in an output, and each of one's own that answers something is in
exactly one record.  Texts are in several scripts, quote each other, hold code and stand beside
notes of programs; exports are files, folders and zips.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import candidates, get_connector

START = 1_711_963_500  # 2024-04-01 09:25 UTC
#: Sentences of eight words and more around a planted one.
FILLINGS = [
    "the long ladder {} stands in the cellar behind the apples",
    "die lange Leiter {} steht im Keller hinter den Äpfeln für dich",
    "длинная лестница {} стоит в подвале за яблоками у самой стены",
    "السلم الطويل {} في القبو خلف التفاح عند الجدار البعيد جدا",
    "梯子 {} 在地下室的苹果后面，请你明天把它拿上来给我用一下，谢谢。",
    "you said: {} is what we need for the beans, or not? 🪜",
]


@dataclass(frozen=True)
class Turn:
    """What one of the two says; `seconds` after the one before."""

    mine: bool
    word: str
    text: str
    quoted: str  # what it quotes of the other, "" if nothing
    seconds: int


@st.composite
def dialogues(draw: st.DrawFn) -> list[Turn]:
    sides = draw(st.lists(st.booleans(), min_size=1, max_size=10))
    turns: list[Turn] = []
    for number, mine in enumerate(sides):
        word = f"{'own' if mine else 'foreign'}{number}x"
        text = draw(st.sampled_from(FILLINGS)).format(word)
        others = [turn.text for turn in turns if turn.mine is not mine]
        quoted = draw(st.sampled_from(["", *others[-2:]]))
        turns.append(Turn(mine, word, text, quoted, draw(st.sampled_from([5, 700, 5000]))))
    return turns


def quoting(turn: Turn) -> str:
    return f"> {turn.quoted}\n\n{turn.text}" if turn.quoted else turn.text


def times(turns: list[Turn]) -> list[int]:
    seconds, all_ = START, []
    for turn in turns:
        seconds += turn.seconds
        all_.append(seconds)
    return all_


#: The files of an export by name, and options.
Export = tuple[dict[str, str], dict[str, Any]]


def chatgpt(turns: list[Turn]) -> Export:
    mapping: dict[str, Any] = {"r": {"id": "r", "message": None, "parent": None, "children": []}}
    last = "r"
    for number, (turn, time) in enumerate(zip(turns, times(turns), strict=True)):
        role = "user" if turn.mine else "assistant"
        spoken = {"content_type": "audio_transcription", "text": turn.text,
                  "direction": "in" if turn.mine else "out"}  # fmt: skip
        image = {"content_type": "image_asset_pointer", "asset_pointer": "x"}
        parts: list[Any] = [quoting(turn)] if number % 3 else [image, spoken]
        kind = "text" if number % 3 else "multimodal_text"
        message = {"id": f"m{number}", "author": {"role": role}, "create_time": time,
                   "content": {"content_type": kind, "parts": parts}}  # fmt: skip
        edited = message | {"content": {"content_type": "text", "parts": ["foreign draft of it"]}}
        mapping[f"old{number}"] = {"message": edited, "parent": last, "children": []}
        mapping[f"n{number}"] = {"message": message, "parent": last, "children": []}
        tool = {
            "author": {"role": "tool"},
            "content": {"content_type": "text", "parts": ["foreign"]},
        }
        mapping[f"t{number}"] = {"message": tool, "parent": f"n{number}", "children": []}
        last = f"t{number}"
    talk = {"conversation_id": "c", "create_time": START, "mapping": mapping, "current_node": last}
    return {"conversations.json": json.dumps([talk])}, {}


def claude(turns: list[Turn]) -> Export:
    messages = [
        {"uuid": f"m{number}", "sender": "human" if turn.mine else "assistant", "text": "",
         "content": [*([] if turn.mine else [{"type": "thinking", "thinking": "foreign"}]),
                     {"type": "text", "text": quoting(turn)}],
         "attachments": [{"file_name": "p.txt", "extracted_content": "foreign pasted text"}],
         "created_at": f"2024-04-01T10:{number:02}:00Z"}
        for number, turn in enumerate(turns)
    ]  # fmt: skip
    talk = {"uuid": "c", "created_at": "2024-04-01T10:00:00Z", "chat_messages": messages}
    projects = [{"uuid": "p", "prompt_template": "foreign", "docs": []}]
    return {"conversations.json": json.dumps([talk]), "projects.json": json.dumps(projects)}, {}


def openai(turns: list[Turn]) -> Export:
    messages = [
        {"role": "user" if turn.mine else "assistant", "content": quoting(turn)} for turn in turns
    ]
    return {"a.jsonl": json.dumps({"messages": messages}) + "\n"}, {"mine": "user"}


def taught(turns: list[Turn]) -> Export:
    """The person is the assistant's side of a fine-tuning file."""
    chat = [{"from": "gpt" if turn.mine else "human", "value": turn.text} for turn in turns]
    return {"a.jsonl": json.dumps({"conversations": chat}) + "\n"}, {}


def pairs_of(turns: list[Turn]) -> list[tuple[str, str]]:
    return [
        (before.text, turn.text)
        for before, turn in pairwise(turns)
        if turn.mine and not before.mine
    ]


def table(turns: list[Turn]) -> Export:
    out = io.StringIO()
    rows = [("instruction", "answer"), *pairs_of(turns)]
    csv.writer(out, delimiter=";|,\t"[len(turns) % 4]).writerows(rows)
    return {"a.csv": out.getvalue()}, {}


def slack(turns: list[Turn]) -> Export:
    users = [{"id": "U1", "name": "nora"}, {"id": "U2", "name": "sam"}]
    entries = []
    for number, (turn, time) in enumerate(zip(turns, times(turns), strict=True)):
        text = quoting(turn).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        code = "\n```\nforeign code\n```" if number % 2 else ""
        entries.append({"type": "message", "ts": f"{time}.000000", "text": text + code,
                        "user": "U2" if turn.mine else "U1"})  # fmt: skip
        entries.append({"type": "message", "subtype": "channel_topic", "ts": f"{time}.000001",
                        "user": "U2", "text": "foreign topic"})  # fmt: skip
    days = {"garden/2024-04-01.json": json.dumps(entries)}
    return {"users.json": json.dumps(users), **days}, {"me": "sam"}


def discord(turns: list[Turn]) -> Export:
    messages = [
        {"id": str(number), "type": "Reply" if turn.quoted else "Default", "content": quoting(turn),
         "timestamp": f"2024-04-{1 + number:02}T10:00:00+00:00",
         "author": {"id": "8" if turn.mine else "9", "name": "sam" if turn.mine else "nora"},
         "embeds": [{"title": "foreign", "description": "foreign"}]}
        for number, turn in enumerate(turns)
    ]  # fmt: skip
    head = {"guild": {"id": "0"}, "channel": {"id": "2", "type": "DirectTextChat", "name": "nora"}}
    return {"nora.json": json.dumps({**head, "messages": messages})}, {
        "me": "sam", "pause_hours": 999,
    }  # fmt: skip


def messenger(turns: list[Turn]) -> Export:
    def garbled(text: str) -> str:
        return text.encode().decode("latin-1")

    messages: list[dict[str, Any]] = []
    for turn, time in zip(turns, times(turns), strict=True):
        name = "Sam Two" if turn.mine else garbled("Nora Öne")
        messages.append({"sender_name": name, "timestamp_ms": time * 1000,
                         "content": garbled(turn.text)})  # fmt: skip
        note = "Sam Two hat foreign angeheftet." if turn.mine else garbled("Nora Öne foreign.")
        messages.append({"sender_name": name, "timestamp_ms": time * 1000 + 1, "content": note})
        messages.append({"sender_name": name, "timestamp_ms": time * 1000 + 2,
                         "content": "foreign words", "photos": [{"uri": "x"}]})  # fmt: skip
    value = {"participants": [{"name": garbled("Nora Öne")}, {"name": "Sam Two"}],
             "title": garbled("Nora Öne"), "messages": messages[::-1]}  # fmt: skip
    return {"inbox/nora_1/message_1.json": json.dumps(value)}, {"me": "Sam Two"}


def signal(turns: list[Turn]) -> Export:
    lines = [
        json.dumps({"date": f"2024-04-{1 + number:02}T10:00:00", "body": f"{turn.text}  ",
                    "sender": "Me" if turn.mine else "Nora", "sticker": "",
                    "quote": f"\n\n> foreign {turn.quoted}\n\n"})
        for number, turn in enumerate(turns)
    ]  # fmt: skip
    files = {"Nora/data.json": "\n".join(lines) + "\n", "Nora/chat.md": "foreign"}
    return files, {"me": "Me", "pause_hours": 999}


#: Of each form: the connector, and whether every own turn is a record or only one that answers.
FORMS: dict[str, tuple[str, Callable[[list[Turn]], Export], bool]] = {
    "chatgpt": ("chatgpt", chatgpt, True),
    "claude": ("claude", claude, True),
    "messages": ("finetune", openai, True),
    "sharegpt": ("finetune", taught, False),
    "table": ("table", table, False),
    "slack": ("slack", slack, False),
    "discord": ("discord", discord, False),
    "messenger": ("messenger", messenger, False),
    "signal": ("signal", signal, False),
}


def records_of(
    folder: Path, form: str, turns: list[Turn], as_zip: bool
) -> tuple[list[Record], ImportReport, list[str]]:
    name, write, _ = FORMS[form]
    files, options = write(turns)
    for file, text in files.items():
        path = folder / "export" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    source = folder / "export"
    if as_zip and len(files) + (form not in ("sharegpt", "messages", "table")) > 1:
        source = folder / "export.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
    elif len(files) == 1 and "/" not in next(iter(files)):
        source /= next(iter(files))
    connector, report = get_connector(name), ImportReport()
    seen = candidates(source)
    return list(connector.read(source, connector.configure(options), report)), report, seen


def wanted(turns: list[Turn], every: bool, table_: bool) -> list[str]:
    """The own words that have to be in a record."""
    if every:
        return [turn.word for turn in turns if turn.mine]
    if table_:
        return [
            turn.word for before, turn in pairwise(turns)
            if turn.mine and not before.mine
        ]  # fmt: skip
    first = next((n for n, turn in enumerate(turns) if not turn.mine), len(turns))
    # Of a run of one's own, what is joined with the first or stands after a pause answers nobody.
    return [
        turn.word for n, turn in enumerate(turns)
        if n > first and turn.mine and not turns[n - 1].mine
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(turns=dialogues(), as_zip=st.booleans())
def test_only_ones_own_words_are_outputs_and_each_once(
    tmp_path_factory: pytest.TempPathFactory, form: str, turns: list[Turn], as_zip: bool
) -> None:
    expected = wanted(turns, FORMS[form][2], form == "table")
    if not expected:
        return  # nothing to read is an error of its own
    records, report, seen = records_of(tmp_path_factory.mktemp("x"), form, turns, as_zip)
    outputs = [record.output for record in records]
    assert "foreign" not in "\n".join(outputs)
    for word in expected:
        assert sum(word in output for output in outputs) == 1, (word, outputs, report.skipped)
    for turn in turns:
        assert sum(turn.word in output for output in outputs) <= 1
    assert len({record.id for record in records}) == len(records) == report.read
    assert seen == [FORMS[form][0]], "auto takes it for what it is"
    if not FORMS[form][2]:
        assert all("own" not in text for r in records for text in r.input.values() if not r.output)
