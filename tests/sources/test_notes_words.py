"""Words are counted in scripts with spaces and without, wherever a text must have a few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from connector_sources import read

from pfi.readers.words import count_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("The harbour was quiet - and cold", 7),
        ("안녕하세요 저는 학생입니다", 3),  # Korean has spaces
        ("はい", 1),
        ("、。", 1),  # as any other text of signs
    ],
)
def test_exact_counts(text: str, words: int) -> None:
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),  # as a reader of the language divides them
    [
        ("请帮我写一份关于春天花园种植计划的说明", 12),
        ("今日は川沿いをゆっくり歩いた。", 8),
        ("コンピューターのプログラムを書く", 5),
        ("ฉันเดินไปตลาดเมื่อเช้านี้", 7),
        ("ຂ້ອຍຍ່າງໄປຕະຫຼາດມື້ເຊົ້ານີ້", 6),
        ("ខ្ញុំដើរទៅផ្សារព្រឹកនេះ", 6),
        ("ငါသည်ယနေ့နံနက်ဈေးသို့သွားသည်", 7),
        ("我用 Python 写 code", 5),
        ("ང་ཚོ་ཁྲོམ་ལ་འགྲོ་", 5),
    ],
)
def test_estimates_are_near_the_words_of_a_reader(text: str, words: int) -> None:
    assert words / 1.6 <= count_words(text) <= words * 1.6


SENTENCES = {
    "zh": "今天早上港口很安静，我端着一杯茶沿着长长的防波堤慢慢地走了一圈。",
    "ja": "今朝の港は静かだったので、お茶を持って長い堤防をゆっくり歩いた。",
    "th": "เช้านี้ท่าเรือเงียบมากฉันเลยถือชาหนึ่งแก้วเดินเล่นไปตามกำแพงยาวจนถึงประภาคาร",
    "lo": "ເຊົ້ານີ້ທ່າເຮືອງຽບຫຼາຍຂ້ອຍຈຶ່ງຖືຊາຈອກໜຶ່ງຍ່າງຫຼິ້ນໄປຕາມກຳແພງຍາວຈົນຮອດປະພາຄານ",
    "km": "ព្រឹកនេះកំពង់ផែស្ងាត់ណាស់ខ្ញុំក៏កាន់តែមួយពែងដើរលេងតាមជញ្ជាំងវែងរហូតដល់ប៉មភ្លើង",
    "my": "ဒီမနက်ဆိပ်ကမ်းကတိတ်ဆိတ်နေလို့ကျွန်တော်လက်ဖက်ရည်တစ်ခွက်ကိုင်ပြီးတံတိုင်းရှည်တစ်လျှောက်လမ်းလျှောက်ခဲ့တယ်",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_enough_for_every_source(tmp_path: Path, language: str) -> None:
    text = SENTENCES[language]
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "2024-03-05.md").write_text(text, "utf-8")
    assert [r.output for r in read("markdown", tmp_path / "vault")[0]] == [text]
    message = {
        "uuid": "m", "sender": "human", "text": text, "created_at": "2024-03-05T10:00:00Z",
    }  # fmt: skip
    talk = {
        "uuid": "c",
        "name": "",
        "created_at": message["created_at"],
        "chat_messages": [message],
    }
    export = tmp_path / "conversations.json"
    export.write_text(json.dumps([talk]), "utf-8")
    assert [r.output for r in read("claude", export)[0]] == [text]
    box = tmp_path / "sent.mbox"
    box.write_text(
        "From - Tue Mar  5 10:00:00 2024\nFrom: me@example.org\nTo: b@example.org\n"
        "Date: Tue, 05 Mar 2024 10:00:00 +0000\nSubject: harbour\nMessage-ID: <1@example.org>\n"
        f"Content-Type: text/plain; charset=utf-8\n\n{text}\n",
        "utf-8",
    )
    [record], _ = read("mail", box, {"me": ["me@example.org"]})
    assert record.output == "harbour"


def test_a_word_is_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(SENTENCES["ja"], "utf-8")
    (tmp_path / "b.md").write_text("静かな港", "utf-8")
    report = read("markdown", tmp_path)[1]
    assert report.examples == {"it has fewer than 12 words": "b.md"}
