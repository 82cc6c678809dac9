"""Errors as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from pfi.errors import BackboneError, ConfigError, DataError, PfiError

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


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
    def body(self) -> dict[str, Any]:
        """What the response says."""
        kind = _TYPES.get(self.status, "server_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }


def unsupported(param: str, what: str | None = None) -> ApiError:
    """A field that would change the meaning of the answer, and that this server does not know."""
    message = what or f"{param} is not supported by this server"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def no_model(name: str) -> ApiError:
    """A model that does not exist, or that the token does not open: nobody can tell which."""
    message = f"The model {name[:100]!r} does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def from_pfi(error: PfiError) -> ApiError:
    """An error of the device as a response: what the caller can mend is 400, the rest 503.

    Files are not named: a path says more about this machine than a caller should know.
    """
    if isinstance(error, ConfigError):
        fix = f". {error.fix}" if error.fix else ""
        return ApiError(400, f"{error.what}{fix}", code="invalid_value")
    if isinstance(error, BackboneError | DataError):
        return ApiError(503, "the model cannot be used", code="model_unavailable")
    return ApiError(503, "the device cannot answer now", code="unavailable")
