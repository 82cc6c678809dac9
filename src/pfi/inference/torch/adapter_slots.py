"""Which adapters lie in a bank's slots: loaded when asked for, the least recently used one goes.

As in S-LoRA (arXiv 2311.03285), many more adapters than slots are served; one in use stays.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from pfi.inference.engine import AdapterRef
from pfi.models.adapters import Adapter
from pfi.models.bank.bank import NO_ADAPTER, AdapterBank
from pfi.models.peft_format import PREFIX


@dataclass
class AdapterSlots:
    """The slots of a bank by adapter key.  One thread uses it; adapters are read in another.

    Attributes:
        bank: the bank; made anew for an adapter of a larger rank or over other layers, with all
            slots as they were.
        make: an empty bank of the same capacity, another rank and over the layers named.
        plain: an adapter of any kind as plain LoRA, or an error that says why not.
        reader: reads adapters, so that nobody's answer waits for a disk.
        wake: called from the reader's thread when one has been read.
        loads: adapters put in a slot so far.
    """

    bank: AdapterBank
    make: Callable[[int, Collection[str]], AdapterBank]
    plain: Callable[[Adapter], Adapter]
    reader: Executor
    wake: Callable[[], None]
    loads: int = 0
    _slots: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _stamps: dict[int, int] = field(default_factory=dict)
    _users: Counter[int] = field(default_factory=Counter)
    _coming: dict[str, Future[Adapter]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: str) -> bool:
        return key in self._slots

    def ready(self, ref: AdapterRef | None, begin: bool = True) -> bool:
        """Whether ``take`` has what it needs; otherwise reading goes on, or begins."""
        if ref is None or ref.key in self._slots:
            return True
        if ref.key not in self._coming:
            if not begin:
                return False
            self._coming[ref.key] = coming = self.reader.submit(ref.load)
            coming.add_done_callback(lambda _: self.wake())
        return self._coming[ref.key].done()

    def take(self, ref: AdapterRef | None) -> int | None:
        """The slot of a ready adapter, in use until ``give``; None while all slots are.

        Raises:
            Exception: whatever reading raised.
            PfiError: the adapter does not fit the backbone.
        """
        if ref is None:
            return NO_ADAPTER
        if ref.key not in self._slots:
            try:
                adapter = self._coming[ref.key].result()
            except BaseException:
                del self._coming[ref.key]  # the next one who asks has it read again
                raise
            if not self.bank.free and self._unused() is None:
                return None
            del self._coming[ref.key]
            self._slots[ref.key] = self._load(adapter)
        self._slots.move_to_end(ref.key)
        slot = self._slots[ref.key]
        self._users[slot] += 1
        return slot

    def stamp(self, slot: int) -> int:
        """Another number whenever another adapter is in the slot; 0 for none."""
        return self._stamps.get(slot, 0)

    def give(self, slot: int) -> None:
        """A slot is used once less."""
        if slot != NO_ADAPTER:
            self._users[slot] -= 1

    def forget(self, wanted: set[str]) -> None:
        """Let go of adapters that were read but are no longer wanted by anyone."""
        for key in [key for key, read in self._coming.items() if read.done()]:
            if key not in wanted:
                del self._coming[key]

    def _unused(self) -> str | None:
        return next((key for key, slot in self._slots.items() if not self._users[slot]), None)

    def _load(self, adapter: Adapter) -> int:
        adapter = self.plain(adapter)
        rank = max(int(adapter.settings["r"]), self.bank.rank)
        held = {target.name for target in self.bank.targets}
        layers = held | {
            key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in adapter.weights
        }
        if rank > self.bank.rank or layers != held:
            self._grow(rank, layers)
        if not self.bank.free:
            unused = self._unused()
            assert unused is not None
            self.bank.remove(self._slots.pop(unused))
        slot = self.bank.add(adapter)
        self.loads += 1
        self._stamps[slot] = self.loads
        return slot

    def _grow(self, rank: int, layers: Collection[str]) -> None:
        """A larger bank with the same adapters in the same slots."""
        old, new = self.bank, self.make(rank, layers)
        last = max(old.slots, default=-1)
        fillers = []
        for slot in range(last + 1):
            if slot in old.slots:
                new.add(old.adapter(slot))
            else:
                fillers.append(new.take())
        for slot in fillers:
            new.remove(slot)
        self.bank = new
