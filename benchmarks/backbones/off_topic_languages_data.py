"""Made-up notes in ten languages, questions that are about them, and questions that are not.

Nothing here is anybody's data.  Of the questions that are not, the last of each language is asked
in the very words of the notes ("Where is ...?"), about what no note is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pfi.records import Record

#: Notes that are asked about in each language.
ASKED = 4


@dataclass(frozen=True)
class Language:
    """One person's notes.

    Attributes:
        code: of the language.
        asked: a note's question; ``{}`` stands for the thing.
        said: what the note says; ``{}`` stands for the place.
        other: the same question in other words.
        things: what the notes are about; ``ASKED`` of them are asked about.
        places: where they are.
        unmatched: questions that no note is about.
    """

    code: str
    asked: str
    said: str
    other: str
    things: tuple[str, ...]
    places: tuple[str, ...]
    unmatched: tuple[str, ...]

    def records(self) -> list[Record]:
        """The notes as records of the task `instruction`, an hour between two."""
        begin = datetime(2024, 1, 1, tzinfo=UTC)
        return [
            Record(
                f"{self.code}-{n}",
                "instruction",
                {"instruction": self.asked.format(thing)},
                self.said.format(self.places[n % len(self.places)]),
                begin + timedelta(hours=n),
            )
            for n, thing in enumerate(self.things)
        ]

    def matched(self) -> list[tuple[str, str]]:
        """Questions about the notes, each with the id of the note that it is about."""
        return [(self.other.format(self.things[n]), f"{self.code}-{n}") for n in range(ASKED)]


LANGUAGES = (
    Language(
        "en",
        "Where is the {}?",
        "It is in the {}.",
        "I can't find the {}, where did I leave it?",
        ("bicycle", "tent", "drill", "passport", "ladder", "sledge", "violin", "iron",
         "suitcase", "telescope", "kettle", "hammock"),
        ("cellar", "attic", "garage", "desk", "shed"),
        ("Who wrote Hamlet?", "Convert 5 miles to kilometres.", "Write a haiku about rain.",
         "Where is Beijing?"),
    ),
    Language(
        "de",
        "Wo ist der {}?",
        "Er liegt im {}.",
        "Ich suche den {}, wo habe ich ihn hingelegt?",
        ("Schlitten", "Bohrer", "Reisepass", "Koffer", "Werkzeugkasten", "Hammer", "Regenschirm",
         "Wecker", "Rucksack", "Grill", "Drucker", "Teppich"),
        ("Keller", "Schrank", "Schuppen", "Schreibtisch", "Speicher"),
        ("Wer hat Faust geschrieben?", "Erkläre mir die Photosynthese.",
         "Schreibe ein Gedicht über den Herbst.", "Wo ist der Eiffelturm?"),
    ),
    Language(
        "fr",
        "Où est le {} ?",
        "Il est dans le {}.",
        "Je cherche le {}, tu sais où je l'ai rangé ?",
        ("vélo", "passeport", "marteau", "parapluie", "télescope", "violon", "tournevis",
         "sac de couchage", "réveil", "barbecue", "tapis", "projecteur"),
        ("garage", "grenier", "placard", "tiroir", "bureau"),
        ("Qui a peint la Joconde ?", "Combien font 12 fois 12 ?",
         "Écris un poème sur la mer.", "Où est le Kilimandjaro ?"),
    ),
    Language(
        "es",
        "¿Dónde está el {}?",
        "Está en el {}.",
        "No encuentro el {}, ¿en qué sitio lo dejé?",
        ("pasaporte", "taladro", "paraguas", "trineo", "martillo", "violín", "telescopio",
         "colchón", "despertador", "maletín", "proyector", "ventilador"),
        ("sótano", "armario", "garaje", "cajón", "desván"),
        ("¿Quién pintó el Guernica?", "Dame una receta de tortilla.",
         "¿Cuántos planetas hay?", "¿Dónde está el Amazonas?"),
    ),
    Language(
        "it",
        "Dov'è il {}?",
        "È nel {}.",
        "Sto cercando il {}, dove l'ho messo?",
        ("passaporto", "trapano", "martello", "violino", "telescopio", "materasso", "cavatappi",
         "proiettore", "tappeto", "ventilatore", "barbecue", "termometro"),
        ("garage", "cassetto", "ripostiglio", "armadio", "giardino"),
        ("Chi ha scritto la Divina Commedia?", "Spiegami la gravità.",
         "Scrivi una filastrocca.", "Dov'è il Vesuvio?"),
    ),
    Language(
        "ru",
        "Где лежит {}?",
        "В месте: {}.",
        "Не могу найти {}, подскажи, куда я его положил?",
        ("паспорт", "молоток", "зонт", "телескоп", "чемодан", "рюкзак", "фонарь", "термос",
         "ковёр", "будильник", "проектор", "насос"),
        ("подвал", "шкаф", "гараж", "чердак", "ящик"),
        ("Кто написал «Войну и мир»?", "Сколько будет семь на восемь?",
         "Напиши стихотворение о весне.", "Где лежит Байкал?"),
    ),
    Language(
        "ar",
        "أين {}؟",
        "في {}.",
        "لا أجد {}، هل تعرف مكانه؟",
        ("المفتاح", "الجواز", "المصباح", "المنشار", "الحقيبة", "الكاميرا", "المظلة", "الدراجة",
         "الساعة", "المكواة", "الخيمة", "السجادة"),
        ("القبو", "الخزانة", "المرآب", "الدرج", "المكتب"),
        ("من كتب ألف ليلة وليلة؟", "كم عدد الكواكب؟", "اكتب قصيدة عن البحر.", "أين بكين؟"),
    ),
    Language(
        "zh",
        "{}放在哪里？",
        "在{}里。",
        "我找不到{}了，你知道在什么地方吗？",
        ("自行车", "护照", "电钻", "雨伞", "望远镜", "小提琴", "行李箱", "手电筒", "熨斗", "闹钟",
         "投影仪", "帐篷"),
        ("地下室", "阁楼", "车库", "抽屉", "衣柜"),
        ("谁写了《红楼梦》？", "请解释光合作用。", "写一首关于春天的诗。", "北京在哪里？"),
    ),
    Language(
        "ja",
        "{}はどこにありますか？",
        "{}にあります。",
        "{}が見つからないのですが、どこに置きましたか？",
        ("自転車", "旅券", "電動ドリル", "望遠鏡", "バイオリン", "懐中電灯", "目覚まし時計",
         "スーツケース", "アイロン", "テント", "扇風機", "掃除機"),
        ("地下室", "屋根裏", "車庫", "引き出し", "押し入れ"),
        ("源氏物語の作者は誰ですか？", "光合成を説明してください。", "春の俳句を作って。",
         "富士山はどこにありますか？"),
    ),
    Language(
        "ko",
        "{} 어디에 있어?",
        "{}에 있어.",
        "{} 못 찾겠는데 어디다 뒀지?",
        ("자전거", "여권", "망원경", "바이올린", "손전등", "우산", "망치", "다리미", "텐트",
         "선풍기", "청소기", "알람시계"),
        ("지하실", "다락방", "차고", "서랍", "옷장"),
        ("홍길동전을 누가 썼어?", "광합성을 설명해 줘.", "봄에 대한 시를 써 줘.",
         "에베레스트 어디에 있어?"),
    ),
)  # fmt: skip
