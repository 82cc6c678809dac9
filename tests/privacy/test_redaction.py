"""The privacy filter: a planted corpus, round trips, names, and time on hostile texts."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from identifier_cases import (
    CHECKSUM_KINDS,
    CONTACTS,
    all_kinds,
    generated_cases,
    written_cases,
)
from redaction_score import Score, score

from pfi.privacy.redaction import urls
from pfi.privacy.redaction.phones import REGIONS
from pfi.privacy.redaction.redactor import KINDS, Redactor, names_in
from pfi.records import Record

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def total() -> Score:
    return score([*written_cases("first"), *written_cases("second"), *generated_cases()])


def test_the_corpus_is_as_large_as_promised() -> None:
    cases = [*written_cases("first"), *written_cases("second"), *generated_cases()]
    negatives = [case for case in cases if not case.spans]
    assert len({case.text for case in cases}) >= 480
    assert len(all_kinds(cases)) >= 12
    assert len(negatives) >= 100
    assert len(written_cases("first")) >= 60
    assert {kind.upper() for kind in all_kinds(cases)} == set(KINDS)


@pytest.mark.parametrize("seed", [4, 5, 6, 7])
def test_nothing_of_the_checksum_kinds_leaves(seed: int) -> None:
    cases = generated_cases(seed, per_kind=25) + written_cases("first") + written_cases("second")
    redactor = Redactor(CONTACTS)
    planted = 0
    for case in cases:
        redacted = redactor.redact(case.text)
        for start, stop, kind in case.spans:
            if kind in CHECKSUM_KINDS:
                planted += 1
                assert case.text[start:stop] not in redacted, case.text
    assert planted > 100


def test_recall_and_precision(total: Score) -> None:
    recall = total.hit.total() / total.planted.total()
    precision = total.right.total() / total.found.total()
    assert recall >= 0.99, total.wrong
    assert precision >= 0.99, total.wrong
    for kind in CHECKSUM_KINDS:
        assert total.hit[kind] == total.planted[kind] > 0
        assert total.right[kind] == total.found[kind]
    for kind, planted in total.planted.items():
        assert total.hit[kind] / planted >= 0.95, kind


def test_other_seeds_score_the_same() -> None:
    """The patterns are not fitted to one draw."""
    other = score([case for seed in range(20, 25) for case in generated_cases(seed)])
    assert other.hit.total() / other.planted.total() >= 0.995, other.wrong
    assert other.right.total() / other.found.total() >= 0.98, other.wrong


def test_the_scoring_sees_a_miss_and_an_excess() -> None:
    [case] = [c for c in written_cases("first") if "ana.silva" in c.text]
    wrong = score([case], find=lambda text: [])
    assert (wrong.hit["email"], wrong.planted["email"]) == (0, 1)
    spread = Redactor(["until Friday"])
    wrong = score([case], find=spread.find)
    assert (wrong.right["name"], wrong.found["name"]) == (0, 1)


# Placeholders -------------------------------------------------------------------------


def test_a_value_has_one_placeholder_and_spellings_a_letter() -> None:
    redactor = Redactor()
    text = "a@example.org, A@Example.org, b@example.org, a@example.org"
    redacted = redactor.redact(text)
    assert redacted == "[EMAIL_1], [EMAIL_1b], [EMAIL_2], [EMAIL_1]"
    assert redactor.restore(redacted) == text
    assert redactor.redact("DE89370400440532013000") == "[IBAN_1]"
    assert redactor.redact("de89 3704 0044 0532 0130 00") == "[IBAN_1b]"


def test_many_spellings_stay_apart() -> None:
    redactor = Redactor()
    texts = [f"{n:010b}".translate({48: "a", 49: "A"}) + "@example.org" for n in range(800)]
    redacted = [redactor.redact(text) for text in texts]
    assert len(set(redacted)) == 800
    assert [redactor.restore(text) for text in redacted] == texts


@pytest.mark.parametrize(
    "written",
    [
        "[EMAIL_1]",
        "[email_1]",
        "[ EMAIL_1 ]",
        "[Email 1]",
        r"\[EMAIL\_1\]",
        "[EMAIL-1]",
        "[EMAIL1]",
    ],
)
def test_placeholders_as_models_write_them(written: str) -> None:
    redactor = Redactor()
    redactor.learn(["a@example.org"])
    assert redactor.restore(f"to {written}.") == "to a@example.org."


def test_unknown_placeholders_stay() -> None:
    assert Redactor().restore("ask [NAME_7] or [EMAIL_1]") == "ask [NAME_7] or [EMAIL_1]"


def test_text_that_looks_like_a_placeholder_survives() -> None:
    redactor = Redactor()
    text = r"[EMAIL_1] is \[name\_2\] of a@example.org, [ text 1 ], [[IP_1]]"
    redacted = redactor.redact(text)
    assert "a@example.org" not in redacted
    assert redactor.restore(redacted) == text


def test_learning_fixes_the_numbers() -> None:
    texts = ["a@example.org", "b@example.org", "call +12015550123"]
    one, two = Redactor(), Redactor()
    one.learn(texts)
    two.learn(texts)
    assert [one.redact(t) for t in texts] == [two.redact(t) for t in reversed(texts)][::-1]
    assert two.redact("b@example.org") == "[EMAIL_2]"


def test_a_secret_named_once_is_known_everywhere() -> None:
    redactor = Redactor()
    texts = [
        "I typed hunter2! again (9810012345).",
        "password: hunter2!",
        "ph 9810012345",
        "pw: sunshine",
    ]
    redactor.learn(texts)
    assert redactor.redact(texts[0]) == "I typed [PASSWORD_1] again ([PHONE_1])."
    assert redactor.redact("hunter2!") == "[PASSWORD_1]"
    assert redactor.redact("sunshine hunter2!x") == "sunshine hunter2!x"  # a word is a word
    assert redactor.restore(redactor.redact(texts[0])) == texts[0]


def test_the_example_of_the_documentation() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text("utf-8")
    shown = re.search(r"^here: +(.*)\nsent: +(.*)$", page, re.MULTILINE)
    assert shown
    assert Redactor(["Maria Lopes"]).redact(shown[1]) == shown[2]


def test_every_kind_is_documented() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text("utf-8")
    for kind in KINDS:
        assert f"`{kind}`" in page
    assert f"{len(REGIONS)} countries" in page


def test_overlaps_leave_nothing() -> None:
    redactor = Redactor(["Ana Silva"])
    for text, values in {
        "https://ana:pa55word@example.org/users/12345?mail=ana@example.com": [
            "pa55",
            "12345",
            "ana@",
        ],
        "password: ana@example.org": ["ana"],
        "ana silva@example.org": ["silva"],
    }.items():
        redacted = redactor.redact(text)
        for value in values:
            assert value not in redacted, redacted
        assert redactor.restore(redacted) == text


_PIECES = st.sampled_from(
    [
        "[",
        "]",
        "\\",
        "_",
        "EMAIL",
        "[EMAIL_1]",
        "name",
        "1",
        "2b",
        " ",
        "a@example.org",
        "A@EXAMPLE.org",
        "DE89 3704 0044 0532 0130 00",
        "+12015550123",
        "Maria Lopes",
        "maria",
        "'s",
        "王小明",
        "\u200b",
        "５",
        "password: ",
        "https://example.org/users/12345",
        "\n",
        ".",
        "4111111111111111",
        "192.0.2.1",
        "@x",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.lists(_PIECES, max_size=8).map("".join)), max_size=4
    )
)
def test_restoring_gives_back_every_text(texts: list[str]) -> None:
    redactor = Redactor(CONTACTS)
    redacted = [redactor.redact(text) for text in texts]
    assert [redactor.restore(text) for text in redacted] == texts


def test_the_corpus_comes_back() -> None:
    redactor = Redactor(CONTACTS)
    cases = [*written_cases("first"), *written_cases("second"), *generated_cases()]
    for case in cases:
        assert redactor.restore(redactor.redact(case.text)) == case.text


def test_placeholders_tell_nothing_of_the_value() -> None:
    for case in generated_cases():
        redactor = Redactor(CONTACTS)
        for found in re.findall(r"\[[^\[\]]*\]", redactor.redact(case.text)):
            if found not in case.text:
                assert re.fullmatch(r"\[[A-Z]+_\d\]", found), found


# Names --------------------------------------------------------------------------------


def test_names_as_parts_and_with_possessives() -> None:
    redactor = Redactor(["Maria Lopes", "Maria Costa", "Bo", "Will Page"])
    assert redactor.redact("Maria Lopes's, lopes, Lopes’ and MARIA COSTA") == (
        "[NAME_1]'s, [NAME_1b], [NAME_1c]’ and [NAME_2]"
    )
    assert redactor.redact("Bo bo Boo Bo's") == "[NAME_3] bo Boo [NAME_3]'s"
    # Maria may be either of two, so she is a third.
    assert redactor.redact("Maria") == "[NAME_4]"
    assert (
        redactor.redact("Will you? I will. Ask Will, page 3")
        == "Will you? I will. Ask [NAME_5], page 3"
    )


def test_no_names_and_odd_names_are_harmless() -> None:
    assert Redactor(["", " ", "-", "\u200b"]).redact("as it was") == "as it was"


def record(text: str, n: int = 0) -> Record:
    return Record(f"r{n}", "LaMP_4", {"text": text}, "x")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("From: Ana Silva <ana@example.org>", ["Ana Silva"]),
        ("Dear Dr. Ilse Roth,\nthank you", ["Ilse Roth"]),
        ("Hi Tom!\nHow are you?", ["Tom"]),
        ("see you\n\nKind regards,\nLena Kraus\n", ["Lena Kraus"]),
        ("fix a bug\n\nSigned-off-by: Wei Chen <wei@example.org>", ["Wei Chen"]),
        ("Viele Grüße\nJörg", ["Jörg"]),
        ("thanks @lena_kr, see @property and a@example.org", ["lena_kr"]),
        ("ask @home and @Anna", []),  # else every "home" would go
        ("Hi all,\nDear Sir or Madam,\nRegards\n\nThe train left.", []),
        ("Regards", []),
        ("Thanks\nfor the fish", []),
        ("template <typename@T> and x <a@b", []),
    ],
)
def test_names_in_records(text: str, names: list[str]) -> None:
    assert names_in([record(text)]) == names


def test_names_found_in_one_record_are_replaced_in_all() -> None:
    records = [record("Dear Ilse Roth,\nhello"), record("I met Ilse, and ilse roth left", 1)]
    redactor = Redactor(names_in(records))
    assert redactor.redact(records[1].input["text"]) == "I met [NAME_1], and [NAME_1b] left"


# Spellings and time -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "４１１１　１１１１　１１１１　１１１１",
        "4111\u20111111\u20111111\u20111111",
        "4111\u00a01111\u00a01111\u00a01111",
        "41\u200b11 1111 1111 1111",
        "٤١١١ ١١١١ ١١١١ ١١١١",
        "卡号4111111111111111。",
    ],
)
def test_digits_dashes_and_spaces_of_other_scripts(text: str) -> None:
    redactor = Redactor()
    assert re.search(r"\d", redactor.redact(text).replace("[CARD_1]", "")) is None
    assert redactor.restore(redactor.redact(text)) == text


def test_which_addresses_hold_an_id() -> None:
    for segment in [
        "install",
        "a-long-title-of-a-page",
        "v1.2.3",
        "2024-05-12",
        "2505.06907",
        "1234",
    ]:
        assert not urls.is_id(segment), segment
    for segment in ["8841203", "1A2b3C4d5E6f7G8h9I0jKlMnOpQrStUv", "deadbeef01", "a%40example.org"]:
        assert urls.is_id(segment), segment


@pytest.mark.parametrize("unit", ["a", "1", "a@", "-----BEGIN PRIVATE KEY-----"])
def test_a_megabyte_of_anything_takes_linear_time(unit: str) -> None:
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    start = time.process_time()
    Redactor(["Maria Lopes"]).redact(text)
    assert time.process_time() - start < 30  # quadratic: hours


@pytest.mark.parametrize(
    "unit",
    [
        "1 ",
        "12-",
        "[",
        "[EMAIL_",
        "key=",
        "token: a",
        "password: ",
        "+1",
        "( 1",
        "eyJa.",
        "DE12 ",
        "1 Ab ",
        "O'Neill",
        "ab:",
        "12.12345, ",
        "Calle A ",
        "Hi \n",
        "regards\n",
        "Ana <",
        "www.",
        "http://a/",
        "王",
        "\u200b",
        "passport ",
        "°1",
        "030 901820,x ",
    ],
)
def test_hostile_repeats_take_linear_time(unit: str) -> None:
    text = (unit * (40_000 // len(unit) + 1))[:40_000]
    start = time.process_time()
    Redactor(["Maria Lopes", "O'Neill", "王小明"]).redact(text)
    names_in([record(text)])
    assert time.process_time() - start < 5  # about 0.2 s


def test_a_thousand_contacts_cost_no_more_than_one() -> None:
    names = [f"First{n} Last{n}" for n in range(5000)]
    text = "some words First77 Last77 and more words " * 500
    start = time.process_time()
    redacted = Redactor(names).redact(text)
    assert time.process_time() - start < 5
    assert Counter(redacted.split())["[NAME_1]"] == 500


def test_names_that_were_given_earlier_stay_hidden_when_others_are_added() -> None:
    redactor = Redactor(["Ottilie Brandt"])
    redactor.add_names(["Kasimir Nowak"])
    redactor.add_names(["Kasimir Nowak", "Wim Peeters"])
    text = "Ottilie Brandt met Kasimir Nowak and Wim Peeters."
    hidden = redactor.redact(text)
    for name in ("Ottilie", "Brandt", "Kasimir", "Nowak", "Wim", "Peeters"):
        assert name not in hidden
    assert redactor.restore(hidden) == text


def test_text_of_the_users_own_that_looks_like_a_placeholder_is_replaced_too() -> None:
    redactor = Redactor()
    text = "The form says [EMAIL_7]; write to ada@example.org."
    hidden = redactor.redact(text)
    assert "[EMAIL_7]" not in hidden and "ada@example.org" not in hidden
    assert redactor.restore(hidden) == text
    # Else the seventh address would come back in its place.
    for number in range(2, 9):
        redactor.redact(f"mail p{number}@example.org")
    assert redactor.restore(hidden) == text


@pytest.mark.parametrize(("secret", "again"), [("ab12cd", True), ("a1b2c", False)])
def test_a_secret_of_six_characters_is_known_again_without_its_word(
    secret: str, again: bool
) -> None:
    redactor = Redactor()
    assert secret not in redactor.redact(f"password: {secret}")
    assert (secret not in redactor.redact(f"try {secret} once more")) == again
