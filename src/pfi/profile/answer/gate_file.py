"""What the gate of one device chose, by task: the file `gate.json` of its home."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pfi._util.files import write_json
from pfi.errors import StorageError
from pfi.gate.choices import Choice, GateConfig
from pfi.profile.home import Home


class Fitted(BaseModel):
    """What the gate chose for a task, and what that rests on.

    Attributes:
        task: the name of the task.
        choice: what answers use.
        sure: confidence from which on the shared adapter's answer stands, where the choice
            says so.
        gain: the choice's gain over the shared adapter alone, less caution; 0 for nothing.
            In probability of the right label, in steps of a scale, or in the main metric.
        tried: how many of the user's records it was tried on.
        users: how many other users the prior rests on; 0: the built-in one.
        backbone, personal, shared: what it was fitted with.
        settings: of the gate.
        date: when, in UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    choice: Choice
    sure: float
    gain: float
    tried: int = Field(ge=0)
    users: int = Field(ge=0)
    backbone: str
    personal: str | None
    shared: str | None
    settings: GateConfig
    date: datetime

    def counts(self, home: Home, personal: str | None, shared: str | None) -> bool:
        """Whether it was fitted with what is in use now."""
        now = (home.config.backbone, personal, shared)
        return (self.backbone, self.personal, self.shared) == now

    @property
    def made_with(self) -> str:
        """What it was fitted with, in words."""
        return (
            f"personal adapter {self.personal or 'none'} and shared adapter "
            f"{self.shared or 'none'} over {self.backbone}"
        )


_FILE = TypeAdapter(dict[str, Fitted])


def describe(choice: Choice) -> str:
    """A choice in words."""
    parts = []
    if choice.by_likeness:
        parts.append(f"personal adapter by likeness, at most at weight {choice.weight:g}")
    elif choice.weight:
        parts.append(f"personal adapter at weight {choice.weight:g}")
    if choice.k:
        parts.append(f"{choice.k} record{'s' if choice.k > 1 else ''}")
    if not parts:
        return "neither personal adapter nor records"
    return ", ".join(parts) + (", where unsure" if choice.if_unsure else "")


def read_gate(home: Home) -> dict[str, Fitted]:
    """What was chosen, by the name of the task.

    Raises:
        StorageError: the file is damaged.
    """
    try:
        return _FILE.validate_json(home.gate_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        fix = "forget it with `pfi gate off`, then run `pfi gate fit`"
        raise StorageError("the file is damaged", where=str(home.gate_file), fix=fix) from error


def gate_status(home: Home) -> list[tuple[Fitted, bool]]:
    """What was chosen, by the name of the task, and whether it counts.

    Raises:
        StorageError: the file, or the manifest of an adapter in use, is damaged.
    """
    found = []
    for name, fitted in sorted(read_gate(home).items()):
        personal, shared = (
            store.active(name) for store in (home.personal_adapters, home.shared_adapters)
        )
        if personal is not None:
            shared = home.personal_adapters.manifest(personal).shared
        found.append((fitted, fitted.counts(home, personal, shared)))
    return found


def forget(home: Home, task: str | None = None) -> list[str]:
    """Forget what was chosen for a task, or for all; the names of those that were known.

    Raises:
        StorageError: the file is damaged, and only a task's part is to be forgotten.
    """
    if task is not None:
        found = read_gate(home)
        if found.pop(task, None) is None:
            return []
        write_gate(home, found)
        return [task]
    try:
        known = sorted(read_gate(home))
    except StorageError:
        known = []
    home.gate_file.unlink(missing_ok=True)
    return known


def write_gate(home: Home, fitted: Mapping[str, Fitted]) -> None:
    """Keep what was chosen, by the name of the task."""
    write_json(home.gate_file, _FILE.dump_python(dict(fitted), mode="json"))
