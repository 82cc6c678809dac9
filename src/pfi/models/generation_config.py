"""What a model's own files say of its answers: the tokens that end them, how they are sampled.

Of `generation_config.json` these keys are used and no others: not its lengths, its beams or what
it forbids, so that a study, a device and both engines decode alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfi.errors import BackboneError
from pfi.models.gguf.header import is_gguf, read_header
from pfi.models.gguf.vocabulary import sampling_settings

FILE = "generation_config.json"
_LARGEST = 1 << 20  # bytes of the file


@dataclass(frozen=True)
class GenerationSettings:
    """Of one model; None where its files say nothing.

    Attributes:
        end_ids: tokens that end an answer.
        sample: whether answers are sampled; greedy where False.
        temperature: divides the logits.
        top_p: probability of the tokens that are sampled from.
        top_k: how many tokens are sampled from.
        min_p: least probability of a token, as a share of the likeliest one's.
        repetition_penalty: divides the logits of tokens that came before.
    """

    end_ids: frozenset[int] = frozenset()
    sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> GenerationSettings:
        """As a file has them.

        Raises:
            BackboneError: a value makes no sense.
        """

        def number(name: str, least: float, most: float = math.inf) -> float | None:
            value = values.get(name)
            if value is None:
                return None
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _wrong(name, value, where)
            if not least <= value <= most or math.isinf(value):
                raise _wrong(name, value, where)
            return float(value)

        top_k = number("top_k", -1)
        temperature = number("temperature", 0)
        penalty = number("repetition_penalty", 0)
        top_p = number("top_p", 0, 1)
        return cls(
            end_ids=frozenset(token_ids(values.get("eos_token_id"), where)),
            sample=bool(values.get("do_sample")) and temperature != 0,
            temperature=temperature or None,
            top_p=top_p or None,
            top_k=int(top_k) if top_k is not None and top_k >= 1 else None,
            min_p=number("min_p", 0, 1) or None,
            repetition_penalty=penalty or None,
        )


#: Of a model whose files say nothing.
NO_SETTINGS = GenerationSettings()


def token_ids(value: Any, where: str) -> list[int]:
    """One id, several, or none, as configurations name them.

    Raises:
        BackboneError: it is something else.
    """
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int):
            raise _wrong("eos_token_id", value, where)
    return [one for one in ids if one >= 0]


def read_generation_settings(
    source: str, where: str, *, local_files_only: bool = False
) -> GenerationSettings | None:
    """Those in a model's folder, its GGUF file or on the hub; None where it has no such file.

    Args:
        source: the folder, GGUF file or hub id.
        where: the backbone's name, for errors.
        local_files_only: ask no hub.

    Raises:
        BackboneError: the file is damaged.
    """
    if is_gguf(source):
        return GenerationSettings.of(sampling_settings(read_header(Path(source))), where)
    from transformers.utils import cached_file

    path = cached_file(
        source,
        FILE,
        local_files_only=local_files_only,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            values = json.loads(file.read(_LARGEST))
    except (ValueError, RecursionError) as error:
        what = f"{FILE} is damaged: {str(error)[:100]}"
        raise BackboneError(what, where=where, fix="copy the model's folder again") from error
    if not isinstance(values, dict):
        raise BackboneError(f"{FILE} is damaged", where=where, fix="copy the model's folder again")
    return GenerationSettings.of(values, where)


def _wrong(name: str, value: Any, where: str) -> BackboneError:
    what = f"{name} in {FILE} is {str(value)[:40]!r}"
    return BackboneError(what, where=where, fix="correct it, or remove the file")
