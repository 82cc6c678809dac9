"""The documentation is true: commands parse, what is named exists, links lead somewhere, examples
work.

Generated parts are made anew by ``scripts/document_commands.py`` and compared.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import pytest
import typer
from pydantic import BaseModel

import pfi.sources.connectors as connector_module
from pfi._util.settings import nested_settings
from pfi.augment.config import AugmentConfig
from pfi.cli.app import app
from pfi.cli.study import build_config
from pfi.errors import PfiError
from pfi.profile.open import create_home
from pfi.profile.vault.imports import import_records, parse_options
from pfi.readers.report import ImportReport
from pfi.sources.connectors import connectors, get_connector
from pfi.tasks import get_task, read_task, tasks

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
#: What users read; `dev/` has the notes of those who work on pfi.
PAGES = [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
DEV = sorted((ROOT / "dev").glob("*.md"))
FENCE = re.compile(r"^(```+)(\w*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "document_commands.py"
    spec = importlib.util.spec_from_file_location("document_commands", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    """What a page's prose has in backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def block_after(page: str, marker: str) -> str:
    """The code block that follows ``<!-- example: marker -->``."""
    _, found, rest = (ROOT / "docs" / page).read_text("utf-8").partition(f"example: {marker} -->\n")
    assert found, f"{page} has no example {marker}"
    block = FENCE.match(rest)
    assert block, f"no code block follows the marker {marker} in {page}"
    return block[3]


# Commands -----------------------------------------------------------------------------


def shell_commands(text: str, program: str) -> Iterator[list[str]]:
    """Every call of a program in a line of shell, as its arguments."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        if program not in line:
            continue
        line = line.strip().removeprefix("$ ")
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        with contextlib.suppress(ValueError):  # prose in a help text: an apostrophe
            words: list[str] = []
            for token in [*lexer, ";"]:
                if re.fullmatch(r"[|&;<>()]+", token):
                    if words[:1] == [program]:
                        yield words[1:]
                    words = []
                elif words or "=" not in token:  # settings of the environment come first
                    words.append(token)


def documented(program: str) -> list[tuple[str, list[str]]]:
    """``(page, arguments)`` of every call in the code blocks of all pages."""
    return [
        (page.name, words)
        for page in PAGES
        for block in FENCE.finditer(page.read_text("utf-8"))
        for words in shell_commands(block[3], program)
    ]


def parse(words: list[str]) -> click.Context | None:
    """Parse a command line without running it; None for a group or where --help ends it.

    Raises:
        click.UsageError: the command or an option does not exist, or a value does not fit.
    """
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="pfi")
    rest = list(words)
    while isinstance(command, click.Group):
        if rest and rest[0].startswith("-") and command.invoke_without_command:
            break
        if not rest or rest[0].startswith("-"):
            options = {o for p in command.get_params(context) for o in p.opts}
            if unknown := [word for word in rest if word not in options]:
                raise click.UsageError(f"{context.command_path} has no option {unknown[0]}")
            return None
        if rest[0] not in command.commands:
            raise click.UsageError(f"{context.command_path} has no command {rest[0]}")
        command = command.commands[rest.pop(0)]
        context = click.Context(command, info_name=command.name, parent=context)
    with contextlib.suppress(click.exceptions.Exit):
        return command.make_context(command.name, rest, parent=context.parent)
    return None


def check_values(context: click.Context) -> None:
    """Check what parsing leaves open: the names of tasks, arms, connectors and settings.

    Raises:
        PfiError: one of them does not exist.
    """
    from pfi.augment.generators import get_generator
    from pfi.gate.choices import GateConfig
    from pfi.profile.learn.candidates import RefreshConfig
    from pfi.train.config import TrainConfig
    from pfi.train.examples import MixConfig

    given: dict[str, Any] = context.params
    if task := given.get("task"):
        check_task(task)
    if context.info_name == "import" and given["kind"] == "auto":
        assert not given["settings"], "which options there are is not known yet"
    elif context.info_name == "import":
        connector = get_connector(given["kind"])
        options = connector.configure(parse_options(given["settings"] or [], connector.options))
        check_task(getattr(options, "task", None))
    elif context.info_name == "connectors" and given["kind"]:
        get_connector(given["kind"])
    elif context.info_name == "train":
        pairs = given["settings"] or []
        mix = [pair for pair in pairs if pair.startswith("mix.")]
        MixConfig.model_validate(nested_settings(mix).get("mix", {}))
        rest = [pair for pair in pairs if pair not in mix]
        TrainConfig.model_validate(parse_options(rest, TrainConfig))
    elif context.info_name == "fit":
        GateConfig.model_validate(nested_settings(given["settings"] or []))
    elif context.info_name == "augment":
        values = nested_settings(given["settings"] or [])
        values |= {name: given[name] for name in ("policy", "records") if given[name] is not None}
        values["teacher"] = {**values.get("teacher", {}), "kind": given["teacher"] or "embedded"}
        AugmentConfig.model_validate(values)
        for name in (given["strategies"] or "write").split(","):
            get_generator(name)
    elif context.info_name == "refresh":
        RefreshConfig.model_validate(nested_settings(given["settings"] or []))
    elif context.info_name == "study":
        lists = {name: given[name].split(",") for name in ("tasks", "arms") if given[name]}
        config = build_config(None, {"data": Path("lamp"), **lists}, given["set_"] or [])
        for name in config.tasks:
            check_task(name)


def check_task(name: str | None) -> None:
    if name and not name.endswith((".yaml", ".yml")):
        get_task(name)


PFI_LINES = [
    pytest.param(words, id=f"{page}: {' '.join(words)}")
    for page, words in documented("pfi")
    if words[:1] != ["COMMAND"]  # stands for any command in the help of `pfi`
]


@pytest.mark.parametrize("words", PFI_LINES)
def test_command_lines_in_the_docs_parse(words: list[str]) -> None:
    context = parse(words)
    if context is not None:
        check_values(context)


def test_there_are_command_lines_to_check() -> None:
    assert len(PFI_LINES) > 40
    assert {"init", "import", "train", "ask", "study", "adapters"} <= {
        words[0] for _, words in documented("pfi") if words
    }


@pytest.mark.parametrize(
    "line",
    [
        "pfi fly",
        "pfi train --epoch-count 3",
        "pfi train --epochs many",
        "pfi import git",
        "pfi adapters burn",
        "pfi --nothing",
        "PFI_HOME=x git diff | pfi ask - --nothing",
    ],
)
def test_wrong_command_lines_are_found(line: str) -> None:
    [words] = shell_commands(line, "pfi")
    with pytest.raises(click.UsageError):
        parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "pfi train --task LaMP_9",
        "pfi train --set epoch=3",
        "pfi import git . --set authors=x",
        "pfi import carrier-pigeon .",
        "pfi study --arms magic",
        "pfi study --tasks LaMP_9",
        "pfi study --set personal.epoch=5",
        "pfi train --set mix.order=backwards",
        "pfi augment --teacher oracle",
        "pfi augment --set filters.colour=1",
        "pfi augment --strategies copy",
    ],
)
def test_wrong_names_in_command_lines_are_found(line: str) -> None:
    [words] = shell_commands(line, "pfi")
    context = parse(words)
    assert context is not None
    with pytest.raises((PfiError, ValueError)):
        check_values(context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_prose_exist(page: Path) -> None:
    for span in re.findall(r"`pfi ([^`]+)`", prose(page)):
        words = re.sub(r"\b(KIND|PATH|TEXT|VERSION)\b", "", span).split()
        with contextlib.suppress(click.MissingParameter):  # prose leaves arguments out
            parse(words)


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    found = script.commands()
    assert ("adapters", "rollback") in found
    for words, help_text in found.items():
        assert f"\n## {' '.join(['pfi', *words])}\n" in text
        assert help_text.rstrip() in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    text = page.read_text("utf-8")
    for name in re.findall(r"`make (\w+)`|^make (\w+)$", text, re.MULTILINE):
        assert (name[0] or name[1]) in targets


def test_pretraining_commands_parse() -> None:
    """The jobs call scripts/pretrain.py with options that it has."""
    source = (ROOT / "scripts" / "pretrain.py").read_text("utf-8")
    known = set(re.findall(r'add_argument\("(--[\w-]+)"', source))
    stages = re.search(r'"stage", choices=\[(.*?)\]', source)
    assert stages
    calls = []
    for block in FENCE.finditer((ROOT / "dev" / "gpu-jobs.md").read_text("utf-8")):
        calls += re.findall(r"scripts/pretrain\.py (\w+) ([^|\n]*)", block[3])
    assert len(calls) >= 4
    for stage, options in calls:
        assert f'"{stage}"' in stages[1]
        assert set(re.findall(r"--[\w-]+", options)) <= known


# Pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text("utf-8")
    message = "run `python scripts/document_commands.py`"
    assert script.filled(text) == text, message


def test_every_generated_part_is_in_a_page() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    names = re.findall(r"<!-- generated: ([\w-]+) -->", text)
    assert sorted(names) == sorted(script.PARTS)


def test_a_stale_part_is_found() -> None:
    page = ROOT / "docs" / "studies.md"
    text = page.read_text("utf-8").replace(
        "| `retrieve` | whole number ≥ 1 | `2` |", "| `retrieve` | 3 |"
    )
    assert text != page.read_text("utf-8")
    assert script.filled(text) == page.read_text("utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, *DEV], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_linked_from_the_readme() -> None:
    readme = README.read_text("utf-8")
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in readme


def test_pages_for_users_do_not_send_them_to_the_workshop() -> None:
    """The README may, for those who want to work on pfi."""
    for page in PAGES[1:]:
        text = page.read_text("utf-8")
        assert not re.search(r"\]\((\.\./)?dev/", text), f"{page.name} links to dev/"
    assert not {page.name for page in DEV} & {page.name for page in PAGES}


def test_pages_named_in_the_code_exist() -> None:
    named = {
        name: path
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"\b(?:docs|dev)/[\w-]+\.md", path.read_text("utf-8"))
    }
    assert "docs/studies.md" in named
    assert not {name: path for name, path in named.items() if not (ROOT / name).exists()}


def test_lines_are_readable() -> None:
    """Prose lines stay short enough to review; tables, code and generated parts do not count."""
    for page in [*PAGES, *DEV]:
        for line in prose(page).splitlines():
            assert line.startswith(("|", "!", "<!--")) or len(line) <= 120, (page.name, line)


# Contents -----------------------------------------------------------------------------


def test_tasks_and_connectors_are_documented() -> None:
    task_page = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    connector_page = (ROOT / "docs" / "connectors.md").read_text("utf-8")
    for name in tasks():
        assert f"| `{name}` |" in task_page
    for name, connector in connectors().items():
        assert f"### {name}\n" in connector_page
        assert f"| `{name}` | " in connector_page, "say what it reads"
        assert issubclass(connector.options, BaseModel)
        for option in connector.options.model_fields:
            assert f"| `{option}` |" in connector_page


def test_every_figure_of_metrics_json_is_documented() -> None:
    from pfi.evaluate.statistics import UserAnswers, summarise
    from pfi.evaluate.study.config import StudyConfig
    from pfi.evaluate.study.study import machine

    page = (ROOT / "docs" / "studies.md").read_text("utf-8")
    answers = {"u": UserAnswers(["1", "2"], ["1", "1"], 3)}
    cell = summarise(get_task("LaMP_3"), answers, answers, rounds=10, seed=0)
    leaves = {f"metrics.<metric>.{key}" for key in cell.pop("metrics")["mae"]}
    leaves |= {f"users.<id>.{key}" for key in cell.pop("users")["u"]}
    leaves |= {f"gain.{key}" for key in cell.pop("gain")} | set(cell) | {"seconds"}
    for leaf in leaves:
        assert f"`….{leaf}`" in page
    for key in machine():
        assert f"`{key}`" in page
    for name in StudyConfig.model_fields:
        assert f"| `{name}` |" in page or f"`{name}.`" in page


def test_every_event_of_a_study_is_documented() -> None:
    files = sorted((ROOT / "src/pfi/evaluate").rglob("*.py"))
    source = "\n".join(file.read_text("utf-8") for file in files)
    page = (ROOT / "docs" / "studies.md").read_text("utf-8").partition("An event is one line")[2]
    found = {
        str(ast.literal_eval(call.args[0])): [k.arg for k in call.keywords if k.arg]
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "new_event"
    }
    kinds = ["started", "augmented", "round", "trained", "gated", "answered", "streamed"]
    kinds += ["forgetting", "finished"]
    assert set(found) == set(kinds)
    table = page[page.index("| `started` |") :]  # settings have such names too
    for event, keys in found.items():
        row = re.search(rf"^\| `{event}` \| (.*) \|$", table, re.MULTILINE)
        assert row, event
        for key in keys:
            assert f"`{key}`" in row[1], (event, key)


# Names --------------------------------------------------------------------------------

#: Files that pages name and no code of ours does: placeholders, and those of other programs.
OTHERS = {"OUT.json", "conversations-000.json", "openapi.json", "phone-7.json", "triage.yaml"}
_FILE = re.compile(r"[\w*<>./-]*\w\.(?:db|html|jsonl?|key|log|pem|safetensors|sock|yaml)\b")
_PATH = re.compile(r"(?:benchmarks|dev|docs|scripts|src|tests)/[\w./-]*\w|[\w./-]+/[\w-]+\.py\b")
_SETTING = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)(?:=.*|: .*)?")
_VARIABLE = re.compile(r"\bPFI_[A-Z]+(?:_[A-Z]+)*\b")


def source() -> str:
    """The text of all of our modules."""
    return "\n".join(file.read_text("utf-8") for file in sorted((ROOT / "src").rglob("*.py")))


def flags(command: click.Command) -> set[str]:
    """The options of a command and of those below it."""
    found = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return found.union(*map(flags, getattr(command, "commands", {}).values()))


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The names of a model's settings, those of the models within it with a dot."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from settings_of(part, f"{prefix}{name}.")


def all_settings() -> set[str]:
    """The names of all settings, as a file or `--set` spells them."""
    from pfi.evaluate.study.config import StudyConfig
    from pfi.federate.config import FederateConfig
    from pfi.gate.choices import GateConfig
    from pfi.memory.config import SearchConfig
    from pfi.profile.config import HomeConfig
    from pfi.profile.learn.candidates import RefreshConfig
    from pfi.serve import ServeConfig
    from pfi.train.config import TrainConfig
    from pfi.train.examples import MixConfig

    whole: list[type[BaseModel]] = [StudyConfig, FederateConfig, AugmentConfig, HomeConfig]
    whole.append(ServeConfig)
    sections: dict[str, type[BaseModel]] = {
        "train": TrainConfig,
        "mix": MixConfig,
        "augment": AugmentConfig,
    }
    sections |= {"gate": GateConfig, "refresh": RefreshConfig, "search": SearchConfig}
    found = {name for model in whole for name in settings_of(model)}
    return found.union(*(settings_of(model, f"{name}.") for name, model in sections.items()))


def unknown_names(found: list[str], known: str, options: set[str], settings: set[str]) -> list[str]:
    """Those of some spans that name a flag, file, path or setting which does not exist."""
    sections = {name.partition(".")[0] for name in settings if "." in name}
    data = {file.name for file in (ROOT / "src").rglob("*") if file.suffix != ".py"}
    wrong = []
    for span in found:
        if span.startswith(("--", "pfi ")):
            wrong += [f for f in re.findall(r"(?<![\w-])--[a-z][\w-]+", span) if f not in options]
        setting = _SETTING.fullmatch(span)
        if setting and not _FILE.search(span) and setting[1].partition(".")[0] in sections:
            wrong += [span] * (setting[1] not in settings)
        for path in _PATH.findall(span):
            if not any((place / path).exists() for place in (ROOT, ROOT / "src" / "pfi")):
                wrong.append(path)
        for path in _FILE.findall(span):
            name = path.rpartition("/")[2].lstrip("*")
            if name not in OTHERS | data and name not in known and not (ROOT / path).exists():
                wrong.append(path)
    return wrong


def test_flags_files_paths_and_settings_named_in_prose_exist() -> None:
    known, settings = source(), all_settings()
    options = flags(typer.main.get_command(app)) | {"--help"}
    wrong = {page.name: unknown_names(spans(page), known, options, settings) for page in PAGES}
    assert not {page: names for page, names in wrong.items() if names}


@pytest.mark.parametrize(
    "span",
    ["--key-ring", "pfi ask --how", "vaults.db", "device/house.py", "src/pfi/no.py", "robust.evil",
     "filters.colour=1", "train.epoch: 3", "memory/index.json"],
)  # fmt: skip
def test_wrong_names_are_found(span: str) -> None:
    options = {"--key", "--why"}
    assert unknown_names([span], "vault.db memory.db", options, all_settings())


def test_names_of_python_in_prose_exist() -> None:
    for page in PAGES:
        for span in spans(page):
            if not _FILE.search(span) and (name := re.fullmatch(r"pfi(?:\.[A-Za-z_]\w*)+", span)):
                assert pkgutil.resolve_name(name[0]), (page.name, span)


def test_the_settings_of_an_engine_are_those_of_its_class() -> None:
    from pfi.inference.torch.engine import TorchEngine

    page = (ROOT / "docs" / "runtime.md").read_text("utf-8")
    table = page.partition("## The torch engine\n")[2].partition("\n\n- ")[0]
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    found = inspect.signature(TorchEngine).parameters
    assert set(documented) == found.keys() - {"backbone"}


def test_variables_of_the_environment_exist() -> None:
    known = source()
    for page in PAGES:
        for name in set(_VARIABLE.findall(page.read_text("utf-8"))):
            assert name in known, (page.name, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_docs_imports_what_there_is_and_uses_what_it_has(page: Path) -> None:
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL)
    blocks = [block[3] for block in FENCE.finditer(text) if block[2] == "python"]
    # A block may go on from those before it.
    bound, used = {*dir(builtins), "__name__"}, set[str]()
    for node in ast.walk(ast.parse("\n".join(blocks))):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pfi"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
    assert used <= bound


# Worked examples ----------------------------------------------------------------------


def test_the_example_task_works(tmp_path: Path) -> None:
    path = tmp_path / "triage.yaml"
    path.write_text(block_after("tasks.md", "triage.yaml"), "utf-8")
    task = read_task(path)
    (tmp_path / "sorted.csv").write_text(
        'text,folder\n"Call me, please",now\nSale!,never\n', "utf-8"
    )
    home = create_home(root=tmp_path / "home")
    options = parse_options([f"task={path}"], get_connector("table").options)
    assert import_records(home, "table", tmp_path / "sorted.csv", options).added == 2
    with home.open_vault() as vault:
        records = list(vault.history("triage"))
    prompt = task.prompt({"text": "Hello"})
    assert "one of: now, later, never. message: Hello" in prompt
    assert task.fields(prompt) == {"text": "Hello"}
    filled = task.retrieval_prompt(prompt, records, lambda text, tokens: text, 100)
    assert '"Call me, please" went to "now" ' in filled
    assert task.score(["now", "later"], ["now", "never"])["accuracy"] == 0.5


def test_the_example_connector_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered = dict(connectors())
    monkeypatch.setattr(connector_module, "_REGISTERED", registered)
    path = tmp_path / "journal_example.py"
    path.write_text(block_after("connectors.md", "journal.py"), "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    folder = tmp_path / "diary"
    folder.mkdir()
    for name, text in [
        ("2024-05-02.md", "Rain again."),
        ("2024-05-01.md", "Sun at last."),
        ("2024-05-03.md", " \n"),
        ("ideas.md", "Not a day."),
        ("2024-05-04.txt", "Another suffix."),
    ]:
        (folder / name).write_text(text, "utf-8")
    report = ImportReport()
    connector = registered["journal"]
    records = list(connector.read(folder, connector.configure({}), report))
    assert [record.output for record in records] == ["Sun at last.", "Rain again."]
    assert records[0].task == "continuation" and records[0].time is not None
    assert report.read == 2
    assert dict(report.examples) == {
        "text is empty": "2024-05-03.md",
        "time is not understood": "ideas.md",
    }
    with pytest.raises(PfiError, match="YYYY-MM-DD"):
        list(connector.read(tmp_path / "home", connector.configure({}), ImportReport()))


def test_the_example_study_file_works() -> None:
    import yaml

    from pfi.evaluate.study.config import StudyConfig

    page = (ROOT / "docs" / "studies.md").read_text("utf-8")
    [block] = [found[3] for found in FENCE.finditer(page) if found[2] == "yaml"]
    config = build_config(None, yaml.safe_load(block), [])
    assert config.tasks == ["LaMP_3", "LaMP_5"] and config.users == 50
    default = StudyConfig.model_fields["personal"].default
    assert config.personal == default.model_copy(update={"epochs": 5})
