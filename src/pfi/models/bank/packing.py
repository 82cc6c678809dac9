"""Rows of tokens for one forward pass: packed, with shared beginnings computed once.

A row is a stem and branches.  The tokens of a branch see the stem and their own branch only
and count their positions from the stem's end, so that examples, or labels, which begin alike
share the keys and values of their beginning (tree attention, as in SpecInfer, arXiv
2305.09781).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F

from pfi.models.attention import pad_rows, takes_masks
from pfi.models.backbone import Backbone
from pfi.models.bank.head_losses import head_losses, head_losses_and_hits, losses_and_hits
from pfi.models.bank.last_block import LastBlock
from pfi.models.families import rope_border

_ROUND, _FEWER = 32, 16  # tokens, and those of them that predict a target


@dataclass(frozen=True)
class Piece:
    """Tokens, of which the last ``targets`` are predicted.

    Attributes:
        ids: all tokens.
        targets: how many at the end are predicted.
        weight: how much their losses count beside those of other pieces.
        hidden: ``(len(piece), width)`` hidden states that stand for the tokens, or None.
        anchored: whether training holds their losses to what they were, instead of lowering them.
    """

    ids: Sequence[int]
    targets: int
    weight: float = 1.0
    hidden: torch.Tensor | None = None
    anchored: bool = False

    def __len__(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Row:
    """Pieces that begin with the same ``stem`` tokens, which are computed once."""

    pieces: Sequence[Piece]
    stem: int = 0

    def __len__(self) -> int:
        return self.stem + sum(len(piece) - self.stem for piece in self.pieces)


@dataclass(frozen=True)
class Packed:
    """A batch of rows.

    Attributes:
        ids: ``(rows, length)`` tokens, padded at the right.
        positions: ``(rows, length)``.
        branches: ``(rows, length)``: 0 for a stem, -1 for padding, else the branch's number;
            None when every row is a single piece.
        wanted: ``(rows, n)`` tokens that predict a target, filled up to the most of a row.
        at: ``(targets,)`` flat places in ``wanted`` of the targets.
        targets: ``(targets,)`` the tokens to predict, row by row and piece by piece.
        hidden: ``(rows, length, width)`` in place of ``ids``, or None.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    branches: torch.Tensor | None
    wanted: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    hidden: torch.Tensor | None = None

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """``(rows, 1, length, length)`` to add to attention scores; None if plainly causal.

        Padding is at the right, so that nothing before it can see it.
        """
        if self.branches is None:
            return None
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        length = self.ids.shape[1]
        seen = ((key == 0) | (key == query)) & torch.ones(
            length, length, dtype=torch.bool, device=self.ids.device
        ).tril()
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.ids.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def common_stem(pieces: Sequence[Piece]) -> int:
    """How many tokens all prompts begin with."""
    first = pieces[0].ids
    room = min(len(piece.ids) - piece.targets for piece in pieces)
    same = takewhile(lambda i: all(piece.ids[i] == first[i] for piece in pieces), range(room))
    return sum(1 for _ in same)


def pack(pieces: Sequence[Piece], width: int) -> list[Row]:
    """Pieces as one row with a shared stem where that is cheaper, else as a row each.

    A row of L tokens costs about ``L (6 width + L)`` of a block's multiplications: linear
    layers of 12 width² weights, and attention over the whole row.
    """
    apart = [Row([piece]) for piece in pieces]
    stem = common_stem(pieces) if len(pieces) > 1 else 0
    if stem:
        together = Row(pieces, stem)
        longest = max(len(row) for row in apart)
        if _cost(len(together), width) < len(apart) * _cost(longest, width):
            return [together]
    return apart


def _cost(length: int, width: int) -> int:
    return length * (6 * width + length)


def passes(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Numbers of rows of similar length, shortest first, as the passes that they fit in.

    A pass has at most ``tokens`` tokens, padding included, or is a single row.
    """
    picked: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if picked and (len(picked) + 1) * lengths[i] > tokens:
            yield picked
            picked = []
        picked.append(i)
    if picked:
        yield picked


def padded_length(backbone: Backbone, rows: Sequence[Row]) -> int:
    """The length that rows are padded to: in bfloat16 on a CPU the next multiple of ``_ROUND``.

    For every shape of a product in bfloat16 its library makes and keeps code, most of a megabyte:
    the lengths of 180 records took 700 MB.
    """
    length = max(len(row) for row in rows)
    if backbone.model.dtype != torch.bfloat16 or backbone.device.type != "cpu":
        return length
    rounded = -(-length // _ROUND) * _ROUND
    fits = rounded <= backbone.max_length and takes_masks(backbone, rounded)
    return rounded if fits else length


def batch(rows: Sequence[Row], device: torch.device, length: int | None = None) -> Packed:
    """Rows as tensors; padding follows each row.

    Pieces carry hidden states either all or none.

    Args:
        rows: what is read.
        device: where.
        length: of the tensors; that of the longest row when None.
    """
    length = length or max(len(row) for row in rows)
    # Any token does as padding, since none sees it; transformers warns of the real one.
    ids = torch.full((len(rows), length), rows[0].pieces[0].ids[0])
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    branches = torch.full((len(rows), length), -1)
    wanted: list[list[int]] = [[] for _ in rows]
    targets: list[int] = []
    first = rows[0].pieces[0].hidden
    hidden = None
    if first is not None:
        hidden = first.new_zeros(len(rows), length, first.shape[1])
    for r, row in enumerate(rows):
        stem, end = row.stem, row.stem
        for number, piece in enumerate(row.pieces, 1):
            begin, end = end, end + len(piece) - stem
            if number == 1:
                ids[r, :stem] = torch.tensor(piece.ids[:stem], dtype=torch.long)
                positions[r, :stem] = torch.arange(stem)
                branches[r, :stem] = 0
            ids[r, begin:end] = torch.tensor(piece.ids[stem:-1], dtype=torch.long)
            positions[r, begin:end] = torch.arange(stem, len(piece))
            branches[r, begin:end] = number
            if hidden is not None:
                assert piece.hidden is not None
                hidden[r, :stem] = piece.hidden[:stem]
                hidden[r, begin:end] = piece.hidden[stem:]
            # A target is predicted by the token before it, of the stem or of its branch.
            places = range(len(piece) - piece.targets, len(piece))
            wanted[r] += [i if i < stem else begin + i - stem for i in places]
            targets += piece.ids[-piece.targets :]
    most = max(len(places) for places in wanted)
    if length % _ROUND == 0:  # padded: then of few lengths too
        most = min(length, -(-most // _FEWER) * _FEWER)
    filled = torch.zeros(len(rows), most, dtype=torch.long)
    for r, found in enumerate(wanted):
        filled[r, : len(found)] = torch.tensor(found)
    at = [r * most + i for r, found in enumerate(wanted) for i in range(len(found))]
    single = all(len(row.pieces) == 1 for row in rows)
    return Packed(
        ids.to(device),
        positions.to(device),
        None if single else branches.to(device),
        filled.to(device),
        torch.tensor(at, device=device),
        torch.tensor(targets, device=device),
        hidden,
    )


def predicting_states(model: Any, packed: Packed) -> torch.Tensor:
    """Last hidden states ``(rows, n, width)`` of the wanted tokens of a decoder-only model."""
    given = {"input_ids": packed.ids}
    if packed.hidden is not None:
        given = {"inputs_embeds": packed.hidden}
    # Plain rows need no mask, and without one attention takes its fastest path.
    mask = packed.mask(model.dtype)
    if mask is not None:
        given["position_ids"] = packed.positions
    last = next(reversed(getattr(model.base_model, "layers", [None])))
    partly = isinstance(last, LastBlock)
    with last.only(packed.wanted) if partly else nullcontext():
        states = model.base_model(**given, attention_mask=mask, use_cache=False)[0]
    if partly:
        return states
    return states.gather(1, packed.wanted[:, :, None].expand(-1, -1, states.shape[2]))


def target_losses(backbone: Backbone, rows: Sequence[Row]) -> torch.Tensor:
    """Negative log-likelihood ``(targets,)`` of every target, piece by piece, in float32.

    An encoder-decoder model reads prompts and predicts targets; its rows have no stems.  Rows
    that a model must read in different ways are read in passes of their own, in which the
    others are two tokens long: a row's losses do not depend on the rows beside it.
    """
    return _at_targets(backbone, rows, hits=False)


def target_losses_and_hits(backbone: Backbone, rows: Sequence[Row]) -> torch.Tensor:
    """``(targets, 2)``: as ``target_losses``, and 1 where a target is the likeliest token, else 0.

    Without gradients.
    """
    return _at_targets(backbone, rows, hits=True)


def _at_targets(backbone: Backbone, rows: Sequence[Row], *, hits: bool) -> torch.Tensor:
    if backbone.seq2seq:
        return _seq2seq_losses(backbone, [row.pieces[0] for row in rows], hits=hits)
    kinds = [_reading(backbone, len(row)) for row in rows]
    if len(set(kinds)) == 1:
        return _losses_of_kind(backbone, rows, own_masks=kinds[0] == 0, hits=hits)
    counts = [sum(piece.targets for piece in row.pieces) for row in rows]
    by_row: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for kind in sorted(set(kinds)):
        mine = [k == kind for k in kinds]
        read = [row if m else _stand_in(row) for row, m in zip(rows, mine, strict=True)]
        losses = _losses_of_kind(backbone, read, own_masks=kind == 0, hits=hits)
        split = losses.split([n if m else 1 for n, m in zip(counts, mine, strict=True)])
        by_row = [new if m else old for new, old, m in zip(split, by_row, mine, strict=True)]
    return torch.cat(by_row)


def _reading(backbone: Backbone, length: int) -> int:
    """How a row is read: 0 with our own masks, 1 and 2 without, on either side of a border."""
    if takes_masks(backbone, length):
        return 0
    border = rope_border(backbone.model.config)
    return 1 if border is None or length <= border else 2


def _stand_in(row: Row) -> Row:
    """The shortest row that can take another's place."""
    piece = row.pieces[0]
    hidden = None if piece.hidden is None else piece.hidden[:1]
    return Row([Piece(piece.ids[:2], 1, hidden=hidden)])


def _losses_of_kind(
    backbone: Backbone, rows: Sequence[Row], *, own_masks: bool, hits: bool
) -> torch.Tensor:
    packed = batch(rows, backbone.device, padded_length(backbone, rows) if own_masks else None)
    if not own_masks:
        return _losses_of_any(backbone.model, packed, hits=hits)
    states = predicting_states(backbone.model, packed).flatten(0, 1)[packed.at]
    head = backbone.model.get_output_embeddings()
    return (head_losses_and_hits if hits else head_losses)(head, states, packed.targets)


def _losses_of_any(model: Any, packed: Packed, *, hits: bool) -> torch.Tensor:
    """As ``_at_targets`` for rows of single pieces and a model of any decoder-only kind."""
    if packed.branches is not None:
        raise ValueError("rows of several pieces need a model that takes masks")
    given = {"input_ids": packed.ids}
    if packed.hidden is not None:
        given = {"inputs_embeds": packed.hidden}
    logits = model(**given, use_cache=False).logits
    wanted = packed.wanted[:, :, None].expand(-1, -1, logits.shape[2])
    chosen = logits.gather(1, wanted).flatten(0, 1)[packed.at]
    if hits:
        return losses_and_hits(chosen, packed.targets)
    return F.cross_entropy(chosen.float(), packed.targets, reduction="none")


def _seq2seq_losses(backbone: Backbone, pieces: Sequence[Piece], *, hits: bool) -> torch.Tensor:
    model: Any = backbone.model
    prompts = [list(piece.ids[: -piece.targets]) for piece in pieces]
    targets = [list(piece.ids[-piece.targets :]) for piece in pieces]
    start = model.config.decoder_start_token_id
    inputs = pad_rows(prompts, backbone.pad_id).to(backbone.device)
    mask = pad_rows([[1] * len(row) for row in prompts], 0).to(backbone.device)
    shifted = pad_rows([[start, *row[:-1]] for row in targets], backbone.pad_id)
    logits = model(
        input_ids=inputs, attention_mask=mask, decoder_input_ids=shifted.to(backbone.device)
    ).logits
    wanted = pad_rows(targets, -100).to(backbone.device)
    if hits:
        return losses_and_hits(logits[wanted != -100], wanted[wanted != -100])
    losses = F.cross_entropy(logits.transpose(1, 2).float(), wanted, reduction="none")
    return losses[wanted != -100]
