"""The web console over HTTP: who may see what, and that every page does what it says."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_service import (
    RuledRuntime,
    configure,
    headline,
    make_home,
    make_service,
    wait_for,
)
from fastapi.testclient import TestClient

from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.home import Home
from pfi.profile.open import open_home
from pfi.records import Provenance
from pfi.serve.app import create_app
from pfi.serve.auth import new_token, revoke_token
from pfi.serve.console import sign_in_link
from pfi.serve.console.jobs import Cancelled, Job, Jobs
from pfi.serve.console.sessions import CODE_SECONDS, IDLE_SECONDS, LONGEST_SECONDS, Sessions
from pfi.serve.console.view import HERE, ROOT, console_of
from pfi.serve.service import Service

PAGES = ["chat", "data", "adapters", "progress", "ledger", "settings"]
HERE_FROM = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
NASTY = "<script>alert('x')</script> {{ 1234567 * 7 }} {% raw %}"
# The address is one that the server answers to.
BASE = "http://localhost"


class World:
    """Two profiles behind one server, and a browser for each."""

    def __init__(self, root: Path) -> None:
        self.anna = make_home(root, "anna", [headline(n) for n in range(30)])
        secret = headline(900, output="Bela keeps this secret", source="table:secret.csv")
        self.bela = make_home(root, "bela", [secret])
        self.service: Service = make_service([self.anna, self.bela])
        self.app = create_app(self.service)

    def browser(self, profile: str | None = "anna") -> TestClient:
        client = TestClient(self.app, base_url=BASE, headers=HERE_FROM)
        if profile is not None:
            code = console_of(self.app).sessions.new_code(profile)
            answer = client.post(f"{ROOT}/signin", data={"code": code})
            assert answer.status_code == 200, answer.text
        return client


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def browser(world: World) -> Iterator[TestClient]:
    yield world.browser()


def ask(client: TestClient, text: str = "Ice in the harbour", **form: str) -> list[dict[str, Any]]:
    values = {"task": "LaMP_4", "field-text": text, "compare": "true", **form}
    answer = client.post(f"{ROOT}/chat/ask", data=values)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def add_version(home: Home, **info: Any) -> str:
    class Stub:
        def to_bytes(self) -> dict[str, bytes]:
            return {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}

    values = {"task": "LaMP_4", "backbone": "embedded", **info}
    return home.personal_adapters.add(Stub(), AdapterInfo(**values)).version


# Signing in -------------------------------------------------------------------------


def test_every_page_needs_a_session_and_works_with_one(world: World) -> None:
    nobody, anna = world.browser(None), world.browser()
    for name in PAGES:
        answer = nobody.get(f"{ROOT}/{name}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/signin")
        assert "anna" not in answer.text
        page = anna.get(f"{ROOT}/{name}")
        assert page.status_code == 200
        assert 'aria-current="page"' in page.text
        assert page.headers["cache-control"] == "no-store"


def test_nothing_but_the_sign_in_page_and_static_files_is_open(world: World) -> None:
    nobody = world.browser(None)
    pages_of = importlib.import_module("pfi.serve.console.router")
    closed = set()
    routes = [(ROOT + r.path, r.methods) for pages in pages_of.PAGES for r in pages.router.routes]
    routes += [(r.path, r.methods) for r in pages_of.router.routes if hasattr(r, "path")]
    for path, methods in routes:
        for method in methods & {"GET", "POST"}:
            there = path.replace("{n}", "1").replace("{name}", "console.css")
            answer = nobody.request(method, there, follow_redirects=False)
            if answer.status_code in (401, 303, 422):
                closed.add((method, path))
                assert answer.headers.get("location", ROOT).startswith(ROOT)
            else:
                assert (method, path) in {
                    ("GET", f"{ROOT}/signin"),
                    ("GET", f"{ROOT}/static/{{name}}"),
                }, (method, path, answer.status_code)
    assert len(closed) > 25


def test_signing_in_with_a_token_gives_a_strict_cookie(world: World) -> None:
    _, text = new_token(world.anna, "a browser", scopes=["admin"])
    client = world.browser(None)
    answer = client.post(f"{ROOT}/signin", data={"token": text}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert text not in cookie and text not in answer.headers["location"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", f"Path={ROOT}"))
    assert client.get(f"{ROOT}/chat").status_code == 200


def test_a_wrong_token_signs_nobody_in(world: World) -> None:
    client = world.browser(None)
    answer = client.post(f"{ROOT}/signin", data={"token": "pfi-wrong"}, follow_redirects=False)
    assert answer.status_code == 401
    assert "No profile has this token" in answer.text
    assert not client.cookies


def test_a_link_signs_in_once(world: World) -> None:
    link = sign_in_link(world.app, BASE, "anna")
    path, _, code = link.partition("#code=")
    assert path == f"{BASE}{ROOT}/signin"  # what opens is in the fragment, which is not sent
    first, second = world.browser(None), world.browser(None)
    assert first.post(f"{ROOT}/signin", data={"code": code}).status_code == 200
    assert second.post(f"{ROOT}/signin", data={"code": code}).status_code == 401
    assert first.get(f"{ROOT}/data").status_code == 200


def test_codes_and_sessions_end_with_time() -> None:
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    early, late = sessions.new_code("anna"), sessions.new_code("anna")
    now[0] = CODE_SECONDS - 1
    assert sessions.take_code(early) == "anna"
    now[0] = CODE_SECONDS + 1
    assert sessions.take_code(late) is None
    cookie = sessions.new("anna")
    now[0] += IDLE_SECONDS - 1
    assert sessions.find(cookie) is not None
    now[0] += IDLE_SECONDS + 1
    assert sessions.find(cookie) is None
    cookie, begun = sessions.new("anna"), now[0]
    while now[0] < begun + LONGEST_SECONDS:  # a day of clicks after the other
        assert sessions.find(cookie) is not None
        now[0] += IDLE_SECONDS / 2
    now[0] += 1
    assert sessions.find(cookie) is None


def test_signing_out_ends_the_session(world: World, browser: TestClient) -> None:
    cookie = next(iter(browser.cookies.values()))
    browser.post(f"{ROOT}/signout")
    assert console_of(world.app).sessions.find(cookie) is None
    assert browser.get(f"{ROOT}/data", follow_redirects=False).status_code == 303


def test_a_revoked_token_ends_its_sessions(world: World) -> None:
    token, text = new_token(world.anna, scopes=["admin"])
    client = world.browser(None)
    client.post(f"{ROOT}/signin", data={"token": text})
    assert client.get(f"{ROOT}/data").status_code == 200
    revoke_token(world.anna, token.id)
    assert client.get(f"{ROOT}/data", follow_redirects=False).status_code == 303


# Whose data, and from where ---------------------------------------------------------


def test_nobody_sees_another_profile(world: World, browser: TestClient) -> None:
    for name in PAGES:
        assert "Bela" not in browser.get(f"{ROOT}/{name}").text
    gets = [
        "data/record?id=h-900",
        "data/erase?id=h-900",
        "data/erase?source=table:secret.csv",
        "data/records?text=secret",
    ]
    for path in gets:
        assert "Bela keeps" not in browser.get(f"{ROOT}/{path}").text
    for path in ("data/erase", "data/exclude"):
        answer = browser.post(f"{ROOT}/{path}", data={"id": "h-900", "number": "1"})
        assert answer.status_code == 400
    with world.bela.open_vault() as vault:
        assert vault.count() == 1 and not vault.excluded.ids()
    assert "Bela keeps" in world.browser("bela").get(f"{ROOT}/data").text  # so it could be seen


def test_jobs_of_others_are_not_seen(world: World, browser: TestClient) -> None:
    console_of(world.app).jobs.start("bela", "train", "Training Bela", lambda job: ["Bela"])
    assert "Bela" not in browser.get(f"{ROOT}/progress").text
    assert "Training Bela" in world.browser("bela").get(f"{ROOT}/progress").text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": BASE, "Sec-Fetch-Site": "same-site"},
        {"Origin": BASE, "Sec-Fetch-Site": "cross-site"},
        {},
    ],
)
def test_posts_of_other_pages_are_refused(world: World, headers: dict[str, str]) -> None:
    mine = world.browser()
    client = TestClient(world.app, base_url=BASE, cookies=mine.cookies, headers=headers)
    data = {"id": "h-1", "records": "9", "task": "LaMP_4", "field-text": "x"}
    for path in ("signin", "signout", "data/exclude", "chat/ask", "settings"):
        answer = client.post(f"{ROOT}/{path}", data=data, follow_redirects=False)
        assert answer.status_code == 403, path
    assert mine.get(f"{ROOT}/data").status_code == 200  # still signed in
    assert world.anna.config.retrieve == 2


def test_every_answer_has_a_strict_policy(world: World, browser: TestClient) -> None:
    for path in [
        "/",
        f"{ROOT}/chat",
        f"{ROOT}/signin",
        f"{ROOT}/static/htmx.min.js",
        f"{ROOT}/nix",
    ]:
        headers = browser.get(path).headers
        if path.endswith("nix"):
            continue  # no route of the console
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-frame-options"] == "DENY"


def test_no_page_has_a_script_style_or_address_of_elsewhere(browser: TestClient) -> None:
    for name in PAGES:
        text = browser.get(f"{ROOT}/{name}").text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|javascript:", text), name
        found = re.findall(r'(?:src|href|action)="([^"]+)"', text)
        assert found and all(address.startswith((f"{ROOT}/", "#")) for address in found), name


def test_text_of_users_is_escaped_everywhere(world: World, browser: TestClient) -> None:
    nasty = headline(500, id="nasty", output=NASTY, input={"text": NASTY}, source=NASTY)
    with world.anna.open_vault() as vault:
        vault.add([nasty])
    world.anna.open_ledger().append(
        device="anna", to=NASTY, kind=NASTY, policy="none", payload=NASTY, shows=["nasty"]
    )
    texts = [browser.get(f"{ROOT}/{name}").text for name in PAGES]
    texts.append(browser.get(f"{ROOT}/data/record", params={"id": "nasty"}).text)
    texts.append(browser.get(f"{ROOT}/data/erase", params={"source": NASTY}).text)
    texts.append(browser.get(f"{ROOT}/data", params={"text": NASTY, "source": NASTY}).text)
    texts.append(browser.get(f"{ROOT}/ledger/1").text)
    texts += [line["foot"] for line in ask(browser, NASTY) if "foot" in line]
    texts.append(browser.get(f"{ROOT}/chat").text)  # the last answers
    shown = 0
    for text in texts:
        assert "<script>alert" not in text
        assert "8641969" not in text  # no template of theirs was run
        shown += text.count("&lt;script&gt;alert")
    assert shown > 10


# Chat -------------------------------------------------------------------------------


def test_both_models_answer_and_say_what_it_rests_on(world: World, browser: TestClient) -> None:
    lines = ask(browser)
    whole = {line["column"]: line["whole"] for line in lines if "whole" in line}
    assert whole["generic"] == "A plain answer of nobody"
    assert whole["mine"].startswith("Like yours: Ice closes harbour")
    pieces = [line["text"] for line in lines if line.get("column") == "mine" and "text" in line]
    assert len(pieces) > 3 and "".join(pieces).strip() == whole["mine"]
    foot = {line["column"]: line["foot"] for line in lines if "foot" in line}
    assert "2 records" in foot["mine"] and "no personal adapter" in foot["mine"]
    assert foot["mine"].count("Never use this") == 2
    assert "plain backbone" in foot["generic"] and "This one is better" in foot["generic"]
    assert lines[-1] == {"done": True}
    with world.anna.open_vault() as vault:
        assert [one.answer for one in vault.feedback.answers()] == [whole["mine"]]


def test_one_column_asks_one_model_only(world: World, browser: TestClient) -> None:
    lines = ask(browser, compare="false")
    assert {line.get("column") for line in lines} == {"mine", None}
    runtime: Any = world.service.runtime("anna")
    assert isinstance(runtime, RuledRuntime) and len(runtime.streams) == 1


def test_earlier_turns_reach_free_questions_only(world: World, browser: TestClient) -> None:
    turns = json.dumps([["user", "first"], ["assistant", "second"], ["system", "no"]])
    runtime: Any = world.service.runtime("anna")
    ask(browser, task="instruction", turns=turns, **{"field-instruction": "go on"})
    assert {one.prompt for one in runtime.asked} == {"first second go on", "go on"}  # generic: last
    runtime.asked.clear()
    ask(browser, turns=turns)
    assert not [one for one in runtime.asked if "first" in one.prompt]


def test_an_error_of_the_device_is_one_line(world: World, browser: TestClient) -> None:
    answer = browser.post(f"{ROOT}/chat/ask", data={"task": "LaMP_4", "field-text": " "})
    assert (answer.status_code, answer.headers["content-type"][:9]) == (400, "text/html")
    accept = {"Accept": "application/x-ndjson"}
    answer = browser.post(f"{ROOT}/chat/ask", data={"task": "nix"}, headers=accept)
    assert answer.status_code == 400 and "unknown task" in answer.text
    assert "\n" not in answer.text.strip() and "<" not in answer.text


def test_a_closed_chat_stops_the_models(tmp_path: Path) -> None:
    home = make_home(tmp_path, "anna", [headline(1)])
    service = make_service([home], seconds=0.05)
    app = create_app(service)
    code = console_of(app).sessions.new_code("anna")
    client = TestClient(app, base_url=BASE, headers=HERE_FROM)
    client.post(f"{ROOT}/signin", data={"code": code})
    import asyncio

    from pfi.serve.console.chat import _lines, _Talk
    from pfi.serve.console.view import Visit

    visit = Visit(None, console_of(app), "anna")  # type: ignore[arg-type]
    talk = _Talk(visit, service.task("anna", "LaMP_4"), {"text": "x"}, [])

    async def first_only() -> None:
        lines = _lines(talk, {"mine": talk.mine, "generic": talk.generic})
        await anext(lines)
        await lines.aclose()

    asyncio.run(first_only())
    runtime: Any = service.runtime("anna")
    assert runtime.streams
    wait_for(lambda: all(stream.cancelled for stream in runtime.streams))


def test_feedback_becomes_records_and_preferences(world: World, browser: TestClient) -> None:
    about = {"task": "LaMP_4", "input": json.dumps({"text": "Rain"}), "answer": "Rain falls"}
    said = browser.post(f"{ROOT}/chat/feedback", data={**about, "correction": "Rain at last"})
    assert said.status_code == 204 and "Noted" in said.headers["hx-trigger"]
    browser.post(f"{ROOT}/chat/feedback", data={**about, "rating": "bad"})
    browser.post(f"{ROOT}/chat/feedback", data={**about, "better_than": "Worse"})
    with world.anna.open_vault() as vault:
        entries = vault.feedback.entries()
        made = [r.output for r in vault.find(source="feedback:")]
    assert [(e.correction, e.rating, e.better_than) for e in entries] == [
        ("Rain at last", None, None),
        (None, "bad", None),
        (None, None, "Worse"),
    ]
    assert made == ["Rain at last"]
    wrong = browser.post(
        f"{ROOT}/chat/feedback", data={**about, "rating": "good", "correction": "x"},
        headers={"HX-Request": "true"},
    )  # fmt: skip
    assert wrong.status_code == 400 and "neither good" in wrong.text


def test_a_record_that_is_never_used_is_kept_out(world: World, browser: TestClient) -> None:
    newest = "Ice closes harbour 29"
    assert newest in str(ask(browser))
    made = headline(
        700, origin="synthetic", made=Provenance("t", "s", "p", ("h-29",)), source="teacher"
    )
    with world.anna.open_vault() as vault:
        vault.add([made])
    answer = browser.post(f"{ROOT}/data/exclude", data={"id": "h-29"})
    assert "Use it again" in answer.text
    assert "1 synthetic record made from them" in answer.headers["hx-trigger"]
    assert newest not in str(ask(browser))
    with world.anna.open_vault() as vault:
        assert {"h-29", "h-700"}.isdisjoint({r.id for r in vault.history("LaMP_4")})
        assert vault.excluded.ids() == {"h-29", "h-700"}
    assert "not used" in browser.get(f"{ROOT}/data").text
    browser.post(f"{ROOT}/data/include", data={"id": "h-29"})
    assert newest in str(ask(browser))
    with world.anna.open_vault() as vault:
        assert not vault.excluded.ids()


# Data -------------------------------------------------------------------------------


def test_data_is_counted_searched_and_paged(browser: TestClient) -> None:
    page = browser.get(f"{ROOT}/data").text
    assert "30 records on this device" in page and "table:headlines.csv" in page
    assert "Show more" in page and "Ice closes harbour 29" in page
    more = browser.get(f"{ROOT}/data/records", params={"start": 25}).text
    assert "Ice closes harbour 4" in more and "Show more" not in more
    found = browser.get(f"{ROOT}/data/records", params={"text": "HARBOUR 17"}).text
    assert found.count('class="row record') == 1
    assert "No record matches" in browser.get(f"{ROOT}/data/records?text=nothing").text


def test_erasing_one_record_takes_two_steps(world: World, browser: TestClient) -> None:
    step = browser.get(f"{ROOT}/data/erase", params={"id": "h-3"}).text
    assert "Erase 1 record?" in step
    with world.anna.open_vault() as vault:
        assert vault.count() == 30  # a look erases nothing
    refused = browser.post(f"{ROOT}/data/erase", data={"id": "h-3", "number": "2"})
    assert refused.status_code == 400
    done = browser.post(f"{ROOT}/data/erase", data={"id": "h-3", "number": "1"})
    assert re.search(r"records: 1\b", done.text) and "signature" in done.text
    with world.anna.open_vault() as vault:
        assert vault.count() == 29 and not list(vault.find(ids={"h-3"}))


def test_a_source_is_erased_exactly(world: World, browser: TestClient) -> None:
    with world.anna.open_vault() as vault:
        vault.add([headline(600 + n, source="table:headlines.csv.old") for n in range(2)])
    step = browser.get(f"{ROOT}/data/erase", params={"source": "table:headlines.csv"}).text
    assert "Erase 30 records?" in step
    data = {"source": "table:headlines.csv", "number": "30"}
    browser.post(f"{ROOT}/data/erase", data=data)
    with world.anna.open_vault() as vault:
        assert {r.source for r in vault.find()} == {"table:headlines.csv.old"}


# Import -----------------------------------------------------------------------------


def upload(client: TestClient, *files: tuple[str, bytes], **form: str) -> Any:
    parts = [("files", (name, data, "application/octet-stream")) for name, data in files]
    headers = {"HX-Request": "true"}
    return client.post(f"{ROOT}/data/import", files=parts, data=form, headers=headers)


def test_a_dropped_table_is_imported(world: World, browser: TestClient) -> None:
    options = {"kind": "table", "option-task": "LaMP_4", "option-map": "title=Head,text=Body"}
    rows = b"Head,Body\nA new one,Something happened\n,nothing\n"
    answer = upload(browser, ("mine.csv", rows), **options)
    assert "1 record added" in answer.text and "left out" in answer.text
    again = upload(browser, ("mine.csv", rows), **options)
    assert "0 records added" in again.text and "1 was there already" in again.text
    with world.anna.open_vault() as vault:
        (record,) = vault.find(text="A new one")
    assert record.source == "table:mine.csv"
    assert not [*Path(tempfile.gettempdir()).glob("pfi-import-*")]


def test_a_dropped_repository_brings_no_programs(
    world: World, browser: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pfi.profile.vault.imports

    read, seen = pfi.profile.vault.imports.import_records, []

    def watched(home: Home, kind: str, path: Path, *rest: Any) -> Any:
        seen.extend(str(file.relative_to(path)) for file in path.rglob("*"))
        return read(home, kind, path, *rest)

    monkeypatch.setattr(pfi.profile.vault.imports, "import_records", watched)
    folder = tmp_path / "kitchen"
    run = ["git", "-C", str(folder), "-c", "user.name=Anna", "-c", "user.email=anna@example.org"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    for n in range(3):
        (folder / f"recipe{n}.txt").write_text(f"soup number {n}")
        subprocess.run([*run, "add", "-A"], check=True)
        subprocess.run([*run, "commit", "-q", "-m", f"Add soup {n} to the book"], check=True)
    subprocess.run([*run, "gc", "-q"], check=True)  # leaves empty folders, which no upload has
    trap = tmp_path / "trapped"
    with (folder / ".git/config").open("a") as config:
        config.write(f'[core]\n\tfsmonitor = "touch {trap}"\n\tpager = "touch {trap}"\n')
    (folder / ".git/hooks/post-checkout").write_text(f"#!/bin/sh\ntouch {trap}\n")
    files = [
        (f"kitchen/{path.relative_to(folder)}", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    unclear = upload(browser, *files, kind="git", **{"option-author": "x@example.org"})
    assert unclear.status_code == 400 and "anna@example.org" in unclear.text
    assert "pfi-import" not in unclear.text
    answer = upload(browser, *files, **{"option-author": "anna@example.org"})
    assert "3 records added" in answer.text and "read as git" in answer.text
    assert not trap.exists()
    assert ".git/HEAD" in seen  # what is read holds no program's name
    assert {".git/config", ".git/hooks/post-checkout"}.isdisjoint(seen)
    with world.anna.open_vault() as vault:
        assert {r.source for r in vault.find(task="commit_message")} == {"git:kitchen"}


def test_names_that_lead_elsewhere_are_refused(browser: TestClient) -> None:
    for name in ("../x.csv", "/etc/x.csv", "a/../../x.csv", "..\\x.csv"):
        answer = upload(browser, (name, b"text\nx\n"), kind="table")
        assert answer.status_code == 400 and "leads elsewhere" in answer.text, name


def test_an_unclear_file_asks_for_its_kind(browser: TestClient) -> None:
    answer = upload(browser, ("what.bin", b"\0\1"))
    assert answer.status_code == 400 and "choose the kind" in answer.text
    assert "option-map" in browser.get(f"{ROOT}/data/options?kind=table").text


def test_what_a_killed_import_left_is_removed(tmp_path: Path) -> None:
    from pfi.serve.console.upload import private_folder

    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Path(tempfile.mkdtemp(prefix=f"pfi-import-{gone.pid}-"))
    (left / "mail.mbox").write_text("private")
    with private_folder() as folder:
        assert not left.exists()
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "x").write_text("x")
    assert not folder.exists()


# Adapters, progress, ledger, settings -----------------------------------------------


def test_versions_are_used_rolled_back_and_left(world: World, browser: TestClient) -> None:
    first = add_version(world.anna, records=20, metrics={"loss": 1.25, "loss_before": 2.5})
    second = add_version(world.anna, records=30)
    page = browser.get(f"{ROOT}/adapters").text
    assert "1.250" in page and "from 2.500" in page and "20 records" in page
    active = world.anna.personal_adapters.active

    def post(what: str, **data: str) -> None:
        assert browser.post(f"{ROOT}/adapters/{what}", data=data).status_code == 204

    post("use", version=first)
    post("use", version=second)
    assert active("LaMP_4") == second
    assert "in use" in browser.get(f"{ROOT}/adapters").text
    assert f"adapter {second}" in str(ask(browser))
    post("rollback", task="LaMP_4")
    assert active("LaMP_4") == first
    post("none", task="LaMP_4")
    assert active("LaMP_4") is None
    assert browser.post(f"{ROOT}/adapters/use", data={"version": "0099"}).status_code == 400


def test_one_job_at_a_time_with_progress_that_survives_a_reload(
    world: World, browser: TestClient
) -> None:
    import threading

    go, jobs = threading.Event(), console_of(world.app).jobs

    def work(job: Job) -> list[str]:
        job.on_stage("training")
        for step in range(1, 4):
            job.on_step(step, 4, 1.0 / step)
        go.wait(20)
        job.on_step(4, 4, 0.1)
        return ["It is better <b>now</b>."]

    job = jobs.start("anna", "train", "Training your adapter", work)
    wait_for(lambda: job.step == 3)
    for _ in range(2):
        assert "step 3 of 4" in browser.get(f"{ROOT}/progress").text
    refused = browser.post(
        f"{ROOT}/progress/start", data={"kind": "train"}, headers={"HX-Request": "true"}
    )
    assert refused.status_code == 400 and "something else is running" in refused.text
    go.set()
    wait_for(lambda: not job.running)
    ended = browser.get(f"{ROOT}/progress/now", params={"began": job.number})
    assert ended.headers["hx-refresh"] == "true"
    assert "It is better &lt;b&gt;now&lt;/b&gt;." in browser.get(f"{ROOT}/progress").text


def test_a_job_is_stopped(world: World, browser: TestClient) -> None:
    import time

    def work(job: Job) -> list[str]:
        for step in range(100_000):
            job.on_step(step, 100_000, 1.0)
            time.sleep(0.005)
        return []

    job = console_of(world.app).jobs.start("anna", "train", "Training", work)
    browser.post(f"{ROOT}/progress/cancel")
    wait_for(lambda: not job.running)
    assert job.state == "cancelled"
    assert "Nothing was changed" in browser.get(f"{ROOT}/progress").text


def test_jobs_fail_in_one_line_and_quote_no_text() -> None:
    jobs = Jobs()

    def broken(job: Job) -> list[str]:
        raise ValueError("a private text")

    job = jobs.start("anna", "train", "Training", broken)
    wait_for(lambda: not job.running)
    assert (job.state, "private" in str(job.told)) == ("failed", False)
    job.cancel()
    with pytest.raises(Cancelled):
        job.on_stage("more")


def test_training_and_refreshing_are_started(
    world: World, browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pfi.profile.learn.training

    asked: list[Any] = []

    def train(home: Home, task: Any, **how: Any) -> Any:
        asked.append((home.profile, task.name, how["holdout"]))
        how["on_stage"]("training")
        from pfi.profile.learn.training import Trained

        version = add_version(home, records=24)
        manifest = home.personal_adapters.use(version)
        return Trained(manifest, {"loss": 3.0}, {"loss": 2.0}, 6)

    monkeypatch.setattr(pfi.profile.learn.training, "train", train)
    data = {"kind": "train", "task": "LaMP_4", "holdout": "0.25"}
    answer = browser.post(f"{ROOT}/progress/start", data=data)
    assert answer.headers["hx-redirect"] == f"{ROOT}/progress"
    jobs = console_of(world.app).jobs
    wait_for(lambda: not jobs.busy())
    assert asked == [("anna", "LaMP_4", 0.25)]
    assert "loss 3.000 → 2.000" in browser.get(f"{ROOT}/progress").text
    assert browser.post(f"{ROOT}/progress/start", data={"kind": "dance"}).status_code == 400


def test_a_refresh_says_what_came_of_it(
    world: World, browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfi.profile.learn import refresh
    from pfi.profile.learn.drift import Check, Drift

    drift, checks = Drift(True, "", 30), (Check("recent", 12, 2.0, 1.5, 0.01, True),)
    done = refresh.Refreshed("LaMP_4", "rejected", drift, "it is worse", checks, None, ("day",))
    monkeypatch.setattr(refresh, "refresh", lambda home, task, **how: done)
    browser.post(f"{ROOT}/progress/start", data={"kind": "refresh", "task": "LaMP_4"})
    jobs = console_of(world.app).jobs
    wait_for(lambda: not jobs.busy())
    page = browser.get(f"{ROOT}/progress").text
    assert "12 new records that neither has learnt from: loss 2.000 → 1.500 ✓" in page
    assert "Nothing changed: it is worse" in page and "Feedback of batch day" in page


def test_text_leaves_only_to_the_host_that_was_agreed_to(
    world: World, browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "x")
    url = "http://teacher.example/v1"
    configure(world.anna, model="m", base_url=url, api_key_env="TEACHER_KEY")
    data = {"kind": "openai", "policy": "redact"}
    assert browser.post(f"{ROOT}/settings/teacher", data=data).status_code == 204
    assert "teacher.example" in browser.get(f"{ROOT}/progress").text
    for agreed in ("", "another.example"):
        answer = browser.post(
            f"{ROOT}/progress/augment",
            data={"task": "LaMP_4", "agreed": agreed},
            headers={"HX-Request": "true"},
        )
        assert answer.status_code == 400 and "teacher.example" in answer.text
    assert console_of(world.app).jobs.last("anna") is None
    assert not list(world.anna.open_ledger().entries())


def test_the_ledger_is_shown_in_words_and_bytes(world: World, browser: TestClient) -> None:
    assert "Nothing. No text" in browser.get(f"{ROOT}/ledger").text
    ledger = world.anna.open_ledger()
    for n in range(3):
        ledger.append(
            device="anna", to="api.example.org", kind="teacher call", policy="redact",
            payload=json.dumps({"n": n, "text": "five words of some text"}),
        )  # fmt: skip
    ledger.append(device="anna", to="hub", kind="update", policy="dp", payload=b"\0" * 4096)
    page = browser.get(f"{ROOT}/ledger").text
    assert "4 entries, as written" in page and "4.1 kB" in page and "2 receivers" in page
    assert "five words" not in page  # texts are opened one by one
    assert "five words" in browser.get(f"{ROOT}/ledger/2").text
    assert "not text" in browser.get(f"{ROOT}/ledger/4").text
    assert browser.get(f"{ROOT}/ledger/9").status_code == 400
    only = browser.get(f"{ROOT}/ledger", params={"to": "hub"}).text
    assert only.count('class="row sent"') == 1


def test_a_damaged_ledger_is_told(world: World, browser: TestClient) -> None:
    world.anna.open_ledger().append(
        device="anna", to="x", kind="teacher call", policy="none", payload="secret"
    )
    file = world.anna.ledger_file
    file.write_text(file.read_text().replace('"bytes":6', '"bytes":7'))
    assert "cannot be read" in browser.get(f"{ROOT}/ledger").text


def test_settings_are_kept_and_wrong_ones_refused(world: World, browser: TestClient) -> None:
    data = {"task": "LaMP_4", "retrieve": "5", "answers": "9", "names": "Maria Lopes\nJonas"}
    assert browser.post(f"{ROOT}/settings", data=data).status_code == 204
    again = open_home("anna", root=world.anna.path.parent)
    assert (again.config.retrieve, again.config.answers, again.config.task) == (5, 9, "LaMP_4")
    assert "Maria Lopes" in browser.get(f"{ROOT}/settings").text
    wrong = browser.post(
        f"{ROOT}/settings", data={**data, "retrieve": "99"}, headers={"HX-Request": "true"}
    )
    assert wrong.status_code == 400 and "retrieve" in wrong.text
    assert world.anna.config.retrieve == 5
    bad = browser.post(f"{ROOT}/settings", data={**data, "task": "../x.yaml"})
    assert bad.status_code == 400


def test_tokens_are_made_shown_once_and_revoked(world: World, browser: TestClient) -> None:
    made = browser.post(f"{ROOT}/settings/tokens", data={"label": "my writing app"}).text
    (text,) = re.findall(r"pfi-[\w-]{40,}", made)
    caller = world.service.gatekeeper.caller(text)
    assert caller is not None and caller.profile == "anna"
    page = browser.get(f"{ROOT}/settings").text
    assert "my writing app" in page and text not in page
    browser.post(f"{ROOT}/settings/tokens/revoke", data={"token": caller.token})
    assert "my writing app" not in browser.get(f"{ROOT}/settings").text


def test_erasing_everything_needs_the_name(world: World, browser: TestClient) -> None:
    add_version(world.anna)
    answer = browser.post(f"{ROOT}/settings/erase", data={"name": "bela"})
    assert answer.status_code == 400
    with world.anna.open_vault() as vault:
        assert vault.count() == 30
    done = browser.post(f"{ROOT}/settings/erase", data={"name": "anna"})
    assert "Erased" in done.text and "signature" in done.text
    with world.anna.open_vault() as vault:
        assert vault.count() == 0
    assert not world.anna.personal_adapters.versions()
    with world.bela.open_vault() as vault:
        assert vault.count() == 1


# What it is made of -----------------------------------------------------------------


def test_vendored_files_are_as_pinned_and_ours_are_small() -> None:
    static = HERE / "static"
    pinned = {
        file["file"]: file["sha256"]
        for entry in json.loads((static / "VENDORED.json").read_text())
        for file in entry["files"]
    }
    for name, digest in pinned.items():
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == digest, name
    assert {"htmx.min.js", "pico.min.css", "htmx.LICENSE", "pico.LICENSE.md"} <= {*pinned}
    ours = {file.name for file in static.iterdir()} - {*pinned}
    assert ours == {
        "VENDORED.json", "console.css", "console.js", "theme.js", "icon.svg", "icons.svg"
    }  # fmt: skip
    assert len((static / "console.js").read_text().splitlines()) < 300


def test_static_files_are_those_and_no_others(browser: TestClient) -> None:
    assert browser.get(f"{ROOT}/static/console.css").headers["content-type"].startswith("text/css")
    for name in ("VENDORED.json", "..%2frouter.py", "router.py", "nix.js"):
        assert browser.get(f"{ROOT}/static/{name}").status_code == 404


# Conversations ----------------------------------------------------------------------


def test_what_the_model_is_told_goes_before_the_turns(world: World, browser: TestClient) -> None:
    turns = json.dumps([["user", "first"], ["assistant", "second"]])
    told = {"task": "instruction", "turns": turns, "system": "be short", "field-instruction": "on"}
    lines = ask(browser, **told)
    runtime: Any = world.service.runtime("anna")
    mine = next(one for one in runtime.asked if one.gate != "generic")
    assert mine.prompt == "be short first second on"
    whole = next(line for line in lines if line.get("column") == "mine" and "whole" in line)
    assert whole["asked"] == "on" and whole["cut"] == 0 and whole["dropped"] == 0
    ask(browser, turns=turns, system="be short")  # a task with a prompt of its own
    assert "first" not in runtime.asked[-1].prompt and "short" not in runtime.asked[-1].prompt


def test_a_cut_is_shown_and_the_answer_goes_on(world: World, browser: TestClient) -> None:
    world.anna.config.max_tokens = 2
    lines = ask(browser, compare="false")
    whole = next(line for line in lines if "whole" in line)
    assert whole["cut"] == 2
    lines = ask(browser, more=whole["raw"])
    assert {line.get("column") for line in lines} == {"mine", None}
    more = next(line for line in lines if "whole" in line)
    assert more["whole"].startswith(whole["whole"]) and len(more["whole"]) > len(whole["whole"])
    with world.anna.open_vault() as vault:
        assert vault.feedback.answers()[0].answer == more["whole"]


def test_turns_without_room_are_told(world: World, browser: TestClient) -> None:
    turns = json.dumps([[role, f"{n}"] for n in range(9) for role in ("user", "assistant")])
    lines = ask(browser, task="instruction", turns=turns, **{"field-instruction": "go on"})
    dropped = {line["dropped"] for line in lines if "dropped" in line}
    assert max(dropped) == 14


def test_both_models_are_asked_alike_where_the_task_was_a_guess(
    world: World, browser: TestClient
) -> None:
    runtime: Any = world.service.runtime("anna")
    text = "What is the capital of France?"
    ask(browser, text, named="false")
    assert {one.task.name for one in runtime.asked} == {"instruction"}
    assert [one.prompt for one in runtime.asked] == [text, text]
    with world.anna.open_vault() as vault:
        kept = vault.feedback.answers()[0]
    assert (kept.task, dict(kept.input)) == ("instruction", {"instruction": text})
    runtime.asked.clear()
    ask(browser, text, named="true")
    assert {one.task.name for one in runtime.asked} == {"LaMP_4"}


def test_settings_of_conversations_are_kept(world: World, browser: TestClient) -> None:
    from pfi.profile.answer.conversation import read_system

    data = {"retrieve": "2", "answers": "9", "system": "Be short", "max_tokens": "64"}
    sampled = {**data, "temperature": "0.7", "top_p": "0.9"}
    world.anna.config.sampling = {"min_p": 0.1}
    assert browser.post(f"{ROOT}/settings", data=sampled).status_code == 204
    again = open_home("anna", root=world.anna.path.parent)
    assert again.config.sampling == {"min_p": 0.1, "temperature": 0.7, "top_p": 0.9}
    assert again.config.max_tokens == 64 and read_system(again) == "Be short"
    assert "Be short" in browser.get(f"{ROOT}/chat").text
    wrong = browser.post(f"{ROOT}/settings", data={**data, "temperature": "9"})
    assert wrong.status_code == 400 and again.config.max_tokens == 64
    browser.post(f"{ROOT}/settings", data=data)
    assert world.anna.config.sampling == {"min_p": 0.1}
