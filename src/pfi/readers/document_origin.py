"""Whose words a document is: by the names that it carries, by what wrote it, by what it says.

In doubt they are someone else's.  Placeholders of names are those that Windows, Office and other
programs put where nobody said a name, in the languages of Office.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from pfi.readers.document_text import Properties

__all__ = ["foreign_text", "guess_me", "is_somebody", "name_key", "named", "others_document"]

OTHER = "its author is someone else"
SEVERAL = "it has several authors"
SHARED = "someone else saved it last, and may have written in it"
UNCLEAR = "it is not clear whether its author is you: say so with me"
UNSIGNED = "it does not say who wrote it: if you did, say unsigned=true"
SAVED = "it was saved from a page"
TEMPLATE = "it is a template"
PUBLISHED = "it is a published work"
TALK = "it is a conversation of several people"
MAIL = "it is a mail"
DATA = "it holds no sentences, but data, code or a log"

_NOBODY_WORDS = """
user; users; windows user; microsoft office user; office user; microsoft; microsoft office; admin;
administrator; owner; author; unknown; unknown author; anonymous; default; default user; home;
guest; pc; hp; dell; lenovo; acer; asus; toshiba; samsung; windows; python-docx; apache poi;
openpyxl; un-named; unnamed; none; root; x; -; .; *; google docs; pandoc; word; libreoffice;
openoffice; docx; user name; username; your name; name; computer; laptop; macbook;
windows-benutzer; microsoft office-anwender; microsoft office-benutzer; benutzer; anwender; autor;
unbekannt; utilisateur windows; utilisateur microsoft office; utilisateur; auteur; inconnu;
usuario de windows; usuario de microsoft office; usuario; usuário do windows; usuário;
usuário do microsoft office; utilizador do windows; utilizador; utente windows; utente;
utente di microsoft office; autore; sconosciuto; windows-gebruiker; microsoft office-gebruiker;
gebruiker; windows-bruger; bruger; windows-användare; användare; författare; windows-bruker; bruker;
windows-käyttäjä; käyttäjä; tekijä; forfatter; użytkownik systemu windows; użytkownik;
uživatel systému windows; uživatel; felhasználó; windows-felhasználó; пользователь windows;
пользователь; автор; користувач windows; користувач; windows kullanıcısı; kullanıcı; yazar;
windows ユーザー; microsoft office ユーザー; ユーザー; 作者; 作成者; windows 用户; windows 使用者;
microsoft account; microsoft-konto; compte microsoft; cuenta microsoft; cuenta de microsoft;
account microsoft; conta microsoft; conta da microsoft; microsoft-account; konto microsoft;
účet microsoft; учетная запись майкрософт; учетная запись microsoft; обліковий запис microsoft;
microsoft hesabı; microsoft アカウント; microsoft 帐户; microsoft 帳戶; microsoft 계정;
微软用户; 用户; 使用者; windows 사용자; 사용자; 작성자; مستخدم windows; מחבר; משתמש windows
"""
_NOBODY = frozenset(
    unicodedata.normalize("NFKC", name).strip().casefold() for name in _NOBODY_WORDS.split(";")
)
#: What browsers and programs that print pages write in PDFs.
_PAGE_PROGRAMS = re.compile(
    r"\b(?:mozilla|chrom(?:e|ium)|headlesschrome|firefox|safari|edge|opera|prince|webpage|pocket)\b"
    r"|webkit|wkhtmltopdf|weasyprint|skia/pdf(?!.*google docs)|print ?friendly|instapaper|calibre",
    re.I,
)
#: Marks of works that are published, near their beginning.
_PUBLISHED = re.compile(
    r"doi\.org/10\.\d{4}|\bdoi:\s?10\.\d{4}|\barxiv:\s?\d{4}\.\d{4,5}|\bISSN[ :]?\d{4}-\d{3}"
    r"|\bISBN(?:-1[03])?[ :]?[\d-]{9}|all rights reserved|project gutenberg"
    r"|alle rechte vorbehalten|tous droits réservés|todos los derechos reservados"
    r"|todos os direitos reservados|tutti i diritti riservati|все права защищены"
    r"|(?:©|\(c\)|copyright)\s*(?:©\s*)?\d{4}|downloaded from https?:|first published (?:by|in)",
    re.I,
)
_HEAD = 3000
_CLOCK = r"[\[(]?\d{1,2}[:.]\d\d(?:[:.]\d\d)?(?:[.,]\d{1,3})?[\])]?"
#: Who speaks: `Anna: hello`, `[00:12] Anna: hello`, and `Anna  0:12` above what she says.
_SPEAKER = re.compile(
    rf"(?:{_CLOCK}\s*[-–—]?\s*)?(?P<name>[^\W\d_][^:：\n]{{0,38}}?)\s*(?:{_CLOCK})?\s*[:：](?=\s|$)"
    rf"|(?P<above>[^\W\d_][^:：\n]{{0,38}}?)\s+{_CLOCK}$"
)
_ASSISTANT = re.compile(
    r"(?:chat ?gpt|gpt-?\d[\w.]*|claude|gemini|copilot|bard|assistant|ai assistant|deepseek"
    r"|perplexity|mistral|llama|grok)\b.{0,12}",
    re.I,
)
#: Places of a template that are to be filled in, such as [Your Name] and «Name».
_PLACE = re.compile(r"\[[^\W\d_][^\[\]\n]{1,40}\]|«[^«»\n]{1,40}»|<[A-Z][^<>\n]{1,30}>|_{5,}")
_CODE_LINE = re.compile(
    r"\s*(?:(?:import|from|def|class|public|private|static|const|let|var|if|for|while|return"
    r"|function|#include|using|package|SELECT|INSERT|CREATE)\b.*[;{(:=]|[{}()\[\];]+|.*[;{}]|</?\w+.*>"
    r"|[\w.-]+\s*=\s*\S.*|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*)\s*$"
)
#: Letters and spaces of sentences, at least, as a share of all characters.
_LETTERS = 0.7


def name_key(name: str) -> str:
    """A name in the form in which names are compared: `Me, Sam` is `Sam Me`."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(sorted(re.findall(r"[^\s,;]+", text)))


def is_somebody(name: str) -> bool:
    """Whether a name is not what a program writes if nobody said a name."""
    return bool(name.strip()) and _plain(name) not in _NOBODY


def named(properties: Properties) -> tuple[str, ...]:
    """The authors that a document names."""
    return tuple(name for name in properties.authors if is_somebody(name))


def guess_me(documents: Iterable[Properties]) -> str | None:
    """Who more than half of the documents that name an author are by; None if nobody is."""
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    total = 0
    for properties in documents:
        names = named(properties) or tuple(filter(is_somebody, [properties.editor]))
        total += bool(names)
        for name in names[:1] if len(names) == 1 else ():
            counts[name_key(name)] += 1
            shown.setdefault(name_key(name), name)
    if not counts:
        return None
    [(key, count)] = counts.most_common(1)
    return shown[key] if 2 * count > total else None


def others_document(
    properties: Properties, me: Collection[str], *, pdf: bool, shared: bool, unsigned: bool
) -> str | None:
    """Why a document is not taken as one's own, by its names and what wrote it; None if it is.

    Args:
        properties: of the document.
        me: keys of one's own names; empty if they are not known.
        pdf: whether it is one, which most people have of others' works.
        shared: whether what others began or saved last counts as one's own.
        unsigned: whether PDFs without an author do.
    """
    if properties.template:
        return TEMPLATE
    authors = named(properties)
    if pdf and authors:
        authors = tuple(_divided(authors[0], me))
    mine = [name_key(name) in me for name in authors]
    if pdf and not (mine and all(mine)) and _PAGE_PROGRAMS.search(properties.program):
        return SAVED
    if pdf and not authors:
        return None if unsigned else UNSIGNED
    if authors and not me:
        return UNCLEAR
    if shared and not pdf and (any(mine) or name_key(properties.editor) in me):
        return None
    if not all(mine):
        return SEVERAL if any(mine) else OTHER
    return None


def _divided(author: str, me: Collection[str]) -> list[str]:
    """The names in a PDF's author; `Me, Sam` is one, `Ida Three and Sam Me` are two."""
    if name_key(author) in me:
        return [author]
    return [name for name in re.split(r"\s*[;,&]\s*|\s+and\s+", author) if name]


def foreign_text(lines: Sequence[str], *, signed: bool) -> str | None:
    """Why a text is not one's own, or no text in sentences; None if it seems to be.

    Args:
        lines: of the text.
        signed: whether the document says that it is one's own.
    """
    text = "\n".join(lines)
    if is_conversation(lines):
        return TALK
    if not signed and _PUBLISHED.search(text[:_HEAD]):
        return PUBLISHED
    if is_template(text):
        return TEMPLATE
    filled = [line for line in lines if line.strip()]
    letters = sum(c.isalpha() or c.isspace() or unicodedata.category(c)[0] == "M" for c in text)
    code = sum(_CODE_LINE.match(line) is not None for line in filled)
    if text and (letters < _LETTERS * len(text) or 2 * code > len(filled)):
        return DATA
    return None


def is_conversation(lines: Sequence[str]) -> bool:
    """Whether lines say who speaks, and at least two do, each more than once."""
    speakers: Counter[str] = Counter()
    filled = 0
    for line in lines:
        filled += bool(line.strip())
        if match := _SPEAKER.match(line.strip()):
            speakers[(match["name"] or match["above"]).casefold().strip()] += 1
    often = [count for name, count in speakers.items() if count > 1]
    assistant = any(_ASSISTANT.fullmatch(name) for name in speakers)
    return (len(often) > 1 and 4 * sum(often) > filled) or (assistant and len(speakers) > 1)


def is_template(text: str) -> bool:
    """Whether a text has many places that are to be filled in."""
    places = len(_PLACE.findall(text[:200_000]))
    return places > 2 and places * 120 > len(text)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
