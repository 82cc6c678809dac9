"""An invitation: the one file that a device gets from the operator; it holds no secret.

Whoever can change it can pose as the server, so it goes a way that both trust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi._util.files import write_atomic
from pfi.errors import StorageError
from pfi.federate.deploy.keys.keys import CA, OPERATOR, read
from pfi.federate.deploy.keys.nodes import ROSTER, read_nodes
from pfi.federate.secure.roster import Roster

FILE = "invitation.json"


class Invitation(BaseModel):
    """What a device has to know of a federation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    federation: str = Field(description="its name")
    client: str = Field(description="the device's name in it")
    server: str = Field(pattern=r"^.+:[0-9]{1,5}$", description="the server's host and port")
    ca: str = Field(description="the certificate of the CA that vouches for the server, PEM")
    operator: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="the Ed25519 key that signs the roster, in hex"
    )
    task: str | None = Field(None, description="what is learnt; the profile's task if none")
    settings: dict[str, Any] = Field({}, description="how the federation learns")

    def save(self, path: Path) -> None:
        """Write it."""
        write_atomic(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Read what `save` wrote.

        Raises:
            StorageError: it is missing or damaged.
        """
        fix = "ask the operator for it (`pfi federate keys add` makes it)"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise StorageError("there is no invitation", where=str(path), fix=fix) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{path}, {'.'.join(map(str, first['loc']))}".rstrip(", ")
            raise StorageError(first["msg"], where=where, fix=fix) from error

    @classmethod
    def make(
        cls, folder: Path, client: str, settings: dict[str, Any], task: str | None = None
    ) -> Invitation:
        """The invitation for a registered device.

        Args:
            folder: the operator's.
            client: the device's name.
            task: what is learnt.
            settings: how the federation learns.

        Raises:
            StorageError: a file of the operator's is missing or damaged.
        """
        nodes = read_nodes(folder)
        return cls(
            federation=nodes.federation,
            client=client,
            server=nodes.server,
            ca=read(folder / CA).decode("ascii"),
            operator=read(folder / OPERATOR).decode("ascii").strip(),
            task=task,
            settings=settings,
        )


def keep_roster(folder: Path, data: bytes, invitation: Invitation) -> None:
    """Take a roster into use, unless it is older than the one that is there.

    Raises:
        FederationError: the operator did not sign it for this federation, or it is older.
    """
    path, operator = folder / ROSTER, bytes.fromhex(invitation.operator)
    newest = 0
    if path.exists():
        newest = Roster.read(path.read_bytes(), operator, invitation.federation).serial
    Roster.read(data, operator, invitation.federation, newest)
    write_atomic(path, data)
