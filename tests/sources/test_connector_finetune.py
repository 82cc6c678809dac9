"""Fine-tuning files in the forms of several programs.

Shapes: OpenAI's guide to fine-tuning, ShareGPT and Alpaca as in hiyouga/LLaMA-Factory's data
folder, Dolly, TRL's preference data, Gemini's `contents`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from connector_sources import read

from pfi.errors import DataError
from pfi.sources.connectors import detect

ASKED, SAID = "How was it?", "It went well."
USER, MODEL = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}

FORMS: dict[str, Any] = {
    "messages": {"messages": [{"role": "system", "content": "Be kind."}, USER, MODEL]},
    "parts": {"messages": [
        {"role": "user", "content": [{"type": "text", "text": ASKED}, {"type": "image_url"}]},
        MODEL]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED},
                                   {"from": "gpt", "value": SAID}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": ASKED}]},
                            {"role": "model", "parts": [{"text": SAID}]}]},
    "alpaca": {"instruction": ASKED, "input": "", "output": SAID},
    "dolly": {"instruction": ASKED, "context": "", "response": SAID, "category": "open_qa"},
    "prompt": {"prompt": ASKED, "completion": SAID},
    "question": {"question": ASKED, "answer": SAID},
    "io": {"input": ASKED, "output": SAID},
    "lists": {"prompt": [USER], "completion": [MODEL]},
    "preference": {"prompt": ASKED, "chosen": SAID, "rejected": "FOREIGN"},
    "chosen": {"prompt": [USER], "chosen": [USER, MODEL],
               "rejected": [USER, {"role": "assistant", "content": "FOREIGN"}]},
    "dpo": {"input": {"messages": [USER], "tools": []}, "preferred_output": [MODEL],
            "non_preferred_output": [{"role": "assistant", "content": "FOREIGN"}]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_every_form_is_found_and_read(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / name
    text = json.dumps(FORMS[form])
    path.write_text(f"{text}\n{text}\n" if name == "a.jsonl" else f"[{text}]")
    assert detect(path) == "finetune"
    [record], _ = read("finetune", path)
    assert (record.task, dict(record.input), record.output, record.time) == (
        "instruction", {"instruction": ASKED}, SAID, None,
    )  # fmt: skip


def test_whose_words_are_ones_own(tmp_path: Path) -> None:
    """The words of each side are outputs of its own choice only, each once."""
    mine = [f"own words number {n} of a sentence that is long enough" for n in range(3)]
    theirs = [f"ANSWER {n}" for n in range(3)]
    turns = [
        message
        for own, other in zip(mine, theirs, strict=True)
        for message in ({"role": "user", "content": own}, {"role": "assistant", "content": other})
    ]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    records, _ = read("finetune", path)
    assert [(r.input["instruction"], r.output) for r in records] == list(
        zip(mine, theirs, strict=True)
    )
    records, _ = read("finetune", path, {"mine": "user"})
    assert [(r.task, dict(r.input), r.output) for r in records] == [
        ("continuation", {}, own) for own in mine
    ]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"messages": [MODEL]},
        {"messages": [USER, MODEL | {"weight": 0}]},
        {"messages": [USER, MODEL | {"content": "x" * 5000}]},
        {"messages": [USER, MODEL]}, {"messages": [USER, MODEL]}, {"messages": [5]}, {"a": 1}, 5,
        {"prompt": ASKED, "completion": ["x"]}, {"prompt": True, "completion": "x"},
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{"]))
    records, report = read("finetune", path)
    assert [r.output for r in records] == [SAID]
    assert report.examples == {
        "it answers nobody": "a.jsonl, line 1",
        "it is of the system or a tool, or not to be learnt": "a.jsonl, line 2",
        "it is longer than 4000 characters": "a.jsonl, line 3",
        "it repeats a turn": "a.jsonl, line 5",
        "a message is not an object": "a.jsonl, line 6",
        "it is neither a chat nor a pair of question and answer": "a.jsonl, line 7",
        "the line is not a JSON object": "a.jsonl, line 8",
        "prompt is not text": "a.jsonl, line 10",
        "the line is not JSON": "a.jsonl, line 11",
    } | {"a message is not an object": "a.jsonl, line 6"}
    path.write_text('{"messages": []}\n')
    assert detect(path) is None
    with pytest.raises(DataError, match="holds no records"):
        read("finetune", path)


def test_a_table_stays_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "ask", "answer": "tell"}\n')
    assert detect(path) == "table"
    path.write_text(json.dumps({"messages": [USER | {"content": "instruction and answer"}, MODEL]}))
    assert detect(path) == "finetune"
