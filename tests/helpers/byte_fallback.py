"""A SentencePiece-like tokenizer as Llama 2 and Mistral have it, with words of a few texts."""

from __future__ import annotations

from typing import Any


def byte_fallback_tokenizer(words: str = "", control: tuple[str, ...] = ()) -> Any:
    """One that puts a space before every part of a text and falls back to bytes.

    Args:
        words: become tokens of their own, with and without a space before them.
        control: more control tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!:[]/"
    merges: list[tuple[str, str]] = []
    for letter in letters:
        vocabulary[letter] = len(vocabulary)
    for word in words.split():
        for part in (word, "\u2581" + word):
            for end in range(2, len(part) + 1):
                if part[:end] not in vocabulary:
                    vocabulary[part[:end]] = len(vocabulary)
                    merges.append((part[: end - 1], part[end - 1]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken(one, special=True, normalized=False) for one in control], True)
    return fast
