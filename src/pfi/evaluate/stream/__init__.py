"""The stream protocol: histories in time order."""
