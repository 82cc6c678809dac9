"""packages: llm"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

home = Path(os.environ["LLM_USER_PATH"])
home.mkdir(exist_ok=True)
(home / "extra-openai-models.yaml").write_text(
    f"""
- model_id: mine
  model_name: ann
  api_base: {os.environ["BASE"]}
  api_key_name: pfi
  supports_tools: true
  supports_schema: true
- model_id: raw
  model_name: ann
  api_base: {os.environ["BASE"]}
  api_key_name: pfi
  completion: true
"""
)
command = str(Path(sys.executable).parent / "llm")
SCHEMA = '{"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}'


def run(*more: str, fails: bool = False) -> str:
    line = [command, "-m", "mine", "--key", os.environ["KEY"], *more]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert bool(done.returncode) == fails, done.stderr
    return done.stderr if fails else done.stdout


run("Hello", "-o", "max_tokens", "5", "-o", "presence_penalty", "0.1", "-o", "seed", "3")
run("Hello", "-o", "max_tokens", "5", "--no-stream", "-s", "Be brief.")
run("And then?", "-c", "-o", "max_tokens", "5")  # goes on with the talk before
assert json.loads(run("Hello", "--schema", SCHEMA))["x"] in (1, 2)
run("Hello", "-o", "json_object", "1", "-o", "max_tokens", "30")
function = "def pick(number: int) -> str:\n    'Pick a number.'\n    return str(number)"
run("Pick one", "--functions", function, "-o", "max_tokens", "30")
assert "temperature" in run("Hello", "-o", "temperature", "9", fails=True)
raw = [command, "-m", "raw", "--key", os.environ["KEY"], "Hello", "-o", "max_tokens", "5"]
raw += ["-o", "logprobs", "2"]
subprocess.run(raw, check=True, capture_output=True, stdin=subprocess.DEVNULL)

import llm  # noqa: E402 - after the folder of its settings is there

os.environ["LLM_USER_PATH"] = str(home)
model = llm.get_model("mine")
model.key = os.environ["KEY"]


def pick(number: int) -> str:
    """Pick a number."""
    return str(number)


chain = model.chain("Pick one", tools=[pick], options={"max_tokens": 20})
assert [response.text() is not None for response in chain.responses()]
talk = model.conversation()
talk.prompt("Hello", max_tokens=5).text()
assert talk.prompt("Again", max_tokens=5).usage().output


async def later() -> None:
    """The same without waiting."""
    other = llm.get_async_model("mine")
    other.key = os.environ["KEY"]
    assert [part async for part in other.prompt("Hello", max_tokens=5)]


asyncio.run(later())
