"""Whose words a note holds: what was saved from pages and books, and what programs made, is not
one's own.

The keys, folders and marks are those of Obsidian's Web Clipper (`source`, `clipped`, the folder
Clippings in every language), Readwise, Omnivore, Pocket, Instapaper, Raindrop, Hypothesis, Kindle,
Karakeep, Wallabag, MarkDownload, Joplin's, Evernote's (Yarle) and Notion's clippers, Zotero and
BibTeX; of Excalidraw, Kanban, Templater and the chat plugins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from pfi.readers.front_matter import NOTION_ID, Front, compact, values_of

CLIPPED = "it was saved from a page"
READ = "it holds highlights from what was read"
TEMPLATE = "it is a template"
DRAWING = "it is a drawing"
CHAT = "it is a conversation with an assistant"
OTHER = "its author is someone else"
EDITED = "someone else edited it last, and may have written in it"
WELCOME = "it is a page that Notion wrote"

#: Keys whose value is the address of the page that a note was saved from.
_SOURCES = (
    "source", "sourceurl", "urlsource", "sourceuri", "sourcelink", "originalurl", "origurl",
    "originurl", "originalsource", "articleurl", "pageurl", "baseuri", "clippedfrom",
    "savedfrom", "webclip", "weburl", "canonicalsource", "readwiseurl", "omnivoreurl",
    "instapaperurl", "feedurl", "hypothesisurl", "importedfrom", "linktooriginal",
    "originalhtml", "via",
)  # fmt: skip
#: Keys that only programs that save or read write, whatever their value.
_SAVED = (
    "clipped", "clippedat", "clippedon", "dateclipped", "clipdate", "datesaved", "savedat",
    "savedon", "datearchived", "readwiseid", "readwise", "omnivoreid", "omnivore", "pocketid",
    "pocket", "instapaperid", "instapaper", "raindropid", "raindrop", "bookmarkid", "hoarderid",
    "karakeepid", "wallabagid", "kindlesync", "kindle", "highlightscount", "numhighlights",
    "highlights", "lasthighlighted", "lasthighlightedon", "lasthighlightsync", "hypothesismeta",
    "hypothesisid", "doctype", "snipd", "matterid", "glasp", "rssfeed", "feedid", "itemguid",
    "dateadded",
)  # fmt: skip
#: Of those above the ones that people write, too: they count with an address only.
_DOUBTFUL = ("dateadded", "highlights", "kindle", "pocket", "doctype", "readwise", "rssfeed")
_LINKS = ("url", "link", "href", "website", "web", "address", "uri", "webpage", "article", "video")
#: What tells of a page, beside its address.
_ABOUT = (
    "site", "sitename", "publisher", "published", "publisheddate", "datepublished", "author",
    "authors", "byline", "description", "excerpt", "image", "cover", "thumbnail", "favicon",
    "channel", "domain", "wordcount", "readingtime", "saved", "read", "dateread", "readat",
)  # fmt: skip
_WORKS = (
    "citekey", "citationkey", "zoterokey", "zoterolink", "zotero", "bibliography", "doi",
    "itemtype", "bibtex", "zoteroselecturl", "zoterouri",
)  # fmt: skip
_KINDS = (
    "tags",
    "tag",
    "categories",
    "category",
    "type",
    "kind",
    "class",
    "notetype",
    "contenttype",
)
_CLIP_TAG = re.compile(
    r"(?:web[-_ ]?)?clip(?:ping|per|ped)?s?|readwise|omnivore|instapaper|getpocket"
    r"|raindrop(?:\.io)?|hypothes\.?is|kindle[-_ ]?highlights?|read[-_ ]?it[-_ ]?later"
    r"|hoarder|karakeep|wallabag|markdownload|saved[-_ ]?(?:article|page)s?",
    re.I,
)
_PAGE_TAG = re.compile(
    r"articles?|web(?:page|site)?s?|blog[-_ ]?posts?|tweets?|threads?|videos?|youtube|podcasts?"
    r"|papers?|news|bookmarks?|to[-_ ]?read|reading[-_ ]?list|sources?"
    r"|literature[-_ ]?notes?|newsletters?",
    re.I,
)
#: What Notion calls its properties of who made and who changed a page last, in its languages.
_MAKERS = (
    "createdby", "erstelltvon", "creadopor", "créépar", "crééepar", "criadopor", "creatoda",
    "gemaaktdoor", "aangemaaktdoor", "skapadav", "oprettetaf", "opprettetav", "luonut", "luoja",
    "作成者", "생성자", "만든사람", "创建者", "创建人", "建立者", "建立人", "สร้างโดย", "tạobởi",
    "đượctạobởi", "dibuatoleh", "oluşturan", "oluşturankişi", "создано", "создал",
)  # fmt: skip
_EDITORS = (
    "lasteditedby", "zuletztbearbeitetvon", "últimaediciónde", "últimaediciónpor",
    "editadoporúltimavezpor", "dernièremodificationpar", "modifiéendernierpar",
    "últimaediçãopor", "editadopelaúltimavezpor", "ultimamodificadi",
    "modificatoperultimoda", "laatstbewerktdoor", "senastredigeradav", "sidstredigeretaf",
    "sistredigertav", "viimeksimuokannut", "最終更新者", "最終編集者", "최종편집자",
    "마지막편집자", "최근편집자",
    "最后编辑者", "最后编辑人", "上次编辑者", "最後編輯者", "上次編輯者", "แก้ไขล่าสุดโดย",
    "chỉnhsửalầncuốibởi",
    "terakhirdieditoleh", "sondüzenleyen",
)  # fmt: skip
#: The page that a new workspace begins with.
_WELCOME = re.compile(
    r"Welcome to Notion|Willkommen (?:bei|in) Notion|Bienvenue (?:dans|sur) Notion"
    r"|bienvenida a Notion|Bienvenido a Notion|vindas ao Notion|Benvenut[oi] (?:in|su) Notion"
    r"|Welkom bij Notion|Välkommen till Notion|Velkommen til Notion|Tervetuloa Notioniin"
    r"|Notion\s?へようこそ|Notion에 오신|欢迎使用 ?Notion|歡迎使用 ?Notion",
    re.I,
)
_CLIPPER = re.compile(r"web[-_. ]?clip|clipper", re.I)
_FOLDER = re.compile(
    r"(?:web[-_ ]?|my[-_ ]?)?clip(?:ping)?s?|readwise|omnivore|instapaper|(?:get)?pocket|raindrop"
    r"|hypothes\.?is|kindle(?:[-_ ]?(?:highlights|clippings|notes))?|wallabag|hoarder|karakeep"
    r"|read[-_ ]?(?:it[-_ ]?)?later(?: inbox)?|saved[-_ ](?:articles|pages)|markdownload",
    re.I,
)
_ADDRESS = re.compile(
    r"(?:[\[<(!]*|.{0,80}?\]\()(?:https?://|www\.|file://|zotero://|kindle://)", re.I
)
_HIGHLIGHTS = re.compile(
    r"\[(?:View Highlight|Location \d[\d,-]*|⤴️?)\]\((?:https?|kindle|omnivore)://", re.I
)
_READING = re.compile(
    r"\[Read on Omnivore\]\(|\[View (?:in|on) (?:Readwise|Reader|Raindrop|Instapaper|Matter)\]\("
    r"|^- (?:Full Title|Category):.*^#+ Highlights|^> \[!abstract\].*Zotero link",
    re.I | re.M | re.S,
)
_CLIP_LINE = re.compile(
    r"\A\s*(?:#[^\n]*\n)?\s*(?:>\s*)?(?:Source(?: URL)?|Clipped from|Saved from|Original(?: URL)?"
    r"|Quelle|Fuente|Fonte|Bron|Источник|来源|來源|出典|출처)\s*[:：]\s*(?:[\[<(]*|.{0,80}?\]\()https?://",
    re.I,
)
_PLACEHOLDER = re.compile(
    r"<%|%>|\{\{\s*(?!c\d+::|embed|query|video|renderer|youtube)[^{}\n]{1,200}\}\}|\{%.{1,200}?%\}"
)


def foreign(
    front: Front,
    text: str,
    parts: Sequence[str],
    me: Collection[str] = (),
    maker: Collection[str] = (),
) -> str | None:
    """Why a note is not the words of the one whose notes they are; None if it seems to be.

    Args:
        front: what is said about the note.
        text: the note, without that and without blocks of code.
        parts: its path within the folder of notes, with its name.
        me: names of the one whose notes they are, in small letters.
        maker: the same, or the name that made all pages that say who made them.
    """
    if parts[-1].casefold().endswith((".excalidraw.md", ".excalidraw")) or _has(
        front, "excalidrawplugin"
    ):
        return DRAWING
    if _has(front, "modelkey") or any(
        key in ("copilotconversation", "aichat", "chatgptmd") for key in map(compact, front)
    ):
        return CHAT
    authors = [_name(value) for value in values_of(front, "author", "authors", "byline", "creator")]
    mine = bool(me) and any(name in me for name in authors)
    if mine:
        return None
    if _is_template(front, text, parts):
        return TEMPLATE
    if _saved(front, text, parts):
        return CLIPPED
    if _READING.search(text[:50_000]):
        return READ
    if NOTION_ID.search(parts[-1].removesuffix(".md")) and _WELCOME.search(text[:500]):
        return WELCOME
    if any(name not in maker for name in makers(front)):
        return OTHER
    if maker and any(_name(value) not in maker for value in values_of(front, *_EDITORS)):
        return EDITED
    return OTHER if me and any(authors) else None


def makers(front: Front) -> list[str]:
    """Who made a page, as Notion says, in small letters."""
    return [_name(value) for value in values_of(front, *_MAKERS)]


def has_highlights(text: str) -> bool:
    """Whether a note holds what a reading program copied from pages or books."""
    return _HIGHLIGHTS.search(text) is not None


def _saved(front: Front, text: str, parts: Sequence[str]) -> bool:
    """Whether a note was saved from a page."""
    if any(_ADDRESS.match(value) for value in values_of(front, *_SOURCES)):
        return True
    programs = values_of(front, "source", "contentclass", "sourceapplication")
    if any(_CLIPPER.match(value) for value in programs):
        return True
    if any(_FOLDER.fullmatch(_letters(part)) for part in parts[:-1]):
        return True
    kinds = [_name(value).strip("#") for value in values_of(front, *_KINDS)]
    kinds = [part for kind in kinds for part in re.split(r"[,;/]\s*", kind)]
    if any(_CLIP_TAG.fullmatch(kind) for kind in kinds):
        return True
    linked = any(_ADDRESS.match(value) for value in values_of(front, *_LINKS, *_WORKS))
    saved = {compact(key) for key, value in front.items() if compact(key) in _SAVED and value}
    if saved - set(_DOUBTFUL) or (saved and linked):
        return True
    if linked and NOTION_ID.search(parts[-1].removesuffix(".md")):
        return True  # Notion's clipper keeps no more than the address
    about = any(values_of(front, *_ABOUT))
    if linked and (about or any(_PAGE_TAG.fullmatch(kind) for kind in kinds)):
        return True
    return bool(_CLIP_LINE.match(text))


def _is_template(front: Front, text: str, parts: Sequence[str]) -> bool:
    """Whether places are left in a note for a program to fill.

    Places within the text of a note that has a title and date of its own are what a program did
    not fill: such a note is kept, without them.
    """
    told = [*front, *(v for value in front.values() for v in _listed(value)), parts[-1]]
    head = re.match(r"\s*#[ \t]+[^\n]*", text)
    told += [head[0]] if head is not None else []
    if any(_PLACEHOLDER.search(value) for value in told):
        return True
    places = len(_PLACEHOLDER.findall(text[:200_000]))
    return places > 2 and places * 60 > len(text)


def _has(front: Front, *keys: str) -> bool:
    return any(compact(key) in keys for key in front)


def _listed(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _name(value: str) -> str:
    """A value without the marks of a link, in small letters."""
    text = re.sub(r"!?\[\[(?:[^\]|]*\|)?([^\]]*)\]\]|\[([^\]]*)\]\([^)]*\)", r"\1\2", value)
    return text.strip("\"' ").casefold()


def _letters(name: str) -> str:
    """A folder's name without the numbers and signs that put it in its place."""
    return re.sub(r"^[\W\d_]+|[\W_]+$", "", name)
