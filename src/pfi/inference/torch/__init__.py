"""The engine over the bank in PyTorch."""
