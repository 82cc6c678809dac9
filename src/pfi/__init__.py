"""pfi: personalized federated intelligence - a language model of one's own for every user."""

from pfi._util.version import __version__

__all__ = ["__version__"]
