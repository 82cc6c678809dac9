#!/usr/bin/env python
"""Public records for the teacher's pool, from a corpus of general text.

    python benchmarks/augment/public_pool.py --corpus ../shared/data/pretrain --out build/pool

The corpus is `*.jsonl.xz` of {"source", "text"}. A text whose first paragraph is a title gives a
record of the tasks that ask for titles; reviews, overviews and tweets give inputs only, and their
outputs are made up of a label that nothing looks at. Writes `<out>/<task>/pool_questions.json` in
LaMP's format, for `pfi study --set pool=<out>` and `pfi augment --pool FILE`. What was made from
texts under restricted terms may not be passed on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from pfi._util.files import write_json

#: By task: where its records come from, and what a text becomes.
Make = Callable[[str], dict[str, str] | None]


def _titled(text: str) -> tuple[str, str] | None:
    title, _, body = text.removeprefix("Subject: ").partition("\n\n")
    body = " ".join(body.split())
    if not body or "\n" in title or not 2 <= len(title.split()) <= 25:
        return None
    return title.strip(), body[:1200]


def headline(text: str) -> dict[str, str] | None:
    """A title and the text under it."""
    found = _titled(text)
    return None if found is None else {"title": found[0], "text": found[1]}


def paper(text: str) -> dict[str, str] | None:
    """A title and an abstract."""
    found = _titled(text)
    return None if found is None else {"title": found[0], "abstract": found[1]}


def news(text: str) -> dict[str, str] | None:
    """As ``headline``; the category is made up."""
    found = headline(text)
    return None if found is None else {**found, "category": "politics"}


def film(text: str) -> dict[str, str] | None:
    """An overview; the tag is made up."""
    found = _titled(text)
    return None if found is None else {"description": found[1], "tag": "classic"}


def review(text: str) -> dict[str, str] | None:
    """A review; the score is made up."""
    text = " ".join(text.split())
    return {"text": text, "score": "3"} if 40 <= len(text) <= 1000 else None


def tweet(text: str) -> dict[str, str] | None:
    """The first line."""
    line = text.partition("\n")[0].strip()
    return {"text": line} if len(line.split()) >= 5 else None


SOURCES: dict[str, tuple[str, Make]] = {
    "LaMP_1": ("papers/vis", paper),
    "LaMP_2M": ("movies/", film),
    "LaMP_2N": ("news/huffpost", news),
    "LaMP_3": ("reviews/goodreads", review),
    "LaMP_4": ("news/huffpost", headline),
    "LaMP_5": ("papers/", paper),
    "LaMP_6": ("email/", headline),
    "LaMP_7": ("tweets/pan15", tweet),
}


def documents(corpus: Path) -> Iterator[tuple[str, str]]:
    """Every document's source and text."""
    for path in sorted(corpus.glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                document = json.loads(line)
                yield document["source"], document["text"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of *.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--most", type=int, default=4000, help="records a task, at random")
    args = parser.parse_args()
    found: dict[str, list[dict[str, str]]] = {task: [] for task in SOURCES}
    for source, text in documents(args.corpus):
        for task, (wanted, make) in SOURCES.items():
            if source.startswith(wanted):
                record = make(text)
                if record is not None:
                    found[task].append(record)
    for task, records in found.items():
        kept = random.Random(0).sample(records, min(args.most, len(records)))
        profile = [{"id": str(i), **record} for i, record in enumerate(kept)]
        question = {"id": "0", "user_id": "public", "input": "none", "profile": profile}
        write_json(args.out / task / "pool_questions.json", [question])
        print(f"{task}: {len(kept)} of {len(records)} records")


if __name__ == "__main__":
    main()
