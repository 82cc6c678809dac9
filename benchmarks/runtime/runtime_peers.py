"""One way to answer in a process of its own; `runtime.py` tells it what to do.

    python benchmarks/runtime/runtime_peers.py '{"peer": "transformers", "model": ..., ...}'

It reads commands from its input, a line of JSON each, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()
# Not the first ones, which have meanings, and the same ones for everybody.
FIRST_TOKEN = 20
CONTEXT = 512


def prompt_of(tokens: int, user: int = 0) -> list[int]:
    """A prompt of so many tokens, another one for each user."""
    return [FIRST_TOKEN + (7 * at * at + 31 * at + 101 * user) % 8000 for at in range(tokens)]


class Timed:
    """The clock and the processor's time of one answer, or of a batch of them.

    Attributes:
        first, last: when the first and the last token came, in seconds since the beginning.
        new: tokens that came after the first of each answer.
        decode: seconds that they took, where the peer says so itself.
    """

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()
        self.first = self.last = self.cpu = 0.0
        self.new = 0
        self.prefill: float | None = None
        self.decode: float | None = None

    def mark(self) -> None:
        """A token of a single answer has come."""
        self.last = time.perf_counter() - self._clock
        if self.first:
            self.new += 1
        else:
            self.first = self.last

    def end(self) -> dict[str, Any]:
        """The figures."""
        return {
            "prefill": self.first if self.prefill is None else self.prefill,
            "decode": self.last - self.first if self.decode is None else self.decode,
            "wall": time.perf_counter() - self._clock,
            "cpu": time.process_time() - self._cpu,
            "new": self.new,
        }


class Transformers:
    """`transformers` and `peft` as they come, in float32."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(job["threads"])
        AutoTokenizer.from_pretrained(job["model"])
        self.torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        self.model.eval()
        if job["adapters"]:
            from peft import PeftModel

            first, *others = job["adapters"]
            self.model = PeftModel.from_pretrained(self.model, first, adapter_name="0")
            for at, folder in enumerate(others, 1):
                self.model.load_adapter(folder, adapter_name=str(at))
            self.model.eval()

    def run(self, prompts: Sequence[Sequence[int]], new: int, timed: Timed, mixed: bool) -> None:
        from transformers import LogitsProcessorList

        def watch(ids: Any, scores: Any) -> Any:
            timed.mark()
            scores[:, 4] = -self.torch.inf  # never the end
            return scores

        given: dict[str, Any] = {}
        if mixed:
            given["adapter_names"] = [str(at) for at in range(len(prompts))]
        with self.torch.inference_mode():
            ids = self.torch.tensor(prompts)
            self.model.generate(
                input_ids=ids,
                attention_mask=self.torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([watch]),
                **given,
            )


class Engine:
    """An engine of pfi."""

    def __init__(self, job: dict[str, Any]) -> None:
        from pfi.inference.engine import AdapterRef

        rows = job.get("rows", 1)
        if job["peer"] == "pfi torch":
            import torch

            from pfi.inference.torch.engine import TorchEngine
            from pfi.models.backbone import load_backbone

            torch.set_num_threads(job["threads"])
            backbone = load_backbone(job["model"])
            backbone.prompter.tokenizer.eos_token = "<|pad|>"  # never the end
            bits = "bfloat16" if job["bits"] == "bf16" else "float32"
            self.engine: Any = TorchEngine(
                backbone, capacity=max(2, rows), rank=8, max_rows=rows, precision=bits
            )
        else:
            from pfi.inference.llama.gguf_cache import open_llama

            self.engine = open_llama(
                job["model"],
                Path(job["files"]),
                job["bits"],
                slots=rows,
                length=CONTEXT,
                threads=job["threads"],
                adapters=max(2, rows),
            )
            self.engine.prompter.tokenizer.eos_token = "<|pad|>"

        def ref(folder: str) -> AdapterRef:
            def load() -> Any:
                from pfi.models.adapters import Adapter

                return Adapter.load(Path(folder))

            return AdapterRef(folder, load)

        self.refs = [ref(folder) for folder in job["adapters"]]

    def run(self, prompts: Sequence[Sequence[int]], new: int, timed: Timed, mixed: bool) -> None:
        from pfi.inference.engine import Request, Sampling

        sampling = Sampling(max_tokens=new)
        streams = [
            self.engine.generate(Request(prompt, self.refs[at] if self.refs else None, sampling))
            for at, prompt in enumerate(prompts)
        ]
        if len(streams) == 1:
            count = 0
            for piece in streams[0]:
                if piece.tokens:
                    timed.mark()
                    count += piece.tokens
            assert count == new, count
            return
        # They run side by side, so reading one after the other holds none up.
        for stream in streams:
            assert sum(piece.tokens for piece in stream) == new


class Llama:
    """llama.cpp's own server, called in the process: no pfi."""

    def __init__(self, job: dict[str, Any]) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = job["gguf"]
        params.n_ctx, params.n_parallel = CONTEXT, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
        params.cache_ram_mib, params.n_gpu_layers, params.verbosity = 0, 0, 0
        params.port, params.ui = 0, False
        infos = []
        for path in job["lora"]:
            info = xllamacpp.CommonAdapterLoraInfo()
            info.path, info.scale = path, 1.0 if len(job["lora"]) == 1 else 0.0
            infos.append(info)
        if infos:
            params.lora_adapters = infos
        self.adapters = len(infos)
        self.server = xllamacpp.Server(params)

    def run(self, prompts: Sequence[Sequence[int]], new: int, timed: Timed, mixed: bool) -> None:
        timed.prefill = timed.decode = 0.0
        for at, prompt in enumerate(prompts):
            body: dict[str, Any] = {
                "prompt": list(prompt),
                "n_predict": new,
                "temperature": 0,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
            }
            if mixed:
                body["lora"] = [
                    {"id": other, "scale": float(other == at)} for other in range(self.adapters)
                ]
            answer = self.server.handle_completions(body)
            answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
            told = answer["timings"]
            assert told["predicted_n"] == new and told["prompt_n"] == len(prompt), told
            # Its own clock begins after the first token, which comes with the prompt.
            timed.prefill += told["prompt_ms"] / 1000
            timed.decode += told["predicted_ms"] / 1000
            timed.new += new - 1


def memory() -> dict[str, int]:
    """Bytes of this process: at most so far, and of it what no file stands behind."""
    found = {}
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssAnon"):
            found[name] = 1024 * int(value.split()[0])
    return {"peak": found["VmHWM"], "own": found["RssAnon"]}


def main() -> None:
    """Answer commands until the input ends."""
    job = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    kinds: dict[str, Any] = {"transformers": Transformers, "llama.cpp": Llama}
    peer: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "start":
            peer = kinds.get(job["peer"], Engine)(job)
            peer.run([prompt_of(command["prompt"])], 1, Timed(), False)
            answer: dict[str, Any] = {"cpu": time.process_time()}
        elif command["do"] == "memory":
            answer = memory()
        else:
            users = command.get("users", 1)
            timed = Timed()
            prompts = [prompt_of(command["prompt"], user) for user in range(users)]
            peer.run(prompts, command["new"], timed, users > 1)
            answer = timed.end()
        out.write(json.dumps(answer) + "\n")
        out.flush()
    out.close()
    os._exit(0)  # servers' threads need not be waited for


if __name__ == "__main__":
    main()
