"""No word of others, or of programs, is ever an output; each of one's own is in exactly one record.

Notes, saved pages, templates, histories and commits are made with planted words: `ownN` where this
person writes, `foreignN` where others or programs do, in every form that is read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfi.errors import DataError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors.markdown import MarkdownConnector

FILLING = "the harbour was quiet and I walked along the long wall with a cup of tea"


class Words:
    """Planted words; each is planted once."""

    def __init__(self) -> None:
        self.own: list[str] = []
        self.foreign: list[str] = []

    def mine(self) -> str:
        self.own.append(f"own{len(self.own)}x")
        return f"{self.own[-1]} {FILLING}"

    def theirs(self) -> str:
        self.foreign.append(f"foreign{len(self.foreign)}x")
        return f"{self.foreign[-1]} {FILLING}"


#: Blocks of a note: own words plainly and in markup, others' in quotes, code and what programs put.
BLOCKS: dict[str, Callable[[Words], str]] = {
    "paragraph": lambda w: f"{w.mine()}.",
    "two sentences": lambda w: f"{w.mine()}. {w.mine()}.",
    "heading": lambda w: f"## {w.mine()}",
    "list": lambda w: f"- {w.mine()}\n- {w.mine()}\n    - {w.mine()}",
    "list that goes on": lambda w: f"1. {w.mine()}\n\n    {w.mine()}",
    "tasks": lambda w: f"- [ ] {w.mine()} 📅 2024-03-05",
    "emphasis": lambda w: f"**{w.mine()}** and ==so== on",
    "link": lambda w: f"[[Anna|{w.mine()}]] [page](https://x.example/y)",
    "speech": lambda w: f"“Yes,” she said, {w.mine()}.",
    "cloze": lambda w: f"{{{{c1::{w.mine()}}}}}",
    "long": lambda w: " ".join(f"{w.mine()}." for _ in range(30)),
    "notes of zotero": lambda w: f"%% begin notes %%\n{w.mine()}\n%% end notes %%",
    "tail of a quote": lambda w: f"> {w.theirs()}\n\n{w.mine()}",
    "quote": lambda w: f"> {w.theirs()}\n> {w.theirs()}",
    "lazy quote": lambda w: f"> {w.theirs()}\n{w.theirs()}",
    "quote in a list": lambda w: f"- > {w.theirs()}",
    "callout": lambda w: f"> [!quote]- {w.theirs()}\n> {w.theirs()}",
    "html quote": lambda w: f"<blockquote>{w.theirs()}\n\n{w.theirs()}</blockquote>",
    "attributed": lambda w: f"“{w.theirs()}.”\n— Ida Three",
    "attributed below": lambda w: f"“{w.theirs()}.”\n\n— Ida Three",
    "highlight": lambda w: f"- {w.theirs()} ([View Highlight](https://read.readwise.io/read/1))",
    "citation": lambda w: f"“{w.theirs()}” ([Three, 2023, p. 5](zotero://select/items/A))",
    "fence": lambda w: f"```js\n{w.theirs()}\n```",
    "tilde fence": lambda w: f"~~~\n{w.theirs()}\n~~~",
    "fence in a list": lambda w: f"- {w.mine()}\n  ```\n  {w.theirs()}\n  ```",
    "templater": lambda w: f'<%* const x = "{w.theirs()}" %>',
    "macro": lambda w: f"{{{{query {w.theirs()}}}}}",
    "comment": lambda w: f"%% {w.theirs()} %% <!-- {w.theirs()} -->",
    "waypoint": lambda w: f"%% Begin Waypoint %%\n- {w.theirs()}\n%% End Waypoint %%",
    "table": lambda w: f"| {w.theirs()} |\n|---|\n| {w.theirs()} |",
    "field": lambda w: f"status:: {w.theirs()}",
    "dataview": lambda w: f"`= this.{w.theirs()}`",
    "embedded": lambda w: f"![[{w.theirs()}]]",
    "ways": lambda w: f"<< [[2024-03-04|{w.theirs()[:10]}]] | [[2024-03-06|{w.theirs()[:10]}]] >>",
    "org quote": lambda w: f"#+BEGIN_QUOTE\n{w.theirs()}\n#+END_QUOTE",
}  # fmt: skip
OWN_FRONTS = [
    "", "---\ndate: 2024-03-05\n---\n", "---\ntitle: Walks: a plan\ntags: [a]\n---\n",
    "---\ncreated: Tuesday, March 5th 2024, 2:22:10 pm\nauthor: Sam\n---\n",
    "+++\ndate = 2024-03-05\n+++\n",
    "created:: [[2024-03-05]]\n\n", "---\nsource: a talk with Anna\n---\n",
]  # fmt: skip
FOREIGN_FRONTS = [
    'author:\n  - "[[Ida]]"\nsource: https://x.example/y', "clipped: 2024-03-06",
    "tags: [clippings]", "url: https://x.example\nauthor: Ida",
    "omnivoreUrl: https://omnivore.app/me/x", "source: web.clip7",
    "created: {{date}}", 'created: <% tp.date.now("YYYY") %>', "excalidraw-plugin: parsed",
    "modelKey: gpt-4", "raindrop_id: 1", "kindle-sync:\n  bookId: '1'",
    "title: a: b\nsource: https://x.example",
]  # fmt: skip
FOREIGN_PLACES = [
    "Clippings/",
    "5-Templates/",
    "Forms/",
    "Readwise/Books/",
    "Sources/Omni/",
    "Pocket/",
]

BODY = st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=8)
NOTE = st.one_of(
    st.tuples(st.just("own"), st.sampled_from(OWN_FRONTS), BODY),
    st.tuples(st.just("front"), st.sampled_from(FOREIGN_FRONTS), BODY),
    st.tuples(st.just("place"), st.sampled_from(FOREIGN_PLACES), BODY),
)


def vault(folder: Path, notes: list[tuple[str, str, list[str]]], newline: str) -> Words:
    """Write the notes; all words of notes that are not one's own are others'."""
    words = Words()
    settings_ = {
        "templates.json": {"folder": "Forms"},
        "plugins/obsidian-omnivore/data.json": {"folder": "Sources/Omni/{{{date}}}"},
    }
    for name, value in settings_.items():
        file = folder / ".obsidian" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    (folder / "Own.md").write_text(f"---\ndate: 2024-03-05\n---\n{words.mine()}\n")
    for number, (kind, detail, blocks) in enumerate(notes):
        here = words
        if kind != "own":
            here = Words()
            here.mine = words.theirs  # type: ignore[method-assign]
            here.theirs = words.theirs  # type: ignore[method-assign]
        body = "\n\n".join(BLOCKS[block](here) for block in blocks)
        front = {"own": detail, "front": f"---\n{detail}\n---\n", "place": ""}[kind]
        path = folder / (detail if kind == "place" else "") / f"note {number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((front + body + "\n").replace("\n", newline), "utf-8", newline="")
    return words


def records_of(folder: Path) -> list[Record]:
    connector = MarkdownConnector()
    try:
        return list(
            connector.read(folder, connector.configure({"records": "texts"}), ImportReport())
        )
    except DataError:
        return []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NOTE, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_own_words_only(
    tmp_path_factory: pytest.TempPathFactory,
    notes: list[tuple[str, str, list[str]]],
    newline: str,
) -> None:
    folder = tmp_path_factory.mktemp("vault")
    words = vault(folder, notes, newline)
    records = records_of(folder)
    text = "\n".join(record.output + str(dict(record.input)) for record in records)
    theirs = set(re.findall(r"foreign\d+x", text))
    assert not theirs, f"words of others: {theirs}"
    times = Counter(
        word for record in records for word in set(re.findall(r"own\d+x", record.output))
    )
    assert times == Counter(words.own), "own words that are lost, or in two records"


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_each_form_alone(tmp_path: Path, block: str) -> None:
    """So that a fault names its form."""
    words = vault(tmp_path, [("own", "", [block, "paragraph"])], "\n")
    text = "\n".join(record.output for record in records_of(tmp_path))
    assert not re.search(r"foreign\d+x", text)
    assert sorted(re.findall(r"own\d+x", text)) == sorted(words.own)


@pytest.mark.parametrize("front", FOREIGN_FRONTS)
def test_each_note_of_others_alone(tmp_path: Path, front: str) -> None:
    words = vault(tmp_path, [("front", front, ["paragraph", "long"])], "\n")
    outputs = [record.output for record in records_of(tmp_path)]
    assert len(outputs) == 1 and words.own[0] in outputs[0]
