"""How each kind of identifier looks: a table of patterns, and checks of what they match.

Every pattern starts at a border that a long run of its own characters does not have, and is
bounded or possessive, so that the time stays linear in the text whatever the text is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from pfi.privacy.redaction import checksums, words
from pfi.privacy.redaction.labelled import LABELLED

# Checks of what a pattern found ------------------------------------------------------

Match = re.Match[str]


def _digits_of(match: Match) -> str:
    return re.sub(r"\D", "", match["value"] if "value" in match.re.groupindex else match[0])


def _upper_of(match: Match) -> str:
    return re.sub(r"[\s-]", "", match[0]).upper()


def _by(check: Callable[[str], bool], compact: Callable[[Match], str]) -> Callable[[Match], bool]:
    return lambda match: check(compact(match))


def _email(match: Match) -> bool:
    before = match.string[max(0, match.start() - 80) : match.start()]
    after = match.string[match.end() : match.end() + 1]
    # Logins in addresses are in urls.py; git@host:path is the same for everybody.
    return not re.search(r"://[^\s/@]*$", before) and not (
        match[0].startswith("git@") and after == ":"
    )


def _phone_after_word(match: Match) -> bool:
    value, digits = match["value"], _digits_of(match)
    date = re.fullmatch(r"(?:19|20)\d\d([-/.])\d\d?\1\d\d?|\d\d?([-/.])\d\d?\2(?:19|20)\d\d", value)
    return 7 <= len(digits) <= 15 and not date and value.count(".") != 3


_VERSION = re.compile(r"(?:version|release|upgrad|updat|section|chapter|manual|bump|\bv|==)", re.I)
_HOST = re.compile(r"(?:\bip|host|server|addr|ping|ssh|dns|subnet|gateway)", re.I)


def _ipv4(match: Match) -> bool:
    parts = [int(part) for part in match[0].split(".")]
    if max(parts) > 255 or parts[0] in (0, 127) or parts[:3] == [255, 255, 255]:
        return False
    near = match.string[max(0, match.start() - 32) : match.end() + 24]
    return bool(_HOST.search(near)) or not _VERSION.search(near)


def _ipv6(match: Match) -> bool:
    text = match[0]
    first = text.split(":", 1)[0]
    if len(first) < 3 and not text.lower().startswith(("::ffff:", "64:ff9b:")):
        return False  # a slice such as 1::2, a name such as a::b
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _password(match: Match) -> bool:
    value = match["value"]
    if value.casefold().rstrip("?!") in words.NO_PASSWORD or re.search(r"[(\[{]|^\W+$", value):
        return False
    # "the password is long" tells no password; "password: long" does.
    return match["sign"] is not None or re.search(r"[\d\W_]", value) is not None


def _location(match: Match) -> bool:
    north, east = float(match["north"]), float(match["east"])
    near = match.string[max(0, match.start() - 12) : match.end() + 12]
    row = re.search(r"\d[,;]\s*$", near[: match.start() - max(0, match.start() - 12)])
    more = re.match(r"\s*[,;]\s*-?\d", match.string[match.end() : match.end() + 6])
    exact = re.search(r"\.\d{5}", match[0]) or re.search(r"(?i)gps|coord|lat|loc|geo|°", near)
    fits = bool(exact) and abs(north) <= 90 and abs(east) <= 180 and max(abs(north), abs(east)) > 1
    return fits and not row and not more


def is_handle(name: str) -> bool:
    """Whether a word behind an @ is none of the decorators, tags and rules written so."""
    return name.casefold() not in words.NO_HANDLE


def _key_after_word(match: Match) -> bool:
    return checksums.random_looking(match["value"])


def _key_with_digit(match: Match) -> bool:
    return any(c.isdigit() for c in match[0]) and len(set(match[0])) >= 10


# Patterns -----------------------------------------------------------------------------

_PHONE_WORDS = (
    r"(?:tel|tlf|ph|phone|telephone|fon|telefon|mobile?|cell|fax|whatsapp|signal|sms|call|text|ring|dial"
    r"|handy|ruf\w*|móvil|movil|celular|tel[eéè]fono|t[eé]l[eé]phone|portable|num[eé]ro|电话|手机|電話|☎)"
)
_SECRET_WORDS = (
    r"(?:api[ _-]?key|key|secret|token|bearer|basic|credentials?|access[_-]?id|auth|session[_-]?id)"
)
_PASSWORD_WORDS = (
    r"(?:passwords?|passwd|passphrase|passcode|pwd|pw|pass|passwort|kennwort|contraseña|clave"
    r"|mot de passe|senha|wachtwoord|hasło|pin|пароль|密码)"
)
_HEX = r"[0-9A-Fa-f]"
_CAPITAL = r"[A-ZÀ-ÖØ-ÞŁŚŻŠČŽ]"
_TABLE: list[tuple[str, str, Callable[[Match], bool] | None]] = [
    (
        "EMAIL",
        r"(?<![\w.%+'-])[\w%+][\w.%+'-]*+@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@])",
        _email,
    ),
    ("EMAIL", r"(?<![\w.+-])[\w+][\w.+-]{0,63}\s?[\[(](?:at|@)[\])]\s?[\w-]{1,63}\s?"
              r"(?:\.|[\[(](?:dot|\.)[\])])\s?[a-z]{2,24}(?!\w)", None),
    # Phones: with country code; with a trunk 0; after a word. Other national ones are in phones.py.
    ("PHONE", r"(?<![\w+])\+[1-9](?:[ .\-/]?(?:\(\d{1,4}\)[ .\-/]?)?\d){6,14}(?![\d])", None),
    ("PHONE", r"(?<![\w+.,-])(?<!\d )00[1-9]\d{0,2}[ ./-](?:[ .\-/]?\d){6,12}(?!\d)", None),
    ("PHONE", r"(?<![\w+.,/-])(?<!\d )\(?0[1-9]\d{1,4}\)?(?: ?[/-] ?| )\d{2,8}(?:[ -]?\d{2,4}){0,2}"
              r"(?!\w|[.,-]\d)", _by(lambda digits: 9 <= len(digits) <= 12, _digits_of)),
    ("PHONE", rf"(?i)(?<![A-Za-z0-9]){_PHONE_WORDS}(?![A-Za-z0-9])[^\d\n+(]{{0,24}}"
              r"(?P<value>(?:\+|\()?\d(?:[ .\-/()]{0,3}\d){6,14})(?!\d)", _phone_after_word),
    # Identity numbers with a shape of their own; those of digits alone are in _numbers.
    ("ID", r"(?<![\w-])(?:\d{8}-?[A-Za-z]|[XYZxyz]-?\d{7}-?[A-Za-z])(?!\w)",
     _by(checksums.es_dni, _upper_of)),
    ("ID", r"(?i)(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)(?:[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]|QQ)"
           r"([ -]?)\d\d\1\d\d\1\d\d\1[A-D](?!\w)", None),
    ("ID", r"(?i)(?<!\w)[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]"
           r"(?!\w)", _by(checksums.it_cf, _upper_of)),
    ("ID", r"(?i)(?<!\w)[1-8] ?\d\d ?\d\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d(?!\w)",
     _by(checksums.fr_nir, _upper_of)),
    ("ID", r"(?i)(?<!\w)\d{17}[\dX](?!\w)", _by(checksums.cn_ric, _upper_of)),
    ("ID", r"(?<!\w)\d{3}\.\d{3}\.\d{3}-\d\d(?!\w)", _by(checksums.br_cpf, _digits_of)),
    ("ID", r"(?<![\w-])\d{6}[-+]\d{4}(?![\w-])", _by(checksums.se_pin, _digits_of)),
    ("ID", r"(?<!\w)\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y](?!\w)",
     _by(checksums.fi_hetu, lambda m: m[0])),
    ("ID", r"(?i)(?<!\w)(?:bsn|burgerservicenummer|sofi\w*)[^\d\n]{0,16}"
           r"(?P<value>\d(?:[ .]?\d){8})(?!\d)",
     _by(checksums.nl_bsn, _digits_of)),
    ("ID", r"(?i)(?<!\w)(?:ssn|social security)[^\d\n]{0,16}(?P<value>\d{9})(?!\d)",
     _by(checksums.us_ssn, _digits_of)),
    ("ID", r"(?i)(?<!\w)(?:nhs)[^\d\n]{0,16}(?P<value>\d{10})(?!\d)",
     _by(checksums.uk_nhs, _digits_of)),
    ("ID", r"(?i)(?<![^\W_])imei(?:sv)?[^\d\n]{0,16}(?P<value>\d\d(?:[ -]?\d){12,14})(?!\d)",
     _by(checksums.imei, _digits_of)),
    ("ID", r"(?i)(?<!\w)(?:passport|reisepass|passeport|pasaporte)[^\d\n]{0,16}?"
           r"(?P<value>(?<!\w)(?-i:(?=[A-Z]{0,2}\d)[A-Z0-9]{6,10}))(?!\w)", None),
    # Keys by their makers' prefixes; then anything random behind a word for secrets.
    ("KEY", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}(?![A-Za-z0-9])", None),
    ("KEY", r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|npm_|pypi-|hf_|dop_v1_|shpat_)"
            r"[\w-]{20,}+", None),
    ("KEY", r"(?<![A-Za-z0-9])xox[abeprs]-[\w-]{10,}+", None),
    ("KEY", r"(?<![A-Za-z0-9-])(?:sk|pk|rk)[-_][\w-]{16,}+", _key_with_digit),
    ("KEY", r"(?<![A-Za-z0-9])AIza[\w-]{35,}+", None),
    ("KEY", r"(?<![\w-])SG\.[\w-]{16,}+\.[\w-]{16,}+", None),
    ("KEY", r"(?<![\w.-])eyJ[\w-]{6,}+\.[\w-]{4,}+(?:\.[\w-]*+)?", None),
    ("KEY", r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
            r"(?:-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?", None),
    ("KEY", rf"(?i){_SECRET_WORDS}[\"']?(?:\s{{0,2}}(?:[:=]|=>|is)\s{{0,2}}|\s{{1,2}})[\"'`]?"
            r"(?P<value>[\w+/.=~-]{16,}+)", _key_after_word),
    ("PASSWORD", rf"(?i)(?<![^\W_]){_PASSWORD_WORDS}[\"']?"
                 r"(?:\s{0,2}(?P<sign>[:=：→]{1,2}|->|=>)\s{0,2}|\s{1,2}(?:is|was|ist|war|es|est|lautet)\s{1,2})"
                 r"[\"'`]?(?P<value>[^\s\"'`<>]{2,199}[^\s\"'`<>,.;)])", _password),
    ("PASSWORD", r"(?<!\S)(?:-u|--user)[ =](?P<value>[^\s:\"']{1,99}:[^\s\"']{1,199})", None),
    ("IP", r"(?<![\w.-])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\d|-\d)", _ipv4),
    ("IP", rf"(?<![\w:.])(?={_HEX}{{0,4}}:)[0-9A-Fa-f:]{{3,45}}(?:\.\d{{1,3}}){{0,3}}(?![\w:])",
     _ipv6),
    ("MAC", rf"(?<![\w:-]){_HEX}{{2}}([:-])(?:{_HEX}{{2}}\1){{4}}{_HEX}{{2}}(?![\w:-])", None),
    ("MAC", rf"(?<![\w.]){_HEX}{{4}}\.{_HEX}{{4}}\.{_HEX}{{4}}(?!\w|\.\w)", None),
    ("CRYPTO", r"(?<![A-Za-z0-9])[13][1-9A-HJ-NP-Za-km-z]{25,34}(?![A-Za-z0-9])",
     _by(checksums.base58, lambda m: m[0])),
    # SegWit and Taproot: their length and letters tell enough, and misspelt ones tell on somebody.
    ("CRYPTO", r"(?i)(?<![A-Za-z0-9])(?:bc|tb|ltc)1[qp][ac-hj-np-z02-9]{38}"
               r"(?:[ac-hj-np-z02-9]{20})?(?![A-Za-z0-9])", None),
    ("CRYPTO", r"(?<![A-Za-z0-9])0x[0-9a-fA-F]{40}(?![A-Za-z0-9])", None),
    ("LOCATION", r"(?<![\w.])(?P<north>[+-]?\d{1,2}\.\d{4,17})°?\s?[NS]?[,;]\s{0,2}"
                 r"(?P<east>[+-]?\d{1,3}\.\d{4,17})(?!\w)°?(?:\s?[EW](?!\w))?", _location),
    ("LOCATION", r"\d{1,2}°\s?\d{1,2}['′’]\s?(?:\d{1,2}(?:[.,]\d{1,4})?[\"″”]\s?)?[NS][,;]?\s{0,2}"
                 r"\d{1,3}°\s?\d{1,2}['′’]\s?(?:\d{1,2}(?:[.,]\d{1,4})?[\"″”]\s?)?[EWO]", None),
    ("LOCATION", r"(?i)(?<![^\W_])(?:lat|latitude|lon|lng|long|longitude)[\"']?\s?[:=]\s?"
                 r"(?P<value>-?\d{1,3}\.\d{3,17})", None),
    ("ADDRESS", rf"(?<![\w.])\d{{1,5}}[A-Za-z]?,?\s(?:{_CAPITAL}[\w'’.-]{{0,24}}\s){{1,3}}"
                r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Court|Square"
                r"|Terrace|Close|Crescent)(?!\w)\.?"
                r"(?:\s[NS]?[EW]?(?<=[NSEW])(?!\w))?", None),
    ("ADDRESS", rf"(?<!\w){_CAPITAL}[\w-]{{0,30}}(?:stra(?:ß|ss)e|str\.|weg|platz|gasse|allee"
                r"|ufer|damm)\s\d{1,4}\s?[a-z]?(?!\w)", None),
    ("ADDRESS", r"(?i:(?<!\w)\d{1,4},?\s(?:bis\s|ter\s)?(?:rue|avenue|boulevard|chemin|impasse"
                rf"|quai)\s(?:de\s|du\s|des\s|la\s|l['’]|d['’]){{0,2}})"
                rf"{_CAPITAL}[\w'’-]{{1,30}}", None),
    ("ADDRESS", r"(?<!\w)(?:Calle|Avenida|Via|Viale|Rua|Plaza|Piazza)\s(?:(?:de|del|la|da|do)\s)"
                rf"{{0,2}}(?:{_CAPITAL}[\w'’-]{{1,30}},?\s){{1,3}}(?:n[.º°]?\s?)?\d{{1,4}}(?!\w)",
     None),
    ("HANDLE", r"(?<![\w@./+-])@\w[\w-]{0,37}+(?<!-)(?![\w(@/=-]|\.\w)",
     lambda m: is_handle(m[0][1:])),
]  # fmt: skip
# Numbers end where a script without spaces begins; words do not.
_ASCII = {"PHONE", "URL", "IBAN", "ID", "KEY", "IP", "MAC", "CRYPTO", "LOCATION"}
PATTERNS = [
    (kind, re.compile(pattern, re.ASCII if kind in _ASCII else 0), check)
    for kind, pattern, check in [*_TABLE, *LABELLED]
]
