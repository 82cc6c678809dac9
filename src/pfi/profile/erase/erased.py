"""What a device knows of erasures that are done: by task when records were last erased."""

from __future__ import annotations

from datetime import datetime

from pfi.errors import StorageError
from pfi.profile.home import Home

#: The vault's setting that says by task when records were last erased.
ERASED = "erased"


def refuse_erased(home: Home, task: str, read: datetime) -> None:
    """Refuse what was learnt from records that were read before some were erased.

    Raises:
        StorageError: records of the task were erased since.
    """
    with home.open_vault() as vault:
        found = (vault.setting(ERASED) or {}).get(task)
    if found is not None and datetime.fromisoformat(found) > read:
        what = "records were erased during the training, and it may have learnt from them"
        raise StorageError(what, where=f"task {task}", fix="run it again")
