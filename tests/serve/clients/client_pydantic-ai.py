"""packages: pydantic-ai-slim[openai]"""

import asyncio
import os
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

provider = OpenAIProvider(base_url=os.environ["BASE"], api_key=os.environ["KEY"])


class Choice(BaseModel):
    """What is chosen."""

    colour: Literal["red", "blue"]


async def streamed(agent: Agent) -> None:
    """An answer in pieces, its messages, and one that is given up."""
    async with agent.run_stream("Hello") as result:
        assert [part async for part in result.stream_text(delta=True)]
    async with agent.run_stream("Hello") as result:
        async for _ in result.stream_text():
            break


for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind("ann", provider=provider)
    short = Agent(model, instructions="Be brief.", model_settings={"max_tokens": 9, "seed": 1})
    first = short.run_sync("Hello")
    assert first.usage
    assert short.run_sync("And then?", message_history=first.all_messages()).usage
    asyncio.run(streamed(short))
    for form in (NativeOutput(Choice), ToolOutput(Choice), [ToolOutput(Choice), ToolOutput(bool)]):
        chosen = Agent(model, output_type=form).run_sync("Choose").output
        assert chosen in (True, False) or chosen.colour in ("red", "blue")
    assert Agent(model, output_type=NativeOutput(Literal["yes", "no"])).run_sync("Is it?").output
    agent = Agent(model, output_type=ToolOutput(Choice), model_settings={"max_tokens": 200})

    @agent.tool_plain
    def roll(sides: Literal[6, 20]) -> int:
        """Roll a die."""
        return sides

    @agent.tool_plain
    async def throw() -> str:
        """Throw a coin."""
        return "heads"

    # A small model may call for ever; what is checked is that each turn is understood.
    try:
        assert agent.run_sync("Play", usage_limits=UsageLimits(request_limit=4)).output
    except UsageLimitExceeded:
        pass
    except UnexpectedModelBehavior as error:
        assert "max_tokens" in str(error) or "token" in str(error).lower(), error
    try:  # any JSON object will do for the server
        Agent(model, output_type=PromptedOutput(Choice)).run_sync("Choose")
    except UnexpectedModelBehavior as error:
        assert "output retries" in str(error)
    try:
        Agent(kind("gpt-4o", provider=provider)).run_sync("Hello")
        raise AssertionError("there is no such model")
    except ModelHTTPError as error:
        assert error.status_code == 404
