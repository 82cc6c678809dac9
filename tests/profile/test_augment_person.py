"""Augmentation for one person: vault, plan, consent, synthetic records, training on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pfi._util.settings import nested_settings
from pfi._util.sqlite import sqlite3
from pfi.augment.config import FilterConfig
from pfi.augment.forms import write_records
from pfi.augment.teachers.teacher import Call, Reply, Unusable, Usage
from pfi.cli.app import app
from pfi.errors import ConfigError, DataError
from pfi.models.backbone import Backbone, load_backbone
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn.augmenting import Augmentation, augment, augment_config
from pfi.profile.learn.pool import read_pool
from pfi.profile.learn.training import divide, train
from pfi.profile.open import create_home
from pfi.profile.vault.vault import SCHEMA_VERSION, Vault
from pfi.records import Provenance, Record
from pfi.tasks import get_task

DAY = datetime(2024, 1, 1, tzinfo=UTC)
TASK = get_task("LaMP_4")
QUICK = {"epochs": 1, "batch_size": 4, "rank": 2}
STORIES = [
    "rain over the harbour and a storm by night",
    "a new tea house opens beside the old mill",
    "the council votes on cycle lanes again",
    "local team wins the cup after extra time",
    "school choir sings for the whole town",
    "bakers argue about the best sourdough",
]
HEADS = ["Storm ahead", "Tea time", "Lanes, again", "Cup fever", "Choir calls", "Dough wars"]


def real(n: int, **changes: Any) -> Record:
    fields = {"text": f"{STORIES[n]}, says ann.lee@example.org"}
    return replace(Record(f"r{n}", "LaMP_4", fields, HEADS[n], DAY + timedelta(n)), **changes)


def synthetic(n: int, *seeds: str, teacher: str = "t", **changes: Any) -> Record:
    made = Provenance(teacher, "write", "write-0", seeds, "", 0.75, {"copies": 0.1})
    one = Record(
        f"s{n}", "LaMP_4", {"text": f"made story {n}"}, "Made", None, "synthetic", "", made
    )
    return replace(one, **changes)


class Scripted:
    """A teacher elsewhere that writes about what it is asked, and notes what reaches it."""

    name, host, batch, concurrency = "scripted", "teacher.example", 1, 1

    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.fail_after: int | None = None

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        self.seen += calls
        if self.fail_after is not None and len(self.seen) > self.fail_after:
            raise KeyboardInterrupt
        return [self._one(call) for call in calls]

    def _one(self, call: Call) -> Reply:
        place, topic = len(self.seen), STORIES[len(self.seen) % len(STORIES)]
        made = [
            ({"text": f"{word} {topic} on {word} street {place}"}, f"{word} {place}")
            for word in ("early", "late", "loud", "quiet")
        ]
        return Reply(write_records(TASK, made), Usage(900, 100))

    def price(self, usage: Usage) -> Usage:
        return replace(usage, usd=usage.tokens / 1e5)


@pytest.fixture
def home(
    backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Home:
    """A profile with six dated LaMP_4 records; what is drafted is kept."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    off = dict.fromkeys(FilterConfig.model_fields)
    config = HomeConfig(
        backbone=str(backbone_folder("llama")), augment={"records": 4, "filters": off}
    )
    made = create_home(config=config)
    with made.open_vault() as vault:
        vault.add(real(n) for n in range(6))
    return made


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()
    monkeypatch.setattr(
        "pfi.augment.teachers.make.make_teacher",
        lambda config, embedded: embedded() if config.kind == "embedded" else made,
    )
    return made


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


def pfi(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def made_records(home: Home) -> list[Record]:
    with home.open_vault() as vault:
        return list(vault.history("LaMP_4", origin="synthetic"))


ELSEWHERE = ("augment", "--teacher", "openai", "--model", "m", "--url", "http://teacher.example/v1")


# Vault ------------------------------------------------------------------------------


def test_vault_of_version_1_is_migrated_and_keeps_its_records(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    with sqlite3.connect(path) as db:
        db.execute(
            """CREATE TABLE records (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            hash TEXT NOT NULL UNIQUE, task TEXT NOT NULL, origin TEXT NOT NULL, time TEXT,
            added TEXT NOT NULL, source TEXT NOT NULL, input TEXT NOT NULL, output TEXT NOT NULL
            ) STRICT"""
        )
        old = real(0)
        day = DAY.isoformat()
        row: tuple[str, ...] = (old.id, old.content_hash, "LaMP_4", "real", day, day)
        row += ("", json.dumps(dict(old.input)), old.output)
        db.execute(f"INSERT INTO records VALUES (1, {', '.join('?' * 9)})", row)
        db.execute("PRAGMA user_version = 1")
    db.close()
    with Vault(path) as vault, Vault(path) as beside:
        assert list(vault.history("LaMP_4")) == [old]
        assert beside.add([real(0), synthetic(1, "r0")]) == (1, 1)
    with Vault(path) as vault:
        assert vault._version() == SCHEMA_VERSION
        assert vault.history("LaMP_4", origin="synthetic")[0] == synthetic(1, "r0")


def test_making_comes_back_whole_and_only_the_teachers_records_are_replaced(
    tmp_path: Path,
) -> None:
    imported = synthetic(9, made=None)
    mine, others = synthetic(1, "r0"), synthetic(2, "r1", teacher="other")
    elsewhere = synthetic(3, task="LaMP_5")
    with Vault(tmp_path / "vault.db") as vault:
        vault.add([real(0), imported, mine, others, elsewhere])
        assert vault.replace_made("LaMP_4", "t", [synthetic(4, "r0"), mine]) == 1
        left = list(vault.history("LaMP_4", origin="synthetic"))
        assert left == [imported, others, synthetic(4, "r0"), mine]
        assert vault.replace_made("LaMP_4", None, []) == 3
        assert [one.id for one in vault.history("LaMP_4")] == ["r0", "s9"]
        assert len(vault.history("LaMP_5")) == 1


# Settings ---------------------------------------------------------------------------


def test_nested_settings_join_the_profiles_own(home: Home) -> None:
    pairs = ["teacher.model=m", "filters.agreement=0.8", "votes=5", "teacher.timeout=9"]
    config = augment_config(home, nested_settings(pairs))
    assert (config.teacher.model, config.teacher.timeout, config.votes) == ("m", 9.0, 5)
    assert config.filters.agreement == 0.8 and config.filters.distance is None
    assert config.records == 4  # the profile's
    with pytest.raises(ConfigError, match="colour"):
        augment_config(home, nested_settings(["teacher.colour=red"]))
    with pytest.raises(ConfigError, match="key=value"):
        nested_settings(["votes"])
    with pytest.raises(ConfigError, match="section"):
        nested_settings(["teacher=x", "teacher.model=m"])


# Augmenting -------------------------------------------------------------------------


def test_augment_then_train_then_ask(home: Home, teacher: Scripted) -> None:
    pfi("names", "Gudrun")
    with home.open_vault() as vault:
        vault.add([real(0, id="g", input={"text": "lunch with Gudrun at the pier, rain"})])
    done = pfi(*ELSEWHERE, "--yes")
    assert "teacher.example, policy redact" in done.stderr
    assert "Added 4 synthetic records of LaMP_4" in done.stdout and "filter" in done.stdout
    assert "pfi train --task LaMP_4" in done.stderr
    found = made_records(home)
    assert len(found) == 4 and all(r.made and r.made.teacher == "scripted" for r in found)
    assert all(r.made and set(r.made.seeds) <= {"g", *(f"r{n}" for n in range(6))} for r in found)
    # What left is in the ledger, word by word, and held no identifier.
    entries = list(home.open_ledger().entries())
    assert len(entries) == len(teacher.seen) > 0
    assert {(e.device, e.to, e.policy) for e in entries} == {
        ("default", "teacher.example", "redact")
    }
    sent = " ".join(str(entry.payload) for entry in entries)
    assert "ann.lee" not in sent and "Gudrun" not in sent and "harbour" in sent
    assert all(call.material is None and call.user == "" for call in teacher.seen)

    trained = pfi("train", "--epochs", "1", "--rank", "2")
    assert "7 real and 4 synthetic records" in trained.stdout
    manifest = home.personal_adapters.manifest("0001")
    assert (manifest.records, manifest.config["synthetic"]) == (7, 4)
    assert "4 synthetic" in pfi("status").stdout
    assert "personal adapter: 0001" in pfi("ask", "tea", "--why").stderr
    assert "synthetic-" not in pfi("ask", "early rain street", "--why", "-k", "4").stderr


def test_again_pays_nothing_and_replaces_unless_kept(home: Home, teacher: Scripted) -> None:
    pfi(*ELSEWHERE, "--yes")
    first, paid = made_records(home), len(teacher.seen)
    again = pfi(*ELSEWHERE)  # all answers are there: nothing leaves, so nobody is asked
    assert len(teacher.seen) == paid and "in the place of 4" in again.stdout
    assert f"{paid} from before" in again.stdout and "0 tokens this time" in again.stdout
    assert [(r.input, r.made) for r in made_records(home)] == [(r.input, r.made) for r in first]
    pfi(*ELSEWHERE, "--yes", "--set", "seed=5", "--keep")
    assert len(made_records(home)) == 8 and len(teacher.seen) > paid
    assert "Erased 8" in pfi("augment", "--remove").stdout
    assert made_records(home) == []
    with home.open_vault() as vault:
        assert vault.count() == 6


def test_stopped_and_run_again_pays_for_no_answer_twice(
    home: Home, teacher: Scripted, backbone: Backbone
) -> None:
    config = augment_config(home, {"teacher": {"kind": "openai"}, "records": 8})
    teacher.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        augment(home, TASK, config, backbone=backbone)
    assert made_records(home) == []
    teacher.fail_after = None
    made = augment(home, TASK, config, backbone=backbone)
    keys = [call.key("scripted") for call in teacher.seen]
    assert made.client.cached == 2 and len(keys) == len(set(keys)) + 1  # the one that was cut off


def test_dry_run_shows_what_would_leave_and_writes_nothing(home: Home, teacher: Scripted) -> None:
    before = {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()}
    shown = pfi(*ELSEWHERE, "--dry-run", "--set", "teacher.usd_per_million_prompt=1000000").stdout
    assert "teacher.example, policy redact" in shown and "nothing was sent or written" in shown
    assert "harbour" in shown and "ann.lee" not in shown
    assert "2 calls from 6 real records" in shown
    assert "price not known" in shown  # only one of the two prices is
    assert teacher.seen == []
    assert {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()} == before
    assert not home.ledger_file.exists() and not home.teacher_file.exists()


def test_plan_counts_calls_that_follow_and_what_is_paid(
    home: Home, teacher: Scripted, backbone: Backbone
) -> None:
    prices = {"usd_per_million_prompt": 1.0, "usd_per_million_completion": 2.0}
    config = augment_config(
        home, {"teacher": {"kind": "openai", **prices}, "strategies": ["profile"]}
    )
    work = Augmentation(home, TASK, config, backbone=backbone)
    plan = work.plan()
    assert (len(plan.first), plan.estimate.calls, plan.estimate.cached) == (1, 3, 0)
    assert plan.estimate.usd is not None and plan.estimate.usd > 0
    run = work.run()
    assert run.client.calls == 3
    after = work.plan()
    assert (after.estimate.calls, after.estimate.cached, after.estimate.usd) == (3, 3, 0)


def test_consent_is_asked_for_and_can_be_refused(
    home: Home, teacher: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = pfi(*ELSEWHERE, code=2)
    assert "nobody can be asked" in refused.stderr and "--yes" in refused.stderr
    monkeypatch.setattr("pfi.cli.augment._interactive", lambda: True)
    assert "Send it?" in pfi(*ELSEWHERE, code=1, stdin="n\n").stderr
    assert teacher.seen == [] and not home.ledger_file.exists()
    pfi(*ELSEWHERE, stdin="y\n")
    assert teacher.seen


def test_policies(home: Home, teacher: Scripted) -> None:
    local = pfi(*ELSEWHERE, "--yes", "--policy", "local", code=2)
    assert "nothing may leave" in local.stderr and teacher.seen == []
    assert "policy" in pfi(*ELSEWHERE, "--yes", "--policy", "nonsense", code=2).stderr
    told = pfi(*ELSEWHERE, "--yes", "--policy", "none").stderr
    assert "WITHOUT any protection" in told
    assert any("ann.lee" in message.content for call in teacher.seen for message in call.messages)
    assert {entry.policy for entry in home.open_ledger().entries()} == {"none"}


def test_budget_ends_with_a_clear_line(home: Home, teacher: Scripted) -> None:
    done = pfi(*ELSEWHERE, "--yes", "--records", "24", "--budget-tokens", "7000")
    assert "The budget ended: " in done.stderr and "calls were not made" in done.stderr
    assert 0 < len(teacher.seen) < 12 and 0 < len(made_records(home)) < 24
    needs = pfi(*ELSEWHERE, "--yes", "--budget-usd", "1", code=2)
    assert "needs the teacher's prices" in needs.stderr


def test_a_run_that_makes_nothing_leaves_the_vault_as_it_is(home: Home, teacher: Scripted) -> None:
    pfi(*ELSEWHERE, "--yes")
    before = made_records(home)
    nothing = pfi(*ELSEWHERE, "--yes", "--set", "seed=3", "--budget-tokens", "1")
    assert "No synthetic record of LaMP_4 was made" in nothing.stdout
    assert made_records(home) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--url", "http://x/v1"], "--teacher openai"),
        (["--model", "m"], "embedded"),
        (["--teacher", "cloud"], "teacher.kind"),
        (["--task", "LaMP_3"], "no records of task LaMP_3"),
        (["--strategies", "copy"], "unknown generator"),
        (["--pool", "missing.txt"], "no such file"),
        (["--records", "0"], "records"),
    ],
)
def test_errors_are_one_line(home: Home, arguments: list[str], says: str) -> None:
    result = pfi("augment", *arguments, code=2)
    assert says in result.stderr and result.stderr.count("\n") == 1


def test_embedded_teacher_answers_a_pool_and_nothing_leaves(home: Home, tmp_path: Path) -> None:
    pool = tmp_path / "texts.txt"
    pool.write_text("".join(f"{story}, five stars\n" for story in STORIES))
    with home.open_vault() as vault:
        vault.add(real(n, id=f"x{n}", task="LaMP_3", output=str(n % 5 + 1)) for n in range(6))
    chosen = ("--task", "LaMP_3")
    planned = pfi("augment", *chosen, "--pool", str(pool), "--dry-run").stdout
    assert "on this device: nothing leaves" in planned and "free" in planned
    assert "18 calls" in planned and "[user]" in planned
    done = pfi("augment", *chosen, "--pool", str(pool))
    assert "embedded:" in done.stdout and "policy" not in done.stderr
    with home.open_vault() as vault:
        found = vault.history("LaMP_3", origin="synthetic")
    assert found and f"Added {len(found)} synthetic records of LaMP_3" in done.stdout
    for record in found:
        assert record.made is not None and record.made.source.startswith("pool:")
        assert record.input["text"].endswith("five stars") and record.made.strategy == "relabel"
        assert record.output in get_task("LaMP_3").labels
    assert not home.ledger_file.exists() and not home.teacher_file.exists()
    trained = pfi("train", *chosen, "--epochs", "1", "--rank", "2")
    assert f"6 real and {len(found)} synthetic records" in trained.stdout


# Training ---------------------------------------------------------------------------


def test_nothing_held_back_leaks_through_synthetic_records(home: Home, backbone: Backbone) -> None:
    r4 = Provenance("t", "vary", "vary-0", ("r0",), "r4", 1.0)
    planted = [
        synthetic(0, "r0", "r3"),
        synthetic(1, "r0", "r5"),  # one seed is held back
        synthetic(2, "r1", made=r4),  # made from one that is held back
        synthetic(3, "r1", made=replace(r4, source="pool:1")),
        synthetic(4, "gone"),  # made from nobody knows what
        synthetic(5, made=None),
    ]
    with home.open_vault() as vault:
        vault.add(planted)
    data = divide(home, TASK, 1 / 3)
    assert [r.id for r in data.held_back] == ["r4", "r5"]
    assert ([r.id for r in data.synthetic], data.left_out) == (["s0", "s3"], 4)
    assert len(divide(home, TASK, 0.0).synthetic) == 6
    assert divide(home, TASK, 1 / 3, real_only=True).synthetic == ()
    told = pfi("train", "--holdout", "0.34", "--epochs", "1", "--rank", "2")
    assert "4 synthetic records were left out" in told.stderr
    assert "4 real and 2 synthetic records" in told.stdout
    trained = train(home, TASK, QUICK, holdout=0.34, real_only=True, backbone=backbone)
    assert (trained.version.records, trained.synthetic, trained.left_out) == (4, 0, 0)


def test_augmenting_with_the_same_holdout_leaves_nothing_out(
    home: Home, teacher: Scripted, backbone: Backbone
) -> None:
    with home.open_vault() as vault:
        late = {"text": "Dear Gudrun, tea at five"}
        vault.add([real(0, id="late", input=late, time=DAY + timedelta(9))])
        vault.add([real(1, id="early", input={"text": "Gudrun was at the mill today"})])
    config = augment_config(home, {"teacher": {"kind": "openai"}})
    made = augment(home, TASK, config, holdout=0.25, backbone=backbone)
    data = divide(home, TASK, 0.25)
    assert {"r5", "late"} == {record.id for record in data.held_back}
    assert (len(data.synthetic), data.left_out) == (made.added, 0) and made.added
    # The name is known from a held-back record only.
    sent = " ".join(message.content for call in teacher.seen for message in call.messages)
    assert "at the mill today" in sent and "Gudrun" not in sent and "tea at five" not in sent
    with pytest.raises(ConfigError, match="holdout"):
        Augmentation(home, TASK, config, holdout=1.0)


def test_real_only_trains_as_if_there_were_no_synthetic_records(
    home: Home, backbone: Backbone
) -> None:
    def adapter(**named: Any) -> dict[str, Any]:
        done = train(home, TASK, QUICK, backbone=backbone, **named)
        return dict(home.personal_adapters.load(done.version.version).weights)

    import torch

    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    before = adapter()
    with home.open_vault() as vault:
        vault.add(synthetic(n, "r0") for n in range(3))
    assert same(adapter(real_only=True), before)
    mixed, ordered = adapter(), adapter(mix={"order": "synthetic-first"})
    assert not same(mixed, before) and not same(ordered, before) and not same(ordered, mixed)


def test_synthetic_first_trains_twice_the_second_on_from_the_first(
    home: Home, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pfi.train.job

    runs: list[tuple[list[str], Any, Any]] = []
    real_train = pfi.train.job.train_one

    def noted(trainer: Any, base: Any, examples: Any, config: Any, **named: Any) -> Any:
        result = real_train(trainer, base, examples, config, **named)
        runs.append(([e.record_id for e in examples], named.get("start"), result.adapter))
        return result

    monkeypatch.setattr(pfi.train.job, "train_one", noted)
    with home.open_vault() as vault:
        vault.add(synthetic(n, "r0") for n in range(4))
    done = train(
        home, TASK, QUICK, mix={"order": "synthetic-first", "ratio": 0.5}, backbone=backbone
    )
    (made, start, first), (own, begun, _) = runs
    assert (made, start) == (["s0", "s1", "s2"], None) and done.synthetic == 3
    assert own == [f"r{n}" for n in range(6)] and begun is first


def test_mix_settings_of_the_command_and_the_profile(home: Home) -> None:
    with home.open_vault() as vault:
        vault.add(synthetic(n, "r0") for n in range(4))
    quick = ("train", "--epochs", "1", "--rank", "2")
    assert "6 real and 1 synthetic" in pfi(*quick, "--set", "mix.ratio=0.2").stdout
    home.config.mix = {"ratio": 0.5}
    home.save_config()
    assert "6 real and 3 synthetic" in pfi(*quick).stdout
    assert "6 records, " in pfi(*quick, "--real-only").stdout
    assert "mix settings" in pfi(*quick, "--set", "mix.colour=red", code=2).stderr
    held_back = (*quick, "--set", "held_back=0.2")
    assert "mix.order=synthetic-first" in pfi(*held_back, code=2).stderr
    assert "6 records, " in pfi(*held_back, "--real-only").stdout


# Pools ------------------------------------------------------------------------------


def test_pool_files(tmp_path: Path) -> None:
    def file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    plain = read_pool(file("a.txt", "one\n\ntwo\none\n"), TASK)
    assert [(r.id, r.input["text"], r.output) for r in plain] == [
        ("pool:1", "one", ""),
        ("pool:3", "two", ""),
    ]
    lines = read_pool(file("b.jsonl", '{"text": "one", "title": "seen by nobody"}\n'), TASK)
    assert (lines[0].input["text"], lines[0].output) == ("one", "")
    table = read_pool(file("c.csv", 'x,text\n1,"a, b"\n'), TASK)
    assert table[0].input["text"] == "a, b"
    derived = read_pool(file("d.txt", "i luv this\n"), get_task("LaMP_7"))
    assert (dict(derived[0].input), derived[0].output) == ({}, "i luv this")
    questions = [{"id": "1", "user_id": "u", "input": "q", "profile": [
        {"id": "1", "text": "body", "title": "Head"}]}]  # fmt: skip
    lamp = read_pool(file("dev_questions.json", json.dumps(questions)), TASK)
    assert [(r.id, r.input["text"]) for r in lamp] == [("pool:u:1", "body")]
    for name, text, says in [
        ("e.txt", "\n", "no texts"),
        ("f.csv", "x\n1\n", "no column 'text'"),
        ("g.jsonl", "{", "not JSON"),
        ("h.jsonl", "[1]\n", "not a JSON object"),
        ("i.jsonl", '{"text": [1]}\n', "not text"),
        ("j.json", "[]", "LaMP"),
    ]:
        with pytest.raises(DataError, match=says):
            read_pool(file(name, text), TASK)
    with pytest.raises(DataError, match="which of title, abstract"):
        read_pool(tmp_path / "a.txt", get_task("LaMP_1"))
