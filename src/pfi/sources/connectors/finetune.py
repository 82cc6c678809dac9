"""Connector for fine-tuning files: chats or pairs of question and answer, as JSON lines or a list.

Read are OpenAI's `messages`, ShareGPT's `conversations`, Gemini's `contents`, Alpaca's and Dolly's
`instruction`, prompt and completion, and of preferences the preferred answer.

Whose words are whose a file does not say.  Somebody who writes one for a model of their own writes
the answers: the assistant's turns are what the model is to say.  So these are taken as one's own,
unless `mine=user` says that the file holds chats with some assistant; then only one's questions
are outputs, and nothing of the assistant's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pfi.errors import DataError
from pfi.readers.encodings import detect_encoding
from pfi.readers.pieces import JsonArray, bounded_lines, parse_json
from pfi.readers.report import ImportReport
from pfi.readers.values import Unusable, as_text
from pfi.readers.words import count_words
from pfi.records import Record
from pfi.sources.assistants import LEAST_WORDS, own_prose
from pfi.sources.connectors import Connector, Options

_LINES = (".jsonl", ".ndjson")
#: Longest line, in characters.
_LIMIT = 10_000_000
_USER = {"user", "human", "prompter"}
_ASSISTANT = {"assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard"}
#: Keys of pairs, and of what stands beside a question.
_ASKS = ("instruction", "prompt", "question", "query")
_BESIDE = ("input", "context")
_SAYS = ("output", "completion", "response", "answer", "chosen")
_LISTS = ("messages", "conversations", "contents", "conversation")


class FinetuneOptions(Options):
    """Options of the `finetune` connector."""

    mine: Literal["assistant", "user"] = Field(
        "assistant",
        description="whose turns are your own words: the assistant's, as in a file that teaches "
        "a model to answer like you, or the user's, as in a file of your chats with an assistant",
    )
    longest: int = Field(4000, ge=1, description="longer outputs, in characters, are left out")


class _Turn(NamedTuple):
    """One turn of a chat; `user` is None for the system, tools and whatever else."""

    user: bool | None
    text: str


class FinetuneConnector(Connector[FinetuneOptions]):
    """Reads one record an answer, or a question."""

    name = "finetune"
    summary = "fine-tuning files (messages, ShareGPT, Alpaca, prompt and completion)"
    options = FinetuneOptions

    def recognises(self, path: Path) -> bool:
        """Whether the first entry is a chat or a pair that the `table` connector does not know."""
        if path.suffix.lower() not in (*_LINES, ".json") or not path.is_file():
            return False
        with suppress(DataError, Unusable, StopIteration):
            row = next(_entries(path))[1]
            if isinstance(row, dict) and not {"instruction", "answer"} <= row.keys():
                return any(turn.user is not None for turn in _turns(row))
        return False

    def read(self, path: Path, options: FinetuneOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a turn of one's own, undated; ids come from the content.

        Raises:
            DataError: the file cannot be read, or nothing in it can be used.
        """
        seen: set[str] = set()
        source = f"finetune:{path.name}"
        for place, row in _entries(path):
            try:
                if isinstance(row, Unusable):
                    raise row
                if not isinstance(row, dict):
                    raise Unusable("the line is not a JSON object")
                pairs = _pairs(_turns(row), options, report, place)
            except Unusable as problem:
                report.skip(problem.reason, place)
                continue
            for task, fields, output in pairs:
                record = Record("?", task, fields, output, source=source)
                record = replace(record, id=record.content_hash[:16])
                if record.id in seen:
                    report.skip("it repeats a turn", place)
                    continue
                seen.add(record.id)
                report.read += 1
                yield record
        report.require_records(path, "give chats with role and content, or pairs of two texts")


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield `(place, entry)` of JSON lines or of a JSON list."""
    if path.suffix.lower() not in _LINES:
        for number, (_, value) in enumerate(JsonArray(path), 1):
            yield f"{path.name}, entry {number}", value
        return
    encoding = detect_encoding(path)
    for number, line in bounded_lines(path, encoding, _LIMIT):
        place = f"{path.name}, line {number}"
        if line is None:
            yield place, Unusable(f"the line is longer than {_LIMIT} characters")
        elif line.strip():
            try:
                yield place, parse_json(line)
            except ValueError:
                yield place, Unusable("the line is not JSON")


def _turns(row: Mapping[str, Any]) -> list[_Turn]:
    """The turns of an entry, oldest first.

    Raises:
        Unusable: it is neither a chat nor a pair.
    """
    inner = row.get("input")
    if isinstance(inner, dict) and "preferred_output" in row:  # OpenAI's preferences
        return [*_chat(inner.get("messages")), *_chat(row["preferred_output"])]
    for key in _LISTS:
        if isinstance(row.get(key), list):
            return list(_chat(row[key]))
    asks = next((key for key in _ASKS if key in row), "input" if "input" in row else None)
    says = next((key for key in _SAYS if key in row), None)
    if asks is None or says is None:
        raise Unusable("it is neither a chat nor a pair of question and answer")
    before, after = row[asks], row[says]
    if isinstance(before, list):  # pairs of chats; `chosen` holds the question, too
        said = list(_chat(after))
        return said if len(said) > len(before) else [*_chat(before), *said]
    question = [as_text(before, asks)]
    question += [as_text(row[key], key) for key in _BESIDE if key != asks and key in row]
    history = row.get("history")
    past = [
        _Turn(number == 0, as_text(text, "history"))
        for pair in (history if isinstance(history, list) else [])
        if isinstance(pair, list) and len(pair) == 2
        for number, text in enumerate(pair)
    ]
    asked = "\n\n".join(text for text in question if text.strip())
    if isinstance(after, list):
        return [*past, _Turn(True, asked), *(t for t in _chat(after) if t.user is False)]
    return [*past, _Turn(True, asked), _Turn(False, as_text(after, says))]


def _chat(messages: Any) -> Iterator[_Turn]:
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            raise Unusable("a message is not an object")
        role = str(message.get("role") or message.get("from") or "").lower()
        user = True if role in _USER else False if role in _ASSISTANT else None
        if user is False and message.get("weight") == 0:  # OpenAI: is not to be learnt
            user = None
        content = message.get("content", message.get("value", message.get("parts")))
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        yield _Turn(user, "\n".join(text for text in texts if isinstance(text, str)).strip())


def _pairs(
    turns: Iterable[_Turn], options: FinetuneOptions, report: ImportReport, place: str
) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield `(task, input, output)` of the turns that are one's own."""
    asked: list[str] = []
    answered: list[str] = []
    for turn in chain(turns, [_Turn(True, "")]):
        if turn.user is None:
            report.skip("it is of the system or a tool, or not to be learnt", place)
        elif turn.user and answered and options.mine == "assistant":
            fields = {"instruction": "\n\n".join(asked)}
            output = "\n\n".join(answered)
            if not asked:
                report.skip("it answers nobody", place)
            elif _fits(output, options, report, place):
                yield "instruction", fields, output
            asked, answered = [], []
        if turn.user and turn.text:
            asked.append(turn.text)
            prose = own_prose(turn.text, place, report) if options.mine == "user" else ""
            if options.mine == "user" and count_words(prose) < LEAST_WORDS:
                report.skip(f"it has fewer than {LEAST_WORDS} words of yours", place)
            elif options.mine == "user" and _fits(prose, options, report, place):
                yield "continuation", {}, prose
        elif turn.user is False and turn.text:
            answered.append(turn.text)


def _fits(text: str, options: FinetuneOptions, report: ImportReport, place: str) -> bool:
    try:
        as_text(text, "it")
    except Unusable as problem:
        report.skip(problem.reason, place)
        return False
    if len(text) > options.longest:
        report.skip(f"it is longer than {options.longest} characters", place)
        return False
    return True
