"""Whose words become outputs: planted words of two people in every form of tables, assistants' and
chats' exports, and of archives of public posts.

No word of the other one is ever in an output, and each of one's own that answers something is in
exactly one record.  Texts are in several scripts, quote each other, hold code and stand beside
notes of programs; exports are files, folders, zips and tars.
"""

from __future__ import annotations

import csv
import html
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bluesky_repository import repository
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
Export = tuple[dict[str, str | bytes], dict[str, Any]]


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


def frames(turns: list[Turn]) -> Export:
    """Signal's own export."""
    lines: list[dict[str, Any]] = [
        {"account": {"givenName": "Sam"}},
        {"recipient": {"id": "1", "self": {}}},
        {"recipient": {"id": "2", "contact": {"profileGivenName": "Nora"}}},
        {"chat": {"id": "9", "recipientId": "2"}},
    ]
    for turn, time in zip(turns, times(turns), strict=True):
        quoted = {"quote": {"authorId": "2", "text": {"body": f"foreign {turn.quoted}"}}}
        item = {"chatId": "9", "authorId": "1" if turn.mine else "2", "dateSent": str(time * 1000),
                "outgoing" if turn.mine else "incoming": {},
                "standardMessage": {"text": {"body": turn.text}, **quoted},
                "revisions": [{"standardMessage": {"text": {"body": "foreign"}}}]}  # fmt: skip
        lines.append({"chatItem": item})
    noted = {"chatId": "9", "authorId": "1", "dateSent": str(START * 1000 - 1), "directionless": {},
             "updateMessage": {"learnedProfileChange": "foreign"}}  # fmt: skip
    lines.append({"chatItem": noted})
    return {"main.jsonl": "\n".join(map(json.dumps, lines))}, {}


def sigtop(turns: list[Turn]) -> Export:
    messages = [
        {"id": f"m{number}", "conversationId": "c", "type": "outgoing" if turn.mine else "incoming",
         "sent_at": time * 1000, "body": turn.text, "quote": {"text": f"foreign {turn.quoted}"}}
        for number, (turn, time) in enumerate(zip(turns, times(turns), strict=True))
    ]  # fmt: skip
    return {"Nora (1).json": json.dumps(messages)}, {}


def tweets(turns: list[Turn]) -> Export:
    entries = []
    for number, turn in enumerate(turns):
        form = [f"> {turn.quoted}\n\n{turn.text}", f"“@nora: {turn.quoted}” {turn.text}",
                f"{turn.text} RT @nora: {turn.quoted}"][number % 3]  # fmt: skip
        own = f"@nora {form if turn.quoted else turn.text} https://t.co/a{number}"
        text = own if turn.mine else f"RT @nora: {turn.text}"
        entries.append({"tweet": {
            "id_str": str(10 + number), "full_text": html.escape(text, quote=False),
            "created_at": f"Wed Oct 10 20:{number:02}:24 +0000 2018",
            "entities": {"urls": [{"url": f"https://t.co/a{number}",
                                   "expanded_url": "https://x.com/foreign/status/1"}]},
        }})  # fmt: skip
    likes = [{"like": {"tweetId": "1", "fullText": f"foreign {turn.text}"}} for turn in turns]
    account = [{"account": {"username": "sam", "accountId": "7"}}]
    named = {"tweets": entries, "like": likes, "account": account}
    return {
        f"data/{name}.js": f"window.YTD.{name}.part0 = {json.dumps(value)}"
        for name, value in named.items()
    }, {}


def months(turns: list[Turn]) -> Export:
    """X's archive up to 2018."""
    entries = [
        {"id": 10 + number, "text": quoting(turn) if turn.mine else f"RT @nora: {turn.text}",
         "created_at": f"2013-01-31 10:{number:02}:00 +0000", "user": {"id": 7}}
        for number, turn in enumerate(turns)
    ]  # fmt: skip
    text = f"Grailbird.data.tweets_2013_01 =\n{json.dumps(entries)}"
    return {"data/js/tweets/2013_01.js": text}, {}


def mastodon(turns: list[Turn]) -> Export:
    actor, items = "https://a.example/users/sam", []
    for number, turn in enumerate(turns):
        quote = f"<blockquote><p>{html.escape(turn.quoted)}</p></blockquote>" if turn.quoted else ""
        note = {"id": f"{actor}/statuses/{number}", "type": "Note", "attributedTo": actor,
                "published": f"2024-04-01T10:{number:02}:00Z",
                "content": f"{quote}<p>{html.escape(turn.text)}</p>"}  # fmt: skip
        if turn.mine:
            items.append({"type": "Create", "actor": actor, "object": note})
        elif number % 2:
            items.append({"type": "Announce", "actor": actor, "object": note})
        else:
            other = note | {"attributedTo": "https://b.example/users/nora"}
            items.append({"type": "Create", "actor": actor, "object": other})
    outbox = {"type": "OrderedCollection", "orderedItems": items}
    person = {"id": actor, "preferredUsername": "sam"}
    return {"outbox.json": json.dumps(outbox), "actor.json": json.dumps(person)}, {}


def reddit(turns: list[Turn]) -> Export:
    out, links = io.StringIO(), io.StringIO()
    rows = [["id", "date", "subreddit", "link", "parent", "body"]]
    shared = [["id", "date", "subreddit", "title", "url", "body"]]
    for number, turn in enumerate(turns):
        start = [f"c{number}", f"2024-04-01 10:{number:02}:00 UTC", "garden"]
        if turn.mine:
            rows.append([*start, "https://x", "", quoting(turn)])
        else:
            shared.append([*start, turn.text, "https://news.example/a", ""])
    csv.writer(out).writerows(rows)
    csv.writer(links).writerows(shared)
    return {"comments.csv": out.getvalue(), "posts.csv": links.getvalue()}, {}


def bluesky(turns: list[Turn]) -> Export:
    records = {
        f"app.bsky.feed.post/{number:013}": {
            "$type": "app.bsky.feed.post", "text": quoting(turn),
            "createdAt": f"2024-04-01T10:{number:02}:00Z",
            "embed": {"$type": "app.bsky.embed.external",
                      "external": {"title": "foreign", "description": "foreign"}}}
        for number, turn in enumerate(turns) if turn.mine
    }  # fmt: skip
    theirs = [
        {"$type": "app.bsky.feed.post", "text": turn.text, "createdAt": "2024-04-01T10:00:00Z"}
        for turn in turns if not turn.mine
    ]  # fmt: skip
    return {"repo.car": repository(records, stray=theirs)}, {}


def facebook(turns: list[Turn]) -> Export:
    def garbled(text: str) -> str:
        return text.encode().decode("latin-1")

    entries: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        page = [{"data": [{"external_context": {"name": garbled(turn.text)}}]}]
        data = {"post": garbled(quoting(turn))} if turn.mine else {"update_timestamp": 5}
        entries.append({"timestamp": START + number, "title": "Sam shared foreign", "data": [data],
                        "attachments": [] if turn.mine else page})  # fmt: skip
    return {"posts/your_posts_1.json": json.dumps(entries)}, {}


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
    "frames": ("signal", frames, False),
    "sigtop": ("signal", sigtop, False),
    "tweets": ("twitter", tweets, True),
    "months": ("twitter", months, True),
    "mastodon": ("mastodon", mastodon, True),
    "reddit": ("reddit", reddit, True),
    "bluesky": ("bluesky", bluesky, True),
    "facebook": ("messenger", facebook, True),
}
#: Forms that are read from tars, too.
TARS = {
    "signal", "frames", "sigtop", "messenger", "tweets", "months", "mastodon", "reddit", "bluesky",
    "facebook",
}  # fmt: skip


def records_of(
    folder: Path, form: str, turns: list[Turn], container: str
) -> tuple[list[Record], ImportReport, list[str]]:
    name, write, _ = FORMS[form]
    texts, options = write(turns)
    files = {name: text.encode() if isinstance(text, str) else text for name, text in texts.items()}
    for file, data in files.items():
        path = folder / "export" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = folder / "export"
    if container == "tar" and form in TARS:
        source = folder / "export.tgz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(folder / "export", "export")
    elif container != "folder" and len(files) + (form not in ("sharegpt", "messages", "table")) > 1:
        source = folder / "export.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file, data in files.items():
                archive.writestr(file, data)
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
@given(turns=dialogues(), container=st.sampled_from(["folder", "zip", "tar"]))
def test_only_ones_own_words_are_outputs_and_each_once(
    tmp_path_factory: pytest.TempPathFactory, form: str, turns: list[Turn], container: str
) -> None:
    expected = wanted(turns, FORMS[form][2], form == "table")
    if not expected:
        return  # nothing to read is an error of its own
    records, report, seen = records_of(tmp_path_factory.mktemp("x"), form, turns, container)
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
