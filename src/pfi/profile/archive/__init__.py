"""A whole profile in one encrypted file, and back."""
