"""packages: openai-agents"""

import asyncio
import os
from typing import Any, Literal

import openai
from agents import (
    Agent,
    ModelBehaviorError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=os.environ["BASE"], api_key=os.environ["KEY"])


class Choice(BaseModel):
    """What is chosen."""

    colour: Literal["red", "blue"]


@function_tool
def throw(heads: bool) -> str:
    """Throw a coin."""
    return "heads"


@function_tool
def roll(sides: Literal[6, 20]) -> str:
    """Roll a die."""
    return str(sides)


async def ran(agent: Agent, asked: Any, *, stream: bool = False) -> Any:
    """What an agent comes to; None where the limit cut a small model short, as the client says."""
    try:
        if not stream:
            return await Runner.run(agent, asked, max_turns=3)
        result = Runner.run_streamed(agent, asked, max_turns=3)
        assert [event async for event in result.stream_events()]
        return result
    except ModelBehaviorError as error:
        assert "max_output_tokens" in str(error), error
        return None


async def main() -> None:
    """What a user of agents does, by both APIs."""
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        model = kind("ann", client)
        brief = ModelSettings(max_tokens=40)
        plain = Agent(name="a", instructions="Be brief.", model=model, model_settings=brief)
        if (first := await ran(plain, "Hello")) is not None:
            assert first.context_wrapper.usage.output_tokens
            await ran(plain, [*first.to_input_list(), {"role": "user", "content": "So?"}])
        await ran(plain, "Hello", stream=True)
        shaped = Agent(name="b", model=model, output_type=Choice)
        for stream in (False, True):
            chosen = await ran(shaped, "Choose", stream=stream)
            assert chosen.final_output.colour in ("red", "blue")
        # Calls and their results, turn by turn.
        must = ModelSettings(max_tokens=400, tool_choice="required", parallel_tool_calls=True)
        player = Agent(name="c", model=model, tools=[throw, roll], model_settings=must)
        for stream in (False, True):
            played = await ran(player, "Play", stream=stream)
            if played is not None:
                kinds = {item.type for item in played.new_items}
                assert kinds >= {"tool_call_item", "tool_call_output_item"}
        # One agent hands over to another.
        host = Agent(name="d", model=model, handoffs=[plain], model_settings=must)
        handed = await ran(host, "Hand over")
        assert handed is None or handed.last_agent is plain
        try:
            await Runner.run(Agent(name="e", model=kind("gpt-4o", client)), "Hello")
            raise AssertionError("there is no such model")
        except openai.NotFoundError:
            pass


asyncio.run(main())
