"""The ledger: the append-only list of everything that left a device."""
