"""One's own public posts: archives of X, Mastodon, Reddit and Bluesky, made up in their shapes.

Shapes: X as in timhutton/twitter-archive-parser and TheExGenesis/community-archive (tweets,
note-tweet with `core`, account), archives of months as in `Grailbird.data` of many readers;
Mastodon's outbox as in kensanata/mastodon-archive; Reddit's tables as in the readers of its GDPR
export (pushshift-like `id,permalink,date,ip,subreddit,...`); Bluesky's repository as
bluesky-social/atproto describes it.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bluesky_repository import repository, varint
from connector_sources import read

from pfi.errors import DataError
from pfi.readers.report import ImportReport
from pfi.records import Record
from pfi.sources.connectors import candidates, get_connector
from pfi.sources.posts import Post, PostOptions, post_records

LADDER = "The long ladder stands in the cellar behind the apples"
BEANS = "Beans want warm soil, so I wait for the second half of May"


def outputs(records: list[Record]) -> list[str]:
    return [record.output for record in records]


def folder_of(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zip_of(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# What all have in common ------------------------------------------------------------------


def posted(*texts: str, **options: Any) -> tuple[list[str], ImportReport]:
    report = ImportReport()
    posts = [Post(str(n), text, _TIME) for n, text in enumerate(texts)]
    records = list(post_records(posts, PostOptions(**options), report, "x"))
    return outputs(records), report


_TIME = datetime(2024, 4, 1, 10, tzinfo=UTC)


def test_names_of_those_addressed_tags_and_addresses_are_no_words() -> None:
    assert posted(f"@nora @sam@social.example, {LADDER}")[0] == [LADDER]
    assert (
        posted("@nora @sam.bsky.social thanks, see you #garden #beans https://a.example/b")[0] == []
    )
    assert posted("@nora 梯子在地下室的苹果后面，请你明天把它拿上来给我用一下")[0] == [
        "梯子在地下室的苹果后面，请你明天把它拿上来给我用一下"
    ]


@pytest.mark.parametrize(
    "quote",
    [
        f"“{LADDER}” — Nora One",
        f'"{LADDER}." - Nora One, 1924 #quotes',
        f"„{LADDER}“ (Nora One)",
        f"«{LADDER}»\n— Nora One",
        f"「{LADDER}」 ― Nora One",
        f"> {LADDER}",
        f'"{LADDER}." https://a.example/page by @nora',
        f"“{LADDER}” #quotes @nora",
        f'"{LADDER}\n\n{LADDER}, too."',
        f"“{LADDER}”\n\n— Nora One\n\n",
    ],
)
def test_a_quotation_is_not_ones_own(quote: str) -> None:
    texts, report = posted(quote, BEANS)
    assert texts == [BEANS]
    assert report.skipped.total() >= 1


@pytest.mark.parametrize(
    "own",
    [
        f'"{LADDER}," she said, and I laughed.',
        f'{BEANS}, and "{LADDER}" too',
        f"“Warm” is what it says. {BEANS}",
        f"- {BEANS}\n- {LADDER}",
    ],
)
def test_sentences_with_quotations_stay(own: str) -> None:
    assert posted(own)[0] == [own]


def test_a_quoted_word_does_not_make_a_quotation() -> None:
    own = f'"Warm" is what the packet says - and then "soil", but {BEANS}'
    assert posted(own)[0] == [own]
    source = f"Nora One. The ladder and the cellar, a book about both of them\n\nhttps://a.example/{BEANS[:5]}"
    assert posted(f'"...{LADDER},\n\n"{LADDER}."\n\n{source}')[0] == []
    assert posted(f'"{LADDER}."\n\nThis is a sentence of mine about the quotation above.')[0] == [
        "This is a sentence of mine about the quotation above."
    ]
    mixed = f"“{LADDER}”\n\n{BEANS}\n“Warm” is what it says, and “soft”"
    assert posted(mixed)[0] == [f"{BEANS}\n“Warm” is what it says, and “soft”"]


def test_long_posts_are_divided_and_nothing_is_lost() -> None:
    words = [f"word{n}" for n in range(900)]
    texts, _ = posted(" ".join(words))
    assert len(texts) > 2 and all(len(text) <= 2000 for text in texts)
    assert " ".join(texts).split() == words


# X ------------------------------------------------------------------------------------------


def script(name: str, values: Any, end: str = "") -> str:
    return f"window.YTD.{name}.part0 = {json.dumps(values, indent=2)}{end}"


def tweet(number: int, text: str, **more: Any) -> dict[str, Any]:
    return {"tweet": {
        "id_str": str(number), "id": str(number), "full_text": text, "retweeted": False,
        "created_at": f"Wed Oct 10 20:{number % 60:02}:24 +0000 2018", "lang": "en",
        "source": '<a href="https://mobile.twitter.com" rel="nofollow">Twitter Web App</a>',
        "entities": {"urls": [], "user_mentions": []}, **more,
    }}  # fmt: skip


def link(short: str, whole: str) -> dict[str, Any]:
    return {"urls": [{"url": short, "expanded_url": whole, "display_url": "x"}]}


ACCOUNT = [{"account": {"username": "sam", "accountId": "7", "accountDisplayName": "Sam Two"}}]
LONG = f"{LADDER}, and then it goes on: " + "a word of mine, " * 30
TWEETS = [
    tweet(1, f"{LADDER} &amp; the chairs &lt;old&gt;"),
    tweet(2, "RT @nora: Somebody else wrote these eight words and more of them"),
    tweet(3, f"@nora {BEANS}", in_reply_to_user_id_str="8", in_reply_to_status_id_str="5"),
    tweet(4, "I read this page about beans with joy https://t.co/abc",
          entities=link("https://t.co/abc", "https://beans.example/may")),
    tweet(5, "So true, this is what I say all the time https://t.co/def",
          entities=link("https://t.co/def", "https://twitter.com/nora/status/99")),
    tweet(6, "Look at my beans, they grow higher than the house https://t.co/pic",
          entities={"media": [{"url": "https://t.co/pic"}]}),
    tweet(7, "Yes, this is exactly what I think of it! RT @nora: foreign words are these here"),
    tweet(8, f"“@nora: foreign words that somebody else wrote” {BEANS} too"),
    tweet(9, "Ten foreign words of a page that I only share https://t.co/xyz via @paper"),
    tweet(10, "foreign: I'm at the garden centre in the old town with others",
          source='<a href="http://foursquare.com">Foursquare</a>'),
    tweet(11, LONG[:260] + "… https://t.co/long"),
    tweet(12, "Short one"),
    tweet(13, "The first form of a post that I mended later, all of it",
          edit_info={"edit": {"initialTweetId": "13", "editControlInitial":
                              {"editTweetIds": ["13", "14"]}}}),
    tweet(14, "The second form of a post that I mended later, all of it",
          edit_info={"edit": {"initialTweetId": "13", "editControlInitial":
                              {"editTweetIds": ["13", "14"]}}}),
]  # fmt: skip
NOTE = {"noteTweet": {
    "noteTweetId": "900", "createdAt": "2018-10-10T20:11:24.000Z",
    "core": {"text": LONG, "urls": [], "mentions": []},
}}  # fmt: skip
X = {
    "data/account.js": script("account", ACCOUNT),
    "data/tweets.js": script("tweets", TWEETS[:9]),
    "data/tweets-part1.js": script("tweets", TWEETS[9:], end=";\n"),
    "data/note-tweet.js": script("note_tweet", [NOTE]),
    "data/like.js": script("like", [{"like": {"tweetId": "5", "fullText": "foreign liked words"}}]),
    "data/deleted-tweets.js": script("deleted_tweets", [tweet(50, f"foreign, deleted {BEANS}")]),
    "Your archive.html": "<html></html>",
}
X_OWN = {
    "tweet-1": f"{LADDER} & the chairs <old>",
    "tweet-3": BEANS,
    "tweet-4": "I read this page about beans with joy https://beans.example/may",
    "tweet-5": "So true, this is what I say all the time",
    "tweet-6": "Look at my beans, they grow higher than the house",
    "tweet-7": "Yes, this is exactly what I think of it!",
    "tweet-8": f"{BEANS} too",
    "tweet-11": LONG.strip(),
    "tweet-14": "The second form of a post that I mended later, all of it",
}


@pytest.mark.parametrize("form", ["zip", "folder", "inner"])
def test_x_archive(tmp_path: Path, form: str) -> None:
    inner = {f"twitter-2024/{name}": text for name, text in X.items()}
    path = (
        zip_of(tmp_path / "twitter-2024.zip", X) if form == "zip"
        else folder_of(tmp_path / "x", inner if form == "inner" else X)
    )  # fmt: skip
    assert candidates(path) == ["twitter"]
    records, report = read("twitter", path)
    assert {record.id: record.output for record in records} == X_OWN
    assert report.me == ["@sam"]
    assert all(record.input == {} and record.task == "continuation" for record in records)
    assert {str(r.time) for r in records if r.id == "tweet-1"} == {"2018-10-10 20:01:24+00:00"}
    for reason in ("retweet", "page's words", "a program posted it", "fewer than", "edited"):
        assert any(reason in skipped for skipped in report.skipped), reason


def test_x_without_replies_and_one_file_alone(tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"tweets.js": X["data/tweets.js"]}) / "tweets.js"
    assert candidates(path) == ["twitter"]
    records, _ = read("twitter", path, {"replies": False})
    assert "tweet-3" not in {record.id for record in records}


def test_x_archives_of_months(tmp_path: Path) -> None:
    month = [
        {"id_str": "31", "text": BEANS, "created_at": "2013-01-31 23:59:59 +0000",
         "entities": {"urls": []}, "user": {"id_str": "7", "screen_name": "sam"}},
        {"id_str": "32", "text": "RT @nora: foreign", "created_at": "2013-01-31 23:59:59 +0000",
         "retweeted_status": {"text": "foreign words of somebody else, eight of them at least"}},
    ]  # fmt: skip
    text = f"Grailbird.data.tweets_2013_01 = \n {json.dumps(month)}"
    path = zip_of(tmp_path / "a.zip", {"data/js/tweets/2013_01.js": text, "tweets.csv": "x"})
    assert candidates(path) == ["twitter"]
    records, _ = read("twitter", path)
    assert [(r.output, str(r.time)) for r in records] == [(BEANS, "2013-01-31 23:59:59+00:00")]


@pytest.mark.parametrize("place", ["core", "noteTweetResults", "noteTweetContents"])
def test_x_long_posts_alone_and_those_that_were_passed_on(tmp_path: Path, place: str) -> None:
    own = {"noteTweetId": "1", "createdAt": "2024-01-01T00:00:00.000Z", place: {"text": LONG}}
    theirs = "foreign " * 60
    passed = {"noteTweetId": "2", "createdAt": "2018-10-10T20:02:24.000Z", place: {"text": theirs}}
    path = folder_of(tmp_path / "x", {
        "data/tweets.js": script("tweets", [tweet(2, f"RT @nora: {theirs[:100]}…")]),
        "data/note-tweet.js": script("note_tweet", [{"noteTweet": own}, {"noteTweet": passed}]),
    })  # fmt: skip
    assert outputs(read("twitter", path)[0]) == [LONG.strip()]


def test_x_times_from_ids_and_files_that_break_off(tmp_path: Path) -> None:
    whole = tweet(1738963372425732512, BEANS, created_at=None)
    text = script("tweets", [whole, tweet(2, LADDER)])
    path = folder_of(tmp_path / "x", {"data/tweets.js": text[: text.index(LADDER)]})
    records, report = read("twitter", path)
    assert [str(record.time)[:10] for record in records] == ["2023-12-24"]
    assert any("ends there" in reason for reason in report.skipped)


# Mastodon -----------------------------------------------------------------------------------

ACTOR = "https://social.example/users/sam"


def toot(number: int, content: str, kind: str = "Create", **more: Any) -> dict[str, Any]:
    id_ = f"{ACTOR}/statuses/{number}"
    note = {"id": id_, "type": "Note", "summary": None, "inReplyTo": None, "content": content,
            "published": f"2024-03-05T12:{number:02}:00Z", "attributedTo": ACTOR, "tag": [],
            "contentMap": {"en": content}, **more}  # fmt: skip
    return {"id": f"{id_}/activity", "type": kind, "actor": ACTOR, "object": note}


TOOTS: list[dict[str, Any]] = [
    toot(1, f"<p>{LADDER} &amp; the chairs,<br>both of them.</p><p>Old :blob: ones.</p>",
         tag=[{"type": "Emoji", "name": ":blob:"}]),
    {"id": "x", "type": "Announce", "actor": ACTOR, "object": "https://other.example/1"},
    toot(3, '<p><span class="h-card"><a href="https://o.example/@nora" class="u-url mention">@'
            f"<span>nora</span></a></span> {BEANS}</p>", inReplyTo="https://o.example/9"),
    toot(4, "<blockquote><p>foreign words of eight and more that nora wrote</p></blockquote>"
            f"<p>{BEANS}, I say</p><pre><code>foreign = code</code></pre>"),
    toot(5, '<p class="quote-inline">RE: <a href="https://o.example/foreign">foreign</a></p>'
            f"<p>{BEANS}, so do I</p>"),
    toot(6, f"<p>foreign {BEANS}</p>", attributedTo="https://o.example/users/nora"),
    toot(7, f"<p>{BEANS} again</p>", summary="On gardens"),
    toot(8, f"<p>foreign {BEANS}</p>", kind="Delete"),
    toot(9, '<p>My own page about beans that I wrote is <a href="https://a.example/beans">'
            '<span class="invisible">https://</span><span class="">a.example/beans</span></a></p>'),
    toot(10, f"<p>Which is best? {BEANS}</p>", type="Question", oneOf=[{"name": "May"}]),
]  # fmt: skip
MASTODON = {
    "actor.json": json.dumps({"id": ACTOR, "type": "Person", "preferredUsername": "sam"}),
    "outbox.json": json.dumps({
        "@context": "https://www.w3.org/ns/activitystreams", "id": "outbox.json",
        "type": "OrderedCollection", "totalItems": len(TOOTS), "orderedItems": TOOTS,
    }),
    "likes.json": json.dumps({"id": "likes.json", "type": "OrderedCollection",
                              "orderedItems": ["https://other.example/1"]}),
}  # fmt: skip


@pytest.mark.parametrize("form", ["tar", "zip", "folder", "file"])
def test_mastodon_archive(tmp_path: Path, form: str) -> None:
    if form == "tar":
        path = tar_of(tmp_path / "archive-20240305-abc.tar.gz", MASTODON)
    elif form == "zip":
        path = zip_of(tmp_path / "archive-20240305-abc.zip", MASTODON)
    else:
        path = folder_of(tmp_path / "m", MASTODON) / ("outbox.json" if form == "file" else ".")
    assert candidates(path) == ["mastodon"]
    records, report = read("mastodon", path)
    assert outputs(records) == [
        f"{LADDER} & the chairs,\nboth of them.\n\nOld ones.",
        BEANS,
        f"{BEANS}, I say",
        f"{BEANS}, so do I",
        f"On gardens\n\n{BEANS} again",
        "My own page about beans that I wrote is https://a.example/beans",
        f"Which is best? {BEANS}",
    ]
    assert report.me == ([] if form == "file" else ["@sam"])
    assert report.skipped["it is a boost: somebody else's words"] == 1
    assert report.skipped["somebody else wrote it"] == 1
    assert str(records[0].time) == "2024-03-05 12:01:00+00:00"


# Reddit -------------------------------------------------------------------------------------


def table(header: str, *rows: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header.split(","), *rows])
    return out.getvalue()


def comment(id_: str, body: str) -> list[str]:
    page = f"https://www.reddit.com/r/garden/comments/p1/x/{id_}/"
    return [id_, page, "2023-01-15 12:34:56 UTC", "", "garden", "0", page, "", body, ""]


def submission(id_: str, title: str, url: str, body: str) -> list[str]:
    return [id_, "p", "2023-01-16 12:34:56 UTC", "", "garden", "0", title, url, body]


REDDIT = {
    "comments.csv": table(
        "id,permalink,date,ip,subreddit,gildings,link,parent,body,media",
        comment("c1", f"> foreign words of eight and more\nthat nora wrote\n\n{BEANS}."),
        comment("c2", "[removed]"),
        comment("c3", "foreign sentences of a program that answers by itself.\n\n"
                      "^(I am a bot, and this action was performed automatically.)"),
        comment("c4", f"&gt; foreign\n\nI think that **{BEANS}** &amp; more of that"),
        comment("c5", f">!{LADDER}!< is what I found out"),
        comment("c6", "Same here"),
    ),
    "posts.csv": table(
        "id,permalink,date,ip,subreddit,gildings,title,url,body",
        submission("p1", "Where do you keep the ladder?", "", f"{LADDER}. Where is yours?"),
        submission("p2", "foreign headline of a page about beans that I only share",
                   "https://news.example/beans", ""),
        submission("p3", "Why do my beans always grow higher than the house?",
                   "https://www.reddit.com/r/garden/comments/p3/why/", ""),
        submission("p4", "My second question is of no more than that", "", "[deleted]"),
    ),
    "statistics.csv": "statistic,value\naccount name,sam_two\n",
    "post_headers.csv": "id,permalink,date,ip,subreddit,gildings,url\n",
    "saved_posts.csv": "id,permalink\nforeign,foreign\n",
    "drafts.csv": "id,title,body,kind\nd1,foreign draft,foreign draft,text\n",
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_reddit_export(tmp_path: Path, form: str) -> None:
    path = (
        zip_of(tmp_path / "export_sam.zip", REDDIT) if form == "zip"
        else folder_of(tmp_path / "r", REDDIT)
    )  # fmt: skip
    assert candidates(path) == ["reddit"]
    records, report = read("reddit", path)
    assert {r.id: (r.task, r.output) for r in records} == {
        "comment-c1": ("continuation", f"{BEANS}."),
        "comment-c4": ("continuation", f"I think that {BEANS} & more of that"),
        "comment-c5": ("continuation", f"{LADDER} is what I found out"),
        "post-p1#title": ("note_title", "Where do you keep the ladder?"),
        "post-p1": ("continuation", f"{LADDER}. Where is yours?"),
        "post-p3#title": ("continuation", "Why do my beans always grow higher than the house?"),
        "post-p4#title": ("continuation", "My second question is of no more than that"),
    }
    assert report.me == ["u/sam_two"]
    assert str(records[0].time) == "2023-01-15 12:34:56+00:00"
    assert report.skipped["it was deleted"] == 2


def test_reddit_comments_alone(tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"comments.csv": REDDIT["comments.csv"]}) / "comments.csv"
    assert candidates(path) == ["reddit"]
    assert len(read("reddit", path)[0]) == 3
    youtube = folder_of(tmp_path / "y", {"comments.csv": "Comment ID,Comment Text\n1,foreign\n"})
    assert "reddit" not in candidates(youtube / "comments.csv")


# Bluesky ------------------------------------------------------------------------------------


def skeet(text: str, **more: Any) -> dict[str, Any]:
    return {"$type": "app.bsky.feed.post", "text": text, "langs": ["en"],
            "createdAt": "2024-03-05T12:00:00.123Z", **more}  # fmt: skip


_THEIRS = {"uri": "at://did:plc:nora/app.bsky.feed.post/3k", "cid": "b"}
SHORTENED = f"Ä page: a.example/beans... and {BEANS}"
BLUESKY: dict[str, Any] = {
    "app.bsky.feed.post/3kaaaaaaaaa22": skeet(LADDER),
    "app.bsky.feed.post/3kaaaaaaaaa23": skeet(
        f"@nora.bsky.social {BEANS}", reply={"parent": _THEIRS, "root": _THEIRS}),
    "app.bsky.feed.post/3kaaaaaaaaa24": skeet(
        f"{BEANS}, so do I", embed={"$type": "app.bsky.embed.record", "record": _THEIRS}),
    "app.bsky.feed.post/3kaaaaaaaaa25": skeet(SHORTENED, facets=[{
        "index": {"byteStart": 9, "byteEnd": 27},
        "features": [{"$type": "app.bsky.richtext.facet#link",
                      "uri": "https://a.example/beans-in-may"}]}]),
    "app.bsky.feed.post/3kaaaaaaaaa26": skeet("Short"),
    "app.bsky.feed.post/3kaaaaaaaaa27": skeet(f"{LADDER}, undated", createdAt="never"),
    "app.bsky.feed.like/3kaaaaaaaaa28": {"$type": "app.bsky.feed.like", "subject": _THEIRS},
    "app.bsky.feed.repost/3kaaaaaaaaa29": {"$type": "app.bsky.feed.repost", "subject": _THEIRS},
}  # fmt: skip


@pytest.mark.parametrize("form", ["file", "folder"])
def test_bluesky_repository(tmp_path: Path, form: str) -> None:
    folder = folder_of(tmp_path / "b", {
        "repo.car": repository(BLUESKY, stray=[skeet(f"foreign, in no tree, {BEANS}")]),
    })  # fmt: skip
    path = folder / "repo.car" if form == "file" else folder
    assert candidates(path) == ["bluesky"]
    records, report = read("bluesky", path)
    assert {record.id[-2:]: record.output for record in records} == {
        "22": LADDER,
        "23": BEANS,
        "24": f"{BEANS}, so do I",
        "25": f"Ä page: https://a.example/beans-in-may and {BEANS}",
        "27": f"{LADDER}, undated",
    }
    assert report.me == ["did:plc:sam"]
    assert str(records[0].time) == "2024-03-05 12:00:00.123000+00:00"
    dated = {record.id[-2:]: str(record.time)[:4] for record in records}
    assert dated["27"] in ("2023", "2024"), "from its key"
    assert [r.id[-2:] for r in read("bluesky", path, {"replies": False})[0]].count("23") == 0


def test_posts_of_older_trees_of_a_repository_are_not_read(tmp_path: Path) -> None:
    gone = {f"app.bsky.feed.post/3kbaaaaaaaa2{n}": skeet(f"{BEANS}, deleted {n}") for n in (2, 3)}
    data = repository(BLUESKY, before={**BLUESKY, **gone})
    path = folder_of(tmp_path, {"repo.car": data}) / "repo.car"
    texts = outputs(read("bluesky", path)[0])
    assert len(texts) == 5 and not any("deleted" in text for text in texts)


@pytest.mark.parametrize("damage", ["cut", "changed", "swollen", "other"])
def test_damaged_repositories_are_errors_or_give_what_comes_before(
    tmp_path: Path, damage: str
) -> None:
    data = repository(BLUESKY)
    if damage == "cut":
        data = data[:-200]
    elif damage == "changed":
        data = data[:-3] + b"xyz"
    elif damage == "swollen":
        data += b"\xff\xff\xff\xff\x7f"
    else:
        data = varint(1 << 27) + data
    path = folder_of(tmp_path, {"repo.car": data}) / "repo.car"
    report = ImportReport()
    connector = get_connector("bluesky")
    if damage == "other":
        assert candidates(path) == []
        with pytest.raises(DataError, match="no repository"):
            list(connector.read(path, connector.configure({}), report))
        return
    records = list(connector.read(path, connector.configure({}), report))
    assert records and any("ends there" in reason for reason in report.skipped)
