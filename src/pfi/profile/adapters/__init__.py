"""Adapters by version."""
