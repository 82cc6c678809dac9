"""WhatsApp: a line that cannot be attributed ends a message, and what follows it is nobody's.

The shapes are those of chats in starkdmi/whats_json (`test/data/chats_unique`): late lines between
newer ones, chats put together in one file, clocks with words, messages pasted into others.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from connector_sources import read

from pfi.records import Record

ASKED = (
    "24/03/2022, 09:00 - Nora: Shall we plant the beans?\n24/03/2022, 09:05 - Sam: On Saturday\n"
)
LATER = "24/03/2022, 09:30 - Nora: Did you see it?\n24/03/2022, 09:31 - Sam: Yes, just now\n"


def chat_of(folder: Path, text: str, name: str = "WhatsApp Chat with Nora.txt") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def pairs(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.input["chat"], record.output) for record in records]


BOTH = [("Shall we plant the beans?", "On Saturday"), ("Did you see it?", "Yes, just now")]


@pytest.mark.parametrize(
    "lines",
    [
        "22/03/2022, 08:00 - Nora: This one came late\nthe spare key is under the pot\n",
        "24/03/2022, 9.06 ¿ - Nora: secret\nmore secrets\n",
        "24/03/2022 at some time - Nora: secret\n",
        "24/03/2022, 09:06 Nora: secret\n",
        "24/13/2022, 09:06 - Nora: secret\nmore secrets\n",
        "?4/0E/2022, 09:06 - Nora: secret\n",
        "[24/03/2022, 09:06:00] Nora: secret\nmore secrets\n",
        "[24/03, 09:06] Nora: secret\nmore secrets\n",
        "Nora, [24.03.22 09:06]\nsecret\n",
        "Nora: secret\nmore secrets\n",
        "> secret\n",
    ],
)
def test_what_follows_a_line_that_is_nobodys_joins_no_message(tmp_path: Path, lines: str) -> None:
    records, report = read("whatsapp", chat_of(tmp_path, ASKED + lines + LATER))
    assert pairs(records) == BOTH
    dropped = sum(report.skipped.values())
    assert dropped >= 1 or lines.startswith("22/03")  # the late line is a message of Nora's


def test_each_dropped_line_is_counted_with_the_first_place(tmp_path: Path) -> None:
    lines = "24/13/2022, 09:06 - Nora: secret\nmore secrets\n\nand more\n"
    _, report = read("whatsapp", chat_of(tmp_path, ASKED + lines + LATER))
    assert report.skipped == {
        "its date is not understood": 1,
        "it follows a line that is not understood": 2,
    }
    place = "WhatsApp Chat with Nora.txt, line 3"
    assert report.examples["its date is not understood"] == place


def test_own_lines_with_numbers_names_and_colons_stay(tmp_path: Path) -> None:
    own = (
        "On Saturday\nat 10:30 - or later\nSam: that is me\n12.5 kg: two bags\nsee [1] (page 3): ok"
    )
    records, report = read("whatsapp", chat_of(tmp_path, ASKED.replace("On Saturday", own)))
    assert pairs(records) == [("Shall we plant the beans?", own)] and not report.skipped


def test_a_message_that_begins_with_a_pasted_one_is_not_ones_own(tmp_path: Path) -> None:
    pasted = "24/03/2022, 09:06 - Sam: [24/03, 08:00] Nora: her words\nand hers\n"
    records, report = read("whatsapp", chat_of(tmp_path, ASKED + pasted + LATER))
    assert pairs(records) == BOTH and report.skipped == {"it is a quote, or pasted": 1}


@pytest.mark.parametrize("first", ["", "Nora: A photo of last year\n19/12/2020, 14:09 - "])
def test_one_newer_line_does_not_silence_the_older_ones(tmp_path: Path, first: str) -> None:
    """The notice of encryption, or a late message, stands above what is older."""
    text = (
        f"19/12/2020, 14:08 - {first}Messages and calls are end-to-end encrypted.\n"
        "02/12/2020, 08:20 - Nora: Is the oven free?\n02/12/2020, 08:25 - Sam: From seven on\n"
        "03/12/2020, 11:21 - Nora: And tomorrow?\n03/12/2020, 11:24 - Sam: The whole day\n"
        "19/12/2020, 15:00 - Nora: Thanks\n19/12/2020, 15:02 - Sam: Any time\n"
    )
    records, _ = read("whatsapp", chat_of(tmp_path, text))
    assert [record.output for record in records] == ["From seven on", "The whole day", "Any time"]
    brackets = text.replace(" - ", "] ").replace("\n", "\n[").removesuffix("[")
    records, _ = read("whatsapp", chat_of(tmp_path / "b", "[" + brackets))
    assert [record.output for record in records] == ["From seven on", "The whole day", "Any time"]


def test_chats_put_together_in_one_file_are_all_read(tmp_path: Path) -> None:
    def chat(year: int) -> str:
        return "".join(
            f"[{day:02}/03/{year}, 10:00:00] Nora: {year} {day}?\n"
            f"[{day:02}/03/{year}, 10:01:00] Sam: in {year} on {day}\n"
            for day in range(1, 29)
        )

    records, report = read("whatsapp", chat_of(tmp_path, chat(2022) + chat(2021)))
    assert len(records) == 56 and not report.skipped


def test_a_picture_of_the_other_ends_ones_turn(tmp_path: Path) -> None:
    text = (
        "5/1/24, 10:00 - Nora: Are you at the lake?\n5/1/24, 10:01 - Sam: Yes, by the boat\n"
        "5/1/24, 10:02 - Nora: {}\n5/1/24, 10:03 - Sam: What a lovely dog\n"
        "5/1/24, 10:20 - Nora: See you at noon\n5/1/24, 10:21 - Sam: At noon\n"
    )
    for said in ("<Media omitted>", "https://example.org/dog", "This message was deleted", "?" * 9):
        records, report = read("whatsapp", chat_of(tmp_path, text.format(said)))
        assert [record.output for record in records] == ["Yes, by the boat", "At noon"]
        assert report.skipped["it answers nobody"] == 1
    own = text.replace("10:02 - Nora", "10:02 - Sam").format("<Media omitted>")
    records, _ = read("whatsapp", chat_of(tmp_path, own))
    assert records[0].output == "Yes, by the boat\nWhat a lovely dog"


def test_a_late_message_is_not_answered_from_its_past(tmp_path: Path) -> None:
    late = "24/03/2022, 09:00 - Nora: Shall we?\n23/03/2022, 07:00 - Sam: Good night\n"
    records, report = read("whatsapp", chat_of(tmp_path, late + LATER))
    assert pairs(records) == BOTH[1:] and report.skipped == {"it answers nobody": 1}


@pytest.mark.parametrize(
    "name",
    [
        "WhatsApp Chat with Nora.txt",
        "WhatsApp Chat with Nora (2).txt",
        "Nora ile WhatsApp Sohbeti.txt",
        "Chat WhatsApp s\u00a0uživatelem Nora.txt",
        "دردشة واتساب مع Nora.txt",
        "与Nora的WhatsApp聊天.txt",
        "WhatsApp Chat - Nora/_chat.txt",
    ],
)
def test_the_other_is_named_by_the_file_wherever_languages_put_the_name(
    tmp_path: Path, name: str
) -> None:
    assert pairs(read("whatsapp", chat_of(tmp_path, ASKED, name))[0]) == BOTH[:1]


def test_notes_with_a_colon_are_no_people(tmp_path: Path) -> None:
    notes = (
        '24/03/2022, 09:01 - Nora changed the group name from "A: b" to "C: d"\n'
        "24/03/2022, 09:01 - Nora changed the group description to: more\n"
    )
    text = ASKED.replace("24/03/2022, 09:05", notes + "24/03/2022, 09:05")
    records, _ = read("whatsapp", chat_of(tmp_path, text + LATER))
    assert pairs(records) == BOTH
