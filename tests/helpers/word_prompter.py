"""A prompter that counts words where a backbone's counts tokens."""

from __future__ import annotations

from collections.abc import Sequence

from pfi.models.prompter import Turn


class WordPrompter:
    """Frames nothing, and cuts between words."""

    max_length, seq2seq = 4000, False
    markers = ()

    def trim(self, text: str, tokens: int) -> str:
        return " ".join(text.split()[:tokens])

    def prompt_ids(self, prompt: str, limit: int | None = None) -> list[int]:
        return [0] * len(prompt.split()[:limit])

    def chat_ids(
        self,
        messages: Sequence[Turn],
        limit: int | None = None,
        *,
        thinking: bool | None = None,
    ) -> list[int]:
        return self.prompt_ids(" ".join(text for _, text in messages), limit)

    def longest(self, targets: tuple[str, ...]) -> int:
        return 2
