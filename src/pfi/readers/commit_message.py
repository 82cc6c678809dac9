"""What of a commit's message its author wrote: no merges, reverts, or programs' sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pfi.readers.values import Unusable

#: A first body paragraph up to this many characters belongs to the message.
BODY_LIMIT = 300

_BOT = re.compile(
    r"\[bot\]|(?:^|[-_ ])bot$|^(?:dependabot|renovate|github-actions?|pre-commit-ci|greenkeeper"
    r"|snyk|mergify|weblate|transifex|allcontributors|semantic-release|imgbot|codecov|jenkins|travis)\b",
    re.I,
)
_MERGE = re.compile(
    r"Merge(?:d|s)? (?:branch|branches|pull request|merge request|remote-tracking branch|tag|commit"
    r"|in |change|remote|upstream|origin|'|[\w./-]+ (?:into|to) )|Auto(?:matic)?[- ]?merge"
    r"|Squashed commit of the following|Pull request #\d+:|This is a combination of \d+ commits"
)
_REVERT = re.compile(r'(?:Revert|Reapply|Roll ?back) "')
_VERSION = r"v?\d+(?:\.\d+)+[\w.+-]*"
#: Sentences that git, GitHub, release tools and note programs write by themselves.
_AUTOMATIC = re.compile(
    rf"(?:release|version|publish|tag|bump|chore\(release\)|build)?[:!]?\s*{_VERSION}\W*"
    rf"|(?:chore|build|fix|ci)?(?:\([^)]*\))?:?\s*(?:bump|upgrade|update|pin)s? .{{1,80}} "
    rf"(?:from \S+ )?to {_VERSION}.*|(?:chore: ?)?bump version.*|version bump.*"
    r"|prepare (?:for )?(?:next )?"
    r"(?:release|development iteration|new snapshot).*"
    r"|\[(?:maven-release-plugin|gradle release plugin)\].*"
    r"|add files via upload|initial commit|first commit|apply (?:suggestions? from code review"
    r"|\d+ suggestions?(?:\(s\))? to \d+ files?(?:\(s\))?)|(?:fixup|squash|amend)! .*|(?:WIP|index)"
    r" on .*|(?:vault|auto|automatic)[ -]?(?:backup|save|commit|sync|update).*|last sync:.*"
    r"|[\d\s:/.,TZ-]+|publish|lerna.*|auto-generated.*|\[automated\].*|update submodules?"
    r"|sync(?:ed)? (?:with|from) .*|checkpoint .*|commit",
    re.I,
)
_FILE_ONLY = re.compile(r"(?:Create|Update|Delete|Add|Rename|Upload) (\S+)(?: to (\S+))?")
_ASSISTANT = re.compile(
    r"^Co-authored-by: .*(?:\bClaude\b|Copilot|\bCursor\b|\bDevin\b|\baider\b|Gemini|\bCodex\b"
    r"|ChatGPT|OpenAI|Anthropic|Windsurf|\bJules\b|\[bot\])"
    r"|^.{0,4}Generated (?:with|by) \[?(?:Claude|Copilot|Cursor|ChatGPT|Codex|Gemini|Aider)"
    r"|^Assisted-by: ",
    re.I | re.M,
)
_TRAILER = re.compile(
    r"[A-Za-z][A-Za-z-]+-(?:by|id|on|to|with|from|url|link|issue|bug|revision): "
    r"|(?:fixes|closes|refs?|link|cc|bug|issue|see|resolves|pr|part of)\b[: ] ?[#\w/:.-]*\d\S*\s*$"
    r"|(?:fixes|closes|refs?|link|cc): |\(cherry picked from commit |\(backported from "
    r"|git-svn-id: |Differential Revision: |#? ?Conflicts:|\t",
    re.I,
)


def own_message(message: str, author: str, parents: int, files: Sequence[str]) -> str:
    """The subject and, if it is short, the first paragraph of the body, without trailers.

    Args:
        message: as it was committed.
        author: the author's name.
        parents: how many the commit has.
        files: names of what it changes.

    Raises:
        Unusable: it is a merge, a revert or a bot's, a program wrote it, or there is none.
    """
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", message) if p.strip()]
    if parents > 1 or _MERGE.match(message):
        raise Unusable("it is a merge")
    if _BOT.search(author):
        raise Unusable("it is a bot's commit")
    if _REVERT.match(message) or "\nThis reverts commit " in message:
        raise Unusable("it is a revert")
    if not files:
        raise Unusable("it changes nothing")
    if not paragraphs:
        raise Unusable("it has no message")
    if _ASSISTANT.search(message):
        raise Unusable("it was written with an assistant")
    subject = " ".join(" ".join(_kept(paragraphs[0])).split())
    if not subject:
        raise Unusable("it has no message")
    if _AUTOMATIC.fullmatch(subject) or _names_a_file(subject, files):
        raise Unusable("a program wrote its message")
    body = paragraphs[1] if len(paragraphs) > 1 else ""
    kept = _kept(body)
    return f"{subject}\n\n" + "\n".join(kept) if kept and len(body) <= BODY_LIMIT else subject


def _kept(paragraph: str) -> list[str]:
    """The lines of a paragraph that are neither trailers nor quoted."""
    lines = paragraph.splitlines()
    return [line.rstrip() for line in lines if not _TRAILER.match(line) and line[:1] != ">"]


def _names_a_file(subject: str, files: Sequence[str]) -> bool:
    """Whether a subject is what GitHub and GitLab write for a file that is edited there."""
    match = _FILE_ONLY.fullmatch(subject)
    if match is None or len(files) != 1:
        return False
    return any(name and files[0].rstrip("}").endswith(name) for name in match.groups())
