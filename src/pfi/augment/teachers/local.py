"""A Hugging Face chat model on this device as a teacher; nothing leaves."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.forms import read_answer
from pfi.augment.teachers.teacher import Call, Message, Reply, TeacherError, Unusable, Usage
from pfi.errors import BackboneError, ConfigError
from pfi.inference.detokenizer import answer_text
from pfi.inference.generation import decode
from pfi.inference.torch.sampling import Nucleus, Pick, greedy
from pfi.models.backbone import load_backbone

_BATCH = 8  # calls at a time
_TOP_P = 0.95  # the tail of a small model's distribution is noise
_LEAST = 16  # tokens an answer needs room for
_FIRST_BATCH = 2  # calls at a time until one is answered usably
_GIVE_UP = 6  # answers with no usable one among them after which the teacher is given up
_LOOK_EVERY = 16  # tokens between looks at an answer
_OPENED_BY = 64  # tokens by which an answer in JSON has its first brace
_TURNS, _PERIOD = 4, 40  # so many times the same up to 40 tokens is a loop
_WHOLE = sys.maxsize  # a conversation is asked as it is, or not at all


class LocalTeacher:
    """A causal model from a folder or the hub, asked through its chat template.

    A call's answer follows from the call alone, whatever others are in its batch.

    Args:
        config: its ``model`` is the folder or hub id.

    Raises:
        TeacherError: no model is named, or it is an encoder-decoder model.
        BackboneError: it cannot be loaded.
    """

    concurrency = 1
    host: str | None = None

    def __init__(self, config: TeacherConfig) -> None:
        if not config.model:
            raise TeacherError("no model is named", fix="set the teacher's model to its folder")
        self._backbone = load_backbone(config.model)
        if self._backbone.seq2seq:
            raise TeacherError(
                "an encoder-decoder model holds no conversation",
                where=config.model,
                fix="give a causal model, best one tuned for chat",
            )
        self.batch = _FIRST_BATCH
        self._usable, self._problems = 0, Counter[str]()
        self.name = f"local:{Path(config.model).name}@{self._fingerprint()}"

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        """See ``Teacher.answer``.

        Raises:
            TeacherError: the chat template takes no such conversation, or the first answers all
                were unusable: it writes no JSON, so none will be usable.
        """
        results: dict[int, Reply | Unusable] = {}
        prompts: dict[int, list[int]] = {}
        room = {}
        for at, call in enumerate(calls):
            ids = self._prompt_ids(call.worded)
            room[at] = min(call.max_tokens, self._backbone.max_length - len(ids))
            if room[at] < min(_LEAST, call.max_tokens):
                results[at] = Unusable(f"the prompt is too long: {len(ids)} tokens")
            else:
                prompts[at] = ids
        for at, new in zip(prompts, self._generate(calls, prompts, room), strict=True):
            usage = Usage(len(prompts[at]), len(new))
            text = answer_text(self._backbone.prompter, prompts[at], new)
            try:
                results[at] = Reply(read_answer(text, calls[at].form), usage)
            except Unusable as error:
                results[at] = Unusable(str(error), usage)
        self._count([(calls[at], results[at]) for at in prompts])
        return [results[at] for at in range(len(calls))]

    def _count(self, answered: Sequence[tuple[Call, Reply | Unusable]]) -> None:
        """Give up a model that cannot write JSON before all calls have taken their minutes."""
        for call, result in answered:
            if call.form is None:
                continue
            if isinstance(result, Reply):
                self._usable += 1
                self.batch = _BATCH
            else:
                self._problems[str(result)] += 1
        count = self._problems.total()
        if self._usable or count < _GIVE_UP:
            return
        why = "; ".join(f"{times} x {problem}" for problem, times in self._problems.most_common(3))
        raise TeacherError(
            f"none of its first {count} answers could be used: {why}",
            where=self.name,
            fix="take a larger model, or one behind a server that holds answers to their form "
            "(llama-server, Ollama or vLLM, with --teacher openai)",
        )

    def price(self, usage: Usage) -> Usage:
        """The usage as it is: a model of one's own costs no money."""
        return usage

    @torch.inference_mode()
    def _generate(
        self, calls: Sequence[Call], prompts: dict[int, list[int]], room: dict[int, int]
    ) -> list[list[int]]:
        if not prompts:
            return []
        picks = {at: _pick(calls[at]) for at in prompts}
        written: dict[int, list[int]] = {at: [] for at in prompts}

        def pick(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
            rows = [picks[at](logits[i : i + 1], [0]) for i, at in enumerate(numbers)]
            for row, at in zip(rows, numbers, strict=True):
                if self._over(calls[at], prompts[at], written[at]):
                    row.fill_(self._backbone.end_id)
                written[at].append(int(row[0]))
            return torch.cat(rows)

        longest = max(room[at] for at in prompts)
        rows = list(prompts.values())
        return [
            new[: room[at]]
            for at, new in zip(
                prompts,
                decode(self._backbone, rows, longest, pick, list(prompts), None),
                strict=True,
            )
        ]

    def _over(self, call: Call, prompt: Sequence[int], new: Sequence[int]) -> bool:
        """Whether an answer is whole, or can come to nothing; looked at every few tokens."""
        if not new or len(new) % _LOOK_EVERY:
            return False
        if _loops(new):
            return True
        if call.form is None:
            return False
        text = answer_text(self._backbone.prompter, prompt, new)
        if "{" not in text:
            return len(new) >= _OPENED_BY
        try:
            read_answer(text, call.form)
        except Unusable:
            return False
        return True

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        prompter = self._backbone.prompter
        if not prompter.tokenizer.chat_template:
            return prompter.prompt_ids("\n\n".join(message.content for message in messages))
        turns = [(message.role, message.content) for message in messages]
        try:
            return prompter.chat_ids(turns, _WHOLE)
        except (BackboneError, ConfigError) as error:
            raise TeacherError(error.what, where=self.name, fix="use another model") from error

    def _fingerprint(self) -> str:
        """Tells models of the same name apart: a short hash of weights and chat template."""
        digest = hashlib.sha256(str(self._backbone.tokenizer.chat_template).encode())
        for name, weight in sorted(self._backbone.model.state_dict().items()):
            flat = weight.reshape(-1)
            some = flat[:: max(1, flat.numel() // 1024)].float().cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()[:8]


def _loops(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are a few, over and over."""
    for period in range(1, _PERIOD + 1):
        tail = list(tokens[-max(_TURNS * period, _PERIOD) :])
        if len(tail) >= max(_TURNS * period, _PERIOD) and tail[period:] == tail[:-period]:
            return True
    return False


def _pick(call: Call) -> Pick:
    return Nucleus(call.temperature, _TOP_P, call.seed) if call.temperature else greedy
