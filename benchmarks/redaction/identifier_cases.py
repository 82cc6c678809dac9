"""Planted identifiers: texts in which what must not leave a device is marked.

Three parts were written by hand (`written_cases`), the last is generated from a seed with
python-stdnum's check digits (`generated_cases`); `PUBLISHED` holds numbers printed in standards and
by authorities.  All else is made up: example domains, documentation networks, test cards.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import stdnum.iban
from stdnum import luhn
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.iso7064 import mod_11_10
from stdnum.pl import pesel

CONTACTS = [
    "Maria Lopes",
    "Jonas Brandt",
    "Wei Chen",
    "Zoë Meier",
    "Sean O'Neill",
    "Will Page",
    "王小明",
]
CHECKSUM_KINDS = ["iban", "card", "id", "crypto"]
# Printed by others: the IBAN registry, test pages of card networks, authorities, BIP 173 and 341.
PUBLISHED = {
    "iban": [
        "GB29NWBK60161331926819",
        "FR1420041010050500013M02606",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
        "BR1800360305000010009795493C1",
        "DE89370400440532013000",
        "CH9300762011623852957",
    ],
    "card": ["4111111111111111", "5555555555554444", "378282246310005", "30569309025904"],
    "id": ["943 476 5919", "86095742719", "12345678Z", "RSSMRA85T10A562S", "811228-9874"],
    "crypto": [
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
        "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr",
    ],
}
_MARK = re.compile(r"⟦(\w+):(.*?)⟧", re.DOTALL)
_FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """A text and the spans (start, stop, kind) in it that must not leave."""

    text: str
    spans: tuple[tuple[int, int, str], ...]


def parse(marked: str) -> Case:
    """A case from text with ⟦kind:value⟧ marks."""
    text, spans, position = "", [], 0
    for match in _MARK.finditer(marked):
        text += marked[position : match.start()]
        spans.append((len(text), len(text) + len(match[2]), match[1]))
        text += match[2]
        position = match.end()
    return Case(text + marked[position:], tuple(spans))


def written_cases(part: str) -> list[Case]:
    """A part written by hand: ``first`` before the patterns, ``second`` after their first score,
    ``third`` after those for identifiers behind a word."""
    lines = (_FOLDER / f"identifiers_{part}.txt").read_text("utf-8").splitlines()
    return [parse(line.replace("\\n", "\n")) for line in lines if not line.startswith("#")]


def generated_cases(seed: int = 4, per_kind: int = 18) -> list[Case]:
    """`per_kind` cases of every kind, and hard negatives."""
    rng = random.Random(seed)
    marked = []
    for kind, (make, sentences) in _KINDS.items():
        for n in range(per_kind):
            sentence = sentences[n % len(sentences)]
            marked.append(sentence.replace("*", f"⟦{kind}:{make(rng)}⟧", 1))
    for make_line in _NEGATIVES:
        marked += [make_line(rng) for _ in range(4)]
    return [parse(line) for line in marked]


# Checksums ----------------------------------------------------------------------------


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def _letters(rng: random.Random, count: int, among: str = string.ascii_letters) -> str:
    return "".join(rng.choice(among) for _ in range(count))


def _iban(rng: random.Random) -> str:
    made: dict[str, Callable[[], str]] = {
        "DE": lambda: _digits(rng, 18),
        "AT": lambda: _digits(rng, 16),
        "GB": lambda: _letters(rng, 4, string.ascii_uppercase) + _digits(rng, 14),
        "NL": lambda: _letters(rng, 4, string.ascii_uppercase) + _digits(rng, 10),
        "CH": lambda: _digits(rng, 17),
        "DK": lambda: _digits(rng, 14),
    }
    country = rng.choice(sorted(made))
    body = made[country]()
    compact = f"{country}{stdnum.iban.calc_check_digits(f'{country}00{body}')}{body}"
    spaced = re.sub(r"(.{4})(?=.)", r"\1 ", compact)
    return rng.choice([compact, spaced, spaced.replace(" ", "-"), spaced.lower()])


def _card(rng: random.Random) -> str:
    prefix, size = rng.choice([("4", 16), ("51", 16), ("55", 16), ("34", 15), ("37", 15)])
    body = prefix + _digits(rng, size - 1 - len(prefix))
    number = body + luhn.calc_check_digit(body)
    gap = rng.choice(["", " ", "-"])
    groups = (4, 4, 4, 4) if size == 16 else (4, 6, 5)
    parts, start = [], 0
    for group in groups:
        parts.append(number[start : start + group])
        start += group
    return gap.join(parts)


def _id(rng: random.Random) -> str:
    return rng.choice([_dni, _nie, _nhs, _nir, _pesel, _ssn, _nino, _tax_de])(rng)


def _dni(rng: random.Random) -> str:
    number = _digits(rng, 8)
    letter = dni.calc_check_digit(number)
    return rng.choice([f"{number}{letter}", f"{number}-{letter}"])


def _nie(rng: random.Random) -> str:
    first, number = rng.choice("XYZ"), _digits(rng, 7)
    letter = nie.calc_check_digit(first + number)
    return rng.choice([f"{first}{number}{letter}", f"{first}-{number}-{letter}"])


def _nhs(rng: random.Random) -> str:
    while True:
        body = f"4{_digits(rng, 8)}"
        check = -sum(int(d) * (10 - i) for i, d in enumerate(body)) % 11
        if check < 10:
            return f"{body[:3]} {body[3:6]} {body[6:]}{check}"


def _nir(rng: random.Random) -> str:
    head = f"{rng.choice('12')}{_digits(rng, 2)}{rng.randint(1, 12):02d}{rng.randint(1, 95):02d}"
    body = f"{head}{rng.randint(1, 989):03d}{rng.randint(1, 998):03d}"
    if head[5:7] == "20":  # Corsica is spelt 2A and 2B
        return _nir(rng)
    key = nir.calc_check_digits(body)
    spaced = f"{body[0]} {body[1:3]} {body[3:5]} {body[5:7]} {body[7:10]} {body[10:]} {key}"
    return rng.choice([spaced, spaced.replace(" ", "")])


def _pesel(rng: random.Random) -> str:
    birth = f"{rng.randint(50, 99)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    body = birth + _digits(rng, 4)
    return body + pesel.calc_check_digit(body)


def _ssn(rng: random.Random) -> str:
    area = rng.choice([n for n in range(100, 665) if n not in (219, 78)])
    return f"{area}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"


def _nino(rng: random.Random) -> str:
    number = _digits(rng, 6)
    pairs = " ".join(number[i : i + 2] for i in (0, 2, 4))
    prefix, suffix = rng.choice(["AB", "CE", "HK", "JX", "PN", "SL"]), rng.choice("ABCD")
    return rng.choice([f"{prefix}{number}{suffix}", f"{prefix} {pairs} {suffix}"])


def _tax_de(rng: random.Random) -> str:
    digits = rng.sample("123456789", 9)
    body = "".join([*digits, digits[rng.randrange(8)]])  # one digit twice, not side by side
    number = body + mod_11_10.calc_check_digit(body)
    return rng.choice([number, f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"])


def _crypto(rng: random.Random) -> str:
    payload = b"\x00" + rng.randbytes(20)
    data = payload + hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
    number, letters = int.from_bytes(data, "big"), ""
    base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    while number:
        number, rest = divmod(number, 58)
        letters = base58[rest] + letters
    bitcoin = "1" * (len(data) - len(data.lstrip(b"\0"))) + letters
    return rng.choice([bitcoin, f"0x{rng.randbytes(20).hex()}"])


# Other kinds --------------------------------------------------------------------------


def _email(rng: random.Random) -> str:
    first, last = rng.choice(["ana", "Tom", "li.wei", "j"]), rng.choice(["silva", "k", "Ng", "oz"])
    host = rng.choice(["example.org", "Mail.Example.com", "example.co.uk", "dept.example.edu"])
    return f"{first}{rng.choice(['.', '_', '-', ''])}{last}{rng.choice(['', '7', '+x'])}@{host}"


def _phone(rng: random.Random) -> str:
    # Ranges that no subscriber has: Ofcom's and the NANP's for fiction.
    tail = rng.randint(100, 199)
    end = rng.randint(0, 999)
    area = rng.choice(["202", "212", "415", "617"])
    return rng.choice(
        [
            f"+1 {area} 555 0{tail}",
            f"({area}) 555-0{tail}",
            f"{area}-555-0{tail}",
            f"{area}.555.0{tail}",
            f"+1{area}5550{tail}",
            f"+44 20 7946 0{end:03d}",
            f"020 7946 0{end:03d}",
            f"+44 7700 900{end:03d}",
            f"07700 900{end:03d}",
            f"+49 30 23125 {end:03d}",
            f"+33 6 39 98 {end % 90 + 10:02d} {tail % 90 + 10:02d}",
        ]
    )


def _url(rng: random.Random) -> str:
    return rng.choice(
        [
            f"users/{rng.randint(10_000, 9_999_999)}",
            f"orders/{rng.randbytes(8).hex()}/receipt",
            f"confirm?token={_letters(rng, 24)}",
            f"doc/{_letters(rng, 11)}{rng.randint(10, 99)}{_letters(rng, 9)}/edit",
            f"share?user=ana{rng.randint(1, 99)}&id={rng.randint(100, 99_999)}",
            f"u/{rng.randbytes(4).hex()}-{rng.randbytes(2).hex()}-4{rng.randbytes(2).hex()[1:]}"
            f"-a{rng.randbytes(2).hex()[1:]}-{rng.randbytes(6).hex()}",
        ]
    )


def _key(rng: random.Random) -> str:
    word = string.ascii_letters + string.digits
    jwt = ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode()
        for part in (b'{"alg":"HS256"}', b'{"sub":"%d"}' % rng.randint(1, 9**9), rng.randbytes(32))
    )
    body = "\n".join(_letters(rng, 64, word) for _ in range(3))
    return rng.choice(
        [
            f"AKIA{_letters(rng, 16, string.ascii_uppercase + '234567')}",
            f"ghp_{_letters(rng, 36, word)}",
            f"xoxp-{_digits(rng, 12)}-{_letters(rng, 24, word)}",
            f"sk-{_letters(rng, 48, word)}",
            f"sk-proj-{_letters(rng, 60, word)}",
            f"hf_{_letters(rng, 34)}",
            f"AIza{_letters(rng, 35, word)}",
            jwt,
            f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----",
        ]
    )


def _ip(rng: random.Random) -> str:
    network = rng.choice(["192.0.2", "198.51.100", "203.0.113"])
    low = f"{rng.randint(1, 65535):x}"
    return rng.choice(
        [f"{network}.{rng.randint(1, 254)}", f"2001:db8::{low}", f"2001:db8:1::{low}"]
    )


def _mac(rng: random.Random) -> str:
    pairs = [f"{byte:02x}" for byte in rng.randbytes(6)]
    gap = rng.choice(":-")
    return rng.choice([gap.join(pairs), gap.join(pairs).upper()])


def _password(rng: random.Random) -> str:
    return f"{_letters(rng, 6)}{rng.choice('!#$%_-')}{_digits(rng, 3)}"


def _location(rng: random.Random) -> str:
    north, east = rng.uniform(-80, 80), rng.uniform(-170, 170)
    return rng.choice([f"{north:.5f}, {east:.5f}", f"{north:.6f},{east:.6f}"])


def _address(rng: random.Random) -> str:
    number, word = rng.randint(1, 400), rng.choice(["Elm", "Oak", "Example", "Saint Mary's"])
    kind = rng.choice(["Street", "Avenue", "Road", "Lane", "St", "Blvd."])
    german = rng.choice(["Lindenstraße", "Bahnhofstr.", "Gartenweg", "Marktplatz"])
    return rng.choice([f"{number} {word} {kind}", f"{german} {number}"])


def _name(rng: random.Random) -> str:
    name = rng.choice([name for name in CONTACTS if name.isascii()])
    return rng.choice([name, name.lower(), name.upper(), name.split()[1]])


def _handle(rng: random.Random) -> str:
    name = rng.choice(["lena", "Tom", "xu", "dev_ana"])
    return f"@{name}{rng.choice(['', '_', '-'])}{_digits(rng, 2)}"


_PLAIN = [
    "it is *.",
    "Please use * for this",
    "(*)",
    "*",
    "old: *, new: none",
    "“*” was wrong",
    "一*、",
]
_KINDS: dict[str, tuple[Callable[[random.Random], str], list[str]]] = {
    "email": (_email, ["Write to *.", "<*>", "von: *, heute", "*", "it was *; thanks", "(*)"]),
    "phone": (_phone, ["Call * today.", "Phone: *", "my number is *, ok?", "(tel *)", "mob. *!"]),
    "url": (
        _url,
        ["see https://app.example.com/*", "(https://example.org/*)", "https://x.example/* ok"],
    ),
    "iban": (_iban, _PLAIN),
    "card": (_card, ["card *", *_PLAIN]),
    "id": (_id, _PLAIN),
    "key": (_key, ["token: *", "*", "use '*' here", "export KEY=*", "it leaked (*)"]),
    "ip": (_ip, ["from * at noon", "ping *.", "host=*", "[*]", "*"]),
    "mac": (_mac, ["device * joined", "mac=*", "*.", "(*)"]),
    "crypto": (_crypto, ["pay to *", "*.", "wallet: *", "(*)"]),
    "password": (
        _password,
        ["password: *", "pwd=*", "the password is *", "Kennwort: * bitte", "PIN/passcode: *"],
    ),
    "location": (_location, ["at *", "GPS: *", "(*)", "we parked near *."]),
    "address": (_address, ["I live at *.", "Send it to *, please", "at *, second floor", "*"]),
    "name": (_name, ["Ask *.", "*'s idea", "I met * and left", "from: *", "(*)"]),
    "handle": (_handle, ["cc *", "thanks *!", "(*)", "* wrote"]),
}


def _bad_luhn(rng: random.Random) -> str:
    body = f"4{_digits(rng, 14)}"
    wrong = (int(luhn.calc_check_digit(body)) + rng.randint(1, 9)) % 10
    return f"order {body}{wrong} is late"


def _bad_iban(rng: random.Random) -> str:
    body = _digits(rng, 18)
    right = 98 - int(f"{body}131400") % 97
    return f"part DE{right % 97 + 1:02d}{body} fits"


_NEGATIVES: list[Callable[[random.Random], str]] = [
    _bad_luhn,
    _bad_iban,
    lambda rng: f"bump to v{rng.randint(0, 20)}.{rng.randint(0, 99)}.{rng.randint(0, 999)}",
    lambda rng: f"torch=={rng.randint(1, 3)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}+cu121",
    lambda rng: f"on {rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(10, 28)}",
    lambda rng: f"{rng.randint(10, 28)}.{rng.randint(10, 12)}.{rng.randint(1990, 2030)}, 14:30",
    lambda rng: f"commit {rng.randbytes(20).hex()} broke it",
    lambda rng: f"fixed in {rng.randbytes(4).hex()[:7]}",
    lambda rng: f"color: #{rng.randbytes(3).hex()};",
    lambda rng: f"md5 is {rng.randbytes(16).hex()}",
    lambda rng: f"x = {rng.random():.4f} + {rng.randint(2, 99)} * y - {rng.random():.2f}",
    lambda rng: f"about {rng.randint(1, 999)},{rng.randint(0, 999):03d},000 people",
    lambda rng: f"at {rng.randint(10, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)} it rang",
    lambda rng: f"see https://docs.example.org/en/{rng.choice(['install', 'api', 'faq'])}.html",
    lambda rng: f"https://news.example.com/20{rng.randint(10, 26)}/05/a-long-title",
    lambda rng: f"src/app_{rng.randint(1, 9)}.py (+{rng.randint(1, 999)} -{rng.randint(1, 999)})",
    lambda rng: f"paid ${rng.randint(1, 9999)}.{rng.randint(10, 99)} in {rng.randint(1990, 2026)}",
    lambda rng: f"arXiv:{rng.randint(1500, 2512)}.{rng.randint(10000, 19999)}, RFC 9110",
    lambda rng: f"the {rng.choice(['mark', 'page', 'will', 'chen'])} of {rng.randint(2, 90)} pages",
    lambda rng: f"{rng.choice(['Regards', 'Cheers', 'Thanks a lot', 'Dear all'])}, see page 4",
    lambda rng: f"@{rng.choice(['property', 'dataclass', 'media', 'override'])} is used",
    lambda rng: f"ticket #{rng.randint(10_000, 99_999)}: {rng.randint(2, 40)} tests",
]


def all_kinds(cases: Iterable[Case]) -> list[str]:
    """The kinds that occur, sorted."""
    return sorted({kind for case in cases for _, _, kind in case.spans})
