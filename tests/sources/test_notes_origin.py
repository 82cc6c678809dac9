"""Notes that are not one's own words: saved pages, highlights, templates, drawings, boards, code.

The shapes are those of kepano/kepano-obsidian (Clippings), giwankim/obsidian-vault (Web Clipper),
omnivore-app/obsidian-omnivore and readwiseio/obsidian-readwise (their templates),
mgmeyers/obsidian-zotero-integration, akosbalasko/yarle, marcjulianschwarz/obsidian-vault-notes
(Excalidraw) and mathisgauthey/obsidian-workflow-template (Templater).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from connector_sources import read

from pfi.errors import DataError
from pfi.sources.connectors.markdown import plain

TEXT = "The harbour was quiet this morning and I walked along the long wall with a cup of tea."
THEIRS = "Wool socks dry slowly but keep their shape for years if they are washed THEIRS by hand."


def reasons(folder: Path, options: dict[str, object] | None = None) -> dict[str, str]:
    """The first note of each reason for which notes are left out."""
    (folder / "Own.md").write_text(f"---\ndate: 2024-03-05\n---\n{TEXT}")
    records, report = read("markdown", folder, options)
    assert all("THEIRS" not in repr(record) for record in records)
    assert "Own.md#1" in {record.id for record in records}
    return report.examples


CLIPS = {
    "web clipper": 'author:\n  - "[[Ida Three]]"\nsource: https://socks.example/wool\n'
    'published: 2023-09-29\ncreated: 2024-03-06\ntags: [clippings]',
    "source alone": "source: https://socks.example/wool",
    "source in quotes": 'source: "https://socks.example/wool"',
    "source in brackets": "source: <https://socks.example/wool>",
    "source as link": 'source: "[Wool](https://socks.example/wool)"',
    "source url": "source-url: https://socks.example/wool",
    "camel case": "sourceUrl: https://socks.example/wool",
    "not valid yaml": "title: Wool: all of it\nsource: https://socks.example/wool",
    "clipped": "clipped: 2024-03-06",
    "tags of clips": "tags:\n  - clippings\n  - socks",
    "tags in a line": "tags: clippings, socks",
    "categories": 'categories:\n  - "[[Clippings]]"',
    "url and author": "url: https://socks.example/wool\nauthor: Ida Three",
    "url and site": "link: https://socks.example/wool\nsite: Socks",
    "url and kind": "url: https://socks.example/wool\ntype: article",
    "omnivore": "id: 12\nomnivoreUrl: https://omnivore.app/me/wool\ndate_saved: 2024-03-06",
    "instapaper": "instapaper_url: https://instapaper.com/read/1",
    "raindrop": "raindrop_id: 12345\nraindrop_last_update: 2024-03-06",
    "karakeep": "bookmark_id: abc\nurl: https://socks.example/wool",
    "hypothesis": "doc_type: hypothesis-highlights\nurl: https://socks.example/wool",
    "markdownload": "created: 2024-03-06\nsource: https://socks.example/wool\nauthor:",
    "joplin": "title: Wool\nsource: https://socks.example/wool\nauthor: Ida",
    "yarle": "Source URL: https://socks.example/wool",
    "evernote": "source: web.clip7",
    "kindle": "kindle-sync:\n  bookId: '1'\n  title: Wool",
    "zotero": "citekey: three2023\ndoi: https://doi.org/10.1/wool\nauthors: Ida Three",
    "youtube": "url: https://www.youtube.com/watch?v=1\nchannel: Socks",
}  # fmt: skip


@pytest.mark.parametrize("form", CLIPS)
def test_saved_pages(tmp_path: Path, form: str) -> None:
    (tmp_path / "Wool.md").write_text(f"---\n{CLIPS[form]}\n---\n{THEIRS}")
    assert reasons(tmp_path) == {"it was saved from a page": "Wool.md"}
    assert "THEIRS" in repr(read("markdown", tmp_path, {"clippings": True})[0])


@pytest.mark.parametrize(
    "folder",
    ["Clippings", "clips", "2 Clippings", "Inbox/Web Clips", "Readwise/Articles", "Omnivore/2024",
     "Pocket", "Kindle highlights", "📎 Clippings"],
)  # fmt: skip
def test_folders_of_saved_pages(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "Wool.md").write_text(THEIRS)
    assert reasons(tmp_path) == {"it was saved from a page": f"{folder}/Wool.md"}


def test_folders_that_plugins_fill_with_reading(tmp_path: Path) -> None:
    plugins = {
        "readwise-official": {"readwiseDir": "Sources/RW"},
        "obsidian-omnivore": {"folder": "Sources/Omni/{{{date}}}"},
        "obsidian-kindle-plugin": {"highlightsFolder": "/Books/"},
    }
    for name, settings in plugins.items():
        folder = tmp_path / ".obsidian" / "plugins" / name
        folder.mkdir(parents=True)
        (folder / "data.json").write_text(json.dumps(settings))
    for name in ("Sources/RW/a.md", "Sources/Omni/2024-03-05/b.md", "Books/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(THEIRS)
    assert reasons(tmp_path) == {"it holds highlights from what was read": "Books/c.md"}


OWN_FRONTS = {
    "a post of one's own": "title: Quiet\ndate: 2024-03-05\nauthor: Sam\ndescription: walks",
    "where it came from": "source: a talk with Anna",
    "a book's page in the vault": 'source: "[[Deep Work]]"\nauthor: "[[Cal Newport]]"',
    "a project": "url: https://shed.example\nstatus: open",
    "permanent link": "permalink: https://me.example/quiet\ntags: [walks]",
    "event": "saved: false\nread: true",
}


@pytest.mark.parametrize("form", OWN_FRONTS)
def test_notes_with_addresses_and_authors_may_be_ones_own(tmp_path: Path, form: str) -> None:
    (tmp_path / "n.md").write_text(f"---\n{OWN_FRONTS[form]}\n---\n{TEXT}")
    assert [r.output for r in read("markdown", tmp_path, {"records": "texts"})[0]] == [TEXT]


def test_authors_are_told_apart_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"---\nauthor: Ida Three\n---\n{THEIRS}")
    (tmp_path / "b.md").write_text(
        f'---\nauthor: "[[Sam Two]]"\nsource: https://me.example/quiet\n---\n{TEXT}'
    )
    options: dict[str, object] = {"me": ["sam two"], "records": "texts"}
    assert reasons(tmp_path, options) == {"its author is someone else": "a.md"}
    assert {r.id for r in read("markdown", tmp_path, options)[0]} == {"Own.md#1", "b.md#1"}


READ = {
    "omnivore": "# Wool\n#Omnivore\n\n[Read on Omnivore](https://omnivore.app/me/wool-1)\n"
    "[Read Original](https://socks.example)\n\n## Highlights\n\n"
    f"{THEIRS} [⤴️](https://omnivore.app/me/wool-1#abc)\n",
    "readwise": "# Wool\n\n![cover](https://x.example/c.png)\n\n## Metadata\n- Author: [[Ida]]\n"
    f"- Full Title: Wool\n- Category: #articles\n\n## Highlights\n- {THEIRS}\n",
    "highlights": f"# Wool\n\n- {THEIRS} ([View Highlight](https://read.readwise.io/read/01a))\n"
    f"- {THEIRS} ([View Highlight](https://read.readwise.io/read/01b))\n",
    "kindle": f"# Wool\n\n- {THEIRS} ([Location 12](https://readwise.io/to_kindle?l=12))\n"
    f"- {THEIRS} ([Location 1,234](https://readwise.io/to_kindle?l=13))\n",
}


@pytest.mark.parametrize("form", READ)
def test_highlights(tmp_path: Path, form: str) -> None:
    (tmp_path / "Wool.md").write_text(READ[form])
    assert reasons(tmp_path) == {"it holds highlights from what was read": "Wool.md"}


def test_a_page_that_notions_clipper_saved(tmp_path: Path) -> None:
    name = f"Wool {'d' * 32}.md"
    (tmp_path / name).write_text(f"# Wool\n\nURL: https://socks.example\nTags: a\n\n{THEIRS}\n")
    assert reasons(tmp_path) == {"it was saved from a page": name}


SETTINGS = {
    "core": ("templates.json", {"folder": "Forms"}),
    "templater": ("plugins/templater-obsidian/data.json", {"templates_folder": "Forms"}),
    "daily notes": ("daily-notes.json", {"template": "Forms/Day"}),
    "periodic notes": ("plugins/periodic-notes/data.json", {"daily": {"template": "Forms/Day.md"}}),
    "quickadd": (
        "plugins/quickadd/data.json",
        {"choices": [{"choices": [{"templatePath": "Forms/Day.md"}]}]},
    ),
    "folder templates": (
        "plugins/templater-obsidian/data.json",
        {"folder_templates": [{"folder": "", "template": "Forms/Day.md"}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", SETTINGS)
def test_templates_are_where_the_settings_say(tmp_path: Path, form: str) -> None:
    name, settings = SETTINGS[form]
    file = tmp_path / ".obsidian" / name
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(settings))
    (tmp_path / "Forms").mkdir()
    (tmp_path / "Forms" / "Day.md").write_text(f"# What was good today?\n{THEIRS}")
    day = f"# Monday\nWhat was good today?\n{TEXT}"
    (tmp_path / "2024-03-05.md").write_text("# What was good today?\n" + day)
    assert reasons(tmp_path) == {"it is a template": "Forms/Day.md"}


@pytest.mark.parametrize(
    "folder", ["Templates", "5-Templates", "_templates", "Vorlagen", "Plantillas", "Modèles",
               "99 📄 Templates", "テンプレート", "模板", "Шаблоны"],
)  # fmt: skip
def test_folders_of_templates(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "x.md").write_text(THEIRS)
    assert reasons(tmp_path) == {"it is a template": f"{folder}/x.md"}


@pytest.mark.parametrize(
    "text",
    [
        f"---\ncreated: {{{{date}}}}\n---\n{THEIRS}",
        f'---\ncreated: <% tp.date.now("YYYY-MM-DD") %>\n---\n{THEIRS}',
        f"# <% tp.file.title %>\n{THEIRS}",
        f"# {{{{title}}}}\n{THEIRS}",
        f"{{{{date}}}} {{{{time:HH:mm}}}} {{{{VALUE:what}}}} {THEIRS}",
    ],
)
def test_templates_outside_of_their_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.md").write_text(text)
    assert reasons(tmp_path) == {"it is a template": "x.md"}


def test_what_programs_did_not_fill_is_taken_out() -> None:
    text = (
        f"{TEXT} <% tp.date.now() %>\n<%*\nconst THEIRS = 1\n%>\n{{{{embed [[THEIRS]]}}}} and on."
    )
    assert "THEIRS" not in plain(text) and "tp." not in plain(text) and TEXT in plain(text)
    assert plain("It is {{c1::Paris::city}} there") == "It is Paris there"


def test_drawings_boards_and_chats(tmp_path: Path) -> None:
    (tmp_path / "Plan.excalidraw.md").write_text(f"# Text Elements\n{THEIRS} ^Ab12Cd34\n")
    front = "---\nexcalidraw-plugin: parsed\n---\n"
    (tmp_path / "Shed.md").write_text(f"{front}==⚠ Switch to EXCALIDRAW VIEW ⚠==\n{THEIRS}")
    columns = (
        "---\nkanban-plugin: board\n---\n\n## THEIRS to do\n\n- [ ] wood\n- [x] nails THEIRS\n"
    )
    settings = '\n%% kanban:settings\n```\n{"kanban-plugin":"THEIRS"}\n```\n%%\n'
    (tmp_path / "Board.md").write_text(columns + settings)
    (tmp_path / "Copilot.md").write_text(
        f"---\nepoch: 1709648520\nmodelKey: gpt-4\n---\n**ai**: {THEIRS}"
    )
    found = reasons(tmp_path)
    assert found["it is a drawing"] == "Plan.excalidraw.md"
    assert found["it has fewer than 12 words"] == "Board.md"
    assert found["it is a conversation with an assistant"] == "Copilot.md"
    (tmp_path / "Board.md").write_text(f"{columns}- [ ] {TEXT}\n{settings}")
    records = read("markdown", tmp_path, {"records": "texts"})[0]
    assert [r.output for r in records if r.id == "Board.md#1"] == [TEXT]


FOREIGN = {
    "quote": "> THEIRS",
    "quote that goes on": "> They said\nTHEIRS and so on",
    "quote in a list": "- > THEIRS\n  > THEIRS",
    "callout": "> [!quote] Ida\n> THEIRS",
    "html": "<blockquote>\nTHEIRS\n\nTHEIRS\n</blockquote>",
    "org": "#+BEGIN_QUOTE\nTHEIRS\n#+END_QUOTE",
    "attributed": "“Wool THEIRS dries slowly.”\n— Ida Three",
    "attributed below": "*“Wool THEIRS dries slowly.”*\n\n— Ida Three, Socks",
    "attributed in brackets": '"Wool THEIRS dries slowly." (Three 2023, p. 5)',
    "attributed in German": "„Wolle THEIRS trocknet langsam.“\n– Ida Drei",
    "attributed in Japanese": "「羊毛は THEIRS ゆっくり乾く」\n― 三井田",
    "zotero": "- “Wool THEIRS dries” ([Three, 2023, p. 5](zotero://select/library/items/A)) "
    "([pdf](zotero://open-pdf/library/items/B?page=5))",
    "zotero, marked": '<mark class="y">“THEIRS” ([Three, 2023, p. 1]'
    "(zotero://select/library/items/A))</mark>",
    "one highlight": "- THEIRS dries slowly,\n  THEIRS ([View Highlight](https://read.readwise.io/1))",
    "waypoint": "%% Begin Waypoint %%\n- [[THEIRS]]\n- THEIRS\n%% End Waypoint %%",
    "publisher": "%% DATAVIEW_PUBLISHER: start\nTHEIRS\n%%\nTHEIRS\n%% DATAVIEW_PUBLISHER: end %%",
    "annotations": "%% begin annotations %%\nTHEIRS\n%% end annotations %%",
    "doctoc": "<!-- START doctoc generated TOC -->\n- THEIRS\n<!-- END doctoc -->",
    "toc": "<!-- toc -->\n- [THEIRS](#theirs)\n<!-- tocstop -->",
    "contents": "- [[#THEIRS]]\n- [THEIRS](#theirs)",
    "ways": "<< [[2024-03-04|THEIRS]] | [[2024-03-06|THEIRS]] >>",
    "dataview": "```dataview\nTABLE THEIRS\n```",
    "dataview inline": "It is `= this.THEIRS` and `$= dv.THEIRS`.",
    "dataview field": "- THEIRS key:: THEIRS",
    "dataview bracket": "Wool [THEIRS:: 5] and (THEIRS:: 6).",
    "nested fence": "- code:\n    ```js\n    THEIRS\n    ```",
    "longer fence": "````md\n```\nTHEIRS\n```\nTHEIRS\n````",
    "indented code": "Run:\n\n    THEIRS --now\n\n\tTHEIRS",
    "tasks": "- [ ] water the beans 📅 2024-03-05 🔁 every week when THEIRS",
    "logbook": "- TODO x\n  :LOGBOOK:\n  CLOCK: THEIRS\n  :END:",
    "block reference": "((65e7a3f0-0000-4000-8000-0000000000ab))",
    "script": "<script>\nTHEIRS\n</script><style>THEIRS</style>",
    "assistant": "**User:** and wool?\n\n**ChatGPT:** THEIRS\n\nTHEIRS\n\n**User:** thanks",
    "roles": "# role::user\n\nand wool?\n\n# role::assistant\n\nTHEIRS\n\n# role::user\n\nthanks",
}  # fmt: skip


@pytest.mark.parametrize("form", FOREIGN)
def test_others_words_in_ones_own_notes(form: str) -> None:
    found = plain(f"{TEXT}\n\n{FOREIGN[form]}\n\nAnd then I went home.")
    assert "THEIRS" not in found and found.startswith(TEXT), found
    assert found.endswith("And then I went home.")
    assert not any(sign in found for sign in ("65e7", "role::", "📅", "```", "zotero"))


OWN = {
    "a speech": "“I am leaving,” she said, and OWN words followed.",
    "a quote within": 'He calls it "slow wool" and OWN words say why.',
    "paragraphs of a list": "- a point\n\n    OWN words that go on with it\n\n- another",
    "a tab in a list": "- a point\n\tOWN words",
    "inline fence": "```quick``` OWN words",
    "notes of zotero": "%% begin notes %%\nOWN words\n%% end notes %%",
    "a link": "[[Anna]] and OWN words",
    "a name before a colon": "Claude: OWN words of a friend's visit",
    "after a quote": "> theirs\n\nOWN words",
    "a heading after a quote": "> theirs\n## OWN words",
    "a comment that does not end": "so 100 %% and OWN words <!-- more",
    "after a citation": "“Wool” ([Three, 2023](zotero://select/items/A)) and OWN words",
}


@pytest.mark.parametrize("form", OWN)
def test_own_words_stay(form: str) -> None:
    assert "OWN words" in plain(f"{TEXT}\n\n{OWN[form]}\n\nAnd then I went home.")


def test_nothing_of_a_long_note_is_lost(tmp_path: Path) -> None:
    """Paragraphs longer than a piece are divided, and a short end goes with what is before it."""
    sentences = [f"Word{n} of the long walk was quiet and slow." for n in range(400)]
    text = " ".join(sentences) + "\n\nShort end."
    (tmp_path / "a.md").write_text(text)
    outputs = [r.output for r in read("markdown", tmp_path, {"records": "texts"})[0]]
    joined = " ".join(" ".join(outputs).split())
    assert joined == " ".join(text.split()) and max(map(len, outputs)) < 2500
    assert len(outputs) > 5


@pytest.mark.parametrize(
    "text",
    ["<!--", "%%", "{{", "<%", "<q>", "`", "“", "**a", "[[", "- [x](", "|", "> ", "\n#+BEGIN_A "],
)
def test_any_note_is_read_in_time(text: str) -> None:
    plain(text * (200_000 // len(text)))


def test_damaged_settings_tell_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".obsidian"
    folder.mkdir()
    for content in ("[" * 100_000, "{", '{"folder": 5}', '{"folder": "/"}', "null", '"x"', "\xff"):
        (folder / "templates.json").write_text(content)
        assert reasons(tmp_path) == {}


def test_a_folder_of_saved_pages_alone_says_why_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "Wool.md").write_text(f"---\nsource: https://socks.example\n---\n{THEIRS}")
    with pytest.raises(DataError, match="it was saved from a page"):
        read("markdown", tmp_path)
