"""Texts of the synthetic demo: drawn from word lists, and read back into what they say.

Reading back is exact because every text is put together from ``demo_phrases.yaml``; it is
what shows that an answer follows from a text and a persona, and from nothing hidden.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml

_Value = TypeVar("_Value")
ASPECTS = ("plot", "writing", "characters")


@cache
def phrases() -> dict[str, Any]:
    """The word lists, by ``movie``, ``review`` and ``article``."""
    file = resources.files("pfi.datasets") / "demo_phrases.yaml"
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def tag_choices() -> dict[str, list[str]]:
    """Per kind of movie, the tag that most people use and then the others."""
    found: dict[str, list[str]] = phrases()["movie"]["tags"]
    return found


def movie(rng: random.Random, kind: str) -> str:
    """A movie description of a kind, 30 to 60 words."""
    words = phrases()["movie"]
    start = f"{rng.choice(words['heroes'])} {rng.choice(words['settings'])}."
    cues: list[str] = words["cues"][kind]
    return " ".join([start, *rng.sample(cues, 3)])


def movie_kind(text: str) -> str:
    """The kind that a movie description is of.

    Raises:
        ValueError: the text is not a description of the demo.
    """
    found: dict[str, list[str]] = phrases()["movie"]["cues"]
    return _only(kind for kind, cues in found.items() if any(cue in text for cue in cues))


def review(rng: random.Random, levels: Mapping[str, int]) -> str:
    """A book review that finds each aspect bad (-1), middling (0) or good (1)."""
    words = phrases()["review"]
    about = [rng.choice(words["aspects"][aspect][levels[aspect]]) for aspect in ASPECTS]
    rng.shuffle(about)
    return " ".join([rng.choice(words["openers"]), *about, rng.choice(words["closers"])])


def review_levels(text: str) -> dict[str, int]:
    """What a review says of each aspect: -1, 0 or 1.

    Raises:
        ValueError: the text is not a review of the demo.
    """
    return {
        aspect: _only(
            level
            for level, sentences in phrases()["review"]["aspects"][aspect].items()
            if any(sentence in text for sentence in sentences)
        )
        for aspect in ASPECTS
    }


def article(rng: random.Random) -> str:
    """A news article of 20 to 45 words."""
    words = phrases()["article"]
    lead: str = rng.choice(words["leads"]).format(
        place=rng.choice(words["places"]),
        body=rng.choice(words["bodies"]),
        past=rng.choice(list(words["verbs"].values())),
        thing=rng.choice(words["things"]),
        day=rng.choice(words["days"]),
    )
    rest = [rng.choice(words["details"]), rng.choice(words["quotes"])]
    return " ".join([lead + rng.choice(words["reasons"]), *rest])


@dataclass(frozen=True, slots=True)
class Style:
    """How a person words headlines: a frame, a stock ending, capitals or not."""

    frame: str = "plain"
    ending: str = ""
    capitals: bool = False

    def headline(self, text: str) -> str:
        """This person's headline for an article.

        Raises:
            ValueError: the text is not an article of the demo.
        """
        facts = _article_facts(text)
        line: str = phrases()["article"]["frames"][self.frame].format(**facts) + self.ending
        return line.upper() if self.capitals else line


#: The style that most people have.
PLAIN = Style()


def _article_facts(text: str) -> dict[str, str]:
    found = _lead_pattern().search(text)
    if found is None:
        raise ValueError(f"not an article of the demo: {text!r}")
    facts = found.groupdict()
    words = phrases()["article"]
    verb = next(now for now, past in words["verbs"].items() if past == facts["past"])
    facts["verb"] = verb.removesuffix("s") if facts["body"] in words["plurals"] else verb
    return facts


@cache
def _lead_pattern() -> re.Pattern[str]:
    words = phrases()["article"]
    options = {
        "place": words["places"],
        "body": words["bodies"],
        "past": words["verbs"].values(),
        "thing": words["things"],
    }
    groups = {
        name: f"(?P<{name}>{'|'.join(map(re.escape, found))})" for name, found in options.items()
    }
    return re.compile("{place} {body} {past} the {thing}".format(**groups))


def _only(found: Iterable[_Value]) -> _Value:
    values = list(found)
    if len(values) != 1:
        raise ValueError(f"a text of the demo says one thing of each kind, not {values}")
    return values[0]
