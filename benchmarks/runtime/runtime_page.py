"""The page and the plot of `runtime.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BAR = 0.9
MODELS = {
    "embedded": "The embedded backbone",
    "m135": "SmolLM2-135M's shape, random weights",
    "q500": "Qwen2.5-0.5B's shape, random weights",
}
Row = Mapping[str, Any]


def rate(processor: Mapping[str, float], size: float) -> float:
    """Bytes a second that the memory, or the cache, gives for arrays of this size."""
    from pfi.profile.plan.machine import Processor

    return Processor(**processor).rate(round(size))


def limit(results: Row, row: Row) -> float:
    """Tokens a second if a token only took the time of reading what it needs."""
    sizes = results["sizes"][row["model"]]
    size = sizes["token"][row["bits"]] + (sizes["adapter"] if row["lora"] else 0)
    return rate(results["processor"][str(row["threads"])], size) / size


def page(results: Row) -> str:
    """The page in Markdown."""
    setting, fast = results["setting"], results["processor"]["2"]
    parts = [
        "# Speed, memory and start-up of the engines",
        "",
        f"Made by `{setting['command']}` on {setting['date']} in {setting['seconds']:.0f} s, on a "
        f"machine with 2 cores of an AMD EPYC and 24 GiB; load at the end: {setting['load']:.1f}. "
        + setting["note"],
        "",
        f"One answer at a time to a prompt of {setting['prompt']} tokens, greedy. Every row is a "
        f"process of its own; they take turns, and of {setting['rounds']} short repetitions the "
        "fastest counts, as the machine's other work only ever makes one slower. *CPU s* is the "
        "processor time of the cheapest repetition. *Start* is from the process's start to the "
        "first token: imports, loading, reading the prompt. *Peak* is the highest resident memory, "
        "mapped files included; *own* what no file stands behind, at the end. The adapter has rank "
        "8 on all linear layers. Plain llama.cpp is the server within `xllamacpp`, called in its "
        "process, by its own clock, without any code of pfi; its files are the ones pfi wrote. "
        "transformers decodes with `generate`, peft's adapter unmerged. The vocabulary has "
        "8,192 tokens in all three models, fewer than the originals'.",
        "",
        f"*Of limit*: the speed beside that of only reading the weights, the adapter, the keys and "
        f"values. Reading was measured in the same run: {fast['read'] / 1e9:.0f} GB/s from memory "
        f"and {fast['cached'] / 1e9:.0f} GB/s within 16 MiB, which the caches hold, with two "
        f"threads ({results['processor']['1']['read'] / 1e9:.0f} with one); float32 products run "
        f"at {fast['flops'] / 1e9:.0f} GFLOP/s.",
        "",
        "## Bars",
        "",
        *bars(results),
    ]
    groups = dict.fromkeys((row["model"], row["threads"]) for row in results["alone"])
    for model, threads in groups:
        size = results["sizes"][model]["parameters"] / 1e6
        words = "1 thread" if threads == 1 else f"{threads} threads"
        parts += ["", f"## {MODELS[model]} ({size:.0f} M), {words}", ""]
        parts += table(results, [r for r in results["alone"] if group(r) == (model, threads)])
    if results["mixed"]:
        parts += ["", "## Many users, each with an adapter", "", *mixed(results)]
    told = [row for row in results["alone"] if "predicted" in row]
    parts += ["", "## What `pfi plan --quick` says of it", "", *prediction(told)]
    parts += ["", "Versions: " + setting["versions"] + ".", ""]
    return "\n".join(parts)


def group(row: Row) -> tuple[str, int]:
    """What one table is about."""
    return row["model"], row["threads"]


def table(results: Row, rows: Sequence[Row]) -> list[str]:
    """One model's table."""
    head = [
        "answers with", "weights", "adapter", "decode tok/s", "of limit", "prefill tok/s",
        "CPU s", "start s", "start CPU s", "peak MiB", "own MiB",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | --- |" + " ---: |" * (len(head) - 3)]
    for row in rows:
        cells = [
            row["peer"],
            row["bits"],
            "yes" if row["lora"] else "",
            f"{row['decode']:.1f}",
            f"{row['decode'] / limit(results, row):.0%}",
            f"{row['prefill']:.0f}",
            f"{row['cpu']:.2f}",
            f"{row['start']:.1f}",
            f"{row['start_cpu']:.1f}",
            f"{row['peak'] / 2**20:.0f}",
            f"{row['own'] / 2**20:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def bars(results: Row) -> list[str]:
    """Whether what was promised holds."""
    pairs = shares(results)
    met = sum(share >= BAR for _, share in pairs)
    worst = min(pairs, key=lambda pair: pair[1])
    lines = [
        f"- The llama.cpp engine decodes at {BAR:.0%} of plain llama.cpp's speed or more: "
        f"**{'met' if met == len(pairs) else 'missed'}**, in {met} of {len(pairs)} rows "
        f"(least: {worst[1]:.0%}, {worst[0]}).",
    ]
    lines += [f"  - {name}: {share:.0%}" for name, share in pairs if share < BAR]
    spent = shares(results, "cpu")
    least = min(spent, key=lambda pair: pair[1])
    within = sum(share >= BAR for _, share in spent)
    lines.append(
        f"- The same in processor time, prompt and answer, which other work disturbs less: "
        f"{within} of {len(spent)} rows (least: {least[1]:.0%}, {least[0]})."
    )
    for users in dict.fromkeys(row["users"] for row in results["mixed"]):
        found = {
            (row["peer"], row["bits"]): row for row in results["mixed"] if row["users"] == users
        }
        for bits in ("f32", "bf16"):
            own = found["pfi torch", bits]["rate"]
            for other in ("f16", "q8_0"):
                plain = found["llama.cpp", other]["rate"]
                less = found["llama.cpp", other]["cpu"] / found["pfi torch", bits]["cpu"]
                lines.append(
                    f"- {users} users' batch on the bank ({bits}) is faster than llama.cpp "
                    f"({other}) one at a time: **{'met' if own > plain else 'missed'}**, "
                    f"{own:.0f} against {plain:.0f} tokens/s ({less:.1f} times the tokens a CPU "
                    "second)."
                )
    return lines


def shares(results: Row, what: str = "decode") -> list[tuple[str, float]]:
    """The llama.cpp engine's decoding speed, or its ``cpu``, beside plain llama.cpp's, by row."""
    found = {
        (group(row), row["bits"], row["lora"], row["peer"]): row[what] for row in results["alone"]
    }
    pairs = []
    for (place, bits, lora, peer), plain in found.items():
        if peer == "llama.cpp":
            own = found[place, bits, lora, "pfi llama.cpp"]
            words = f"{place[0]} {bits}{' with adapter' if lora else ''}, {place[1]} thread(s)"
            pairs.append((words, own / plain if what == "decode" else plain / own))
    return pairs


def mixed(results: Row) -> list[str]:
    """The table of many users."""
    setting = results["setting"]
    lines = [
        f"{MODELS['m135']}, 2 threads: every user sends a prompt of {setting['mixed_prompt']} "
        f"tokens at once and gets {setting['mixed_new']}; all tokens of all answers by the time "
        "from the first request to the last token. Adapters are loaded before. The bank decodes "
        "all rows in one pass; peft too, by `adapter_names`; llama.cpp has one adapter at a time, "
        "so that users take turns.",
        "",
        "| users | answers with | weights | tokens/s, all users | tokens/CPU s | peak MiB |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for row in results["mixed"]:
        lines.append(
            f"| {row['users']} | {row['peer']} | {row['bits']} | {row['rate']:.0f} | "
            f"{row['users'] * setting['mixed_new'] / row['cpu']:.0f} | "
            f"{row['peak'] / 2**20:.0f} |"
        )
    return lines


def prediction(rows: Sequence[Row]) -> list[str]:
    """The table of the planner's predictions."""
    lines = [
        "Predicted from the sizes in the files' headers and the machine's speed in this run, "
        "without trying the model; two threads, with an adapter. The constants of `predict.py` "
        "were set by such a run on this kind of machine: this shows how well the formula fits.",
        "",
        "| model | answers with | weights | predicted tok/s | measured | ratio |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['peer']} | {row['bits']} | {row['predicted']:.1f} | "
            f"{row['decode']:.1f} | {row['predicted'] / row['decode']:.2f} |"
        )
    return lines


def plot(results: Row, path: Path) -> None:
    """Decoding speed by peer, a panel for each model, the limit behind it; many users last."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(group(row) for row in results["alone"]))
    count = len(groups) + bool(results["mixed"])
    figure, panels = plt.subplots(1, count, figsize=(4.6 * count, 4.2), squeeze=False)
    for (model, threads), panel in zip(groups, panels[0], strict=False):
        rows = [r for r in results["alone"] if group(r) == (model, threads)]
        names = list(dict.fromkeys(f"{row['peer']} {row['bits']}" for row in rows))[::-1]
        for lora, shift in ((0, 0.2), (1, -0.2)):
            chosen = {f"{r['peer']} {r['bits']}": r for r in rows if r["lora"] == lora}
            places = [at + shift for at in range(len(names))]
            panel.barh(
                places,
                [limit(results, chosen[name]) for name in names],
                height=0.36, color="lightgray", label="limit of bandwidth" if lora else None,
            )  # fmt: skip
            panel.barh(
                places,
                [chosen[name]["decode"] for name in names],
                height=0.36,
                color=["tab:blue" if name.startswith("pfi") else "tab:gray" for name in names],
                alpha=0.6 if lora else 1.0,
            )
        fastest = max(row["decode"] for row in rows)
        panel.set_xlim(0, 2.2 * fastest)
        panel.set_yticks(range(len(names)), names)
        panel.set_xlabel("decode tokens/s (pale: with adapter; light: limit)")
        panel.set_title(f"{model}, {threads} thread{'s' if threads > 1 else ''}")
    if results["mixed"]:
        panel = panels[0][-1]
        rows = results["mixed"][::-1]
        names = [f"{row['users']} users, {row['peer']} {row['bits']}" for row in rows]
        colours = ["tab:blue" if row["peer"].startswith("pfi") else "tab:gray" for row in rows]
        panel.barh(names, [row["rate"] for row in rows], color=colours)
        panel.set_xlabel("tokens/s of all users")
        panel.set_title("m135, an adapter each")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
