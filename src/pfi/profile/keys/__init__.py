"""The keys of a home, what keeps them, and encrypting an old home."""
