"""A user in one sentence before the question: profile-augmented generation.

After Richardson et al. 2023 (arXiv 2310.20081), but counted from the records, without a model.
It is worded as retrieved records are, since that is what a small model has learnt to read;
telling the usual length of texts as well made answers to dev users' questions worse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean

from pfi.records import Record
from pfi.tasks import Task
from pfi.tasks.task import Trim

#: Words of a user that are named at most.
MOST_WORDS = 8
_SHORTEST_WORD = 3
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def summarise(task: Task, history: Sequence[Record], trim: Trim, tokens: int = 48) -> str:
    """What is typical of a user, from these records and nothing else.

    For labels and scores how often each was given, and the mean of scores; for free text, and
    where records have no answers, the words that most of the user's texts share.

    Args:
        task: of all records.
        history: the user's records; callers leave out what the question must not know.
        trim: shortens a text to a number of tokens.
        tokens: longest summary; what is rarest is left out.

    Returns:
        a sentence; empty where there is nothing to tell.
    """
    chosen = ""
    for sentence in _sentences(task, history):
        if trim(sentence, tokens) != sentence:
            break
        chosen = sentence
    return chosen


def summary_prompt(prompt: str, summary: str) -> str:
    """A prompt, or one with retrieved records in it, with a summary before it.

    Records are put in first: some tasks look for their place by a word of the question.

    Args:
        prompt: what the model would read otherwise.
        summary: from ``summarise`` or from a teacher; without one the prompt is left as it is.
    """
    summary = " ".join(summary.split())
    if not summary:
        return prompt
    end = "" if summary[-1] in ".!?" else "."
    return f"{summary}{end} {prompt}"


def _sentences(task: Task, history: Sequence[Record]) -> Iterator[str]:
    """Summaries of one label or word, of two and so on; the commonest come first."""
    outputs = [record.output for record in history]
    counts = Counter(output for output in outputs if output in task.labels)
    if task.output and counts:
        most = sorted(counts, key=lambda label: (-counts[label], task.labels.index(label)))
        end = f" is the {task.output} of this user"
        if task.kind == "score":
            end += f", {fmean(float(label) for label in counts.elements()):.1f} on average"
        parts = [f'"{label}" ({counts[label]})' for label in most]
        for count in range(1, len(parts) + 1):
            yield f"{', '.join(parts[:count])}{end}."
        return
    name = task.output or task.item_trim
    texts = [text for record in history if (text := task.values(record).get(name, "").strip())]
    common = common_words(texts)[:MOST_WORDS]
    for count in range(1, len(common) + 1):
        yield f'"{" ".join(common[:count])}" is the kind of {name} of this user.'


def common_words(texts: Sequence[str]) -> list[str]:
    """The words of texts in lower case, without English stop words.

    Those in most texts come first, then the more frequent, then by alphabet.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    within: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for text in texts:
        found = [
            word
            for word in (match.lower() for match in _WORD.findall(text))
            if len(word) >= _SHORTEST_WORD and word.isalpha() and word not in ENGLISH_STOP_WORDS
        ]
        times.update(found)
        within.update(set(found))
    return sorted(times, key=lambda word: (-within[word], -times[word], word))
