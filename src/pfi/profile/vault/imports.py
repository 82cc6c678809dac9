"""Importing: a connector reads the user's files, the vault keeps the records."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pfi._util.settings import one_line
from pfi.errors import ConfigError, DataError
from pfi.profile.erase.fingerprints import ErasedRecords, allow_again
from pfi.profile.home import Home
from pfi.readers.report import ImportReport
from pfi.readers.self_check import SelfCheck
from pfi.records import Record
from pfi.sources import connectors

#: Why a record is left out that the person erased.
ERASED_BEFORE = "they were erased here (`pfi import --again` takes them in again)"


@dataclass(frozen=True)
class Imported:
    """The outcome of an import.

    Attributes:
        added: records that are new.
        already_there: records that the vault had before.
        report: what the connector skipped.
        check: what it believes about the source; it counts records that repeat in it.
        erased: records that were left out as they were erased here; the report counts them too.
    """

    added: int
    already_there: int
    report: ImportReport
    check: SelfCheck = field(default_factory=SelfCheck)
    erased: int = 0


def import_records(
    home: Home,
    kind: str,
    path: Path,
    options: Mapping[str, Any] | None = None,
    *,
    again: bool = False,
    on_record: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Read `path` with the connector `kind` into the vault.

    Args:
        home: the device.
        kind: the connector's name.
        path: the file or folder that it reads.
        options: values of the connector's options.
        again: take in also what was erased here.
        on_record: told the number of records read so far.

    Raises:
        ConfigError: there is no such connector or option.
        DataError: the source cannot be read.
        StorageError: the vault cannot be written.
    """
    report, check = ImportReport(), SelfCheck()
    records = _read(kind, path, options, report, check)
    with home.open_vault() as vault:
        screen = _Screen(ErasedRecords.of(vault), again, report)
        added, seen = vault.add(screen.passed(_counted(records, on_record)))
        if screen.back:
            allow_again(vault, screen.back)
    return Imported(added, seen - check.repeated, report, check, screen.left_out)


class _Screen:
    """Leaves out records that were erased, or notes which of them come back."""

    def __init__(self, erased: ErasedRecords, again: bool, report: ImportReport) -> None:
        self._erased, self._again, self._report = erased, again, report
        self.left_out = 0
        self.back: list[Record] = []

    def passed(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records that are to be stored."""
        for record in records:
            if self._erased.has(record):
                if not self._again:
                    self.left_out += 1
                    self._report.skip(ERASED_BEFORE, record.source or record.id)
                    continue
                self.back.append(record)
            yield record


def check_records(
    kind: str,
    path: Path,
    options: Mapping[str, Any] | None = None,
    *,
    on_record: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Read like `import_records` without storing anything.

    Raises:
        ConfigError, DataError: as for `import_records`.
    """
    report, check = ImportReport(), SelfCheck()
    for _ in _counted(_read(kind, path, options, report, check), on_record):
        pass
    return Imported(0, 0, report, check)


def _read(
    kind: str,
    path: Path,
    options: Mapping[str, Any] | None,
    report: ImportReport,
    check: SelfCheck,
) -> Iterator[Record]:
    connector = connectors.get_connector(kind)
    settings = connector.configure(options or {})
    if not path.exists():
        raise DataError("there is no such file or folder", path=path, fix="check the path")
    return check.watch(connector.read(path, settings, report))


def _counted(records: Iterable[Record], on_record: Callable[[int], None]) -> Iterator[Record]:
    for done, record in enumerate(records, 1):
        on_record(done)
        yield record


def parse_options(pairs: Iterable[str], model: type[BaseModel] | None = None) -> dict[str, Any]:
    """`key=value` texts as values for `model`.

    An entry of a mapping is `key.name=value`; a list comes by repeating the key.  Either may
    also be given whole, as `key={a: b}` and `key=[a, b]`.

    Raises:
        ConfigError: a text has no `=`, a list or mapping is not well-formed, or a key that
            takes one value comes twice.
    """
    found: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key, dot, entry = key.strip().partition(".")
        key = key.replace("-", "_")
        if not equals or not key:
            raise ConfigError(f"{pair!r} is not key=value", fix="write for example --set name=x")
        values = [{entry: value}] if dot else _parse(key, value, option_kinds(model, key))
        found.setdefault(key, []).extend(values)
    options: dict[str, Any] = {}
    for key, values in found.items():
        kinds = option_kinds(model, key)
        if all(isinstance(value, dict) for value in values):
            values = [{name: v for value in values for name, v in value.items()}]
        if len(values) > 1 and list not in kinds:
            raise ConfigError(f"{key} is given {len(values)} times", fix="give it once")
        single = len(values) == 1 and (list not in kinds or str in kinds)
        options[key] = values[0] if single else values
    return options


def _parse(key: str, value: str, kinds: set[type]) -> list[Any]:
    opening = value.lstrip()[:1]
    if not ((opening == "[" and list in kinds) or (opening == "{" and dict in kinds)):
        return [value]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={value} is not well-formed: {one_line(error)}") from error
    return parsed if isinstance(parsed, list) else [parsed]


def option_kinds(model: type[BaseModel] | None, key: str) -> set[type]:
    """The types that an option of `model` takes, with `list` for every kind of sequence or set."""
    if model is None or key not in model.model_fields:
        return set()
    annotation = model.model_fields[key].annotation
    unions = (Union, types.UnionType)
    options = get_args(annotation) if get_origin(annotation) in unions else (annotation,)
    found = {get_origin(option) or option for option in options}
    return {list if kind in (list, tuple, set, frozenset, Sequence) else kind for kind in found}
