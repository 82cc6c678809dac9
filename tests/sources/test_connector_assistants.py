"""The ChatGPT and Claude connectors on made-up exports."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import ConfigError, DataError, PfiError
from pfi.readers.json_tree import OPENED, JsonTree
from pfi.readers.report import ImportReport
from pfi.records import History
from pfi.sources.connectors import detect, get_connector
from pfi.tasks import get_task

MINE = "please tell me how the harbour report should begin"
THEIRS = "ANSWER begin with the tide tables"
WHEN = 1_674_640_000.5


# ChatGPT --------------------------------------------------------------------------------


def said(role: str, text: Any, **more: Any) -> dict[str, Any]:
    parts = text if isinstance(text, list) else [text]
    content = {"content_type": "text", "parts": parts}
    return {"author": {"role": role}, "content": content, "create_time": WHEN, **more}


def tree(nodes: Mapping[str, tuple[str | None, Any]], current: Any, **more: Any) -> dict[str, Any]:
    """A conversation from `name: (parent, message)`."""
    mapping = {
        name: {
            "id": name,
            "message": message,
            "parent": parent,
            "children": [child for child, (above, _) in nodes.items() if above == name],
        }
        for name, (parent, message) in nodes.items()
    }
    return {"title": "T", "create_time": WHEN, "mapping": mapping, "current_node": current, **more}


def chain(*messages: Any, id_: str = "c") -> dict[str, Any]:
    """A conversation without branches."""
    nodes: dict[str, tuple[str | None, Any]] = {f"{id_}-root": (None, None)}
    for number, message in enumerate(messages):
        nodes[f"{id_}-{number}"] = (list(nodes)[-1], message)
    return tree(nodes, list(nodes)[-1], conversation_id=id_)


def export(folder: Path, *talks: Any, name: str = "conversations.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(talks), "utf-8")
    return path


def test_chatgpt_sides(tmp_path: Path) -> None:
    talk = chain(
        said("system", ""), said("user", MINE),
        said("assistant", "search(x)", recipient="browser"), said("tool", "found"),
        said("assistant", f"{THEIRS}\ue200cite\ue202turn0\ue201 so\u30104\u2020source\u3011."),
        said("user", "thanks"),
    )  # fmt: skip
    path = export(tmp_path, talk)
    [mine], report = read("chatgpt", path)
    assert (mine.id, mine.task, mine.output, dict(mine.input)) == ("c-1", "continuation", MINE, {})
    assert mine.time == datetime.fromtimestamp(WHEN, UTC)
    assert report.skipped == {
        "it is of the system or a tool": 3,
        "it has fewer than 8 words of yours": 1,
    }
    [answer], report = read("chatgpt", path, {"side": "answers"})
    assert (answer.task, dict(answer.input)) == ("instruction", {"instruction": MINE})
    assert answer.output == f"{THEIRS} so."
    assert report.skipped["it got no answer in words"] == 1
    assert get_task("continuation").examples(History("me", [mine]), __import__("random").Random(0))
    with pytest.raises(ConfigError, match="side"):
        read("chatgpt", path, {"side": "both"})


def test_chatgpt_follows_the_current_branch(tmp_path: Path) -> None:
    talk = tree(
        {
            "root": (None, None),
            "q": ("root", said("user", f"old {MINE}")),
            "q2": ("root", said("user", f"new {MINE}")),
            "a1": ("q2", said("assistant", "ANSWER dropped")),
            "a2": ("q2", said("assistant", "ANSWER kept")),
            "lost": ("q", said("assistant", "ANSWER of the old question")),
        },
        "a2",
    )
    path = export(tmp_path, talk)
    assert [r.output for r in read("chatgpt", path)[0]] == [f"new {MINE}"]
    [answer], _ = read("chatgpt", path, {"side": "answers"})
    assert answer.output == "ANSWER kept"
    # Without a current node it is the last leaf's branch; a circle ends.
    path = export(tmp_path, talk | {"current_node": None})
    assert [r.output for r in read("chatgpt", path)[0]] == [f"old {MINE}"]
    talk["mapping"]["root"]["parent"] = "a2"
    assert len(read("chatgpt", export(tmp_path, talk))[0]) == 1


def test_chatgpt_skips_and_counts(tmp_path: Path) -> None:
    messages = [
        said("user", [{"content_type": "image_asset_pointer"}, MINE]) | {"content": {
            "content_type": "multimodal_text",
            "parts": [{"content_type": "image_asset_pointer"}, MINE]}},
        said("user", "x", content={"content_type": "user_editable_context", "text": MINE}),
        said("user", MINE, metadata={"is_visually_hidden_from_conversation": True}),
        said("user", MINE, weight=0), said("user", f"{MINE} " * 100),
        said("user", f"look\n```\n{MINE}\n```\nwhat now"), said("user", "\ud800 " * 9),
        said("assistant", THEIRS, status="in_progress"),
        said("user", []), said("user", MINE, author=None), said("user", MINE, content=None), 5, [],
    ]  # fmt: skip
    talks = [chain(*messages), 5, {}, {"mapping": 3}, {"mapping": {"a": 5}, "current_node": "a"},
             chain(*messages)]  # fmt: skip
    records, report = read("chatgpt", export(tmp_path, *talks))
    assert [record.output for record in records] == [MINE]
    assert report.skipped == {
        "a part of a message is not text": 1,
        "it is not a message in words": 1,
        "it holds your custom instructions": 1,
        "code in a message is left out": 1,
        "it is hidden": 2,
        "it is longer than 2000 characters and was likely pasted": 1,
        "it has fewer than 8 words of yours": 1,
        "the text is not valid Unicode": 1,
        "the answer was broken off": 1,
        "it is empty": 1,
        "it is of the system or a tool": 1,
        "it is not a conversation": 3,
        "it repeats a conversation": 1,
    }
    place = "conversations.json, conversation 1, message c-2"
    assert report.examples["it is hidden"] == place


def test_chatgpt_zip_folder_and_parts(tmp_path: Path) -> None:
    first, second = chain(said("user", MINE), id_="a"), chain(said("user", f"{MINE} two"), id_="b")
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("chat.html", "<html>")
        file.writestr("user.json", "{}")
        file.writestr("conversations-000.json", json.dumps([first]))
        file.writestr("conversations-001.json", json.dumps([second]))
    records, _ = read("chatgpt", archive)
    assert [record.id for record in records] == ["a-0", "b-0"]
    folder = tmp_path / "folder"
    folder.mkdir()
    export(folder, first)
    assert [r.id for r in read("chatgpt", folder)[0]] == ["a-0"]
    assert detect(archive) == detect(folder) == "chatgpt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../conversations.json", json.dumps([first]))
    with pytest.raises(DataError, match="outside itself"):
        read("chatgpt", archive)
    assert detect(archive) is None


def spoken(text: str, direction: str) -> dict[str, Any]:
    return {"content_type": "audio_transcription", "text": text, "direction": direction}


def test_chatgpt_voice(tmp_path: Path) -> None:
    """What was spoken is a part of its own, beside the recording.

    Shape: exports with voice mode as in voidfreud/chatgpt-export-tool.
    """
    sound = {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_1"}
    video = {
        "content_type": "real_time_user_audio_video_asset_pointer",
        "audio_asset_pointer": sound,
    }

    def voiced(role: str, *parts: Any) -> dict[str, Any]:
        return said(role, "", content={"content_type": "multimodal_text", "parts": list(parts)})

    talk_ = chain(
        voiced("user", spoken(MINE, "in"), video, spoken("and never of the other side", "out")),
        voiced("assistant", spoken(THEIRS, "out"), sound),
        voiced("user", sound, f"typed {MINE}"),
        voiced("user", sound),
    )
    path = export(tmp_path, talk_)
    records, report = read("chatgpt", path)
    assert [record.output for record in records] == [MINE, f"typed {MINE}"]
    assert report.skipped == {"a part of a message is of the other side": 1, "it is empty": 1}
    answers, _ = read("chatgpt", path, {"side": "answers"})
    assert [(r.input["instruction"], r.output) for r in answers] == [(MINE, THEIRS)]


def test_chatgpt_messages_of_others(tmp_path: Path) -> None:
    """Quotes, shared conversations, groups and custom instructions are not one's own words."""
    shared = {"shared_conversation_id": "s1"}
    profile = {"content_type": "user_editable_context", "user_profile": f"The user says {MINE}"}
    talk_ = chain(
        said("user", "", content=profile),
        said("user", MINE, metadata={"is_user_system_message": True}),
        said("user", f"foreign {MINE}", metadata=shared),
        said("user", f"> ANSWER begin with the tide\n> tables\n\nown {MINE}"),
    )
    group = chain(said("user", f"foreign {MINE}"), id_="g") | {"is_group_chat": True}
    [record], report = read("chatgpt", export(tmp_path, talk_, group))
    assert record.output == f"own {MINE}"
    assert report.skipped == {
        "it holds your custom instructions": 2,
        "it is of a conversation that somebody shared": 1,
        "a quote in a message is left out": 1,
        "several people write in it, and it is not clear who wrote what": 1,
    }


def test_one_conversation_alone_and_files_of_any_name(tmp_path: Path) -> None:
    """Exporters in the browser write an object a file, as pionxzh/chatgpt-exporter does."""
    alone = tmp_path / "ChatGPT-slugs.json"
    alone.write_text(json.dumps(chain(said("user", MINE), id_="a")))
    assert detect(alone) == "chatgpt"
    assert [r.id for r in read("chatgpt", alone)[0]] == ["a-0"]
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "settings.json").write_text('{"theme": "dark"}')
    (folder / "Zucchini.json").write_text(json.dumps(chain(said("user", f"{MINE} z"), id_="z")))
    (folder / "broken.json").write_text('{"mapping": {')
    (folder / "Beans.json").write_text(
        json.dumps({"conversations": [chain(said("user", f"{MINE} b"), id_="b")]})
    )
    assert detect(folder) == "chatgpt"
    records, report = read("chatgpt", folder)
    assert [r.id for r in records] == ["b-0", "z-0"]
    assert report.skipped["the file does not hold a list of conversations"] == 1
    assert any("cut off" in reason for reason in report.skipped)
    export(folder, chain(said("user", MINE), id_="n"), name="conversations (1).json")
    assert [r.id for r in read("chatgpt", folder)[0]] == ["n-0"], "the export's own name first"
    single = tmp_path / "claude_conversation.json"
    single.write_text(json.dumps(talk(turn("human", MINE))))
    assert detect(single) == "claude" and len(read("claude", single)[0]) == 1


def test_the_error_names_every_reason(tmp_path: Path) -> None:
    thinking = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": THEIRS}]
    path = export(
        tmp_path, talk(turn("human", "How are you?"), turn("assistant", "x", content=thinking))
    )
    with pytest.raises(DataError, match=r"none of 2 .*1 because it has fewer than 8 words of you"):
        read("claude", path)


def test_claude_voice_and_attachments(tmp_path: Path) -> None:
    path = export(
        tmp_path,
        talk(
            turn("human", "", uuid="v", content=[{"type": "voice_note", "transcript": MINE}]),
            turn("human", f"read this, {MINE}", uuid="w",
                 attachments=[{"file_name": "paste.txt", "extracted_content": "FOREIGN"}]),
            turn("human", MINE + " so", uuid="x", content=[{"type": "image"}]),
        ),
    )  # fmt: skip
    records, report = read("claude", path)
    assert [r.output for r in records] == [MINE, f"read this, {MINE}", f"{MINE} so"]
    assert report.skipped["an attachment of a message is not read"] == 1


@pytest.mark.parametrize("name", ["chatgpt", "claude"])
def test_unusable_exports_give_one_clear_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "conversations.json"
    for text in ("", "{}", "[", "[]", "[{]", "5", "[1]", "\0", "\xff\xfe", '{"a": [1]}', "[{}] x"):
        path.write_text(text)
        with pytest.raises(PfiError) as caught:
            read(name, path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="no conversations"):
        read(name, tmp_path)


def test_what_comes_before_a_cut_is_kept(tmp_path: Path) -> None:
    talks = [chain(said("user", f"{MINE} {n}"), id_=f"c{n}") for n in range(9)]
    path = export(tmp_path, *talks)
    path.write_text(path.read_text()[:-200])
    records, report = read("chatgpt", path)
    assert [record.id for record in records] == [f"c{n}-0" for n in range(8)]
    assert any("entry 9 is cut off" in reason for reason in report.skipped)


class Slow(io.BytesIO):
    """A file that gives one byte at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
                | st.booleans() | st.lists(st.integers()), max_size=5))  # fmt: skip
def test_values_are_read_whole_wherever_a_piece_ends(values: list[Any]) -> None:
    tree_ = JsonTree(Path("x"), lambda spot: spot in ((), ("a",)))
    found = list(tree_.values(Slow(json.dumps({"a": values, "b": values}).encode())))
    assert [value for spot, value in found if spot == ("a", "*")] == values
    assert [value for spot, value in found if spot == ("b",)] == [values]
    assert [spot for spot, value in found if value is OPENED] == [(), ("a",)]


def test_large_exports_take_little_memory(tmp_path: Path) -> None:
    path = export(
        tmp_path, *(chain(*[said("user", f"{MINE} " * 9)] * 20, id_=f"c{n}") for n in range(120))
    )
    connector = get_connector("chatgpt")
    tracemalloc.start()
    count = sum(1 for _ in connector.read(path, connector.configure({}), ImportReport()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2_400 and peak < 600_000 < path.stat().st_size


# Claude ---------------------------------------------------------------------------------


def turn(sender: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"{sender}-{text[:12]}", "sender": sender, "text": text,
        "content": [{"type": "text", "text": text}], "created_at": "2023-01-25T09:05:07.5Z",
        "attachments": [], "files": [], **more,
    }  # fmt: skip


def talk(*messages: Any, id_: str = "t", **more: Any) -> dict[str, Any]:
    return {
        "uuid": id_, "name": "T", "created_at": "2023-01-25T09:00:00Z",
        "chat_messages": list(messages), **more,
    }  # fmt: skip


def test_claude_sides(tmp_path: Path) -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": THEIRS},
        {"type": "tool_use", "name": "x", "input": {}},
        {"type": "text", "text": "so"},
    ]
    path = export(
        tmp_path,
        talk(turn("human", MINE), turn("assistant", "x", content=blocks), turn("human", "more")),
    )
    [mine], report = read("claude", path)
    assert (mine.id, mine.task, mine.output) == ("human-please tell ", "continuation", MINE)
    assert mine.time == datetime(2023, 1, 25, 9, 5, 7, 500_000, UTC)
    assert report.skipped["a part of an answer is not text"] == 2
    [answer], _ = read("claude", path, {"side": "answers"})
    assert (answer.input["instruction"], answer.output) == (MINE, f"{THEIRS}\nso")
    assert detect(path) == "claude"


def test_claude_follows_the_last_branch(tmp_path: Path) -> None:
    messages = [
        turn("human", f"one {MINE}", uuid="1", parent_message_uuid="0"),
        turn("assistant", "ANSWER dropped", uuid="2", parent_message_uuid="1"),
        turn("human", f"two {MINE}", uuid="3", parent_message_uuid="2"),
        turn("assistant", "ANSWER kept", uuid="4", parent_message_uuid="1"),
    ]
    [answer], _ = read("claude", export(tmp_path, talk(*messages)), {"side": "answers"})
    assert answer.output == "ANSWER kept"
    path = export(tmp_path, talk(*messages, current_leaf_message_uuid="3"))
    assert [r.id for r in read("claude", path)[0]] == ["1", "3"]


def test_claude_skips_and_counts(tmp_path: Path) -> None:
    odd: list[Any] = [
        5, {}, turn("system", MINE), turn("human", " "), turn("human", "x", content=[5], uuid="q"),
        turn("human", MINE, content=[], uuid="old", attachments=[{"extracted_content": "THEIRS"}]),
        turn("human", MINE, content=[], uuid="old"), turn("human", MINE, created_at=5, uuid=None),
    ]  # fmt: skip
    path = export(
        tmp_path, talk(*odd), talk(turn("human", MINE), id_="u", current_leaf_message_uuid=[]), 7
    )
    records, report = read("claude", path)
    assert [(record.id, record.output) for record in records] == [
        ("old", MINE), ("t-8", MINE), ("human-please tell ", MINE),
    ]  # fmt: skip
    assert records[1].time is not None and records[1].time.year in (1970, 2023)
    assert report.skipped == {
        "it is not a message of you or the assistant": 3,
        "it is empty": 1,
        "it has fewer than 8 words of yours": 1,
        "a part of a message is not text": 1,
        "an attachment of a message is not read": 1,
        "it repeats a message": 1,
        "it is not a conversation": 1,
    }


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(
        ["user", "human", "assistant", "text", "a", "b", MINE, THEIRS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["mapping", "current_node", "message", "author", "role", "content", "parts",
                         "content_type", "parent", "chat_messages", "sender", "text", "uuid", "a",
                         "b", "type", "create_time", "created_at", "parent_message_uuid"]),
        inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(JSONS, max_size=3), st.sampled_from(["chatgpt", "claude"]))
def test_any_json_gives_records_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, value: list[Any], name: str
) -> None:
    path = export(tmp_path_factory.mktemp("x"), *value)
    try:
        records, _ = read(name, path)
    except PfiError as error:
        assert "\n" not in str(error)
    else:
        assert records


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.sampled_from(["chatgpt", "claude"]))
def test_only_ones_own_words_are_outputs(
    tmp_path_factory: pytest.TempPathFactory, sides: list[bool], name: str
) -> None:
    if name == "chatgpt":
        value = chain(
            *(said("user", MINE) if mine else said("assistant", THEIRS * 3) for mine in sides)
        )
    else:
        value = talk(
            *(
                turn("human", MINE, uuid=str(n))
                if mine
                else turn("assistant", THEIRS * 3, uuid=str(n))
                for n, mine in enumerate(sides)
            )
        )
    path = export(tmp_path_factory.mktemp("x"), value)
    try:
        records, _ = read(name, path)
    except DataError:
        assert not any(sides)
    else:
        assert [record.output for record in records] == [MINE] * sum(sides)
