"""Budgets: what calls may cost, the most that one can cost, and about what it will.

Money is counted in whole picodollars, so that a sum does not depend on the order of its terms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pfi.augment.config import AugmentConfig
from pfi.augment.teachers.teacher import Call, Teacher, Usage
from pfi.errors import ConfigError

PICODOLLARS = 10**12  # in a dollar
_OVERHEAD_CALL = 64  # tokens around a conversation, e.g. a chat template's own system message
_OVERHEAD_MESSAGE = 16  # tokens around a message: role and delimiters
_OVERHEAD_FORM = 256  # tokens around a schema
_BYTES_A_TOKEN = 4  # about, of English text


def pico(usd: float) -> int:
    """US dollars as whole picodollars."""
    return round(usd * PICODOLLARS)


def exact(usage: Usage) -> Usage:
    """The usage in whole picodollars, so that float errors do not add up."""
    return replace(usage, usd=pico(usage.usd) / PICODOLLARS)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that all calls over one store may cost together; None is without a limit."""

    tokens: int | None = None
    usd: float | None = None

    @classmethod
    def of(cls, config: AugmentConfig) -> Budget:
        """The budget of a configuration.

        Raises:
            ConfigError: US dollars are limited and the teacher's prices are not known.
        """
        teacher = config.teacher
        prices = (teacher.usd_per_million_prompt, teacher.usd_per_million_completion)
        if config.budget_usd is not None and None in prices:
            raise ConfigError(
                "a budget in US dollars needs the teacher's prices",
                where="budget_usd",
                fix="set usd_per_million_prompt and usd_per_million_completion of the teacher, "
                "or limit tokens instead (budget_tokens)",
            )
        return cls(config.budget_tokens, config.budget_usd)

    @property
    def limited(self) -> bool:
        return self.tokens is not None or self.usd is not None

    def holds(self, tokens: int, picodollars: int) -> bool:
        """Whether that much stays within the budget."""
        if self.tokens is not None and tokens > self.tokens:
            return False
        return self.usd is None or picodollars <= pico(self.usd)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What calls would cost, before any is made.

    Attributes:
        calls: how many there are.
        cached: those of them that cost nothing: answered before, or equal to another one.
        prompt_tokens: about what the others send.
        completion_tokens: the most that the others receive.
        usd: their price in US dollars; None where the prices are not known.
    """

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


def most(call: Call, teacher: Teacher) -> Usage:
    """The most that a call can cost.

    A tokenizer that falls back to bytes never makes more tokens than there are bytes.  A schema
    counts twice: teachers put it into a message as well, for servers that pass over it.
    """
    prompt = _OVERHEAD_CALL + _OVERHEAD_MESSAGE * len(call.messages) + _bytes(call)
    if call.form is not None:
        prompt += _OVERHEAD_FORM + _schema_bytes(call)
    return teacher.price(Usage(prompt, call.max_tokens))


def estimate(
    calls: int, unanswered: Sequence[Call], teacher: Teacher, config: AugmentConfig
) -> Estimate:
    """About what calls will cost, of which the `unanswered` ones have to be made."""
    prompt = sum(-(-_bytes(call) // _BYTES_A_TOKEN) for call in unanswered)
    completion = sum(call.max_tokens for call in unanswered)
    prices = (config.teacher.usd_per_million_prompt, config.teacher.usd_per_million_completion)
    known = teacher.host is None or None not in prices
    usd = teacher.price(Usage(prompt, completion)).usd if known else None
    return Estimate(calls, calls - len(unanswered), prompt, completion, usd)


def _bytes(call: Call) -> int:
    messages = sum(_length(message.content) for message in call.messages)
    return messages + (0 if call.form is None else _schema_bytes(call))


def _schema_bytes(call: Call) -> int:
    return _length(json.dumps(call.schema, ensure_ascii=False))


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
