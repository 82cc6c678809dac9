"""Which account, card and national identity numbers are real: python-stdnum's checks by our kinds.

Every check takes a number of the shape its pattern has found and says whether it fits.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

import stdnum.iban
import stdnum.imei
from stdnum import bitcoin, luhn, numdb
from stdnum.br import cpf
from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.exceptions import ValidationError
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.it import codicefiscale
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.se import personnummer

base58 = bitcoin.is_valid
br_cpf = cpf.is_valid
cn_ric = ric.is_valid
de_tax = idnr.is_valid
fr_nir = nir.is_valid
imei = stdnum.imei.is_valid
it_cf = codicefiscale.is_valid
nl_bsn = bsn.is_valid
pl_pesel = pesel.is_valid
uk_nhs = nhs.is_valid


def es_dni(number: str) -> bool:
    """Spanish DNI and NIE."""
    return dni.is_valid(number) or nie.is_valid(number)


def fi_hetu(number: str) -> bool:
    """Finnish personal identity code; temporary ones tell on somebody too."""
    return hetu.is_valid(number, allow_temporary=True)


def iban(number: str) -> bool:
    """An IBAN; digits that only a bank's own rule gives may be wrong, the account still tells."""
    return stdnum.iban.is_valid(number, check_country=False)


@cache
def iban_length(country: str) -> int:
    """How long a country's IBANs are (two capitals); 0 where it has none."""
    form = numdb.get("iban").info(country)[0][1].get("bban", "")
    return 4 + sum(int(count) for count in re.findall(r"\d+", form)) if form else 0


# The library has no payment cards, only the sum.
def card(digits: str) -> bool:
    """A payment card: a network's prefix and length, and the Luhn sum."""
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    known = (
        (digits[0] == "4" and size in (13, 16, 19))
        or (size == 16 and (51 <= two <= 55 or 2221 <= four <= 2720))
        or (size == 15 and two in (34, 37))
        or (size == 14 and (two in (36, 38, 39) or 300 <= int(digits[:3]) <= 305))
        or (16 <= size <= 19 and (two in (62, 64, 65) or four == 6011 or 3528 <= four <= 3589))
        or (16 <= size <= 19 and two in (50, 56, 57, 58, 63, 67))
    )
    return known and luhn.is_valid(digits)


# The library refuses published specimens, which people do write; there is no check digit.
def us_ssn(digits: str) -> bool:
    """US social security number: not of the areas and groups that are never given out."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


# The library has no coordination numbers, which count the day from 61.
def se_pin(digits: str) -> bool:
    """Swedish personnummer or coordination number of ten digits."""
    birth = f"{digits[:4]}{int(digits[4:6]) % 60:02d}{digits[6:]}"
    try:
        personnummer.get_birth_date(birth)
    except ValidationError:
        return False
    return luhn.is_valid(digits)


def random_looking(text: str) -> bool:
    """Whether a long string looks drawn by chance: letters, digits and few repeats."""
    changes = sum(a.isdigit() != b.isdigit() for a, b in pairwise(text[:64]))
    return any(c.isalpha() for c in text) and changes >= 2 and len(set(text)) >= 8
