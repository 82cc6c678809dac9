"""Filters: which drafts become synthetic records, and what they measure with."""
