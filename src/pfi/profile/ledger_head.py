"""The ledger's head in the vault: see `pfi.privacy.ledger.anchor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from pfi.privacy.ledger.anchor import Head
from pfi.profile.vault.vault import Vault

#: The vault's setting that has it.
SETTING = "ledger head"


@dataclass(frozen=True)
class VaultAnchor:
    """Keeps the head of a profile's ledger in its vault, which `open_vault` opens."""

    open_vault: Callable[[], Vault]

    def read(self) -> Head | None:
        """See `Anchor`."""
        with self.open_vault() as vault:
            value = vault.setting(SETTING)
        return Head(int(value["count"]), str(value["hash"])) if value else None

    def tell(self, head: Head) -> None:
        """See `Anchor`."""
        with self.open_vault() as vault, vault.change_setting(SETTING) as setting:
            if not setting.value or setting.value["count"] < head.count:
                setting.value = asdict(head)

    def replace(self, head: Head | None) -> None:
        """See `Anchor`."""
        with self.open_vault() as vault:
            vault.set_setting(SETTING, asdict(head) if head else None)
