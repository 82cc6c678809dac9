"""Backbones: loading, scoring, generation, and the embedded base model."""

from pfi.models.answering import answer, generate, score_labels, stream
from pfi.models.backbone import EMBEDDED, Backbone, load_backbone

__all__ = [
    "EMBEDDED",
    "Backbone",
    "answer",
    "generate",
    "load_backbone",
    "score_labels",
    "stream",
]
