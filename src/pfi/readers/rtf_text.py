"""Text of rich text documents (.rtf) as its author wrote it: TextEdit's, WordPad's, Word's.

The format is Microsoft's "Rich Text Format Specification 1.9.1".  Changes of others are rejected,
as in Word documents; notes, headers, pictures and whatever a program added are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from pfi.errors import DataError
from pfi.readers.document_text import (
    COMMENT,
    FOOTNOTE,
    HIDDEN,
    INSERTED,
    Document,
    IsMine,
    Properties,
    field_reason,
    split_names,
    style_reason,
    time_of,
)
from pfi.readers.exports import Member
from pfi.readers.values import Unusable

__all__ = ["rtf_document", "rtf_properties"]

#: Largest file that is read, in bytes (pictures are in it as text), and how deep groups may nest.
SIZE_LIMIT = 64 << 20
DEPTH_LIMIT = 200

_TOKEN = re.compile(
    r"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z'])|([{}])|[\r\n]+"
    r"|([^\\{}\r\n]+)|\\'?"
)
#: Groups whose text is not the document's.
_OTHERS = frozenset(
    (
        "colortbl", "listtable", "listoverridetable", "header", "headerl", "headerr", "headerf",
        "footer", "footerl", "footerr", "footerf", "pict", "object", "themedata", "datastore",
        "generator", "xmlnstbl", "rsidtbl", "latentstyles", "filetbl", "datafield", "private",
        "ftnsep", "aftnsep", "ftnsepc", "aftnsepc", "tc", "xe", "template", "docvar", "userprops",
        "colorschememapping", "shppict", "nonshppict", "bkmkstart", "bkmkend", "listtext", "pntext",
        "pntxta", "pntxtb", "listname", "falt", "panose", "wgrffmtfilter", "upr", "ud", "mmath",
    )
)  # fmt: skip
_NOTES = {"footnote": FOOTNOTE, "annotation": COMMENT}
#: Groups that are read for what they say.
_READ = ("fonttbl", "stylesheet", "info", "revtbl", "fldinst", "atnauthor", "author", "operator",
         "title", "creatim", "revtim")  # fmt: skip
_BULLET = re.compile(r"^[•·▪]\s*")
_SIGNS = {
    "tab": " ", "line": "\n", "emdash": "—", "endash": "–", "lquote": "‘", "rquote": "’",
    "ldblquote": "“", "rdblquote": "”", "bullet": "•", "emspace": " ", "enspace": " ",
}  # fmt: skip
_SYMBOLS = {"~": " ", "_": "-", "\n": "\n", "\r": "\n", "{": "{", "}": "}", "\\": "\\"}
#: Code pages by the number of a font's character set.
_CHARSETS = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 134: "gbk", 136: "cp950", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251",
    222: "cp874", 238: "cp1250",
}  # fmt: skip


@dataclass(frozen=True)
class _State:
    """What holds within a group."""

    where: str = ""  # the group that is read for what it says; empty for the document's text
    skipped: bool = False
    unicode_skip: int = 1
    hidden: bool = False
    inserted: int | None = None  # number of the author
    deleted: int | None = None
    reason: str = ""  # of a field's result
    codec: str = ""


@dataclass
class _Parsed:
    """What is gathered from a file."""

    document: Document = field(default_factory=Document)
    texts: dict[str, str] = field(default_factory=dict)
    styles: dict[int, str] = field(default_factory=dict)
    authors: list[str] = field(default_factory=list)


def rtf_properties(member: Member) -> Properties:
    """What a rich text document says about itself.

    Raises:
        Unusable: it is none, or too large.
    """
    texts = _parse(member, lambda name: True).texts
    return Properties(
        authors=split_names(texts.get("author", "")),
        editor=texts.get("operator", ""),
        title=texts.get("title", ""),
        created=time_of(texts.get("creatim", "")),
        modified=time_of(texts.get("revtim", "")),
    )


def rtf_document(member: Member, mine: IsMine) -> Document:
    """The text of a rich text document.

    Args:
        member: the file.
        mine: whether an author of changes is the person whose text is wanted.

    Raises:
        Unusable: it is none, or too large.
    """
    return _parse(member, mine).document


def _parse(member: Member, mine: IsMine) -> _Parsed:
    if member.size > SIZE_LIMIT:
        raise Unusable(f"it is larger than {SIZE_LIMIT >> 20} MB")
    try:
        with member.open() as stream:
            data = stream.read(SIZE_LIMIT).decode("latin-1")
    except DataError as error:
        raise Unusable("it cannot be read") from error
    if not data.startswith("{\\rtf"):
        raise Unusable("it is no rich text document")
    reader = _Reader(mine)
    reader.read(data)
    return reader.parsed


class _Reader:
    """Reads the tokens of a file."""

    def __init__(self, mine: IsMine) -> None:
        self.parsed = _Parsed()
        self._mine = mine
        self._state = _State()
        self._stack: list[_State] = []
        self._page = "cp1252"
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._pending = bytearray()
        self._skip = 0  # characters that stand for a Unicode one in old programs
        self._star = False
        self._text: list[str] = []  # of the group that is read
        self._parts: list[str] = []  # of the paragraph
        self._reasons: set[str] = set()
        self._style = 0
        self._listed = self._celled = False
        self._instruction = ""
        self._moment: dict[str, int] = {}

    def read(self, data: str) -> None:
        """Read a whole file.

        Raises:
            Unusable: groups nest too deeply, or the text is too long.
        """
        at = 0
        while (match := _TOKEN.match(data, at)) is not None and at < len(data):
            at = match.end()
            word, number, byte, symbol, brace, text = match.groups()
            if byte is not None:
                self._byte(int(byte, 16))
                continue
            if word == "bin":
                at += min(int(number or 0), len(data) - at) if int(number or 0) > 0 else 0
                continue
            self._flush()
            if word is not None:
                self._word(word, int(number) if number is not None else None)
            elif symbol is not None:
                self._symbol(symbol)
            elif brace == "{":
                self._open()
            elif brace == "}":
                self._close()
            elif text is not None:
                self._write(self._past(text))
        self._flush()
        self._paragraph()

    def _open(self) -> None:
        if len(self._stack) >= DEPTH_LIMIT:
            raise Unusable("its groups nest too deeply")
        self._stack.append(self._state)
        self._star = False

    def _close(self) -> None:
        state = self._state
        before = self._stack.pop() if self._stack else _State()
        text = "".join(self._text).strip()
        if state.where in ("author", "operator", "title") and before.where == "info":
            self.parsed.texts.setdefault(state.where, text[:500])
            self._text = []
        elif state.where in ("creatim", "revtim") and before.where == "info":
            self.parsed.texts.setdefault(state.where, self._time())
            self._moment = {}
        elif state.where == "stylesheet" and before.where == "stylesheet":
            self.parsed.styles[self._style] = text.partition(";")[0].strip()
            self._text, self._style = [], 0
        elif state.where == "stylesheet":
            self._style = 0
        elif state.where == "revtbl":
            self.parsed.authors += [part.strip() for part in text.split(";")[:1]] if text else []
            self._text = []
        elif state.where == "atnauthor" and before.where != "atnauthor":
            if text and not self._mine(text):
                self.parsed.document.reviewers.add(text)
            self._text = []
        elif state.where == "fldinst" and before.where != "fldinst":
            self._instruction = text
            self._text = []
        elif state.where == "fonttbl":
            self._text = []
        self._state = before

    def _word(self, word: str, number: int | None) -> None:
        if self._star or word in _OTHERS or word in _NOTES:
            known = word in _READ or word == "shptxt"
            if not known:
                if word in _NOTES and not self._state.skipped:
                    self.parsed.document.drop(_NOTES[word])
                self._state = replace(self._state, skipped=True)
            self._star = False
            self._listed = self._listed or word in ("pntext", "listtext")
            if not known:
                return
        if word in _READ:
            self._text = []
            self._state = replace(self._state, where=word)
        elif word == "fldrslt":
            self._state = replace(self._state, reason=field_reason(self._instruction))
        elif word == "u" and number is not None:
            self._skip = 0
            self._write(chr(number % 65536))
            self._skip = self._state.unicode_skip
        elif word in ("par", "sect", "page", "cell", "row", "nestcell"):
            self._celled = self._celled or word in ("cell", "nestcell")
            if not self._state.where and not self._state.skipped:
                self._paragraph()
        elif word in _SIGNS:
            self._write(_SIGNS[word])
        elif word in ("yr", "mo", "dy", "hr", "min", "sec"):
            self._moment[word] = number or 0
        else:
            self._format(word, number)

    def _format(self, word: str, number: int | None) -> None:
        """A word that says how text looks, whose it is, or how it is encoded."""
        on = number != 0
        if word == "ansicpg" and number:
            self._page = f"cp{number}" if number != 65001 else "utf-8"
        elif word == "mac":
            self._page = "mac_roman"
        elif word == "uc":
            self._state = replace(self._state, unicode_skip=min(max(number or 0, 0), 8))
        elif word == "f":
            self._font = number or 0
            codec = self._fonts.get(self._font, "")
            self._state = replace(self._state, codec=codec)
        elif word == "fcharset" and self._state.where == "fonttbl":
            self._fonts[self._font] = _CHARSETS.get(number or 0, "")
        elif word == "pard":
            self._style, self._listed = 0, False
        elif word == "plain":
            self._state = replace(self._state, hidden=False, inserted=None, deleted=None)
        elif word == "s":
            self._style = number or 0
        elif word == "ls":
            self._listed = bool(number)
        elif word == "v":
            self._state = replace(self._state, hidden=on)
        elif word == "revised":
            self._state = replace(self._state, inserted=(self._state.inserted or 0) if on else None)
        elif word == "deleted":
            self._state = replace(self._state, deleted=(self._state.deleted or 0) if on else None)
        elif word == "revauth" and self._state.inserted is not None:
            self._state = replace(self._state, inserted=number or 0)
        elif word == "revauthdel" and self._state.deleted is not None:
            self._state = replace(self._state, deleted=number or 0)

    def _symbol(self, symbol: str) -> None:
        if symbol == "*":
            self._star = True
        elif symbol in "\n\r":
            if not self._state.where and not self._state.skipped:
                self._paragraph()
        elif symbol in _SYMBOLS:
            self._write(self._past(_SYMBOLS[symbol]))

    def _byte(self, value: int) -> None:
        if self._skip:
            self._skip -= 1
        else:
            self._pending.append(value)

    def _flush(self) -> None:
        if self._pending:
            data, self._pending = bytes(self._pending), bytearray()
            codec = self._state.codec or self._page
            try:
                self._write(data.decode(codec, "replace"))
            except LookupError:
                self._write(data.decode("cp1252", "replace"))

    def _past(self, text: str) -> str:
        """A text without what stands for a Unicode sign before it."""
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]

    def _write(self, text: str) -> None:
        state = self._state
        if state.skipped or not text:
            return
        if state.where:
            self._text.append(text[:2000])
            return
        if state.deleted is not None and self._by_me(state.deleted):
            return
        reason = state.reason or (HIDDEN if state.hidden else "")
        if state.inserted is not None and not self._by_me(state.inserted):
            reason = INSERTED
        if not reason:
            self._parts.append(text)
        elif text.strip():
            self._reasons.add(reason)

    def _by_me(self, number: int) -> bool:
        authors = self.parsed.authors
        author = authors[number] if 0 <= number < len(authors) else ""
        mine = self._mine(author)
        if not mine:
            self.parsed.document.reviewers.add(author)
        return mine

    def _paragraph(self) -> None:
        text = "".join(self._parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = text.strip()
        name = self.parsed.styles.get(self._style, "")
        document = self.parsed.document
        reason = document.leave_out(text, style_reason(name), self._reasons, boxed=self._celled)
        if text and (self._listed or _BULLET.match(text)):
            text = f"- {_BULLET.sub('', text)}"
        heading = re.fullmatch(r"(?:title|heading \d+)", name, re.I) is not None
        document.add("" if reason else text, heading=heading)
        self._parts, self._reasons, self._celled = [], set(), False

    def _time(self) -> str:
        m = self._moment
        return (
            f"{m.get('yr', 0):04}-{m.get('mo', 1):02}-{m.get('dy', 1):02}"
            f"T{m.get('hr', 0):02}:{m.get('min', 0):02}:{m.get('sec', 0):02}"
        )
