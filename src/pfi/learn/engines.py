"""The engines that train adapters, by name."""

from __future__ import annotations

from collections.abc import Callable

from pfi.errors import ConfigError
from pfi.learn.bank_trainer import BankTrainer
from pfi.learn.peft_trainer import PeftTrainer
from pfi.learn.training import Trainer

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
