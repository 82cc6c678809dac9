"""Text of a web page or an HTML mail, with quotes as lines that begin with `>`."""

from __future__ import annotations

import re
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
_QUOTES = frozenset(("gmail_quote", "yahoo_quoted", "protonmail_quote", "tutanota_quote"))
_HIDDEN = re.compile(r"display\s*:\s*none", re.I)
#: What mail programs put where the mail that is answered begins, without enclosing it.
_BELOW = frozenset(("divrplyfwdmsg", "appendonsend", "olk_src_body_section"))
_SIGNATURES = frozenset(("gmail_signature", "moz-signature", "moz-txt-sig"))
#: Stands where everything below is someone else's.
BELOW = "-----Original Message-----"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self._line: list[str] = []
        # Open elements that matter: their name, and what they do to the text.
        self._open: list[tuple[str, str]] = []
        self._quotes = self._wraps = self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self._break()
        values = {name: value or "" for name, value in attrs}
        names = {*values.get("class", "").lower().split(), values.get("id", "").lower()}
        if names & _BELOW:
            self._break()
            self.lines.append(BELOW)
        if tag in _VOID:
            return
        effect = ""
        if tag in _SILENT or names & _SIGNATURES or _HIDDEN.search(values.get("style", "")):
            effect = "silent"
            self._silent += 1
        elif tag == "blockquote":
            effect = "quote"
            self._quotes += 1
        elif names & _QUOTES:
            effect = "wrap"
            self._wraps += 1
        self._open.append((tag, effect))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._break()
        # An end without a beginning ends nothing; one that comes late ends what is inside it.
        if not any(name == tag for name, _ in self._open[-200:]):
            return
        while self._open:
            name, effect = self._open.pop()
            self._silent -= effect == "silent"
            self._quotes -= effect == "quote"
            self._wraps -= effect == "wrap"
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._line.append(data)

    def _break(self) -> None:
        text = " ".join("".join(self._line).split())
        self._line = []
        # Programs wrap a quote in an element of theirs; that makes it no deeper.
        mark = "> " * min(max(self._quotes, self._wraps > 0), 3)
        if text or (self.lines and self.lines[-1].strip(" >")):
            self.lines.append(f"{mark}{text}".rstrip())

    def text(self) -> str:
        self.close()
        self._break()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.lines)).strip()


def html_to_text(page: str) -> str:
    """The text of a page that people read, a line a block; quotes begin with `> `."""
    reader = _Reader()
    reader.feed(page)
    return reader.text()
