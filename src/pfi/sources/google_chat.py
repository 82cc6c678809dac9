"""Google Chat as Takeout exports it: a `messages.json` a chat, as this person's chat replies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pfi.errors import DataError
from pfi.readers.dates import DateStyle, date_of
from pfi.readers.exports import Member
from pfi.readers.json_tree import JsonTree
from pfi.readers.report import ImportReport
from pfi.readers.takeout import small_json
from pfi.readers.values import Unusable
from pfi.records import Record
from pfi.sources.chats import ChatOptions, Message, own_keys, replies

_ENTERED = frozenset(((), ("messages",)))


def chat_replies(
    messages: Member,
    group: Member | None,
    me: Collection[str],
    options: ChatOptions,
    report: ImportReport,
    source: str,
) -> Iterator[Record]:
    """The records of one chat.

    Args:
        messages: `messages.json`.
        group: `group_info.json`, which names the members; it may be missing.
        me: addresses of this person; where none is known `options.me` says who it is.
        options: see `ChatOptions`.
        report: told what is left out.
        source: where the records come from.

    Raises:
        ConfigError: it is not clear who this person is.
    """
    name = _name(group) or messages.name.split("/")[-2] if "/" in messages.name else "chat"
    counts: Counter[str] = Counter()
    shown = dict(_members(group))
    style = DateStyle()
    for value in _values(messages, None):
        if (creator := _creator(value)) is not None:
            counts[creator[0]] += 1
            shown.setdefault(*creator)
            style.learn(str(value.get("created_date", "")))
    own = frozenset(address for address in me if address in shown)
    if not counts:
        report.skip("nobody wrote in this chat", name)
        return
    if not own:
        ordered = {key: shown[key] for key, _ in counts.most_common()}
        own = own_keys(options.me, ordered, None, str(messages.place))
    others = {key: shown[key] for key, _ in counts.most_common() if key not in own}
    report.identify([shown[key] for key in own], {shown[key]: n for key, n in counts.items()})
    yield from replies(
        _messages(messages, style, report, name), own, others, options, report, source,
        lambda message: f"{name}, {message.time:%Y-%m-%d %H:%M}",
    )  # fmt: skip


def _messages(
    member: Member, style: DateStyle, report: ImportReport, name: str
) -> Iterator[Message]:
    for number, value in enumerate(_values(member, report), 1):
        try:
            yield _message(value, style)
        except Unusable as problem:
            report.skip(problem.reason, f"{name}, message {number}")


def _message(value: Any, style: DateStyle) -> Message:
    """A message; one without words has no text.

    Raises:
        Unusable: it has no author or no time.
    """
    creator = _creator(value)
    if creator is None:
        raise Unusable("a bot wrote it, or it has no author")
    time = date_of(value.get("created_date"), style)
    if time is None:
        raise Unusable("it has no time")
    text = value.get("text")
    text = text if isinstance(text, str) and value.get("message_state") != "DELETED" else ""
    id_ = value.get("message_id")
    if not isinstance(id_, str) or not id_.strip():
        id_ = hashlib.sha256(f"{creator[0]}\n{time}\n{text}".encode()).hexdigest()[:16]
    return Message(f"google-chat-{id_}", creator[0], text, time)


def _creator(value: Any) -> tuple[str, str] | None:
    """Key and name of who wrote a message; None if it was no person."""
    creator = value.get("creator") if isinstance(value, dict) else None
    if not isinstance(creator, dict) or creator.get("user_type", "Human") != "Human":
        return None
    return _person(creator)


def _person(user: Mapping[str, Any]) -> tuple[str, str] | None:
    address, name = user.get("email"), user.get("name")
    keys = [text.strip() for text in (address, name) if isinstance(text, str) and text.strip()]
    return (keys[0].lower(), keys[-1]) if keys else None


def _values(member: Member, report: ImportReport | None) -> Iterator[Any]:
    """The messages of a file, as far as it can be read."""
    try:
        with member.open() as stream:
            for spot, value in JsonTree(member.place, _ENTERED.__contains__).values(stream):
                if spot == ("messages", "*"):
                    yield value
    except DataError as error:
        if report is not None:
            report.skip(f"the file ends there: {error.what}", member.name)


def _name(group: Member | None) -> str:
    info = small_json(group) if group else None
    name = info.get("name") if isinstance(info, dict) else None
    return name.strip() if isinstance(name, str) else ""


def _members(group: Member | None) -> Iterator[tuple[str, str]]:
    info = small_json(group) if group else None
    people = info.get("members") if isinstance(info, dict) else None
    for user in people if isinstance(people, list) else []:
        if isinstance(user, dict) and (person := _person(user)) is not None:
            yield person
