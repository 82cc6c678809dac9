"""The `pfi` command: one file per group of commands, thin over the packages that do the work."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point `pfi`."""
    from pfi._util.threads import manage
    from pfi.cli.quiet import quieten

    manage()  # first: OpenMP reads its environment when PyTorch or llama.cpp is loaded
    quieten()  # before libraries are loaded, which read the environment then
    from pfi.cli.app import app

    app(prog_name="pfi")


__all__ = ["main"]
