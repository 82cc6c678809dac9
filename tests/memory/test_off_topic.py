"""The floor on likeness: own questions pass, general ones do not, whatever the records are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pfi.memory.embedders import Embedder, HashEmbedder
from pfi.memory.index import Memory
from pfi.memory.off_topic import (
    LEAST,
    TURNED_AWAY,
    Floor,
    default_floor,
    fit_floor,
    general_questions,
    likeness,
)
from pfi.records import Record
from pfi.tasks import Task, get_task

CHAT = get_task("instruction")
THINGS = ["boiler", "printer", "router", "freezer", "piano", "mower", "dryer", "grinder"]
PEOPLE = ["Ida", "Olaf", "Mira", "Tomas", "Greta", "Samir"]
#: None of them is among the packaged ones.
STRANGE = [
    "What is the capital of Australia?",
    "Who composed the Moonlight Sonata?",
    "Write a limerick about a frog.",
    "How do I read a file line by line in Java?",
    "Give me an idea for a vegetarian dinner.",
    "Translate I love you into French.",
]


def notes(count: int) -> list[Record]:
    """Notes on the serial numbers of things."""
    made = []
    for n in range(count):
        thing, person = THINGS[n % len(THINGS)], PEOPLE[n // len(THINGS) % len(PEOPLE)]
        asked = {"instruction": f"What is the serial number of the {thing} at {person}'s?"}
        made.append(Record(f"n{n}", CHAT.name, asked, f"No. {1000 + n}, below the label"))
    return made


def memory(records: list[Record], task: Task = CHAT, embedder: Embedder | None = None) -> Memory:
    return Memory(task, records, embedder=embedder)


@pytest.mark.parametrize("embedder", [None, HashEmbedder(256)], ids=["words", "vectors"])
def test_own_questions_pass_and_general_ones_do_not(embedder: Embedder | None) -> None:
    mine = memory(notes(40), embedder=embedder)
    floor = fit_floor(mine, CHAT)
    assert floor.turned_away > 0.9 and floor.records == 40
    own = [f"serial number of the {thing} at Nadja's" for thing in THINGS]
    assert not [q for q in own if likeness(mine, floor, q).off_topic]
    assert not [q for q in STRANGE if not likeness(mine, floor, q).off_topic]


def test_the_same_records_give_the_same_floor() -> None:
    assert fit_floor(memory(notes(20)), CHAT) == fit_floor(memory(notes(20)), CHAT)


def test_a_record_does_not_stand_for_itself() -> None:
    """Records of which none is like another are turned away no more than the share allows."""
    words = [f"{a}{b}{c}" for a in "bdfglm" for b in "aeiou" for c in "krst"]
    alone = [
        Record(f"r{n}", CHAT.name, {"instruction": " ".join(words[3 * n : 3 * n + 3])}, f"x{n}")
        for n in range(40)
    ]
    mine = memory(alone)
    floor = fit_floor(mine, CHAT)
    passed = [
        not likeness(mine, floor, f"{words[0]} nothing alike {n}").off_topic for n in range(5)
    ]
    assert all(passed)  # they cannot be told from what is off topic, so nothing is turned away


def test_no_more_of_ones_own_is_turned_away_than_the_share() -> None:
    mixed = notes(48) + [
        Record(f"o{n}", CHAT.name, {"instruction": q}, "an answer") for n, q in enumerate(STRANGE)
    ]
    mine = memory(mixed)
    floor = fit_floor(mine, CHAT)
    away = np.mean([likeness(mine, floor, r.input["instruction"]).off_topic for r in mixed])
    assert away <= TURNED_AWAY


def test_other_scripts_and_empty_questions_break_nothing() -> None:
    texts = ["保险箱的密码是什么", "护照放在哪里", "车库的钥匙在哪里", "妈妈的生日是哪天"] * 3
    made = [Record(f"z{n}", CHAT.name, {"instruction": t}, "在抽屉里") for n, t in enumerate(texts)]
    mine = memory(made)
    floor = fit_floor(mine, CHAT)
    assert not likeness(mine, floor, texts[0]).off_topic
    assert likeness(mine, floor, STRANGE[0]).off_topic
    assert 0 <= likeness(mine, floor, " \n ?! ").value <= 1


def test_a_long_text_is_judged_by_its_parts() -> None:
    mine = memory(notes(40))
    floor = fit_floor(mine, CHAT)
    long = " ".join(f"The serial number of the {thing} at Ida's." for thing in THINGS * 12)
    assert not likeness(mine, floor, long).off_topic
    other = " ".join(STRANGE * 20)
    assert likeness(mine, floor, other).off_topic


@pytest.mark.parametrize("embedder", [None, HashEmbedder(256)], ids=["words", "vectors"])
def test_few_records_need_words_in_common(embedder: Embedder | None) -> None:
    mine = memory(notes(LEAST - 1), embedder=embedder)
    floor = fit_floor(mine, CHAT)
    assert floor == default_floor(LEAST - 1, mine.embedder_name)
    assert likeness(mine, floor, "zzzz qqqq").off_topic
    assert not likeness(mine, floor, "the serial number of the boiler").off_topic


def test_a_floor_serves_until_the_records_change_by_a_tenth() -> None:
    floor = Floor(records=50, embedder="", weights=(1, 0, 0), bias=0, floor=0.5)
    assert floor.fits(50, "") and floor.fits(55, "") and floor.fits(45, "")
    assert not floor.fits(56, "") and not floor.fits(50, "minilm")


def test_the_general_questions_are_many_and_different() -> None:
    questions = general_questions()
    assert len(questions) >= 100 and len(set(questions)) == len(questions)


def test_records_that_were_taken_out_do_not_count() -> None:
    mine: Callable[[str], float] = lambda word: len(index.holding(word))  # noqa: E731
    index = memory(notes(16))
    assert mine("boiler") == 2 and mine("boilers") == 2 and mine("nothing") == 0
    assert index.allowed(["n0"]).sum() == 15
    assert index.nearest("boiler") is None
