"""Replies have a size limit: what is beyond it is refused before it is kept or read.

Flower stores the parts of a reply as they come, and the round loop would put them together.  The
limit travels with the question, in its group, so that each asking has its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

LARGEST_REPLY = 64 << 20  # bytes, where the asking does not say
SLACK = 1 << 20  # bytes, beside what is expected
_OVERHEAD = 1 << 16  # bytes that Flower adds to ours: records, ids
_PARTS = 64  # objects of a reply, beside its pieces
_PIECE = 1 << 20  # bytes; Flower's are five times as large
_log = logging.getLogger("flwr.pfi")


def group_of(round: int, largest: int) -> str:
    """The group of a question: its round, and the bytes that a reply may have."""
    return f"{round}/{largest}"


def limit_in(group: str) -> int:
    """The bytes that a reply to a question of this group may have."""
    _, _, text = group.partition("/")
    return int(text) if text.isdigit() else LARGEST_REPLY


class ReplyLimits:
    """Counts what is stored of each reply, in front of Flower's state.

    All replies to one question share its bytes: sending it again, or another beside it, gives no
    more room.  What is over is dropped, and its sender fails in the round.

    Args:
        state: Flower's, in this process; two of its methods are replaced.
    """

    def __init__(self, state: Any) -> None:
        self._state, self._lock = state, threading.Lock()
        self._open, self._store = state.store_message_and_object_tree, state.store_object
        self._questions: dict[str, tuple[str, int]] = {}  # and their limits, by session
        self._bytes: dict[str, int] = {}  # by question
        state.store_message_and_object_tree = self.open
        state.store_object = self.store

    def open(self, message: Message, tree: ObjectTree, session: str) -> tuple[bool, list[str]]:
        """Take what a message says of itself, unless it is a reply of too many parts."""
        question = message.metadata.reply_to_message_id
        if not question:  # the round loop's own
            opened: tuple[bool, list[str]] = self._open(message, tree, session)
            return opened
        limit = self._limit(question)
        parts = sum(1 for _ in iterate_object_tree(tree))
        if limit is None or parts > _PARTS + limit // _PIECE:
            _log.warning("a reply of %d parts was refused", parts)
            return False, []
        with self._lock:
            self._forget()
            self._questions[session] = question, limit
        opened = self._open(message, tree, session)
        return opened

    def store(self, run: int, session: str, part: str, content: bytes) -> bool:
        """Store a part of a message, unless its reply would be too large."""
        with self._lock:
            # Flower forgets a question with the first sign of its reply, so it is not looked up.
            question, limit = self._questions.get(session, ("", 0))
            if question:
                self._bytes[question] = self._bytes.get(question, 0) + len(content)
                if self._bytes[question] > limit + _OVERHEAD:
                    _log.warning("a reply of more than %d bytes was refused", limit)
                    self._state._cleanup_push_session(session, cleanup_messages=True)
                    return False
        stored: bool = bool(session) and self._store(run, session, part, content)
        return stored

    def _limit(self, question: str) -> int | None:
        """Of the replies to a question; None if there is no such question."""
        asked: Mapping[str, Message] = self._state.message_ins_store
        message = asked.get(question)
        return None if message is None else limit_in(message.metadata.group_id)

    def _forget(self) -> None:
        """Drop what is known of sessions and questions that are over."""
        going = self._state._object_push_sessions
        for session in [session for session in self._questions if session not in going]:
            del self._questions[session]
        used = {question for question, _ in self._questions.values()}
        asked = self._state.message_ins_store
        for question in [q for q in self._bytes if q not in asked and q not in used]:
            del self._bytes[question]
