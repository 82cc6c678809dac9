"""Requests as the OpenAI API has them.

Fields that this server does not know are passed over, as clients send many that change nothing;
those that would change what the answer means are refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pfi.serve.errors import ApiError, unsupported

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
MOST_STOPS, MOST_STOP_LENGTH, MOST_TURNS = 256, 1000, 2000
#: Values with which a field that is not supported changes nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": ("",),
}
#: What clients of other servers send, and what they mean here.
_INSTEAD = {
    "functions": "send `tools`",
    "function_call": "send `tool_choice`",
    "best_of": "ask for `n` answers",
    "suffix": "text cannot be filled in; put what stands before it into `prompt`",
}


def _unsaid(value: Any) -> Any:
    """-1 is how LM Studio and others say that there is no limit."""
    return None if value == -1 and not isinstance(value, bool) else value


def _stops(value: Any) -> Any:
    """Some clients send empty texts for none."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        return [text for text in value if text != ""]
    return value


Limit = Annotated[
    Annotated[int, Field(ge=1, le=2**31)] | None,
    BeforeValidator(_unsaid),
]


class Body(BaseModel):
    """What every request body is held against."""

    model_config = ConfigDict(extra="allow")

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
    truncation: Literal["auto", "disabled"] | None = Field(
        None,
        description="`auto`: of a conversation that does not fit, the oldest turns are left out, "
        "and the answer says how many; else it is refused",
    )


class StreamOptions(BaseModel):
    """What a stream says beside the answer."""

    include_usage: bool | None = None


class Sampled(Body):
    """What chat and text completions share."""

    model: Name
    max_tokens: Limit = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
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
    logit_bias: (
        Annotated[dict[str, Annotated[Finite, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MOST_STOP_LENGTH)]],
            Field(max_length=MOST_STOPS),
        ]
        | None,
        BeforeValidator(_stops, json_schema_input_type=str | list[str] | None),
    ] = None
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
                fix = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
                raise unsupported(name, f"{name} is not supported by this server{fix}")

    @property
    def sampling(self) -> dict[str, Any]:
        """What is said of how tokens are chosen, None where nothing is.

        Raises:
            ApiError: 400, ``logit_bias`` names what is no token.
        """
        names = (
            "temperature",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
        )
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["top_k"] = None if self.top_k is None else max(0, self.top_k)
        values["top_p"] = self.top_p or None
        if self.top_p == 0:  # a nucleus of one token
            values["top_k"] = 1
        values["logit_bias"] = _biases(self.logit_bias)
        return values

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return tuple(self.stop or ())


def _biases(given: dict[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    if not given:
        return None
    if not all(token.isdecimal() and token.isascii() and len(token) < 10 for token in given):
        what = "logit_bias: its names are numbers of tokens"
        raise ApiError(400, what, param="logit_bias", code="invalid_value")
    return tuple((int(token), bias) for token, bias in given.items())


class Function(BaseModel):
    """A function that is called, and with what."""

    name: str = ""
    arguments: Any = Field("{}", description="JSON, as text or as such")


class Called(BaseModel):
    """A call that an assistant's turn has."""

    id: str | None = None
    type: str | None = None
    function: Function


_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def content_text(content: Any) -> Any:
    """A message's content as text; what is no content is left for the types to refuse.

    Raises:
        ApiError: 400, a part is no text.
    """
    if content is None:
        return ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            return content
        text = part.get(_TEXTS[kind]) if kind in _TEXTS else None
        if text is None and kind in _TEXTS:
            text = ""
        if not isinstance(text, str):
            what = f"messages: parts of type {kind[:40]!r} are not supported; this model reads text"
            raise unsupported("messages", what)
        texts.append(text)
    return "".join(texts)


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class Message(BaseModel):
    """A turn of a conversation; content that is null or left out is empty text."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        str, BeforeValidator(content_text, json_schema_input_type=str | list[Part] | None)
    ] = ""
    name: str | None = None
    tool_calls: Annotated[list[Called], Field(max_length=128)] | None = None
    tool_call_id: str | None = None


class ChatRequest(Sampled):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS)]
    max_completion_tokens: Limit = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=1024)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Sampled):
    """Body of ``POST /v1/completions``."""

    max_tokens: Annotated[
        Annotated[int, Field(ge=0, le=2**31)] | None, BeforeValidator(_unsaid)
    ] = None
    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_tokens(cls, values: Any) -> Any:
        if isinstance(values, dict) and is_tokens(values.get("prompt")):
            what = "prompt: token ids are not supported; send text"
            raise unsupported("prompt", what)
        return values

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(Body):
    """Body of ``POST /v1/embeddings``."""

    model: Name
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_tokens(cls, values: Any) -> Any:
        if isinstance(values, dict) and is_tokens(values.get("input")):
            what = (
                "input: token ids are not supported, since they are of another model's tokenizer; "
                "send text (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
            )
            raise unsupported("input", what)
        return values

    @property
    def texts(self) -> list[str]:
        """The texts, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


def is_tokens(value: Any) -> bool:
    """Whether a value is a list of token ids, or of such lists."""
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    if isinstance(first, list):
        return not first or isinstance(first[0], int)
    return isinstance(first, int) and not isinstance(first, bool)
