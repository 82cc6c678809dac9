"""The gate: how much of the personal adapter and of memory an answer uses."""
