"""Posts in Meta's download, and Meta's own sentences in chats in other languages.

Shapes: Facebook's, Instagram's and Threads' files as in the readers of their downloads (the file
names and keys of `your_posts__check_ins__photos_and_videos_1.json`, `comments_v2`, `posts_1.json`,
`post_comments_1.json`, `text_post_app_text_posts`); chats as in mlomb/chat-analytics.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read

from pfi.sources.connectors import candidates
from pfi.sources.meta_notes import is_note

LADDER = "Die lange Leiter steht im Keller hinter den Äpfeln, für dich"
BEANS = "Beans want warm soil, so I wait for the second half of May"
TIME = 1_711_963_500


def garbled(text: str) -> str:
    return text.encode().decode("latin-1")


def said(key: str, text: str, second: int = 0, **more: Any) -> dict[str, Any]:
    return {"timestamp": TIME + second, "data": [{key: text}], **more}


FILES: dict[str, Any] = {
    "your_facebook_activity/posts/your_posts__check_ins__photos_and_videos_1.json": [
        said("post", garbled(LADDER), title="Sam Two shared a link.", attachments=[
            {"data": [{"external_context": {"name": "foreign page", "url": "https://a.example"}}]}]),
        said("post", f"@[100:2048:Nora One] {BEANS}", 5, title="Sam Two wrote on foreign"),
        {"timestamp": TIME, "title": "Sam Two updated his foreign profile picture.", "data": []},
    ],
    "your_facebook_activity/posts/wall_posts_sent_to_you.json": [
        said("post", "foreign words that somebody wrote on my page, eight of them")],
    "your_facebook_activity/comments_and_reactions/comments.json": {"comments_v2": [
        {"timestamp": TIME, "title": "Sam Two replied to foreign", "data": [
            {"comment": {"timestamp": TIME, "comment": f"{BEANS}, I think", "author": "Sam Two"}}]},
    ]},
    "your_facebook_activity/comments_and_reactions/likes_and_reactions_1.json": [
        {"timestamp": TIME, "data": [{"reaction": {"reaction": "LIKE"}}], "title": "foreign"}],
    "your_instagram_activity/content/posts_1.json": [
        {"media": [{"uri": "a.jpg", "creation_timestamp": TIME + 9, "title": f"{BEANS} (one)"}]},
        {"media": [{"uri": "a.jpg", "creation_timestamp": TIME, "title": ""}, {"uri": "b.jpg"}],
         "title": f"{BEANS} (two)", "creation_timestamp": TIME + 10},
    ],
    "your_instagram_activity/comments/post_comments_1.json": [
        {"media_list_data": [{"value": ""}], "string_map_data": {
            "Kommentar": {"value": f"{BEANS} (comment)"}, "Medieninhaber": {"value": "nora.one"},
            "Zeit": {"timestamp": TIME + 11}}}],
    "your_instagram_activity/threads/threads_and_replies.json": {"text_post_app_text_posts": [
        {"media": [{"uri": "", "creation_timestamp": TIME + 12, "title": f"{BEANS} (thread)",
                    "text_app_post": {"is_reply": True}}]}]},
}  # fmt: skip
OWN = {
    LADDER, f"Nora One {BEANS}", f"{BEANS}, I think", f"{BEANS} (one)", f"{BEANS} (two)",
    f"{BEANS} (comment)", f"{BEANS} (thread)",
}  # fmt: skip


def zipped(path: Path, files: dict[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in files.items():
            archive.writestr(name, json.dumps(value))
    return path


def test_posts_of_facebook_instagram_and_threads(tmp_path: Path) -> None:
    path = zipped(tmp_path / "meta.zip", FILES)
    assert candidates(path) == ["messenger"]
    records, report = read("messenger", path)
    assert {record.output for record in records} == OWN
    assert {record.task for record in records} == {"continuation"}
    assert len({record.id for record in records}) == len(records) == 7
    assert report.skipped["it holds no words"] == 1
    assert {str(record.time) for record in records if record.output == LADDER} == {
        "2024-04-01 09:25:00+00:00"
    }


def test_posts_beside_chats(tmp_path: Path) -> None:
    chat = {
        "participants": [{"name": "Nora One"}, {"name": "Sam Two"}], "title": "Nora One",
        "messages": [
            {"sender_name": "Sam Two", "timestamp_ms": (TIME + 1) * 1000, "content": "In it"},
            {"sender_name": "Nora One", "timestamp_ms": TIME * 1000, "content": "The ladder?"},
        ],
    }  # fmt: skip
    path = zipped(tmp_path / "meta.zip", {**FILES, "messages/inbox/nora_1/message_1.json": chat})
    assert candidates(path) == ["messenger"]
    assert {record.output for record in read("messenger", path)[0]} == OWN | {"In it"}
    outputs = [record.output for record in read("messenger", path, {"posts": False})[0]]
    assert outputs == ["In it"]


def test_one_file_of_posts_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    path = tmp_path / "posts_1.json"
    path.write_text(json.dumps(FILES["your_instagram_activity/content/posts_1.json"]), "utf-8")
    assert candidates(path) == ["messenger"]
    path.write_text(json.dumps([{"id": 1, "title": "x", "body": "y"}]), "utf-8")
    assert candidates(path) == []


@pytest.mark.parametrize(
    "words",
    [
        "You sent an attachment.", "Sam sent a photo.", "Du hast einen Anhang gesendet.",
        "Sam hat ein Foto gesendet.", "Vous avez envoyé une pièce jointe.",
        "Sam a envoyé une photo.", "Enviaste una foto.", "Has enviado un archivo adjunto.",
        "Hai inviato un allegato.", "Você enviou um anexo.", "Je hebt een bijlage verzonden.",
        "Wysłano załącznik.", "Sam wysłał zdjęcie.", "Du skickade en bilaga.",
        "Вы отправили фото.", "Sam отправил(а) вложение.", "你傳送了一張相片。",
        "Reacted 😂 to your message ", "Hat mit 😂 auf deine Nachricht reagiert ",
        "Zareagował(a) 😂 na Twoją wiadomość ", "Отреагировал(-а) 😂 на ваше сообщение ",
        "あなたのメッセージに😂とリアクション しました ",
        "Liked a message", "Gefällt eine Nachricht",
        "Sam Two hat den Spitznamen geändert.", "Anda mengirim foto.",
    ],
)  # fmt: skip
def test_meta_s_sentences_are_nobodys(words: str) -> None:
    assert is_note(words, "Sam Two")


@pytest.mark.parametrize(
    "words",
    [
        "Du hast ein schönes Foto.", "Hast du das Foto gesendet?", "I sent a photo.",
        "You left your keys here.", "Ich habe dir ein Video geschickt.", "Have you sent a photo?",
        "Je hebt een mooie foto.", "Sam, schick mir ein Foto.", "Das Foto ist schön 😂 ja",
        "Vous avez une belle photo.", "Tu as vu la vidéo.", "Вы видели фото.",
        "Ich habe dir gestern den Anhang geschickt, in dem alles steht, was du brauchst.",
        "Saman sent a photo.",
    ],
)  # fmt: skip
def test_ones_own_sentences_stay(words: str) -> None:
    assert not is_note(words, "Sam Two")
