"""Requests as the OpenAI API has them.

Fields that this server does not know are passed over, as clients send many that change nothing;
those that would change what the answer means are refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pfi.serve.errors import unsupported

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
#: Values with which a refused field changes nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
}


class _Body(BaseModel):
    """What every request body is held against."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        try:
            if isinstance(values, dict):
                json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON can spell it out, and nothing can be done with it
            raise ValueError("half of a surrogate pair is no text") from None
        return values


class Extension(BaseModel):
    """What this server knows beyond the OpenAI API, under ``pfi``."""

    model_config = ConfigDict(extra="forbid")

    task: Name | None = Field(None, description="what the question is asked as")
    records: int | None = Field(None, ge=0, le=32, description="how many records to retrieve")
    fields: dict[str, str] = Field(
        default={}, description="the other input fields, of a task whose question has several"
    )


class StreamOptions(BaseModel):
    """What a stream says beside the answer."""

    include_usage: bool | None = None


class _Sampled(_Body):
    """What chat and text completions share."""

    model_config = ConfigDict(extra="allow")

    model: Name
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    top_k: (
        Annotated[int, Field(ge=-1, le=2**31, description="not of OpenAI's API; 0 or -1: all")]
        | None
    ) = None
    min_p: Annotated[Finite, Field(ge=0, le=1, description="not of OpenAI's API")] | None = None
    repetition_penalty: (
        Annotated[Finite, Field(gt=0, le=10, description="not of OpenAI's API")] | None
    ) = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    pfi: Extension | None = None

    def check(self) -> None:
        """Refuse what would be answered wrongly.

        Raises:
            ApiError: 400, it names the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _HARMLESS and value is not None and value not in _HARMLESS[name]:
                raise unsupported(name)

    @property
    def sampling(self) -> dict[str, Any]:
        """What is said of how tokens are chosen, None where nothing is."""
        names = (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
        )
        top_k = None if self.top_k is None else max(0, self.top_k)
        return {**{name: getattr(self, name) for name in names}, "top_k": top_k}

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Part(BaseModel):
    """A part of a message; text only."""

    type: str
    text: str | None = None


class Message(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def turn(self) -> tuple[str, str]:
        """Role and text.

        Raises:
            ApiError: 400, a part is no text.
        """
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return role, self.content
        if any(part.type != "text" or part.text is None for part in self.content):
            raise unsupported("messages", "messages: only parts of type text are supported")
        return role, "".join(str(part.text) for part in self.content)


class ChatRequest(_Sampled):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None


class CompletionRequest(_Sampled):
    """Body of ``POST /v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(_Body):
    """Body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="allow")

    model: Name
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


# Responses ----------------------------------------------------------------------------


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
    records: list[ShownRecord]
    dropped: int = Field(description="retrieved records that there was no room for")
    gate: str
    personal: str | None = Field(description="version of the personal adapter")
    shared: str | None = Field(description="version of the shared adapter")
    weight: float = Field(description="of the personal adapter")


class TokenLogprob(BaseModel):
    """One token of an answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class Logprobs(BaseModel):
    """The tokens of a chat answer."""

    content: list[TokenLogprob]


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    """Answer to ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    pfi: Why


class TextLogprobs(BaseModel):
    """The tokens of a text answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
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
