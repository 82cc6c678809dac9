"""Write the tables of `pfi.readers.locales` anew, from the CLDR data that comes with `babel`.

    python scripts/locale_words.py [FOLDER]      (the tables' own folder by default)

The words are few and the data many megabytes, so the tables are shipped, and `babel` is needed
only here.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from babel import Locale, localedata

from pfi.readers.locales import FOLDER, plain_word

#: What CLDR calls the halves of a day, as hours.
HALVES = {"am": "0-12", "pm": "12-24"}
#: Phones of some years say it as CLDR did until a release gave these hours to the morning.
EARLIER = {("en", "night1"): "21-24,0-6"}
FIXED = {"midnight": "0-0", "noon": "12-12"}


def hours(locale: Locale, period: str) -> str:
    """The hours of a period of the day, like `21-24,0-6`; empty if the locale has no rule."""
    if period in HALVES:
        return HALVES[period]
    if (locale.language, period) in EARLIER:
        return EARLIER[locale.language, period]
    rules = list(locale.day_period_rules.get(None, {}).get(period, []))
    spans = []
    for rule in rules:
        if "at" in rule:
            spans.append((rule["at"], rule["at"]))
        elif rule["from"] < rule["before"]:
            spans.append((rule["from"], rule["before"]))
        else:
            spans += [(rule["from"], 86_400), (0, rule["before"])]
    return ",".join(f"{a // 3600}-{b // 3600}" for a, b in spans) or FIXED.get(period, "")


def clock_words(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield `(word, hours)` of a locale."""
    for context in locale.day_periods.values():
        for words in context.values():
            for period, word in words.items():
                if (span := hours(locale, period)) and plain_word(word):
                    yield plain_word(word), span


def month_words(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield `(word, number)` of a locale."""
    for context in locale.months.values():
        for width, words in context.items():
            for number, word in words.items() if width != "narrow" else ():
                if re.search(r"[^\W\d_]", word):
                    yield plain_word(word), str(number)


def date_literals(locale: Locale) -> Iterator[tuple[str, str]]:
    """Yield `(word, "")` for words that stand in dates and tell nothing, such as `klo`."""
    patterns = [str(getattr(p, "pattern", p)) for p in locale.date_formats.values()]
    patterns += [str(getattr(p, "pattern", p)) for p in locale.time_formats.values()]
    patterns += [str(p) for p in locale.datetime_formats.values()]
    patterns += [str(getattr(p, "pattern", p)) for p in locale.datetime_skeletons.values()]
    for pattern in patterns:
        for quoted, bare in re.findall(r"'((?:[^']|'')+)'|([^\x00-\x7f]+)", pattern):
            for word in (quoted or bare).split():
                if plain_word(word) and not re.search(r"[年月日時分秒년월일시분초]", word):
                    yield plain_word(word), ""


TABLES = {
    "clock_words.txt": clock_words,
    "month_words.txt": month_words,
    "date_literals.txt": date_literals,
}


def tables() -> dict[str, str]:
    """The text of each table, by its file's name."""
    found: dict[str, dict[tuple[str, str], set[str]]] = {name: defaultdict(set) for name in TABLES}
    for name in sorted(localedata.locale_identifiers()):
        locale = Locale.parse(name)
        for table, words in TABLES.items():
            for pair in words(locale):
                found[table][pair].add(name)
        localedata._cache.clear()
    return {table: "".join(_rows(pairs)) for table, pairs in found.items()}


def _rows(pairs: dict[tuple[str, str], set[str]]) -> Iterator[str]:
    """Yield rows; a locale that says what its parent says is left out."""
    for (word, value), names in sorted(pairs.items()):
        kept = [n for n in sorted(names) if "_" not in n or n.rpartition("_")[0] not in names]
        yield "\t".join((word, value, " ".join(kept))) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, text in tables().items():
        (folder / name).write_text(text, "utf-8")
