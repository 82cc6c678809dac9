"""The encrypted store of records and feedback, and what fills it."""
