"""`python -m pfi.cli`, the same as `pfi`."""

from pfi.cli import main

main()
