"""The console in a real browser: its main journeys, on a desk and on a phone."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from console_service import headline, make_home, make_service, served

from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.home import Home
from pfi.serve.console import sign_in_link
from pfi.serve.console.jobs import Job
from pfi.serve.console.view import console_of

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
)
CHROMIUM = os.environ.get("PFI_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="there is no Chromium (apt-get install chromium)"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1180, "height": 800}, {"width": 390, "height": 780}
PAGES = ["chat", "data", "adapters", "progress", "ledger", "settings"]
#: A word of 200 letters, as addresses and hashes have them.
LONG = "x" * 200


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright.expect.set_options(timeout=15_000)  # other work may have the machine
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Desk:
    """A served profile and a page that is signed in to it."""

    def __init__(self, home: Home, url: str, page: Any, app: Any) -> None:
        self.home, self.url, self.page, self.app = home, url, page, app
        self.asked: list[str] = []
        self.wrong: list[str] = []

    def go(self, name: str) -> None:
        self.page.goto(f"{self.url}/console/{name}")
        self.page.wait_for_load_state("networkidle")

    def toast(self, text: str) -> None:
        playwright.expect(self.page.locator("#toast")).to_contain_text(text)


@contextmanager
def desk(chromium: Any, root: Path, *, seconds: float = 0.0, **how: Any) -> Iterator[Desk]:
    home = make_home(root, "anna", [headline(n) for n in range(30)])
    with served(make_service([home], seconds=seconds)) as (url, app):
        context = chromium.new_context(**{"viewport": DESK, **how})
        page = context.new_page()
        page.set_default_timeout(20_000)
        found = Desk(home, url, page, app)
        page.on("request", lambda request: found.asked.append(request.url))
        page.on("console", lambda m: m.type in ("error", "warning") and found.wrong.append(m.text))
        page.on("pageerror", lambda error: found.wrong.append(str(error)))
        page.goto(sign_in_link(app, url, "anna"), wait_until="commit")
        page.wait_for_url("**/console/chat")
        yield found
        context.close()


def add_version(home: Home) -> str:
    class Stub:
        def to_bytes(self) -> dict[str, bytes]:
            return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}

    info = AdapterInfo(task="LaMP_4", backbone="embedded", records=20, metrics={"loss": 1.5})
    return home.personal_adapters.add(Stub(), info).version


def test_the_main_journeys(chromium: Any, tmp_path: Path) -> None:
    with desk(chromium, tmp_path) as at:
        page, expect = at.page, playwright.expect
        assert "code=" not in page.url  # the code of the link is nowhere any more
        # Import a file by drop.
        at.go("data")
        page.evaluate(
            """() => {
                const data = new DataTransfer();
                data.items.add(new File(["title,text\\nA fair opens,All came to the fair\\n"],
                  "fairs.csv", {type: "text/csv"}));
                document.querySelector("#drop").dispatchEvent(
                  new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
            }"""
        )
        expect(page.locator("#chosen")).to_have_text("fairs.csv")
        page.select_option("select[name=kind]", "table")
        page.fill("input[name=option-task]", "LaMP_4")
        page.click("#go")
        expect(page.locator("#imported")).to_contain_text("1 record added")
        # Chat with both columns.
        at.go("chat")
        page.fill("#fields textarea", "Snow fell over the fair")
        page.keyboard.press("Enter")
        mine, generic = page.locator(".turn .mine").last, page.locator(".turn .generic").last
        expect(mine.locator(".text")).to_contain_text("Like yours:")
        expect(generic.locator(".text")).to_have_text("A plain answer of nobody")
        expect(page.locator("#fields textarea")).to_have_value("")
        # Never use one of its records.
        mine.get_by_text("What this rests on").click()
        expect(mine.locator(".why .record")).to_have_count(2)
        mine.get_by_text("Never use this").first.click()
        expect(mine.get_by_text("Use it again")).to_have_count(1)
        at.toast("1 record will not be used")
        with at.home.open_vault() as vault:
            assert len(vault.excluded.ids()) == 1
        # Rate it and correct it.
        mine.get_by_label("Bad answer").click()
        at.toast("Noted as bad")
        mine.get_by_text("Correct it").click()
        mine.locator("textarea[name=correction]").fill("Snow stops fair")
        mine.get_by_text("Save the correction").click()
        at.toast("Noted; ")
        with at.home.open_vault() as vault:
            assert [e.correction for e in vault.feedback.entries()] == [None, "Snow stops fair"]
        # Use a version, and roll back.
        version = add_version(at.home)
        at.go("adapters")
        page.get_by_text("Use this").click()
        expect(page.locator(".version.active")).to_contain_text(version)
        at.toast("answered with adapter")
        page.get_by_text("Roll back").click()
        expect(page.locator(".version.active")).to_have_count(0)
        # What left.
        at.home.open_ledger().append(
            device="anna", to="api.example.org", kind="teacher call", policy="redact",
            payload="a text that left",
        )  # fmt: skip
        at.go("ledger")
        page.locator("details.sent summary").click()
        expect(page.locator(".payload")).to_contain_text("a text that left")
        # Erase a source, in two steps.
        at.go("data")
        page.locator(".row", has_text="table:fairs.csv").get_by_text("Erase…").click()
        expect(page.locator("h1")).to_have_text("Erase 1 record?")
        page.get_by_role("button", name="Erase for good").click()
        expect(page.locator("h1")).to_have_text("Erased")
        with at.home.open_vault() as vault:
            assert not list(vault.find(source="table:fairs"))
        # Sign out.
        page.get_by_label("Sign out").click()
        page.wait_for_url("**/console/signin")
        assert at.wrong == []
        hosts = {urlsplit(url).netloc for url in at.asked if not url.startswith("data:")}
        assert hosts == {urlsplit(at.url).netloc}  # nothing else was asked for anything


def test_a_repository_is_imported_and_a_job_is_watched(chromium: Any, tmp_path: Path) -> None:
    folder = tmp_path / "kitchen"
    run = ["git", "-C", str(folder), "-c", "user.name=Anna", "-c", "user.email=anna@example.org"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    for n in range(3):
        (folder / f"recipe{n}.txt").write_text(f"soup number {n}")
        subprocess.run([*run, "add", "-A"], check=True)
        subprocess.run([*run, "commit", "-q", "-m", f"Add soup {n} to the book"], check=True)
    with desk(chromium, tmp_path / "homes") as at:
        page, expect = at.page, playwright.expect
        at.go("data")
        page.set_input_files("#folder", folder)
        expect(page.locator("#chosen")).to_contain_text("kitchen (")
        page.select_option("select[name=kind]", "git")
        page.fill("input[name=option-author]", "anna@example.org")
        page.click("#go")
        expect(page.locator("#imported")).to_contain_text("3 records added")
        # Work that goes on, seen without a reload and after one, up to its end.
        steps: queue.Queue[int] = queue.Queue()

        def work(job: Job) -> list[str]:
            while (step := steps.get(timeout=20)) < 4:
                job.on_step(step, 4, 1.0 / step)
            return ["It has learnt from you."]

        console_of(at.app).jobs.start("anna", "train", "Training your adapter", work)
        at.go("progress")
        for step in (1, 2, 3):
            steps.put(step)
            expect(page.locator(".job")).to_contain_text(f"step {step} of 4")
            if step == 2:
                page.reload()
        expect(page.locator(".bar .dot")).to_be_visible()
        steps.put(4)
        expect(page.locator(".job")).to_contain_text("It has learnt from you.")
        expect(page.get_by_role("button", name="Start")).to_be_visible()
        assert at.wrong == []


def test_stopping_and_errors_lose_nothing(chromium: Any, tmp_path: Path) -> None:
    with desk(chromium, tmp_path, seconds=1.5) as at:
        page, expect = at.page, playwright.expect
        field = page.locator("#fields textarea")
        field.fill("A long question")
        page.keyboard.press("Enter")
        expect(page.locator(".turn .mine .text")).to_contain_text("Like")
        page.keyboard.press("Escape")
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".turn .mine")).to_have_class(re.compile("stopped"))
        runtime: Any = at.app.state.service.runtime("anna")
        for _ in range(50):
            if all(stream.cancelled for stream in runtime.streams):
                break
            page.wait_for_timeout(50)
        assert runtime.streams and all(stream.cancelled for stream in runtime.streams)
        field.fill("Is it lost?")
        page.route("**/chat/ask", lambda route: route.abort())
        page.keyboard.press("Enter")
        expect(page.locator("#toast")).to_have_class("wrong")
        expect(field).to_have_value("Is it lost?")
        # A wrong setting is told, and what was typed stays.
        at.go("settings")
        page.fill("input[name=retrieve]", "3")
        page.fill("textarea[name=names]", "Maria")
        page.evaluate("document.querySelector('select[name=task]').options[1].value = 'nix'")
        page.locator("select[name=task]").select_option(index=1)
        page.get_by_role("button", name="Save").first.click()
        at.toast("unknown task")
        expect(page.locator("textarea[name=names]")).to_have_value("Maria")
        assert at.home.config.retrieve == 2


def test_script_in_a_record_does_not_run(chromium: Any, tmp_path: Path) -> None:
    with desk(chromium, tmp_path) as at:
        run = "document.title='broken'"
        nasty = f'<img src=x onerror="{run}"><script>{run}</script>'
        with at.home.open_vault() as vault:
            vault.add([headline(300, output=nasty, input={"text": nasty}, source=nasty)])
        at.go("chat")
        at.page.fill("#fields textarea", nasty)
        at.page.keyboard.press("Enter")
        playwright.expect(at.page.locator(".mine .chips")).to_be_visible()
        assert nasty in at.page.locator(".mine .text").last.inner_text()
        for name in ("data", "chat"):
            at.go(name)
            assert "broken" not in at.page.title()
        assert at.wrong == []


def test_pages_fit_a_phone_in_light_and_dark(chromium: Any, tmp_path: Path) -> None:
    with desk(chromium, tmp_path, viewport=PHONE, color_scheme="dark") as at:
        long = headline(301, id=LONG, output=LONG, input={"text": LONG}, source=f"table:{LONG}")
        with at.home.open_vault() as vault:
            vault.add([long])
        add_version(at.home)
        at.home.open_ledger().append(
            device="anna", to=LONG, kind="teacher call", policy="redact", payload=LONG
        )
        page = at.page
        at.go("chat")
        assert not page.locator("#compare").is_checked()  # one column at first
        page.fill("#fields textarea", LONG)
        page.keyboard.press("Enter")
        page.locator(".mine .why summary").first.click()
        looks: dict[str, set[str]] = {"dark": set(), "light": set()}
        paths = [*PAGES, f"data/record?id={LONG}", f"data/erase?id={LONG}"]
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            for path in [None, *paths] if scheme == "dark" else paths:
                if path is not None:
                    at.go(path)
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= PHONE["width"], (path, width)
                look = "getComputedStyle(document.documentElement).backgroundColor"
                looks[scheme].add(page.evaluate(look))
        assert len(looks["dark"]) == len(looks["light"]) == 1 and looks["dark"] != looks["light"]
        # The switch goes before the system's choice, and stays.
        page.click("#theme")
        at.go("data")
        assert {page.evaluate(look)} == looks["dark"]
        # Every page has its navigation and a visible focus by keyboard.
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert at.wrong == []


def test_the_first_page_takes_less_than_a_second(chromium: Any, tmp_path: Path) -> None:
    with desk(chromium, tmp_path) as at:
        took = []
        for _ in range(3):
            context = chromium.new_context(viewport=DESK)  # nothing is cached
            page = context.new_page()
            page.goto(sign_in_link(at.app, at.url, "anna"), wait_until="commit")
            page.wait_for_url("**/console/chat")
            page.wait_for_load_state("load")
            took.append(page.evaluate("performance.getEntriesByType('navigation')[0].duration"))
            context.close()
        print("first page, ms:", [round(one) for one in took])
        assert min(took) <= 1000, took


def test_a_conversation_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    with desk(chromium, tmp_path, viewport=PHONE) as at:
        page, expect = at.page, playwright.expect
        at.home.config.max_tokens = 2
        at.go("chat")
        page.select_option("#task", "instruction")
        page.locator(".told summary").click()
        page.fill("#system", "Be short")
        page.fill("#fields textarea", "First question")
        page.locator("#fields textarea").press("Enter")
        mine = page.locator(".turn .mine")
        expect(mine.locator(".cut span")).to_have_text("(cut at 2 tokens)")
        before = mine.locator(".text").inner_text()
        mine.get_by_text("Go on").click()
        expect(mine.locator(".text")).not_to_have_text(before)
        page.fill("#fields textarea", "Second question")
        page.locator("#fields textarea").press("Enter")
        expect(page.locator(".turn")).to_have_count(2)
        expect(page.locator(".turn .mine .cut span").last).to_be_visible()
        runtime: Any = at.app.state.service.runtime("anna")
        said = runtime.asked[-1].prompt
        assert said.startswith("Be short First question") and said.endswith("Second question")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        page.click("#new")
        expect(page.locator(".turn")).to_have_count(0)
        page.fill("#fields textarea", "Third question")
        page.locator("#fields textarea").press("Enter")
        expect(page.locator(".turn .mine .cut span")).to_be_visible()
        assert "First" not in runtime.asked[-1].prompt
        assert at.wrong == []
