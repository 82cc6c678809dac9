"""Answers and errors as the OpenAI API has them, for its description.

The wording of answers is in ``wire.py``; tests hold it against this.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error, as the OpenAI API words it."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class ShownRecord(BaseModel):
    """A retrieved record."""

    id: str
    text: str


class Why(BaseModel):
    """What an answer rests on, under ``pfi``."""

    task: str
    records: list[ShownRecord] = Field(description="empty for tokens without the scope memory")
    retrieved: int = Field(description="how many records the prompt holds")
    dropped: int = Field(description="retrieved records that there was no room for")
    dropped_turns: int = Field(description="oldest turns left out, where truncation is auto")
    gate: str
    personal: str | None = Field(description="version of the personal adapter")
    shared: str | None = Field(description="version of the shared adapter")
    weight: float = Field(description="of the personal adapter")


class LikelyToken(BaseModel):
    """A token with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(LikelyToken):
    """One token of an answer."""

    top_logprobs: list[LikelyToken] = []


class Logprobs(BaseModel):
    """The tokens of a chat answer."""

    content: list[TokenLogprob]


class CalledFunction(BaseModel):
    """A function and its arguments, an object as JSON."""

    name: str
    arguments: str


class ToolCallOut(BaseModel):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[dict[str, object]] = Field(default=[])
    tool_calls: list[ToolCallOut] | None = None


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatResponse(BaseModel):
    """Answer to ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    pfi: Why


class TextLogprobs(BaseModel):
    """The tokens of a text answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None = None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(BaseModel):
    """Answer to ``POST /v1/completions``; one ``pfi`` for each prompt."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    pfi: list[Why]


class Embedding(BaseModel):
    """A text's vector: numbers, or these as 32-bit floats in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    """Answer to ``POST /v1/embeddings``."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """A model that may be named."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Answer to ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
