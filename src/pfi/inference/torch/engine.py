"""The engine over the bank: requests of many users in one batch, joining and leaving as they do.

One thread owns the model (continuous batching, Orca, OSDI 2022); adapters are swapped under it
(S-LoRA, arXiv 2311.03285) and beginnings of prompts are read once (vLLM, arXiv 2309.06180).
"""

from __future__ import annotations

import atexit
import random
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch

from pfi._util.memory import free_memory
from pfi._util.threads import AGAIN, LoadMeter, renew
from pfi.errors import ConfigError
from pfi.inference.capacity import Footprint
from pfi.inference.detokenizer import Written
from pfi.inference.engine import (
    AdapterRef,
    EngineClosedError,
    EngineStats,
    Penalties,
    Request,
    Scoring,
    Stream,
    check_targets,
    most_tokens,
    thought_tokens,
)
from pfi.inference.streams import Channel, QueuedStream
from pfi.inference.torch.adapter_slots import AdapterSlots
from pfi.inference.torch.batch import BatchRows, Row, Rows
from pfi.inference.torch.kv_cache import RowStore
from pfi.inference.torch.prefix_cache import PrefixCache
from pfi.inference.torch.scheduler import Scheduler, Scores
from pfi.inference.torch.unbatched import LoneRows
from pfi.models.adapters import Adapter, AdapterConfig
from pfi.models.attention import takes_masks, use_row_attention
from pfi.models.backbone import Backbone
from pfi.models.bank.bank import AdapterBank, Precision, sharing_copy

#: Multiplications of a part of a prompt on a CPU: about a tenth of a second on two cores.
_CHUNK_WORK = 1e10
_CHUNK_GPU = 2048
_MOST_ROW_BYTES = 4 << 30


@dataclass(frozen=True)
class _Forget:
    owner: str


#: What other threads put into the inbox, several at once or one; None only wakes.
_Message = Sequence[Row | Scores] | _Forget | None


class TorchEngine:
    """Answers and scores on a backbone with many adapters; see ``engine.Engine``.

    Models of the families in ``models/attention.py`` are batched; others are answered a row at a
    time, in turn.

    Args:
        backbone: the frozen model; a plain one, not a bank's.
        capacity: adapters that are held, and so that can be in use at once.
        rank: of the bank at first; it is made anew for an adapter that is larger, or that
            changes layers which no other did.
        max_rows: most requests that are answered at once; others wait in their order.
        cache_bytes: most memory for beginnings of prompts, on the model's device.
        row_bytes: most memory for keys and values of the rows in work; one row always may. When
            None half of what is free, but 4 GiB.
        prefill_chunk: tokens of prompts that are read between two steps of the others; by the
            size of the model when None.
        max_rank: a larger adapter is refused.
        precision: of the passes; ``bfloat16`` halves the memory that a step reads.

    Raises:
        ConfigError: a size that makes no sense.
    """

    name = "torch"

    def __init__(
        self,
        backbone: Backbone,
        *,
        capacity: int = 32,
        rank: int = 8,
        max_rows: int = 32,
        cache_bytes: int = 256 << 20,
        row_bytes: int | None = None,
        prefill_chunk: int | None = None,
        max_rank: int = 256,
        precision: Precision = "float32",
    ) -> None:
        sizes = {"capacity": capacity, "rank": rank, "max_rows": max_rows, "max_rank": max_rank}
        for name, size in {**sizes, "prefill_chunk": prefill_chunk or 1}.items():
            if size < 1:
                raise ConfigError(f"{size} is no size", where=name, fix="give 1 or more")
        self.prompter = backbone.prompter
        self._length = backbone.max_length
        self._begin = [getattr(backbone.model.config, "decoder_start_token_id", None) or 0]
        self._vocabulary = int(backbone.model.get_input_embeddings().weight.shape[0])
        if precision == "bfloat16":  # so that only this copy of the weights is held
            half = sharing_copy(backbone.model, torch.bfloat16)
            backbone = replace(backbone, model=half)
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pfi-adapters")

        def make(rank: int, layers: Collection[str]) -> AdapterBank:
            if rank > max_rank:
                what = f"the adapter has rank {rank}, and the engine takes up to {max_rank}"
                raise ConfigError(what, fix="train a smaller one")
            with torch.inference_mode(False):
                config = AdapterConfig(rank=rank)
                bank = AdapterBank(backbone, config, capacity, precision=precision, layers=layers)
            use_row_attention(bank.backbone.model)
            return bank

        def plain(adapter: Adapter) -> Adapter:
            return adapter.plain(backbone.model)

        # Without an adapter no layer is touched: any model that writes can answer.
        slots = AdapterSlots(make(rank, []), make, plain, self._reader, self._wake)
        held = slots.bank.backbone
        rows: Rows = LoneRows(slots, max_rows)
        cache = 0
        if not held.seq2seq and takes_masks(held, held.max_length):
            store = RowStore(held.model, max_rows, held.max_length)
            most = row_bytes or _row_bytes(held.device)
            rows = BatchRows(slots, store, prefill_chunk or _chunk(held), most)
            cache = min(most, max_rows * self._length * store.token_bytes)
        weights = sum(parameter.nbytes for parameter in backbone.model.parameters())
        self._footprint = Footprint(weights, cache, max_rows, self._length, 0)
        self._meter = LoadMeter()
        self._scheduler = Scheduler(slots, rows, PrefixCache(cache_bytes), backbone.end_ids)
        self._closed, self._asked = False, 0
        self._gate = threading.Lock()  # nothing may be put into the inbox after its end
        self._thread = threading.Thread(target=self._work, name="pfi-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread in the middle of a pass would crash at the exit

    # For any thread -----------------------------------------------------------------

    def generate(self, request: Request) -> Stream:
        return self.generate_all([request])[0]

    def generate_all(self, requests: Sequence[Request]) -> list[Stream]:
        rows = [self._row(request) for request in requests]
        self._put(rows)
        return [QueuedStream(row.channel) for row in rows]

    def _row(self, request: Request) -> Row:
        limit = most_tokens(
            request,
            self._length,
            seq2seq=self.prompter.seq2seq,
            thoughts=thought_tokens(self.prompter),
        )
        self._check([request.prompt])
        sampling, channel = request.sampling, Channel(self._wake)
        written = Written.of(self.prompter, request.prompt, sampling.stop)
        draws = random.Random(sampling.seed) if sampling.temperature else None
        before = self._begin if self.prompter.seq2seq else request.prompt
        penalties = Penalties(sampling.resolved(self.prompter.generation), before)
        row = Row(request, channel, limit, written, draws, list(request.prompt), penalties or None)
        row.matcher = sampling.grammar.begin() if sampling.grammar else None
        row.cacheable = bool(request.owner)
        return row

    def score(
        self,
        prompt: Sequence[int],
        targets: Sequence[Sequence[int]],
        adapter: AdapterRef | None = None,
        owner: str = "",
    ) -> list[float]:
        return self.score_all([Scoring(prompt, targets, adapter, owner)])[0]

    def score_all(self, asked: Sequence[Scoring]) -> list[list[float]]:
        jobs = []
        for one in asked:
            job = Scores(one.prompt, one.targets, one.adapter, Future())
            if one.targets:
                check_targets(one.prompt, one.targets, self._length, seq2seq=self.prompter.seq2seq)
                self._check([one.prompt, *one.targets])
            else:
                job.future.set_result([])
            jobs.append(job)
        self._put([job for job in jobs if job.targets])
        return [job.future.result() for job in jobs]

    def forget(self, owner: str) -> None:
        self._put(_Forget(owner))

    def stats(self) -> EngineStats:
        found = self._scheduler.stats()
        return replace(
            found, requests=self._asked, waiting=found.waiting + self._asked - found.requests
        )

    def footprint(self) -> Footprint:
        return replace(self._footprint, threads=torch.get_num_threads())

    def close(self) -> None:
        """End what runs and let go of the model; streams under way end as cancelled."""
        with self._gate:
            self._closed = True
        self._wake()
        self._thread.join()
        self._reader.shutdown(cancel_futures=True)
        atexit.unregister(self.close)

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, parts: Sequence[Sequence[int]]) -> None:
        for ids in parts:
            if min(ids) < 0 or max(ids) >= self._vocabulary:
                what = f"tokens are numbers from 0 to {self._vocabulary - 1}"
                raise ConfigError(what, where="prompt", fix="use this engine's own prompter")

    def _put(self, message: Sequence[Row | Scores] | _Forget) -> None:
        with self._gate:
            if self._closed:
                raise EngineClosedError()
            self._inbox.put(message)
            self._asked += 0 if isinstance(message, _Forget) else len(message)

    def _wake(self) -> None:
        self._inbox.put(None)

    # The thread that owns the model ---------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        scheduler, busy = self._scheduler, False
        error: Exception | None = None
        looked = time.monotonic()
        try:
            while not self._closed:
                messages = [] if busy else [self._inbox.get()]
                if not busy and time.monotonic() - looked > AGAIN:
                    looked = time.monotonic()
                    renew(self._meter.free())
                self._take([*messages, *self._rest()])
                busy = scheduler.step()
        except Exception as bug:  # nobody may wait for ever
            error = bug
            with self._gate:
                self._closed = True
        self._take(self._rest())
        scheduler.stop(error)

    def _rest(self) -> list[_Message]:
        """What is in the inbox."""
        found = []
        while not self._inbox.empty():
            found.append(self._inbox.get())
        return found

    def _take(self, messages: Sequence[_Message]) -> None:
        for message in messages:
            if isinstance(message, _Forget):
                self._scheduler.forget(message.owner)
            elif message is not None:
                for job in message:
                    self._scheduler.add(job)


def _row_bytes(device: torch.device) -> int:
    """Most memory for keys and values: half of what is free, but ``_MOST_ROW_BYTES``."""
    if device.type == "cuda":
        return min(_MOST_ROW_BYTES, torch.cuda.mem_get_info(device)[0] // 2)
    return min(_MOST_ROW_BYTES, free_memory()[0] // 2)


def _chunk(backbone: Backbone) -> int:
    """Tokens of a prompt that are read between two steps."""
    if backbone.device.type != "cpu":
        return _CHUNK_GPU
    size = sum(parameter.numel() for parameter in backbone.model.parameters())
    return max(64, min(512, int(_CHUNK_WORK / size)))
