"""packages: llama-index-llms-openai-like llama-index-embeddings-openai-like"""

import asyncio
import os

from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

where = {"api_base": os.environ["BASE"], "api_key": os.environ["KEY"]}
llm = OpenAILike(model="ann", **where, is_chat_model=True, max_tokens=40)
talk = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello")]


class Point(BaseModel):
    """A point."""

    x: int = Field(ge=0, le=9)


def pick(number: int) -> str:
    """Pick a number."""
    return str(number)


assert llm.chat(talk).raw
assert list(llm.stream_chat(talk))
assert llm.complete("Hello").raw and list(llm.stream_complete("Hello"))
text = OpenAILike(model="ann", **where, is_chat_model=False, max_tokens=5)
assert text.complete("Hello").raw and list(text.stream_complete("Hello"))

able = OpenAILike(
    model="ann",
    **where,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    max_tokens=60,
)
tools = [FunctionTool.from_defaults(pick)]
asked = able.chat_with_tools(tools, user_msg="Pick two", tool_required=True)
calls = able.get_tool_calls_from_response(asked)
assert calls and all(isinstance(call.tool_kwargs["number"], int) for call in calls)
results = [
    ChatMessage(role="tool", content="7", additional_kwargs={"tool_call_id": call.tool_id})
    for call in calls
]
assert able.chat([*talk, asked.message, *results]).raw
parts = list(able.stream_chat_with_tools(tools, user_msg="Pick two", tool_required=True))
assert able.get_tool_calls_from_response(parts[-1])
shaped = able.structured_predict(Point, PromptTemplate("Put {it}"), it="tea")
assert 0 <= shaped.x <= 9
assert 0 <= able.as_structured_llm(Point).chat(talk).raw.x <= 9
program = FunctionCallingProgram.from_defaults(
    output_cls=Point, prompt_template_str="Put it", llm=able, tool_required=True
)
assert 0 <= program().x <= 9
vectors = OpenAILikeEmbedding(model_name="minilm", **where)
assert len(vectors.get_text_embedding_batch(["a", "b"])) == 2


async def later() -> None:
    """Without waiting."""
    assert (await llm.achat(talk)).raw
    async for _ in await llm.astream_chat(talk):
        break
    assert (await able.astructured_predict(Point, PromptTemplate("Put it"))).x in range(10)


asyncio.run(later())
