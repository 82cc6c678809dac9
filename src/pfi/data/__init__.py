"""Records, histories and the connectors that read them."""

from pfi.data.records import History, Question, Record, User, parse_time

__all__ = ["History", "Question", "Record", "User", "parse_time"]
