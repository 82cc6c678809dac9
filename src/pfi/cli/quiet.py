"""Libraries' warnings kept from people: they can do nothing about them.

With ``PFI_DEBUG=1`` in the environment all of them appear.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

DEBUG = "PFI_DEBUG"
# These bring handlers or levels of their own, and read the level when they are imported.
_VERBOSITY = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",  # of the processes that this one starts
}
_LOGGERS = (
    *("transformers", "huggingface_hub", "torch", "peft", "accelerate", "safetensors"),
    *("tokenizers", "filelock", "httpx", "openai", "sentence_transformers", "gguf", "py.warnings"),
)


def quieten() -> None:
    """Show no warnings of libraries in this process and in those that it starts.

    What a command logs itself, such as ``pfi serve``, still appears, and so do errors.
    """
    if os.environ.get(DEBUG, "").lower() not in ("", "0", "false", "no"):
        return
    for name, value in _VERBOSITY.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    warnings.showwarning = _drop  # libraries set filters of their own
    if logging.lastResort is not None:  # what prints where no handler is set
        logging.lastResort.addFilter(_worth_showing)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def _worth_showing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] == "pfi"


def _drop(*_: Any, **__: Any) -> None:
    pass
