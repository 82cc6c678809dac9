"""The `pfi` command: one file per group of commands, thin over the packages that do the work."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point `pfi`."""
    import warnings

    from pfi.cli.app import app

    # peft asks transformers 5 for an attribute by its former name; nothing a user can act on.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    app(prog_name="pfi")


__all__ = ["main"]
