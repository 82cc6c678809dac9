"""`pfi erase`: what goes with a record, adapters among it, and the statement that says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from opened_files import opened
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.errors import DataError, StorageError
from pfi.models.adapters import Adapter
from pfi.models.backbone import Backbone, load_backbone
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.erase import statement
from pfi.profile.erase.erased import refuse_erased
from pfi.profile.erase.erasure import erase, erase_everything
from pfi.profile.erase.retrain_settings import SETTING, settings_of
from pfi.profile.home import Home
from pfi.profile.learn.retraining import retrain
from pfi.profile.learn.training import train
from pfi.profile.open import create_home, open_home
from pfi.records import Provenance, Record
from pfi.tasks import get_task

DAY = datetime(2024, 1, 1, tzinfo=UTC)
TASK = "LaMP_4"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A profile with four real records, one of them of another task, and a synthetic one."""
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    made = create_home()
    made.config.embedder = "none"
    made.save_config()
    texts = ["rain\nover [the] harbour \u001b[31m", "a tea house", "the cup final"]
    records = [
        Record(f"r{n}", TASK, {"text": text}, f"Head {n}", DAY + timedelta(n), "real", f"s:{n}")
        for n, text in enumerate(texts)
    ]
    seeds = Provenance("t", "write", "w", ("r1", "r2"))
    with made.open_vault() as vault:
        vault.add([*records, Record("o", "LaMP_3", {"text": "fine"}, "5")])
        vault.add([Record("m", TASK, {"text": "made"}, "M", None, "synthetic", "t", seeds)])
    return made


def pfi(*words: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(words), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def ids(home: Home) -> set[str]:
    with home.open_vault() as vault:
        return {record.id for record in vault.find()}


def send(home: Home, kind: str, payload: str | bytes, shows: list[str] | None = None) -> None:
    home.open_ledger().append(
        device="default", to="h.example", kind=kind, policy="none", payload=payload, shows=shows
    )


def weights(value: float) -> Adapter:
    factors = {"a.lora_A.weight": torch.full((2, 3), value)}
    return Adapter({"r": 2}, factors)


def version(
    home: Home,
    *,
    read: datetime | None = None,
    task: str = TASK,
    held_back: tuple[str, ...] = (),
    use: bool = True,
) -> str:
    """A personal adapter that learnt from what was there at a time, now if it is not said."""
    info = AdapterInfo(
        task=task,
        backbone=home.config.backbone,
        records=3,
        read=read or datetime.now(UTC),
        held_back=[fingerprint(id_) for id_ in held_back],
    )
    made = home.personal_adapters.add(weights(1.0), info).version
    if use:
        home.personal_adapters.use(made)
    return made


# The command --------------------------------------------------------------------------


def test_erase_says_what_went_where(home: Home) -> None:
    send(home, "teacher", "tea", ["r1"])
    send(home, "teacher", "cup", ["r2"])
    send(home, "update", b"factors")
    result = pfi("erase", "r1", "--yes")
    told = result.stdout.splitlines()
    for line in (
        "- records: 1",
        "- synthetic records made from them: 1",
        "- texts in the ledger: 1",
        "- texts sent to teachers: 1 to h.example",
        "- updates sent: 1 to h.example",
    ):
        assert line in told, result.stdout
    assert "a tea house" in result.stderr
    assert ids(home) == {"r0", "r2", "o"}
    texts = [entry.payload for entry in home.open_ledger().entries()]
    assert texts[:3] == [None, "cup", None]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["r0", "o"], {"r1", "r2", "m"}),
        (["--source", "s:2"], {"r0", "r1", "o"}),
        (["--before", "2024-01-02"], {"r1", "r2", "o", "m"}),
        (["--task", TASK, "--before", "2024-01-03"], {"r2", "o"}),
        (["--task", "LaMP_3"], {"r0", "r1", "r2", "m"}),
        (["--all"], set()),
    ],
)
def test_ids_or_conditions(home: Home, flags: list[str], left: set[str]) -> None:
    pfi("erase", *flags, "--yes")
    assert ids(home) == left


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "what to erase"),
        (["r0", "--task", TASK], "ids and conditions"),
        (["r0", "no-such"], "no-such"),
        (["--before", "soon"], "--before"),
        (["r0", "--all"], "--all and records"),
        (["--profile-too"], "add --all"),
        (["r0", "--check", "x.json"], "only reads a statement"),
        (["r0"], "nobody can be asked"),
        (["--all"], "All 5 records.*nobody can be asked"),
    ],
)
def test_in_doubt_nothing_is_erased(home: Home, flags: list[str], says: str) -> None:
    import re

    before = ids(home)
    yes = [] if flags in (["r0"], ["--all"]) else ["--yes"]
    result = pfi("erase", *flags, *yes, code=2)
    assert re.search(says, result.stderr)
    assert ids(home) == before and not list(home.path.glob("eras*"))


def test_erase_asks(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    asked: list[str] = []

    def answer(text: str, **named: Any) -> bool:
        asked.append(text)
        return True

    monkeypatch.setattr("pfi.cli.erase.sys", type("S", (), {"stdin": Terminal}))
    monkeypatch.setattr("typer.confirm", answer)
    pfi("erase", "r1")
    assert asked == [
        "1 record and 1 synthetic record made from them would be erased for good. Go on?"
    ]
    assert ids(home) == {"r0", "r2", "o"}
    assert "no such records" in pfi("erase", "--task", "LaMP_1").stdout


def test_erase_finishes_what_was_cut_off(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pfi.privacy.ledger.ledger.Ledger.erase", lambda *a, **n: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            erase(home, ["r0"])
    result = pfi("erase")
    assert "finished now" in result.stderr and "- records: 1" in result.stdout
    assert not list(home.path.glob("erasing*"))
    assert "what to erase" in pfi("erase", code=2).stderr


# Adapters -----------------------------------------------------------------------------


def test_adapters_that_learnt_from_it_go_and_the_newest_other_is_used(home: Home) -> None:
    long_ago = DAY - timedelta(1)
    version(home, read=long_ago)  # before any record was there
    version(home, held_back=("r1",))  # did not learn from r1
    version(home)
    version(home, task="LaMP_3")
    with home.open_vault() as vault:
        vault.add([Record("late", TASK, {"text": "late"}, "L", DAY)])
    done = erase(home, ["r1"])
    # m was made from r1 and r2, and every adapter from after it may have learnt from it.
    assert done.dropped == done.learnt == ("0002", "0003")
    assert done.in_use == {TASK: "0001"}
    assert home.personal_adapters.active(TASK) == "0001"
    assert home.personal_adapters.active("LaMP_3") == "0004"
    assert list(home.personal_adapters.versions()) == ["0001", "0004"]
    assert erase(home, ["late"]).dropped == ()
    done = erase(home, ["o"])
    assert done.dropped == ("0004",) and done.in_use == {"LaMP_3": None}
    assert home.personal_adapters.active("LaMP_3") is None


def test_held_back_records_are_not_learnt_and_their_fingerprints_go(home: Home) -> None:
    version(home, held_back=("r0", "r2"))
    assert erase(home, ["r0"]).dropped == ()
    held = home.personal_adapters.verify("0001").held_back
    assert held == [fingerprint("r2")]
    assert fingerprint("r0").encode() not in b"".join(
        file.read_bytes() for file in home.personal_adapters.folder.rglob("*") if file.is_file()
    )


def test_adapters_can_be_kept_and_are_named(home: Home) -> None:
    version(home)
    done = erase(home, ["r0"], adapters="keep")
    assert (done.learnt, done.dropped) == (("0001",), ())
    assert done.statement["adapters"]["kept"] == ["0001"]
    assert home.personal_adapters.active(TASK) == "0001"


def test_an_adapter_of_which_nothing_is_known_goes(home: Home) -> None:
    version(home, read=DAY - timedelta(1))
    version(home, read=DAY - timedelta(1))
    file = home.personal_adapters.folder / "0002" / "manifest.json"
    file.write_text(file.read_text().replace("2023", "2022"))  # its signature fails now
    assert erase(home, ["r0"]).dropped == ("0002",)
    assert home.personal_adapters.active(TASK) == "0001"


def test_a_choice_that_somebody_changed_hinders_no_erasure(home: Home) -> None:
    version(home)
    (home.personal_adapters.folder / "active.json").write_text("{}")
    assert erase(home, ["r0"]).dropped == ("0001",)
    assert home.personal_adapters.all_active() == {}
    assert version(home) == "0002"


def test_gate_choices_fitted_on_it_go(home: Home) -> None:
    from pfi.gate.choices import Choice, GateConfig
    from pfi.profile.answer.gate_file import Fitted, read_gate, write_gate

    def fitted(task: str, date: datetime) -> Fitted:
        return Fitted(
            task=task, choice=Choice(0.5, 2), sure=1.0, gain=0.1, tried=4, users=0,
            backbone="embedded", personal=None, shared=None, settings=GateConfig(), date=date,
        )  # fmt: skip

    now = datetime.now(UTC) + timedelta(1)
    write_gate(home, {TASK: fitted(TASK, now), "LaMP_3": fitted("LaMP_3", DAY)})
    erase(home, ["o"])  # fitted before it was there
    assert set(read_gate(home)) == {TASK, "LaMP_3"}
    done = erase(home, ["r0"])
    assert set(read_gate(home)) == {"LaMP_3"}
    assert done.statement["erased"]["choices of the gate"] == 1


def test_what_a_client_of_a_federation_keeps_goes(home: Home) -> None:
    kept = home.path / "federate" / "kept" / "x" / "1.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"factors")
    (home.path / "federate" / "node.key").write_text("k")
    erase(home, ["r0"])
    assert not kept.exists() and (home.path / "federate" / "node.key").exists()


def test_training_that_read_before_the_erasure_is_refused(home: Home) -> None:
    read = datetime.now(UTC)
    erase(home, ["r0"])
    with pytest.raises(StorageError, match="erased during the training"):
        refuse_erased(home, TASK, read)
    refuse_erased(home, "LaMP_3", read)
    refuse_erased(home, TASK, datetime.now(UTC))


# Training anew ------------------------------------------------------------------------

QUICK = {"epochs": 1, "rank": 2, "learning_rate": 0.01}


@pytest.fixture
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


@pytest.fixture
def trained(home: Home, backbone: Backbone) -> Home:
    """A home whose adapter learnt from all but the newest of 12 records."""
    with home.open_vault() as vault:
        vault.add(
            Record(
                f"t{n}", "LaMP_3", {"text": f"good film {n}"}, str(n % 5 + 1), DAY + timedelta(n)
            )
            for n in range(11)
        )
    home.config.backbone = str(backbone.name)
    home.save_config()
    train(home, get_task("LaMP_3"), QUICK, holdout=0.25, seed=7, backbone=backbone)
    return home


def test_an_adapter_is_trained_anew_as_before_from_what_is_left(
    trained: Home, backbone: Backbone
) -> None:
    home = trained
    before = home.personal_adapters.manifest("0001")
    done = erase(home, ["t3"], adapters="retrain")
    assert done.in_use == {"LaMP_3": None} and done.statement["adapters"]["to retrain"]
    assert retrain(home, backbone=backbone) == {"LaMP_3": "0002"}
    after = home.personal_adapters.manifest("0002")
    assert after.config == before.config and after.records == before.records - 1
    assert home.personal_adapters.active("LaMP_3") == "0002"
    assert list(home.personal_adapters.versions()) == ["0002"]
    told = statement.check(statement.latest(home))
    assert told["adapters"]["retrained"] == {"LaMP_3": "0002"}
    assert told["adapters"]["to retrain"] == [] and told["erased"]["records"] == 1
    assert retrain(home, backbone=backbone) == {}
    # The same that training without the record from the first would have made.
    train(home, get_task("LaMP_3"), QUICK, holdout=0.25, seed=7, backbone=backbone)
    again = home.personal_adapters.manifest("0003")
    assert again.sha256 == after.sha256


def test_the_command_trains_anew(trained: Home, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    flags = ["--adapters", "retrain", "--yes", "--statement", str(file)]
    result = pfi("erase", "t3", *flags)
    assert "- personal adapters 0001 removed" in result.stdout
    assert "- task LaMP_3 now uses adapter 0002" in result.stdout
    assert "- adapter 0002 of task LaMP_3 was trained anew from what is left" in result.stdout
    assert statement.check(file)["adapters"]["retrained"] == {"LaMP_3": "0002"}


def test_training_anew_that_was_stopped_goes_on(
    trained: Home, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase(trained, ["t3"], adapters="retrain")
    with monkeypatch.context() as patch:
        patch.setattr("pfi.profile.learn.training.train_candidate", lambda *a, **n: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retrain(trained, backbone=backbone)
    assert trained.personal_adapters.active("LaMP_3") is None
    assert retrain(trained, backbone=backbone) == {"LaMP_3": "0002"}
    with trained.open_vault() as vault:
        assert vault.setting(SETTING) is None


def test_nothing_left_to_train_on(trained: Home, backbone: Backbone) -> None:
    erase(trained, [f"t{n}" for n in range(11)] + ["o"], adapters="retrain")
    assert retrain(trained, backbone=backbone) == {"LaMP_3": None}
    assert trained.personal_adapters.active("LaMP_3") is None


def test_settings_of_a_version_are_those_it_was_trained_with(trained: Home) -> None:
    how = settings_of(trained.personal_adapters.manifest("0001"))
    assert how["settings"].items() >= QUICK.items() and how["seed"] == 7 and how["real_only"]
    assert how["holdout"] == pytest.approx(0.25)


# The statement ------------------------------------------------------------------------


def test_a_statement_is_signed_and_holds_no_text(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "erased.json"
    pfi("erase", "--source", "s:1", "--yes", "--statement", str(file))
    text = file.read_text()
    for private in ("tea house", "Head", "r1", "s:1"):
        assert private not in text
    told = json.loads(text)
    assert told["asked"] == {"by": "source", "records": 1, "fingerprints": [fingerprint("r1")]}
    assert told["public"] == home.keys.public.hex()
    assert "pfi erasure" in text and "copies of the profile" in text
    assert "- records: 1" in pfi("erase", "--check", str(file)).stdout
    assert (
        json.loads(pfi("erase", "--check", str(file), "--json").stdout)["erased"]
        == (told["erased"])
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: told["erased"].update(records=9), "was changed"),
        (lambda told: told.update(public="00" * 32), "was changed"),
        (lambda told: told.pop("signature"), "was changed"),
        (lambda told: told.update(format=2), "format 2.*update pfi"),
        (lambda told: told.update(what="x"), "no statement"),
        (lambda told: told.clear(), "no statement"),
    ],
)
def test_a_changed_statement_is_refused(
    home: Home, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    told = erase(home, ["r0"]).statement
    file = tmp_path / "s.json"
    file.write_text(json.dumps(told))
    assert statement.check(file)["erased"]["records"] == 1
    change(told)
    file.write_text(json.dumps(told))
    with pytest.raises(DataError, match=says):
        statement.check(file)


# Everything ---------------------------------------------------------------------------


def _fill(home: Home) -> None:
    from pfi.profile.answer.memory import open_memory
    from pfi.profile.vault.feedback import Feedback, Shown

    version(home)
    send(home, "teacher", "a tea house", None)
    open_memory(home).close()
    with home.open_vault() as vault:
        vault.feedback.remember(Shown(TASK, DAY, {"text": "tea?"}, "a tea house"), 5)
        about = Feedback("f", "b", TASK, DAY, {"text": "tea?"}, "a tea house", rating="bad")
        vault.feedback.add([(about, None)])


def test_all_leaves_an_empty_profile_that_works(home: Home) -> None:
    _fill(home)
    with home.open_vault() as vault:
        vault.set_setting("names", ["Maria"])
    assert any(b"tea house" in data for data in opened(home).values())
    done = erase_everything(home)
    assert (done.records, done.dropped) == (5, ("0001",))
    assert not any(b"tea house" in data for data in opened(home).values())
    with home.open_vault() as vault:
        assert (vault.count(), vault.feedback.entries(), vault.feedback.answers()) == (0, [], [])
        assert vault.setting("names") is None
        vault.add([Record("new", TASK, {"text": "new"}, "N", DAY)])
    assert list(home.personal_adapters.versions()) == [] and version(home) == "0002"
    assert open_home().config == home.config
    assert done.statement["asked"]["by"] == "all"


def test_the_profile_too(home: Home, tmp_path: Path) -> None:
    _fill(home)
    create_home("other")
    secret = list((home.path.parent / ".keys").iterdir())
    file = tmp_path / "gone.json"
    result = pfi("erase", "--all", "--profile-too", "--yes", "--statement", str(file))
    assert "- records: 5" in result.stdout
    assert not home.path.exists() and [p.name for p in home.path.parent.glob("*")] != []
    left = {path.name for path in home.path.parent.iterdir()}
    assert left == {"other", ".keys"}
    assert len(list((home.path.parent / ".keys").iterdir())) == len(secret) - 1
    assert statement.check(file)["profile removed"] is True
    assert "there is no profile" in pfi("records", code=2).stderr
    open_home("other").open_vault().close()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("target", ["erasure.drop_keys", "erasure.Path.rename", "shutil.rmtree"])
def test_killed_while_removing_a_profile(home: Home, tmp_path: Path, target: str) -> None:
    create_home("other")
    file = tmp_path / "gone.json"
    code = f"""
import json, os, shutil, signal
from pathlib import Path
from pfi.profile.erase import erasure
from pfi.profile.open import open_home
def keep(told):
    Path({str(file)!r}).write_text(json.dumps(told))
    def kill(*args, **named):
        os.kill(os.getpid(), signal.SIGKILL)
    {target} = kill
erasure.remove_profile(open_home(), keep)
"""
    run = subprocess.run([sys.executable, "-c", code], check=False)
    assert run.returncode == -signal.SIGKILL
    assert statement.check(file)["profile removed"] is True
    result = pfi("erase", "--all", "--profile-too")
    assert "is finished now" in result.stderr
    assert {path.name for path in home.path.parent.iterdir()} == {"other", ".keys"}
    assert len(list((home.path.parent / ".keys").iterdir())) == 1
    open_home("other").open_vault().close()


# Kills --------------------------------------------------------------------------------

KILLED = """
import os, signal
from pfi.profile.open import open_home
from pfi.profile.erase import erasure, statement
from pfi.profile.adapters import store as adapters
def kill(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)
{target} = kill
erasure.erase(open_home(), ["r1"])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    "target",
    [
        "erasure.Vault.delete",
        "adapters.write_signed",
        "adapters.shutil.rmtree",
        "erasure._forget_gates",
        "statement.write_json",
        "erasure.Path.unlink",
    ],
)
def test_killed_while_erasing(home: Home, target: str) -> None:
    version(home, read=DAY - timedelta(1))
    version(home)
    send(home, "teacher", "a tea house", ["r1"])
    run = subprocess.run([sys.executable, "-c", KILLED.format(target=target)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert list(home.path.glob("erasing-*.json"))
    again = open_home()
    assert ids(again) == {"r0", "r2", "o"}
    assert not list(home.path.glob("erasing*"))
    assert again.personal_adapters.active(TASK) == "0001"
    assert list(again.personal_adapters.versions()) == ["0001"]
    assert not list(again.personal_adapters.folder.glob(".*"))
    assert not any(b"tea house" in data for data in opened(again).values())
    told = statement.check(statement.latest(again))
    assert told["adapters"]["dropped"] == ["0002"]
    assert (told["erased"]["records"], told["erased"]["texts in the ledger"]) == (1, 1)
    shutil.rmtree(home.path)
