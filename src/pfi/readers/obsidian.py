"""What the settings of an Obsidian vault tell of its notes: which are templates, which folders
plugins fill with what was read, and how dates are written in names.

Settings are data of other people's programs: small ones are read, as JSON, and paths in them are
only compared with paths of notes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pfi.errors import DataError
from pfi.readers.exports import Member

#: Largest file of settings that is read, in bytes, most plugins, and deepest nest of values.
SETTINGS_LIMIT = 4 << 20
PLUGINS_LIMIT = 300
DEPTH_LIMIT = 12

#: Files of settings that name templates and formats of dates.
_CORE = ("templates", "daily-notes", "zk-prefixer", "workspaces")
#: Plugins that write what was read or saved elsewhere, and the key of the folder they write to.
_READING_PLUGINS = {
    "readwise-official": ("readwiseDir", "Readwise"),
    "readwise-mirror": ("baseFolderName", "Readwise"),
    "obsidian-omnivore": ("folder", "Omnivore"),
    "obsidian-kindle-plugin": ("highlightsFolder", ""),
    "obsidian-hypothesis-plugin": ("highlightsFolder", ""),
    "make-it-rain": ("defaultFolder", ""),
    "raindrop-highlights": ("highlightsFolder", ""),
    "obsidian-pocket": ("pocket-item-notes-folder", ""),
    "instapaper": ("notesFolder", "Instapaper Notes"),
    "obsidian-read-it-later": ("inboxDir", "ReadItLater Inbox"),
    "obsidian-clipper": ("folder", ""),
    "wallabag": ("folder", ""),
    "hoarder-sync": ("syncFolder", "Hoarder"),
    "snipd-official": ("snipdDir", "Snipd"),
    "matter": ("dataDir", "Matter"),
    "rss-reader": ("folder", ""),
}
#: Folders of templates as people name them, in the languages of Obsidian.
_TEMPLATE_WORDS = """
template templates templater vorlage vorlagen plantilla plantillas modèles modèle modelli modello
modelos modelo sjablonen sjabloon mallar maler mal skabeloner szablony szablon šablony šablona
predlošci шаблоны шаблон шаблони templat şablonlar şablon sablonok sablon mallit malli șabloane
πρότυπα قوالب תבניות टेम्पलेट แม่แบบ เทมเพลต mẫu 模板 範本 模版 范本 テンプレート 템플릿
"""
_TEMPLATE_FOLDERS = frozenset(_TEMPLATE_WORDS.split())


@dataclass(frozen=True)
class VaultSettings:
    """What the settings of a vault tell; paths have slashes and small letters.

    Attributes:
        templates: folders and files that are templates.
        reading: folders of what was read or saved.
        formats: of dates in names of notes, in Moment's letters.
    """

    templates: frozenset[str] = frozenset()
    reading: frozenset[str] = frozenset()
    formats: tuple[str, ...] = ()

    def is_template(self, parts: Sequence[str]) -> bool:
        """Whether a note, by its path, is a template."""
        if any(_letters(part) in _TEMPLATE_FOLDERS for part in parts[:-1]):
            return True
        return any(path in self.templates for path in _paths(parts))

    def is_reading(self, parts: Sequence[str]) -> bool:
        """Whether a note, by its path, is what a program saved."""
        return any(path in self.reading for path in _paths(parts[:-1]))


@dataclass
class _Gathered:
    templates: set[str] = field(default_factory=set)
    reading: set[str] = field(default_factory=set)
    formats: list[str] = field(default_factory=list)


def vault_settings(folder: Path) -> VaultSettings:
    """The settings of a folder of notes; empty ones if it is no vault."""
    root = folder / ".obsidian"
    try:
        plugins = sorted((root / "plugins").iterdir())[:PLUGINS_LIMIT]
    except OSError:
        plugins = []
    values = {name: _settings(root / f"{name}.json") for name in _CORE}
    return _understood(values, {plugin.name: _settings(plugin / "data.json") for plugin in plugins})


def archived_settings(files: Sequence[Member]) -> VaultSettings:
    """The settings of a vault in an archive, by its files; empty ones if it is no vault."""
    core: dict[str, Any] = {}
    plugins: dict[str, Any] = {}
    first = ""
    for file in files:
        folder, sign, name = file.name.rpartition(".obsidian/")
        if not sign or len(plugins) > PLUGINS_LIMIT or (first and folder != first[:-1]):
            continue
        first = f"{folder}\0"
        if match := re.fullmatch(r"plugins/([^/]+)/data\.json", name):
            plugins[match[1]] = _archived(file)
        elif name.removesuffix(".json") in _CORE:
            core[name.removesuffix(".json")] = _archived(file)
    return _understood(core, plugins, first[:-1])


def _understood(
    core: Mapping[str, Any], plugins: Mapping[str, Any], folder: str = ""
) -> VaultSettings:
    """What settings tell; `folder` is that of the vault, with a slash at its end."""
    gathered = _Gathered()
    for name, values in core.items():
        _gather(values, gathered, name)
    for name, values in plugins.items():
        _gather(values, gathered, name)
        key, usual = _READING_PLUGINS.get(name, ("", ""))
        if key:
            value = values.get(key, usual) if isinstance(values, dict) else usual
            # Folders may go on with places to fill: Omnivore/{{date}}.
            if path := _path(str(value).partition("{")[0]):
                gathered.reading.add(path)
    above = folder.casefold()
    return VaultSettings(
        frozenset(above + path for path in gathered.templates),
        frozenset(above + path for path in gathered.reading),
        tuple(gathered.formats),
    )


def _gather(values: Any, gathered: _Gathered, program: str) -> None:
    """Paths of templates, and formats of dates, anywhere in a program's settings."""
    for key, value in _entries(values):
        name = re.sub(r"[\W_]+", "", key).casefold()
        if "template" in name or (program == "templates" and name == "folder"):
            path = _path(value)
            if path:
                gathered.templates |= {path, path.removesuffix(".md")}
        elif name in ("format", "dateformat", "namingformat") and len(value) < 100:
            gathered.formats.append(value)


def _entries(values: Any) -> Iterator[tuple[str, str]]:
    """The texts of nested settings, each with the nearest key above it."""
    stack: list[tuple[str, Any, int]] = [("", values, 0)]
    while stack:
        key, value, depth = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif depth < DEPTH_LIMIT and isinstance(value, dict):
            stack += [(str(name), inner, depth + 1) for name, inner in value.items()]
        elif depth < DEPTH_LIMIT and isinstance(value, list):
            stack += [(key, inner, depth + 1) for inner in value]


def _settings(file: Path) -> Any:
    try:
        if file.is_symlink() or file.stat().st_size > SETTINGS_LIMIT:
            return None
        return json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def _archived(file: Member) -> Any:
    if file.size > SETTINGS_LIMIT:
        return None
    try:
        with file.open() as stream:
            return json.loads(stream.read(SETTINGS_LIMIT))
    except (DataError, ValueError, RecursionError):
        return None


def _path(text: str) -> str:
    """A path of settings in the form in which paths are compared; empty for the whole vault."""
    if "\n" in text or len(text) > 500:
        return ""
    parts = [part for part in PurePosixPath(text.strip()).parts if part not in ("/", ".")]
    return "/".join(parts).casefold()


def _paths(parts: Sequence[str]) -> Iterator[str]:
    """The path and the folders above it, as settings would name them."""
    names = [part.casefold() for part in parts]
    for end in range(1, len(names) + 1):
        path = "/".join(names[:end])
        yield path
        yield path.removesuffix(".md")


def _letters(name: str) -> str:
    """A folder's name without the numbers and signs that put it in its place."""
    return re.sub(r"^[\W\d_]+|[\W\d_]+$", "", name.casefold())
