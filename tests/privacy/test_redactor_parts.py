"""The redactor's own rules, by hand: placeholders, spellings, overlaps, what was seen before."""

from __future__ import annotations

import pytest

from pfi.privacy.redaction import patterns
from pfi.privacy.redaction.identifiers import Found
from pfi.privacy.redaction.names import handles, names_in
from pfi.privacy.redaction.redactor import Redactor, _joined, _letters
from pfi.records import Record


def test_spellings_are_lettered() -> None:
    letters = [_letters(n) for n in (0, 1, 2, 3, 26, 27, 28, 52, 53, 702, 703)]
    assert letters == ["", "", "b", "c", "z", "aa", "ab", "az", "ba", "zz", "aaa"]


@pytest.mark.parametrize(
    ("spans", "joined"),
    [
        ([(0, 3, "A"), (3, 5, "B")], [(0, 3, "A"), (3, 5, "B")]),  # side by side
        ([(0, 3, "A"), (2, 6, "B")], [(0, 6, "B")]),  # the longer one's kind
        ([(0, 4, "A"), (3, 6, "B")], [(0, 6, "A")]),
        ([(0, 3, "A"), (2, 5, "B")], [(0, 5, "A")]),  # of equal ones the first
        ([(1, 3, "B"), (0, 9, "A")], [(0, 9, "A")]),
        ([(0, 2, "B"), (0, 5, "A")], [(0, 5, "A")]),
        ([(0, 3, "A"), (2, 6, "B"), (5, 8, "C")], [(0, 8, "B")]),
        ([(0, 3, "A"), (2, 6, "B"), (5, 10, "C")], [(0, 10, "C")]),
        ([(0, 6, "A"), (1, 2, "B"), (4, 9, "C")], [(0, 9, "A")]),
    ],
)
def test_overlaps_are_one_of_the_longest_ones_kind(
    spans: list[tuple[int, int, str]], joined: list[tuple[int, int, str]]
) -> None:
    text = "abcdefghij"
    found = _joined([Found(*span, "value") for span in spans], text)
    assert [(one.start, one.stop, one.kind) for one in found] == joined
    for one in found:
        assert one.value in ("value", text[one.start : one.stop])


def test_text_that_was_redacted_in_part_keeps_its_own_placeholders() -> None:
    redactor = Redactor(["Ada King"])
    first = redactor.redact("ada@x.org and Ada King")
    assert first == "[EMAIL_1] and [NAME_1]"
    more = redactor.redact_rest(f"{first} wrote to bo@x.org [EMAIL_7] [email_1]")
    # What only looks like a placeholder is the user's own text, in another spelling too.
    assert more == "[EMAIL_1] and [NAME_1] wrote to [EMAIL_2] [TEXT_1] [TEXT_2]"
    assert redactor.restore(more) == "ada@x.org and Ada King wrote to bo@x.org [EMAIL_7] [email_1]"
    assert redactor.redact_rest("plain") == "plain" and redactor.redact_rest("") == ""


def test_placeholders_that_nobody_made_stay() -> None:
    redactor = Redactor()
    redactor.redact("ada@x.org")
    for text in ("[EMAIL_2]", "[EMAIL_1b]", "[PHONE_1]", "[EMAIL_1", "[EMAILS_1]", "[EMAIL_]"):
        assert redactor.restore(text) == text
    for text in ("[EMAIL_1]", "[email_01]", "[ EMAIL 1 ]", "\\[EMAIL\\_1\\]", "[Email-1]"):
        assert redactor.restore(text) == "ada@x.org"


def test_a_number_that_a_word_gave_away_is_known_without_it() -> None:
    redactor = Redactor()
    redactor.redact("phone 5550123, password: tulip7, pin: 77")
    hidden = redactor.redact("(5550123), 'tulip7'! tulip7: x5550123 77 <5550123>")
    assert hidden == "([PHONE_1]), '[PASSWORD_1]'! [PASSWORD_1]: x5550123 77 <[PHONE_1]>"
    # A word without a digit is a word; other kinds are found by themselves or not at all.
    redactor.redact("password: tulips!, ada@x.org")
    assert redactor.redact("tulips!") == "tulips!"


def test_values_are_numbered_by_kind_and_in_order() -> None:
    redactor = Redactor()
    redactor.learn(["b@x.org", "a@x.org", "+1 202 555 0123"])
    assert redactor.redact("a@x.org B@x.org +12025550123 +1 202 555 0123") == (
        "[EMAIL_2] [EMAIL_1b] [PHONE_1b] [PHONE_1]"
    )


def test_names_are_added_once_and_found_from_then_on() -> None:
    redactor = Redactor(["Ada King", "Ada King"])
    finder = redactor._names
    redactor.add_names(["Ada King"])
    assert redactor._names is finder  # nothing new
    assert redactor.redact("Bo Larsen") == "Bo Larsen"
    redactor.add_names(["Bo Larsen"])
    assert redactor.redact("Bo Larsen, Ada King") == "[NAME_1], [NAME_2]"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ask @ada_l or @ada1", ["ada_l", "ada1"]),
        ("ask @ada", []),  # a word like any other once the sign is gone
        ("see @dataclass_1 and @property", ["dataclass_1"]),
        ("@a1", []), ("@ab1", ["ab1"]), ("me@ada_l", []), ("@ada_l(x)", []), ("@ada_l/x", []),
        ("@ada_l.x", []), ("@ada_l. Then", ["ada_l"]), ("@_ada", []), ("@ada_", []),
    ],
)  # fmt: skip
def test_handles_that_are_names(text: str, names: list[str]) -> None:
    assert handles(text) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ada King <ada@x.org>", ["Ada King"]),
        ("Signed-off-by: Ada King", ["Ada King"]),
        ("Dear Ada,", ["Ada"]), ("dear ada,", []), ("Dear Team,", []),
        ("Hi Dr. Ada King!", ["Ada King"]), ("Hi A", []), ("Hi Bo", ["Bo"]),
        ("Best regards,\nAda", ["Ada"]), ("regards\n\n\nAda King", ["Ada King"]),
        ("regards\n\n\n\nAda", []), ("Best regards from Ada", []),
        ("From: Ada King of the Hill", ["Ada King"]),
    ],
)  # fmt: skip
def test_where_records_name_people(text: str, names: list[str]) -> None:
    assert names_in([Record("r", "t", {"text": text}, "")]) == names
    assert names_in([Record("r", "t", {"text": ""}, text)]) == names


def test_patterns_that_are_not_of_digits_know_all_letters() -> None:
    flags = {kind: bool(pattern.flags & 256) for kind, pattern, _ in patterns.PATTERNS}
    assert {kind for kind, ascii_only in flags.items() if not ascii_only} == {
        "EMAIL", "PASSWORD", "ADDRESS", "HANDLE", "NAME"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("phone: 2024-05-12", False), ("phone: 12.05.2024", False), ("phone: 202-405-1234", True),
        ("phone: 1.2.3.4567", False), ("phone: 12.34.5678", True), ("phone: 123456", False),
        ("phone +12 34567 now", True), ("phone then (020) 7946 0958", True),
    ],
)  # fmt: skip
def test_what_follows_a_word_for_phones(text: str, hidden: bool) -> None:
    assert ("[PHONE_1]" in Redactor().redact(text)) == hidden


@pytest.mark.parametrize(
    ("text", "hidden"),
    [("sk-abcdefghijklmnop", False), ("sk-abcdefghijklmno1", True), ("pk_a1a1a1a1a1a1a1a1", False),
     ("rk-abcdefghi1abcdefgh", True), ("sk-abcdefgh1abcdefghh", True),
     ("xk-abcdefghijklmno1", False)],
)  # fmt: skip
def test_keys_of_few_prefixes_need_a_digit_and_ten_signs(text: str, hidden: bool) -> None:
    assert ("[KEY_1]" in Redactor().redact(f"so {text} it")) == hidden
