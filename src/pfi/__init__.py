"""pfi: personalized federated intelligence - a language model of one's own for every user."""

__version__ = "0.1.0"
