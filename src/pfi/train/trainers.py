"""The engines that train adapters, by name."""

from __future__ import annotations

from collections.abc import Callable

from pfi.errors import ConfigError
from pfi.train.job import Trainer
from pfi.train.loop import BankTrainer
from pfi.train.peft_reference import PeftTrainer

TRAINERS: dict[str, type[Trainer]] = {"bank": BankTrainer, "peft": PeftTrainer}


def get_trainer(name: str = "bank", working_set: int = 16) -> Trainer:
    """The engine of that name.

    Args:
        name: which one.
        working_set: jobs in memory at a time, for the bank.

    Raises:
        ConfigError: there is none.
    """
    if name not in TRAINERS:
        raise ConfigError(f"unknown engine {name!r}", fix=f"use one of {', '.join(TRAINERS)}")
    engine: Callable[..., Trainer] = TRAINERS[name]
    return engine(working_set) if name == "bank" else engine()
