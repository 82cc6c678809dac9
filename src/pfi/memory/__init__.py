"""Local retrieval over a user's own records."""
