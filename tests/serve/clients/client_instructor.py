"""packages: instructor"""

import asyncio
import os
from collections.abc import Iterable
from typing import Literal

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel

where = {"base_url": os.environ["BASE"], "api_key": os.environ["KEY"]}
talk = [{"role": "user", "content": "Choose"}]


class Choice(BaseModel):
    """What is chosen."""

    colour: Literal["red", "blue"]


class Size(BaseModel):
    """How large it is."""

    size: Literal[1, 2, 3]


for mode in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"):
    client = instructor.from_openai(openai.OpenAI(**where), mode=instructor.Mode[mode])
    ask = {"model": "ann", "messages": talk, "max_retries": 1}
    chosen = client.chat.completions.create(response_model=Choice, **ask)
    assert chosen.colour in ("red", "blue"), mode
    if mode == "RESPONSES_TOOLS":
        continue
    chosen, whole = client.chat.completions.create_with_completion(response_model=Choice, **ask)
    assert whole.usage.completion_tokens, mode
    parts = list(client.chat.completions.create_partial(response_model=Choice, **ask))
    assert parts[-1].colour in ("red", "blue"), mode
several = instructor.from_openai(openai.OpenAI(**where), mode=instructor.Mode.PARALLEL_TOOLS)
try:
    got = several.chat.completions.create(
        model="ann", messages=talk, response_model=Iterable[Choice | Size], max_retries=1
    )
    assert all(isinstance(one, Choice | Size) for one in got)
except InstructorRetryException as error:  # this mode lets a model answer in words
    assert "No tool calls" in str(error)


async def later() -> None:
    """Without waiting."""
    client = instructor.from_openai(openai.AsyncOpenAI(**where))
    ask = {"model": "ann", "messages": talk}
    both = await asyncio.gather(
        client.chat.completions.create(response_model=Choice, **ask),
        client.chat.completions.create(response_model=Size, **ask),
    )
    assert both[1].size in (1, 2, 3)


asyncio.run(later())
