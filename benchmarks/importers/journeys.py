#!/usr/bin/env python
"""Large imports as a person makes them: time, peak memory, progress, and a kill in the middle.

    python benchmarks/importers/journeys.py
    python benchmarks/importers/journeys.py --only whatsapp --scale 0.1

Each source is made up from a seed: a WhatsApp chat of 100,000 messages, an mbox of 2 GB and a
Takeout zip of 500 MB.  `pfi import` reads it into a fresh profile at a pseudo-terminal; a second
profile's import is killed (SIGKILL) once it has stored some records, and run again.  Both
profiles must then hold the same records.  Journeys that are in the results already are kept.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "results" / "importers"
WORDS = (ROOT / "README.md").read_text("utf-8").split()
ME, OTHER = "me@example.org", "anna@example.com"
START = datetime(2015, 3, 1, 9, tzinfo=UTC)


@dataclass(frozen=True)
class Journey:
    """What one import took.

    Attributes:
        megabytes: size of the source.
        seconds: by the clock.
        cpu: seconds of both user and system.
        peak: most resident memory, in MB.
        states: different states of the progress line that a terminal was shown.
        records: in the profile afterwards.
        killed_at: records that were stored when the other import was killed.
        same: whether the profile of the killed and repeated import holds the same records.
    """

    megabytes: float
    seconds: float
    cpu: float
    peak: float
    states: int
    records: int
    killed_at: int
    same: bool


def sentence(rng: random.Random, shortest: int = 4, longest: int = 40) -> str:
    """Words of the README in any order."""
    return " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest)))


def whatsapp(path: Path, scale: float) -> tuple[str, list[str]]:
    """A chat of 100,000 messages of two people."""
    rng, time_ = random.Random(0), START
    with path.with_suffix(".txt").open("w", encoding="utf-8") as file:
        for _ in range(int(100_000 * scale)):
            time_ += timedelta(minutes=rng.randint(1, 90))
            who = rng.choice(["Sam", "Anna"])
            file.write(f"[{time_:%d/%m/%Y, %H:%M:%S}] {who}: {sentence(rng, 2, 20)}\n")
    return "whatsapp", [str(path.with_suffix(".txt")), "--set", "me=Sam"]


def mails(size: float) -> Iterator[bytes]:
    """Mails in mbox form, half of them with an attachment, until they hold ``size`` bytes."""
    rng, written, number, last = random.Random(1), 0, 0, ""
    attachment = base64.encodebytes(rng.randbytes(90_000)).decode()
    while written < size:
        number += 1
        mine = number % 3 == 0
        sender, receiver = (ME, OTHER) if mine else (OTHER, ME)
        sent = START + timedelta(minutes=37 * number)
        body = "\n\n".join(sentence(rng, 15, 60) for _ in range(3))
        head = [
            f"From {sender} {sent:%a %b %d %H:%M:%S %Y}",
            f"From: <{sender}>",
            f"To: <{receiver}>",
            f"Date: {format_datetime(sent)}",
            f"Subject: {sentence(rng, 3, 8)[:70]}",
            f"Message-ID: <{number}@example.org>",
            *([f"In-Reply-To: {last}"] if mine and last else []),
            "MIME-Version: 1.0",
        ]
        last = f"<{number}@example.org>"
        if number % 2:
            part = (
                "Content-Type: multipart/mixed; boundary=cut\n\n--cut\n"
                f"Content-Type: text/plain; charset=utf-8\n\n{body}\n\n--cut\n"
                "Content-Type: application/pdf\nContent-Transfer-Encoding: base64\n"
                f"Content-Disposition: attachment; filename=a.pdf\n\n{attachment}--cut--\n"
            )
        else:
            part = f"Content-Type: text/plain; charset=utf-8\n\n{body}\n"
        mail = ("\n".join(head) + "\n" + part + "\n").encode()
        written += len(mail)
        yield mail


def mbox(path: Path, scale: float) -> tuple[str, list[str]]:
    """A mailbox of 2 GB."""
    with path.with_suffix(".mbox").open("wb") as file:
        file.writelines(mails(2e9 * scale))
    return "mail", [str(path.with_suffix(".mbox")), "--set", f"me={ME}"]


def takeout(path: Path, scale: float) -> tuple[str, list[str]]:
    """A Takeout of 500 MB as downloaded: mail, notes, chats, and photos that are not read."""
    rng = random.Random(2)
    archive = zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive:
        with archive.open("Takeout/Mail/All mail.mbox", "w", force_zip64=True) as file:
            for mail in mails(3e8 * scale):
                file.write(mail)
        for number in range(int(2000 * scale)):
            note = {"title": sentence(rng, 2, 5), "textContent": sentence(rng, 20, 200)}
            created = int((START + timedelta(hours=number)).timestamp() * 1e6)
            note |= {"userEditedTimestampUsec": created, "createdTimestampUsec": created}
            archive.writestr(f"Takeout/Keep/{number}.json", json.dumps(note))
        for number in range(int(100 * scale)):
            archive.writestr(f"Takeout/Google Photos/{number}.jpg", rng.randbytes(2_600_000))
    return "takeout", [str(path.with_suffix(".zip")), "--set", f"me={ME}"]


MAKERS: dict[str, Callable[[Path, float], tuple[str, list[str]]]] = {
    "whatsapp": whatsapp,
    "mbox": mbox,
    "takeout": takeout,
}


def pfi(home: Path, *words: str) -> list[str]:
    """A command line in a profile of its own."""
    os.environ["PFI_HOME"] = str(home)
    return [sys.executable, "-m", "pfi.cli", *words]


def at_terminal(command: list[str], watch: Callable[[int], None] | None = None) -> tuple[str, int]:
    """Run a command at a pseudo-terminal.

    Returns:
        What it wrote there, and its exit status (negative: the signal that ended it).
    """
    ours, theirs = pty.openpty()
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text: list[bytes] = []

    def read() -> None:
        try:
            while block := os.read(ours, 1 << 16):
                text.append(block)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    if watch is not None:
        watch(child.pid)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    os.close(ours)
    at_terminal.used = used  # type: ignore[attr-defined]
    return b"".join(text).decode("utf-8", "replace"), child.returncode


def size(home: Path) -> int:
    """Bytes of a profile's vault and of what is yet to be merged into it."""
    return sum(file.stat().st_size for file in home.rglob("vault.db*"))


def ids(home: Path) -> list[str]:
    """The ids of all records of a profile."""
    command = pfi(home, "records", "--json", "-n", "100000000")
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sorted(record["id"] for record in json.loads(shown))


def travel(name: str, folder: Path, scale: float) -> Journey:
    """Import a source whole, then in a second profile with a kill in the middle."""
    kind, words = MAKERS[name](folder / name, scale)
    whole, broken = folder / f"{name}-whole", folder / f"{name}-broken"
    for home in (whole, broken):
        shutil.rmtree(home, ignore_errors=True)  # of a run that was stopped
        subprocess.run(pfi(home, "init", "--key", "file"), check=True, capture_output=True)
    begun = time.monotonic()
    text, status = at_terminal(pfi(whole, "import", kind, *words))
    seconds = time.monotonic() - begun
    used = at_terminal.used  # type: ignore[attr-defined]
    if status:
        raise SystemExit(f"{name}: exit status {status}\n{text[-2000:]}")
    expected, full = ids(whole), size(whole)

    def kill(pid: int) -> None:
        deadline = time.monotonic() + 10 * seconds
        while size(broken) < full / 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    _, status = at_terminal(pfi(broken, "import", kind, *words), kill)
    if status != -signal.SIGKILL:
        raise SystemExit(f"{name}: was not killed in time, exit status {status}")
    killed_at = len(ids(broken))
    text_again, status = at_terminal(pfi(broken, "import", kind, *words))
    if status:
        raise SystemExit(f"{name}: exit status {status}\n{text_again[-2000:]}")
    source = Path(words[0])
    megabytes = source.stat().st_size / 1e6
    same = expected == ids(broken)
    for path in (whole, broken):
        shutil.rmtree(path)
    source.unlink()
    return Journey(
        megabytes,
        seconds,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1e3,
        len(set(text.replace("\n", "\r").split("\r"))),
        len(expected),
        killed_at,
        same,
    )


def page(results: dict[str, dict[str, float]], command: str) -> str:
    """The results as Markdown."""
    rows = [
        f"| {name} | {one['megabytes']:,.0f} MB | {one['records']:,} | {one['seconds']:.0f} s "
        f"({one['cpu']:.0f} of CPU) | {one['peak']:.0f} MB | {one['states']} | "
        f"{one['killed_at']:,} | {'yes' if one['same'] else '**no**'} |"
        for name, one in results.items()
    ]
    return "\n".join(
        [
            "# Large imports",
            "",
            f"Made by `{command}`, one source after another; sources are made up (seeds 0 to 2). "
            "*Shown* counts the states of the progress line at a terminal; *killed at* is how "
            "many records another profile held when its import was killed (SIGKILL); *the same* "
            "is whether it held the same records as the first after the import was run again.",
            "",
            "| source | size | records | time | peak memory | shown | killed at | the same |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Make the journeys that are not in the results yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(MAKERS), action="append")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the sources (default 1)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "journeys")
    parser.add_argument("--out", type=Path, default=OUT, help="without a suffix")
    parser.add_argument("--again", action="store_true", help="those in the results, too")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    raw = options.out.with_suffix(".json")
    results = json.loads(raw.read_text("utf-8")) if raw.exists() else {}
    for name in options.only or MAKERS:
        if name in results and not options.again:
            continue
        results[name] = asdict(travel(name, options.folder, options.scale))
        print(name, results[name], flush=True)
        raw.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        scale = "" if options.scale == 1 else f" --scale {options.scale:g}"
        text = page(results, f"python benchmarks/importers/journeys.py{scale}")
        options.out.with_suffix(".md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
