"""Prompts as token ids: framing of conversations, and what is left out of long ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import FAMILIES
from pfi.errors import ConfigError
from pfi.models.backbone import load_backbone
from pfi.models.prompter import Prompter, load_prompter

Folder = Callable[[str], Path]
ALTERNATING = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' or (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
)


def with_template(prompter: Prompter, template: str) -> Prompter:
    import copy

    tokenizer = copy.deepcopy(prompter.tokenizer)
    tokenizer.chat_template = template
    return replace(prompter, tokenizer=tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_the_backbone_has(backbone_folder: Folder, family: str) -> None:
    folder = backbone_folder(family)
    prompter, backbone = load_prompter(folder), load_backbone(folder)
    fields = ("name", "seq2seq", "max_length", "end_id")
    for name in fields:
        assert getattr(prompter, name) == getattr(backbone, name)
    for text in ("a quick brown fox", "so </s> it goes", "fox " * 2000):
        assert prompter.prompt_ids(text) == backbone.prompt_ids(text)
        assert prompter.target_ids(text, 9) == backbone.target_ids(text, 9)


def test_one_message_is_a_prompt(backbone_folder: Folder) -> None:
    for name in ["embedded", *(str(backbone_folder(family)) for family in FAMILIES)]:
        prompter = load_prompter(name)
        assert prompter.chat_ids([("user", "a fox")]) == prompter.prompt_ids("a fox")


def test_texts_are_what_the_tokenizer_decodes(backbone_folder: Folder) -> None:
    for name in ["embedded", *(str(backbone_folder(family)) for family in FAMILIES)]:
        prompter = load_prompter(name)
        for clean in (False, True):
            prompter.tokenizer.clean_up_tokenization_spaces = clean
            for text in ("good fine , isn 't it ?", " a  fox \u00e9\n", ""):
                ids = [prompter.end_id, *prompter.token_ids(text), prompter.end_id]
                expected = prompter.tokenizer.decode(ids, skip_special_tokens=True)
                assert prompter.text(ids) == expected


def test_a_conversation_is_what_the_template_writes() -> None:
    prompter = load_prompter("embedded")
    turns = [("user", "Hello there."), ("assistant", "Hi!"), ("user", "How are you?")]
    text = prompter.tokenizer.apply_chat_template(
        [{"role": role, "content": said} for role, said in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = prompter.chat_ids(turns)
    assert prompter.tokenizer.decode(ids) == text
    assert ids == list(prompter.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_without_a_template_roles_are_written_out(backbone_folder: Folder) -> None:
    prompter = load_prompter(backbone_folder("llama"))
    ids = prompter.chat_ids([("system", "good film"), ("user", "the fox")])
    assert prompter.text(ids) == "system: good film\nuser: the fox\nassistant:"


def test_control_tokens_in_a_conversation_stay_text() -> None:
    prompter = load_prompter("embedded")
    assistant = prompter.tokenizer.convert_tokens_to_ids("<|assistant|>")
    ids = prompter.chat_ids([("user", "x<|assistant|>y"), ("assistant", "z"), ("user", "q")])
    assert ids.count(assistant) == 2  # the turn's and the one that the answer follows
    assert "x<|assistant|>y" in prompter.tokenizer.decode(ids)


def test_threads_do_not_mix_up_control_tokens() -> None:
    prompter = load_prompter("embedded")
    wrong = []

    def write() -> None:
        for _ in range(300):
            if prompter.end_id in prompter.token_ids("a <|end|> b"):
                wrong.append(1)

    def frame() -> None:
        for count in range(300):
            prompter._frames.clear()
            prompter.chat_ids([("user", str(count))])

    threads = [threading.Thread(target=work) for work in (write, frame, write, frame)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_does_not_fit_goes_oldest_first() -> None:
    prompter = load_prompter("embedded")
    turns = [
        ("system", "Be kind."),
        ("user", "first question"),
        ("assistant", "first answer"),
        ("user", "second question"),
        ("assistant", "second answer"),
        ("user", "last question"),
    ]
    whole = prompter.chat_ids(turns)
    shorter = prompter.chat_ids(turns, len(whole) - 1)
    assert shorter == prompter.chat_ids([turns[0], *turns[3:]])
    least = prompter.chat_ids([turns[0], turns[-1]])
    assert prompter.chat_ids(turns, len(least)) == least
    cut = prompter.chat_ids(turns, len(least) - 1)
    assert len(cut) == len(least) - 1
    assert prompter.tokenizer.decode(cut).endswith("<|assistant|>")


def test_a_strict_template_gets_merged_turns() -> None:
    prompter = with_template(load_prompter("embedded"), ALTERNATING)
    turns = [("system", "Be kind."), ("user", "a"), ("user", "b")]
    assert prompter.tokenizer.decode(prompter.chat_ids(turns)) == (
        "[user]Be kind.\n\na\n\nb[assistant]"
    )
    with pytest.raises(ConfigError, match="take turns"):
        prompter.chat_ids([("assistant", "a"), ("user", "b")])
    with pytest.raises(ConfigError, match="empty"):
        prompter.chat_ids([])


def test_frames_that_are_kept_do_not_pile_up() -> None:
    prompter = load_prompter("embedded")
    for count in range(1, 90):
        prompter.chat_ids([("user", "a"), ("assistant", "b")] * count + [("user", "c")])
    assert len(prompter._frames) <= 64
