"""Prompts as token ids: what of a backbone needs no weights.

The chat template frames the texts; control tokens that a text spells out stay plain text.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfi.errors import BackboneError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded"
#: A role (``system``, ``user`` or ``assistant``) and what it said.
Turn = tuple[str, str]

_MARK = "\u241f"
# Frames that are kept: the roles of conversations differ in their number above all.
_KEPT = 64
# A tokenizer keeps in itself whether control tokens are read as such, so one text at a time.
_encoding = threading.Lock()


@dataclass(frozen=True)
class Prompter:
    """A backbone's tokenizer, its frame around prompts and its limits.

    Attributes:
        name: what the backbone is loaded by.
        tokenizer: its tokenizer, with an end token.
        seq2seq: whether it is an encoder-decoder model.
        max_length: the longest sequence it accepts, in tokens.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    seq2seq: bool
    max_length: int
    _frames: dict[tuple[str, ...], list[list[int]] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _longest: dict[tuple[str, ...], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def end_id(self) -> int:
        """The token that closes an answer."""
        return int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens; control tokens written out in the text stay plain text."""
        return self._encode(text, plain=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        tokenizer: Any = self.tokenizer
        if tokenizer.is_fast and not tokenizer.clean_up_tokenization_spaces:
            # What the line below comes to, without what takes ten times as long around it.
            tokenizer = tokenizer.backend_tokenizer
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    def trim(self, text: str, tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``tokens`` tokens."""
        ids = self.token_ids(text)
        return text if len(ids) <= tokens else self.text(ids[:tokens]).rstrip()

    def prompt_ids(self, prompt: str, limit: int | None = None) -> list[int]:
        """A prompt's tokens, framed as the model expects; the end is cut to fit ``limit``."""
        return self.chat_ids([("user", prompt)], limit)

    def target_ids(self, target: str, limit: int | None = None) -> list[int]:
        """A target's tokens, closed by the end token."""
        return [*self.token_ids(target)[: None if limit is None else limit - 1], self.end_id]

    def longest(self, targets: tuple[str, ...]) -> int:
        """The tokens of the longest of some targets, closed by the end token."""
        if targets not in self._longest:
            self._longest[targets] = max(len(self.target_ids(target)) for target in targets)
        return self._longest[targets]

    def chat_ids(self, messages: Sequence[Turn], limit: int | None = None) -> list[int]:
        """A conversation's tokens, up to where the answer begins.

        What does not fit is left out: the oldest turns first, then the end of the last message.

        Args:
            messages: the turns, oldest first.
            limit: most tokens; the longest sequence that the backbone accepts when None.

        Raises:
            BackboneError: the chat template drops messages.
            ConfigError: there is no message, or the template does not take such a conversation.
        """
        limit = limit or self.max_length
        turns = list(messages)
        if not turns:
            raise ConfigError("the conversation is empty", fix="give a message")
        texts = {turn: self.token_ids(turn[1]) for turn in turns}
        while True:
            frame, used = self._framed(turns)
            ids = [texts[turn] if turn in texts else self.token_ids(turn[1]) for turn in used]
            room = limit - sum(map(len, frame)) - sum(map(len, ids[:-1]))
            shorter = _without_oldest(turns)
            if len(ids[-1]) <= room or len(shorter) == len(turns):
                break
            turns = shorter
        ids[-1] = ids[-1][: max(room, 1)]
        found = list(frame[0])
        for text, after in zip(ids, frame[1:], strict=True):
            found += [*text, *after]
        return found

    def _framed(self, turns: Sequence[Turn]) -> tuple[list[list[int]], list[Turn]]:
        """The tokens around the turns' texts, and the turns as the template takes them."""
        for tried in (turns, _merged(turns)):
            frame = self._frame(tuple(role for role, _ in tried))
            if frame is not None:
                return frame, list(tried)
        roles = ", ".join(role for role, _ in turns)
        what = f"the backbone's chat template does not take a conversation of {roles}"
        if len(turns) == 1:
            raise BackboneError("the chat template drops the user's message", where=self.name)
        raise ConfigError(what, where=self.name, fix="let user and assistant take turns")

    def _frame(self, roles: tuple[str, ...]) -> list[list[int]] | None:
        """The tokens before, between and after texts of these roles; None if it takes them not."""
        if roles not in self._frames:
            chat = self.tokenizer.chat_template and not self.seq2seq
            parts = self._template(roles) if chat else self._plain(roles)
            frame = None if parts is None else [self._encode(part, plain=False) for part in parts]
            if frame and self.seq2seq:
                frame[-1].append(self.end_id)
            while len(self._frames) >= _KEPT:
                self._frames.pop(next(iter(self._frames)), None)
            self._frames[roles] = frame
        return self._frames[roles]

    def _plain(self, roles: Sequence[str]) -> list[str]:
        """The frame where there is no chat template; a prompt alone needs no name before it."""
        begin = "" if self.seq2seq else self.tokenizer.bos_token or ""
        if len(roles) == 1:
            return [begin, "" if self.seq2seq else "\n"]
        names = [f"{role}: " for role in roles]
        return [begin + names[0], *(f"\n{name}" for name in names[1:]), "\nassistant:"]

    def _template(self, roles: Sequence[str]) -> list[str] | None:
        from jinja2 import TemplateError

        turns = [{"role": role, "content": f"{_MARK}{at}{_MARK}"} for at, role in enumerate(roles)]
        try:
            text: Any = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError:
            return None
        parts = re.split(f"{_MARK}([0-9]+){_MARK}", str(text))
        if parts[1::2] != [str(at) for at in range(len(roles))]:
            return None
        return parts[::2]

    def _encode(self, text: str, *, plain: bool) -> list[int]:
        with _encoding:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
        return list(encoded["input_ids"])


def _without_oldest(turns: list[Turn]) -> list[Turn]:
    """The turns without the oldest user's and what came before the next; the system's stay."""
    said = [turn for turn in turns if turn[0] == "system"]
    rest = [turn for turn in turns[:-1] if turn[0] != "system"]
    later = next((at for at, turn in enumerate(rest) if at and turn[0] == "user"), len(rest))
    last = [turn for turn in turns[-1:] if turn[0] != "system"]
    return [*said, *rest[later:], *last]


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with what the system says at the head of the first user's, none twice in a row."""
    said = [text for role, text in turns if role == "system"]
    rest = [turn for turn in turns if turn[0] != "system"]
    if said:
        first = next((at for at, turn in enumerate(rest) if turn[0] == "user"), None)
        text = "\n\n".join([*said, *([] if first is None else [rest[first][1]])])
        rest[first or 0 : (first or 0) + (first is not None)] = [("user", text)]
    merged: list[Turn] = []
    for role, text in rest:
        if merged and merged[-1][0] == role:
            merged[-1] = role, f"{merged[-1][1]}\n\n{text}"
        else:
            merged.append((role, text))
    return merged


def load_prompter(name: str | Path) -> Prompter:
    """Load what a backbone's prompts need, by ``embedded``, a local folder or a hub id.

    Raises:
        BackboneError: it does not exist, cannot be reached, or has no usable tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    name = str(name)
    with reading(name) as (source, options):
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.eos_token_id is None:
        raise BackboneError("the tokenizer has no end-of-sequence token", where=name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    seq2seq = bool(config.is_encoder_decoder)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0)
    if seq2seq or not longest:
        longest = 1024  # relative positions (T5): no hard limit, keep memory bounded
    return Prompter(name, tokenizer, seq2seq, int(longest))


@contextmanager
def reading(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a backbone's files are, and what transformers' loaders may do to get them.

    Raises:
        BackboneError: there is no such folder, or what is done inside fails to load it.
    """
    source = str(resources.files("pfi.models") / "embedded") if name == EMBEDDED else name
    local = Path(source).expanduser().is_dir()
    if local:
        source = str(Path(source).expanduser())
    elif source.startswith((".", "/", "~")):
        raise BackboneError("there is no such folder", where=name, fix="give a model's folder")
    try:
        yield source, {"trust_remote_code": False, "local_files_only": local}
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BackboneError(
            f"the backbone cannot be loaded: {first}",
            where=name,
            fix="use 'embedded', or a folder with config.json, tokenizer and safetensors "
            "weights, or a hub id that is cached or reachable",
        ) from error
