"""Prompts as token ids: what of a backbone needs no weights.

The chat template frames the texts, and the tokens are those of the whole framed text, as the
model was tuned on.  Control tokens that a text spells out stay plain text.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfi.errors import BackboneError, ConfigError, PfiError
from pfi.models.catalogue import EMBEDDED, resolve
from pfi.models.families import check_family, context_length
from pfi.models.generation_config import (
    NO_SETTINGS,
    GenerationSettings,
    read_generation_settings,
    token_ids,
)
from pfi.models.gguf.header import find_gguf, is_gguf
from pfi.models.gguf.source import read_config, read_tokenizer
from pfi.models.role_markers import spelled_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pfi.models.chat_templates import ChatTemplate

#: A role (``system``, ``user`` or ``assistant``) and what it said.
Turn = tuple[str, str]
#: What stands around a thought, by family: Qwen and DeepSeek, Mistral, Cohere, Seed, others.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
)
#: What of gpt-oss stands before an answer instead of a thought.
_CHANNEL = "<|channel|>"

# Frames that are kept: the roles of conversations differ in their number above all.
_KEPT = 64
# Tokens at the end of a prompt in which an open thought may begin.
_TAIL = 16
_BROKEN = "\ufffd"
_TOKENIZER = "add the model's tokenizer.json"
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
        generation: what its own files say of its answers.
        thinking: whether it may think before an answer; else its thoughts are closed, empty.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    seq2seq: bool
    max_length: int
    generation: GenerationSettings = NO_SETTINGS
    thinking: bool = False
    _frames: dict[tuple[Any, ...], list[str] | str | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _longest: dict[tuple[str, ...], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def end_id(self) -> int:
        """The token that closes an answer: the template's end of a turn, else the tokenizer's."""
        return self._eos if self._turn_end is None else self._turn_end

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """All tokens that end an answer."""
        return frozenset({self._eos, self.end_id}) | self.generation.end_ids

    @cached_property
    def chat_template(self) -> str | None:
        """The text of the chat template; None without one, as for encoder-decoder models.

        Raises:
            BackboneError: there are several, and none is called ``default``.
        """
        from pfi.models.chat_templates import default_template

        return None if self.seq2seq else default_template(self.tokenizer.chat_template, self.name)

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens; control tokens written out in the text stay plain text."""
        return self._encode(text, plain=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        tokenizer: Any = self.tokenizer
        if tokenizer.is_fast:
            # What the line below comes to, without what takes ten times as long around it.
            return str(tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))
        # Spaces stay as they are: to take some away would change what was shown already.
        return str(
            tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def trim(self, text: str, tokens: int) -> str:
        """The longest beginning of ``text`` that has at most ``tokens`` tokens."""
        ids = self.token_ids(text)
        if len(ids) <= tokens:
            return text
        for last in range(tokens, max(tokens - 4, -1), -1):  # a character has up to four bytes
            trimmed = self.text(ids[:last])
            if not trimmed.endswith(_BROKEN):
                break
        return trimmed.rstrip(_BROKEN).rstrip()

    def prompt_ids(
        self, prompt: str, limit: int | None = None, *, thinking: bool | None = None
    ) -> list[int]:
        """A prompt's tokens, framed as the model expects; the end is cut to fit ``limit``."""
        return self.chat_ids([("user", prompt)], limit, thinking=thinking)

    def target_ids(self, target: str, limit: int | None = None) -> list[int]:
        """A target's tokens behind a prompt's, closed by the end token; one that is cut is not."""
        ids = [*self._continued(target), self.end_id]
        return ids if limit is None else ids[: max(limit, 0)]

    def longest(self, targets: tuple[str, ...]) -> int:
        """The tokens of the longest of some targets, closed by the end token."""
        if targets not in self._longest:
            self._longest[targets] = max(len(self.target_ids(target)) for target in targets)
        return self._longest[targets]

    def chat_ids(
        self,
        messages: Sequence[Turn],
        limit: int | None = None,
        *,
        thinking: bool | None = None,
    ) -> list[int]:
        """A conversation's tokens, up to where the answer begins.

        What does not fit is left out: the oldest turns first, then the end of the last message.

        Args:
            messages: the turns, oldest first.
            limit: most tokens; the longest sequence that the backbone accepts when None.
            thinking: whether the answer may begin with a thought; as the prompter when None.

        Raises:
            BackboneError: the chat template drops messages.
            ConfigError: there is no message, or the template does not take such a conversation.
        """
        limit = limit or self.max_length
        _, framed = self._fitted(messages, limit, thinking)
        return framed.ids if len(framed.ids) <= limit else framed.cut(limit)

    def fitting(self, messages: Sequence[Turn], limit: int) -> list[Turn]:
        """The turns of a conversation that ``chat_ids`` has room for; the last one always.

        Raises:
            BackboneError, ConfigError: see ``chat_ids``.
        """
        turns, _ = self._fitted(messages, limit, None)
        return turns

    def _fitted(
        self, messages: Sequence[Turn], limit: int, thinking: bool | None
    ) -> tuple[list[Turn], _Framed]:
        """The turns without the oldest that are too many, and their tokens."""
        thinking = self.thinking if thinking is None else thinking
        turns = list(messages)
        if not turns:
            raise ConfigError("the conversation is empty", fix="give a message")
        framed = _Framed(self, *self._framed(turns, thinking))
        if len(framed.ids) > limit and len(turns) > 1:
            turns = self._without_what_cannot_fit(turns, limit)
            framed = _Framed(self, *self._framed(turns, thinking))
        while len(framed.ids) > limit:
            shorter = _without_oldest(turns)
            if len(shorter) == len(turns):
                break
            turns = shorter
            framed = _Framed(self, *self._framed(turns, thinking))
        return turns, framed

    def in_thought(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with a thought that has begun."""
        if not self.thoughts:
            return False
        tokenizer: Any = self.tokenizer
        tail = str(tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False)).rstrip()
        return any(tail.endswith(begin) for begin, _ in self.thoughts)

    @cached_property
    def thoughts(self) -> tuple[tuple[str, str], ...]:
        """What stands around a thought of this model; empty for one that does not think."""
        template = self.chat_template or ""
        # The end alone stands in templates that leave old thoughts out.
        return tuple(
            pair
            for pair in THOUGHTS
            if any(mark in template or self._one_token(mark) is not None for mark in pair)
        )

    @cached_property
    def thought_ids(self) -> dict[int, str]:
        """The control tokens among what stands around a thought; texts do not show them."""
        marks = {mark: self._one_token(mark) for pair in self.thoughts for mark in pair}
        return {at: mark for mark, at in marks.items() if at in self._control_ids}  # type: ignore[misc]

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """What marks turns: the control tokens, and what the template writes around turns."""
        added = self.tokenizer.added_tokens_decoder
        controls = [str(added[at]) for at in self._control_ids if at in added]
        frames: list[str] = []
        for roles in (("user", "assistant", "user"), ("system", "user")):
            frame = self._frame(roles, False)
            if isinstance(frame, list):
                frames += frame
        return spelled_markers(controls, frames)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The tokens that stand for one byte, in a tokenizer that falls back to bytes."""
        ids = (self._one_token(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(at for at in ids if at is not None)

    def check(self) -> None:
        """Frame a prompt.

        Raises:
            BackboneError: the chat template is no template, never ends, or takes no prompt.
        """
        self._framed([("user", "")], self.thinking)

    # Frames ---------------------------------------------------------------------------------

    def _framed(self, turns: Sequence[Turn], thinking: bool) -> tuple[list[str], list[Turn]]:
        """The texts around the turns' texts, and the turns as the template takes them."""
        reason = ""
        for tried in (turns, _merged(turns)):
            frame = self._frame(tuple(role for role, _ in tried), thinking)
            if isinstance(frame, list):
                return frame, list(tried)
            reason = reason or frame or ""
        roles = ", ".join(role for role, _ in turns)
        reason = f": {reason}" if reason else ""
        if len(turns) == 1:
            what = f"the chat template drops the user's message{reason}"
            raise BackboneError(what, where=self.name, fix="use another copy of the model")
        what = f"the backbone's chat template does not take a conversation of {roles}{reason}"
        raise ConfigError(what, where=self.name, fix="let user and assistant take turns")

    def _frame(self, roles: tuple[str, ...], thinking: bool) -> list[str] | str | None:
        """The texts before, between and after texts of these roles; else why it takes them not."""
        key = (*roles, thinking)
        if key not in self._frames:
            frame: list[str] | str | None
            if self._template is None:
                frame = self._plain(roles)
            else:
                frame = self._rendered(roles, thinking=thinking)
                if isinstance(frame, list) and not thinking:
                    frame = [*frame[:-1], self._without_thought(frame[-1])]
            while len(self._frames) >= _KEPT:
                self._frames.pop(next(iter(self._frames)), None)
            self._frames[key] = frame
        return self._frames[key]

    def _plain(self, roles: Sequence[str]) -> list[str]:
        """The frame where there is no chat template; a prompt alone needs no name before it."""
        begin = "" if self.seq2seq else self.tokenizer.bos_token or ""
        if len(roles) == 1:
            return [begin, "" if self.seq2seq else "\n"]
        names = [f"{role}: " for role in roles]
        return [begin + names[0], *(f"\n{name}" for name in names[1:]), "\nassistant:"]

    @cached_property
    def _template(self) -> ChatTemplate | None:
        from pfi.models.chat_templates import ChatTemplate

        if self.chat_template is None:
            return None
        return ChatTemplate(self.chat_template, self.tokenizer.special_tokens_map, self.name)

    def _rendered(
        self, roles: Sequence[str], *, answer: bool = True, thinking: bool = False
    ) -> list[str] | str | None:
        from pfi.models.chat_templates import Refused

        assert self._template is not None
        try:
            return self._template.parts(roles, answer=answer, thinking=thinking)
        except Refused as error:
            return str(error)

    @cached_property
    def _answered(self) -> tuple[str, str, str]:
        """What follows a prompt where an answer begins, what more stands before one, and behind.

        The template itself says so: it is shown a prompt with its answer.
        """
        if self._template is None:
            frame = self._plain(["user"])
            return frame[-1], "", ""
        asked = self._rendered(["user"])
        whole = self._rendered(["user", "assistant"], answer=False)
        begin = asked[-1] if isinstance(asked, list) else ""
        if not isinstance(asked, list) or not isinstance(whole, list) or whole[0] != asked[0]:
            return begin, "", ""
        more = whole[1][len(begin) :] if whole[1].startswith(begin) else ""
        return begin, more, whole[2]

    def _without_thought(self, begin: str) -> str:
        """What an answer begins with, where it is no thought; an open one is closed, empty."""
        more = self._answered[1] if begin.endswith(self._answered[0]) else ""
        if any(end in more for _, end in THOUGHTS) or _CHANNEL in more:
            return begin + more
        for start, end in THOUGHTS:
            if begin.rstrip().endswith(start):
                space = "\n\n" if begin.endswith(start) else "" if begin.endswith("\n\n") else "\n"
                return f"{begin}{space}{end}\n\n"
        return begin

    @cached_property
    def _lead(self) -> str:
        """White space that the template has between what a prompt ends with and an answer."""
        more = self._answered[1]
        return more if not more.strip() else ""

    @cached_property
    def _turn_end(self) -> int | None:
        """The control token that the template writes behind an answer."""
        begin, _, behind = self._answered
        ids = self._encode(behind.lstrip(), plain=False) if behind.strip() else []
        if not ids or ids[0] not in self._control_ids | set(self.tokenizer.added_tokens_decoder):
            return None
        # A template without an end of turns goes on with the token that begins the next one.
        opening = [at for at in self._encode(begin, plain=False) if at in self._control_ids]
        bos = self.tokenizer.bos_token_id
        begins = ids[0] == bos != self._eos or (opening and ids[0] == opening[-1] != self._eos)
        return None if begins else ids[0]

    # Tokens ---------------------------------------------------------------------------------

    @cached_property
    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Tokens that a text that spells them out must not become."""
        added = self.tokenizer.added_tokens_decoder
        named: Any = self.tokenizer.all_special_ids
        return frozenset({at for at, token in added.items() if token.special} | set(named))

    def _one_token(self, text: str) -> int | None:
        """The id of the token that is exactly this text."""
        tokenizer: Any = self.tokenizer
        at = tokenizer.convert_tokens_to_ids(text)
        if at is None or tokenizer.convert_ids_to_tokens(at) != text:
            return None
        return int(at)

    def _encode(self, text: str, *, plain: bool) -> list[int]:
        with _encoding:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)
        return list(encoded["input_ids"])

    def _located(self, text: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Tokens of a framed text, each with the characters it stands for, where it can say."""
        if not self.tokenizer.is_fast:
            return None
        with _encoding:
            encoded: Any = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=False,
                return_offsets_mapping=True,
            )
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def _continued(self, target: str) -> list[int]:
        """A target's tokens where a model writes it: behind what its prompt ends with."""
        begin = self._without_thought(self._answered[0])
        if not target:
            return []
        text = self._lead + target
        found = None if self.seq2seq or not begin else self._located(begin + text)
        if found is not None:
            ids, places = found
            at = next((i for i, (start, _) in enumerate(places) if start >= len(begin)), len(ids))
            parted = all(end <= len(begin) for _, end in places[:at])
            if parted and self._control_ids.isdisjoint(ids[at:]):
                return ids[at:]
        return self.token_ids(text if self.tokenizer.is_fast else target)

    def _without_what_cannot_fit(self, turns: list[Turn], limit: int) -> list[Turn]:
        """Without the oldest turns whose texts alone are too long; the rest may be, too."""
        counts = {turn: len(self.token_ids(turn[1])) for turn in turns}
        # Where text and frame touch, some tokens may become one.
        while sum(counts[turn] - 2 for turn in turns) > limit:
            shorter = _without_oldest(turns)
            if len(shorter) == len(turns):
                break
            turns = shorter
        return turns


class _Framed:
    """A conversation as tokens of one text.

    Args:
        prompter: whose.
        frame: the texts around the turns'.
        turns: the turns.
    """

    def __init__(self, prompter: Prompter, frame: Sequence[str], turns: Sequence[Turn]) -> None:
        self.prompter, self.frame = prompter, frame
        self.texts = [text for _, text in turns]
        found = self._whole(self.texts)
        self.places: list[tuple[int, int]] | None = None
        if found is None:
            self._before, self._last, self._after = self._apart()
            self.ids = [*self._before, *self._last, *self._after]
        else:
            self.ids, self.places = found
        self._closing = [prompter.end_id] if prompter.seq2seq else []
        self.ids += self._closing

    def _whole(self, texts: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Tokens and their places; None where a control token reaches into what somebody said."""
        prompter, text, spans = self.prompter, self.frame[0], []
        for said, after in zip(texts, self.frame[1:], strict=True):
            spans.append((len(text), len(text) + len(said)))
            text += said + after
        found = prompter._located(text)
        if found is None:
            return None
        for at, (begin, end) in zip(*found, strict=True):
            if at in prompter._control_ids and any(
                begin < last and end > first for first, last in spans
            ):
                return None
        return found

    def _apart(self) -> tuple[list[int], list[int], list[int]]:
        """Frame and texts as tokens of their own: before the last text, its, and behind it."""
        prompter = self.prompter
        frame = [prompter._encode(part, plain=False) for part in self.frame]
        ids = [prompter.token_ids(text) for text in self.texts]
        before = list(frame[0])
        for said, after in zip(ids[:-1], frame[1:-1], strict=True):
            before += [*said, *after]
        return before, ids[-1], frame[-1]

    def cut(self, limit: int) -> list[int]:
        """The tokens without the end of the last text, ``limit`` of them if the frame allows."""
        limit -= len(self._closing)
        if self.places is None:
            room = max(limit - len(self._before) - len(self._after), 1)
            return [*self._before, *self._last[:room], *self._after, *self._closing]
        end = sum(map(len, self.frame[:-1])) + sum(map(len, self.texts))
        begin = end - len(self.texts[-1])
        inside = [i for i, (start, _) in enumerate(self.places) if begin <= start < end]
        kept = len(inside) - (len(self.ids) - len(self._closing) - limit)
        if inside and all(self.places[i][1] <= end for i in inside):
            # No token is of the text and of the frame behind it: those inside go.
            first = inside[0]
            return [*self.ids[: first + max(kept, 1)], *self.ids[inside[-1] + 1 :]]
        while inside:
            last = self.places[inside[max(kept, 1) - 1]][1]
            text = self.texts[-1][: max(min(last, end) - begin, 0)]
            found = self._whole([*self.texts[:-1], text])
            if found is not None and (len(found[0]) <= limit or kept <= 1):
                return [*found[0], *self._closing]
            if kept <= 1:
                break
            kept -= 1
        return self.ids


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
    """Load what a backbone's prompts need, by ``embedded``, a folder, a GGUF file or a hub id.

    Raises:
        BackboneError: it does not exist, cannot be reached, or has no usable tokenizer.
    """
    name = str(name)
    with reading(name) as (source, options):
        config = read_config(source, options)
        check_family(config, name)
        with _needing_sentencepiece(source, name):
            tokenizer = read_tokenizer(source, options)
        generation = read_generation_settings(
            source, name, local_files_only=options["local_files_only"]
        )
    if tokenizer.eos_token_id is None:
        raise BackboneError("the tokenizer has no end-of-sequence token", where=name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    prompter = Prompter(
        name,
        tokenizer,
        bool(config.is_encoder_decoder),
        context_length(config),
        generation or _stated_ends(config, tokenizer, name),
    )
    prompter.check()
    if set(prompter.token_ids("a 1")) <= {tokenizer.unk_token_id}:
        raise BackboneError(
            "the tokenizer knows no letters: its files are missing", where=name, fix=_TOKENIZER
        )
    return prompter


def gguf_path(name: str) -> Path | None:
    """A backbone's own GGUF file; None for one of another form.

    Raises:
        BackboneError: there is no such backbone here.
    """
    with reading(name) as (source, _):
        return Path(source) if is_gguf(source) else None


def _stated_ends(config: Any, tokenizer: Any, name: str) -> GenerationSettings:
    """The end tokens of a model's configuration, where no file of its own names them.

    A configuration that names none has a family's, which may be a letter in this vocabulary.
    """
    stated = token_ids(getattr(config, "eos_token_id", None), name)
    known = tokenizer.added_tokens_decoder
    return GenerationSettings(frozenset(at for at in stated if at in known))


@contextmanager
def _needing_sentencepiece(source: str, name: str) -> Iterator[None]:
    """Say what is missing where a tokenizer is a SentencePiece model only.

    Raises:
        BackboneError: a package is missing; without it one might get an empty tokenizer.
    """
    packages = (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
    missing = [package for package, module in packages if not _installed(module)]
    file = _sentencepiece_file(Path(source)) if missing else None

    def refused() -> BackboneError:
        return BackboneError(
            f"its tokenizer is a SentencePiece model{f' ({file})' if file else ''}, "
            f"which {missing[0]} reads",
            where=name,
            fix=f"pip install {' '.join(missing)}, or add its tokenizer.json",
        )

    if file is not None:
        raise refused()
    try:
        yield
    except Exception as error:  # ImportError, or what another reader makes of the file
        words = ("sentencepiece", "tiktoken", "protobuf")
        if missing and any(word in str(error).lower() for word in words):
            raise refused() from error
        raise


def _sentencepiece_file(folder: Path) -> str | None:
    """The SentencePiece model in a folder that has nothing else to make a tokenizer of."""
    if any((folder / other).exists() for other in ("tokenizer.json", "vocab.json", "vocab.txt")):
        return None
    for file in sorted(folder.glob("*.model")):
        with file.open("rb") as opened:
            if opened.read(1) == b"\n":  # others (tiktoken's) begin with text
                return file.name
    return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


@contextmanager
def reading(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a backbone's files are, and what transformers' loaders may do to get them.

    Raises:
        BackboneError: there is no such folder, or what is done inside fails to load it.
    """
    source = str(resources.files("pfi.models") / "embedded") if name == EMBEDDED else resolve(name)
    path = Path(source).expanduser()
    gguf = find_gguf(path)
    local = gguf is not None or path.is_dir()
    if local:
        source = str(gguf or path)
    elif source.startswith((".", "/", "~")):
        fix = "give a model's folder or its .gguf file"
        raise BackboneError("there is no such folder", where=name, fix=fix)
    try:
        yield source, {"trust_remote_code": False, "local_files_only": local}
    except PfiError:
        raise
    except Exception as error:  # over files that make no sense the loaders raise anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BackboneError(
            f"the backbone cannot be loaded: {first}",
            where=name,
            fix="use 'embedded', a folder with config.json, tokenizer and safetensors weights, "
            "a .gguf file, or a hub id that is cached or reachable",
        ) from error
