"""Settings: read from `key=value` texts, checked by pydantic, with errors in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pfi.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)


def nested_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` texts as settings within settings; values are read as YAML.

    Raises:
        ConfigError: a text has no `=`, its value is no YAML, or a key is a section and a value.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        *sections, last = key.strip().replace("-", "_").split(".")
        if not equals or not last:
            raise ConfigError(
                f"{pair!r} is not key=value", fix="write for example --set retrieve=4"
            )
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{section} is given as a value and as a section", where=pair)
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{pair} is not well-formed: {one_line(error)}") from error
    return settings


def checked(
    model: type[Settings], values: Mapping[str, Any], where: str, fix: str | None = None
) -> Settings:
    """Settings as ``model``, which has the defaults.

    Raises:
        ConfigError: one of them makes no sense; ``where`` says whose they are.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error), where=where, fix=fix) from error


def one_line(error: yaml.YAMLError | ValidationError) -> str:
    """What a YAML or pydantic error says, without its line breaks and links."""
    if isinstance(error, ValidationError):
        parts = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return "; ".join(part.removeprefix(": ") for part in parts)
    return " ".join(str(error).split())
