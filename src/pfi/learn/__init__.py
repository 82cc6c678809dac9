"""Training adapters: configuration, loops, and the adapters they give."""

from pfi.learn.adapters import Adapter, AdapterConfig
from pfi.learn.training import TRAINERS, PeftTrainer, TrainConfig, Trainer, TrainResult, get_trainer

__all__ = [
    "TRAINERS",
    "Adapter",
    "AdapterConfig",
    "PeftTrainer",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "get_trainer",
]
