"""Clients that others wrote, each in an environment of its own, against a real server.

The first to third thing that a user of each does: an answer, a stream, a tool, a schema.  Needs
the network (the package registries); skipped with a reason without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_world import World, make_homes, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PYTHON = {
    "openai": (
        ["openai"],
        """
import os, openai
from pydantic import BaseModel, Field
client = openai.OpenAI(base_url=os.environ["BASE"], api_key=os.environ["KEY"])
talk = [{"role": "user", "content": "Hello"}]
assert client.chat.completions.create(model="ann", messages=talk, max_tokens=5).usage
parts = client.chat.completions.create(model="ann", messages=talk, max_tokens=5, stream=True,
                                       stream_options={"include_usage": True})
assert list(parts)[-1].usage.completion_tokens
class Point(BaseModel):
    x: int = Field(ge=0, le=9)
got = client.chat.completions.parse(model="ann", messages=talk, response_format=Point)
assert 0 <= got.choices[0].message.parsed.x <= 9
got = client.responses.parse(model="ann", input="Hello", text_format=Point)
assert 0 <= got.output_parsed.x <= 9
assert client.responses.create(model="ann", input="Hello", max_output_tokens=5).output
assert client.completions.create(model="ann", prompt="Hello", max_tokens=5, echo=True).choices
assert client.models.list().data[0].id == "ann"
""",
    ),
    "llm": (
        ["llm"],
        """
import os, pathlib, subprocess, sys
home = pathlib.Path(os.environ["LLM_USER_PATH"]); home.mkdir(exist_ok=True)
(home / "extra-openai-models.yaml").write_text(
    "- model_id: mine\\n  model_name: ann\\n  api_base: " + os.environ["BASE"] +
    "\\n  supports_tools: true\\n  supports_schema: true\\n")
llm = [str(pathlib.Path(sys.executable).parent / "llm"), "-m", "mine", "--key", os.environ["KEY"]]
def run(*more):
    done = subprocess.run([*llm, *more], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout
run("Hello", "-o", "max_tokens", "5", "-o", "presence_penalty", "0.1", "-o", "seed", "3")
run("Hello", "-o", "max_tokens", "5", "--no-stream", "-s", "Be brief.")
import json
found = json.loads(run("Hello", "--schema", '{"type":"object","properties":{"x":{"enum":[1,2]}},'
                       '"required":["x"]}'))
assert found["x"] in (1, 2)
""",
    ),
    "langchain-openai": (
        ["langchain-openai"],
        """
import os
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
model = ChatOpenAI(base_url=os.environ["BASE"], api_key=os.environ["KEY"], model="ann",
                   max_tokens=60, frequency_penalty=0.1)
model.invoke([SystemMessage("Say hi")])
assert list(model.stream("Hello"))
class Point(BaseModel):
    "A point."
    x: int = Field(ge=0, le=9)
for method in ("json_schema", "function_calling"):
    got = model.with_structured_output(Point, method=method).invoke("Hello")
    assert 0 <= got.x <= 9
@tool
def pick(number: int) -> str:
    "Pick a number."
    return str(number)
bound = model.bind_tools([pick], tool_choice="pick")
asked = bound.invoke("Pick one")
(call,) = asked.tool_calls
talk = [HumanMessage("Pick one"), asked, ToolMessage("7", tool_call_id=call["id"])]
assert model.invoke(talk).usage_metadata["output_tokens"]
""",
    ),
    "pydantic-ai": (
        ["pydantic-ai-slim[openai]"],
        """
import os
from typing import Literal
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
provider = OpenAIProvider(base_url=os.environ["BASE"], api_key=os.environ["KEY"])
class Choice(BaseModel):
    colour: Literal["red", "blue"]
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind("ann", provider=provider)
    assert Agent(model, model_settings={"max_tokens": 9}).run_sync("Hello").usage
    for form in (NativeOutput(Choice), ToolOutput(Choice)):
        found = Agent(model, output_type=form).run_sync("Choose").output
        assert found.colour in ("red", "blue")
""",
    ),
    "instructor": (
        ["instructor"],
        """
import os, instructor, openai
from typing import Literal
from pydantic import BaseModel
class Choice(BaseModel):
    colour: Literal["red", "blue"]
plain = openai.OpenAI(base_url=os.environ["BASE"], api_key=os.environ["KEY"])
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(plain, mode=mode)
    found = client.chat.completions.create(
        model="ann", response_model=Choice, messages=[{"role": "user", "content": "Choose"}])
    assert found.colour in ("red", "blue")
""",
    ),
    "litellm": (
        ["litellm"],
        """
import os, litellm
ask = dict(model="openai/ann", api_base=os.environ["BASE"], api_key=os.environ["KEY"],
           messages=[{"role": "user", "content": "Hello"}], max_tokens=5)
assert litellm.completion(**ask).usage.total_tokens
assert list(litellm.completion(**ask, stream=True))
ask.pop("messages"); ask.pop("max_tokens")
assert litellm.responses(**ask, input="Hello", max_output_tokens=5).output
""",
    ),
    "llama-index": (
        ["llama-index-llms-openai-like"],
        """
import os
from llama_index.llms.openai_like import OpenAILike
from llama_index.core.llms import ChatMessage
llm = OpenAILike(model="ann", api_base=os.environ["BASE"], api_key=os.environ["KEY"],
                 is_chat_model=True, max_tokens=5)
assert llm.chat([ChatMessage(role="user", content="Hello")]).raw
assert list(llm.stream_chat([ChatMessage(role="user", content="Hello")]))
""",
    ),
    "openai-agents": (
        ["openai-agents"],
        """
import os
from openai import AsyncOpenAI
from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client
from agents import OpenAIChatCompletionsModel, OpenAIResponsesModel, set_tracing_disabled
set_tracing_disabled(True)
client = AsyncOpenAI(base_url=os.environ["BASE"], api_key=os.environ["KEY"])
@function_tool
def pick(heads: bool) -> str:
    "Throw a coin."
    return "heads"
for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    agent = Agent(name="a", instructions="Be brief.", model=kind("ann", client), tools=[pick],
                  model_settings=ModelSettings(max_tokens=60, tool_choice="required"))
    assert Runner.run_sync(agent, "Throw", max_turns=3).new_items
""",
    ),
    "ollama": (
        ["ollama"],
        """
import os, ollama
client = ollama.Client(os.environ["ROOT"], headers={"Authorization": "Bearer " + os.environ["KEY"]})
talk = [{"role": "user", "content": "Hello"}]
assert client.list().models[0].model == "ann"
assert client.chat("ann", messages=talk, options={"num_predict": 5}).done
assert list(client.chat("ann", messages=talk, options={"num_predict": 5}, stream=True))[-1].done
form = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}
import json
assert json.loads(client.generate("ann", "Hello", format=form).response)["x"] in (1, 2)
assert client.show("ann").capabilities
""",
    ),
}

NODE = {
    "openai": (
        ["openai"],
        """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.env.BASE, apiKey: process.env.KEY});
const ask = {model: "ann", max_tokens: 5, messages: [{role: "user", content: "Hello"}]};
if (!(await client.chat.completions.create(ask)).usage) throw new Error("no usage");
let chunks = 0;
for await (const _ of await client.chat.completions.create({...ask, stream: true})) chunks++;
if (chunks < 2) throw new Error("no stream");
const reply = await client.responses.create({model: "ann", input: "Hello", max_output_tokens: 5});
if (!reply.output.length) throw new Error("no output");
""",
    ),
    "vercel": (
        ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"],
        """
import {generateText, streamText, generateObject} from "ai";
import {createOpenAI} from "@ai-sdk/openai";
import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {z} from "zod";
const set = {baseURL: process.env.BASE, apiKey: process.env.KEY};
const like = createOpenAICompatible({...set, name: "pfi", supportsStructuredOutputs: true});
const schema = z.object({colour: z.enum(["red", "blue"])});
for (const model of [createOpenAI(set)("ann"), createOpenAI(set).chat("ann"), like("ann")]) {
  await generateText({model, prompt: "Hello", maxOutputTokens: 20});
  let text = 0;
  const stream = streamText({model, prompt: "Hello", maxOutputTokens: 20});
  for await (const _ of stream.fullStream) text++;
  if (text < 2) throw new Error("no stream");
  const {object} = await generateObject({model, schema, prompt: "Choose"});
  if (!["red", "blue"].includes(object.colour)) throw new Error("no colour");
}
""",
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server over the embedded model: it writes nonsense, held to whatever is asked for."""
    with serving(make_homes(tmp_path_factory.mktemp("homes"), ["ann"]), None) as world:
        yield world


def run(folder: Path, world: World, *command: str) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"BASE": world.url, "ROOT": world.root, "KEY": world.tokens["ann"]}
    environment |= {"LLM_USER_PATH": str(folder / "llm"), "OPENAI_API_KEY": world.tokens["ann"]}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def installed(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        last = (done.stderr.strip() or "no reason").splitlines()[-1]
        pytest.skip(f"the client cannot be installed: {last[:200]}")


@pytest.mark.parametrize("name", PYTHON)
def test_a_python_client(world: World, tmp_path: Path, name: str) -> None:
    packages, script = PYTHON[name]
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    installed(python, "-m", "pip", "install", "-q", *packages, folder=tmp_path)
    (tmp_path / "client.py").write_text(script)
    run(tmp_path, world, python, "client.py")


@pytest.mark.parametrize("name", NODE)
def test_a_javascript_client(world: World, tmp_path: Path, name: str) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are not installed")
    packages, script = NODE[name]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    installed(npm, "install", "--silent", "--no-audit", "--no-fund", *packages, folder=tmp_path)
    (tmp_path / "client.js").write_text(script)
    run(tmp_path, world, node, "client.js")
