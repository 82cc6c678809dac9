"""packages: openai"""

import asyncio
import os

import openai
from pydantic import BaseModel, Field

BASE, KEY = os.environ["BASE"], os.environ["KEY"]
client = openai.OpenAI(base_url=BASE, api_key=KEY)
talk = [{"role": "user", "content": "Hello"}]


class Point(BaseModel):
    """A place on a board."""

    x: int = Field(ge=0, le=9)


# Answers, whole and in pieces, several at once.
whole = client.chat.completions.create(model="ann", messages=talk, max_tokens=5, n=2, temperature=1)
assert whole.usage.completion_tokens <= 10 and len(whole.choices) == 2
parts = client.chat.completions.create(
    model="ann", messages=talk, max_tokens=5, stream=True, stream_options={"include_usage": True}
)
assert list(parts)[-1].usage.completion_tokens
with client.chat.completions.stream(model="ann", messages=talk, max_tokens=5) as stream:
    kinds = {event.type for event in stream}
    final = stream.current_completion_snapshot
assert "content.delta" in kinds and final.choices[0].finish_reason
answer = client.chat.completions.create(
    model="ann", messages=talk, max_tokens=5, logprobs=True, top_logprobs=2
)
assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
raw = client.chat.completions.with_raw_response.create(model="ann", messages=talk, max_tokens=1)
assert raw.request_id and raw.headers["x-ratelimit-remaining-requests"]

# Structured output.
parsed = client.chat.completions.parse(model="ann", messages=talk, response_format=Point)
assert 0 <= parsed.choices[0].message.parsed.x <= 9
parsed = client.responses.parse(model="ann", input="Hello", text_format=Point)
assert 0 <= parsed.output_parsed.x <= 9
with client.chat.completions.stream(model="ann", messages=talk, response_format=Point) as stream:
    assert 0 <= stream.get_final_completion().choices[0].message.parsed.x <= 9

# Functions: asked for, called, answered, several at once, whole and in pieces.
tools = [openai.pydantic_function_tool(Point, name="put")]
asked = client.chat.completions.parse(
    model="ann", messages=talk, tools=tools, tool_choice="required", parallel_tool_calls=True
).choices[0]
assert asked.finish_reason == "tool_calls"
calls = asked.message.tool_calls
assert all(0 <= call.function.parsed_arguments.x <= 9 for call in calls)
results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in calls]
turns = [*talk, asked.message.to_dict(), *results]
assert client.chat.completions.create(model="ann", messages=turns, max_tokens=5).choices
with client.chat.completions.stream(
    model="ann", messages=talk, tools=tools, tool_choice="required"
) as stream:
    done = [one for one in stream if one.type == "tool_calls.function.arguments.done"]
assert done and all(0 <= one.parsed_arguments.x <= 9 for one in done)

# The Responses API.
assert client.responses.create(model="ann", input="Hello", max_output_tokens=5).output
flat = [{"type": "function", "name": "put", "parameters": Point.model_json_schema()}]
reply = client.responses.create(model="ann", input=talk, tools=flat, tool_choice="required")
calls = [item for item in reply.output if item.type == "function_call"]
outputs = [
    {"type": "function_call_output", "call_id": one.call_id, "output": "done"} for one in calls
]
again = client.responses.create(
    model="ann", input=[*talk, *reply.output, *outputs], max_output_tokens=5
)
assert again.output_text is not None
with client.responses.stream(model="ann", input="Hello", text_format=Point) as stream:
    assert list(stream)[-1].type == "response.completed"
    assert 0 <= stream.get_final_response().output_parsed.x <= 9

# What else there is.
text = client.completions.create(model="ann", prompt=["Hello", "Bye"], max_tokens=5, echo=True)
assert [choice.text[:3] for choice in text.choices] == ["Hel", "Bye"]
vectors = client.embeddings.create(model="minilm", input=["a", "b"]).data
assert len(vectors[0].embedding) == len(vectors[1].embedding) > 1
assert client.models.list().data[0].id == "ann"
assert client.models.retrieve("ann").id == "ann"


# Errors are of the right class, so that a program knows what to do.
def refused(kind: type[openai.APIStatusError], **changes: object) -> openai.APIStatusError:
    try:
        client.chat.completions.create(**{"model": "ann", "messages": talk, **changes})
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


assert refused(openai.NotFoundError, model="gpt-4o").code == "model_not_found"
long = [{"role": "user", "content": "word " * 20_000}]
assert refused(openai.BadRequestError, messages=long).code == "context_length_exceeded"
assert refused(openai.BadRequestError, temperature=9).param == "temperature"
try:
    openai.OpenAI(base_url=BASE, api_key="wrong").models.list()
    raise AssertionError("a wrong key opens the server")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"


async def side_by_side() -> None:
    """Several answers at once, one of them given up in the middle, one cancelled before."""
    many = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=30)
    ask = {"model": "ann", "messages": talk, "max_tokens": 40}
    stream = await many.chat.completions.create(**ask, stream=True)
    async for _ in stream:
        await stream.close()
        break
    task = asyncio.create_task(many.chat.completions.create(**ask))
    await asyncio.sleep(0.05)
    task.cancel()
    # More than a token may have at once: the client asks again, as 429 and Retry-After tell it.
    ask["max_tokens"] = 5
    replies = await asyncio.gather(*[many.chat.completions.create(**ask) for _ in range(24)])
    assert all(reply.choices[0].finish_reason in ("stop", "length") for reply in replies)


asyncio.run(side_by_side())
