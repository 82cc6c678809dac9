"""A teacher behind any OpenAI-compatible endpoint, reached through the `openai` SDK.

The SDK tries again with backoff and jitter; what servers differ in is found out by their refusals.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from pfi.augment.config import TeacherConfig
from pfi.augment.teachers.forms import read_answer
from pfi.augment.teachers.teacher import Call, Reply, TeacherError, Unusable, Usage, is_here

#: Calls in a row that fail, each after all its retries, until no other is tried.
_PATIENCE = 5
#: What some servers know only one of, and others neither under the first name.
_LIMITS = ("max_tokens", "max_completion_tokens")
_OPTIONAL = ("response_format", "seed", "temperature")
_DELAY, _LONGEST_DELAY = 0.5, 8.0  # seconds, as the SDK's own


class Pace:
    """Lets callers of all threads pass one by one, ``per_minute`` times a minute at most."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap, self._clock, self._sleep = 60 / per_minute, clock, sleep
        self._lock = threading.Lock()
        self._next = clock()

    def wait(self, *_: object) -> None:
        """Return when it is the caller's turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            self._sleep(turn - now)


@dataclass(frozen=True)
class _Failure:
    """Why a request failed.

    Attributes:
        what: and
        fix: as in `PfiError`.
        fatal: no call will succeed.
        refused: parameters of the request that the server does not take.
        away: it may have nothing to do with the call.
    """

    what: str
    fix: str | None = None
    fatal: bool = False
    refused: frozenset[str] = frozenset()
    away: bool = False


class RemoteTeacher:
    """An OpenAI-compatible endpoint as a teacher.

    Args:
        config: endpoint, model, limits and prices; the key is read from the environment.

    Raises:
        TeacherError: no model or key is given, or the address is none.
    """

    batch = 1

    def __init__(self, config: TeacherConfig) -> None:
        import openai

        self._config = config
        try:
            address = urlsplit(config.base_url)
            hostname, port = address.hostname, address.port
        except ValueError:
            hostname, port = None, None
        if not hostname or address.scheme not in ("http", "https"):
            raise TeacherError(
                "the teacher's base_url is no address",
                fix="give one such as http://localhost:11434/v1",
            )
        # Not config.base_url, which may hold a password.
        self._where = f"{address.scheme}://{hostname}{f':{port}' if port else ''}{address.path}"
        if not config.model:
            raise TeacherError(
                "no model is named", where=self._where, fix="set the teacher's model"
            )
        #: Any address, this machine's too: what listens there may pass calls on.
        self.host: str | None = hostname
        if here := is_here(f"[{hostname}]" if ":" in hostname else hostname):
            self.host = address.netloc.rpartition("@")[2].lower()  # of many servers one
        self._key = ""
        if _belongs(config.api_key_env, config.base_url):
            self._key = os.environ.get(config.api_key_env, "")
        if not self._key and not here:
            fix = (
                f"set the environment variable {config.api_key_env}, or the teacher's "
                "api_key_env to the variable that holds it"
            )
            if os.environ.get(config.api_key_env):
                fix = (
                    f"{config.api_key_env} belongs to {_owner(config.api_key_env)}: put this "
                    "host's key into another variable and name that as the teacher's api_key_env"
                )
            raise TeacherError(
                "the teacher needs a key, and there is none", where=self._where, fix=fix
            )
        self.name = f"openai:{config.model}@{hostname}{f':{port}' if port else ''}"
        self.concurrency = config.concurrency
        pace = Pace(config.requests_per_minute) if config.requests_per_minute else None
        timeout = openai.Timeout(config.timeout, connect=min(10.0, config.timeout))
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=config.base_url,
            timeout=timeout,
            max_retries=config.retries,
            http_client=openai.DefaultHttpxClient(
                timeout=timeout,
                follow_redirects=False,  # what is sent goes to the host that the ledger names
                trust_env=not here,  # nor does it leave the device through a proxy
                event_hooks={"request": [pace.wait] if pace else []},  # retries take turns, too
            ),
        )
        first, second = _LIMITS
        official = hostname == "api.openai.com"  # its newer models refuse the name others know
        self._limits = (second, first) if official else (first, second)
        self._lock = threading.Lock()
        self._refused: frozenset[str] = frozenset()
        self._failed, self._answered = 0, False

    def answer(self, calls: Sequence[Call]) -> list[Reply | Unusable]:
        """See ``Teacher.answer``; may run in several threads."""
        return [self._answer(call) for call in calls]

    def price(self, usage: Usage) -> Usage:
        """The usage with its cost by the configured prices; what has no price costs nothing."""
        prompt, completion = (
            self._config.usd_per_million_prompt or 0.0,
            self._config.usd_per_million_completion or 0.0,
        )
        usd = (usage.prompt_tokens * prompt + usage.completion_tokens * completion) / 1e6
        return replace(usage, usd=usd)

    def _answer(self, call: Call) -> Reply | Unusable:
        refused = self._refused
        while True:
            result = self._send(call, refused)
            if not isinstance(result, _Failure):
                with self._lock:
                    self._failed, self._answered = 0, True
                    self._refused |= refused  # now that we know that it helped
                return self._read(call, result)
            if not result.refused - refused or set(_LIMITS) <= refused | result.refused:
                return self._give_up(result)
            refused |= result.refused

    def _give_up(self, failure: _Failure) -> Unusable:
        with self._lock:
            self._failed += 1
            often = self._failed >= _PATIENCE and (failure.away or not self._answered)
        if failure.fatal or often:
            raise TeacherError(failure.what, where=self._where, fix=failure.fix)
        return Unusable(failure.what, passing=failure.away)

    def _send(self, call: Call, refused: frozenset[str]) -> Any:
        """One request without the refused parameters: the completion, or a `_Failure`."""
        import openai

        messages = call.worded
        limit = next(name for name in self._limits if name not in refused)
        sent: dict[str, Any] = {
            limit: call.max_tokens,
            "seed": call.seed,
            "temperature": call.temperature,
        }
        if call.form is not None:
            schema = openai.pydantic_function_tool(call.form)["function"]["parameters"]
            form = {"name": call.form.__name__, "schema": schema, "strict": True}
            sent["response_format"] = {"type": "json_schema", "json_schema": form}
        sent = {name: value for name, value in sent.items() if name not in refused}
        # A server may hold a key to the request that it first came with.
        key = "-".join([call.key(self.name), *sorted(refused)])
        for tries in range(self._config.retries + 1):
            if tries:  # the SDK leaves alone a body that ends early without breaking HTTP
                delay = min(_DELAY * 2 ** (tries - 1), _LONGEST_DELAY)
                time.sleep(delay * random.uniform(0.75, 1))
            try:
                completion = self._client.chat.completions.create(
                    model=self._config.model,
                    messages=[{"role": m.role, "content": m.content} for m in messages],  # type: ignore[misc]
                    extra_headers={"Idempotency-Key": key},
                    **sent,
                )
            except openai.APIError as error:
                return self._failure(error, frozenset(sent))
            except ValueError:
                continue
            if isinstance(completion, openai.types.chat.ChatCompletion):
                return completion
        return _Failure(
            "the server answers with something other than JSON",
            "check the teacher's base_url; it often ends in /v1",
            fatal=True,
        )

    def _read(self, call: Call, completion: Any) -> Reply | Unusable:
        choice = next(iter(getattr(completion, "choices", None) or []), None)
        message = getattr(choice, "message", None)
        content = getattr(message, "content", None)
        text = content if isinstance(content, str) else ""
        usage = self.price(_usage(completion))
        why = getattr(choice, "finish_reason", None)
        if getattr(message, "refusal", None) or why == "content_filter":
            return Unusable("the teacher refuses to answer", usage)
        if choice is None:
            problem = self._said(getattr(completion, "error", None))
            return Unusable(f"the server sent no answer{problem}", usage)
        try:
            return Reply(read_answer(text, call.form), usage)
        except Unusable as error:
            longer = f" (cut off after {call.max_tokens} tokens)" if why == "length" else ""
            return Unusable(f"{error}{longer}", usage)

    def _said(self, message: object) -> str:
        """What the server said, without the key, as the end of a sentence."""
        text = str(message or "").strip()
        if self._key:
            text = text.replace(self._key, "***")
        return f": {text[:300]}" if text else ""

    def _failure(self, error: Any, sent: frozenset[str]) -> _Failure:
        import openai

        if isinstance(error, openai.APITimeoutError):
            seconds = f"{self._config.timeout:g} s"
            return _Failure(
                f"the server did not answer within {seconds}",
                "give the teacher a longer timeout or check the address",
                fatal="Connect" in type(error.__cause__).__name__,
                away=True,
            )
        if isinstance(error, openai.APIConnectionError):
            return _Failure(
                f"the server cannot be reached{self._said(error.__cause__)}",
                "check that it runs and that base_url is right, then run the same command again",
                fatal=True,
            )
        status = getattr(error, "status_code", 0)
        body = error.body
        said = self._said(_message(body))
        variable = self._config.api_key_env
        if status == 401:  # servers like to repeat the key here
            return _Failure(
                "the server does not accept the key", f"check the key in {variable}", fatal=True
            )
        if status in (402, 403):
            return _Failure(
                f"the server refuses us ({status}){said}",
                f"check the rights and the credit of the key in {variable}",
                fatal=True,
            )
        if status == 404 or _names(body, "code", "param") & {"model_not_found", "model"}:
            return _Failure(
                f"the server knows no model {self._config.model!r} or no such address{said}",
                "check the teacher's model and base_url",
                fatal=True,
            )
        if status == 429:
            return _Failure(
                f"the server takes no more calls from us{said}",
                "wait, or lower the teacher's requests_per_minute and concurrency, then run the "
                "same command again",
                fatal=True,
            )
        if 300 <= status < 400:
            return _Failure(
                "the server sends us to another address", "give that as base_url", fatal=True
            )
        if status in (400, 422):
            return _Failure(
                f"the server refuses the call ({status}){said}",
                "check the teacher's model and settings",
                refused=_refused(body, sent),
            )
        trouble = f"the server fails ({status}){said}"
        away = status in (408, 409) or status >= 500
        return _Failure(trouble, "run the same command again later", away=away)


def _owner(variable: str) -> str | None:
    """The address that a variable's key belongs to where that is known, without its path.

    OpenAI's own variables: the key is that of the host that `OPENAI_BASE_URL` names.
    """
    if variable != "OPENAI_API_KEY":
        return None
    return _origin(os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")


def _origin(url: str) -> str:
    """Scheme, host and port of an address; "" of what is none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _belongs(variable: str, url: str) -> bool:
    """Whether the key in a variable may be sent to an address.

    A variable that the user named for this teacher may; one that other programs share goes to
    its own host alone, whoever named the address.
    """
    owner = _owner(variable)
    return owner is None or _origin(url) == owner


def _usage(completion: Any) -> Usage:
    """The tokens that the server counted; none where it did not tell, and the client assumes."""
    counts = getattr(completion, "usage", None)
    prompt = getattr(counts, "prompt_tokens", None)
    new = getattr(counts, "completion_tokens", None)
    return Usage(prompt, new) if isinstance(prompt, int) and isinstance(new, int) else Usage()


def _message(body: object) -> object:
    """The message in an error's body, in whichever of the usual places it is."""
    if not isinstance(body, dict):
        return body
    for name in ("message", "detail", "error"):
        if body.get(name):
            return _message(body[name])
    return body


def _names(body: object, *names: str) -> set[str]:
    return {str(body.get(name)) for name in names} if isinstance(body, dict) else set()


def _refused(body: object, sent: frozenset[str]) -> frozenset[str]:
    """Which of the parameters that we sent an error is about."""
    if named := _names(body, "param") & sent:
        return frozenset(named)
    text = str(body)
    if re.search(r"json_schema|schema|structured|response_format", text):
        text += " response_format"
    if re.search(r"context|too (long|large)", text, re.IGNORECASE):
        sent = sent - set(_LIMITS)  # named, but not refused: the text is too long
    return frozenset(name for name in sent if re.search(rf"\b{name}\b", text))
