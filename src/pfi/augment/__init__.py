"""Augmentation: a teacher writes synthetic records from a user's few real ones (CDCDA-PLM)."""
