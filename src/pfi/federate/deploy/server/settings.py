"""What a server does with its fleet, as the ServerApp reads it from a file of the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi._util.files import write_atomic
from pfi.errors import ConfigError

FILE = "deploy.json"


class DeployConfig(BaseModel):
    """A deployed federation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    work: Literal["train", "check"] = Field(
        "train", description="train: the rounds; check: messages there and back, no model"
    )
    names: list[str] = Field([], description="clients that may be asked; those connected if none")
    clients: int = Field(2, ge=1, description="that have to be connected before the first round")
    wait: float = Field(300.0, gt=0, description="seconds in which they have to connect")
    seconds: float | None = Field(
        None, gt=0, description="of a check: how long a reply is waited for; none: as is usual"
    )
    rounds: int = Field(1, ge=1, description="of a check")
    size: int = Field(100_000, ge=1, description="values in a message of a check")
    federation: dict[str, Any] = Field({}, description="settings of the federation that trains")
    keys: str = Field("", description="the operator's folder")
    resume: bool = Field(False, description="go on from the run folder's last checkpoint")
    backbone: str = Field("embedded", description="name or folder of the model that is trained")

    def save(self, folder: Path) -> Path:
        """Write it to the run folder; gives the file."""
        write_atomic(folder / FILE, self.model_dump_json(indent=2) + "\n")
        return folder / FILE

    @classmethod
    def read(cls, path: Path) -> DeployConfig:
        """Read what `save` wrote.

        Raises:
            ConfigError: it is missing or makes no sense.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{path}, {'.'.join(map(str, first['loc']))}"
            raise ConfigError(first["msg"], where=where) from error
