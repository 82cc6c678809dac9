"""Who wrote what in chats: planted words of others are in no output, one's own in one record.

Chats of two to four people are written as phones of many regions export them, with what WhatsApp
and Telegram put between people's words, and with lines that nobody can be named for.  The forms of
dates are those in starkdmi/whats_json (`test/data`), the notes those there and in gesiscss/WhatsR,
the objects of Telegram those in frozenspider/chat-history-manager-rust (`resources/test`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import get_connector

ME = "Sam Two"
OTHERS = ["Nora", "Ann-Lee Ó Briain", "+40 521 028 61 88", "Mia 🌻", "אבי", "Müller, Jörg"]
WORD = re.compile(r"(?:own|other|nobody)\d+z")
MARK = "\u200e"


def ascii_to(digits: str) -> Callable[[str], str]:
    """Digits of another script."""
    table = str.maketrans("0123456789", digits)
    return lambda text: text.translate(table)


def plain_stamp(form: str) -> Callable[[datetime], str]:
    return lambda t: t.strftime(form)


def numbers(t: datetime) -> dict[str, Any]:
    return {
        "d": t.day,
        "m": t.month,
        "y": t.year,
        "h": t.hour % 12 or 12,
        "H": t.hour,
        "M": t.minute,
    }


def halves(form: str, am: str, pm: str) -> Callable[[datetime], str]:
    """A clock of twelve hours with words for the halves of the day."""
    return lambda t: form.format(
        **numbers(t), yy=t.year % 100, S=t.second, p=am if t.hour < 12 else pm
    )


def four_parts(t: datetime) -> str:
    """English words for the parts of the day."""
    part = "at night"
    for until, words in (
        (6, "at night"),
        (12, "in the morning"),
        (18, "in the afternoon"),
        (21, "in the evening"),
    ):
        if t.hour < until:
            part = words
            break
    return "{d:02}/{m:02}/{y}, {h}:{M:02} ".format(**numbers(t)) + part + " - "


def shifted(form: str, years: int) -> Callable[[datetime], str]:
    """A calendar whose years are counted from elsewhere."""
    return lambda t: form.format(**(numbers(t) | {"y": t.year + years, "S": t.second}))


ARABIC, PERSIAN = ascii_to("٠١٢٣٤٥٦٧٨٩"), ascii_to("۰۱۲۳۴۵۶۷۸۹")
arabic_iphone = halves("[{d}\u200f/{m}\u200f/{y}، {h}:{M:02}:{S:02}\u00a0{p}] ", "ص", "م")
#: How phones write the beginning of a message: name, stamp, whether the media of iPhones are in it.
STAMPS: list[tuple[str, Callable[[datetime], str], bool]] = [
    ("Android, en-GB", plain_stamp("%d/%m/%Y, %H:%M - "), False),
    ("Android, de", plain_stamp("%d.%m.%y, %H:%M - "), False),
    ("Android, en-US", halves("{m}/{d}/{yy:02}, {h}:{M:02}\u202f{p} - ", "AM", "PM"), False),
    (
        "Android, es",
        halves("{d}/{m}/{yy:02}, {h}:{M:02} {p} - ", "a.\u00a0m.", "p.\u00a0m."),
        False,
    ),
    ("Android, tr", halves("{d:02}.{m:02}.{y} {p} {h}:{M:02} - ", "ÖÖ", "ÖS"), False),
    ("Android, hu", halves("{y}. {m:02}. {d:02}. {p} {h}:{M:02} - ", "de.", "du."), False),
    ("Android, fi", halves("{d}.{m}.{y} klo {h}.{M:02} {p} - ", "ap.", "ip."), False),
    ("Android, el", halves("{d}/{m}/{y}, {h}:{M:02} {p} - ", "π.μ.", "μ.μ."), False),
    ("Android, en with words", four_parts, False),
    ("Android, sv", plain_stamp("%Y-%m-%d %H:%M - "), False),
    ("Android, zh-TW", halves("{y}/{m}/{d} {p}{h}:{M:02} - ", "上午", "下午"), False),
    ("Android, ko", halves("{y}년 {m}월 {d}일 {p} {h}:{M:02} - ", "오전", "오후"), False),
    ("Android, 2013", plain_stamp("%H:%M, %d %b %Y - "), False),
    ("iPhone, en-GB", plain_stamp("[%d/%m/%Y, %H:%M:%S] "), True),
    ("iPhone, vi", lambda t: f"[{t:%H:%M:%S}, {t.month}/{t.day}/{t:%y}] ", True),
    ("iPhone, ar", lambda t: ARABIC(arabic_iphone(t)), True),
    ("iPhone, th", shifted("[{d}/{m}/{y} BE, {H:02}:{M:02}:{S:02}] ", 543), True),
    ("iPhone, ja", lambda t: f"[R{t.year - 2018}/{t.month}/{t.day} {t:%H:%M:%S}] ", True),
    ("iPhone, id", plain_stamp("[%d/%m/%y %H.%M.%S] "), True),
    ("iPhone, 2015", plain_stamp("%d/%m/%y %H:%M:%S: "), True),
    ("iPhone, 2016", halves("{m}/{d}/{yy:02}, {h}:{M:02}:{S:02} {p}: ", "AM", "PM"), True),
    ("iPhone, fa", lambda t: PERSIAN(f"[{t.year}/{t.month}/{t.day}،\u200f {t:%H:%M:%S}] "), True),
]
NOTES = [
    "Messages and calls are end-to-end encrypted. Learn more.",
    "Nora created this group",
    "You joined",
    "Your security code with Nora changed. Tap to learn more.",
    "Nora pinned a message",
    "Nora changed their phone number to a new number. Tap to message or add the new number.",
    "Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.",
    "Сообщения и звонки защищены сквозным шифрованием",
]
ANDROID_PLACEHOLDERS = [
    "<Media omitted>",
    "<Medien ausgeschlossen>",
    "<Без медиафайлов>",
    f"{MARK}IMG-20240501-WA0003.jpg (file attached)",
    f"{MARK}TR.vcf (soubor byl přiložen)",
    "This message was deleted",
    "🚫 You deleted this message",
    "Tuto zprávu jste odstranil/a.",
    "U hebt dit bericht verwijderd",
    "Missed voice call",
    "Пропущенный видеозвонок",
    "Waiting for this message",
    "location: https://maps.google.com/?q=51.5,-0.1",
    "null",
    "Pimlico\nLondon\nhttps://foursquare.com/v/4e89af95e5fa",
    "live location shared",
    "POLL:\nWhen?\nOPTION: Now (2 votes)\nOPTION: Never (0 votes)",
    "https://example.org/a",
]
IPHONE_PLACEHOLDERS = [
    f"{MARK}image omitted",
    "\u200fلم يتم إدراج الصورة",
    f"shed.pdf • {MARK}2 pages {MARK}document omitted",
    f"bill 7.docx {MARK}<attached: 00000012-bill 7.docx>",
    f"{MARK}<attached: 0001-PHOTO.jpg>",
    f"<{MARK}audio omitted>",
    f"{MARK}You deleted this message.",
    f"{MARK}Location: https://maps.google.com/?q=1.5,-0.1",
    f"{MARK}Voice call, {MARK}No answer",
    f"{MARK}POLL:\nWhen?\n{MARK}OPTION: Now ({MARK}2 votes)",
]


@dataclass
class Story:
    """What is said, round by round: others ask, one answers; each word says who wrote it."""

    random: Random
    others: list[str]
    time: datetime
    own: list[str] = field(default_factory=list)
    count: int = 0

    def words(self, kind: str) -> str:
        """Some new words of somebody, in one or more lines."""
        words = []
        for _ in range(self.random.randint(1, 4)):
            self.count += 1
            words.append(f"{kind}{self.count}z")
        if kind == "own":
            self.own += words
        return "".join(word + self.random.choice(" \n  ") for word in words).strip()

    def later(self) -> datetime:
        self.time += timedelta(seconds=self.random.randint(5, 200))
        return self.time

    def pause(self) -> None:
        """From round to round hours or days pass, now and then into another month."""
        self.time += timedelta(hours=self.random.choice([1, 30, 24 * 9]))


def whatsapp_chat(story: Story, stamp: Callable[[datetime], str], iphone: bool) -> str:
    """A chat as a phone exports it."""
    random, lines = story.random, []
    placeholders = IPHONE_PLACEHOLDERS if iphone else ANDROID_PLACEHOLDERS

    def say(author: str, text: str) -> None:
        lead = MARK if iphone and re.search("omitted|attached", text) else ""
        lines.append(f"{lead}{stamp(story.later())}{author}: {text}")

    for _ in range(random.randint(2, 5)):
        if random.random() < 0.4:
            note = random.choice(NOTES)
            lines.append(stamp(story.time) + (f"Group: {MARK}{note}" if iphone else note))
        if random.random() < 0.4:
            say(random.choice(story.others), random.choice(placeholders))
        for _ in range(random.randint(1, 3)):
            speaker = random.choice(story.others)
            say(speaker, story.words("other"))
        for _ in range(random.randint(1, 3)):
            if random.random() < 0.3:
                say(ME, random.choice(placeholders))
            caption = "<Media omitted>\n" if not iphone and random.random() < 0.2 else ""
            edited = f" {MARK}<This message was edited>" if random.random() < 0.1 else ""
            say(ME, caption + story.words("own") + edited)
        if random.random() < 0.6:
            lines.append(nobodys(story, stamp, speaker))
        story.pause()
    return "\n".join(lines) + "\n"


def nobodys(story: Story, stamp: Callable[[datetime], str], speaker: str) -> str:
    """Lines after one's own message that are not one's own; `speaker` writes in the chat."""
    other, random = story.others[0], story.random
    words = [story.words("nobody") for _ in range(3)]
    head = stamp(story.time)
    damaged = re.sub(r"(?<=[\d٠-٩۰-۹])[:.](?=[\d٠-٩۰-۹]{2}(?![\d٠-٩۰-۹./]))", "¿", head)
    first = random.choice([
        f"{damaged}{other}: {words[0]}",
        f"?{head}{other}: {words[0]}",
        f"[25/01, 21:05] {other}: {words[0]}",
        f"[21:05, 25/01/2023] {other}: {words[0]}",
        f"{other}, [25.01.23 21:05]\n{words[0]}",
        f"> {words[0].splitlines()[0]}\n[1/25, 9:05 PM] {other}: {words[1]}",
        f"{speaker}: {words[0]}",
    ])  # fmt: skip
    return f"{first}\n{words[2]}"


def judge(story: Story, records: list[Record]) -> None:
    """No output holds another's word, and each own word is in one record's output, once."""
    found = Counter(word for record in records for word in WORD.findall(record.output))
    assert [word for word in found if not word.startswith("own")] == []
    assert {word: found[word] for word in story.own} == dict.fromkeys(story.own, 1)
    for record in records:
        left = WORD.sub("", record.output)
        assert not re.search(r"\w", left), f"not anybody's words: {record.output!r}"
        assert "own" not in str(record.input)


def imported(name: str, path: Path, **options: Any) -> tuple[list[Record], ImportReport]:
    connector, report = get_connector(name), ImportReport()
    return list(connector.read(path, connector.configure(options), report)), report


def new_story(seed: int) -> Story:
    random = Random(seed)
    others = random.sample(OTHERS, random.randint(1, 3))
    days = timedelta(days=random.randint(0, 700), minutes=random.randint(0, 1439))
    return Story(random, others, datetime(2020, 1, 3, tzinfo=UTC) + days)


SEEDS = st.integers(0, 1 << 32)


@pytest.mark.parametrize(("stamp", "iphone"), [s[1:] for s in STAMPS], ids=[s[0] for s in STAMPS])
@settings(max_examples=12, deadline=None)
@given(SEEDS)
def test_whatsapp(
    tmp_path_factory: pytest.TempPathFactory,
    stamp: Callable[[datetime], str],
    iphone: bool,
    seed: int,
) -> None:
    story = new_story(seed)
    path = tmp_path_factory.getbasetemp() / "_chat.txt"
    path.write_text(whatsapp_chat(story, stamp, iphone), "utf-8")
    records, _ = imported("whatsapp", path, me=ME)
    judge(story, records)


def telegram_chat(story: Story) -> dict[str, Any]:
    """A chat of two or more as Telegram Desktop exports it, with ids of old or new exports."""
    random, messages, old = story.random, [], story.random.random() < 0.4
    ids = {name: 100 + at for at, name in enumerate([ME, *story.others])}

    def say(author: str, text: Any, **more: Any) -> None:
        key = ids[author] if old else f"user{ids[author]}"
        message = {"id": len(messages) + 1, "type": "message", "from": author, "from_id": key}
        message["date"] = f"{story.later():%Y-%m-%dT%H:%M:%S}"
        messages.append(message | {"text": text} | more)

    def formatted(text: str) -> Any:
        kinds = ["bold", "code", "link", "spoiler", "italic"]
        if random.random() < 0.6:
            return text
        quote = {"type": "blockquote", "text": story.words("nobody"), "collapsed": True}
        return [
            quote,
            text.partition(" ")[0],
            {"type": random.choice(kinds), "text": "".join(text.partition(" ")[1:])},
        ]

    strange: list[dict[str, Any]] = [
        {"forwarded_from": "Nora"},
        {"forwarded_from": None},
        {"via_bot": "@gif"},
        {"saved_from": "Bo"},
    ]
    silent: list[dict[str, Any]] = [
        {"photo": "a.jpg"},
        {"poll": {"question": "nobody9z?"}},
        {"media_type": "sticker", "file": "a"},
        {"contact_information": {"first_name": "nobody8z"}},
        {"location_information": {"latitude": 1}},
    ]
    for _ in range(random.randint(2, 5)):
        messages.append({
            "id": len(messages) + 1, "type": "service", "actor": ME, "actor_id": "user100",
            "action": "pin_message", "date": f"{story.later():%Y-%m-%dT%H:%M:%S}", "text": "",
        })  # fmt: skip
        if random.random() < 0.4:
            say(random.choice(story.others), "", **random.choice(silent))
        for _ in range(random.randint(1, 3)):
            say(random.choice(story.others), story.words("other"))
        for _ in range(random.randint(1, 3)):
            if random.random() < 0.3:
                say(ME, story.words("nobody"), **random.choice(strange))
            more = {"photo": "a.jpg"} if random.random() < 0.2 else {}
            say(ME, formatted(story.words("own")), edited="2023-01-25T10:00:00", **more)
        if random.random() < 0.3:
            say(ME, f"{story.others[0]}, [25.01.23 21:05]\n{story.words('nobody')}")
        story.pause()
    two = len(story.others) == 1
    chat = {"name": story.others[0], "type": "personal_chat" if two else "private_group", "id": 101}
    if random.random() < 0.5:
        return chat | {"messages": messages}
    account = {"user_id": 100, "first_name": "Sam", "last_name": "Two"}
    return {"personal_information": account, "chats": {"list": [chat | {"messages": messages}]}}


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_telegram(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    story = new_story(seed)
    path = tmp_path_factory.getbasetemp() / "result.json"
    path.write_text(json.dumps(telegram_chat(story), ensure_ascii=False), "utf-8")
    who = {} if len(story.others) == 1 else {"me": "100"}
    records, _ = imported("telegram", path, **who)
    judge(story, records)
