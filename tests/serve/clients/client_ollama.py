"""packages: ollama"""

import asyncio
import json
import os

import ollama

where = {"headers": {"Authorization": "Bearer " + os.environ["KEY"]}}
client = ollama.Client(os.environ["ROOT"], **where)
talk = [{"role": "user", "content": "Hello"}]
short = {"num_predict": 5}
form = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}


def pick(number: int) -> str:
    """Pick a number.

    Args:
        number: which one.
    """
    return str(number)


assert client.list().models[0].model == "ann"
assert client.show("ann").capabilities
assert client.ps().models is not None
assert client.chat("ann", messages=talk, options=short).done
assert list(client.chat("ann", messages=talk, options=short, stream=True))[-1].eval_count
assert list(client.generate("ann", "Hello", system="Be brief.", options=short, stream=True))
assert json.loads(client.generate("ann", "Hello", format=form).response)["x"] in (1, 2)
assert json.loads(client.chat("ann", talk, format=form, stream=False).message.content)["x"]
asked = client.chat("ann", talk, tools=[pick], options={"num_predict": 60}, keep_alive="5m")
assert asked.done_reason in ("stop", "length")
called = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "pick", "arguments": {"number": 7}}}],
}
results = {"role": "tool", "tool_name": "pick", "content": "7"}
assert client.chat("ann", [*talk, called, results], tools=[pick], options=short).done
assert len(client.embed("minilm", ["a", "b"]).embeddings) == 2
assert client.embeddings("minilm", "a").embedding
for name, status in (("none", 404),):
    try:
        client.chat(name, talk)
        raise AssertionError("there is no such model")
    except ollama.ResponseError as error:
        assert error.status_code == status and "none" in error.error
try:
    client.chat("ann", [{"role": "user", "content": "word " * 20_000}])
    raise AssertionError("it does not fit")
except ollama.ResponseError as error:
    assert error.status_code == 400


async def later() -> None:
    """Without waiting, and given up."""
    other = ollama.AsyncClient(os.environ["ROOT"], **where)
    assert (await other.chat("ann", talk, options=short)).done
    async for _ in await other.chat("ann", talk, stream=True):
        break


asyncio.run(later())
