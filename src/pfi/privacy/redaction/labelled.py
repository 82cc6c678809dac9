"""Identifiers that a word before them gives away, and numbers whose form is a country's own.

Behind its word a number counts without its check digits: misspelt, it still tells on somebody.
Without a word it has to have its country's form, and check digits that fit (python-stdnum).  As
in `patterns`, every pattern begins at a border and is bounded, so that the time stays linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stdnum.ar import cuit
from stdnum.be import nn
from stdnum.br import cnpj
from stdnum.ch import ssn as ahv
from stdnum.cl import rut
from stdnum.cz import rc
from stdnum.in_ import aadhaar
from stdnum.kr import rrn
from stdnum.lv import pvn
from stdnum.mx import curp
from stdnum.my import nric
from stdnum.th import pin as thai_pin

from pfi.privacy.redaction import checksums, words

Match = re.Match[str]
Rule = tuple[str, str, Callable[[Match], bool] | None]


def _form(pattern: str, check: Callable[[str], bool]) -> Rule:
    """Numbers of a form that is a country's own, with a check of the digits and letters."""

    def fits(match: Match) -> bool:
        return check(re.sub(r"[\s./-]", "", match[0]).upper())

    return ("ID", rf"(?<![\w.-]){pattern}(?![\w-])", fits)


def _swedish(number: str) -> bool:
    return checksums.se_pin(number[-10:])


_FORMS = [
    _form(r"[2-9]\d{3} \d{4} \d{4}", aadhaar.is_valid),
    _form(r"\d\d\.\d{3}\.\d{3}/\d{4}-\d\d", cnpj.is_valid),
    _form(r"756(?:\.\d{4}\.\d{4}\.\d\d|\d{10})", ahv.is_valid),
    _form(r"(?:19|20)\d{6}[ +-]?\d{4}", _swedish),
    _form(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", rut.is_valid),
    _form(r"\d\d-\d{8}-\d", cuit.is_valid),
    _form(r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", curp.is_valid),
    _form(r"\d{6}-[1-8]\d{6}", rrn.is_valid),
    _form(r"\d{6}/\d{3,4}", rc.is_valid),
    _form(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", nn.is_valid),
    _form(r"\d{6}-[012]\d{4}", pvn.is_valid),
    _form(r"\d{6}-\d\d-\d{4}", nric.is_valid),
    _form(r"\d-\d{4}-\d{5}-\d\d-\d", thai_pin.is_valid),
    # Of shops and carriers, whose form is enough.
    _form(r"\d{3}-\d{7}-\d{7}", bool),
    _form(r"1Z[0-9A-Z]{16}", bool),
]

# Words before a number, by what the number looks like.
_NUMBER_WORDS = (
    r"aadhaa?r|uidai|cpf|cnpj|rg|cnh|pis|ahv(?:-?nr)?|avs|svnr|sv-?nummer"
    r"|sozialversicherungs\w{1,8}"
    r"|rentenversicherungs\w{1,8}|rvnr|kvnr|krankenversich\w{1,12}|versichert\w{1,10}"
    r"|steuer-?id\w{0,14}"
    r"|steuernummer|personnummer|personnr|samordningsnummer|f[øo]dselsnummer|cpr(?:-n\w{1,5})?|hetu"
    r"|henkilötunnus|kennitala|isikukood|asmens kodas|personas kods|rodn[éeá] [čc][íi]slo|oib|jmbg"
    r"|em[šs]o|egn|cnp|amka|afm|tc kimlik|tckn|teudat zehut|inn|snils|инн|снилс|паспорт|pesel|regon"
    r"|ИНН|СНИЛС|ЕГН|егн|주민등록번호|マイナンバー|个人号码|dow[óo]d|utr|rv-?n\w{1,5}|acc"
    r"|licence no"
    r"|rijksregister\w{0,8}|niss|rrn|my ?number|mynumber|nric|fin|hkid|curp|rfc|rut|dni|nie|nif"
    r"|cuil"
    r"|cuit|c[ée]dula|ssn|ein|itin|tin|sin|tfn|ird|pps(?:n)?|nino|national insurance"
    r"|nhs(?: number)?"
    r"|medicare|medicaid|nir|numéro de sécu\w{0,12}|sécu|siret|codice fiscale|partita iva|vat"
    r"|passaporto|personalausweis|ausweis\w{0,10}"
    r"|driv(?:er'?s?|ing) licen[sc]e|führerschein\w{0,8}|permis de conduire|licencia de conducir"
    r"|mrn|medical record|patient(?:en)?[ -]?(?:id|no|nr|number|nummer)|policy|police|claim"
    r"|sort[ -]?code|routing|account|acct|konto\w{0,8}|ktonr|blz|iban|bban|cuenta|conta|compte"
    r"|customer|kunden-?\w{1,8}"
    r"|member(?:ship)?|mitglieds\w{1,8}|matrikel\w{0,8}|student|employee|personal-?n\w{1,5}|vin"
)
# Groups of capitals and digits; a group behind the first begins with a digit soon, or is a letter.
_NUMBER = (
    r"(?P<value>(?-i:[A-Z]{0,5}[ -]?\d[A-Z0-9]{0,22}"
    r"(?:(?: ?[./-] ?| )(?:[A-Z]{0,2}\d[A-Z0-9]{0,12}|[A-Z](?![A-Z0-9a-z]))){0,6}))"
)
_SIGNS = (
    r"(?:[ .:#=-]{0,3}(?:no|nr|num(?:ber|mer|éro|ero)?|id|is|ist|es|est|code|é|:|#|º|°)?){0,3}"
    r"[ .:#=(]{1,3}"
)


_WRITTEN_DATE = re.compile(
    r"\d\d?[./-]\d\d?[./-](?:\d\d|\d{4})|(?:19|20)\d\d(?:-\d\d){0,2}", re.ASCII
)


def _digits(least: int) -> Callable[[Match], bool]:
    """Enough digits to be somebody's number, and no date or year."""

    def enough(match: Match) -> bool:
        value = match["value"]
        date = _WRITTEN_DATE.fullmatch(value)
        return sum(c.isdigit() for c in value) >= least and not date

    return enough


_DATE = (
    r"(?P<value>\d{1,4}[./ -]{1,2}(?:\d{1,2}|(?:de )?[^\W\d_]{3,10}(?: de)?)[./ -]{1,2}\d{1,4}"
    r"|[^\W\d_]{3,10} \d{1,2},? \d{4})"
)
_BORN = (
    r"(?:d\.?o\.?b\.?|date of birth|birth ?da(?:te|y)|born(?: on)?|geboren(?: am)?|geb\."
    r"|geburtsdatum"
    r"|née? le|date de naissance|nacid[oa] el|fecha de nacimiento|nat[oa] il|data di nascita"
    r"|nascid[oa] em|data de nascimento|geboortedatum|födelsedatum)"
)
_CODE_WORDS = (
    r"(?:pin|puk|cvv2?|cvc2?|otp|tan|mfa|2fa|(?:security|verification|login|access|entry|door"
    r"|gate|alarm"
    r"|one[- ]time|confirmation|your) code|passcode|einmal-?code|sicherheits-?code|türcode"
    r"|code(?=(?: is| ist|[:=])))(?: for (?:[a-z]{1,12} ){0,2}[a-z]{1,12}(?=:))?"
)
_PASSWORD_WORDS = (
    r"(?:password|passwd|passcode|pwd|pw|passwort|kennwort|contraseña|senha|wachtwoord)"
)
_CAPITAL = r"[A-ZÀ-ÖØ-ÞŁŚŻŠČŽ]"


def _mixed(match: Match) -> bool:
    """Letters and digits, and more than small letters before a number, as in `istulip7`."""
    value = match["value"]
    both = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return both and re.fullmatch(r"[^\W\d_A-Z]+\d+", value) is None


def _handle(match: Match) -> bool:
    """A name with a digit or an underscore; one with dots alone is as likely a domain."""
    value = match["value"]
    return "." not in value or any(c.isdigit() for c in value)


def _signed(match: Match) -> bool:
    """The name under a letter, and no other word that stands there."""
    return match["value"].split()[0].casefold().strip(".,") not in words.NO_NAMES


def _no_measure(match: Match) -> bool:
    """A street, and not how far or how wide one is."""
    return words.NO_STREET.isdisjoint(word.casefold() for word in match["words"].split())


LABELLED: list[Rule] = [
    *_FORMS,
    ("ID", rf"(?i)(?<![^\W_])(?:{_NUMBER_WORDS}){_SIGNS}{_NUMBER}(?![\w])", _digits(5)),
    ("ID", r"(?i)(?<![^\W_])sort[ -]?code[ :]{1,3}(?P<value>\d\d[ -]?\d\d[ -]?\d\d)(?!\d)", None),
    ("ID", r"(?i)(?<![^\W_])pan(?: card)?(?: no"
           r"| number)?[ .:#]{1,3}(?P<value>[A-Z]{5}\d{4}[A-Z])(?!\w)",
     None),
    ("ID", rf"(?i)(?<![^\W_]){_BORN}[ :,]{{1,3}}(?:on |the )?{_DATE}(?!\w)", None),
    ("ID", r"(?i)(?<![^\W_])(?:kennzeichen|kfz|auto|wagen|plates?|car|vehicle|reg(?:istration)?)"
           r"[ :.]{1,3}(?:ist |is |no "
           r"|number )?(?P<value>(?-i:[A-ZÄÖÜ]{1,3}[- ][A-Z]{1,2}[ -]?\d{1,4}[EH]?"
           r"|[A-Z]{2}\d\d ?[A-Z]{3}))(?!\w)", None),
    ("IBAN", r"(?i)(?<![^\W_])iban[ :.]{1,3}(?P<value>[A-Z]{2}\d\d(?:[ -]?[A-Z0-9]{4}){2,7}"
             r"(?:[ -]?[A-Z0-9]{1,3})?)(?!\w)", _digits(10)),
    ("IBAN", r"(?<![^\W_])(?i:bic|swift)(?i:[ /-]?code)?[ :]{1,3}"
             r"(?P<value>[A-Z]{6}[A-Z0-9]{2}(?:[A-Z0-9]{3})?)(?!\w)", None),
    ("EMAIL", r"(?<![\w.+-])[\w+][\w.+-]{0,63} @ ?(?:[\w-]{1,63}\.){1,3}[a-z]{2,12}(?!\w)", None),
    ("EMAIL", r"(?i)(?<![\w.+-])[\w+][\w.+-]{0,63}&(?:#64|#x40"
              r"|commat);(?:[\w-]{1,63}\.){1,3}[a-z]{2,12}"
              r"(?!\w)", None),
    ("EMAIL", r"(?i)(?<![\w.+-])[\w+][\w.+-]{0,63}@(?:ok(?:hdfcbank|icici|axis|sbi)|ybl|paytm"
              r"|upi|ibl"
              r"|axl|apl|[a-z]{2,8}bank|icici|sbi)(?![\w.])", None),
    ("KEY", r"(?<![\w-])xapp-\d-[\w-]{20,}+", None),
    ("KEY", r"(?<![\w-])(?:GOCSPX-|dckr_pat_|nvapi-|gsk_|xai-|r8_|lin_api_|figd_|whsec_|sq0csp-"
            r"|PMAK-"
            r"|ATATT3|ATCTT3|hvs\.|sntrys_|rubygems_|ya29\.|EAAC|pat-na1-|shpss_|glrt-|sbp_|pul-"
            r"|ntn_)"
            r"[\w.-]{16,}+", None),
    ("KEY", r"(?<![\w-])\d{8,10}:AA[\w-]{30,36}(?![\w-])", None),
    ("KEY", r"(?<![\w.-])[MNO][\w-]{22,27}\.[\w-]{6,7}\.[\w-]{20,}+", None),
    ("KEY", r"(?i)(?<![\w-])AGE-SECRET-KEY-1[A-Z0-9]{20,}+", None),
    ("KEY", r"(?i)(?<![^\W_])(?:chave )?pix[ :]{1,3}"
            r"(?P<value>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})",
     None),
    ("KEY", r"(?i)(?<![^\W_])(?:seed(?: phrase)?|recovery phrase|mnemonic|backup phrase)[ :=]{1,3}"
            r"(?P<value>(?-i:[a-z]{3,8} ){11,23}(?-i:[a-z]{3,8}))(?!\w)", None),
    ("PASSWORD", rf"(?i)(?<![^\W_]){_CODE_WORDS}[ \"']{{0,2}}(?:[:=]|is|ist|lautet)?[ \"']{{1,2}}"
                 r"(?P<value>\d{3,8})(?![\w%.,]\w|\w)", None),
    ("PASSWORD", rf"(?i)(?<![^\W_]){_PASSWORD_WORDS} (?P<value>[^\s\"'<>,;]{{5,64}}[^\s\"'<>,;.)])",
     _mixed),
    ("ADDRESS", rf"(?<!\w){_CAPITAL}[\w.-]{{1,24}}(?: [\w.-]{{2,24}}){{0,4}} \d{{1,4}} ?[a-z]?"
                rf"(?=,? (?:[DA]-|CH-)?\d{{4,5}} {_CAPITAL}[^\W\d_]{{2}})", None),
    ("ADDRESS", rf"(?<!\w)(?:Straße|Strasse|Platz|Allee|Weg) (?:des|der|am"
                rf"|an der) (?:\d{{1,2}}\. )?"
                rf"{_CAPITAL}[\w-]{{1,24}}(?: {_CAPITAL}[\w-]{{1,24}})? \d{{1,4}}(?!\w)", None),
    ("ADDRESS", r"(?<![\w.])\d{1,5}[a-z]?,? (?P<words>(?:[a-z'’-]{2,20} ){1,2})"
                r"(?:street|avenue|road|lane|drive|boulevard|terrace|crescent"
                r"|close)(?!\w)", _no_measure),
    ("ADDRESS", r"(?<!\w)(?i:flat|apartment|apt\.?|house no\.?|plot(?: no\.?)?|door no\.?|unit"
                r"|wohnung)"
                r" (?:\d{1,4}[A-Za-z]?|[A-Z]-?\d{1,4})(?=,)", None),
    ("ADDRESS", rf"(?<![\w.])\d{{1,5}}[A-Za-z]?,? (?:{_CAPITAL}[\w'’.-]{{1,24}} |\d{{1,2}}(?:st"
                rf"|nd|rd|th) )"
                r"{1,3}(?:Grove|Gardens|Way|Place|Mews|Row|Walk|Parkway|Highway|Circle|Trail"
                r"|Rise|Hill|Ave"
                r"|Avenue|Street|St)(?!\w)", None),
    ("ADDRESS", rf"(?<!\w)(?:ul|al|os"
                rf"|pl)\. ?{_CAPITAL}[\w-]{{1,24}}(?: {_CAPITAL}[\w-]{{1,24}})? \d{{1,4}}"
                r"[a-zA-Z]?(?:/\d{1,4})?(?!\w)", None),
    ("ADDRESS", r"(?i)(?<!\w)(?:p\.? ?o\.? ?box|postfach|apartado|casella postale|boîte postale"
                r"|bp) "
                r"\d{1,6}(?: \d{2,3}){0,3}(?!\d)", None),
    ("ADDRESS", r"(?<!\w)[A-Z]{1,2}\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2}(?!\w)", None),
    ("URL", r"(?<![\w:/])///(?P<value>[a-z]{3,20}\.[a-z]{3,20}\.[a-z]{3,20})(?![\w.])", None),
    ("HANDLE", r"(?i)(?<![\w./@-])(?:t\.me|telegram\.me|wa\.me|instagram\.com|twitter\.com"
               r"|x\.com|fb\.com|"
               r"facebook\.com|linkedin\.com/in|tiktok\.com|snapchat\.com/add|discord\.gg)/"
               r"(?P<value>@?[\w.+-]{3,40}+)", None),
    ("HANDLE", r"(?i)(?<![^\W_])(?:insta(?:gram)?|ig|telegram|snap(?:chat)?|discord|skype"
               r"|twitter|tiktok"
               r"|threads|signal|steam|psn)(?:[ :]{1,3}(?:is |me |name |handle )?)(?P<value>"
               r"(?=[\w.]{0,29}[\d_.]\w)[^\W\d_][\w.]{2,29})(?![\w@])", _handle),
    ("NAME", r"(?<![^\W_])(?i:patient(?:in)?|full name|name|client|applicant|insured"
             r"|versicherte[r]?"
             rf"|kontoinhaber|account holder|nom|nombre"
             rf"|nome): ?(?P<value>{_CAPITAL}[\w'’-]{{1,24}},?"
             rf"(?: {_CAPITAL}[\w'’.-]{{0,24}}){{1,3}})(?!\w)", None),
    ("NAME", r"(?<!\w)(?:Mr|Mrs|Ms|Mx|Dr|Prof|Herrn?|Frau|Monsieur|Madame|Mme|Señora?|Sr|Sra"
             r"|Signora?)\.? "
             rf"(?P<value>(?:Dr\.? |Prof\.? )?{_CAPITAL}[^\W\d_][\w'’-]{{1,24}}"
             rf"(?: {_CAPITAL}[^\W\d_][\w'’-]{{1,24}}){{0,2}})(?!\w)", None),
    ("NAME", r"(?m)^[ \t>]{0,8}(?i:see you(?: soon)?|cheers|best|(?:kind |best |warm )?regards"
             r"|thanks|thank you|sincerely|yours|love|sounds good|talk soon|lg|vg|liebe grüße"
             r"|viele grüße|gruß|mfg|bis bald"
             r"|bises|cordialement|saludos|un abrazo|abraços|ciao)[,.!]{0,2}[ \t]{0,2}"
             rf"\r?\n(?:[ \t]{{0,8}}\r?\n){{0,2}}(?P<value>{_CAPITAL}[\w'’-]{{1,24}}"
             rf"(?: {_CAPITAL}[\w'’.-]{{0,24}}){{0,2}})[ \t]{{0,4}}$", _signed),
]  # fmt: skip
