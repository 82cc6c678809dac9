"""Tables as spreadsheets of many countries save them: encodings, delimiters, times of a column."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from connector_sources import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import PfiError
from pfi.readers.columns import TimeColumn
from pfi.readers.encodings import detect_encoding
from pfi.readers.values import Unusable
from pfi.sources.connectors import detect

HEADER = ("instruction", "answer")
#: Whole sentences, with the code pages that desktops of their languages save them in.
SENTENCES = {
    "cp1252": ["Die Prüfung lief gut, danke für das Brot.", "C'était très bien, à bientôt au café.",
               "¿Qué tal mañana? Nos vemos en el café.", "Não posso amanhã, às três é tarde.",
               "È già tardi, però verrò più tardi con la città.", "Jag kommer på lördag från Åre."],
    "mac_roman": ["Die Prüfung lief gut, danke für das Brot.", "C'était très bien, à bientôt."],
    "cp1250": ["Zażółć gęślą jaźń, proszę.", "Příliš žluťoučký kůň úpěl ďábelské ódy.",
               "Košice sú pekné, čo robíš večer?", "Köszönöm szépen, győztes lett a fiú."],
    "cp1251": ["Как прошёл экзамен? Спасибо, хорошо."],
    "cp1253": ["Πώς ήταν η εξέταση; Πήγε καλά, ευχαριστώ."],
    "cp1254": ["Sınav nasıl geçti? Güneş ışığı çok güzeldi."],
    "cp1255": ["איך היה המבחן היום? היה בסדר גמור"],
    "cp1256": ["كيف كان الامتحان اليوم؟ كان جيدا"],
    "cp1257": ["Kaip sekėsi egzaminas? Ačiū, šiandien ėjau į mišką."],
    "cp874": ["การสอบเป็นอย่างไรบ้างวันนี้ดีมากขอบคุณ"],
    "cp932": ["試験はどうでしたか。とてもよくできました、ありがとうございます。"],
    "gb18030": ["考试怎么样？很好，谢谢你，明天见。"],
    "cp949": ["시험은 어땠나요? 아주 잘 봤어요, 고마워요."],
}  # fmt: skip


def saved(*rows: tuple[str, ...], delimiter: str = ",", end: str = "\r\n") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
    return out.getvalue()


def written(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("encoding", "sentence"), [
    (name, text) for name, texts in SENTENCES.items() for text in texts
])  # fmt: skip
def test_code_pages_are_found(tmp_path: Path, encoding: str, sentence: str) -> None:
    path = written(tmp_path, saved(HEADER, ("How?", sentence)).encode(encoding))
    assert detect(path) == "table"
    [record], report = read("table", path)
    assert record.output == sentence
    assert not report.skipped and any("is read as" in note for note in report.notes)


@pytest.mark.parametrize("encoding", [
    "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252",
])  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("named", [False, True])
def test_delimiter_and_encoding_together(
    tmp_path: Path, encoding: str, delimiter: str, named: bool
) -> None:
    """Excel writes `sep=;` into a first line; its "Unicode text" is UTF-16 with tabs in a .txt."""
    rows = [("Grüße?", "Ja, gern; sehr\tgern | wirklich"), ("Was?", 'Er sagte "nein"\nund ging.')]
    text = (f"sep={delimiter}\r\n" if named else "") + saved(HEADER, *rows, delimiter=delimiter)
    path = written(tmp_path, text.encode(encoding), "a.txt" if delimiter == "\t" else "a.csv")
    assert detect(path) == "table"
    records, report = read("table", path)
    assert [(r.input["instruction"], r.output) for r in records] == rows
    assert not report.skipped


def test_what_stands_in_cells_does_not_divide_them(tmp_path: Path) -> None:
    rows = [("a, b, c, d?", "one; two"), ("e, f, g, h?", "three")]
    for delimiter in ";\t|":
        path = written(tmp_path, saved(HEADER, *rows, delimiter=delimiter))
        assert [r.output for r in read("table", path)[0]] == ["one; two", "three"]


def test_headers_in_any_case_old_macs_and_empty_ends(tmp_path: Path) -> None:
    text = saved((" Instruction ", "ANSWER", "", ""), ("q", "a", "", ""), ("", "", "", ""))
    assert [r.output for r in read("table", written(tmp_path, text))[0]] == ["a"]
    old = saved(HEADER, ("Wann?", "Für fünf"), ("Wo?", "Da"), end="\r").encode("mac_roman")
    assert [r.output for r in read("table", written(tmp_path, old))[0]] == ["Für fünf", "Da"]


def test_damaged_lines_do_not_make_a_code_page(tmp_path: Path) -> None:
    lines = ["instruction,answer", "a,für", "b,caf\xe9", "c,für dich"]
    data = "\n".join(lines).encode().replace("caf\xe9".encode(), b"caf\xe9")
    path = written(tmp_path, data)
    assert detect_encoding(path) == "utf-8-sig"
    records, report = read("table", path)
    assert [r.output for r in records] == ["für", "für dich"]
    assert report.examples == {"the line is not utf-8-sig": "a.csv, line 3"}


def test_errors_propose_what_works(tmp_path: Path) -> None:
    path = written(tmp_path, saved(HEADER, ("a", "b"), delimiter="|"))
    with pytest.raises(PfiError, match=r"divided by '\|': --set delimiter='\|'"):
        read("table", path, {"delimiter": ","})
    path = written(tmp_path, saved(HEADER, ("Wie?", "Für fünf")).encode("cp1252"))
    with pytest.raises(PfiError, match="--set encoding=cp1252"):
        read("table", path, {"encoding": "utf-16"})


# Times ----------------------------------------------------------------------------------


def times(*values: object, order: str = "auto") -> list[str]:
    """The times of a column, `-` for what is not understood."""
    column = TimeColumn("time", order)  # type: ignore[arg-type]
    for value in values:
        column.add(value)
    shown = []
    for value in values:
        try:
            time = column.time(value)
            shown.append(time.strftime("%Y-%m-%d %H:%M:%S") if time else "")
        except Unusable:
            shown.append("-")
    return [text.removesuffix(" 00:00:00") for text in shown]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["13/05/2024", "05/06/2024"], ["2024-05-13", "2024-06-05"]),
        (["05/06/2024", "05/13/2024"], ["2024-05-06", "2024-05-13"]),
        (["5.3.2024", "6.3.24 14:30"], ["2024-03-05", "2024-03-06 14:30:00"]),
        (["5.3.2024 9.05", "6.3.2024 14.30"], ["2024-03-05 09:05:00", "2024-03-06 14:30:00"]),
        (["05-03-2024", ""], ["2024-03-05", ""]),
        # In time order the months come first.
        (["01/05/2024", "01/09/2024", "02/03/2024"], ["2024-01-05", "2024-01-09", "2024-02-03"]),
        (["5/3/2024 2:30 PM", "6/3/2024 12:05 AM"], ["2024-05-03 14:30:00", "2024-06-03 00:05:00"]),
        (["13/05/2024 02:30 p. m."], ["2024-05-13 14:30:00"]),
        (["2024/05/13 8:00"], ["2024-05-13 08:00:00"]),
        (["2024-05-13T08:00:00+02:00", "2024-05-13"], ["2024-05-13 06:00:00", "2024-05-13"]),
        (["13/05/2024 08:00 +02:00"], ["2024-05-13 06:00:00"]),
        (["13 May 2024", "May 14, 2024"], ["2024-05-13", "2024-05-14"]),
        (["13. Mai 2024", "2. März 2024"], ["2024-05-13", "2024-03-02"]),
        (["lundi 13 mai 2024", "14 févr. 2024"], ["2024-05-13", "2024-02-14"]),
        (["13 мая 2024 г.", "2 июня 2024 г."], ["2024-05-13", "2024-06-02"]),
        (["2024年5月13日 14:30", "2024年5月14日"], ["2024-05-13 14:30:00", "2024-05-14"]),
        (["١٣/٠٥/٢٠٢٤"], ["2024-05-13"]),
        (["13/05/2567"], ["2024-05-13"]),
        ([1715558400, "1715644800"], ["2024-05-13", "2024-05-14"]),
        (["1715558400000", 1715644800123.0], ["2024-05-13", "2024-05-14"]),
        (["1715558400000000", "1715558400000000000"], ["2024-05-13", "2024-05-13"]),
        (["45425", "45426,5"], ["2024-05-13", "2024-05-14 12:00:00"]),
        (["45425", "1715558400"], ["1970-01-01 12:37:05", "2024-05-13"]),
        (["then", "31/31/2024", True, [1]], ["-", "-", "-", "-"]),
    ],
)
def test_times_of_a_column(values: list[object], expected: list[str]) -> None:
    shown = times(*values)
    assert [text[: len(want)] for text, want in zip(shown, expected, strict=True)] == expected


def test_the_order_can_be_said(tmp_path: Path) -> None:
    assert times("05/06/2024") == ["2024-06-05"] and times("05/06/2024", order="mdy") == [
        "2024-05-06"
    ]
    rows = [("a", "b", "05/06/2024")]
    path = written(tmp_path, saved((*HEADER, "Date"), *rows))
    [record], report = read("table", path)
    assert record.time == datetime(2024, 6, 5, tzinfo=UTC)
    assert report.notes == [
        "dates such as '05/06/2024' are read as day, month, year; order= says otherwise"
    ]
    [record], report = read("table", path, {"order": "mdy"})
    assert record.time == datetime(2024, 5, 6, tzinfo=UTC) and not report.notes


def test_a_first_row_without_a_time_decides_nothing(tmp_path: Path) -> None:
    rows = [("a", "1", ""), ("b", "2", "13.05.2024"), ("c", "3", "14.05.2024")]
    path = written(tmp_path, saved((*HEADER, "date"), *rows, delimiter=";"))
    records, report = read("table", path)
    assert [(r.output, r.time and r.time.day) for r in records] == [("2", 13), ("3", 14)]
    assert report.examples == {"it has no time although other rows have one": "a.csv, line 2"}
    rows = [("a", "1", ""), ("b", "2", "13.05.2024"), ("c", "3", "")]
    records, report = read("table", written(tmp_path, saved((*HEADER, "date"), *rows)))
    assert [(r.output, r.time) for r in records] == [("1", None), ("2", None), ("3", None)]
    assert not report.skipped and "1 rows have a time; as most have none" in report.notes[0]


def test_labels_with_decimal_commas(tmp_path: Path) -> None:
    text = saved(("text", "score"), ("a good book", "4,0"), ("a bad one", "1"), delimiter=";")
    records, _ = read("table", written(tmp_path, text), {"task": "LaMP_3"})
    assert [r.output for r in records] == ["4", "1"]


FORMS = {
    "dmy": ["%d/%m/%Y", "%d.%m.%Y", "%d-%m-%y", "%d.%m.%Y %H:%M"],
    "mdy": ["%m/%d/%Y", "%m/%d/%y %I:%M %p"],
    "ymd": ["%Y/%m/%d", "%Y-%m-%d %H:%M:%S", "%Y.%m.%d"],
}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dates(date(2001, 1, 1), date(2026, 1, 1)), min_size=1, max_size=20),
    st.sampled_from([form for forms in FORMS.values() for form in forms]),
)
def test_written_dates_are_read_back_where_the_column_tells(days: list[date], form: str) -> None:
    days = [*days, date(2020, 3, 31)]  # which no month can be
    values = [f"{datetime(d.year, d.month, d.day):{form}}" for d in days]
    assert [text[:10] for text in times(*values)] == [f"{day}" for day in days]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12) | st.integers() | st.floats() | st.none(), max_size=6))
def test_any_column_gives_times_or_reasons(values: list[object]) -> None:
    column = TimeColumn()
    for value in values:
        column.add(value)
    for value in values:
        try:
            time = column.time(value)
        except Unusable as problem:
            assert problem.reason
        else:
            assert time is None or time < datetime.now(UTC) + timedelta(days=2)
