"""The bank: K adapters over one frozen backbone, each row of a batch with its own."""
