"""What a server and its devices have to agree on: settings of the clients' work, and the backbone.

A digest of each is in every message, so that a device refuses work that it would do otherwise than
the server thinks; before the first round both sides tell the other all of it, so that what differs
is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pfi.errors import FederationError
from pfi.federate.config import FederateConfig
from pfi.federate.message import Message, Value

KIND = "agree"
SETTINGS, BACKBONE, TASK = "settings", "backbone", "task"
#: Settings of the server alone, which clients never look at.  A new setting is the clients' until
#: it is listed here: refused for nothing is better than mistaken for nothing.
SERVERS = {
    "rounds", "cohort", "sampling", "spare", "least", "seconds", "evaluate_every", "held_out",
    "server", "simulate", "robust", "accept",
}  # fmt: skip
_PRIVACYS = {"budget", "smallest_fleet", "most_noise"}
_DIGITS = 32  # of a digest: 128 bits tell honest sides apart
_LONGEST = 1 << 16  # characters of settings
_NAMED = 3
_FIX = "give the server and `pfi federate keys add` the same file, and the device its invitation"


def client_settings(config: FederateConfig) -> dict[str, Any]:
    """What of a federation's settings decides on the clients' work; defaults are left out, so that
    versions with more settings agree as long as nobody uses those."""
    settings = config.model_dump(mode="json", exclude=SERVERS, exclude_defaults=True)
    privacy = settings.pop("privacy", {})
    kept = {name: value for name, value in privacy.items() if name not in _PRIVACYS}
    return {**settings, "privacy": kept} if kept else settings


def terms(config: FederateConfig, backbone: str) -> dict[str, Value]:
    """What is in every message: a digest of the settings, and one of the backbone.

    Args:
        config: of the federation.
        backbone: its fingerprint; empty where there is none, as in tests without a model.
    """
    settings = hashlib.sha256(_text(client_settings(config)).encode()).hexdigest()
    return {SETTINGS: settings[:_DIGITS], BACKBONE: backbone[:_DIGITS]}


def check_terms(
    own: Mapping[str, Value], stated: Mapping[str, Value], *, needed: bool = False
) -> None:
    """See that the server's message is of the same settings and backbone.

    Args:
        own: the client's terms.
        stated: the values of the message.
        needed: refuse a message that does not say.

    Raises:
        FederationError: it is not.
    """
    for name, what in ((SETTINGS, "runs other settings"), (BACKBONE, "has another backbone")):
        if name not in stated and not needed:
            continue
        if own[name] != stated.get(name):
            raise FederationError(f"the server {what} than this client", fix=_FIX)


def statement(config: FederateConfig, backbone: str, task: str = "") -> Message:
    """All that a side has to agree on, as it is told before the first round."""
    values: dict[str, Value] = {
        "kind": KIND,
        SETTINGS: _text(client_settings(config)),
        BACKBONE: backbone,
    }
    return Message(values={**values, TASK: task} if task else values)


def disagreement(config: FederateConfig, backbone: str, stated: Message) -> str:
    """In what the other side's statement differs from one's own; empty if in nothing.

    Raises:
        FederationError: it is malformed.
    """
    values = stated.values
    try:
        text, fingerprint = values[SETTINGS], values[BACKBONE]
        if not isinstance(text, str) or len(text) > _LONGEST or not isinstance(fingerprint, str):
            raise ValueError("a value of another type or size")
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("its settings are no object")
    except (LookupError, ValueError, RecursionError) as error:
        raise FederationError(f"a statement of settings is malformed: {error}") from error
    mine, theirs = _flat(client_settings(config)), _flat(settings)
    unlike = [name for name in sorted({**mine, **theirs}) if mine.get(name) != theirs.get(name)]
    parts = [
        f"{name} is {theirs.get(name, 'the default')!r:.60}, not {mine.get(name, 'the default')!r}"
        for name in unlike[:_NAMED]
    ]
    if len(unlike) > _NAMED:
        parts.append(f"{len(unlike) - _NAMED} more settings differ")
    if fingerprint != backbone:
        parts.append("its backbone has other weights or another tokenizer")
    return "; ".join(parts)


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat
