"""Fetch the console's two libraries anew with `npm pack`, as `VENDORED.json` pins them.

Usage: python scripts/vendor_console.py [--check].  Registries are npm's own setting; no address is
written here.  A file whose sha256 is not the pinned one is refused; a pin is changed by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

STATIC = Path(__file__).parents[1] / "src/pfi/serve/console/static"


def fetch(package: str, version: str, folder: Path) -> Path:
    """The archive of a package as npm packs it."""
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder / done.stdout.split()[-1]


def main() -> int:
    """Write, or with `--check` compare, every file; 1 if one is not as pinned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    only_check = parser.parse_args().check
    wrong = 0
    for entry in json.loads((STATIC / "VENDORED.json").read_text(encoding="utf-8")):
        with tempfile.TemporaryDirectory() as name:
            archive = fetch(entry["package"], entry["version"], Path(name))
            with tarfile.open(archive) as packed:
                for file in entry["files"]:
                    member = packed.extractfile(f"package/{file['source']}")
                    data = member.read() if member else b""
                    found = hashlib.sha256(data).hexdigest()
                    if found != file["sha256"]:
                        print(f"{file['file']}: sha256 is {found}, not as pinned")
                        wrong = 1
                    elif not only_check:
                        (STATIC / file["file"]).write_bytes(data)
    print("not as pinned" if wrong else "as pinned")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
