"""Names of people: found in the user's own records, and found again in any text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pfi.privacy.redaction import words
from pfi.privacy.redaction.identifiers import Found, plain
from pfi.privacy.redaction.patterns import is_handle
from pfi.records import Record

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")
_IN_CJK = re.compile(rf"[{_CJK}]")
_POSSESSIVE = re.compile(r"['’]s?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Known:
    """What follows a first token: the tokens of the whole name, and what it is a name of."""

    tokens: tuple[str, ...]
    value: str
    whole: bool
    spelling: str


class NameFinder:
    """Finds given names in a text: whole, or the first and last names that are part of them.

    A name of several words is found in any case, a single word only with a capital letter (or
    spelt as given).  The time is linear in the text, however many names there are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, list[_Known]] = {}
        whole = {tuple(_tokens(name)): name for name in names}
        whole.pop((), None)
        owners: dict[str, set[str]] = {}
        for tokens, name in whole.items():
            self._add(tokens, " ".join(tokens), True, name.strip())
            if len(tokens) > 1 and not _IN_CJK.match(tokens[0]):
                for token in tokens:
                    if len(token) >= 3:
                        owners.setdefault(token, set()).add(" ".join(tokens))
        for token, persons in owners.items():
            if (token,) not in whole:  # one person's part is that person
                self._add((token,), min(persons) if len(persons) == 1 else token, False, "")
        for known in self._by_first.values():
            known.sort(key=lambda name: -len(name.tokens))

    def _add(self, tokens: tuple[str, ...], value: str, whole: bool, spelling: str) -> None:
        self._by_first.setdefault(tokens[0], []).append(_Known(tokens, value, whole, spelling))

    def find(self, text: str) -> Iterator[Found]:
        """The names in a text as `plain` gives it."""
        if not self._by_first:
            return
        tokens = [(m.start(), m.end(), m[0]) for m in _TOKEN.finditer(text)]
        folded = [token.casefold() for _, _, token in tokens]
        place = 0
        while place < len(tokens):
            # A possessive belongs to the last token of a name, so both forms are tried.
            bare = _POSSESSIVE.sub("", folded[place])
            candidates = self._by_first.get(folded[place]) or self._by_first.get(bare) or ()
            for known in candidates:
                stop = self._match(known, tokens, folded, place, text)
                if stop is not None:
                    yield Found(tokens[place][0], stop, "NAME", known.value)
                    place += len(known.tokens) - 1
                    break
            place += 1

    def _match(
        self,
        known: _Known,
        tokens: list[tuple[int, int, str]],
        folded: list[str],
        place: int,
        text: str,
    ) -> int | None:
        """Where the name ends in the text if it is at this token."""
        last = place + len(known.tokens) - 1
        if last >= len(tokens):
            return None
        for offset, wanted in enumerate(known.tokens[:-1]):
            between = text[tokens[place + offset][1] : tokens[place + offset + 1][0]]
            if folded[place + offset] != wanted or len(between) > 3 or between.strip(" .-\n\r\t"):
                return None
        stop = tokens[last][1]
        if folded[last] != known.tokens[-1]:
            if _POSSESSIVE.sub("", folded[last]) != known.tokens[-1]:
                return None
            ending = _POSSESSIVE.search(tokens[last][2])
            stop -= len(ending[0]) if ending else 0
        if len(known.tokens) > 1:
            return stop
        start, _, token = tokens[place]
        found = text[start:stop]
        if not (token[0].isupper() or found == known.spelling or not token[0].isalpha()):
            # In lower case a name is told from a word by not being one.
            rare = len(known.tokens[0]) >= 4 and known.tokens[0] not in words.WORDS_TOO
            part = not known.whole and token.islower() and rare
            return stop if part or _IN_CJK.match(token) else None
        if not known.whole and known.tokens[0] in words.WORDS_TOO:
            before = text[max(0, start - 4) : start].rstrip(" \"'“‘")
            begins = not before or before[-1] in ".!?\n\r"
            if (begins and stop == tokens[last][1]) or token.isupper():
                return None
        return stop


def _tokens(name: str) -> list[str]:
    return [token.casefold() for token in _TOKEN.findall(plain(name)[0])]


_NAME = r"[^\W\d_][\w'’.-]{0,30}(?:[ \t][^\W\d_][\w'’.-]{0,30}){0,3}"
_IN_RECORDS = [
    # Name <mail>, and the trailers of commits and letters
    re.compile(rf"(?<![^\W_])(?P<name>{_NAME})[\"']?[ \t]{{0,2}}<[^<>\s@]{{1,64}}@"),
    re.compile(
        r"(?im)^[ \t>]{0,8}(?:signed-off-by|co-authored-by|reviewed-by|acked-by|tested-by"
        rf"|reported-by|suggested-by|author|from|cc)[ \t]{{0,2}}:[ \t]{{0,4}}(?P<name>{_NAME})"
    ),
    re.compile(
        r"(?im)^[ \t>]{0,8}(?:dear|hi|hello|hey|hallo|lieber?|chère?|bonjour|salut|hola|estimad[oa]"
        r"|querid[oa]|ciao|car[oa]|sehr geehrte[rs]?|good (?:morning|afternoon|evening))[ \t]{1,2}"
        r"(?:(?:mr|mrs|ms|dr|prof|herr|frau|monsieur|madame|señora?)\.?[ \t])?"
        rf"(?P<name>{_NAME})[ \t]{{0,2}}(?:[,!:;.—–-]|$)"
    ),
    re.compile(
        r"(?im)^[ \t>]{0,8}(?:(?:kind|best|warm|many|with best|with kind)[ \t])?"
        r"(?:regards|wishes|best|cheers|thanks|thank you|sincerely|yours(?: \w{1,12})?|love"
        r"|greetings"
        r"|gruß|grüße|viele grüße|mit freundlichen grüßen|cordialement|saludos|abraços|saluti)"
        r"[ \t]{0,2}[,.!]?[ \t]{0,2}\r?\n"
        rf"(?:[ \t]{{0,8}}\r?\n){{0,2}}[ \t>-]{{0,8}}(?P<name>{_NAME})[ \t]{{0,4}}$"
    ),
]
_HANDLE = re.compile(r"(?<![\w@./+-])@(?P<name>[^\W_][\w-]{1,37}[^\W_])(?![\w(@/=-]|\.\w)")


def names_in(records: Iterable[Record]) -> list[str]:
    """Names of people in the user's own records, in the order of their first use.

    Found are `Name <mail>`, greetings, what stands under a closing formula, commit trailers, and
    @handles with a digit or a sign in them (without the @).
    """
    found: dict[str, None] = {}
    for record in records:
        for text in (*record.input.values(), record.output):
            simple = plain(text)[0]
            for pattern in _IN_RECORDS:
                for match in pattern.finditer(simple):
                    if name := _person(match["name"]):
                        found[name] = None
            for found_one in handles(simple):
                found[found_one] = None
    return list(found)


def handles(text: str) -> list[str]:
    """The @handles of a text, without the sign, that are no plain words once the sign is gone."""
    found = (match["name"] for match in _HANDLE.finditer(text))
    return [name for name in found if is_handle(name) and not name.isalpha()]


def _person(name: str) -> str | None:
    """The words at the front of a match that look like a name."""
    front: list[str] = []
    for word in name.split():
        word = word.strip(".-'’") if len(word) > 2 else word
        if not word or not (word[0].isupper() or _IN_CJK.match(word)):
            break
        if word.casefold() in words.NO_NAMES:
            break
        front.append(word)
    if len("".join(front)) < 2:
        return None
    return " ".join(front)
