"""The WhatsApp and Telegram connectors on made-up exports: only one's own side is a target."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import ConfigError, DataError, PfiError
from pfi.readers.report import ImportReport
from pfi.records import History
from pfi.sources.connectors import detect, get_connector
from pfi.sources.connectors.whatsapp import head_of
from pfi.tasks import get_task

START = datetime(2023, 1, 25, 9, 5, 7, tzinfo=UTC)


# WhatsApp -------------------------------------------------------------------------------

#: How phones write the same moment, 25 January 2023 21:05:07, by language.
STAMPS = [
    ("[25/01/2023, 21:05:07] ", True),  # iOS, en-GB
    ("[1/25/23, 9:05:07 PM] ", True),  # iOS, en-US
    ("[1/25/23, 9:05:07\u202fPM] ", True),
    ("1/25/23, 9:05 PM - ", False),  # Android, en-US
    ("1/25/23, 9:05\u202fPM - ", False),
    ("25/01/2023, 21:05 - ", False),
    ("25.01.23, 21:05 - ", False),  # de
    ("[25.01.23, 21:05:07] ", True),
    ("25/01/23 21:05 - ", False),  # es, older
    ("25/1/23, 9:05 p.\u00a0m. - ", False),  # es-MX
    ("25/01/2023 \u00e0 21:05 - ", False),  # fr, older
    ("[25/01/2023 21:05:07] ", True),
    ("25-01-2023 21:05 - ", False),  # nl
    ("2023-01-25 21:05 - ", False),  # sv
    ("[2023-01-25, 21:05:07] ", True),
    ("2023/1/25 21:05 - ", False),  # ja, zh
    ("2023/1/25 \u4e0b\u53489:05 - ", False),  # zh-TW
    ("[2023/1/25 \u4e0b\u53489:05:07] ", True),
    ("2023. 1. 25. \uc624\ud6c4 9:05 - ", False),  # ko
    ("[2023. 1. 25. \uc624\ud6c4 9:05:07] ", True),
    ("2023\ub144 1\uc6d4 25\uc77c \uc624\ud6c4 9:05 - ", False),
    ("25.1.2023 klo 21.05 - ", False),  # fi
    ("[25.1.2023 klo 21.05.07] ", True),
    ("2023. 01. 25. 21:05 - ", False),  # hu
    ("25.01.2023 \u0433., 21:05 \u0447. - ", False),  # bg
    ("\u0662\u0665/\u0661/\u0662\u0660\u0662\u0663, \u0669:\u0660\u0665 \u0645 - ", False),  # ar
    ("\u200e[25/01/2023, 21:05:07] ", True),
]


@pytest.mark.parametrize(("stamp", "seconds"), STAMPS, ids=[s for s, _ in STAMPS])
def test_whatsapp_dates_of_many_languages(tmp_path: Path, stamp: str, seconds: bool) -> None:
    chat = tmp_path / "WhatsApp Chat with Anna.txt"
    chat.write_text(f"{stamp}Anna: Are you there?\n{stamp}Me: Yes, at the door\n", "utf-8")
    [record], report = read("whatsapp", chat)
    expected = datetime(2023, 1, 25, 21, 5, 7 if seconds else 0, tzinfo=UTC)
    assert record.time == expected and not report.skipped
    assert (dict(record.input), record.output) == ({"chat": "Are you there?"}, "Yes, at the door")
    assert (record.task, record.source) == ("chat_reply", "whatsapp:WhatsApp Chat with Anna.txt")
    assert detect(chat) == "whatsapp"


def chat_text(lines: list[tuple[datetime, str, str]], form: str = "%d/%m/%Y, %H:%M - ") -> str:
    return "".join(f"{time.strftime(form)}{author}: {text}\n" for time, author, text in lines)


def minutes(*texts: tuple[int, str, str]) -> list[tuple[datetime, str, str]]:
    return [(START + timedelta(minutes=minute), author, text) for minute, author, text in texts]


def test_whatsapp_finds_the_order_of_day_and_month(tmp_path: Path) -> None:
    days = [START.replace(month=month, day=day) for month in (1, 2) for day in (2, 3, 5)]
    lines = [pair for t in days for pair in ((t, "Anna", f"hi {t:%d}"), (t, "Me", f"oh {t:%d%m}"))]
    for form in ("%d/%m/%y, %H:%M - ", "%m/%d/%y, %H:%M - ", "%y/%m/%d, %H:%M - "):
        chat = tmp_path / "WhatsApp Chat with Anna.txt"
        chat.write_text(chat_text(lines, form))
        records, _ = read("whatsapp", chat)
        assert [record.time for record in records] == [t.replace(second=0) for t in days], form
    assert read("whatsapp", chat, {"order": "dmy"})[0] != records


def test_whatsapp_joins_and_windows(tmp_path: Path) -> None:
    chat = tmp_path / "_chat.txt"
    lines = minutes(
        (0, "Me", "Anyone?"), (1, "Anna", "Yes"), (2, "Anna", "here\nand there"),
        (3, "Bo", "Me too"),
        (4, "Me", "Good"), (5, "Me", "Let us go"), (40, "Me", "Still waiting"),
        (41, "Anna", "one"), (42, "Bo", "two"), (43, "Anna", "three"), (44, "Me", "four"),
        (50, "Anna", "night"), (50 + 48 * 60, "Me", "morning"),
    )  # fmt: skip
    chat.write_text(chat_text(lines))
    records, report = read("whatsapp", chat, {"me": "me", "context": 2})
    assert [(record.input["chat"], record.output) for record in records] == [
        ("A: Yes\nhere\nand there\nB: Me too", "Good\nLet us go"),
        ("B: two\nA: three", "four"),
    ]
    assert report.skipped == {"it answers nobody": 3}
    assert report.examples["it answers nobody"] == "_chat.txt, 2023-01-25 09:05"


def test_whatsapp_names_are_letters_in_inputs(tmp_path: Path) -> None:
    chat = tmp_path / "_chat.txt"
    lines = minutes(
        (0, "Anna Berg", "Bo Li, ask Me Too"), (1, "Bo Li", "Anna said it, Annabel not"),
        (2, "Me Too", "Hi Anna"),
    )  # fmt: skip
    chat.write_text(chat_text(lines))
    [record], _ = read("whatsapp", chat, {"me": "Me Too"})
    assert record.input["chat"] == "A: B, ask Me Too\nB: A said it, Annabel not"
    [record], _ = read("whatsapp", chat, {"me": "Me Too", "keep_names": True})
    assert record.input["chat"].startswith("Anna Berg: Bo Li, ask")


def test_whatsapp_skips_and_counts(tmp_path: Path) -> None:
    chat = tmp_path / "_chat.txt"
    rows = [
        "\ufeff[25/01/2023, 09:00:00] Club: \u200eMessages and calls are end-to-end encrypted.",
        "[25/01/2023, 09:00:01] Anna: \u200eimage omitted",
        "\u200e[25/01/2023, 09:00:02] Me: \u200e<attached: 0001-PHOTO.jpg>",
        "[25/01/2023, 09:00:03] Anna: First",
        "[25/01/2023, 09:00:04] Me: This message was deleted.",
        "[25/01/2023, 09:00:05] Me: Second \u200e<This message was edited>",
        "[25/01/2023, 09:00:06] Anna: <Media omitted>",
        "[25/01/2023, 09:00:07] Anna: IMG-1.jpg (file attached)",
        "[25/01/2023, 09:00:08] Anna: https://example.org/x?y=z",
        "[25/01/2023, 09:00:09] Anna: ................",
        "[45/45/2023, 09:00:09] Anna: When?",
        "[25/01/2023, 09:00:10] \u200eAnna left",
        "[25/01/2023, 09:00:11] Anna: Third",
        "[25/01/2023, 09:00:12] Me: She wrote:",
        "[20/01/2023, 10:00:00] Me: That is what Anna pasted",
        "[25/01/2023, 09:00:13] Me: " + "x" * 3000,
    ]
    chat.write_text("\r\n".join(rows), "utf-8")
    records, report = read("whatsapp", chat, {"me": "Me", "join_minutes": 0})
    assert [(r.input["chat"], r.output) for r in records] == [
        ("First", "Second"), ("Third", "She wrote:"),
    ]  # fmt: skip
    assert report.skipped == {
        "it is a note of WhatsApp, media or a call": 6,
        "it was deleted": 1,
        "it is only a link": 1,
        "it holds no words": 1,
        "its date is not understood": 1,
        "its date is before that of the line above": 1,
        "it answers nobody": 1,
    }
    assert report.examples["it was deleted"] == "_chat.txt, line 5"


def test_whatsapp_needs_to_know_who_one_is(tmp_path: Path) -> None:
    lines = minutes((0, "Anna", "hi"), (1, "Me", "ho"), (2, "Bo", "ha"), (3, "Me", "hm"))
    chat = tmp_path / "_chat.txt"
    chat.write_text(chat_text(lines))
    with pytest.raises(ConfigError, match=r"not clear who you are.*'Me', 'Anna', 'Bo'"):
        read("whatsapp", chat)
    with pytest.raises(ConfigError, match="nobody is called 'Mee'"):
        read("whatsapp", chat, {"me": "Mee"})
    with pytest.raises(ConfigError, match="unknown time zone 'Mars'"):
        read("whatsapp", chat, {"me": "Me", "zone": "Mars"})
    berlin, _ = read("whatsapp", chat, {"me": "Me", "zone": "Europe/Berlin"})
    assert berlin[0].time == (START + timedelta(minutes=1)).replace(second=0, hour=8)
    home = tmp_path / "whatsapp" / "Home of Me" / "_chat.txt"
    home.parent.mkdir(parents=True)
    home.write_text(chat_text(lines[:2]))
    with pytest.raises(ConfigError, match="not clear who you are"):
        read("whatsapp", home)
    (tmp_path / "empty.txt").write_text("no chat\n")
    with pytest.raises(DataError, match="not a message"):
        read("whatsapp", tmp_path / "empty.txt")


def test_whatsapp_zip_and_folder(tmp_path: Path) -> None:
    text = chat_text(minutes((0, "Anna", "hi there"), (1, "Me", "hello you")))
    archive = tmp_path / "WhatsApp Chat - Anna.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("_chat.txt", text)
        file.writestr("notes.txt", text.replace("hello", "stolen"))
    [record], _ = read("whatsapp", archive)
    assert record.output == "hello you" and detect(archive) == "whatsapp"
    (tmp_path / "WhatsApp-Chat mit Bo.txt").write_text(
        text.replace("Anna", "Bo").replace("hi", "ah")
    )
    found, _ = read("whatsapp", tmp_path)
    assert {r.input["chat"] for r in found} == {"hi there", "ah there"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("../_chat.txt", "outside itself"), ("/_chat.txt", "outside itself"),
     ("a\\..\\_chat.txt", None), ("C:/_chat.txt", "outside itself")],
)  # fmt: skip
def test_zips_that_reach_outside_are_refused(
    tmp_path: Path, name: str, expected: str | None
) -> None:
    archive = tmp_path / "WhatsApp Chat - Anna.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, chat_text(minutes((0, "Anna", "hi"), (1, "Me", "ho"))))
    with pytest.raises(DataError, match=expected or "outside itself"):
        read("whatsapp", archive)


def test_zip_bombs_and_damaged_zips_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "WhatsApp Chat - Anna.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("_chat.txt", b"x" * (20 << 20))
    with pytest.raises(DataError, match="would swell to 20971520"):
        read("whatsapp", archive)
    text = chat_text(minutes(*((n, "Anna" if n % 2 else "Me", f"word {n}") for n in range(900))))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("_chat.txt", text)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 255
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot be read|nothing|the zip"):
        read("whatsapp", archive)
    archive.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(DataError, match="the zip cannot be read"):
        read("whatsapp", archive)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp", "Zs"]),
                min_size=1, max_size=8)  # fmt: skip
TALK = st.lists(
    st.tuples(st.sampled_from(["Anna", "Me", "Bo"]), st.lists(WORDS, min_size=1, max_size=5),
              st.integers(0, 3000)),
    min_size=2, max_size=12,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    TALK, st.sampled_from(["[%d/%m/%Y, %H:%M:%S] ", "%Y-%m-%d %H:%M - ", "%m/%d/%y, %I:%M %p - "])
)
def test_whatsapp_only_ones_own_words_are_outputs(
    tmp_path_factory: pytest.TempPathFactory, talk: list[tuple[str, list[str], int]], form: str
) -> None:
    """Every word carries its author; none of the others' may be in an output."""
    time, lines = START, []
    for author, words, pause in talk:
        time += timedelta(minutes=pause)
        lines.append((time, author, " ".join(f"{author}{word}" for word in words)))
    chat = tmp_path_factory.mktemp("chat") / "_chat.txt"
    chat.write_text(chat_text(lines, form), "utf-8")
    connector, report = get_connector("whatsapp"), ImportReport()
    try:
        records = list(connector.read(chat, connector.configure({"me": "Me"}), report))
    except PfiError:
        records = []
    for record in records:
        assert all(word.startswith("Me") for word in record.output.split())
        assert not any(word.startswith("Me") for word in record.input["chat"].split())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_whatsapp_heads_never_raise(text: str) -> None:
    head_of(text)
    head_of(f"[25/01/2023, 21:05:07] {text}")
    head_of(f"{text}, 21:05 - x: y")


# Telegram -------------------------------------------------------------------------------


def message(number: int, author: str, text: Any, **more: Any) -> dict[str, Any]:
    time = START + timedelta(minutes=number)
    return {
        "id": number, "type": "message", "date": f"{time:%Y-%m-%dT%H:%M:%S}",
        "date_unixtime": str(int(time.timestamp())), "from": author,
        "from_id": f"user{ord(author[0])}", "text": text, **more,
    }  # fmt: skip


def one_chat(*messages: Any, kind: str = "personal_chat", name: str = "Anna") -> dict[str, Any]:
    return {"name": name, "type": kind, "id": 7, "messages": list(messages)}


def result(folder: Path, value: Any) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
    return path


def test_telegram_single_chat(tmp_path: Path) -> None:
    path = result(
        tmp_path,
        one_chat(
            message(1, "Anna", "How is Anna's tea?"),
            message(2, "Me", ["It is ", {"type": "bold", "text": "very"}, " good"]),
            message(3, "Me", "and hot", edited="2023-01-25T10:00:00"),
        ),
    )
    [record], report = read("telegram", path, {"me": "Me"})
    assert (record.id, record.output) == ("telegram-7-2", "It is very good\nand hot")
    assert record.input["chat"] == "How is A's tea?" and not report.skipped
    assert record.time == START + timedelta(minutes=2) and record.task == "chat_reply"
    assert read("telegram", tmp_path, {"me": "user77"})[0][0].id == record.id
    assert read("telegram", tmp_path, {"me": "77"})[0][0].id == record.id
    assert read("telegram", path)[0][0].id == record.id  # the chat is named after the other
    assert detect(path) == detect(tmp_path) == "telegram"


def test_telegram_whole_account(tmp_path: Path) -> None:
    value = {
        "about": "x",
        "personal_information": {"user_id": 77, "first_name": "Me"},
        "frequent_contacts": {"list": [{"id": 1}]},
        "chats": {
            "about": "y",
            "list": [
                one_chat(message(1, "Anna", "tea?"), message(2, "Me", "yes")),
                one_chat(message(1, "Me", "milk"), kind="saved_messages"),
                one_chat(message(1, "Bo", "hi"), message(2, "Me", "ho"), kind="private_group")
                | {"id": 8},
                one_chat(message(1, "Cy", "ad"), message(2, "Me", "no"), kind="public_channel"),
                one_chat(),
            ],
        },
        "left_chats": {
            "list": [one_chat(message(1, "Bo", "bye"), message(2, "Me", "ciao")) | {"id": 9}]
        },
    }
    records, report = read("telegram", result(tmp_path, value))
    assert [(r.id, r.input["chat"], r.output) for r in records] == [
        ("telegram-7-2", "tea?", "yes"), ("telegram-8-2", "hi", "ho"),
        ("telegram-9-2", "bye", "ciao"),
    ]  # fmt: skip
    assert report.skipped == {"it is a note to oneself": 1, "it is in a channel": 2}


def test_telegram_skips_and_counts(tmp_path: Path) -> None:
    odd: list[Any] = [
        5, None, [], {}, {"type": "message"},
        message(10, "Me", "x", from_id=None), message(11, "Me", "x", date=None, date_unixtime=None),
        message(12, "Me", "x", date_unixtime="soon", date=[]), message(13, "Me", {"a": 1}),
        message(14, "Me", "x", forwarded_from="Anna"), message(15, "Me", "", photo="p.jpg"),
        message(16, "Me", "", media_type="sticker"), message(17, "Me", "x", via_bot="@gif"),
        message(18, "Me", "\ud800"), message(19, "Me", "x") | {"id": None},
        {"id": 20, "type": "service", "actor": "Me", "action": "phone_call"},
    ]  # fmt: skip
    value = one_chat(message(1, "Anna", "first"), *odd, message(30, "Me", "second"))
    path = tmp_path / "result.json"
    path.write_text(json.dumps(value))
    [record], report = read("telegram", path, {"me": "Me"})
    assert (record.input["chat"], record.output) == ("first", "second")
    assert report.skipped.total() == len(odd)
    assert report.skipped["it is forwarded"] == 1
    assert report.skipped["it is a picture, a file or other media"] == 2
    assert report.examples["it is forwarded"] == "Anna, message 14"


def test_telegram_names_that_two_have(tmp_path: Path) -> None:
    """Somebody who calls themselves like this person is still somebody else."""
    value = one_chat(
        message(1, "Me", "stranger's words", from_id="user1"), message(2, "Me", "own words")
    )
    path = result(tmp_path, value)
    with pytest.raises(ConfigError, match=r"several are called 'Me'.*user1, user77"):
        read("telegram", path, {"me": "Me"})
    [record], _ = read("telegram", path, {"me": "user77"})
    assert (record.input["chat"], record.output) == ("stranger's words", "own words")


def test_telegram_cut_off_and_foreign_files(tmp_path: Path) -> None:
    value = one_chat(*(message(n, "Me" if n % 2 else "Anna", f"word {n}") for n in range(20)))
    path = result(tmp_path, value)
    whole, _ = read("telegram", path, {"me": "Me"})
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    some, report = read("telegram", path, {"me": "Me"})
    assert 0 < len(some) < len(whole) and some == whole[: len(some)]
    assert any("the file ends there" in reason for reason in report.skipped)
    for text in ("[]", "{}", '"x"', "", "{", '{"messages": {"a": 1}}', "\0", '{"messages": [1]}'):
        path.write_text(text)
        with pytest.raises(PfiError) as caught:
            read("telegram", path, {"me": "Me"})
        assert "\n" not in str(caught.value)


def test_telegram_times_without_a_zone(tmp_path: Path) -> None:
    old = [message(1, "Anna", "a") | {"date_unixtime": None}, message(2, "Me", "b")]
    del old[1]["date_unixtime"]
    path = result(tmp_path, one_chat(*old))
    [record], _ = read("telegram", path, {"me": "Me", "zone": "America/New_York"})
    assert record.time == START + timedelta(minutes=2, hours=5)


def test_large_chats_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with path.open("w") as file:
        file.write('{"name": "Anna", "type": "personal_chat", "id": 7, "messages": [')
        for n in range(4_000):
            file.write(json.dumps(message(n, "Me" if n % 2 else "Anna", "word " * 200)) + ",\n")
        file.write(json.dumps(message(4_000, "Anna", "end")) + "]}")
    connector, report = get_connector("telegram"), ImportReport()
    tracemalloc.start()
    count = sum(1 for _ in connector.read(path, connector.configure({"me": "Me"}), report))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2_000 and peak < 1_500_000 < path.stat().st_size


def test_the_task_makes_examples(tmp_path: Path) -> None:
    path = result(tmp_path, one_chat(message(1, "Anna", "tea?"), message(2, "Me", "yes please")))
    records, _ = read("telegram", path, {"me": "Me"})
    [example] = get_task("chat_reply").examples(History("me", records), None)  # type: ignore[arg-type]
    assert example.target == "yes please" and "tea?" in example.prompt
