"""User-level differential privacy in the round, and its accounting."""
