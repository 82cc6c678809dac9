"""What programs write about a note into the note: front matter and its kin, as plain values.

Read are YAML between lines of `---`, line by line where it is not valid YAML (unquoted colons,
`{{date}}`), TOML between lines of `+++`, Logseq's and Dataview's `key:: value`, the lines below a
title in Notion's exports, and those at the end of Joplin's.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import yaml

from pfi.readers.markdown_text import without_fences

#: Longest front matter, in characters, and most values of a list.
FRONT_LIMIT = 20_000
LIST_LIMIT = 100

_YAML = re.compile(r"\A\s*?---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.S | re.M)
_TOML = re.compile(r"\A\+\+\+[ \t]*\n(.*?)^\+\+\+[ \t]*$\n?", re.S | re.M)
_ENTRY = re.compile(
    r"(?P<key>[^\s:#\-\[{][^:\n]{0,60}?|\"[^\"\n]+\"|'[^'\n]+')\s*:(?:[ \t]+(?P<value>.*))?$"
)
_ITEM = re.compile(r"\s*-[ \t]+(.*)$")
_FIELD = re.compile(
    r"^[ \t]*(?:[-*+][ \t]+)?(?P<key>[\w][\w /-]{0,40})::(?:[ \t]+(?P<value>.*))?$", re.M
)
_LINE = re.compile(r"^(?P<key>[^\W\d][\w /()&-]{0,40}): (?P<value>\S.*)$")
_HEADING = re.compile(r"\A\s*#[ \t]+[^\n]+\n")
#: What Notion puts after a title to tell pages apart.
NOTION_ID = re.compile(r"[ _-]([0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$")
_JOPLIN = re.compile(r"\n\nid: [0-9a-f]{32}\n(?:[a-z_]+:[^\n]*\n)*type_: (\d+)\s*\Z")

Front = dict[str, Any]


def divide_note(text: str, name: str) -> tuple[Front, str]:
    """What is said about a note, by key in small letters, and the note itself.

    Args:
        text: of the file, with line feeds.
        name: of the file, without its suffix.
    """
    front: Front = {}
    if match := _YAML.match(text):
        values = _yaml(match[1])
        if values is not None:
            front, text = _plain(values), text[match.end() :]
    elif match := _TOML.match(text):
        try:
            front, text = _plain(tomllib.loads(match[1][:FRONT_LIMIT])), text[match.end() :]
        except (tomllib.TOMLDecodeError, RecursionError):
            front, text = _by_line(match[1].replace(" = ", ": ")), text[match.end() :]
    if match := _JOPLIN.search("\n\n" + text):
        lines = match[0].strip().splitlines()
        front |= {k.strip().casefold(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
        text = text[: max(match.start() - 2, 0)]
    if NOTION_ID.search(name):
        above, text = _notion(text)
        front |= above
    head = without_fences(text[:FRONT_LIMIT])
    for field in _FIELD.finditer(head):
        front.setdefault(field["key"].strip().casefold(), (field["value"] or "").strip())
    return front, text


def _yaml(text: str) -> Mapping[Any, Any] | None:
    """The entries of a text as YAML, else line by line; None if it is no mapping at all."""
    if len(text) > FRONT_LIMIT:
        return _by_line(text[:FRONT_LIMIT])
    if not text.strip():
        return {}
    try:
        # All scalars stay text: 05.03.2024, 12:30, `No` and 2024-13-45 are what was written.
        values = yaml.load(text, Loader=yaml.BaseLoader)  # safe: it makes only text
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return _by_line(text) or None
    return values if isinstance(values, Mapping) else None


def _by_line(text: str) -> Front:
    """Entries from lines like `key: value`, with lists below; nothing if most lines are others."""
    front: Front = {}
    key, entries, others = "", 0, 0
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            key = entry["key"].strip("\"' ")
            front[key] = _unquoted(entry["value"] or "")
            entries += 1
        elif (item := _ITEM.match(line)) and key:
            before = front[key]
            front[key] = [*(before if isinstance(before, list) else []), _unquoted(item[1])]
        elif line.strip() and not line.startswith(("#", " ", "\t")):
            others += 1
    return front if entries > others else {}


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _plain(values: Mapping[Any, Any]) -> Front:
    """Keys in small letters; values as text or lists of text, which is all that is looked at."""
    front: Front = {}
    for key, value in values.items():
        if isinstance(value, list):
            front[_key(key)] = [
                str(v) for v in value[:LIST_LIMIT] if not isinstance(v, list | dict)
            ]
        elif not isinstance(value, Mapping):
            front[_key(key)] = value if isinstance(value, str) else str(value)
        else:
            front[_key(key)] = "{}"  # that it is there is all that is asked
    return front


def _key(key: Any) -> str:
    # camelCase is taken apart here, for small letters do not show it any more.
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(key)[:100])
    return text.casefold().strip()


def _notion(text: str) -> tuple[Front, str]:
    """The properties below the title of a page that Notion exported, and the page without them."""
    heading = _HEADING.match(text)
    start = heading.end() if heading is not None else 0
    rest = text[start:].lstrip("\n")
    block, _, after = rest.partition("\n\n")
    lines = [_LINE.match(line) for line in block.strip().splitlines()]
    if not lines or not all(lines):
        return {}, text
    front = {_key(line["key"]): line["value"].strip() for line in lines if line is not None}
    return front, f"{text[:start]}\n{after}"


def values_of(front: Front, *keys: str) -> list[str]:
    """The values of the keys that there are, as texts; `keys` without signs between words."""
    found: list[str] = []
    for key, value in front.items():
        if compact(key) in keys:
            found += value if isinstance(value, list) else [value]
    return [text for text in found if text]


def compact(key: str) -> str:
    """A key without what stands between its words: date-created, date created, dateCreated."""
    return re.sub(r"[\W_]+", "", key.casefold())
