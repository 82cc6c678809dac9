"""One user's device: vault, adapters by version, and what is asked of and learnt by its model.

Importing this loads no model library; training and asking load it when they start.
"""

from pfi.device.adapters import AdapterInfo, AdapterStore, Manifest
from pfi.device.config import HomeConfig
from pfi.device.home import Home, home_path
from pfi.device.imports import Imported, import_records, parse_options
from pfi.device.runtime import Answer, Prepared, Runtime, ask, pick_task
from pfi.device.training import Trained, train
from pfi.device.vault import TaskSummary, Vault

__all__ = [
    "AdapterInfo",
    "AdapterStore",
    "Answer",
    "Home",
    "HomeConfig",
    "Imported",
    "Manifest",
    "Prepared",
    "Runtime",
    "TaskSummary",
    "Trained",
    "Vault",
    "ask",
    "home_path",
    "import_records",
    "parse_options",
    "pick_task",
    "train",
]
