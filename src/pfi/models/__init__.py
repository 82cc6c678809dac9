"""Backbones: loading, scoring, generation, and the embedded base model."""

from pfi.models.answering import answer, choose
from pfi.models.backbone import EMBEDDED, Backbone, load_backbone
from pfi.models.bank import AdapterBank
from pfi.models.generation import generate, stream
from pfi.models.scoring import score_labels

__all__ = [
    "EMBEDDED",
    "AdapterBank",
    "Backbone",
    "answer",
    "choose",
    "generate",
    "load_backbone",
    "score_labels",
    "stream",
]
