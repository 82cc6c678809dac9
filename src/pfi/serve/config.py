"""The settings of `pfi serve`: where it listens, and what it takes on at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pfi.profile.answer.engines import EngineName


class ServeConfig(BaseModel):
    """How a server listens and what it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", min_length=1, description="address that is listened on")
    port: int = Field(8484, ge=0, le=65535, description="its port; 0: any free one")
    engine: EngineName | None = Field(None, description="what answers; as each profile says")
    names: list[str] = Field(
        default=[],
        description="host names that requests may be addressed to, beside `localhost` and "
        "addresses in digits",
    )
    origins: list[str] = Field(
        default=[], description="web pages of other origins that may call the API"
    )
    threads: int | None = Field(
        None, ge=1, description="threads that compute; as many as cores are free if none"
    )
    rows: int | None = Field(
        None,
        ge=1,
        description="answers that are decoded side by side; if none 32, or with llama.cpp 4 and "
        "fewer where memory is short",
    )
    running: int = Field(64, ge=1, description="requests that are worked on or wait; more: 503")
    running_per_token: int = Field(16, ge=1, description="of these, of one token; more: 429")
    requests_per_minute: int = Field(600, ge=1, description="requests of one token")
    tokens_per_minute: int = Field(
        200_000, ge=1, description="prompt and answer tokens of one token's requests"
    )
    body_bytes: int = Field(1 << 20, ge=1024, description="largest body of an API request")
    upload_bytes: int = Field(1 << 30, ge=1024, description="largest file given to the console")
    context: int | None = Field(
        default=None, ge=16, description="longest prompt in tokens, where less than the backbone's"
    )
    answer_tokens: int = Field(
        256, ge=1, description="longest answer, where the request does not say"
    )
    most_answer_tokens: int = Field(2048, ge=1, description="longest answer that is granted")
    choices: int = Field(4, ge=1, description="largest `n`")
    inputs: int = Field(
        64, ge=1, description="most texts to embed, or answers to give, in one request"
    )
    read_seconds: float = Field(
        20.0, gt=0, description="how long a client may take to send its header or its body"
    )
    connections: int = Field(1000, ge=1, description="open connections")
    half_open: int = Field(
        100, ge=1, description="of these, of one address, that have not sent a whole header"
    )
    idle_seconds: int = Field(15, ge=1, description="how long an unused connection stays open")
    answer_seconds: float = Field(600.0, gt=0, description="how long an answer may take")
