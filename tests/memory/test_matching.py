"""What has nothing to do with a question enters no prompt, in any language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pfi.memory.index import Memory
from pfi.memory.matching import matching, telling_weight
from pfi.memory.words import WordIndex, indexed, words
from pfi.records import Record
from pfi.tasks import get_task

CHAT = get_task("instruction")
#: Notes, a question about the second one in other words, and questions about none, by language;
#: the last of these is asked as the notes are.
LANGUAGES = {
    "en": (
        [("Where is the bike?", "In the shed."), ("Where is the tent?", "In the attic.")],
        "I can't find my tent",
        ["Who wrote Hamlet?", "How many planets are there?", "Where is Beijing?"],
    ),
    "pt": (
        [("Onde está o martelo?", "Na garagem."), ("Onde está a barraca?", "No sótão.")],
        "Não acho a barraca",
        ["Quem escreveu Os Lusíadas?", "Quanto é sete vezes oito?", "Onde está o Brasil?"],
    ),
    "nl": (
        [("Waar is de hamer?", "In de schuur."), ("Waar is de slee?", "Op zolder.")],
        "Ik kan mijn slee niet vinden",
        ["Wie schilderde de Nachtwacht?", "Hoeveel is zeven keer acht?", "Waar is Parijs?"],
    ),
    "tr": (
        [("Çekiç nerede?", "Depoda."), ("Çadır nerede?", "Tavan arasında.")],
        "Çadır kayboldu, gören var mı?",
        ["Nutuk kimin eseri?", "Yedi kere sekiz kaç eder?", "Ankara nerede?"],
    ),
    "hi": (
        [("हथौड़ा कहाँ है?", "गोदाम में।"), ("तंबू कहाँ है?", "अटारी में।")],
        "मुझे तंबू नहीं मिल रहा",
        ["गोदान किसने लिखा?", "सात गुणा आठ कितना है?", "दिल्ली कहाँ है?"],
    ),
    "zh": (
        [("锤子在哪里？", "在仓库。"), ("帐篷在哪里？", "在阁楼。")],
        "我的帐篷不见了",
        ["谁写了《红楼梦》？", "七乘八等于几？", "北京在哪里？"],
    ),
    "ja": (
        [("金槌はどこですか？", "倉庫です。"), ("天幕はどこですか？", "屋根裏です。")],
        "天幕が見つからない",
        ["源氏物語の作者は誰？", "七かける八は？", "東京はどこですか？"],
    ),
    "th": (
        [("ค้อนอยู่ที่ไหน", "ในโรงเก็บของ"), ("เต็นท์อยู่ที่ไหน", "บนห้องใต้หลังคา")],
        "หาเต็นท์ไม่เจอ",
        ["ใครแต่งพระอภัยมณี"],
    ),
}


def memory(pairs: Sequence[tuple[str, str]], embedder: object = None) -> Memory:
    records = [
        Record(f"r{n}", CHAT.name, {"instruction": asked}, said)
        for n, (asked, said) in enumerate(pairs)
    ]
    return Memory(CHAT, records, embedder=embedder)  # type: ignore[arg-type]


def matched(mine: Memory, query: str) -> list[str]:
    """The ids of all records that match, whatever a search would find first."""
    places = matching(mine, query)
    found = mine.search(query, len(mine), within=places)
    assert len(found) == places.sum(), "no other record fills up"
    return sorted(record.id for record in found)


@pytest.mark.parametrize("code", LANGUAGES)
def test_what_is_asked_about_matches_and_nothing_else(code: str) -> None:
    pairs, about, unmatched = LANGUAGES[code]
    mine = memory(pairs)
    assert matched(mine, about) == ["r1"]
    assert [question for question in unmatched if matched(mine, question)] == []


def test_languages_in_one_memory_do_not_match_each_other() -> None:
    mine = memory([pair for pairs, _, _ in LANGUAGES.values() for pair in pairs])
    for at, (_, about, unmatched) in enumerate(LANGUAGES.values()):
        assert matched(mine, about) == [f"r{2 * at + 1}"]
        assert not [question for question in unmatched if matched(mine, question)]


def test_a_secret_stays_out_of_questions_that_only_sound_like_it() -> None:
    notes = [(f"Where is the {thing}?", "On the shelf.") for thing in ("bike", "tent", "drill")]
    mine = memory([*notes, ("What is the PIN of the safe?", "The PIN is 7391.")])
    assert matched(mine, "the PIN please") == ["r3"]
    for question in ("zzzz qqqq", "北京有什么好玩的？", "What is the capital of France?", " ?! "):
        assert matched(mine, question) == []
    assert matched(mine, "What is the weight of the bike?") == ["r0"]


def test_what_a_general_question_holds_more_of_is_general() -> None:
    mine = memory([("Where did I park in France?", "At the station."), ("Tent?", "In the attic.")])
    assert matched(mine, "What is the capital of France?") == []
    assert matched(mine, "my car in France, where did I park it") == ["r0"]


def test_a_common_word_alone_is_no_match() -> None:
    notes = [
        (f"What is the serial number of the {a}{b}?", "No. 1") for a in "bdfgk" for b in "aeiou"
    ]
    mine = memory(notes)
    assert matched(mine, "What is a prime number?") == []
    assert matched(mine, "serial number of the ba") == ["r0"]


def test_a_long_text_matches_by_one_of_its_parts() -> None:
    mine = memory([("Where is the hammock?", "In the shed."), ("Where is the tent?", "Attic.")])
    long = " ".join(f"filler{n} noise{n}" for n in range(30)) + " the hammock is needed"
    assert matched(mine, long) == ["r0"]


class Meanings:
    """A sentence model that knows some texts, and to which all others are nearly alike."""

    name, width = "meanings", 4

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        rows = [self._row(text) for text in texts]
        made = np.array(rows, np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def _row(self, text: str) -> list[float]:
        if "vélo" in text or "bike" in text:
            return [1.0, 0.0, 0.0, 0.0]
        if any(letter > "\u0370" for letter in text):
            return [0.0, 0.0, 1.0, 0.01 * len(text)]
        return [0.0, 1.0, 0.0, 0.01 * (len(text) % 7)]


def test_a_record_may_stand_out_by_its_meaning() -> None:
    mine = memory(
        [("bike", "in the shed"), *((f"thing{n}", "x" * n) for n in range(9))], Meanings()
    )
    assert matched(mine, "mon vélo ?") == ["r0"]
    # Near to all is near to none: a language that the model does not know.
    assert matched(mine, "other words altogether") == []


def test_an_unknown_language_is_not_near_by_meaning() -> None:
    things = ("нож", "лук", "мяч", "сыр", "дом", "лес", "кот", "мёд")
    mine = memory([(f"Где {thing}?", "Там.") for thing in things], Meanings())
    assert matched(mine, "Кто написал эту книгу?") == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("自行车 x", ["自行", "行车", "x"]),
        ("車", ["車"]),
        ("한국어를", ["한국", "국어", "어를"]),
        ("a自行b", ["a", "自行", "b"]),
        ("किताब कहाँ", ["किताब", "कहाँ"]),
        ("naïve Naïve", ["naïve"]),
    ],
)
def test_words_of_every_script(text: str, pieces: list[str]) -> None:
    assert words(text) == pieces
    index = WordIndex.of({0: text, 1: "something else"}, 2)
    assert all(index.holding(piece).tolist() == [0] for piece in pieces)


def test_an_index_gets_spaces_where_a_script_has_none() -> None:
    assert indexed("plain text, unchanged") == "plain text, unchanged"
    assert indexed("找自行车!").split() == ["找自", "自行", "行车", "!"]


@pytest.mark.parametrize(
    ("word", "weight"),
    [("where", 0), ("wo", 0), ("где", 0), ("bike", 1), ("a", 0), ("帐篷", 1), ("的车", 0.5),
     ("在哪", 0), ("ます", 0)],
)  # fmt: skip
def test_grammar_tells_nothing(word: str, weight: float) -> None:
    assert telling_weight(word) == weight
