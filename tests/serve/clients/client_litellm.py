"""packages: litellm"""

import asyncio
import json
import os

import litellm
from pydantic import BaseModel, Field

talk = [{"role": "user", "content": "Hello"}]
key = os.environ["KEY"]
of_openai = {"model": "openai/ann", "api_base": os.environ["BASE"], "api_key": key}
of_ollama = {"model": "ollama_chat/ann", "api_base": os.environ["ROOT"], "api_key": key}
of_hosted = {"model": "hosted_vllm/ann", "api_base": os.environ["BASE"], "api_key": key}
litellm.suppress_debug_info = True


class Point(BaseModel):
    """A point."""

    x: int = Field(ge=0, le=9)


TOOL = {
    "type": "function",
    "function": {"name": "put", "description": "d", "parameters": Point.model_json_schema()},
}


async def later(where: dict) -> None:
    """Without waiting, and given up."""
    assert (await litellm.acompletion(**where, messages=talk, max_tokens=5)).usage
    async for _ in await litellm.acompletion(**where, messages=talk, max_tokens=40, stream=True):
        break


for where in (of_openai, of_hosted, of_ollama):
    assert litellm.completion(**where, messages=talk, max_tokens=5).usage.total_tokens
    assert list(litellm.completion(**where, messages=talk, max_tokens=5, stream=True))
    asyncio.run(later(where))
    shaped = litellm.completion(**where, messages=talk, response_format=Point)
    assert 0 <= json.loads(shaped.choices[0].message.content)["x"] <= 9
for where in (of_openai, of_hosted):
    asked = litellm.completion(**where, messages=talk, tools=[TOOL], tool_choice="required")
    message = asked.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": "put", "content": "done"}
        for call in message.tool_calls
    ]
    assert litellm.completion(**where, messages=[*talk, message, *results], max_tokens=5).choices
    chunks = list(
        litellm.completion(
            **where, messages=talk, tools=[TOOL], tool_choice="required", stream=True
        )
    )
    whole = litellm.stream_chunk_builder(chunks, messages=talk)
    arguments = whole.choices[0].message.tool_calls[0].function.arguments
    assert 0 <= json.loads(arguments)["x"] <= 9
text = {**of_openai, "model": "text-completion-openai/ann"}
assert litellm.text_completion(**text, prompt="Hello", max_tokens=5).choices
assert litellm.responses(**of_openai, input="Hello", max_output_tokens=5).output
assert list(litellm.responses(**of_openai, input="Hello", max_output_tokens=5, stream=True))
vectors = {**of_openai, "model": "openai/minilm"}
assert len(litellm.embedding(**vectors, input=["a", "b"]).data) == 2


def refused(kind: type[Exception], **changes: object) -> None:
    try:
        litellm.completion(**{**of_openai, "messages": talk, **changes})
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


refused(litellm.ContextWindowExceededError, messages=[{"role": "user", "content": "w " * 20_000}])
refused(litellm.AuthenticationError, api_key="wrong")
refused(litellm.NotFoundError, model="openai/gpt-4o")
refused(litellm.BadRequestError, temperature=9)
