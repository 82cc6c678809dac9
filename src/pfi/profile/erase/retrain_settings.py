"""How personal adapters are to be trained anew after an erasure, as the vault notes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfi.profile.adapters.files import Manifest
from pfi.profile.vault.vault import Vault
from pfi.train.config import TrainConfig

#: The vault's setting that says by erasure and task how to train.
SETTING = "retrain"


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """How a version was trained, as far as it can be done again.

    A version of a refresh rests on others; it is trained like one that learnt all at once.
    """
    told = manifest.config
    held_back = len(manifest.held_back)
    return {
        "settings": {k: told[k] for k in TrainConfig.model_fields if k in told},
        "mix": told.get("mix", {}),
        "real_only": not told.get("synthetic"),
        "holdout": held_back / (held_back + manifest.records) if manifest.records else 0.0,
        "seed": told.get("seed", 0),
    }


def note_retraining(vault: Vault, name: str, tasks: Mapping[str, dict[str, Any]]) -> None:
    """Note what is to be trained after the erasure of a name."""
    with vault.change_setting(SETTING) as setting:
        setting.value = {**(setting.value or {}), name: dict(tasks)}
