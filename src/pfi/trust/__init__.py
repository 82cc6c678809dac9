"""What leaves a device, under which protection, and the record of it."""

from pfi.trust.entries import Entry
from pfi.trust.ledger import Ledger, leave

__all__ = ["Entry", "Ledger", "leave"]
