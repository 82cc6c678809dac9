"""Pictures of the console for the docs, from made-up people alone.

Usage: python scripts/console_pictures.py [--only demo|series] [--keep FOLDER] [--backbone NAME].
A demo person of ``pfi.datasets.demo`` gives the pictures of the pages, a made-up repository the
series from import to refresh.  Needs Chromium (PFI_CHROMIUM or /usr/bin/chromium), playwright, git
and the backbone (`pfi models get smollm2-135m`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pfi.datasets.demo import write_demo
from pfi.privacy.ledger.ledger import send_logged
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn.gate import fit_gate
from pfi.profile.learn.training import train
from pfi.profile.open import create_home, open_home
from pfi.profile.vault.imports import import_records
from pfi.serve import ServeConfig, Service
from pfi.serve.app import create_app
from pfi.serve.console import sign_in_link
from pfi.serve.server import address, listen, make_server
from pfi.tasks import get_task

PICTURES = Path(__file__).parents[1] / "docs/images"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESK, PHONE = {"width": 1180, "height": 760}, {"width": 390, "height": 780}
LONGEST_MS = 900_000


class Camera:
    """A browser that is signed in, and what takes its pictures."""

    def __init__(self, page: Any, url: str, home: Home) -> None:
        self.page, self.url, self.home = page, url, home

    def go(self, name: str) -> None:
        """Open a page."""
        self.page.goto(f"{self.url}/console/{name}")
        self.page.wait_for_load_state("networkidle")

    def ask(self, task: str, text: str) -> Any:
        """Ask, and wait for both answers; the turn."""
        if self.page.locator("#task").input_value() != task:
            self.page.select_option("#task", task)
            self.page.wait_for_selector("textarea[name^=field-]")
            self.page.wait_for_timeout(500)
        self.page.fill("#fields textarea", text)
        self.page.keyboard.press("Enter")
        turn = self.page.locator(".turn").last
        turn.locator(".mine:not(.waiting)").wait_for(timeout=LONGEST_MS)
        turn.locator(".mine .chips").wait_for()
        return turn

    def start(self, page: str, button: str) -> None:
        """Begin a job by its button."""
        self.go(page)
        self.page.get_by_role("button", name=button, exact=True).first.click()
        self.page.wait_for_url("**/console/progress")

    def wait(self) -> None:
        """Until the job has ended."""
        self.page.wait_for_selector(".job:not(.running)", timeout=LONGEST_MS)
        self.page.wait_for_load_state("networkidle")

    def shoot(self, name: str) -> None:
        """Write a picture with few colours, which is small."""
        from PIL import Image

        self.page.evaluate("document.querySelector('#toast').hidden = true")
        file = PICTURES / f"{name}.png"
        self.page.screenshot(path=file)
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            small.save(file, optimize=True)
        print(f"{file.name}: {file.stat().st_size // 1000} kB")


@contextmanager
def camera(home: Home, **how: Any) -> Iterator[Camera]:
    """Serve a profile and sign a browser in to it."""
    from playwright.sync_api import sync_playwright

    config = ServeConfig(port=0)  # type: ignore[call-arg]
    service = Service({home.profile: home}, config)
    service.load()
    app, socket = create_app(service, config), listen(config)
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    with sync_playwright() as started:
        path = os.environ.get("PFI_CHROMIUM", "/usr/bin/chromium")
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_context(**{"viewport": DESK, "color_scheme": "light", **how}).new_page()
        page.set_default_timeout(60_000)
        page.goto(sign_in_link(app, address(socket), home.profile), wait_until="commit")
        page.wait_for_url("**/console/chat")
        yield Camera(page, address(socket), home)
        browser.close()
    server.should_exit = True
    thread.join(20)


# The pages --------------------------------------------------------------------------


def demo_person(root: Path, backbone: str) -> Home:
    """A profile with a demo person's records of three tasks, adapters and a ledger."""
    write_demo(root / "data", seed=3, train_users=1, users=2)
    if (root / "demo/config.yaml").exists():
        return open_home("demo", root=root)
    home = create_home("demo", root=root, lock="file", config=HomeConfig(
        task="LaMP_4", backbone=backbone,
    ))  # fmt: skip
    for task in ("LaMP_4", "LaMP_3", "LaMP_2M"):
        file = root / "data" / task / "test_questions.json"
        user = json.loads(file.read_text())[0]["user_id"]
        import_records(home, "lamp", file, {"task": task, "user": user})
    for task, epochs in (("LaMP_4", 2), ("LaMP_4", 4), ("LaMP_3", 4)):
        train(home, get_task(task), {"epochs": epochs, "learning_rate": 1e-3}, holdout=0.2)
    fit_gate(home, get_task("LaMP_3"))
    _send(home)
    return home


def _send(home: Home) -> None:
    """Entries in the ledger, as a teacher's calls and a round make them; nothing is sent."""
    with home.open_vault() as vault:
        records = list(vault.find(task="LaMP_4"))[:6]
    for at in range(0, 6, 2):
        shown = records[at : at + 2]
        texts = [next(iter(record.input.values())) for record in shown]
        payload = {
            "teacher": "small-writer",
            "messages": [
                {"role": "system", "content": "Write records like these, as JSON."},
                {"role": "user", "content": "\n\n".join(texts)},
            ],
        }
        send_logged(
            home.open_ledger(), device=home.profile, to="teacher.example.org",
            kind="teacher call", policy="redact", payload=payload, send=lambda: None,
            shows=[record.id for record in shown],
        )  # fmt: skip
    send_logged(
        home.open_ledger(), device=home.profile, to="hub.example.org", kind="client update",
        policy="clip, noise and mask", payload=bytes(48_212), send=lambda: None,
    )  # fmt: skip


def pages(root: Path, backbone: str) -> None:
    """The pictures of the pages."""
    home = demo_person(root, backbone)
    questions = json.loads((root / "data/LaMP_4/test_questions.json").read_text())
    asked = next(iter(get_task("LaMP_4").fields(questions[1]["input"]).values()))
    with camera(home) as at:
        turn = at.ask("LaMP_4", asked)
        turn.locator(".generic .chips").wait_for(timeout=LONGEST_MS)
        turn.locator(".why > summary").click()
        at.page.mouse.move(0, 0)
        at.page.wait_for_timeout(300)
        at.shoot("console-chat")
        for name in ("data", "adapters", "ledger"):
            at.go(name)
            if name == "ledger":
                at.page.locator("details.sent summary").nth(1).click()
                at.page.wait_for_selector(".payload pre")
            at.shoot(f"console-{name}")
        at.page.set_viewport_size(PHONE)
        at.page.emulate_media(color_scheme="dark")
        at.page.evaluate("localStorage.clear()")
        at.go("chat")
        at.page.wait_for_timeout(300)
        at.shoot("console-phone-dark")


# The series -------------------------------------------------------------------------

_DISHES = (
    *("leek soup", "apple cake", "rye bread", "bean stew", "plum jam", "noodle salad"),
    *("onion tart", "lentil curry", "carrot cake", "potato pancakes", "herb butter", "pea soup"),
)
_CHANGES: tuple[tuple[str, str, str], ...] = (
    ("Add {dish} to the book", "recipes/{file}.md", "# {title}\n\nServes four.\n"),
    ("Halve the salt of {dish}", "recipes/{file}.md", "salt: half a spoon\n"),
    ("Note how long {dish} keeps", "recipes/{file}.md", "keeps: {n} days\n"),
    ("Bake {dish} a little longer", "recipes/{file}.md", "oven: {n} minutes\n"),
    ("Show a picture of {dish}", "pictures/{file}.txt", "drawing number {n}\n"),
)


def repository(folder: Path, commits: int) -> Callable[[int], None]:
    """A made-up cook's history; the result adds more of it."""
    rng, made = random.Random(5), 0
    begun = datetime(2026, 3, 2, 18, 30)
    run = ["git", "-C", str(folder), "-c", "user.name=Robin", "-c", "user.email=robin@example.org"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)

    def add(count: int) -> None:
        nonlocal made
        for _ in range(count):
            made += 1
            dish = _DISHES[made % len(_DISHES)]
            message, name, line = rng.choice(_CHANGES)
            words = {"dish": dish, "file": dish.replace(" ", "-"), "title": dish.title()}
            path = folder / name.format(**words)
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(line.format(**words, n=made))
            when = (begun + timedelta(hours=31 * made)).isoformat()
            dates = {**os.environ, "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
            subprocess.run([*run, "add", "-A"], check=True)
            text = f"{message.format(**words)}".lower().replace("add", "book: add", 1)
            subprocess.run([*run, "commit", "-q", "-m", text], check=True, env=dates)

    add(commits)
    return add


def series(root: Path, backbone: str) -> None:
    """The pictures from import to refresh."""
    shutil.rmtree(root)
    book = root / "cookbook"
    root.mkdir()
    more = repository(book, 90)
    home = create_home("robin", root=root, lock="file", config=HomeConfig(backbone=backbone))
    with camera(home) as at:
        _drop(at, book, "series-1-import")
        at.start("adapters", "Train")
        step = "document.querySelector('.job progress')?.value || 0"
        while at.page.evaluate(step) < 10:
            at.page.wait_for_timeout(500)
        at.shoot("series-2-train")
        at.wait()
        at.go("chat")
        change = "recipes/pear-cake.md (+3 -0)\n+# Pear Cake\n+\n+Serves four."
        turn = at.ask("commit_message", change)
        turn.locator(".generic .chips").wait_for(timeout=LONGEST_MS)
        turn.locator(".why > summary").click()
        at.page.wait_for_timeout(300)
        at.shoot("series-3-ask")
        turn.locator(".why > summary").click()
        turn.get_by_text("Correct it").click()
        turn.locator("textarea[name=correction]").fill("book: add pear cake to the book")
        at.page.wait_for_timeout(200)
        at.shoot("series-4-correct")
        turn.get_by_text("Save the correction").click()
        at.page.wait_for_selector("#toast:not([hidden])")
        more(40)
        _drop(at, book, None)
        at.start("adapters", "Refresh")
        at.wait()
        at.shoot("series-5-refresh")


def _drop(at: Camera, folder: Path, name: str | None) -> None:
    """Import a repository's folder."""
    at.go("data")
    at.page.set_input_files("#folder", folder)
    at.page.select_option("select[name=kind]", "git")
    at.page.fill("input[name=option-author]", "robin@example.org")
    at.page.wait_for_selector("#go:not([disabled])")
    at.page.click("#go")
    at.page.wait_for_selector("#imported .result", timeout=LONGEST_MS)
    if name:
        at.shoot(name)


def main() -> None:
    """Make all pictures, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["demo", "series"])
    parser.add_argument("--keep", type=Path, help="folder of the made-up homes")
    parser.add_argument("--backbone", default="smollm2-135m")
    given = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    for name, make in (("demo", pages), ("series", series)):
        if given.only in (None, name):
            root = Path(tempfile.mkdtemp()) if given.keep is None else given.keep / name
            root.mkdir(parents=True, exist_ok=True)
            make(root, given.backbone)
            if not given.keep:
                shutil.rmtree(root)


if __name__ == "__main__":
    main()
