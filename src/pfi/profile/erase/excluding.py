"""Keeping records out of use without erasing them: "never use this".

They are neither retrieved nor learnt from, nor are synthetic records that a teacher made from
them.  What was trained before knows them still.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pfi.profile.home import Home


@dataclass(frozen=True)
class Excluded:
    """How many records, and synthetic ones made from them, changed."""

    records: int
    synthetic: int


def exclude(home: Home, ids: Collection[str]) -> Excluded:
    """Keep records out of use from now on.

    Raises:
        StorageError: the vault cannot be used.
    """
    with home.open_vault() as vault:
        made = [record.id for record in vault.made_from(ids) if record.id not in ids]
        return Excluded(vault.excluded.add(ids), vault.excluded.add(made))


def include(home: Home, ids: Collection[str]) -> Excluded:
    """Use records again, and what was made from them and from nothing that is still kept out.

    Raises:
        StorageError: the vault cannot be used.
    """
    with home.open_vault() as vault:
        records = vault.excluded.remove(ids)
        out = vault.excluded.ids()
        made = [
            record.id
            for record in vault.made_from(ids)
            if record.made and out.isdisjoint({*record.made.seeds, record.made.source})
        ]
        return Excluded(records, vault.excluded.remove(made))
