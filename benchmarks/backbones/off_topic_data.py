"""Made-up notes of a made-up person, and questions that have nothing to do with them.

Nothing here is anybody's data: the notes are drawn by a seed from the lists below.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pfi.records import Record

#: None of them, nor a close paraphrase, is in `general_questions.txt`, which floors are fitted on.
OFF_TOPIC = (
    "What is the capital of Australia?",
    "Who composed the Moonlight Sonata?",
    "How many continents are there?",
    "What gas do plants take in from the air?",
    "Who invented the telephone?",
    "What is the freezing point of water in Fahrenheit?",
    "Name the longest river in Africa.",
    "When was the Berlin Wall torn down?",
    "What is the chemical formula of table salt?",
    "Which planet is known as the red planet?",
    "Why do leaves change colour in autumn?",
    "How does a compass find north?",
    "What is the difference between weather and climate?",
    "Explain what a black hole is.",
    "Who was Julius Caesar?",
    "What do astronomers study?",
    "Write a function in Python that checks whether a number is prime.",
    "How do I read a file line by line in Java?",
    "What is an API?",
    "What does HTML stand for?",
    "How do I create a new branch in git?",
    "What is 12 squared?",
    "What is the sum of the angles of a triangle?",
    "Convert 5 miles to kilometres.",
    "What is a prime number?",
    "Give me an idea for a vegetarian dinner.",
    "How do I make tomato soup?",
    "How do I get rid of hiccups?",
    "How can I become a faster runner?",
    "Give me three tips for public speaking.",
    "Write a limerick about a frog.",
    "Tell me an interesting fact about whales.",
    "Suggest a title for a novel about pirates.",
    "Write a polite birthday greeting.",
    "What should I see in Barcelona?",
    "Translate I love you into French.",
    "What is the opposite of generous?",
    "What is the past tense of swim?",
    "What is a good hobby for the winter?",
    "How do magnets work?",
)

_PEOPLE = (
    "Ida", "Bruno", "Mira", "Olaf", "Petra", "Samir", "Greta", "Tomas", "Nadja", "Felix", "Lena",
    "Anton",
)  # fmt: skip
_PLACES = (
    "garage door", "garden shed", "bicycle lock", "office safe", "cellar", "alarm system",
    "holiday flat", "gym locker", "parcel box", "boat house", "music room", "wine cabinet",
)  # fmt: skip
_THINGS = (
    "dishwasher", "boiler", "printer", "lawn mower", "sewing machine", "router", "dehumidifier",
    "coffee grinder", "rowing machine", "electric piano", "freezer", "tumble dryer",
)  # fmt: skip
_CAKES = ("plum cake", "nut bread", "rye loaf", "cheese tart", "apple strudel", "ginger biscuits")
_STREETS = ("Lindenweg", "Hafenstrasse", "Mill Lane", "Rosengasse", "Kirchplatz", "Quai Nord")
_STUFF = ("flour", "sugar", "butter", "milk", "yeast", "cinnamon")
_SHELVES = (
    "blue box",
    "top drawer",
    "tin on the fridge",
    "brown folder",
    "left shelf",
    "old trunk",
)
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November",
)  # fmt: skip
_DAYS = ("birthday", "name day", "jubilee")
_WHEN = ("now", "in summer", "since May")
_PAPERS = ("receipt", "manual", "spare part")


def notes(count: int, seed: int) -> list[tuple[str, str]]:
    """Different questions to one's own notes, and what the notes say, in a random order."""
    rng = random.Random(seed)
    makers: list[Callable[[], tuple[str, str]]] = [
        lambda: (
            f"What is the PIN of the {rng.choice(_PLACES)}{_of(rng)}?",
            f"PIN {rng.randint(1000, 9999)}, then the green key.",
        ),
        lambda: (
            f"When is {rng.choice(_PEOPLE)}'s {rng.choice(_DAYS)}?",
            f"On {rng.randint(1, 28)} {rng.choice(_MONTHS)}, call before noon.",
        ),
        lambda: (
            f"How much {rng.choice(_STUFF)} goes into {rng.choice(_PEOPLE)}'s "
            f"{rng.choice(_CAKES)}?",
            f"{rng.randint(2, 60) * 10} grams, and never from the mixer.",
        ),
        lambda: (
            f"What is the serial number of the {rng.choice(_THINGS)}{_of(rng)}?",
            f"No. {rng.choice('ABCDEF')}{rng.randint(10000, 99999)}, the label is underneath.",
        ),
        lambda: (
            f"Where does {rng.choice(_PEOPLE)} live {rng.choice(_WHEN)}?",
            f"At {rng.choice(_STREETS)} {rng.randint(1, 90)}, ring twice.",
        ),
        lambda: (
            f"Where is the {rng.choice(_PAPERS)} of the {rng.choice(_THINGS)}?",
            f"In the {rng.choice(_SHELVES)}, under the maps.",
        ),
        lambda: (
            f"Who repairs the {rng.choice(_THINGS)}{_of(rng)}?",
            f"Mr {rng.choice(_PEOPLE)}son, phone 0{rng.randint(100, 999)} "
            f"{rng.randint(10000, 99999)}, mornings only.",
        ),
    ]
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        question, answer = rng.choice(makers)()
        pairs.setdefault(question, answer)
    return list(pairs.items())


def _of(rng: random.Random) -> str:
    return f" at {rng.choice(_PEOPLE)}'s" if rng.random() < 0.6 else ""


def records(pairs: list[tuple[str, str]]) -> list[Record]:
    """Notes as records of the task `instruction`, one an hour."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    return [
        Record(f"note-{n}", "instruction", {"instruction": q}, a, begin + timedelta(hours=n))
        for n, (q, a) in enumerate(pairs)
    ]
