"""Instruction examples made by rule from openly licensed documents, for ``pretrain.py``.

Nothing here comes from a model.  Headlines, subjects and titles of real documents teach the
text tasks; the source of a passage teaches choosing from a list; neutralised sentences teach
rewriting.  Examples with retrieved records use documents of the same source, half of them
with one style (case, prefix, ending) laid over all outputs, so that following the records'
pattern is what answers the question.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from pfi.records import Record
from pfi.tasks import Task, get_task
from pfi.tasks.practices import neutralise

Pair = tuple[str, str]  # prompt, target
TITLED = {"email/": "LaMP_6", "news/huffpost": "LaMP_4", "papers/": "LaMP_5"}
SUBJECTS = {
    "textbooks/openstax-psychology": "psychology",
    "textbooks/openstax-sociology": "sociology",
    "textbooks/openstax-economics": "economics",
    "encyclopedic/factbook": "geography",
    "encyclopedic/wiki-split": "general knowledge",
    "papers/": "language technology",
    "email/": "software",
    "speeches": "politics",
    "books/": "literature",
    "dialog/topical-chat": "conversation",
    "news/huffpost": "news",
}
#: Outputs rewritten in one manner; what a person's records would have in common.
STYLES: list[Callable[[str], str]] = [
    str.upper,
    str.lower,
    str.title,
    lambda s: f"{s}!",
    lambda s: f"{s}?",
    lambda s: f"Re: {s}",
    lambda s: f"Opinion: {s}",
    lambda s: f"[note] {s}",
    lambda s: f"{s} - a summary",
    lambda s: f"{s} (part 1)",
    lambda s: " ".join(s.split()[:5]),
    lambda s: f"On {s}",
]


def _prefixed(table: dict[str, str], source: str) -> str | None:
    return next((value for key, value in table.items() if source.startswith(key)), None)


def clip_words(text: str, tokens: int) -> str:
    """A cheap ``Trim``: about three words for four tokens."""
    return " ".join(text.split()[: max(1, tokens * 3 // 4)])


def split_titled(source: str, text: str) -> tuple[str, str] | None:
    """``(title, body)`` of a document that opens with its title, else None."""
    title, _, body = text.partition("\n\n")
    title = title.removeprefix("Subject: ").strip()
    body = " ".join(body.split())
    if 3 <= len(title) <= 160 and len(body) >= 60:
        return title, body
    return None


def titled_examples(task: Task, items: list[tuple[str, str]], rng: random.Random) -> Iterator[Pair]:
    """Title from text, a third of them with one to four records of the same source."""
    key = task.inputs[0]
    for i, (title, body) in enumerate(items):
        body = clip_words(body, 400)
        prompt = task.prompt({key: body})
        if rng.random() < 0.35:
            style = rng.choice(STYLES) if rng.random() < 0.5 else str
            steps = rng.sample(range(1, 40), rng.choice((1, 2, 4)))
            near = [items[(i + step) % len(items)] for step in steps]
            records = [
                Record(str(n), task.name, {key: text}, style(head))
                for n, (head, text) in enumerate(near)
            ]
            prompt = task.retrieval_prompt(prompt, records, clip_words, 224)
            title = style(title)
        yield prompt, title


def topic_examples(passages: list[tuple[str, str]], rng: random.Random) -> Iterator[Pair]:
    """Which subject a passage is about, chosen from a shuffled list; some with records."""
    task = get_task("LaMP_2N")
    names = sorted(set(SUBJECTS.values()))
    for subject, text in passages:
        labels = rng.sample(names, rng.randint(4, len(names)))
        if subject not in labels:
            labels[rng.randrange(len(labels))] = subject
        local = task.model_copy(update={"labels": labels})
        prompt = local.prompt({"text": clip_words(text, rng.choice((40, 80, 120)))})
        if rng.random() < 0.35:
            near = rng.sample(passages, 2)
            records = [Record(str(n), task.name, {"text": t}, s) for n, (s, t) in enumerate(near)]
            prompt = local.retrieval_prompt(prompt, records, clip_words, 120)
        yield prompt, subject


def related_examples(titles: list[str], rng: random.Random) -> Iterator[Pair]:
    """Which of two titles is nearer to a third: one shares a rare word with it."""
    task = get_task("LaMP_1")
    by_word: dict[str, list[str]] = defaultdict(list)
    for title in titles:
        for word in set(re.findall(r"[a-z]{4,}", title.lower())):
            by_word[word].append(title)
    for group in by_word.values():
        if not 2 <= len(group) <= 60:
            continue
        first, second = rng.sample(group, 2)
        options = [second, rng.choice(titles)]
        right = rng.randrange(2)
        if right:
            options.reverse()
        fields = {"title": first, "option_1": options[0], "option_2": options[1]}
        yield task.prompt(fields), f"[{right + 1}]"


def rewrite_examples(sentences: list[str], rng: random.Random) -> Iterator[Pair]:
    """A neutralised sentence given back its style; some with sentences of the same source."""
    task = get_task("LaMP_7")
    for i, sentence in enumerate(sentences):
        neutral = neutralise(sentence)
        if not neutral or len(sentence) > 240:
            continue
        prompt = task.prompt({"text": neutral})
        if rng.random() < 0.3:
            style = rng.choice(STYLES[:5]) if rng.random() < 0.6 else str
            near = [sentences[(i + d) % len(sentences)] for d in (1, 2)]
            records = [Record(str(n), task.name, {}, style(t)) for n, t in enumerate(near)]
            prompt = task.retrieval_prompt(prompt, records, clip_words, 120)
            sentence = style(sentence)
        yield prompt, sentence


def continuation_examples(texts: list[str], rng: random.Random) -> Iterator[Pair]:
    """The second half of a passage from its first half."""
    task = get_task("continuation")
    for text in texts:
        words = clip_words(text, 160).split()
        if len(words) >= 16:
            cut = rng.randint(len(words) // 3, len(words) // 2)
            yield task.prompt({"start": " ".join(words[:cut])}), " ".join(words[cut:])


def chat_examples(dialogues: list[str]) -> Iterator[Pair]:
    """The next turn of a conversation."""
    for dialogue in dialogues:
        turns = [line[3:].strip() for line in dialogue.split("\n") if line[1:3] == ": "]
        for asked, answered in pairwise(turns):
            if asked and answered:
                yield asked, answered


def repeat_examples(texts: list[str], rng: random.Random) -> Iterator[Pair]:
    """A text to be given back as it is: copying, which every text task rests on."""
    for text in texts:
        words = text.split()
        start = rng.randrange(max(1, len(words) - 24))
        piece = " ".join(words[start : start + rng.randint(6, 24)])
        yield f"Repeat the following text: {piece}", piece


def fact_examples(texts: list[str]) -> Iterator[Pair]:
    """A country's facts by heading."""
    for text in texts:
        place, _, rest = text.partition(". ")
        heading, _, body = rest.partition("\n\n")
        if body and len(place) < 40 and len(heading) < 60:
            yield f"Tell me about {place}: {heading.strip().lower()}.", clip_words(body, 90)


def instruction_pairs(documents: Iterator[tuple[str, str]], seed: int) -> dict[str, list[Pair]]:
    """All examples by kind, from ``(source key, text)`` documents."""
    rng = random.Random(seed)
    titled: dict[str, list[tuple[str, str]]] = defaultdict(list)
    passages: list[tuple[str, str]] = []
    sentences, texts, dialogues, facts = [], [], [], []
    for source, text in documents:
        name = _prefixed(TITLED, source)
        if name and (found := split_titled(source, text)):
            titled[name].append(found)
        subject = _prefixed(SUBJECTS, source)
        if subject and rng.random() < (0.05 if source.startswith(("books", "email")) else 0.4):
            passages.append((subject, " ".join(text.split())))
        if source == "dialog/topical-chat":
            dialogues.append(text)
            sentences += [line[3:] for line in text.split("\n") if line[1:3] == ": "]
        elif source == "encyclopedic/factbook":
            facts.append(text)
        elif source.startswith("books/") and rng.random() < 0.25:
            texts.append(" ".join(text.split()))
    rng.shuffle(passages)
    titles = [title for items in titled.values() for title, _ in items]
    pairs = {
        name: list(titled_examples(get_task(name), items, rng)) for name, items in titled.items()
    }
    pairs["topic"] = list(topic_examples(passages, rng))
    pairs["related"] = list(related_examples(titles, rng))
    pairs["rewrite"] = list(rewrite_examples(sentences, rng))
    pairs["continuation"] = list(continuation_examples(texts, rng))
    pairs["chat"] = list(chat_examples(dialogues))
    pairs["repeat"] = list(repeat_examples([text for _, text in passages], rng))
    pairs["facts"] = list(fact_examples(facts))
    for made in pairs.values():
        rng.shuffle(made)
    return pairs
