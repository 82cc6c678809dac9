"""Answers as they come, with tokenizers that fall back to bytes and models that think."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from byte_fallback import byte_fallback_tokenizer
from engine_world import whole
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.inference.detokenizer import Written, answer_text
from pfi.models.prompter import Prompter

TOKENIZER = byte_fallback_tokenizer("rain all week")
PROMPTER = Prompter("x", TOKENIZER, False, 512)
BYTE = 3  # the token of the first byte
THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


def pieces(ids: Sequence[int], *stop: str) -> list[str]:
    written = Written.of(PROMPTER, [5], stop)
    return [*map(written.add, ids), written.end()]


@given(
    st.text(st.sampled_from("ab \u00e9\u20ac\U0001f1e9\U0001f1ea\u6f22\U0001f600\n"), max_size=20)
)
def test_a_streamed_text_is_the_text(text: str) -> None:
    ids = PROMPTER.token_ids(text)
    assert "".join(pieces(ids)) == PROMPTER.text(ids)
    assert PROMPTER.text(ids) == text or not text.strip() or text.startswith(" ")


@settings(max_examples=300)
@given(st.lists(st.integers(BYTE, BYTE + 255) | st.integers(BYTE + 256, 330), max_size=40))
def test_whatever_a_model_writes_nothing_that_was_shown_changes(ids: list[int]) -> None:
    written, shown = Written.of(PROMPTER, [5]), ""
    for at, token in enumerate(ids):
        shown += written.add(token)
        assert PROMPTER.text(ids[: at + 1]).startswith(shown) or token - BYTE < 256
    shown += written.end()
    run = next((n for n, t in enumerate(reversed(ids)) if not BYTE <= t < BYTE + 256), len(ids))
    if not run:
        assert shown == PROMPTER.text(ids)
    else:  # without what may be a character cut short
        ends = [PROMPTER.text(ids[: len(ids) - left]) for left in range(min(run, 3) + 1)]
        expected = [text for text in ends if not text.endswith("\ufffd")]
        assert shown == (expected[0] if expected else whole(ends[0]))


def test_two_flags_and_half_of_one() -> None:
    ids = PROMPTER.token_ids("x \U0001f1e9\U0001f1ea y")
    assert "".join(pieces(ids)) == "x \U0001f1e9\U0001f1ea y"
    flags = ids[: len(ids) - 2]
    for cut, expected in ((0, "x \U0001f1e9\U0001f1ea"), (1, "x \U0001f1e9"), (4, "x \U0001f1e9")):
        assert "".join(pieces(flags[: len(flags) - cut])) == expected


def test_a_stop_text_is_found_in_a_run_of_bytes() -> None:
    ids = PROMPTER.token_ids("rain \U0001f1e9\U0001f1ea all")
    assert "".join(pieces(ids, "\U0001f1ea")) == "rain \U0001f1e9"


# Thoughts -----------------------------------------------------------------------------------


def by_letter(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def answer(text: str, *stop: str, in_thought: bool = False) -> tuple[str, list[str]]:
    written = Written(by_letter, stop, thoughts=THOUGHTS, in_thought=in_thought)
    parts = [written.add(ord(letter)) for letter in text]
    parts.append(written.end())
    return "".join(parts), parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm\n</think>\n\nRain", "Rain"),
        ("\n<think></think>Rain </think> <think>", "Rain </think> <think>"),
        ("[THINK]a[/THINK] [THINK]b[/THINK]Rain", "Rain"),
        ("Rain <think>no thought</think>", "Rain <think>no thought</think>"),
        ("<think>never ends", ""),
        ("<thi", "<thi"),
        ("<b>Rain</b>", "<b>Rain</b>"),
        ("  Rain", "  Rain"),
        ("", ""),
        ("<think>a</think>", ""),
    ],
)
def test_thoughts_at_the_head_are_hidden(text: str, expected: str) -> None:
    assert answer(text)[0] == expected


def test_a_thought_that_the_prompt_began_is_hidden() -> None:
    assert answer("hm</think>\n\nRain", in_thought=True)[0] == "Rain"
    assert answer("hm, no end", in_thought=True)[0] == ""
    assert answer("hm</think><think>more</think>Rain", in_thought=True)[0] == "Rain"


def test_an_answer_is_shown_as_it_comes_and_stop_texts_are_its_own() -> None:
    text, parts = answer("<think>stop</think>ab stop c", "stop")
    assert text == "ab " and parts[len("<think>stop</think>")] == "a"


def test_marks_that_are_control_tokens_are_known_by_their_ids() -> None:
    tokenizer = byte_fallback_tokenizer("rain all week", ("[THINK]", "[/THINK]"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompter = Prompter("x", tokenizer, False, 512)
    begin, end = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    said = prompter.token_ids("rain")
    ids = [begin, *prompter.token_ids("all week"), end, *said]
    assert "THINK" not in prompter.text(ids)
    assert answer_text(prompter, [5], ids) == "rain"
    assert answer_text(prompter, [5, begin], ids[1:]) == "rain"
    assert answer_text(prompter, [5], [*said, end, *said]) == prompter.text([*said, *said])
