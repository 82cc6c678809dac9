"""What leaves a device, under which protection, and the record of it."""

from pfi.trust.ledger import Entry, Ledger, leave

__all__ = ["Entry", "Ledger", "leave"]
