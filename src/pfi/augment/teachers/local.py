"""A Hugging Face chat model on this device as a teacher; nothing leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.chatting import (
    LOOK_EVERY,
    TOP_P,
    Trial,
    grammar_of,
    prompt_ids,
    room_for,
    runs_in_a_circle,
)
from pfi.augment.teachers.forms import read_answer
from pfi.augment.teachers.teacher import Call, Reply, TeacherError, Unusable, Usage
from pfi.inference.constraints import Matcher
from pfi.inference.detokenizer import answer_text
from pfi.inference.generation import decode
from pfi.inference.torch.sampling import Nucleus, Pick, greedy
from pfi.models.backbone import load_backbone

_BATCH = 8  # calls at a time
_FIRST_BATCH = 2  # calls at a time until one is answered usably
_OPENED_BY = 64  # tokens by which an answer in JSON has its first brace


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
        self.name = f"local:{Path(config.model).name}@{self._fingerprint()}"
        self._trial = Trial(self.name, "take a larger model")

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
            ids = prompt_ids(self._backbone.prompter, call.worded, self.name)
            try:
                room[at] = room_for(call, ids, self._backbone.max_length)
            except Unusable as error:
                results[at] = error
            else:
                prompts[at] = ids
        for at, new in zip(prompts, self._generate(calls, prompts, room), strict=True):
            usage = Usage(len(prompts[at]), len(new))
            text = answer_text(self._backbone.prompter, prompts[at], new)
            try:
                results[at] = Reply(read_answer(text, calls[at].form), usage)
            except Unusable as error:
                results[at] = Unusable(str(error), usage)
        for at in prompts:
            self._trial.note(calls[at], results[at])
        if self._trial.passed:
            self.batch = _BATCH
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
        picks = {at: self._pick(calls[at]) for at in prompts}
        written: dict[int, list[int]] = {at: [] for at in prompts}

        def pick(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
            rows = []
            for row, at in enumerate(numbers):
                token = picks[at](logits[row : row + 1], [0])
                if self._over(calls[at], prompts[at], written[at]):
                    token.fill_(self._backbone.end_id)
                written[at].append(int(token))
                rows.append(token)
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

    def _pick(self, call: Call) -> Pick:
        pick: Pick = greedy
        if call.temperature:
            pick = Nucleus(call.temperature, TOP_P, call.seed)
        grammar = grammar_of(self._backbone.prompter, call.form)
        if grammar is None:
            return pick
        return _held(pick, grammar.begin(), self._backbone.end_id)

    def _over(self, call: Call, prompt: Sequence[int], new: Sequence[int]) -> bool:
        """Whether an answer is whole, or can come to nothing; looked at every few tokens."""
        if not new or len(new) % LOOK_EVERY:
            return False
        if runs_in_a_circle(new):
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

    def _fingerprint(self) -> str:
        """Tells models of the same name apart: a short hash of weights and chat template."""
        digest = hashlib.sha256(str(self._backbone.tokenizer.chat_template).encode())
        for name, weight in sorted(self._backbone.model.state_dict().items()):
            flat = weight.reshape(-1)
            some = flat[:: max(1, flat.numel() // 1024)].float().cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()[:8]


def _held(pick: Pick, matcher: Matcher, end: int) -> Pick:
    """A choice among the tokens that one answer's form allows; the end where nothing may follow."""

    def held(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        if matcher.ended:
            return torch.full_like(logits[:, 0], end, dtype=torch.long)
        allowed = torch.from_numpy(matcher.allowed(logits.shape[-1])).to(logits.device)
        token = pick(logits.masked_fill(~allowed, -torch.inf), numbers)
        matcher.add(int(token))
        return token

    return held
