"""A Hugging Face chat model on this device as a teacher; nothing leaves."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.forms import read_answer
from pfi.augment.teachers.teacher import Call, Message, Reply, TeacherError, Unusable, Usage
from pfi.errors import BackboneError, ConfigError
from pfi.inference.generation import decode
from pfi.inference.torch.sampling import Nucleus, Pick, greedy
from pfi.models.backbone import load_backbone

_TOP_P = 0.95  # the tail of a small model's distribution is noise
_LEAST = 16  # tokens an answer needs room for
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

    batch = 8
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
        self.name = f"local:{Path(config.model).name}@{self._fingerprint()}"

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        """See ``Teacher.answer``.

        Raises:
            TeacherError: the chat template takes no such conversation.
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
            text = str(self._backbone.tokenizer.decode(new, skip_special_tokens=True))
            try:
                results[at] = Reply(read_answer(text, calls[at].form), usage)
            except Unusable as error:
                results[at] = Unusable(str(error), usage)
        return [results[at] for at in range(len(calls))]

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

        def pick(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
            rows = [picks[at](logits[i : i + 1], [0]) for i, at in enumerate(numbers)]
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


def _pick(call: Call) -> Pick:
    return Nucleus(call.temperature, _TOP_P, call.seed) if call.temperature else greedy
