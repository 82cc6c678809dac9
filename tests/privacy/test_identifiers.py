"""What the privacy filter takes for a number of somebody's: check digits and numbering plans."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from identifier_cases import PUBLISHED

from pfi.privacy.redaction import checksums
from pfi.privacy.redaction.redactor import Redactor


def test_changed_check_digits_do_not_count() -> None:
    rng = random.Random(1)
    for number, check in [
        ("DE89370400440532013000", checksums.iban),
        ("4111111111111111", checksums.card),
        ("9434765919", checksums.uk_nhs),
        ("86095742719", checksums.de_tax),
        ("295109912611193", checksums.fr_nir),
        ("12345678Z", checksums.es_dni),
        ("RSSMRA85T10A562S", checksums.it_cf),
        ("111222333", checksums.nl_bsn),
        ("44051401359", checksums.pl_pesel),
        ("11144477735", checksums.br_cpf),
        ("11010519491231002X", checksums.cn_ric),
        ("8112289874", checksums.se_pin),
        ("131052-308T", checksums.fi_hetu),
        ("490154203237518", checksums.imei),
        ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", checksums.base58),
    ]:
        assert check(number), number
        place = rng.choice([i for i, c in enumerate(number) if c.isdigit() and i >= 2])
        digit = str((int(number[place]) + rng.randint(1, 8)) % 10)
        if digit in "01" and check is checksums.base58:
            digit = "9" if number[place] != "9" else "8"
        assert not check(number[:place] + digit + number[place + 1 :]), number


def test_published_numbers_are_found() -> None:
    for kind, values in PUBLISHED.items():
        for value in values:
            assert Redactor().redact(f"it is {value}, ok") == f"it is [{kind.upper()}_1], ok"


def test_what_is_stricter_or_laxer_than_the_library() -> None:
    assert checksums.us_ssn("219099999")  # a printed specimen
    assert not checksums.us_ssn("666121234")
    assert checksums.se_pin("7010632391")  # a coordination number: the 3rd, plus 60
    assert not checksums.se_pin("7010602399")  # the day 0
    assert checksums.iban_length("NO") == 15
    assert checksums.iban_length("US") == 0


def test_device_numbers_behind_their_word() -> None:
    redactor = Redactor()
    assert redactor.redact("IMEI: 49-015420-323751-8, imei 490154203237519") == (
        "IMEI: [ID_1], imei 490154203237519"
    )


@pytest.mark.parametrize(
    "number",
    ["212.555.0123", "0412 345 678", "06.12.34.56.78", "8 (912) 345-67-89",
     "(11) 96123-4567", "139 1234 5678", "020-7946 0958", "|212-456-7890|"],
)  # fmt: skip
def test_national_phones_need_no_word(number: str) -> None:
    redacted = Redactor().redact(f"I left {number} with him")
    assert redacted.replace("|", "") == "I left [PHONE_1] with him"


@pytest.mark.parametrize(
    "text",
    [
        "0.49706795, 0.576204 (0.857584)",
        "1 2 3 4 5 6 7 8 9 0",
        "2024-05-12 10 and 12.05.2024 11",
        "1 250 000 of 10 500 000",
        "version 10.4.212.212",
        "4000.0 - 1456.0",
        "tiles 64/128/256",
        "1984 - 2024, 10240 / 81920",
        "order 253425253)",
        "212-456-78901 and 10240 81920",
    ],
)
def test_other_numbers_are_no_phones(text: str) -> None:
    assert Redactor().redact(text) == text


@given(st.text(st.sampled_from("0123456789XYZABCDEFLMN-+ ."), min_size=9, max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_check_fails_on_odd_numbers(text: str) -> None:
    redactor = Redactor()
    assert redactor.restore(redactor.redact(text)) == text
