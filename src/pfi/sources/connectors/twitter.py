"""Connector for the archive of X (Twitter): this person's own posts.

`data/tweets.js` and its parts are scripts that assign JSON; long posts stand whole in
`note-tweet.js`.  Archives up to 2018 have a script a month.  What others wrote, in retweets, likes
and bookmarks, is not read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pfi.errors import DataError
from pfi.readers.exports import Member, is_archive, members
from pfi.readers.report import ImportReport
from pfi.readers.script_json import assigned_items, assigned_name
from pfi.records import Record
from pfi.sources.assistants import QUOTED
from pfi.sources.connectors import Connector
from pfi.sources.posts import (
    POST_LIMIT,
    Post,
    PostOptions,
    post_records,
    without_leading_mentions,
)
from pfi.sources.threads import time_or_none

#: Scripts with posts, notes and the account, also as browsers rename second downloads.
_FILE = re.compile(
    r"(?:.*/)?(?:(?:tweets?|note-tweet|community-tweets?|account)(?:-part\d+)?(?: ?\(\d+\))?"
    r"|tweets/\d{4}_\d\d)\.js",
    re.I,
)
_POSTS = re.compile(r"window\.YTD\.(?:community_)?tweets?\.part\d+|Grailbird\.data\.tweets_\d+_\d+")
_NOTES = re.compile(r"window\.YTD\.note_tweet\.part\d+")
_ACCOUNT = re.compile(r"window\.YTD\.account\.part\d+")
_DEPTH = 5
#: Files that a glance looks into.
_GLANCES = 20

_RETWEET = re.compile(r"\s*RT:? ?@\w+", re.A)
#: Others' words within a post, as one passed them on by hand before there was a button.
_PASSED_ON = re.compile(r"(?:\b[RM]T|♺|🔁)[ :]*@\w{1,15}\b.*\Z", re.S | re.A)
_VIA = re.compile(r"(?:\bvia|\bdurch|\bpar|\bvía) ?@\w{1,15}\W*\Z|[（(]via ", re.I)
#: `“@sam: words”`, as apps wrote quotes.
_QUOTED = re.compile(r"[“\"”„«]@\w{1,15}:? [^”\"“»]*(?:[”\"“»]|\Z)", re.A)
_SHORTENED = re.compile(r"https?://t\.co/\w*…?", re.A)
_STATUS = re.compile(
    r"https?://(?:[\w-]+\.)?(?:twitter|x)\.com/(?:i/web|\w+)/status(?:es)?/\d+\S*", re.A
)
#: Programs that post sentences of their own, or questions of others, in one's name.
_PROGRAMS = re.compile(
    r"ifttt|dlvr\.it|twitterfeed|paper\.li|foursquare|swarm|zapier|wordpress|fllwrs|unfollow"
    r"|crowdfire|commun\.it|tweekly|last\.fm|spotify|runkeeper|endomondo|nike|strava|untappd"
    r"|goodreads|scoop\.it|youtube|getglue|klout|socialoomph|tweet ?old ?post|revive"
    r"|streamlabs|\bbot\b|curious ?cat|peing|ask\.fm",
    re.I,
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: `Wed Oct 10 20:19:24 +0000 2018`, in English whatever the machine's language is.
_TIME = re.compile(r"\w{3} (\w{3}) (\d\d) (\d\d:\d\d:\d\d) ([+-]\d{4}) (\d{4})")
#: Ids count milliseconds from this Unix time on, since the first of them.
_EPOCH, _FIRST = 1288834974657, 30_000_000_000
#: Characters of a long post by which its shortened form is known, and how far their times differ.
_PREFIX, _APART = 60, timedelta(minutes=5)


class TwitterOptions(PostOptions):
    """Options of the `twitter` connector."""


class TwitterConnector(Connector[TwitterOptions]):
    """Reads one record a post."""

    name = "twitter"
    summary = "your own posts in the archive of X (Twitter)"
    options = TwitterOptions

    def recognises(self, path: Path) -> bool:
        """Whether it is the archive's zip, tar or folder, or one of its files with posts."""
        if path.is_file() and path.suffix.lower() != ".js" and not is_archive(path):
            return False
        names = map(assigned_name, _files(path)[:_GLANCES])
        return any(_POSTS.fullmatch(name) or _NOTES.fullmatch(name) for name in names)

    def read(self, path: Path, options: TwitterOptions, report: ImportReport) -> Iterator[Record]:
        """Yield a record a post, in the order of the archive.

        Raises:
            DataError: there is no archive, or nothing in it can be used.
        """
        named = [(assigned_name(file), file) for file in _files(path)]
        posts = [file for name, file in named if _POSTS.fullmatch(name)]
        notes = [file for name, file in named if _NOTES.fullmatch(name)]
        if not posts and not notes:
            fix = "give the zip as X sends it, its folder, or data/tweets.js"
            raise DataError("there is no file with posts of X", path=path, fix=fix)
        owner = _owner([file for name, file in named if _ACCOUNT.fullmatch(name)])
        if owner.get("username"):
            report.identify([f"@{owner['username']}"], {})
        own = _own_posts(posts, _Notes(notes, report), owner.get("accountId"), report)
        yield from post_records(own, options, report, f"twitter:{path.name}")
        report.require_records(path, "its posts may be too short to learn from")


class _Note(NamedTuple):
    id: str
    text: str
    time: datetime | None


class _Notes:
    """The long posts, by how they begin; those whose shortened form was seen are taken out."""

    def __init__(self, files: list[Member], report: ImportReport) -> None:
        self._by_beginning: dict[str, list[_Note]] = {}
        for file in files:
            for value in _items(file, report):
                note = _note(value)
                if note is None:
                    report.skip("it is not a post", file.name)
                else:
                    self._by_beginning.setdefault(_beginning(note.text), []).append(note)

    def take(self, text: str, time: datetime | None) -> str | None:
        """The whole of a post of which `text` is the beginning; None if there is none."""
        notes = self._by_beginning.get(_beginning(text), [])
        for note in notes:
            if not (time and note.time) or abs(time - note.time) <= _APART:
                notes.remove(note)
                return note.text
        return None

    def rest(self) -> Iterator[_Note]:
        """Those that have not been taken."""
        for notes in self._by_beginning.values():
            yield from notes


def _beginning(text: str) -> str:
    words = _SHORTENED.sub("", html.unescape(text)).replace("…", "")
    return "".join(words.split())[:_PREFIX]


def _files(path: Path) -> list[Member]:
    return members(path, lambda name: _FILE.fullmatch(name) is not None, depth=_DEPTH)


def _items(file: Member, report: ImportReport) -> Iterator[dict[str, Any]]:
    """The objects of a script; one that breaks off gives what comes before."""
    try:
        for item in assigned_items(file):
            value = item if isinstance(item, dict) else {}
            inner = [value[key] for key in ("tweet", "noteTweet", "account") if key in value]
            yield inner[0] if inner and isinstance(inner[0], dict) else value
    except DataError as error:
        report.skip(f"the file ends there: {error.what}", file.name)


def _owner(files: list[Member]) -> dict[str, str]:
    for file in files:
        for value in _items(file, ImportReport()):
            return {key: text for key, text in value.items() if isinstance(text, str)}
    return {}


def _note(value: Mapping[str, Any]) -> _Note | None:
    """A long post; where its text stands has changed."""
    holders = ("core", "noteTweetResults", "noteTweetContents")
    core = next((value[key] for key in holders if isinstance(value.get(key), dict)), value)
    text, id_ = core.get("text"), value.get("tweetId") or value.get("noteTweetId")
    if not isinstance(text, str) or not isinstance(id_, str | int):
        return None
    links = core.get("urls")
    links = links if isinstance(links, list) else []
    pairs = [(link.get("shortUrl"), link.get("expandedUrl")) for link in links if _is_map(link)]
    return _Note(str(id_), _resolved(text, pairs), time_or_none(value.get("createdAt")))


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _own_posts(
    files: list[Member], notes: _Notes, account: str | None, report: ImportReport
) -> Iterator[Post]:
    for file in files:
        for tweet in _items(file, report):
            post = _post(tweet, notes, account, report, file.name)
            if post is not None:
                yield post
    for note in notes.rest():
        text = _own_words(note.text, report, f"note {note.id}")
        if text is not None:
            yield Post(f"note-{note.id}", text, note.time)


def _post(
    tweet: Mapping[str, Any],
    notes: _Notes,
    account: str | None,
    report: ImportReport,
    file: str,
) -> Post | None:
    """A post in its author's own words; None for what is none, which is counted."""
    id_, text = tweet.get("id_str") or tweet.get("id"), tweet.get("full_text", tweet.get("text"))
    if not isinstance(id_, str | int) or not isinstance(text, str):
        report.skip("it is not a post", file)
        return None
    place = f"tweet-{id_}"
    time = _time(tweet.get("created_at"), str(id_))
    if _RETWEET.match(text) or any(tweet.get(key) for key in _PASSED):
        notes.take(_RETWEET.sub("", text).lstrip(" :"), time)
        report.skip("it is a retweet: somebody else's words", place)
        return None
    user = tweet.get("user")
    writer = str(user.get("id_str") or user.get("id") or "") if isinstance(user, dict) else ""
    if account and writer and writer != account:
        report.skip("somebody else wrote it", place)
        return None
    if _superseded(tweet, str(id_)):
        report.skip("it was edited, and the newer form is read", place)
        return None
    whole = notes.take(text, time)
    if _PROGRAMS.search(re.sub(r"<[^>]*>", " ", str(tweet.get("source") or ""))):
        report.skip("a program posted it", place)
        return None
    words = _own_words(whole or _resolved(text, _links(tweet)), report, place)
    if words is None:
        return None
    answers = tweet.get("in_reply_to_user_id_str") or tweet.get("in_reply_to_user_id")
    reply = bool(answers or tweet.get("in_reply_to_status_id_str")) and str(answers) != account
    return Post(place, words, time, reply)


#: Keys of a retweet in old archives.
_PASSED = ("retweeted_status", "retweeted_status_id", "retweeted_status_id_str")


def _superseded(tweet: Mapping[str, Any], id_: str) -> bool:
    """Whether a post is an earlier form of one that was edited: all forms are in the archive."""
    info = tweet.get("edit_info")
    ids: list[Any] = []
    for value in info.values() if isinstance(info, dict) else ():
        control = value.get("editControlInitial", value) if isinstance(value, dict) else {}
        listed = control.get("editTweetIds") if isinstance(control, dict) else None
        ids = listed if isinstance(listed, list) else ids
    return id_ in map(str, ids[:-1])


def _links(tweet: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The shortened addresses of a post, each with what it stands for; None for pictures."""
    pairs: list[tuple[Any, Any]] = []
    for key in ("entities", "extended_entities"):
        entities = tweet.get(key)
        for kind, expanded in (("urls", "expanded_url"), ("media", "")):
            listed = entities.get(kind) if isinstance(entities, dict) else None
            for link in listed if isinstance(listed, list) else ():
                if isinstance(link, dict):
                    pairs.append((link.get("url"), link.get(expanded)))
    return pairs


def _resolved(text: str, links: list[tuple[Any, Any]]) -> str:
    """A text with addresses as they were typed, without those of pictures and of other posts."""
    for short, whole in links:
        if isinstance(short, str) and short:
            shown = whole if isinstance(whole, str) and not _STATUS.match(whole) else ""
            text = text.replace(short, shown)
    return html.unescape(_SHORTENED.sub("", text)).strip()


def _own_words(text: str, report: ImportReport, place: str) -> str | None:
    """A post without what it passes on of others; None if that is all, which is counted."""
    text = text[: POST_LIMIT + 1]
    if _VIA.search(text):
        report.skip("it shares a page in the page's words", place)
        return None
    own = _PASSED_ON.sub("", _QUOTED.sub("", text))
    if own != text:
        report.skip(QUOTED, place)
        own = own.rstrip(" \t|/<:")
    return without_leading_mentions(_STATUS.sub("", own)).strip()


def _time(value: Any, id_: str) -> datetime | None:
    """When a post was written, else what its id says of it."""
    text = value if isinstance(value, str) else ""
    match = _TIME.fullmatch(text.strip())
    if match and match[1] in _MONTHS:
        month = _MONTHS.index(match[1]) + 1
        text = f"{match[5]}-{month:02}-{match[2]}T{match[3]}{match[4]}"
    time = time_or_none(re.sub(r"(?<=:\d\d) (?=[+-]\d{4}$)", "", text.strip())) if text else None
    if time is None and id_.isdecimal() and int(id_) > _FIRST:
        time = time_or_none(((int(id_) >> 22) + _EPOCH) / 1000)
    return time.astimezone(UTC) if time else None
