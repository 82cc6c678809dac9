"""packages: langchain-openai"""

import asyncio
import os

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

where = {"base_url": os.environ["BASE"], "api_key": os.environ["KEY"]}
model = ChatOpenAI(**where, model="ann", max_tokens=60, frequency_penalty=0.1)


class Point(BaseModel):
    """A point."""

    x: int = Field(ge=0, le=9)


@tool
def pick(number: int) -> str:
    """Pick a number."""
    return str(number)


# Answers.
assert model.invoke([SystemMessage("Say hi")]).response_metadata["finish_reason"]
assert list(model.stream("Hello"))
assert len(model.batch(["Hello", "Bye", "Tea"])) == 3
with_usage = ChatOpenAI(**where, model="ann", max_tokens=5, stream_usage=True)
total = None
for chunk in with_usage.stream("Hello"):
    total = chunk if total is None else total + chunk
assert total.usage_metadata["output_tokens"]
likely = model.bind(logprobs=True, top_logprobs=2).invoke("Hello")
assert likely.response_metadata["logprobs"]["content"]
assert model.bind(stop=["e"]).invoke("Hello") is not None
assert OpenAI(**where, model="ann", max_tokens=5).invoke("Hello") is not None
assert OpenAI(**where, model="ann", max_tokens=5, n=2, temperature=1).generate(["Hello"])

# Structured output by each way.
for method in ("json_schema", "function_calling"):
    shaped = model.with_structured_output(Point, method=method)
    assert 0 <= shaped.invoke("Hello").x <= 9
    assert list(shaped.stream("Hello"))
raw = model.with_structured_output(Point, include_raw=True, strict=True).invoke("Hello")
assert raw["parsing_error"] is None and raw["parsed"]

# Functions, several calls in a turn, whole and in pieces.
bound = model.bind_tools([pick, Point], tool_choice="any", parallel_tool_calls=True)
asked = bound.invoke("Pick two")
assert asked.tool_calls and not asked.invalid_tool_calls
talk = [HumanMessage("Pick two"), asked]
talk += [ToolMessage("7", tool_call_id=call["id"]) for call in asked.tool_calls]
assert model.invoke(talk).usage_metadata["output_tokens"]
total = None
for chunk in bound.stream("Pick two"):
    total = chunk if total is None else total + chunk
assert total.tool_calls and not total.invalid_tool_calls
(call,) = model.bind_tools([pick], tool_choice="pick").invoke("Pick one").tool_calls
twice = AIMessage("", tool_calls=[{**call, "id": "a"}, {**call, "id": "b"}])
model.invoke(
    [
        HumanMessage("Pick"),
        twice,
        ToolMessage([{"type": "text", "text": "7"}], tool_call_id="a"),
        ToolMessage("8", tool_call_id="b", status="error"),
        HumanMessage([{"type": "text", "text": "And now?"}]),
    ]
)

# The Responses API.
newer = ChatOpenAI(**where, model="ann", max_tokens=60, use_responses_api=True)
assert newer.invoke("Hello").usage_metadata["output_tokens"]
assert list(newer.stream("Hello"))
assert newer.bind_tools([pick], tool_choice="pick").invoke("Pick one").tool_calls
assert 0 <= newer.with_structured_output(Point).invoke("Hello").x <= 9

# Vectors: with its own tokenizer it sends numbers of another model's tokens, so it is told not to.
vectors = OpenAIEmbeddings(**where, model="minilm", check_embedding_ctx_length=False)
assert len(vectors.embed_documents(["a", "b"])) == 2 and vectors.embed_query("a")


async def later() -> None:
    """The same without waiting, and an answer that is given up."""
    assert (await model.ainvoke("Hello")).usage_metadata
    assert 0 <= (await model.with_structured_output(Point).ainvoke("Hello")).x <= 9
    async for _ in model.astream("Hello"):
        break
    assert len(await model.abatch(["Hello"] * 6)) == 6


asyncio.run(later())
try:
    ChatOpenAI(**where, model="gpt-4o").invoke("Hello")
    raise AssertionError("there is no such model")
except openai.NotFoundError:
    pass
try:
    model.invoke("word " * 20_000)
    raise AssertionError("it does not fit")
except openai.BadRequestError as error:
    assert error.code == "context_length_exceeded"
