"""How a profile fills prompts with records: for questions, trials of the gate and training."""

from __future__ import annotations

from pfi.memory.prompts import Retrieval
from pfi.models.prompter import Prompter
from pfi.profile.config import HomeConfig


def retrieval_of(config: HomeConfig, prompter: Prompter) -> Retrieval:
    """How prompts are filled, as the settings of a profile say."""
    return Retrieval(config.retrieve, config.record_tokens, prompter)
