"""Held-back records side by side: the backbone's answer, the personal model's, what was written.

Usage: python benchmarks/backbones/side_by_side.py --profile default --task commit_message
[--count 10].  The profile (`PFI_HOME` heeded) must have a personal adapter in use that was
trained with records held back, as `pfi train` does; the latest of these are asked, greedily, with
the product's prompts and decoding.  Records are retrieved from before the asked one only.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from functools import partial

from pfi._util.threads import manage
from pfi.inference.answering import answers, combined, sampling_of
from pfi.inference.engine import Request
from pfi.memory.index import Memory
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.answer.retrieval import retrieval_of
from pfi.profile.answer.runtime import Runtime
from pfi.profile.open import open_home
from pfi.tasks import get_task


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="default")
    parser.add_argument("--task", required=True)
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    manage()
    home, task = open_home(options.profile), get_task(options.task)
    version = home.personal_adapters.active(task.name)
    if version is None:
        raise SystemExit(f"no personal adapter of {task.name} is in use; run `pfi train` first")
    held_back = set(home.personal_adapters.manifest(version).held_back)
    with home.open_vault() as vault:
        history = vault.history(task.name, origin="real")
    records = [record for record in history if fingerprint(record.id) in held_back]
    records = records[-options.count :]
    adapter = combined([(version, partial(home.personal_adapters.load, version), 1.0)])
    with closing(Runtime(home)) as runtime:
        engine, memory = runtime.engine, Memory(task, history)
        retrieval = retrieval_of(home.config, engine.prompter)
        columns: dict[str, list[str]] = {"true": [record.output for record in records]}
        for arm, used, k in (
            ("generic", None, 0),
            ("personal", adapter, 0),
            ("personal, records", adapter, retrieval.retrieve),
        ):
            requests = []
            for record in records:
                query = task.query_text(record.input)
                past = memory.search(query, k, before=record.time) if k else []
                ids = retrieval.fill(task, task.prompt(record.input), past).ids
                requests.append(Request(ids, used, sampling_of(task)))
            columns[arm] = answers(engine, task, requests)
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in zip(*columns.values(), strict=True):
        print("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in row) + " |")


if __name__ == "__main__":
    main()
