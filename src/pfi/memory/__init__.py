"""Local retrieval over a user's own records."""

from pfi.memory.config import SearchConfig
from pfi.memory.index import Memory
from pfi.memory.prompts import Retrieval
from pfi.memory.store import MemoryStore, Synced
from pfi.memory.vectors import VectorCache

__all__ = ["Memory", "MemoryStore", "Retrieval", "SearchConfig", "Synced", "VectorCache"]
