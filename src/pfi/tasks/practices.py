"""How a history becomes training examples, where a record is not itself a question.

A practice yields ``(record, fields, target)``; the task turns the fields into its prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from pfi.records import History, Record

Made = Iterator[tuple[Record, Mapping[str, str], str]]
#: Called with the history, what makes its choices, and records of other users.
Practice = Callable[[History, random.Random, Sequence[Record]], Made]


def direct(history: History, rng: random.Random, pool: Sequence[Record]) -> Made:
    """The record's fields ask, its output answers."""
    for record in history:
        yield record, record.input, record.output


def citation(history: History, rng: random.Random, pool: Sequence[Record]) -> Made:
    """LaMP_1: which of two papers is near the author's work - another own one, or a stranger's.

    Profiles hold the author's papers but not what they cite, so an own paper stands in for
    the cited one and a paper from ``pool`` for the other.
    """
    strangers = [r for r in pool if r.input.get("title")]
    papers = [r for r in history if r.input.get("title")]
    own = {r.input["title"] for r in papers}
    strangers = [r for r in strangers if r.input["title"] not in own]
    if len(own) < 2 or not strangers:
        return
    for record in papers:
        near = rng.choice([r for r in papers if r.input["title"] != record.input["title"]])
        options = [near.input["title"], rng.choice(strangers).input["title"]]
        right = rng.randrange(2)
        if right == 1:
            options.reverse()
        fields = {"title": record.input["title"], "option_1": options[0], "option_2": options[1]}
        yield record, fields, f"[{right + 1}]"


def restore(history: History, rng: random.Random, pool: Sequence[Record]) -> Made:
    """LaMP_7: give a neutral wording back its author's style."""
    for record in history:
        neutral = neutralise(record.output)
        if neutral:
            yield record, {"text": neutral}, record.output


def continuation(history: History, rng: random.Random, pool: Sequence[Record]) -> Made:
    """The first part of a text asks, the rest answers; cut between words, at a third or later."""
    for record in history:
        words = record.output.split(" ")
        if len(words) < 6:
            continue
        cut = rng.randint(len(words) // 3, 2 * len(words) // 3)
        start, rest = " ".join(words[:cut]), " ".join(words[cut:])
        if start.strip() and rest.strip():
            yield record, {"start": start}, rest


_CONTRACTIONS = {
    "can't": "cannot", "won't": "will not", "n't": " not", "'re": " are", "'ve": " have",
    "'ll": " will", "i'm": "i am", "it's": "it is", "that's": "that is", "let's": "let us",
    "what's": "what is", "there's": "there is", "he's": "he is", "she's": "she is",
}  # fmt: skip
_SLANG = {
    "u": "you", "ur": "your", "r": "are", "im": "i am", "dont": "do not", "cant": "cannot",
    "gonna": "going to", "wanna": "want to", "gotta": "have to", "thx": "thanks", "pls": "please",
    "plz": "please", "yeah": "yes", "yep": "yes", "nope": "no", "awesome": "good",
    "amazing": "good", "great": "good", "cool": "good", "tho": "though", "cuz": "because",
    "omg": "", "lol": "", "haha": "", "wow": "", "really": "", "so": "", "just": "", "totally": "",
}  # fmt: skip


def neutralise(text: str) -> str:
    """Take the style out of a text by rule: case, slang, contractions, emoji, punctuation runs."""
    text = re.sub(r"https?://\S+|@\w+", " ", text.replace("\u2019", "'")).lower()
    text = re.sub(r"[:;=][-']?(?:[()/|]+|[dp]+\b)|[<>]3\b", " ", text)
    for short, long in _CONTRACTIONS.items():
        text = text.replace(short, long)
    text = re.sub(r"([^\W\d])\1{2,}", r"\1\1", text)
    text = re.sub(r"[^\w\s.,'$%&-]", " ", text)
    text = re.sub(r"([.,!?])[\s.,!?]*", r"\1 ", text)
    words = [_SLANG.get(word, word) for word in text.split()]
    text = " ".join(word for word in words if word and not re.fullmatch(r"[.,'&-]+", word))
    return text.rstrip(" .,") + "." if text.strip(" .,") else ""


PRACTICES: dict[str, Practice] = {
    "direct": direct,
    "citation": citation,
    "restore": restore,
    "continuation": continuation,
}
