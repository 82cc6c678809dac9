"""Erasing for good, with a signed statement."""
