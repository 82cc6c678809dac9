"""Training adapters: settings, jobs, and the engines that do it."""

from pfi.learn.engines import TRAINERS, get_trainer
from pfi.learn.training import Job, TrainConfig, Trainer, TrainResult, train_one
from pfi.models.adapters import Adapter, AdapterConfig

__all__ = [
    "TRAINERS",
    "Adapter",
    "AdapterConfig",
    "Job",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "get_trainer",
    "train_one",
]
