"""Backbones: loading, scoring, generation, engines, and the embedded base model.

The names below are imported when they are first used: some modules here need no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfi.models.answering import answer
    from pfi.models.backbone import EMBEDDED, Backbone, load_backbone
    from pfi.models.bank import AdapterBank
    from pfi.models.generation import generate, stream
    from pfi.models.scoring import score_labels

__all__ = [
    "EMBEDDED",
    "AdapterBank",
    "Backbone",
    "answer",
    "generate",
    "load_backbone",
    "score_labels",
    "stream",
]
_MODULES = {
    "EMBEDDED": "backbone",
    "AdapterBank": "bank",
    "Backbone": "backbone",
    "answer": "answering",
    "generate": "generation",
    "load_backbone": "backbone",
    "score_labels": "scoring",
    "stream": "generation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
