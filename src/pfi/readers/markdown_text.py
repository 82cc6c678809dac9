"""Markdown as the words that its author wrote: no code, quotes, markup, or what programs put in."""

from __future__ import annotations

import re

_TAG = r"(?<![\w/&#])#([^\W\d][\w/-]*)"
_LIST = r"(?:[-*+]|\d+[.)])"
_FENCE = re.compile(rf"^[ \t]*(?:{_LIST}[ \t]+)?(`{{3,}}(?![^\n]*`)|~{{3,}})[^\n]*$", re.M)
_BEGIN = r"[^%>\n]{0,200}?\b(?:begin|start|beginning)\b[^%>]{0,2000}?"
_END = r"[^%>\n]{0,200}?\b(?:end|stop)\b[^%>\n]{0,200}?"
#: What stands between an opening and its closing goes: programs' lists and copies between comments
#: first, then comments, formulas, what templates hold, others' words in HTML.
_SPANS = [
    (re.compile(opening, re.I | re.M), re.compile(closing, re.I | re.M))
    for opening, closing in (
        (rf"%%{_BEGIN}%%", rf"%%{_END}%%"),
        (rf"<!--{_BEGIN}-->", rf"<!--{_END}-->"),
        (r"<!-- ?toc ?-->", r"<!-- ?(?:tocstop|/toc) ?-->"),
        (r"<!-- ?QueryToSerialize:", r"<!-- ?SerializedQuery END ?-->"),
        (r"<!--", r"-->"),
        (r"%%", r"%%"),
        (r"\$\$", r"\$\$"),
        (r"^[ \t]*#\+BEGIN_\w+", r"^[ \t]*#\+END_\w+.*$"),
        (r"^[ \t]*:LOGBOOK:", r"^[ \t]*:END:[ \t]*$"),
        (r"<%", r"%>"),
        (r"\{%", r"%\}"),
        (r"\{\{(?!c\d+::)", r"\}\}+"),
        *(
            (rf"<{tag}\b[^<>]*>", rf"</{tag}\s*>")
            for tag in (
                "script",
                "style",
                "svg",
                "iframe",
                "blockquote",
                "q",
                "cite",
                "pre",
                "code",
            )
        ),
    )
]
#: Zotero Integration's blocks in which people write, and such.
_OWN_BLOCK = re.compile(r"\b(?:my |own )?(?:notes?|thoughts?|comments?|reflections?)\b", re.I)
_CLOZE = re.compile(r"\{\{c\d+::([^{}]*?)(?:::[^{}]*)?\}\}")
_ITEM = re.compile(rf"[ \t]*{_LIST}[ \t]")
_QUOTED = re.compile(rf"[ \t]*(?:{_LIST}[ \t]+)*>")
#: What ends a paragraph, and with it a quote that goes on without its sign.
_BLOCK = re.compile(
    rf"[ \t]*(?:#{{1,6}}[ \t]|{_LIST}[ \t]|`{{3}}|~{{3}}|\||(?:[-*_][ \t]*){{3,}}$)"
)
#: Ends of what reading programs copied: the highlight's place in its book or page.
_HIGHLIGHT = re.compile(
    r"\(?\[(?:View Highlight|Location \d[\d,-]*|Page \d[\d,-]*|Time \d[\d:]*|⤴️?|🔗|pdf)\]"
    r"\((?:https?|kindle|zotero|file|omnivore)://[^)\s]*\)",
    re.I,
)
_CITATION = re.compile(r"\(?\[[^\]\n]{0,200}\]\(zotero://[^)\s]*\)")
#: How far a quote reaches back from its citation, in characters.
_QUOTE_LIMIT = 5000
_OPENING = '“"„«「『‘‹'
_CLOSING = '”"“»」』’›'
#: A paragraph in quotation marks, with whom it is from: no words of the author's.
_WHOLE_QUOTE = re.compile(
    rf"\A[ \t]*(?:{_LIST}[ \t]+)?[*_]*[{_OPENING}](?P<text>.+)[{_CLOSING}][*_.]*"
    r"\s*(?P<by>[-–—―~～]{1,2}\s*[^\n]{2,80}|\((?:[^()\n]*(?:\d{4}|\bp{1,2}\.|\]\()[^\n]*)\)\.?"
    r"|\[\[?[^\n]{2,80}\]\]?\)?|\[\^[^\]]+\])\s*\Z",
    re.S,
)
_ATTRIBUTION = re.compile(
    r"[ \t]*(?:(?:[—–―~～]|--)[ \t]*\S[^\n]{1,80}|-[ \t]*[^\W\d_a-z]\S*(?:[ \t]+\S+){0,4})"
)
_LINK = r"(?:!?\[\[[^\[\]\n]{0,80}\]\]|!?\[[^\[\]\n]{0,40}\]\([^()\n]*\))"
#: Lines of nothing but links: ways to yesterday and tomorrow, tables of contents.
_WAYS = re.compile(rf"^[^\w\n\[]*{_LINK}(?:[^\w\n\[]*{_LINK})+[^\w\n]*$", re.M)
_CONTENTS = re.compile(
    rf"^[ \t]*{_LIST}[ \t]+(?:\[\[#[^\]\n]+\]\]|\[[^\]\n]*\]\(#[^)\n]*\))[ \t]*$", re.M
)
_PLANNED = re.compile(r"^[ \t]*(?:SCHEDULED|DEADLINE|CLOCK|CLOSED): ?[<\[].*$", re.M)
#: Dates, priorities and repeats of the plugin Tasks.
_TASKS = re.compile(
    r"[ \t]*(?:[📅⏳🛫✅➕❌]\ufe0f?[ \t]*\d{4}-\d\d-\d\d|🔁[^\n📅⏳🛫✅➕❌]*|[🔺⏫🔼🔽⏬]\ufe0f?"
    r"|(?:🆔|⛔)[ \t]*[\w,]+)"
)
_SAID = (
    r"[*_]*(?:[ \t]+(?:said|wrote|asked|responds?))?[*_]*"
    r"(?:[ \t]*[:：][*_]*(?=\s|$)|(?<=[*])[ \t]*$)"
)
#: A conversation with an assistant in a note: who speaks, until the other does.
_ASSISTANT = re.compile(
    r"[ \t]*[#>*_ \t]*(?:role::[ \t]*(?:assistant|system)\b|(?:AI|assistant|ChatGPT|GPT-?\d[\w.]*"
    r"|Claude|Gemini|Copilot|Bard|DeepSeek|Mistral|Llama|Grok|Perplexity|Bing|Bot)" + _SAID + ")",
    re.I,
)
_PERSON = re.compile(
    r"[ \t]*[#>*_ \t]*(?:role::[ \t]*user\b|(?:user|me|you|human|prompt|question|Q|ich|moi|yo)"
    + _SAID
    + ")",
    re.I,
)

#: What is taken out of the rest of a note, and what is left of it, in this order.
_MARKUP: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"^[ \t]*\|.*$", re.M), ""),  # tables
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.M), ""),
    (re.compile(r"^[ \t]*\[\^?[^\]\n]+\]:.*$", re.M), ""),  # notes and addresses of links
    # Fields of Dataview and properties of Logseq.
    (re.compile(rf"^[ \t]*(?:{_LIST}[ \t]+)?[\w][\w /-]{{0,40}}::(?:[ \t].*)?$", re.M), ""),
    (re.compile(r"[\[(][\w /-]{1,40}:: ?[^\])\n]*[\])]"), ""),
    (re.compile(rf"^[ \t]*(?:{_TAG}[ \t,]*)+$", re.M), ""),
    (_CONTENTS, ""),
    (_WAYS, ""),
    (re.compile(r"!\[\[[^\]\n]*\]\]|!\[[^\]\n]*\]\([^)\n]*\)"), ""),
    (re.compile(r"\[\[([^\[\]|#\n]*)(?:#[^\[\]|\n]*)?\|([^\[\]\n]+)\]\]"), r"\2"),
    (re.compile(r"\[\[([^\[\]|#\n]+)(?:#[^\[\]|\n]*)?\]\]"), r"\1"),
    (re.compile(r"\[\[#([^\[\]|\n]+)\]\]"), r"\1"),
    (re.compile(r"\[([^\[\]\n]+)\]\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)"), r"\1"),
    (re.compile(r"\[\s*\]\([^)\n]*\)"), ""),
    (re.compile(r"\(\([0-9a-f-]{36}\)\)"), ""),  # Logseq's references to blocks
    (re.compile(r"\[\^[^\]\n]+\]|<https?://[^>\s]+>|https?://\S+|[ \t]\^[\w-]+$", re.M), ""),
    (re.compile(r"^([ \t]*[-*+]) \[.\] ", re.M), r"\1 "),
    (
        re.compile(rf"^([ \t]*{_LIST}[ \t]+)(?:TODO|DONE|LATER|NOW|DOING|WAITING|CANCELED) ", re.M),
        r"\1",
    ),
    (_PLANNED, ""),
    (_TASKS, ""),
    (re.compile(r"^#{1,6}[ \t]+", re.M), ""),
    (re.compile(_TAG), r"\1"),
    (re.compile(r"(\*\*|__|==|~~)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<!\w)([*_])(?=\S)([^*_\n]+?)(?<=\S)\1(?!\w)"), r"\2"),
    (re.compile(r"`(?:\$?=|button-)[^`\n]*`"), ""),  # Dataview's and Buttons' programs
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"</?[A-Za-z][^>\n]*>"), ""),
    (re.compile(r"^[ \t]*[-*+][ \t]*$", re.M), ""),
    (re.compile(r"[ \t]+$", re.M), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
]


def plain(text: str) -> str:
    """Markdown as the words that its author wrote."""
    text = _without_quotes(without_programs(text))
    for pattern, left in _MARKUP:
        text = pattern.sub(left, text)
    return text.strip()


def without_programs(text: str) -> str:
    """Markdown without code, comments, formulas, and what templates and programs leave in it."""
    text = without_fences(text)
    for opening, closing in _SPANS:
        text = _without_spans(text, opening, closing)
    return _without_citations(_CLOZE.sub(r"\1", text))


def without_fences(text: str) -> str:
    """Markdown without blocks of code between fences; one that does not end goes on to the end."""
    kept: list[str] = []
    at = 0
    while (fence := _FENCE.search(text, at)) is not None:
        kept.append(text[at : fence.start()])
        end = re.compile(rf"^[ \t]*{fence[1]}[`~]*[ \t]*$", re.M).search(text, fence.end())
        at = end.end() if end is not None else len(text)
    return "".join([*kept, text[at:]])


def _without_spans(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """A text without what stands from an opening to a closing; one without a closing stays.

    In time that is linear, whatever the text.
    """
    kept: list[str] = []
    at = 0
    while (start := opening.search(text, at)) is not None:
        end = closing.search(text, start.end())
        if end is None:
            break
        own = len(start[0]) > 4 and "begin" in start[0].lower() and _OWN_BLOCK.search(start[0])
        kept.append(text[at : end.start() if own else start.start()])
        at = end.end()
    return "".join([*kept, text[at:]])


def _without_citations(text: str) -> str:
    """A text without the quotes that Zotero's citations stand behind, and those."""
    if "zotero://" not in text:
        return text
    kept = ""
    at = 0
    for citation in _CITATION.finditer(text):
        before = text[at : citation.start()].rstrip(" \t(")
        at = citation.end() + text.startswith(")", citation.end())
        if before and before[-1] in _CLOSING:
            tail = before[-_QUOTE_LIMIT:-1]
            opened = max(tail.rfind(sign) for sign in _OPENING if sign != before[-1] or sign == '"')
            if opened >= 0:
                before = before[: len(before) - len(tail) - 1 + opened]
        kept += before
    return kept + text[at:]


def _without_quotes(text: str) -> str:
    """Markdown without quoted lines, indented code, and paragraphs that are others' words."""
    lines = text.split("\n")
    talk = any(map(_ASSISTANT.match, lines)) and any(map(_PERSON.match, lines))
    kept: list[str] = []
    quoted = theirs = listed = False
    blank = True  # whether code may begin: not within a paragraph
    for line in lines:
        if talk and _ASSISTANT.match(line):
            theirs = True
        elif talk and (person := _PERSON.match(line)):
            theirs, line = False, line[person.end() :]
        if _QUOTED.match(line):
            quoted = True
        elif not line.strip() or _BLOCK.match(line):
            quoted = False
        item = _ITEM.match(line)
        code = not item and not listed and blank and line.startswith(("    ", "\t"))
        if line.strip():
            listed = bool(item) or (listed and line[:1] in " \t")
            blank = code
        else:
            blank = True
        kept.append("" if quoted or theirs or code else line)
    return "\n\n".join(own_paragraphs(re.split(r"\n[ \t]*\n", "\n".join(kept))))


def own_paragraphs(paragraphs: list[str]) -> list[str]:
    """The paragraphs that are not highlights, nor quotes that say whom they are from."""
    own: list[str] = []
    for number, paragraph in enumerate(paragraphs):
        if _HIGHLIGHT.search(paragraph):
            paragraph = _without_highlights(paragraph)
        if len(paragraph) <= _QUOTE_LIMIT and _WHOLE_QUOTE.match(paragraph):
            continue
        after = paragraphs[number + 1] if number + 1 < len(paragraphs) else ""
        before = paragraphs[number - 1] if number else ""
        if _in_marks(paragraph) and _ATTRIBUTION.fullmatch(after.strip("\n")):
            continue
        if _in_marks(before) and _ATTRIBUTION.fullmatch(paragraph.strip("\n")):
            continue
        own.append(paragraph)
    return own


def _in_marks(paragraph: str) -> bool:
    text = re.sub(rf"\A[ \t]*(?:{_LIST}[ \t]+)?", "", paragraph).strip(" \t\n*_.")
    return len(text) > 2 and text[0] in _OPENING and text[-1] in _CLOSING


def _without_highlights(paragraph: str) -> str:
    """A paragraph or list without the entries that end in a highlight's place.

    An entry is a point of the list with the lines that go on with it, else the paragraph.
    """
    entries = re.split(rf"\n(?=[ \t]*{_LIST}[ \t])", paragraph)
    return "\n".join(entry for entry in entries if not _HIGHLIGHT.search(entry))
