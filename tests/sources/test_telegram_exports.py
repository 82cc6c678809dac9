"""Telegram: old and new exports, whose they are, and what in them is one's own.

The objects are those of frozenspider/chat-history-manager-rust (`resources/test/telegram_*`), of
2018 to 2024; those of other programs those of mlomb/chat-analytics (`tests/samples`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read

from pfi.errors import ConfigError, DataError
from pfi.sources.connectors import candidates


def said(number: int, who: str, id_: Any, text: Any, **more: Any) -> dict[str, Any]:
    date = f"2018-01-18T20:{number:02}:30"
    return {
        "id": number,
        "type": "message",
        "date": date,
        "from": who,
        "from_id": id_,
        "text": text,
        **more,
    }


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"name": "Nora", "type": "personal_chat", "id": 7, "messages": list(messages), **more}


def export(folder: Path, value: Any) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return path


def account(*chats: Any, user: int = 11) -> dict[str, Any]:
    return {"about": "", "personal_information": {"user_id": user}, "chats": {"list": list(chats)}}


ASKED = said(1, "Nora", 7, "Is the ladder with you?")


def test_ids_were_numbers_until_2021(tmp_path: Path) -> None:
    value = chat(ASKED, said(2, "Sam", 11, "No, in the cellar"), id=9_000_000_007, name="Norah")
    path = export(tmp_path, account(value))
    [record], _ = read("telegram", path, {"zone": "Europe/Berlin"})
    assert record.output == "No, in the cellar" and f"{record.time:%H:%M}" == "19:02"
    for me in ("11", "user11", "Sam"):
        assert read("telegram", export(tmp_path, value), {"me": me})[0][0].output == record.output


@pytest.mark.parametrize(
    "value",
    [
        chat(ASKED, said(2, "Sam", "user11", "yes"), name="A name that changed"),
        chat(ASKED, said(2, "Sam", 11, "yes"), id=8),
        {
            "chats": {
                "list": [
                    chat(ASKED, said(2, "Sam", 11, "yes")),
                    chat(said(1, "Sam", 11, "milk"), type="saved_messages"),
                ]
            }
        },
    ],
)
def test_a_chat_of_two_needs_no_me(tmp_path: Path, value: Any) -> None:
    [record], _ = read("telegram", export(tmp_path, value))
    assert record.output == "yes"


def test_it_is_not_guessed_where_it_is_not_known(tmp_path: Path) -> None:
    answer = said(2, "Sam", 11, "yes")
    for value in (chat(ASKED, answer, name="Bo", id=5), chat(ASKED, answer, type="private_group")):
        with pytest.raises(ConfigError, match="not clear who you are"):
            read("telegram", export(tmp_path, value))


def test_words_of_others_in_ones_own_messages(tmp_path: Path) -> None:
    """Quotes, forwards also of accounts that are gone, texts of bots, messages pasted."""
    quote = {"type": "blockquote", "text": "her words", "collapsed": True}
    value = chat(
        ASKED,
        said(
            2,
            "Sam",
            11,
            [
                quote,
                "Not mine, ",
                {"type": "code", "text": "ls"},
                {"type": "text_link", "text": " here", "href": "x"},
            ],
        ),
        said(3, "Sam", 11, "news", forwarded_from=None),
        said(4, "Sam", 11, "gif", via_bot="@gif"),
        said(5, "Sam", 11, [{"type": "bot_command", "text": "/start"}]),
        said(6, "Sam", 11, "See\nNora, [18.01.18 20:01]\nIs the ladder with you?"),
    )
    [record], report = read("telegram", export(tmp_path, value))
    assert record.output == "Not mine, ls here\nSee"
    assert report.skipped == {
        "it is forwarded": 1,
        "a bot wrote it": 1,
        "it is written to a bot": 1,
        "it is a quote, or pasted": 1,
    }


def test_captions_polls_calls_and_contacts(tmp_path: Path) -> None:
    value = chat(
        ASKED,
        said(2, "Sam", 11, "this one", photo="photos/a.jpg"),
        said(3, "Sam", 11, "", poll={"question": "When?", "answers": []}),
        said(4, "Sam", 11, "", contact_information={"first_name": "Bo"}),
        {
            "id": 5,
            "type": "service",
            "actor": "Sam",
            "actor_id": 11,
            "action": "phone_call",
            "text": "",
        },
        said(6, "Nora", 7, "", media_type="sticker", file="a.webp"),
        said(7, "Sam", 11, "a lovely dog"),
    )
    [record], report = read("telegram", export(tmp_path, value))
    assert record.output == "this one"
    assert report.skipped == {
        "it is a picture, a file or other media": 3,
        "it is a note of Telegram or a call": 1,
        "it answers nobody": 1,
    }


def test_pages_are_refused_with_what_to_do(tmp_path: Path) -> None:
    page = tmp_path / "messages.html"
    page.write_text('<!DOCTYPE html><div class="page_wrap"><div class="history">')
    for path in (page, tmp_path):
        with pytest.raises(DataError, match=r"export as HTML.*export again and choose JSON"):
            read("telegram", path)
    export(tmp_path, chat(ASKED, said(2, "Sam", 11, "yes")))
    assert read("telegram", tmp_path)[0][0].output == "yes"  # both were exported


def test_exports_of_other_programs_are_not_telegrams(tmp_path: Path) -> None:
    discord = {
        "guild": {"id": "0"},
        "channel": {"type": "DirectTextChat"},
        "messages": [{"id": "3", "type": "Default", "content": "Is it?", "author": {"id": "9"}}],
    }
    messenger = {
        "participants": [],
        "messages": [{"sender_name": "N", "content": "x", "type": "Generic"}],
        "title": "N",
    }
    tuning = {"messages": [{"role": "user", "content": "x", "type": "text"}]}
    for value in (discord, messenger, tuning, {"type": "object", "messages": []}):
        assert "telegram" not in candidates(export(tmp_path, value))
    for value in (account(chat(ASKED)), chat(ASKED), chat(ASKED, name=None)):
        assert candidates(export(tmp_path, value)) == ["telegram"]
