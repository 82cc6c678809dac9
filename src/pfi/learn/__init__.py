"""Training adapters: settings, jobs, and the engines that do it."""

from pfi.learn.engines import TRAINERS, get_trainer
from pfi.learn.objectives import DPO, CrossEntropy, Objective, Preference, dpo_loss, ipo_loss
from pfi.learn.preferences import PreferenceConfig, answer_log_probs, train_preferences
from pfi.learn.training import Job, TrainConfig, Trainer, TrainResult, train_one
from pfi.models.adapters import Adapter, AdapterConfig

__all__ = [
    "DPO",
    "TRAINERS",
    "Adapter",
    "AdapterConfig",
    "CrossEntropy",
    "Job",
    "Objective",
    "Preference",
    "PreferenceConfig",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "answer_log_probs",
    "dpo_loss",
    "get_trainer",
    "ipo_loss",
    "train_one",
    "train_preferences",
]
