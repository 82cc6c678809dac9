"""WhatsApp: what the program writes is nobody's words; captions are kept without their marks.

Shapes are those of starkdmi/whats_json (`test/data/languages`, `chats_unique`) and of
gesiscss/WhatsR (`inst/Languages.csv`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from connector_sources import read

from pfi.readers.values import Unusable
from pfi.sources import whatsapp_notes
from pfi.sources.whatsapp_notes import own_words

MARK, RTL = "\u200e", "\u200f"

PLACEHOLDERS = [
    "<Media omitted>",
    "<Medien ausgeschlossen>",
    "<Média vynechány>",
    f"<{MARK}image omitted>",
    f"{MARK}image omitted",
    f"{RTL}لم يتم إدراج الصورة",
    f"{MARK}an unknown phrase of an unknown language",
    f"{MARK}TR.vcf (soubor byl přiložen)",
    "IMG-20240501-WA0004.jpg (file attached)",
    f"{MARK}<attached: 0001-PHOTO.jpg>",
    "<Media weggelaten>\nResume-Some-Body.pdf",
    "Missed voice call",
    "Missed group video call",
    "Пропущенный аудиозвонок",
    "Gemiste spraakoproep",
    "Zmeškaný hovor",
    "مكالمة صوتية فائتة",
    "不在着信",
    "Voice call. 5 min",
    "Sprachanruf. Keine Antwort",
    "Waiting for this message",
    "Waiting for this message. This may take a while.",
    "location: https://maps.google.com/?q=51.50,-0.12",
    "местоположение: https://maps.google.com/?q=51.50,-0.12",
    "vị trí: https://maps.google.com/?q=51.50,-0.12",
    "live location shared",
    "Pimlico Gardens (London): https://foursquare.com/v/4e89af95",
    "Çalış Plajı\nFethiye, Muğla\nhttps://foursquare.com/v/4dea6d",
    "POLL:\nWhen?\nOPTION: Now (2 votes)\nOPTION: Never (0 votes)",
    "UMFRAGE:\nWann?\nOPTION: Jetzt (1 Stimme)",
    f"{MARK}POLL:\nWhen?\n{MARK}OPTION: Now ({MARK}2 votes)",
    "<View once voice message omitted>",
    "<Video message omitted>",
    "Nora changed the subject to “The garden”",
]
DELETED = [
    "null",
    "This message was deleted",
    "🚫 This message was deleted",
    "You deleted this message.",
    "Tato zpráva byla odstraněna.",
    "Tuto zprávu jste odstranil/a.",
    "U hebt dit bericht verwijderd",
    "تم حذف هذه الرسالة",
    "यह मैसेज डिलीट कर दिया गया है",
    "Pesan ini dihapus",
    "このメッセージは削除されました。",
    "Ви видалили це повідомлення",
    "This message was deleted by admin Nora.",
    f"{MARK}You deleted this message.",
    "이 메시지는 삭제되었습니다",
    "Tämä viesti poistettiin",
    "ข้อความนี้ถูกลบแล้ว",
]


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders(text: str) -> None:
    with pytest.raises(Unusable, match="a note of WhatsApp, media or a call"):
        own_words(text)


@pytest.mark.parametrize("text", DELETED)
def test_deleted(text: str) -> None:
    with pytest.raises(Unusable, match="it was deleted"):
        own_words(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<Media omitted>\nThe red one by the wall", "The red one by the wall"),
        (f"{MARK}IMG-20240501-WA0003.jpg (file attached)\nSame colour", "Same colour"),
        ("IMG-1.jpg (Datei angehängt)\nHier\nund da", "Hier\nund da"),
        (f"Look at this {MARK}image omitted", "Look at this"),
        (f"Two\nlines {MARK}<attached: 0001-PHOTO.jpg>", "Two\nlines"),
        (f"Above {MARK}<attached: 0001-PHOTO.jpg>\nbelow", "Above\nbelow"),
        (f"Second {MARK}<This message was edited>", "Second"),
        (f"Zweitens {MARK}<Diese Nachricht wurde bearbeitet.>", "Zweitens"),
        ("I typed \u200ethis in Arabic \u200fعربي", "I typed this in Arabic عربي"),
        ("Voice call in 5 min", "Voice call in 5 min"),
        ("I missed a voice call", "I missed a voice call"),
        ("I saw it: https://maps.google.com/?q=1", "I saw it: https://maps.google.com/?q=1"),
        ("See you at google.com", "See you at google.com"),
        ("Shopping:\neggs\nmilk (2 bottles)", "Shopping:\neggs\nmilk (2 bottles)"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
    ],
)
def test_ones_own_words_stay(text: str, words: str) -> None:
    assert own_words(text) == words


@pytest.mark.parametrize(
    "text",
    [
        f"shed.pdf • {MARK}2 pages {MARK}document omitted",
        f"bill 7.docx {MARK}<attached: 00000012-bill 7.docx>",
        f"Resume.pdf • {MARK}2 หน้า {MARK}ละเว้นเอกสาร",
        f"Some file.txt {MARK}words of no table",
    ],
)
def test_documents_of_iphones(text: str) -> None:
    with pytest.raises(Unusable):
        own_words(text, marked=True)


def test_every_phrase_of_the_table_is_known() -> None:
    table = Path(whatsapp_notes.__file__).with_suffix(".txt").read_text("utf-8")
    rows = [line.split("\t") for line in table.splitlines()]
    assert len(rows) > 700 and {kind for kind, _ in rows} == {
        "deleted",
        "call",
        "waiting",
        "media",
        "place",
        "group",
    }
    for kind, phrase in rows:
        with pytest.raises(Unusable):
            own_words(MARK + phrase if kind == "media" else phrase.replace("*", "12"))


def test_a_whole_chat_of_placeholders(tmp_path: Path) -> None:
    lines = [
        "23.03.22 13:31 - Zprávy a hovory jsou koncově šifrovány.",
        "27.03.22 13:40 - Nora: Přijdeš?",
    ]
    for minute, text in enumerate([*PLACEHOLDERS, *DELETED]):
        lines.append(f"27.03.22 13:{minute:02} - Sam: {text}")
    lines += ["27.03.22 14:05 - Nora: Ano nebo ne?", "27.03.22 14:06 - Sam: Ano, v osm"]
    path = tmp_path / "Chat WhatsApp s uživatelem Nora.txt"
    path.write_text("\n".join(lines), "utf-8")
    [record], report = read("whatsapp", path, {"me": "Sam"})
    assert (record.input["chat"], record.output) == ("Přijdeš?\nAno nebo ne?", "Ano, v osm")
    assert report.skipped["it was deleted"] == len(DELETED)


def test_notes_in_right_to_left_chats(tmp_path: Path) -> None:
    path = tmp_path / "WhatsApp Chat - Nora" / "_chat.txt"
    path.parent.mkdir()
    stamp = "[٢٧\u200f/٣\u200f/٢٠٢٢، ٩:٤١:٣{}\u00a0م] "
    path.write_text(
        f"{stamp.format(1)}Nora: {RTL}الرسائل والمكالمات مشفرة تمامًا بين الطرفين.\r\n"
        f"{stamp.format(2)}Nora: هل أنت في الحديقة؟\r\n"
        f"{RTL}{stamp.format(3)}Sam: {RTL}لم يتم إدراج الصورة\r\n"
        f"{stamp.format(4)}Sam: نعم، عند البركة\r\n",
        "utf-8",
    )
    [record], report = read("whatsapp", path)
    assert record.output == "نعم، عند البركة" and f"{record.time:%H:%M:%S}" == "21:41:34"
    assert report.skipped == {whatsapp_notes.NOTE: 2}
