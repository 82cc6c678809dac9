"""Where each kind of identifier begins and ends: the shortest and longest, and one beyond."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

import pytest
from stdnum import luhn

from pfi.privacy.redaction import checksums, urls
from pfi.privacy.redaction.identifiers import identifiers, plain
from pfi.privacy.redaction.names import NameFinder
from pfi.privacy.redaction.redactor import Redactor


def kinds(text: str) -> list[str]:
    """The kinds of what the filter replaces, in order."""
    return [found.kind for found in Redactor().find(text)]


def mixed(count: int) -> str:
    """Letters and digits that look drawn by chance."""
    return "".join(islice(cycle("a1B2c3D4e5F6g7H8i9J0kLmN"), count))


# Lengths ------------------------------------------------------------------------------

#: Kind, what is made of so many signs, and from how many to how many it is found.
LENGTHS: list[tuple[str, Callable[[int], str], int, int | None]] = [
    ("PHONE", lambda n: f"+1{'2' * n}", 6, 14),
    ("PHONE", lambda n: f"0049 {'3' * n}", 6, 12),
    ("PHONE", lambda n: f"phone {'5' * n}", 7, 15),
    ("PHONE", lambda n: f"call{' ' * n}5550123", 1, 24),
    ("PHONE", lambda n: f"tel 555{'-' * n}0123", 0, 3),
    ("EMAIL", lambda n: f"ada@example.{'o' * n}", 2, 24),
    ("EMAIL", lambda n: f"ada@{'x' * n}.org", 1, 63),
    ("EMAIL", lambda n: f"ada (at) example (dot) {'o' * n}", 2, 24),
    ("EMAIL", lambda n: f"ada (at) {'x' * n} (dot) org", 1, 63),
    ("KEY", lambda n: f"AKIA{'Q' * n}", 16, 16),
    ("KEY", lambda n: f"ghp_{mixed(n)}", 20, None),
    ("KEY", lambda n: f"xoxb-{mixed(n)}", 10, None),
    ("KEY", lambda n: f"sk-{mixed(n)}", 16, None),
    ("KEY", lambda n: f"AIza{mixed(n)}", 35, None),
    ("KEY", lambda n: f"SG.{mixed(n)}.{mixed(16)}", 16, None),
    ("KEY", lambda n: f"SG.{mixed(16)}.{mixed(n)}", 16, None),
    ("KEY", lambda n: f"eyJ{'x' * n}.{'y' * 4}", 6, None),
    ("KEY", lambda n: f"eyJ{'x' * 6}.{'y' * n}", 4, None),
    ("KEY", lambda n: f"secret: {mixed(n)}", 16, None),
    ("KEY", lambda n: f"token{' ' * n}{mixed(16)}", 1, 2),
    ("KEY", lambda n: f"token{' ' * n}={mixed(16)}", 0, 2),
    ("PASSWORD", lambda n: f"password: {'x' * n}", 3, None),
    ("PASSWORD", lambda n: f"password{' ' * n}: tulip", 0, 2),
    ("PASSWORD", lambda n: f"password is{' ' * n}tulip7", 1, 2),
    ("PASSWORD", lambda n: f"curl -u {'a' * n}:bc", 1, 99),
    ("IP", lambda n: f"at {'1' * n}.22.33.44", 1, 3),
    ("IP", lambda n: f"at 11.{'2' * n}.33.44", 1, 3),
    ("IP", lambda n: f"at 11.22.{'1' * n}.44", 1, 3),
    ("IP", lambda n: f"at 11.22.33.{'2' * n}", 1, 3),
    ("MAC", lambda n: ":".join(["a1"] * n), 6, 6),
    ("MAC", lambda n: ".".join(["a1b2"] * n), 3, 3),
    ("CRYPTO", lambda n: f"0x{'a1' * (n // 2)}{'b' * (n % 2)}", 40, 40),
    ("CRYPTO", lambda n: f"bc1q{'w' * n}", 38, 38),
    ("LOCATION", lambda n: f"gps 48.{'1' * n}, 11.57549", 4, 17),
    ("LOCATION", lambda n: f"gps 48.13743, 11.{'5' * n}", 4, 17),
    ("LOCATION", lambda n: f"lat={'1' * n}.137", 1, 3),
    ("LOCATION", lambda n: f"lat=48.{'1' * n}", 3, None),
    ("ADDRESS", lambda n: f"at {'1' * n} Elm Street", 1, 5),
    ("ADDRESS", lambda n: f"at 12{' Elm' * n} Street", 1, 3),
    ("ADDRESS", lambda n: f"in der Gartenstraße {'1' * n}", 1, 4),
    ("ADDRESS", lambda n: f"au {'1' * n} rue de la Paix", 1, 4),
    ("ADDRESS", lambda n: f"Calle {'Mayor ' * n}12", 1, 3),
    ("HANDLE", lambda n: f"ask @{'a' * n} now", 1, 38),
    ("ID", lambda n: f"passport no {'X1' + '2' * (n - 2)}", 6, 10),
    ("ID", lambda n: f"ssn {' ' * n}219099999", 0, 15),
    ("ID", lambda n: f"nhs {' ' * n}9434765919", 0, 15),
    ("ID", lambda n: f"bsn {' ' * n}111222333", 0, 15),
    ("ID", lambda n: f"imei {' ' * n}490154203237518", 0, 15),
]


@pytest.mark.parametrize(("kind", "made", "least", "most"), LENGTHS)
def test_each_kind_is_found_from_its_shortest_to_its_longest(
    kind: str, made: Callable[[int], str], least: int, most: int | None
) -> None:
    assert kind in kinds(made(least)), made(least)
    assert kind in kinds(made(most or 4 * least)), made(most or 4 * least)
    if least > 0:
        assert kind not in kinds(made(least - 1)), made(least - 1)
    if most is not None:
        assert kind not in kinds(made(most + 1)), made(most + 1)


# Borders ------------------------------------------------------------------------------

#: What is found alone, and signs at its left and right that make it part of something else.
BORDERS = [
    ("+12223334444", "a+", ""),
    ("AKIAABCDEFGHIJKLMNOP", "aZ0", "aZ0"),
    ("ghp_" + "a1B2c3D4e5F6g7H8i9J0", "aZ0", ""),
    ("SG." + "a1B2c3D4e5F6g7H8" + "." + "a1B2c3D4e5F6g7H8", "a-", ""),
    ("12345678Z", "a-", "a"),
    ("X1234567L", "a-", "a"),
    ("RSSMRA85T10A562S", "a", "a"),
    ("295109912611193", "a", "a"),
    ("11010519491231002X", "a", "a"),
    ("111.444.777-35", "a1", "a1"),
    ("811228-9874", "a1-", "a1-"),
    ("131052-308T", "a1", "a1"),
    ("QQ 12 34 56 C", "a", "a"),
    ("11.22.33.44", "a.-", "a"),
    ("2001:db8::8a2e:370:7334", "a:.", "g:"),
    ("a1:b2:c3:d4:e5:f6", "a:-", "a:-"),
    ("a1b2.c3d4.e5f6", "a.", "a"),
    ("0x" + "a1" * 20, "aZ9", "aZ9"),
    ("bc1q" + "w" * 38, "aZ9", "a9"),
    ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "aZ9", "a9"),
    ("gps=48.13743,11.57549", "", "a1"),
    ("@ada_l", "a@./+-", "@/=-("),
    ("12 Elm Street", "a.", "a"),
    ("Gartenstraße 12", "a", ""),
    ("4111111111111111", "a_", "a_"),
    ("DE89370400440532013000", "a1", "a1"),
]


@pytest.mark.parametrize(("text", "left", "right"), BORDERS)
def test_what_is_part_of_a_longer_word_is_none(text: str, left: str, right: str) -> None:
    (kind,) = kinds(f"see {text} now")
    for sign in left:
        whole = f"see {sign}{text} now"
        assert (kind, text) not in spelled(whole), sign
    for sign in right:
        whole = f"see {text}{sign} now"
        assert (kind, text) not in spelled(whole), sign


def spelled(text: str) -> list[tuple[str, str]]:
    """The kind of what the filter replaces, and how it is written."""
    return [(found.kind, text[found.start : found.stop]) for found in Redactor().find(text)]


# Numbers ------------------------------------------------------------------------------


def card_of(prefix: str, size: int) -> str:
    """A number of that length with the right last digit."""
    digits = prefix + "0" * (size - len(prefix) - 1)
    return digits + luhn.calc_check_digit(digits)


@pytest.mark.parametrize(
    ("prefix", "sizes"),
    [
        ("4", [13, 16, 19]),
        *[(prefix, [16]) for prefix in ("51", "55", "2221", "2720")],
        *[(prefix, [15]) for prefix in ("34", "37")],
        *[(prefix, [14]) for prefix in ("36", "38", "39", "300", "305")],
        *[(prefix, [16, 17, 18, 19]) for prefix in ("62", "64", "65", "6011", "3528", "3589")],
        *[(prefix, [16, 17, 18, 19]) for prefix in ("50", "56", "57", "58", "63", "67")],
        *[(prefix, []) for prefix in ("2220", "2721", "299", "306", "33", "6010", "6012")],
        *[(prefix, []) for prefix in ("3527", "3590", "61", "66", "68", "59", "60")],
    ],
)
def test_a_cards_network_decides_its_lengths(prefix: str, sizes: list[int]) -> None:
    assert [n for n in range(12, 21) if checksums.card(card_of(prefix, n))] == sizes
    for size in sizes:
        number = card_of(prefix, size)
        assert not checksums.card(number[:-1] + str((int(number[-1]) + 1) % 10))
        assert kinds(f"paid with {number}.") == ["CARD"]


@pytest.mark.parametrize(
    ("number", "right"),
    [
        ("001010001", True), ("000010001", False), ("665010001", True), ("666010001", False),
        ("667010001", True), ("899010001", True), ("900010001", False), ("123000001", False),
        ("123010000", False), ("123990001", True), ("999999999", False),
    ],
)  # fmt: skip
def test_social_security_numbers_that_are_never_given_out(number: str, right: bool) -> None:
    assert checksums.us_ssn(number) == right
    split = f"{number[:3]}-{number[3:5]}-{number[5:]}"
    assert ("ID" in [one.kind for one in identifiers(f"it is {split}")]) == right


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("abcdefg1h", True),  # a change to a digit and one back
        ("abcdefgh1", False),  # one change
        ("abcdefghi", False),
        ("12345678", False),  # no letter
        ("a1b2c3d4", True),  # eight signs
        ("a1b2c3d3", False),  # seven
        ("a" * 63 + "1bcdefghi", False),  # of the first 64 only
        ("a" * 62 + "1bcdefghi", True),
    ],
)
def test_what_looks_drawn_by_chance(text: str, looks: bool) -> None:
    assert checksums.random_looking(text) == looks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4111 1111 1111 1111", ["CARD"]),
        ("4111-1111-1111-1111", ["CARD"]),
        ("4111.1111.1111.1111", ["CARD"]),
        ("4111 1111-1111 1111", ["CARD"]),
        ("4111 1111\n1111 1111", ["CARD"]),
        ("4111 1111  1111 1111", ["CARD"]),
        ("4111 1111 / 1111 1111", []),
        ("4111\n1111\n1111\n1111", []),
        ("378 2822 4631 0005", ["CARD"]),
        ("37 8282 2463 10005", []),
        ("219-09-9999", ["ID"]),
        ("219 09 9999", ["ID"]),
        ("219.09.9999", []),
        ("943 476 5919", ["ID"]),
        ("943-476-5919", ["ID"]),
        ("943 476 5918", []),
        ("86 095 742 719", ["ID"]),
        ("86095742719", ["ID"]),
        ("44051401359", ["ID"]),
        ("44 051 401 359", []),
    ],
)
def test_numbers_in_groups(text: str, expected: list[str]) -> None:
    assert [one.kind for one in identifiers(f"so {text} it") if one.kind in ("CARD", "ID")] == (
        expected
    )


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("DE89370400440532013000", 22),
        ("de89 3704 0044 0532 0130 00", 27),
        ("DE89-3704-0044-0532-0130-00", 27),
        ("IBANDE89370400440532013000", 26),
        ("DE89370400440532013001", None),
        ("DE8937040044053201300", None),
        ("DE893704004405320130001", None),
        ("US89370400440532013000", None),
        ("NO9386011117947", 15),
        ("NO93 8601 1117 947 and", 18),
    ],
)
def test_an_iban_ends_where_its_country_says(text: str, stop: int | None) -> None:
    stops = [one.stop for one in identifiers(text) if one.kind == "IBAN"]
    assert stops == ([] if stop is None else [stop])


# Internet -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("255.1.1.1", True), ("256.1.1.1", False), ("0.1.1.1", False), ("1.0.0.1", True),
        ("127.0.0.1", False), ("128.0.0.1", True), ("255.255.255.0", False),
        ("255.255.254.0", True), ("version 10.4.2.1", False), ("host version 10.4.2.1", True),
        ("server 10.4.2.1", True), ("version of long ago and so on: then 10.4.2.1", True),
        ("::1", False), ("a::b", False), ("fe80::1", True), ("fe8::1", True), ("fe::1", False),
        ("::ffff:10.1.2.3", True), ("64:ff9b::1", True), ("2001:db8:::1", False),
    ],
)  # fmt: skip
def test_which_internet_addresses_tell_on_somebody(text: str, hidden: bool) -> None:
    assert ("IP" in kinds(f"so {text} it")) == hidden


@pytest.mark.parametrize(
    ("piece", "is_one"),
    [
        ("12345", True), ("1234", False), ("20240512", False), ("30240512", True),
        ("19991231", False), ("2024051", True), ("202405123", True),
        ("deadbeef", False), ("deadbee1", True), ("deadbe1", False),
        ("aaaaaB3a", True), ("aaaaB3a", False), ("aaaaaaaB", False),
        ("abcdefghijklmnopqrs1", True), ("abcdefghijklmnopqr1", False),
        ("abcdefghijklmnopqrst", False), ("2403.19211", False), ("2403.19211v2", False),
        ("2403.192111", True), ("a@b", True), ("a%40b", True), ("aB-cD-eF-gH", True),
        ("aB-cD-eF-g", False), ("release-notes", False),
        ("123e4567-e89b-12d3-a456-426614174000", True),
    ],
)  # fmt: skip
def test_which_piece_of_an_address_is_an_id(piece: str, is_one: bool) -> None:
    assert urls.is_id(piece) == is_one


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://x.org/item/12345", "item/12345"),
        ("https://x.org/item/12345).", "item/12345"),
        ("https://x.org/item/(12345)", "item/(12345)"),
        ("https://x.org/~ada", "~ada"),
        ("https://x.org/about", None),
        ("https://x.org/", None),
        ("https://x.org?token=abc", "token=abc"),
        ("https://x.org/a?q=1&token=abc", "a?q=1&token=abc"),
        ("https://x.org/a?q=word", None),
        ("https://x.org/a?q=word#987654", "a?q=word#987654"),
        ("https://x.org/a?mail=ada@b", "a?mail=ada@b"),
        ("https://x.org/a?token=", None),
        ("www.x.org/item/12345", "item/12345"),
        ("x.org/item/12345", None),
    ],
)
def test_which_part_of_an_address_is_private(url: str, private: str | None) -> None:
    spans = [url[start:stop] for start, stop in urls.private_parts(url)]
    assert spans == ([] if private is None else [private])


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("https://ada:pw@x.org/a", "ada:pw"),
        ("https://ghp_token@x.org", "ghp_token"),
        ("ssh://git@x.org/a", None),
        ("ssh://gitte@x.org/a", "gitte"),
        ("https://x.org/@ada", None),
    ],
)
def test_logins_before_the_host(url: str, login: str | None) -> None:
    assert [url[a:b] for a, b in urls.logins(f"see {url}"[4:])] == ([login] if login else [])


# Words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("password: tulip", "tulip"),
        ("password is tulip7", "tulip7"),
        ("password is tulip", None),  # tells none: "the password is long"
        ("password = (see below)", None),
        ("password: ....", None),
        ("my passwords: a-b-c", "a-b-c"),
        ("compass: tulip7", None),
        ('{"password": "tulip"}', "tulip"),
        ("curl -u ada:tulip x", "ada:tulip"),
        ("curl-u ada:tulip x", None),
    ],
)
def test_passwords_that_are_named_so(text: str, secret: str | None) -> None:
    hidden = [text[one.start : one.stop] for one in identifiers(text) if one.kind == "PASSWORD"]
    assert hidden == ([secret] if secret else [])


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("gps 48.1374, 11.5754", True),
        ("at 48.1374, 11.5754", False),  # four decimals and nothing that says what they are
        ("at 48.13743, 11.5754", True),
        ("gps 90.0000, 180.0000", True),
        ("gps 90.0001, 11.5754", False),
        ("gps 48.1374, 180.0001", False),
        ("gps 0.9999, 1.0000", False),
        ("gps 0.9999, 1.0001", True),
        ("gps 1.5, 48.13743, 11.57543", False),  # a row of numbers
        ("gps 48.13743, 11.57543, 3.5", False),
        ("gps 48.13743; 11.57543", True),
    ],
)
def test_which_pairs_are_places(text: str, hidden: bool) -> None:
    assert ("LOCATION" in kinds(text)) == hidden


def test_mail_addresses_and_what_is_written_like_them() -> None:
    assert kinds("git@github.com:ada/x") == [] and kinds("git@github.com") == ["EMAIL"]
    assert kinds("gitte@github.com:ada/x") == ["EMAIL"]
    assert "EMAIL" not in kinds("https://x.org@example.org")
    assert kinds("http://x.org/ and ada@example.org") == ["EMAIL"]


def test_text_without_ascii_is_found_where_it_was() -> None:
    wide, places = plain("tel\u200b: 555\u20110123")
    assert wide == "tel: 555-0123" and places == [0, 1, 2, *range(4, 14)]
    assert plain("a\u00a0b") == ("a b", None) and plain("ab") == ("ab", None)
    assert plain("\uff21\uff5e\u0663") == ("A~3", None)
    text = "tel\u200b: 555\u20110123 ok"
    (one,) = Redactor().find(text)
    assert text[one.start : one.stop] == "555\u20110123"


# Names --------------------------------------------------------------------------------


def names(known: list[str], text: str) -> list[tuple[str, str]]:
    return [(text[one.start : one.stop], one.value) for one in NameFinder(known).find(text)]


def test_a_whole_name_comes_before_its_parts() -> None:
    known = ["Ada Lovelace", "Ada Lovelace King", "Bo Li"]
    text = "ada lovelace king, Ada  Lovelace, Lovelace's and Ada; Bo, bo li"
    assert names(known, text) == [
        ("ada lovelace king", "ada lovelace king"),
        ("Ada  Lovelace", "ada lovelace"),
        ("Lovelace", "lovelace"),  # of two people: its own
        ("Ada", "ada"),
        ("bo li", "bo li"),  # a part of two letters is none
    ]


def test_the_parts_of_a_name_stand_close_together() -> None:
    assert names(["Ada King"], "Ada - King") == [("Ada - King", "ada king")]
    assert [value for _, value in names(["Ada King"], "Ada -- King")] == ["ada king"] * 2
    assert [text for text, _ in names(["Ada King"], "Ada, King")] == ["Ada", "King"]
    assert [text for text, _ in names(["Ada King"], "Ada")] == ["Ada"]


def test_a_single_name_needs_its_capital_or_its_own_spelling() -> None:
    assert names(["Ada", "zoe"], "Ada ada Zoe zoe ADA'S") == [
        ("Ada", "ada"),
        ("Zoe", "zoe"),
        ("zoe", "zoe"),
        ("ADA", "ada"),
    ]
