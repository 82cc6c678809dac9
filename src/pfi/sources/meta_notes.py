"""Sentences that Meta writes into chats in a person's name: what was sent, done or reacted to.

The download is written in the language of the account.  Sentences about what somebody did are known
in English; in other languages by the full name that they begin with, and those about what was sent
or reacted to by their form: short, in the second person or after the sender's first name, with the
name of what was sent.  Words stand in `meta_notes.txt`.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["is_note"]


def _patterns(kind: str) -> str:
    text = Path(__file__).with_name("meta_notes.txt").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if "\t" in line)
    return "|".join(f"(?:{pattern})" for name, pattern in rows if name == kind)


#: A letter of a script with spaces may not follow or precede a word.
_LETTER = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]"
#: Meta's sentences about reactions, which stand as messages of their own in Instagram's chats.
_REACTED = re.compile(rf"(?:{_patterns('reacted')})\s*[.。]?\s*", re.I)
_YOU = re.compile(rf"(?:{_patterns('you')})(?!{_LETTER})", re.I)
_VERB = re.compile(rf"(?<!{_LETTER})(?:{_patterns('verb')})(?!{_LETTER})", re.I)
_THING = re.compile(rf"(?<!{_LETTER})(?:{_patterns('thing')})(?!{_LETTER})", re.I)
#: Meta's English sentences about what somebody did, after "You" or a first name: people begin
#: sentences so, too.
_DID = re.compile(
    r"(sent (an?|\d+) (attachment|photo|video|sticker|gif|voice message|link|location|reel|post)"
    r"|(named|created|left|joined) the (group|chat)|changed the (chat |group |theme|quick|photo)"
    r"|(set|cleared) (the|your|his|her|their) (own )?(nickname|emoji|quick|group|chat)"
    r"|(added|removed|invited) .+ (to|from|as) .*(group|chat|admin)|pinned a message"
    r"|(missed|started|ended|joined) (a|an|the|your) (\w+ )?(call|chat)|called "
    r"|(replied|reacted) (\S+ )?to |liked a message|shared (a|an) (post|story|reel|link|location)"
    r"|unsent a message|(are|can) now |waved at |turned (on|off) |deleted the group)",
    re.I,
)
_SYMBOL = re.compile(r"[\u2190-\u2bff\U0001f000-\U0001faff]")
#: Words of the longest sentence about what was sent.
_WORDS = 9


def is_note(words: str, name: str) -> bool:
    """Whether a message is a sentence of Meta's about what its author, of that name, did."""
    first = name.split(" ")[0]
    for subject in dict.fromkeys([name, first, "You"]):
        rest = words[len(subject) :].lstrip() if subject and words.startswith(f"{subject} ") else ""
        if rest and (_DID.match(rest) or (subject == name and " " in name)):
            return True
    reacted = words.endswith(" ") and _SYMBOL.search(words) and len(words.split()) > 2
    return bool(_REACTED.fullmatch(words) or reacted) or _is_sending(words.strip(), first)


def _is_sending(words: str, first: str) -> bool:
    """Whether a short sentence says of its author, or of "you", that something was sent."""
    if "\n" in words or not words.endswith((".", "。")) or len(words.split()) > _WORDS:
        return False
    named = first and words.startswith(first) and _VERB.search(words, len(first))
    return bool((_YOU.match(words) or named) and _THING.search(words))
