#!/usr/bin/env python
"""Write the generated parts of the documentation, or check that they are current.

    python scripts/document_commands.py           # fill in README.md and docs/*.md
    python scripts/document_commands.py --check   # exit 1 and name the files that are not current

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; ``PARTS``
says what each name stands for.  ``tests/test_docs.py`` runs the check.
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
#: Columns of a help text; fixed, so that the terminal at hand makes no difference.
WIDTH = 90

_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS: dict[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "yes or no", Path: "path",
    type(None): "none", Any: "any",
}  # fmt: skip
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
#: Keys of a task definition whose model has no description.
TASK_KEYS = {
    "name": "what commands, files and records call it",
    "title": "what people read",
    "kind": "`choice`: one of the labels; `score`: labels on an ordered scale; `text`: free text",
    "labels": "the allowed answers of a `choice` or `score` task, in order",
    "metrics": "what answers are scored with; the first one is the main metric",
    "max_new_tokens": "longest free-text answer, in tokens",
}


# Tables -------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text as a table's cell: angle brackets outside code would be read as HTML."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)


def code(value: Any) -> str:
    """A value as code in a table's cell."""
    text = str(value).replace("|", "\\|")
    return f"`{text}`" if text else "empty"


def kind(annotation: Any) -> str:
    """A type in words, the same under every version of Python."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:  # the description says what its bounds are
        return kind(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(kind(part) for part in inner)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {kind(inner[0])}"
    if origin is dict:
        return f"mapping of {kind(inner[0])} to {kind(inner[1])}"
    return _KINDS[annotation]


def allowed(info: FieldInfo) -> str:
    """A setting's type and bounds in words."""
    bounds = ", ".join(
        f"{sign} {value:g}"
        for rule in info.metadata
        for name, sign in _BOUNDS.items()
        if (value := getattr(rule, name, None)) is not None
    )
    # Bounds are those of the first type; an alternative is `none`.
    first, *others = kind(info.annotation).split(" or ")
    return " or ".join([f"{first} {bounds}".rstrip(), *others])


def default(value: Any) -> str:
    """A default value in words."""
    if value is None:
        return "none"
    if isinstance(value, list | dict) and not value:
        return "empty"
    return code(", ".join(map(str, value)) if isinstance(value, list) else value)


def settings(
    model: type[BaseModel],
    notes: Mapping[str, str] = {},
    *,
    skip: Sequence[str] = (),
    given: BaseModel | None = None,
) -> Iterator[list[str]]:
    """A row for each field of a model: name, type, default, description.

    The fields of a model within the model have its name and a dot before theirs; ``given`` has
    their defaults there, where these are not the inner model's own.
    """
    for name, info in model.model_fields.items():
        if name in skip:
            continue
        value = None if info.is_required() else info.get_default(call_default_factory=True)
        if given is not None:
            value = getattr(given, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            inner = value if isinstance(value, BaseModel) else None
            for row in settings(info.annotation, notes, given=inner):
                yield [code(f"{name}.{row[0].strip('`')}"), *row[1:]]
            continue
        if (inner_model := _optional(info.annotation)) is not None:
            yield [code(name), "mapping or none", default(value), plain(info.description or "")]
            for row in settings(inner_model, notes):
                yield [code(f"{name}.{row[0].strip('`')}"), *row[1:]]
            continue
        shown = "required" if info.is_required() else default(value)
        yield [code(name), allowed(info), shown, plain(info.description or notes[name])]


def _optional(annotation: Any) -> type[BaseModel] | None:
    """The model of ``Model | None``."""
    models = [
        part
        for part in get_args(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    return models[0] if models else None


_HEAD = ("setting", "type", "default", "meaning")


# The parts ----------------------------------------------------------------------------


def commands() -> dict[tuple[str, ...], str]:
    """The help text of ``pfi`` and of every command, by its words without ``pfi``."""
    from pfi.cli.app import app

    found: dict[tuple[str, ...], str] = {}

    def visit(command: click.Command, words: tuple[str, ...], parent: click.Context | None) -> None:
        name = words[-1] if words else "pfi"
        settings = {"terminal_width": WIDTH, **command.context_settings}
        context = click.Context(command, parent=parent, info_name=name, **settings)
        found[words] = command.get_help(context)
        for child in getattr(command, "commands", {}).values():
            visit(child, (*words, str(child.name)), context)

    visit(typer.main.get_command(app), (), None)
    return found


def command_part() -> str:
    """Every command's help."""
    return "\n\n".join(
        f"## {' '.join(['pfi', *words])}\n\n```text\n{help_text.rstrip()}\n```"
        for words, help_text in commands().items()
    )


def arm_part() -> str:
    """The arms of a study."""
    from pfi.evaluate.study.arms import ARMS, DEFAULT_ARMS

    rows = []
    for arm in ARMS.values():
        learnt = []
        if arm.kind is not None:
            learnt = ["real"] * arm.kind.real + [arm.kind.synthetic] * bool(arm.kind.synthetic)
        searched = arm.how or ("yes, and a summary" if arm.profile else "yes")
        memory = searched if arm.memory else ""
        shared, gate, run = (
            "yes" if used else "" for used in (arm.shared, arm.gate, arm.name in DEFAULT_ARMS)
        )
        rows.append(
            [code(arm.name), shared, ", ".join(learnt), memory, gate, run, plain(arm.summary)]
        )
    head = ("arm", "shared adapter", "personal adapter learns from", "memory", "gate",
            "run by default", "what it is")  # fmt: skip
    return table(head, rows)


def study_part() -> str:
    """The settings of a study, without those that have a table of their own."""
    from pfi.evaluate.study.config import StudyConfig

    apart = ("shared", "personal", "federation", "augment", "mix", "gate", "stream")
    return table(_HEAD, settings(StudyConfig, skip=apart))


def federate_part() -> str:
    """The settings of a federation."""
    from pfi.federate.config import FederateConfig

    return table(_HEAD, settings(FederateConfig))


def augment_part() -> str:
    """The settings of augmentation."""
    from pfi.augment.config import AugmentConfig

    return table(_HEAD, settings(AugmentConfig))


def stream_part() -> str:
    """The settings of the stream protocol."""
    from pfi.evaluate.study.config import StreamConfig

    return table(_HEAD, settings(StreamConfig))


def search_part() -> str:
    """How memory is searched."""
    from pfi.memory.config import SearchConfig

    return table(_HEAD, settings(SearchConfig))


def gate_part() -> str:
    """The settings of the gate."""
    from pfi.gate.choices import GateConfig

    return table(_HEAD, settings(GateConfig))


def forgetting_part() -> str:
    """What is measured of forgetting, and the bound."""
    from pfi.train.config import ForgettingConfig

    return table(_HEAD, settings(ForgettingConfig))


def refresh_part() -> str:
    """The settings of a refresh."""
    from pfi.profile.learn.candidates import RefreshConfig

    return table(_HEAD, settings(RefreshConfig))


def mix_part() -> str:
    """How synthetic records are trained on."""
    from pfi.train.examples import MixConfig

    return table(_HEAD, settings(MixConfig))


def training_part() -> str:
    """The training settings, with their defaults in `pfi train` and in a study."""
    from pfi.evaluate.study.config import StudyConfig
    from pfi.train.config import TrainConfig

    shared = StudyConfig.model_fields["shared"].default.model_dump()
    personal = StudyConfig.model_fields["personal"].default.model_dump()
    rows = [
        [*row[:3], default(shared[name]), default(personal[name]), row[3]]
        for name, row in zip(TrainConfig.model_fields, settings(TrainConfig), strict=True)
    ]
    return table(("setting", "type", "`pfi train`", "`shared.`", "`personal.`", "meaning"), rows)


def profile_part() -> str:
    """The settings of a profile."""
    from pfi.profile.config import HomeConfig

    return table(_HEAD, settings(HomeConfig))


def task_part() -> str:
    """The tasks."""
    from pfi.tasks import tasks

    rows = [
        [code(t.name), t.title, code(t.kind), code(t.practice), ", ".join(map(code, t.metrics))]
        for t in tasks().values()
    ]
    return table(("task", "title", "kind", "practice", "metrics"), rows)


def task_key_part() -> str:
    """The keys of a task definition."""
    from pfi.tasks import Task

    return table(("key", *_HEAD[1:]), settings(Task, TASK_KEYS))


def practice_part() -> str:
    """The practices, by the first line of their documentation."""
    from pfi.tasks.practices import PRACTICES

    rows = [[code(name), plain(_first_line(made))] for name, made in PRACTICES.items()]
    return table(("practice", "how a record becomes training examples"), rows)


def metric_part() -> str:
    """The metrics."""
    from pfi.tasks import METRICS

    rows = []
    for name, metric in METRICS.items():
        better = "higher" if metric.higher_is_better else "lower"
        rows.append([code(name), better, plain(_first_line(metric.compute))])
    return table(("metric", "better", "what it is"), rows)


def connector_part() -> str:
    """The connectors and their options."""
    from pfi.sources.connectors import connectors

    parts = []
    for connector in connectors().values():
        rows = list(settings(connector.options))
        options = table(("option", *_HEAD[1:]), rows) if rows else "It has no options."
        summary = connector.summary
        parts.append(f"### {connector.name}\n\nReads {summary}.\n\n{options}")
    return "\n\n".join(parts)


def trainer_part() -> str:
    """The interface of an engine, from the source."""
    from pfi.train.job import Trainer

    return f"```python\n{inspect.getsource(Trainer).rstrip()}\n```"


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def serve_part() -> str:
    """The settings of the server."""
    from pfi.serve import ServeConfig

    return table(_HEAD, settings(ServeConfig))


PARTS: dict[str, Callable[[], str]] = {
    "commands": command_part,
    "arms": arm_part,
    "study-settings": study_part,
    "augment-settings": augment_part,
    "federate-settings": federate_part,
    "forgetting-settings": forgetting_part,
    "gate-settings": gate_part,
    "mix-settings": mix_part,
    "stream-settings": stream_part,
    "training-settings": training_part,
    "profile-settings": profile_part,
    "refresh-settings": refresh_part,
    "search-settings": search_part,
    "serve-settings": serve_part,
    "tasks": task_part,
    "task-keys": task_key_part,
    "practices": practice_part,
    "metrics": metric_part,
    "connectors": connector_part,
    "trainer": trainer_part,
}


# Files --------------------------------------------------------------------------------


def pages() -> list[Path]:
    """README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """A page's text with its generated parts made anew.

    Raises:
        KeyError: a part has a name that is not in ``PARTS``.
    """
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write or check the generated documentation.")
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = [page for page in pages() if filled(page.read_text("utf-8")) != page.read_text("utf-8")]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is not current' if check else 'written'}")
        if not check:
            page.write_text(filled(page.read_text("utf-8")), "utf-8")
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
