"""Answers as the Responses API writes them: an object of output items, or events about them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pfi.serve.answers import Delta, Said, Token, Used
from pfi.serve.errors import ApiError
from pfi.serve.tools import ToolCall
from pfi.serve.wire import DONE, Wording, event


class ResponseWording(Wording):
    """``/v1/responses``; one answer a request.

    Args:
        model: as the request names it.
        echoed: what the response repeats of the request.
    """

    def __init__(self, model: str, echoed: dict[str, Any]) -> None:
        self._id, self._created = f"resp_{secrets.token_hex(24)}", int(time.time())
        self._model, self._echoed = model, echoed
        self._why: dict[str, Any] = {}
        self._number = 0
        self._items: list[dict[str, Any]] = []  # of a stream, those that are whole
        self._message: str | None = None  # the id of the message that is being written

    def whole(self, answers: Sequence[Said], used: Used, why: Sequence[dict[str, Any]]) -> Any:
        (said,) = answers
        self._why = why[0]
        items = []
        if said.text or not said.calls:
            items.append(_message(_new("msg"), said))
        items += [_call(_new("fc"), call) for call in said.calls]
        return self._response(said, items, used)

    def opening(self, count: int, why: Sequence[dict[str, Any]]) -> Iterable[bytes]:
        self._why = why[0]
        begun = self._response(None, [], None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)

    def delta(self, number: int, said: Said, new: Delta) -> Iterable[bytes]:
        if new.text or new.tokens:
            yield from self._begin_message()
            yield self._event(
                "response.output_text.delta",
                **self._place(content_index=0),
                delta=new.text,
                logprobs=[_token(token) for token in new.tokens],
            )
        for call in new.calls:
            yield from self._end_message(said)
            yield from self._called(call)
        if new.finish is not None:
            if not self._items and self._message is None:
                yield from self._begin_message()
            yield from self._end_message(said)

    def ending(self, answers: Sequence[Said], used: Used) -> Iterable[bytes]:
        (said,) = answers
        response = self._response(said, self._items, used)
        yield self._event(f"response.{response['status']}", response=response)
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        response = self._response(None, self._items, None)
        response |= {
            "status": "failed",
            "error": {"code": error.code or "server_error", "message": error.message},
        }
        return self._event("response.failed", response=response)

    # Parts ----------------------------------------------------------------------------

    def _begin_message(self) -> Iterable[bytes]:
        if self._message is not None:
            return
        self._message = _new("msg")
        item = {
            "id": self._message,
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        yield self._event("response.output_item.added", output_index=len(self._items), item=item)
        yield self._event(
            "response.content_part.added", **self._place(content_index=0), part=_part("", ())
        )

    def _end_message(self, said: Said) -> Iterable[bytes]:
        if self._message is None:
            return
        place, tokens = self._place(content_index=0), said.tokens
        yield self._event(
            "response.output_text.done",
            **place,
            text=said.text,
            logprobs=[_token(token) for token in tokens],
        )
        yield self._event("response.content_part.done", **place, part=_part(said.text, tokens))
        item = _message(self._message, said)
        yield self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._message = None

    def _called(self, call: ToolCall) -> Iterable[bytes]:
        item = _call(_new("fc"), call)
        at = {"output_index": len(self._items)}
        begun = {**item, "status": "in_progress", "arguments": ""}
        place = {**at, "item_id": item["id"]}
        name = "response.function_call_arguments"
        yield self._event("response.output_item.added", **at, item=begun)
        yield self._event(f"{name}.delta", **place, delta=call.arguments)
        yield self._event(f"{name}.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("response.output_item.done", **at, item=item)
        self._items.append(item)

    def _place(self, **more: int) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": len(self._items), **more}

    def _event(self, kind: str, **values: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **values}, kind)

    def _response(
        self, said: Said | None, items: list[dict[str, Any]], used: Used | None
    ) -> dict[str, Any]:
        """The response object; as it is before its answer when ``said`` is None."""
        cut = said is not None and said.finish == "length"
        status = "in_progress" if said is None else "incomplete" if cut else "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self._model,
            "output": list(items),
            "usage": None if used is None else _usage(used),
            **self._echoed,
            "pfi": self._why,
        }


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


def _message(number: str, said: Said) -> dict[str, Any]:
    return {
        "id": number,
        "type": "message",
        "status": "incomplete" if said.finish == "length" else "completed",
        "role": "assistant",
        "content": [_part(said.text, said.tokens)],
    }


def _part(text: str, tokens: Sequence[Token]) -> dict[str, Any]:
    logprobs = [_token(token) for token in tokens]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _call(number: str, call: ToolCall) -> dict[str, Any]:
    return {
        "id": number,
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _token(token: Token) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.data),
        "top_logprobs": [
            {"token": data.decode("utf-8", "replace"), "logprob": value, "bytes": list(data)}
            for data, value in token.top
        ],
    }


def _usage(used: Used) -> dict[str, Any]:
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached},
        "output_tokens": used.new,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt + used.new,
    }
