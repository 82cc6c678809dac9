#!/usr/bin/env python
"""The teacher in a GGUF file, beside the same file behind llama.cpp's own server.

    python benchmarks/augment/gguf_teacher.py --data ../shared/data/lamp --model TEACHER.gguf

Both are asked the same calls at temperature 0: the first calls of `write` for some dev users with
four records each.  Told are tokens a second, CPU seconds, the share of prompt tokens that was
known from prompts before, answers that could not be used by reason, and how many answers are equal
and how many drafts.  Figures only: no text is written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfi._util.files import write_atomic
from pfi.augment.config import AugmentConfig, TeacherConfig
from pfi.augment.drafts import Subject
from pfi.augment.forms import read_records
from pfi.augment.generators.write import write
from pfi.augment.teachers.gguf import GgufTeacher
from pfi.augment.teachers.remote import RemoteTeacher
from pfi.augment.teachers.teacher import Call, Reply, Teacher, Unusable
from pfi.datasets.lamp import read_users
from pfi.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "results" / "gguf-teacher"
SIDE_BY_SIDE = 4
SERVER = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel = int(sys.argv[2])
params.n_ctx = 4096 * params.n_parallel
params.port = 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
params.n_gpu_layers = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Run:
    """What one way of asking took.

    Attributes:
        seconds: by the clock, from the first call to the last answer.
        cpu: seconds, loading included.
        prompt: tokens of all prompts.
        cached: of these, the share that was known already; None where it is not told.
        written: tokens of all answers.
        unusable: answers that could not be used, by reason.
    """

    seconds: float
    cpu: float
    prompt: int
    cached: float | None
    written: int
    unusable: dict[str, int]


def calls_of(data: Path, tasks: Sequence[str], users: int, records: int, drafts: int) -> list[Call]:
    """The first calls of `write` for some dev users, at temperature 0."""
    config = AugmentConfig(temperature=0)
    calls = []
    for name in tasks:
        task = get_task(name)
        for user in read_users(data, task, "dev", limit=users):
            history = user.history[-records:]
            subject = Subject(task, history, (), lambda text, tokens: text[: 4 * tokens], 0)
            calls += next(write(subject, config, drafts))
    return calls


def ask(teacher: Teacher, calls: Sequence[Call]) -> tuple[list[Reply | Unusable], float]:
    """All answers, and the seconds by the clock."""
    begun = time.monotonic()
    with ThreadPoolExecutor(teacher.concurrency) as pool:
        results = [result for (result,) in pool.map(lambda call: teacher.answer([call]), calls)]
    return results, time.monotonic() - begun


def run_of(
    results: Sequence[Reply | Unusable], seconds: float, cpu: float, cached: float | None
) -> Run:
    """The figures of a way of asking."""
    unusable = Counter(str(result) for result in results if isinstance(result, Unusable))
    prompt = sum(result.usage.prompt_tokens for result in results)
    written = sum(result.usage.completion_tokens for result in results)
    return Run(seconds, cpu, prompt, cached, written, dict(unusable))


def in_process(model: Path, calls: Sequence[Call]) -> tuple[list[Reply | Unusable], Run]:
    """pfi's teacher."""
    before = cpu(resource.RUSAGE_SELF)
    teacher = GgufTeacher(TeacherConfig(kind="gguf", model=str(model), concurrency=SIDE_BY_SIDE))
    results, seconds = ask(teacher, calls)
    stats = teacher._engine.stats()
    teacher.close()
    used = cpu(resource.RUSAGE_SELF) - before
    return results, run_of(results, seconds, used, stats.cached_tokens / stats.prompt_tokens)


def by_server(
    model: Path, calls: Sequence[Call], threads: int
) -> tuple[list[Reply | Unusable], Run]:
    """llama.cpp's server, with a process of its own."""
    before = cpu(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-c", SERVER, str(model), str(SIDE_BY_SIDE), str(threads)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        url = server.stdout.readline().strip()
        settings = TeacherConfig(
            kind="openai",
            model="teacher",
            base_url=f"{url}/v1",
            concurrency=SIDE_BY_SIDE,
            timeout=3600,
        )
        results, seconds = ask(RemoteTeacher(settings), calls)
        server.stdin.close()
        server.wait()
    return results, run_of(results, seconds, cpu(resource.RUSAGE_CHILDREN) - before, None)


def cpu(who: int) -> float:
    """Seconds of both user and system."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def drafts_of(call: Call, result: Reply | Unusable) -> Any:
    """The records in an answer; None where there are none."""
    if isinstance(result, Unusable) or call.material is None:
        return None
    return read_records(call.material.task, result.text)


def page(found: dict[str, Any], command: str) -> str:
    """The results as Markdown."""
    rows = []
    for name in ("pfi, in process", "llama.cpp's server"):
        run = found[name]
        cached = "not told" if run["cached"] is None else f"{run['cached']:.0%}"
        unusable = "; ".join(f"{n} x {why}" for why, n in run["unusable"].items()) or "none"
        rows.append(
            f"| {name} | {run['seconds']:.0f} s | {run['cpu']:.0f} s | {run['prompt']:,} | "
            f"{cached} | {run['written']:,} | {run['written'] / run['cpu']:.1f} | {unusable} |"
        )
    return "\n".join(
        [
            "# A GGUF teacher in process",
            "",
            f"Made by `{command}`: {found['calls']} calls of `write` for {found['users']} dev "
            f"users a task with {found['records']} records each ({', '.join(found['tasks'])}), "
            f"{SIDE_BY_SIDE} side by side, temperature 0, {found['threads']} thread(s), "
            f"{found['model']}. CPU seconds count; the clock had other work beside it.",
            "",
            "| | clock | CPU | prompt tokens | of these known | written | written a CPU second "
            "| unusable |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Answers that are equal: {found['equal']} of {found['calls']} by their text, "
            f"{found['same_drafts']} by the records in them.",
            "",
        ]
    )


def main() -> None:
    """Ask both, compare, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of LaMP tasks")
    parser.add_argument("--model", type=Path, required=True, help="the teacher's GGUF file")
    parser.add_argument("--tasks", nargs="+", default=["LaMP_3", "LaMP_4"])
    parser.add_argument("--users", type=int, default=2, help="of each task")
    parser.add_argument("--records", type=int, default=4, help="real ones of each user")
    parser.add_argument("--drafts", type=int, default=8, help="asked for, of each user")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="without a suffix")
    options = parser.parse_args()
    os.environ["PFI_THREADS"] = str(options.threads)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    calls = calls_of(options.data, options.tasks, options.users, options.records, options.drafts)
    print(f"{len(calls)} calls", flush=True)
    own, own_run = in_process(options.model, calls)
    print(own_run, flush=True)
    other, other_run = by_server(options.model, calls, options.threads)
    print(other_run, flush=True)
    pairs = list(zip(calls, own, other, strict=True))
    found = {
        "pfi, in process": asdict(own_run),
        "llama.cpp's server": asdict(other_run),
        "calls": len(calls),
        "equal": sum(
            isinstance(a, Reply) and isinstance(b, Reply) and a.text == b.text for _, a, b in pairs
        ),
        "same_drafts": sum(
            drafts_of(call, a) == drafts_of(call, b) is not None for call, a, b in pairs
        ),
        "model": options.model.name,
        **{name: getattr(options, name) for name in ("tasks", "users", "records", "threads")},
    }
    write_atomic(options.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    command = f"python benchmarks/augment/gguf_teacher.py --model {options.model.name}"
    write_atomic(options.out.with_suffix(".md"), page(found, command))


if __name__ == "__main__":
    main()
