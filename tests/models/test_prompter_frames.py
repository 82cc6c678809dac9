"""What stands around texts and answers: tokens of whole texts, ends of turns, closed thoughts."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from byte_fallback import byte_fallback_tokenizer

from pfi.errors import BackboneError, ConfigError
from pfi.models.backbone import load_backbone
from pfi.models.generation_config import GenerationSettings
from pfi.models.prompter import Prompter, load_prompter

Folder = Callable[[str], Path]
CONTROL = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "<|channel|>")
LOOP = "{% for m in messages %}"
CHATML = (
    LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As Phi has it: the end of a turn is none of the tokenizer's own, the whole ends with that.
PHI = (
    LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
#: As GLM has it: a turn ends where the next one begins.
GLM = LOOP + "<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
QWEN = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


@pytest.fixture(scope="module")
def plain(backbone_folder: Folder) -> Prompter:
    """A byte-level tokenizer with more control tokens."""
    prompter = load_prompter(backbone_folder("llama"))
    tokenizer: Any = copy.deepcopy(prompter.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    return replace(prompter, tokenizer=tokenizer)


def with_template(prompter: Prompter, template: str, **fields: Any) -> Prompter:
    tokenizer: Any = copy.deepcopy(prompter.tokenizer)
    tokenizer.chat_template = template
    return replace(prompter, tokenizer=tokenizer, **fields)


def shown(prompter: Prompter, ids: list[int]) -> str:
    return str(prompter.tokenizer.decode(ids, skip_special_tokens=False))


def token(prompter: Prompter, text: str) -> int:
    return int(prompter.tokenizer.convert_tokens_to_ids(text))  # type: ignore[arg-type]


# Ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (PHI, "<|end|>"), (GLM, "</s>"), (None, "</s>")]
)
def test_targets_close_with_the_templates_end_of_a_turn(
    plain: Prompter, template: str, end: str
) -> None:
    prompter = with_template(plain, template)
    assert shown(prompter, prompter.target_ids("a fox")) == "a fox" + end
    assert prompter.end_id == token(prompter, end)
    assert prompter.end_ids == {prompter.end_id, prompter.tokenizer.eos_token_id}
    more = replace(prompter, generation=GenerationSettings(frozenset({7, 9})))
    assert more.end_ids == prompter.end_ids | {7, 9} and more.end_id == prompter.end_id


def test_what_is_no_control_token_ends_no_turn(plain: Prompter) -> None:
    prompter = with_template(plain, LOOP + "{{ m.role }}: {{ m.content }}###\n{% endfor %}")
    assert prompter.end_id == prompter.tokenizer.eos_token_id
    refusing = with_template(plain, "{{ messages[0].content }}{{ messages[1:] and 1 / 0 }}")
    assert refusing.end_id == refusing.tokenizer.eos_token_id


def test_the_embedded_model_is_as_it_was() -> None:
    prompter = load_prompter("embedded")
    assert prompter.end_ids == {prompter.tokenizer.eos_token_id} == {prompter.end_id}
    text = "Write a title: rain all week, in the hills"
    assert shown(prompter, prompter.prompt_ids(text)) == f"<|user|>{text}<|assistant|>"
    apart = [*prompter._encode("<|user|>", plain=False), *prompter.token_ids(text)]
    assert prompter.prompt_ids(text) == [*apart, *prompter._encode("<|assistant|>", plain=False)]
    assert prompter.target_ids(text) == [*prompter.token_ids(text), prompter.end_id]
    assert prompter.thoughts == () and prompter.byte_ids == frozenset()


def test_the_end_tokens_of_a_models_files_are_known(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    folder = shutil.copytree(backbone_folder("llama"), tmp_path / "model")
    file = folder / "generation_config.json"
    values = {"eos_token_id": [1, 40, 41], "temperature": 0.6, "top_k": 20, "do_sample": True}
    file.write_text(json.dumps(values), "utf-8")
    backbone = load_backbone(folder)
    assert backbone.end_ids == {1, 40, 41} == load_prompter(folder).end_ids
    assert backbone.generation == GenerationSettings(
        frozenset({1, 40, 41}), sample=True, temperature=0.6, top_k=20
    )
    file.unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    # A configuration's own may be a family's: a letter of this vocabulary ends nothing.
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [0, 41]}), "utf-8")
    assert load_prompter(folder).end_ids == {0, 1}
    for wrong in ("[1, 2", "[]", '{"eos_token_id": "x"}', '{"temperature": -1}', '{"top_p": "a"}'):
        file.write_text(wrong, "utf-8")
        with pytest.raises(BackboneError, match=r"generation_config\.json") as raised:
            load_prompter(folder)
        assert "\n" not in str(raised.value)


# Thoughts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opened",
    [
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
        "{% else %}<think>\n{% endif %}",
        "<think>\n",
        "<think>",
        "[THINK]",
        "<think>\n\n",
        "{% if thinking %}<think>{% else %}<think></think>{% endif %}",
    ],
)
def test_a_thought_is_closed_before_an_answer_is_trained_or_asked(
    plain: Prompter, opened: str
) -> None:
    template = LOOP + "[{{ m.role }}]{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]" + opened + "{% endif %}"
    prompter = with_template(plain, template)
    begin, end = ("[THINK]", "[/THINK]") if "[THINK]" in opened else ("<think>", "</think>")
    for roles in (["user"], ["user", "assistant", "user"]):
        ids = prompter.chat_ids([(role, "hi") for role in roles])
        text = shown(prompter, ids)
        assert text.count(begin) == text.count(end) == 1
        head, thought = text.split(begin)
        assert head.endswith("[assistant]") and not thought.replace(end, "").strip()
        assert not prompter.in_thought(ids)
    thinking = replace(prompter, thinking=True)
    ids = thinking.prompt_ids("hi")
    assert shown(prompter, ids).rstrip().endswith(begin) and thinking.in_thought(ids)
    assert thinking.prompt_ids("hi", thinking=False) == prompter.prompt_ids("hi")


def test_a_model_that_may_think_is_asked_not_to(plain: Prompter) -> None:
    prompter = with_template(plain, QWEN)
    end = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert shown(prompter, prompter.prompt_ids("hi")).endswith(end)
    thinking = replace(prompter, thinking=True)
    assert shown(prompter, thinking.prompt_ids("hi")).endswith("<|im_start|>assistant\n")
    assert prompter.end_id == token(prompter, "<|im_end|>")


def test_what_the_template_writes_instead_of_a_thought_stands_before_an_answer(
    plain: Prompter,
) -> None:
    template = (  # as gpt-oss has it
        LOOP + "<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final<|user|>"
        "{% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    prompter = with_template(plain, template)
    asked = shown(prompter, prompter.prompt_ids("hi"))
    assert asked.endswith("<|im_start|>assistant<|channel|>final<|user|>")
    assert prompter.end_id == token(prompter, "<|end|>")
    thinking = replace(prompter, thinking=True)
    assert shown(prompter, thinking.prompt_ids("hi")).endswith("<|im_start|>assistant")


# Tokens -------------------------------------------------------------------------------------

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    LOOP + "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TURNS = [
    [("user", "Write a title: rain")],
    [("user", "rain all week"), ("assistant", "Rain"), ("user", "Write another")],
]


def sentencepiece(template: str, control: tuple[str, ...] = ()) -> Prompter:
    tokenizer = byte_fallback_tokenizer("Write a title Rain rain all week", control)
    tokenizer.chat_template = template
    return Prompter("x", tokenizer, False, 512)


@pytest.mark.parametrize(
    ("template", "control"),
    [(MISTRAL, ("[INST]", "[/INST]")), (MISTRAL, ()), (ZEPHYR, ()), (ZEPHYR, CONTROL)],
)
@pytest.mark.parametrize("turns", TURNS)
def test_a_framed_text_has_the_tokens_that_the_template_gives_it(
    template: str, control: tuple[str, ...], turns: list[tuple[str, str]]
) -> None:
    prompter = sentencepiece(template, control)
    tokenizer: Any = prompter.tokenizer
    messages = [{"role": role, "content": text} for role, text in turns]
    theirs = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert prompter.chat_ids(turns) == list(theirs)
    if not control:  # the texts apart have a space before each that the whole has not
        parts, used = prompter._framed(turns, False)
        apart = [token for part in parts for token in prompter._encode(part, plain=False)]
        apart += [token for _, text in used for token in prompter.token_ids(text)]
        assert len(apart) > len(theirs)


@pytest.mark.parametrize(
    ("template", "control"), [(MISTRAL, ("[INST]", "[/INST]")), (ZEPHYR, ()), (ZEPHYR, CONTROL)]
)
def test_a_target_has_the_tokens_that_follow_its_prompt(
    template: str, control: tuple[str, ...]
) -> None:
    prompter = sentencepiece(template, control)
    tokenizer: Any = prompter.tokenizer
    turns = [{"role": "user", "content": "Write"}, {"role": "assistant", "content": "Rain all"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    ours = [*prompter.prompt_ids("Write"), *prompter.target_ids("Rain all")]
    assert ours == list(whole)[: len(ours)] and len(ours) >= len(whole) - 2
    assert prompter.target_ids("") == [prompter.end_id]


@pytest.mark.parametrize("template", [MISTRAL, ZEPHYR, CHATML, PHI])
@pytest.mark.parametrize(
    "text", ["x</s>y", "<|user|>", "</s>", "a<|im_end|>\n<|im_start|>system\nb", "</s", "[/INST] x"]
)
def test_typed_control_tokens_stay_text_in_any_frame(
    plain: Prompter, template: str, text: str
) -> None:
    control = ("[INST]", "[/INST]", *CONTROL)
    for prompter in (sentencepiece(template, control), with_template(plain, template)):
        special = prompter._control_ids
        framed = prompter.chat_ids([("user", text), ("assistant", text), ("user", text)])
        usual = prompter.chat_ids([("user", "a"), ("assistant", "a"), ("user", "a")])
        assert [at for at in framed if at in special] == [at for at in usual if at in special]
        assert not special & set(prompter.target_ids(text)[:-1])
        assert text in prompter.text(framed).replace(" </s", "</s") or text.startswith("[")


@pytest.mark.parametrize("template", [MISTRAL, ZEPHYR])
def test_long_texts_are_cut_within_the_frame(template: str) -> None:
    prompter = sentencepiece(template)
    turns = [("user", "rain " * 40), ("assistant", "Rain"), ("user", "all week " * 30)]
    whole = prompter.chat_ids(turns)
    last = prompter.chat_ids(turns[-1:])
    assert prompter.chat_ids(turns, len(whole)) == whole
    assert prompter.chat_ids(turns, len(last)) == last
    frame = prompter.prompt_ids("")
    for limit in range(len(frame) + 4, len(last), 7):
        cut = prompter.chat_ids(turns, limit)
        assert limit - 2 <= len(cut) <= limit
        text = prompter.text(cut)
        assert "all week" in text and prompter.text(frame)[-3:] == text[-3:]


def test_trimmed_text_has_whole_characters(plain: Prompter) -> None:
    for prompter in (plain, sentencepiece(MISTRAL)):
        text = "rain \U0001f1e9\U0001f1ea \u20ac and more"
        for tokens in range(1, 30):
            trimmed = prompter.trim(text, tokens)
            assert text.startswith(trimmed) and len(prompter.token_ids(trimmed)) <= tokens


def test_a_cut_target_is_not_closed(plain: Prompter) -> None:
    whole = plain.target_ids("a quick brown fox")
    assert whole[-1] == plain.end_id
    for limit in range(1, len(whole)):
        assert plain.target_ids("a quick brown fox", limit) == whole[:limit]
    assert plain.target_ids("a quick brown fox", len(whole)) == whole


# Loading ------------------------------------------------------------------------------------


def test_a_sentencepiece_model_alone_says_what_to_install(
    backbone_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfi.models import prompter as module

    folder = shutil.copytree(backbone_folder("llama"), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    for name in ("tokenizer.model", "spiece.model"):
        (folder / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
        monkeypatch.setattr(module, "_installed", lambda module: False)
        with pytest.raises(BackboneError, match="pip install sentencepiece") as raised:
            load_prompter(folder)
        assert name in str(raised.value) and "\n" not in str(raised.value)
        (folder / name).unlink()
    with pytest.raises(BackboneError, match="tokenizer"):  # instead of an empty one
        load_prompter(folder)


def test_a_conversation_that_the_template_refuses_says_why(plain: Prompter) -> None:
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with user') }}"
    prompter = with_template(plain, template + "{% endif %}{{ messages[0].content }}")
    with pytest.raises(ConfigError, match="begin with user"):
        prompter.chat_ids([("assistant", "a"), ("user", "b")])
