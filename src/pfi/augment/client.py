"""The teacher client: the one place from which a teacher is called.

It keeps the privacy policy, the ledger, the cache, the budget and the number of calls at a time,
so that generators and teachers know nothing of them.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pfi.augment.budget import Budget, Estimate, estimate, exact, most
from pfi.augment.cache import Answer, Grant, TeacherStore
from pfi.augment.config import AugmentConfig
from pfi.augment.teachers.teacher import Call, Reply, Teacher, Unusable, Usage, is_here
from pfi.errors import ConfigError, StorageError
from pfi.privacy.ledger.ledger import Ledger, send_logged

if TYPE_CHECKING:
    from pfi.augment.guard import Hides

P = ParamSpec("P")
T = TypeVar("T")
POLL_SECONDS = 0.05  # between looks at what other processes have in flight


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What a client has done so far.

    Attributes:
        calls: calls that it was asked for.
        paid: answers that the teacher gave, unusable ones included.
        cached: calls that cost nothing: answered before, or equal to another one.
        unusable: calls without a usable answer after all attempts.
        failed: of these, calls that a server in trouble did not answer.
        unpaid: calls that the budget did not allow.
        usage: what this client's answers cost.
        spent: what all answers in the store cost, earlier runs' and other processes' included.
        problems: why answers were unusable, how often each.
        left: calls that the teacher is still to answer, of those asked for so far.
    """

    calls: int
    paid: int
    cached: int
    unusable: int
    failed: int
    unpaid: int
    usage: Usage
    spent: Usage
    problems: Mapping[str, int] = field(default_factory=dict)
    left: int = 0


@dataclass(frozen=True, slots=True)
class _Try:
    """One attempt at a call, its key, and ids of the records that it rests on, where known."""

    key: str
    attempt: int
    call: Call
    shows: tuple[str, ...] | None = None


class TeacherClient:
    """Asks one teacher for many users, through the cache, within the budget.

    The budget is for all that is ever asked through one store: earlier runs and other processes
    count.  A call is made only if what was spent and the most that it and all calls in flight
    can cost stay within it.  So it is kept to, unless an endpoint charges more than a token for a
    byte: then it is exceeded by that surplus.  What is not known is assumed: an endpoint that
    tells no usage is taken to have charged the most.  A call in flight when its process was killed
    left no trace; it is made again, and if the endpoint charges it twice, nobody here knows.
    This holds for any number of processes on one machine; processes that cannot see each other
    (in several containers) may each exceed it by their calls in flight.

    Args:
        teacher: who answers.
        config: the policy, the budget, the attempts and the most records a call may show.
        store: the cache, and what was spent.
        ledger: where it is noted what leaves this device; needed where the teacher has a host.
        on_progress: is told how things stand after every answer, in the thread of `ask`.

    Raises:
        ConfigError: the policy is `local` and the teacher is elsewhere, or the budget is in US
            dollars and prices are not known.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: AugmentConfig,
        store: TeacherStore,
        ledger: Ledger | None = None,
        *,
        on_progress: Callable[[ClientReport], None] | None = None,
    ) -> None:
        if not is_here(teacher.host) and config.policy == "local":
            raise ConfigError(
                f"nothing may leave this device, and the teacher is at {teacher.host}",
                where="policy",
                fix="choose --policy redact, or a teacher on this device (embedded or local)",
            )
        if teacher.host is not None and ledger is None:
            raise ValueError("a teacher with a host needs a ledger")
        self.teacher, self.config, self.store, self.ledger = teacher, config, store, ledger
        self._on_progress = on_progress
        self._budget = Budget.of(config)
        #: Whether text is redacted on its way out.
        self.redacts = teacher.host is not None and config.policy == "redact"
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._trouble: set[str] = set()
        self._usage = Usage()
        self._left = 0

    @property
    def report(self) -> ClientReport:
        """How things stand.

        Raises:
            StorageError: the store cannot be read.
        """
        spent = self.store.spent()
        with self._lock:
            names = ("calls", "paid", "cached", "unusable", "failed", "unpaid")
            counts = {name: self._counts[name] for name in names}
            problems = dict(self._problems)
            return ClientReport(
                **counts, usage=self._usage, spent=spent, problems=problems, left=self._left
            )

    def ask(self, calls: Sequence[Call], redactors: Mapping[str, Hides]) -> list[Reply | None]:
        """The replies to `calls`, in their order.

        None stands for an answer that was unusable at every attempt, or that the budget did not
        allow.  After the first call that it does not allow none is started, so that which calls
        are paid depends neither on luck nor on the number of calls at a time.  A reply's usage is
        what it cost when it was made, also where it comes from the store.

        Args:
            calls: what to ask.
            redactors: by user, of every user in `calls` where the policy is to redact.

        Raises:
            TeacherError: no call will succeed.  What was answered is in the store.
            StorageError: the store or the ledger cannot be used.
            ValueError: a call shows more records than are allowed, or lacks its redactor: bugs.
        """
        first = self._tries(calls, redactors)
        answers, new = self._answers(first, pay=True)
        counts = Counter(calls=len(calls))
        problems: Counter[str] = Counter()
        replies: list[Reply | None] = []
        for call, key in zip(calls, (entry.key for entry in first), strict=True):
            answer = answers.get(key)
            if answer is None or answer.text is None:
                counts["unpaid" if answer is None else "unusable"] += 1
                counts["failed"] += answer is not None and answer.key in self._trouble
                problems.update([answer.problem] if answer is not None else [])
                replies.append(None)
                continue
            if answer.key in new:
                new.remove(answer.key)  # the next call that is equal costs nothing
            else:
                counts["cached"] += 1
            replies.append(Reply(self._restored(answer.text, call, redactors), answer.usage))
        with self._lock:
            self._counts.update(counts)
            self._problems.update(problems)
        self._tell()
        return replies

    def estimate(self, calls: Sequence[Call], redactors: Mapping[str, Hides]) -> Estimate:
        """About what `ask` would cost; sends nothing and writes nothing.

        Raises:
            StorageError: the store cannot be read.
            ValueError: as for `ask`.
        """
        first = self._tries(calls, redactors)
        answers, _ = self._answers(first, pay=False)
        left = {entry.key: entry.call for entry in first if entry.key not in answers}
        return estimate(len(calls), list(left.values()), self.teacher, self.config)

    def prepared(self, calls: Sequence[Call], redactors: Mapping[str, Hides]) -> list[Call]:
        """The calls as they will be sent: under the policy, and without what stays here.

        Raises:
            ValueError: as for `ask`.
        """
        for call in calls:
            records = () if call.material is None else call.material.records
            source = call.material.source if call.material else None
            shown = len(records) + (source is not None)
            if shown > self.config.records_per_call:
                allowed = self.config.records_per_call
                raise ValueError(f"a call shows {shown} records, and {allowed} are allowed")
        if self.teacher.host is None:
            return list(calls)
        return [replace(self._redacted(call, redactors), material=None) for call in calls]

    # Answers ------------------------------------------------------------------------

    def _tries(self, calls: Sequence[Call], redactors: Mapping[str, Hides]) -> list[_Try]:
        tries = []
        for call, sent in zip(calls, self.prepared(calls, redactors), strict=True):
            shows = call.material.shows if call.material else None
            tries.append(_Try(sent.key(self.teacher.name), 0, sent, shows))
        return tries

    def _answers(self, first: Sequence[_Try], *, pay: bool) -> tuple[dict[str, Answer], set[str]]:
        """The last answer to each call, by the key of its first attempt.

        Returns:
            The answers, where a call is missing whose next attempt was not paid for; and the keys
            that were paid for now.
        """
        answers: dict[str, Answer] = {}
        new: set[str] = set()
        tries: dict[str, _Try] = {}
        for entry in first:
            tries.setdefault(entry.key, entry)  # the first of equal calls is the one that is sent
        for _ in range(self.config.attempts):
            known = self.store.get(entry.key for entry in tries.values())
            missing = [entry for entry in tries.values() if entry.key not in known]
            if pay and missing:
                paid, pay = self._pay(missing)
                known |= paid
                new |= paid.keys()
            again: dict[str, _Try] = {}
            for key, entry in tries.items():
                answer = known.get(entry.key)
                if answer is None:
                    answers.pop(key, None)
                    continue
                answers[key] = answer
                if answer.text is None and entry.key not in self._trouble:
                    again[key] = self._next(entry)
            tries = again
        return answers, new

    def _next(self, entry: _Try) -> _Try:
        """The attempt after this one: the same call with a seed that follows from it."""
        seed = hashlib.sha256(f"{entry.call.seed} {entry.attempt + 1}".encode()).digest()
        call = replace(entry.call, seed=int.from_bytes(seed[:4]) >> 1)
        return _Try(call.key(self.teacher.name), entry.attempt + 1, call, entry.shows)

    def _pay(self, tries: Sequence[_Try]) -> tuple[dict[str, Answer], bool]:
        """Have the teacher answer, in order, as far as the budget goes.

        Returns:
            The answers by key, and whether the budget allowed all of them.
        """
        answers: dict[str, Answer] = {}
        position, allowed = 0, True
        with self._lock:
            self._left = len(tries)
        running: set[Future[dict[str, Answer]]] = set()
        with _workers(self.teacher.concurrency) as start:
            while running or (allowed and position < len(tries)):
                held = False  # until something in flight has been paid for
                while allowed and position < len(tries) and len(running) < self.teacher.concurrency:
                    part = tries[position : position + self.teacher.batch]
                    grant = self._grant(part)
                    if not grant.count:
                        allowed = held = grant.wait
                        break
                    position += grant.count
                    running.add(start(self._send, part[: grant.count], grant.flight))
                if running:
                    timeout = POLL_SECONDS if held else None
                    landed, running = wait(running, timeout, FIRST_COMPLETED)
                    for future in landed:
                        answers |= future.result()
                    if landed:
                        self._tell()
                elif held:
                    time.sleep(POLL_SECONDS)
        with self._lock:
            self._left = 0  # what the budget does not allow is not waited for
        return answers, allowed

    def _grant(self, tries: Sequence[_Try]) -> Grant:
        if not self._budget.limited:
            return Grant(None, len(tries), False)
        return self.store.take([most(entry.call, self.teacher) for entry in tries], self._budget)

    def _send(self, tries: Sequence[_Try], flight: int | None) -> dict[str, Answer]:
        """Call the teacher and store what it answers at once; runs in a thread."""
        try:
            results = self._answered(tries)
            paid, trouble = [], {}
            for entry, result in zip(tries, results, strict=True):
                answer = self._judged(entry, result)
                if isinstance(result, Unusable) and result.passing:
                    trouble[entry.key] = answer  # not kept: another run may ask again
                else:
                    paid.append(answer)
            shown = {entry.key: entry.shows or () for entry in tries}
            stored = self.store.pay(paid, flight, shown) | trouble
        except BaseException:
            with suppress(StorageError):  # the first error says more
                self.store.release(flight)
            raise
        with self._lock:
            self._trouble |= trouble.keys()
            self._left -= len(tries)
            self._counts["paid"] += len(paid)
            for answer in paid:
                self._usage = exact(self._usage + answer.usage)
        return stored

    def _answered(self, tries: Sequence[_Try]) -> list[Reply | Unusable]:
        """What the teacher makes of calls; each is in the ledger before any of them leaves."""
        host, ledger = self.teacher.host, self.ledger
        calls = [entry.call for entry in tries]
        if host is None or ledger is None:
            return self.teacher.answer(calls)
        # Whose call it is helps no teacher, and ids may be names or addresses.
        send = partial(self.teacher.answer, [replace(call, user="") for call in calls])
        for entry in reversed(tries):
            send = partial(
                send_logged,
                ledger,
                device=entry.call.user,
                to=host,
                kind="teacher",
                policy=self.config.policy,
                payload=_payload(entry.call, self.teacher.name),
                shows=entry.shows,
                send=send,
            )
        return send()

    def _judged(self, entry: _Try, result: Reply | Unusable) -> Answer:
        usage = result.usage
        if isinstance(result, Unusable):
            text, problem = None, _storable(str(result)) or "unusable"
        else:
            text, problem = _storable(result.text), ""
        trouble = isinstance(result, Unusable) and result.passing
        if self.teacher.host is not None and not usage.tokens and not trouble:
            usage = most(entry.call, self.teacher)  # it did not tell
        priced = usage if usage.usd else self.teacher.price(usage)
        return Answer(entry.key, entry.attempt, text, problem, priced)

    # Privacy ------------------------------------------------------------------------

    def _redacted(self, call: Call, redactors: Mapping[str, Hides]) -> Call:
        if not self.redacts:
            return call
        if call.user not in redactors:
            raise ValueError(f"there is no redactor for user {call.user}")
        redact = redactors[call.user].redact
        messages = tuple(replace(entry, content=redact(entry.content)) for entry in call.messages)
        return replace(call, messages=messages)

    def _restored(self, text: str, call: Call, redactors: Mapping[str, Hides]) -> str:
        if not self.redacts:
            return text
        restore = redactors[call.user].restore
        if call.form is None:
            return restore(text)
        try:
            values = json.loads(text)
        except ValueError:
            return restore(text)
        # Value by value: what is restored may hold quotes, which JSON escapes.
        return json.dumps(_each_text(values, restore), ensure_ascii=False)

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.report)


def _payload(call: Call, teacher: str) -> dict[str, Any]:
    """All of a call that leaves, in the words in which it does."""
    return {
        "teacher": teacher,
        "messages": [{"role": entry.role, "content": entry.content} for entry in call.worded],
        "schema": call.schema,
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "seed": call.seed,
    }


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    return value


def _storable(text: str) -> str:
    """The text without lone surrogates, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def _workers(count: int) -> Iterator[Callable[..., Future[Any]]]:
    """What starts a function in one of `count` threads; a single one is the caller's own.

    At the end it waits for all of them, also after an error.
    """
    if count > 1:
        with ThreadPoolExecutor(count, "teacher") as pool:
            yield pool.submit
        return

    def here(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **named))
        except Exception as error:
            future.set_exception(error)
        return future

    yield here
