"""Text of a web page or an HTML mail, with quotes as lines that begin with `>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

_BLOCKS = frozenset(
    (
        "address", "article", "aside", "blockquote", "br", "center", "dd", "div", "dl", "dt",
        "fieldset", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li",
        "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul",
    )
)  # fmt: skip
_SILENT = frozenset(("head", "script", "style", "title", "template", "noscript", "object", "svg"))
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)
_HIDDEN = re.compile(r"display\s*:\s*none|mso-hide\s*:\s*all", re.I)
#: How names of classes and ids begin that mail programs enclose a quote in: Gmail, Yahoo, Proton,
#: Tuta, Zoho, Fastmail, Thunderbird's and Roundcube's introductions, Front, Spark, Zimbra, GMX.
_QUOTES = (
    "gmail_quote", "gmail_attr", "yahoo_quoted", "yahoo-quoted", "protonmail_quote",
    "tutanota_quote", "zmail_extra", "moz-cite-prefix", "reply-intro", "front-blockquote",
    "messagereplysection", "isreplycontent", "__quoted_text__", "mail-quote-collapse",
    "outlookmessageheader",
)  # fmt: skip
_QUOTE_NAMES = frozenset(("quote", "qt"))
#: What mail programs put where the mail that is answered begins, without enclosing it.
_BELOW = ("divrplyfwdmsg", "appendonsend", "olk_src_body_section", "stopspelling")
#: Signatures: Gmail, Thunderbird, Outlook on the web and on phones, Apple, Proton, Yahoo, K-9,
#: Samsung, Spark, Airmail, Zimbra.
_SIGNATURES = (
    "gmail_signature", "moz-signature", "moz-txt-sig", "signature", "ms-outlook-mobile-signature",
    "applemailsignature", "protonmail_signature_block", "yahoo-signature", "yahoo_signature",
    "k9mail-signature", "composer_signature", "messagesignaturesection", "bloop_sign",
    "_mailautosig", "__sig_pre__", "__sig_post__", "zmail_signature", "tutanota-signature",
)  # fmt: skip
#: Yahoo and Outlook put letters before the names in mails that they pass on.
_PREFIXES = re.compile(r"^((x_)+|ydp[0-9a-f]{0,12}|m_-?\d+|yiv\d+)_*")
#: Outlook's line above the headers of the mail that is answered.
_BORDER_ABOVE = re.compile(r"border\s*:\s*none\s*;\s*border-top\s*:\s*solid", re.I)
_BORDER_BESIDE = re.compile(r"border-left\s*:\s*(?!none|0(?!\.)|inherit|medium none)[^;]*\S", re.I)
#: Stands where everything below is someone else's.
BELOW = "-----Original Message-----"
_RULE = "----------"
_SIGNED = "--"
#: Apple Mail marks where a signature begins, and not where it ends.
_APPLE = "linebreakatbeginningofsignature"


@dataclass(frozen=True)
class Page:
    """The text of a page that people read, a line a block; quotes begin with `> `.

    Attributes:
        text: its lines, without signatures that are marked as such.
        signatures: those.
    """

    text: str
    signatures: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.signatures: list[str] = []
        self._line: list[str] = []
        # Open elements that matter: their name, and what they do to the text.
        self._open: list[tuple[str, str]] = []
        self._count = {"quote": 0, "wrap": 0, "silent": 0, "signature": 0, "": 0}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self._break()
        values = {name: value or "" for name, value in attrs}
        names = _names(values)
        style = values.get("style", "")
        if _starts(names, _BELOW) or (tag == "hr" and "tabindex" in values):
            self._add(BELOW)
        elif tag == "div" and _BORDER_ABOVE.search(style):
            self._add(_RULE)
        elif _APPLE in names:
            self._add(_SIGNED)
        if tag in _VOID:
            return
        effect = _effect(tag, names, style)
        if effect in ("quote", "wrap", "signature"):
            self._break()
        self._count[effect] += 1
        self._open.append((tag, effect))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._break()
        # An end without a beginning ends nothing; one that comes late ends what is inside it.
        if not any(name == tag for name, _ in self._open[-200:]):
            return
        while self._open:
            name, effect = self._open.pop()
            if effect in ("quote", "wrap", "signature"):
                self._break()
            self._count[effect] -= 1
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._count["silent"]:
            self._line.append(data)

    def _add(self, line: str) -> None:
        self._break()
        if not self._count["quote"] and not self._count["wrap"]:
            self.lines.append(line)

    def _break(self) -> None:
        text = " ".join("".join(self._line).split())
        self._line = []
        if self._count["signature"]:
            self.signatures.append(text)
            return
        # Programs wrap a quote in an element of theirs; that makes it no deeper.
        mark = "> " * min(max(self._count["quote"], self._count["wrap"] > 0), 3)
        if text or (self.lines and self.lines[-1].strip(" >")):
            self.lines.append(f"{mark}{text}".rstrip())

    def page(self) -> Page:
        self.close()
        self._break()
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(self.lines)).strip()
        return Page(text, "\n".join(filter(None, self.signatures)))


def _names(values: dict[str, str]) -> frozenset[str]:
    """What an element is called, without the prefixes of programs that passed it on."""
    called = values.get("class", "").split()
    called += [values.get(name, "") for name in ("id", "name", "data-marker")]
    return frozenset(_PREFIXES.sub("", name.lower()) for name in called if name)


def _starts(names: frozenset[str], beginnings: tuple[str, ...]) -> bool:
    return any(name.startswith(beginnings) for name in names)


def _effect(tag: str, names: frozenset[str], style: str) -> str:
    """What an element does to the text in it."""
    if tag in _SILENT or _HIDDEN.search(style):
        return "silent"
    if _starts(names, _SIGNATURES):
        return "signature"
    if tag == "blockquote" or (tag == "div" and _BORDER_BESIDE.search(style)):
        return "quote"
    if _starts(names, _QUOTES) or (tag == "div" and names & _QUOTE_NAMES):
        return "wrap"
    return ""


def read_html(page: str) -> Page:
    """The text of a page and the signatures in it."""
    reader = _Reader()
    reader.feed(page)
    return reader.page()


def html_to_text(page: str) -> str:
    """The text of a page that people read, a line a block; quotes begin with `> `."""
    return read_html(page).text
