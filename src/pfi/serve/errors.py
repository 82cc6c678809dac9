"""Errors as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from pfi.errors import BackboneError, ConfigError, DataError, PfiError

_TYPES = {429: "rate_limit_error"}
#: The official clients ask again after 5xx; this says that it would be of no use.
NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: of the response.
        message: what is wrong, for people.
        param: the field of the request that it is about.
        code: a word for programs.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        """The error's type in the words of the OpenAI API."""
        if self.status in _TYPES:
            return _TYPES[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def body(self) -> dict[str, Any]:
        """What the response says."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def unsupported(param: str, what: str | None = None) -> ApiError:
    """A field that would change the meaning of the answer, and that this server does not know."""
    message = what or f"{param} is not supported by this server"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def wrong_key(message: str) -> ApiError:
    """A token that opens nothing, or nothing any more."""
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def no_model(name: str) -> ApiError:
    """A model that does not exist, or that the token does not open: nobody can tell which."""
    message = f"The model {name[:100]!r} does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def too_long(most: int, count: int, param: str) -> ApiError:
    """A conversation that does not fit.

    Args:
        most: tokens of the context.
        count: tokens of the conversation.
        param: the field that it came in.
    """
    message = (
        f"This model's maximum context length is {most} tokens. However, your {param} resulted in "
        f"{count} tokens, and an answer needs one at least. Please reduce the length of the "
        f'{param}, or send "pfi": {{"truncation": "auto"}} to leave out the oldest turns.'
    )
    return ApiError(400, message, param=param, code="context_length_exceeded")


def from_pfi(error: PfiError) -> ApiError:
    """An error of the device as a response: what the caller can mend is 400, the rest 503.

    Files are not named: a path says more about this machine than a caller should know.
    """
    if isinstance(error, ConfigError):
        fix = f". {error.fix}" if error.fix else ""
        return ApiError(400, f"{error.what}{fix}", code="invalid_value")
    if isinstance(error, BackboneError | DataError):
        what = "the model cannot be used; `pfi ask` on its machine says why"
        return ApiError(503, what, code="model_unavailable", headers=NO_RETRY)
    return ApiError(503, "the device cannot answer now", code="unavailable")
