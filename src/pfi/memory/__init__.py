"""Local retrieval over a user's own records."""

from pfi.memory.index import Memory
from pfi.memory.prompts import Retrieval

__all__ = ["Memory", "Retrieval"]
