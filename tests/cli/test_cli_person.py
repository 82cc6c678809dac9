"""The commands of one person, end to end over a tiny random backbone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.errors import BackboneError, ConfigError, DataError, StorageError
from pfi.profile.answer.runtime import Runtime, ask
from pfi.profile.home import Home
from pfi.profile.learn.training import train
from pfi.profile.open import open_home
from pfi.profile.vault.imports import parse_options
from pfi.records import Record, parse_time
from pfi.sources.connectors import Connector
from pfi.tasks import get_task


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    task: str = Field(default="LaMP_4", description="the task of the records")
    limit: int | None = Field(default=None, description="read at most that many")
    columns: dict[str, str] = {}
    only: list[str] = []


class Lines:
    """Reads `time<tab>text<tab>output` lines; counts the others as skipped."""

    name, summary, options = "lines", "lines of text", Options

    configure = Connector.configure

    def read(self, path: Path, options: Options, report: Any) -> Iterator[Record]:
        for n, line in enumerate(path.read_text().splitlines()):
            parts = line.split("\t")
            if len(parts) != 3:
                report.skip("it has not three columns", f"line {n + 1}")
                continue
            if options.limit is not None and n >= options.limit:
                return
            time, text, output = parts
            yield Record(f"line-{n}", options.task, {"text": text}, output, parse_time(time))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers the connector `lines` and no other."""
    import pfi.sources.connectors as module

    def get_connector(name: str) -> Lines:
        if name != "lines":
            raise ConfigError(f"unknown connector {name!r}", fix="use lines")
        return Lines()

    monkeypatch.setattr(module, "get_connector", get_connector, raising=False)
    monkeypatch.setattr(module, "connectors", lambda: {"lines": Lines()}, raising=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random Llama whose tokens are characters."""
    import torch
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<end>", "<pad>", "?", "\n", *(chr(c) for c in range(32, 127) if c != ord("?"))]
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    raw.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", unk_token="?"
    )
    torch.set_num_threads(1)  # more only wait for each other on matrices this small
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "root"))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    monkeypatch.setattr("pfi.cli.talk._said", set())
    return tmp_path / "root"


def pfi(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def home(tiny: str) -> Home:
    """A profile with eight dated LaMP_4 records."""
    pfi("init", "--backbone", tiny)
    opened = open_home()
    with opened.open_vault() as vault:
        vault.add(
            Record(
                f"r{n}",
                "LaMP_4",
                {"text": f"story number {n} about {'tea' if n == 3 else 'rain'}"},
                f"Title {n}",
                datetime(2024, 1, 1 + n, tzinfo=UTC),
            )
            for n in range(8)
        )
    return opened


QUICK = {"epochs": 1, "batch_size": 3, "rank": 2, "learning_rate": 0.02}
QUICK_FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in QUICK.items()]


# The command line itself ------------------------------------------------------------


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            yield from _commands(command, (*path, name))  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [(), *_commands(typer.main.get_command(app))])  # type: ignore[arg-type]
def test_help_of_every_command_shows_an_example(command: tuple[str, ...]) -> None:
    text = pfi(*command, "--help").output
    after = text.partition("Examples:")[2]
    assert re.search(rf"^\s+{' '.join(('pfi', *command))}", after, re.MULTILINE)
    assert "\\[" not in text


def test_help_loads_no_model_library_and_bugs_keep_their_traceback() -> None:
    code = (
        "import sys\nfrom pfi.cli.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])\n"
        "import pfi.tasks\ndef broken(): raise ValueError('a bug')\n"
        "pfi.tasks.tasks = broken\napp(['tasks'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.rstrip().endswith("[]")
    assert run.returncode == 1
    assert "Traceback" in run.stderr and "a bug" in run.stderr


def test_version() -> None:
    assert pfi("--version").output.startswith("pfi ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status"], "pfi init"),
        (["status", "--profile", "../up"], "profile name"),
        (["init", "--task", "nonsense"], "nonsense"),
        (["ask", "hello", "--profile", "other"], "pfi init --profile other"),
        (["train"], "pfi init"),
        (["adapters", "list"], "pfi init"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments: list[str], says: str) -> None:
    result = pfi(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and says in result.stderr
    assert result.stderr.count("\n") == 1


def test_init_makes_a_profile_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(tiny).parent)
    pfi("init", "--profile", "work", "--task", "LaMP_3", "--backbone", Path(tiny).name)
    config = open_home("work").config
    assert (config.task, config.backbone) == ("LaMP_3", tiny)
    assert "exists" in pfi("init", "--profile", "work", code=2).stderr


# Importing --------------------------------------------------------------------------


def test_import_counts_what_it_did_and_twice_adds_nothing(
    lines: None, tmp_path: Path, tiny: str
) -> None:
    pfi("init", "--backbone", tiny)
    source = tmp_path / "notes.txt"
    source.write_text("2024-01-02\ta\tA\nnonsense\n2024-01-01\tb\tB\n")
    first = pfi("import", "lines", str(source))
    assert "Added 2, already there 0, skipped 1: " in first.stdout
    assert "1 because it has not three columns (first: line 2)" in first.stdout
    assert "pfi train" in first.stderr
    assert "Added 0, already there 2" in pfi("import", "lines", str(source)).stdout
    with open_home().open_vault() as vault:
        assert [r.output for r in vault.history("LaMP_4")] == ["B", "A"]


def test_import_options_reach_the_connector(lines: None, tmp_path: Path, tiny: str) -> None:
    pfi("init", "--backbone", tiny)
    source = tmp_path / "notes.txt"
    source.write_text("\ta\tA\n\tb\tB\n")
    pfi("import", "lines", str(source), "-s", "task=LaMP_6", "--set", "limit=1")
    with open_home().open_vault() as vault:
        assert vault.tasks() == {"LaMP_6": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing", "x"], "unknown connector"),
        (["lines", "missing.txt"], "no such file"),
        (["lines", ".", "-s", "colour=red"], "colour"),
        (["lines", ".", "-s", "limit=many"], "limit"),
        (["lines", ".", "-s", "limit"], "key=value"),
        (["lines", ".", "-s", "limit=1", "-s", "limit=2"], "2 times"),
    ],
)
def test_import_errors(lines: None, tiny: str, arguments: list[str], says: str) -> None:
    pfi("init", "--backbone", tiny)
    assert says in pfi("import", *arguments, code=2).stderr


def test_connectors_are_listed_with_their_options(lines: None) -> None:
    assert "lines of text" in pfi("connectors").stdout
    shown = pfi("connectors", "lines").stdout
    assert "--set task=..." in shown and "the task of the records" in shown


def test_options_of_several_values() -> None:
    parsed = parse_options(["only=a", "only=b", "columns={text: Body}"], Options)
    assert parsed == {"only": ["a", "b"], "columns": {"text": "Body"}}
    dotted = ["columns.text=Body", "columns.title=a=b"]
    assert parse_options(dotted, Options) == {"columns": {"text": "Body", "title": "a=b"}}
    assert parse_options(["only=a"], Options) == {"only": ["a"]}
    assert parse_options(["only=[a, b]"], Options) == {"only": ["a", "b"]}
    assert parse_options(["task=[a]"], Options) == {"task": "[a]"}
    with pytest.raises(ConfigError, match="well-formed"):
        parse_options(["columns={a"], Options)


def test_real_connectors_can_be_listed() -> None:
    from pfi.sources.connectors import connectors

    assert connectors()
    for name in connectors():
        assert name in pfi("connectors").stdout
        pfi("connectors", name)


def test_help_names_real_connectors_and_one_of_them_imports(tmp_path: Path, tiny: str) -> None:
    from pfi.sources.connectors import connectors

    named = re.findall(r"pfi import (\w+) ", pfi("--help").output + pfi("import", "--help").output)
    assert named and set(named) <= set(connectors())
    pfi("init", "--backbone", tiny)
    source = tmp_path / "mails.csv"
    source.write_text("Body,Subject\nhello there,Greeting\nbye now,Parting\n")
    flags = ["--set", "task=LaMP_6", "--set", "map.text=Body", "--set", "map.title=Subject"]
    assert "Added 2, already there 0." in pfi("import", "table", str(source), *flags).stdout
    assert "Added 0, already there 2." in pfi("import", "table", str(source), *flags).stdout


# Training and adapters --------------------------------------------------------------


def test_train_makes_a_version_that_is_active_and_can_be_undone(home: Home) -> None:
    result = pfi("train", *QUICK_FLAGS, "--set", "warmup=0")
    assert "Adapter 0001 for LaMP_4 is active: 8 records" in result.stdout
    assert "pfi adapters rollback --task LaMP_4" in result.stdout
    manifest = home.personal_adapters.manifest("0001")
    assert (manifest.records, manifest.config["rank"], manifest.config["warmup"]) == (8, 2, 0.0)
    assert manifest.backbone == home.config.backbone
    files = {file.name for file in (home.path / "adapters/personal/0001").iterdir()}
    sealed = {"adapter_config.json.sealed", "adapter_model.safetensors.sealed"}
    assert files == {*sealed, "manifest.json"}

    pfi("train", *QUICK_FLAGS, "--task", "LaMP_4")
    assert home.personal_adapters.manifest("0002").parent == "0001"
    listed = json.loads(pfi("adapters", "list", "--json").stdout)
    assert [(e["version"], e["active"]) for e in listed] == [("0001", False), ("0002", True)]
    assert "adapter 0001" in pfi("adapters", "rollback").stdout
    assert "* 0001" in pfi("adapters", "list").stdout
    pfi("adapters", "use", "0002")
    assert home.personal_adapters.active("LaMP_4") == "0002"
    assert "LaMP_4" in pfi("adapters", "use", "0001", "--task", "LaMP_3", code=2).stderr
    pfi("adapters", "use", "none")
    assert home.personal_adapters.active("LaMP_4") is None


def test_holdout_measures_the_latest_records_and_does_not_train_on_them(home: Home) -> None:
    with home.open_vault() as vault:
        when = datetime(2024, 1, 2, tzinfo=UTC)
        late = datetime(2024, 1, 8, tzinfo=UTC)
        for n, time in enumerate((when, late)):
            made = Record(f"s{n}", "LaMP_4", {"text": f"made {n}"}, "M", time, "synthetic")
            vault.add([made])
    trained = train(home, get_task("LaMP_4"), {**QUICK, "epochs": 8}, holdout=0.25)
    # 6 older real ones and the synthetic one that is older than the two held back.
    assert (trained.version.records, trained.measured) == (6, 2)
    assert (trained.synthetic, trained.left_out) == (1, 1)
    assert set(trained.before) == set(trained.after) == {"loss", "rouge_1", "rouge_l"}
    assert trained.after["loss"] < trained.before["loss"]
    assert trained.version.metrics == trained.after


def test_holdout_is_reported(home: Home) -> None:
    result = pfi("train", *QUICK_FLAGS, "--holdout", "0.25")
    assert "2 latest held-back examples" in result.stderr and " -> " in result.stderr
    assert "6 records" in result.stdout


def test_interrupted_training_changes_nothing(home: Home) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(home, get_task("LaMP_4"), QUICK, on_step=stop)
    assert list(home.personal_adapters.versions()) == []
    assert home.personal_adapters.active("LaMP_4") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "LaMP_3"], "no records of task LaMP_3"),
        (["--epochs", "0"], "epochs"),
        (["--set", "colour=red"], "colour"),
        (["--holdout", "1.5"], "holdout"),
        (["--holdout", "0.01"], "none of 8 records"),
    ],
)
def test_train_errors(home: Home, arguments: list[str], says: str) -> None:
    result = pfi("train", *arguments, code=2)
    assert says in result.stderr and result.stderr.count("\n") == 1


def test_train_without_an_example_says_so(home: Home) -> None:
    with home.open_vault() as vault:
        vault.add([Record("p", "LaMP_1", {"title": "One paper"}, "")])
    with pytest.raises(DataError, match="gives a training example"):
        train(home, get_task("LaMP_1"))


# Asking -----------------------------------------------------------------------------


def test_ask_without_an_adapter_says_so_and_retrieves_the_closest(home: Home) -> None:
    result = pfi("ask", "tea", "--why", "-k", "1")
    assert "pfi train --task LaMP_4" in result.stderr
    assert "personal adapter: none" in result.stderr
    assert "retrieved records: 1" in result.stderr and "r3: story number 3" in result.stderr
    plain = pfi("ask", "tea", "--why", "--no-memory")
    assert "retrieved records: 0" in plain.stderr


def test_prompt_holds_the_records_and_the_whole_question(home: Home) -> None:
    runtime = Runtime(home)
    task = get_task("LaMP_4")
    prepared = runtime.prepare("tea", task)
    assert len(prepared.records) == home.config.retrieve == 2
    assert '"Title 3" is the title for' in prepared.prompt
    assert prepared.prompt.endswith(task.prompt({"text": "tea"}))
    # One that leaves little room goes alone, so that its end is not cut off.
    long = runtime.prepare("tea " * 100, task)
    assert long.records == () and long.prompt == task.prompt({"text": "tea " * 100})


def test_adapter_changes_the_answer_and_the_plain_backbone_stays(home: Home) -> None:
    task = get_task("LaMP_4")
    before = ask(home, "tea", task, k=0)
    train(home, task, {**QUICK, "epochs": 15, "learning_rate": 0.05})
    after = ask(home, "tea", task, k=0)
    assert (before.why.personal, after.why.personal) == (None, "0001")
    assert after.text != before.text
    home.personal_adapters.rollback("LaMP_4")
    assert ask(home, "tea", task, k=0).text == before.text


def test_personal_adapter_brings_the_shared_one_it_was_trained_on(home: Home) -> None:
    task = get_task("LaMP_4")
    from pfi.profile.adapters.store import AdapterInfo

    first = train(home, task, QUICK)
    weights = home.personal_adapters.load(first.version.version)
    info = first.version.model_dump(include={*AdapterInfo.model_fields})
    for _ in range(2):
        home.shared_adapters.add(weights, AdapterInfo(**info))
    home.personal_adapters.use_none(task.name)
    home.shared_adapters.use("0001")
    runtime = Runtime(home)
    assert runtime.versions(task) == (None, "0001")
    assert train(home, task, QUICK).version.shared == "0001"
    home.shared_adapters.use("0002")
    assert runtime.versions(task) == ("0002", "0001")
    used = runtime.prepare("tea", task).adapter
    assert used is not None and used.load().settings["r"] == 2 * QUICK["rank"]


def test_a_shared_adapter_is_installed_from_a_folder(home: Home, tmp_path: Path) -> None:
    first = train(home, get_task("LaMP_4"), QUICK)
    home.personal_adapters.load(first.version.version).save(tmp_path / "shared")
    home.personal_adapters.use_none("LaMP_4")
    said = pfi("adapters", "install", str(tmp_path / "shared"), "--task", "LaMP_4").stdout
    assert "shared adapter 0001" in said
    assert train(home, get_task("LaMP_4"), QUICK).version.shared == "0001"
    missing = pfi("adapters", "install", str(tmp_path), "--task", "LaMP_4", code=2)
    assert "no adapter here" in missing.stderr


def test_adapter_of_another_backbone_and_tampered_one_are_refused(home: Home) -> None:
    task = get_task("LaMP_4")
    train(home, task, QUICK)
    home.config.backbone = "embedded"
    with pytest.raises(BackboneError, match="was trained on backbone"):
        ask(home, "tea", task)
    home = open_home()
    weights = home.path / "adapters/personal/0001/adapter_model.safetensors.sealed"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match=r"adapter_model\.safetensors"):
        ask(home, "tea", task)


def test_labels_and_fields(home: Home) -> None:
    assert pfi("ask", "good food", "--task", "LaMP_3").stdout.strip() in set("12345")
    missing = pfi("ask", "a title", "--task", "LaMP_1", code=2)
    assert "--field option_1=TEXT --field option_2=TEXT" in missing.stderr
    given = ["--field", "option_1=A", "--field", "option_2=B"]
    assert pfi("ask", "t", "--task", "LaMP_1", *given).stdout.strip() in ("[1]", "[2]")
    assert "no field" in pfi("ask", "t", "-f", "colour=red", code=2).stderr
    assert "empty" in pfi("ask", "  ", code=2).stderr


def test_ask_reads_standard_input_and_default_task(home: Home) -> None:
    home.config.task = "LaMP_3"
    home.save_config()
    assert pfi("ask", "-", stdin="good food").stdout.strip() in set("12345")


def test_ask_on_an_empty_profile_uses_instruction(tiny: str) -> None:
    pfi("init", "--backbone", tiny)
    result = pfi("ask", "hello", "--why")
    assert "task: instruction" in result.stderr and "retrieved records: 0" in result.stderr


def test_chat_over_a_pipe(home: Home) -> None:
    talk = "tea\n/why\n/task LaMP_3\ngood food\n\n/task nonsense\n/help\n/quit\nnever read\n"
    result = pfi("chat", stdin=talk)
    first, second = result.stdout.splitlines()[-2:]
    assert first.strip() == ask(home, "tea").text
    assert second in set("12345")
    assert "retrieved records: 1" in result.stderr  # of the two wanted, one has to do with tea
    assert "error: unknown task 'nonsense'" in result.stderr
    assert result.stderr.count("No personal adapter for LaMP_4") == 1


# Status -----------------------------------------------------------------------------


def test_status_as_text_and_json(home: Home) -> None:
    train(home, get_task("LaMP_4"), QUICK)
    text = pfi("status").stdout
    assert "LaMP_4" in text and "2024-01-01 to 2024-01-08" in text and "0001 active" in text
    found = json.loads(pfi("status", "--json").stdout)
    assert found["records"] == 8
    assert found["tasks"][0]["last"].startswith("2024-01-08")
    assert found["adapters"]["personal"] == {"versions": 1, "active": {"LaMP_4": "0001"}}
    assert found["bytes"]["adapters"] > 0 and found["bytes"]["vault"] > 0


def test_tasks_are_listed() -> None:
    text = pfi("tasks").stdout
    assert "LaMP_4" in text and "commit_message" in text
