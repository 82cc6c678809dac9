"""The benchmark's page and plot: medians over repeats, ratios to the peers, bars and the limit."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pfi._util.files import write_atomic

#: Held-back loss that counts as equal quality: at most this much above the Trainer's.
TOLERANCE = 0.02
MEBI = 2**20
#: Less CPU time than this share of the wall time: other work took the CPU away.
IDLE = 0.9


class Key(NamedTuple):
    """What is measured; repeats share it."""

    model: str
    precision: str
    scenario: str
    method: str
    size: int  # users at once, or rows when decoding
    layers: str = "all"


Medians = dict[Key, dict[str, float]]


def medians(results: list[dict[str, Any]]) -> Medians:
    """Every figure's median over the repeats that succeeded, and their number as `n`."""
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        size = result.get("batch", result["working_set"])
        key = Key(*(result[name] for name in Key._fields[:4]), size, result["layers"])
        if "error" not in result:
            found[key].append(result)
    return {
        key: {
            "n": len(rows),
            **{
                name: median(row[name] for row in rows)
                for name, value in rows[0].items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            },
        }
        for key, rows in found.items()
    }


def was_starved(result: dict[str, Any]) -> bool:
    """Whether a measurement on a CPU had to wait for it."""
    if result["device"] != "cpu" or "wall_s_per_user" not in result:
        return False
    return result["cpu_s_per_user"] < IDLE * result["wall_s_per_user"]


def label(key: Key) -> str:
    names = {
        "trainer": "(a) peft + Trainer",
        "loop": "(b) peft + plain loop",
        "bank": f"bank, K={key.size}",
        "base": "base model, our generate",
        "hf": "base model, transformers",
        "peft": "peft adapter_names",
    }
    name = names[key.method]
    if key.scenario == "decode" and key.method == "bank":
        name = "bank, 16 adapters"
    return name if key.layers == "all" else f"{name}, {key.layers}"


def training_table(found: Medians, group: tuple[str, str, str]) -> list[str]:
    keys = [k for k in found if k[:3] == group and k.method != "limit"]
    order = ["trainer", "loop", "bank"]
    keys.sort(key=lambda k: (k.layers != "all", order.index(k.method), k.size))
    reference = [found.get(Key(*group, method, 1)) for method in order[:2]]
    lines = [
        "| method | ms per user-step | x (a) | x (b) | CPU s per user | users per hour "
        "| peak MiB (above loaded) | adapter KiB | train loss | held-back loss (before) "
        "| limit ms | x limit |",
        "|---" * 12 + "|",
    ]
    for key in keys:
        row = found[key]
        time = row["ms_per_user_step"]
        times = [f"{r['ms_per_user_step'] / time:.2f}" if r else "" for r in reference]
        limit = found.get(Key(*group, "limit", key.size, key.layers))
        peak = f"{row['peak_bytes'] / MEBI:.0f}"
        peak += f" ({(row['peak_bytes'] - row['loaded_bytes']) / MEBI:.0f})"
        if "peak_gpu_bytes" in row:
            peak += f"; GPU {row['peak_gpu_bytes'] / MEBI:.0f}"
        cells = [
            label(key),
            f"{time:.2f}",
            *times,
            f"{row['cpu_s_per_user']:.3f}",
            f"{row['users_per_hour']:,.0f}",
            peak,
            f"{row['adapter_bytes'] / 1024:.0f}",
            f"{row['train_loss']:.3f}",
            f"{row['held_back_loss']:.3f} ({row['held_back_loss_before']:.3f})",
            f"{limit['ms_per_user_step']:.2f}" if limit else "",
            f"{time / limit['ms_per_user_step']:.2f}" if limit else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def decoding_table(found: Medians, group: tuple[str, str, str]) -> list[str]:
    sizes = sorted({k.size for k in found if k[:3] == group})
    lines = ["| tokens/s | " + " | ".join(f"B={size}" for size in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for method in ("base", "hf", "peft", "bank"):
        cells = []
        for size in sizes:
            row = found.get(Key(*group, method, size))
            cells.append(f"{row['tokens_per_s']:.0f}" if row else "")
        lines.append(f"| {label(Key(*group, method, 0))} | " + " | ".join(cells) + " |")
    return lines


class Bar(NamedTuple):
    """A figure that has to be reached; the value is None where it was not measured."""

    name: str
    needed: str
    value: str | None
    passed: bool | None


def bars(found: Medians, model: str = "embedded", precision: str = "float32") -> list[Bar]:
    """The issue's bars, for one model and precision."""

    def get(scenario: str, method: str, size: int, figure: str, layers: str = "all") -> Any:
        return found.get(Key(model, precision, scenario, method, size, layers), {}).get(figure)

    made: list[Bar] = []

    def at_least(name: str, needed: float, above: Any, below: Any, unit: str = "x") -> None:
        value = above / below if above and below else None
        shown = None if value is None else f"{value:.2f}{unit}"
        passed = None if value is None else value >= needed
        made.append(Bar(name, f">= {needed:g}{unit}", shown, passed))

    def at_most(name: str, most: float | None, value: float | None, unit: str) -> None:
        known = most is not None and value is not None
        made.append(
            Bar(
                name,
                "" if most is None else f"<= {most:.3f} {unit}",
                f"{value:.3f} {unit}" if known else None,
                value <= most if known else None,  # type: ignore[operator]
            )
        )

    step = "ms_per_user_step"
    upper = sorted({k.layers for k in found if k[:2] == (model, precision)} - {"all"})
    for scenario, method, needed in (
        ("1x64", "trainer", 6),
        ("1x64", "loop", 3),
        ("4x64", "trainer", 3),
    ):
        name = f"{scenario}, K=16, over {'(a)' if method == 'trainer' else '(b)'}"
        peer, ours = get(scenario, method, 1, step), get(scenario, "bank", 16, step)
        at_least(name, needed, peer, ours)
    for layers in upper or ["last:N"]:
        ours = get("1x64", "bank", 16, step, layers)
        at_least(f"1x64, K=16, {layers}, over (a)", 8, get("1x64", "trainer", 1, step), ours)
    for scenario in ("1x64", "4x64"):
        peer = get(scenario, "trainer", 1, "held_back_loss")
        for layers in ["all", *(upper if scenario == "1x64" else [])]:
            ours = get(scenario, "bank", 16, "held_back_loss", layers)
            name = f"{scenario}, K=16, {layers} layers: held-back loss like (a)'s"
            at_most(name, peer and peer * (1 + TOLERANCE), ours, "nats")
    bank, base = (get("decode", m, 16, "tokens_per_s") for m in ("bank", "base"))
    at_least("decoding, B=16, share of the base model's", 0.85, bank, base, "")
    at_least("decoding, B=16, over peft's", 3, bank, get("decode", "peft", 16, "tokens_per_s"))
    for scenario in ("1x64", "4x64"):
        peer, ours = (get(scenario, m, k, "peak_bytes") for m, k in (("trainer", 1), ("bank", 16)))
        size = get(scenario, "bank", 16, "adapter_bytes")
        above = (ours - peer) / MEBI if ours and peer else None
        allowed = 16 * 4 * size / MEBI if size else None
        at_most(f"{scenario}, K=16: peak memory above (a)'s", allowed, above, "MiB")
    return made


NOTES = f"""
How to read it: figures are medians over repeats, each in a process of its own; ratios within this
run are what counts. A *user-step* is one optimiser step of one user's adapter. Wall and CPU time
run from a user's examples to the trained adapter: tokenization, a new adapter, for (a) constructing
the Trainer, and all steps; loading the model and a one-step warm-up are not in it.

- (a) and (b) wrap the loaded model with a new adapter for every user and unwrap it afterwards, with
  fused AdamW. Both have the engine's order of examples, grouped by length, and the same initial
  factors; (a) has its own linear schedule, which is lower than the engine's by one step's worth.
- The embedded backbone has had a task stage on other users' records, merged into it: personal
  adapters lie above a shared one in use. Models with random weights show speed, not quality.
- Adapters: rank 8 on all linear layers, or those of the last blocks; the same learning rate, decay,
  clipping, batch size and number of steps for all. Users beyond the different ones repeat them
  with another seed.
- *Held-back loss*: mean over users of the target tokens' cross-entropy on each user's newest
  records, in float32, computed by one function with the adapter merged into the backbone; *before*:
  without adapter. Equal quality means at most {TOLERANCE:.0%} above (a)'s.
- *Peak*: the process's largest resident size, and how much of it came after the model was loaded.
  The bar allows (a)'s peak plus K times weights, gradient and two moments of an adapter in float32;
  activations of the K users' rows are not allowed for.
- *Limit*: the backbone's linear layers as matrix products alone, forward, and backward where a
  lower adapter needs it, on the same number of tokens in the same precision and threads, the output
  layer on target positions only; with `last:N` the lower blocks forward once a record instead of
  once an epoch. Every token counts, also those of beginnings that the rows of a step share and
  that the bank computes once, so that a ratio below 1 is possible there. No attention, norms,
  adapters or optimiser. The products are listed in the JSON.
- Decoding: greedy, prompts of 56 tokens, exactly 64 new ones a row, prefill included; rows use 16
  different adapters in turn.
"""


def page_text(page: dict[str, Any]) -> str:
    """The Markdown page."""
    found = medians(page["results"])
    lines = ["# Personalizing many users: the bank beside peft", ""]
    if page["quick"]:
        lines += ["**A quick check: these figures are not to be reported.**", ""]
    sources = "; ".join(f"{name}: {source}" for name, source in page["data"].items())
    models = ", ".join(
        f"{about.get('name', name)} {about['parameters'] / 1e6:.1f} M parameters"
        f" in {about['blocks']} blocks"
        for name, about in page["models"].items()
    )
    machine = {**page["machine"], **page["versions"], "threads": page["threads"]}
    lines += [
        f"`{page['command']}`: {page.get('minutes', 0)} minutes, seed {page['seed']}.",
        "",
        f"- Machine: {', '.join(f'{k} {v}' for k, v in machine.items())}.",
        f"- Models: {models}; all but `embedded` and `real` randomly initialised.",
        f"- Data: {sources}; the task stage of `embedded`: {page['stage_steps']} steps of 8.",
        "",
    ]
    if "embedded" in page["models"]:
        lines += ["## Bars", "", "For the embedded backbone in float32.", ""]
        lines += ["| bar | needed | measured | |", "|---|---|---|---|"]
        verdict = {True: "pass", False: "**fail**", None: "not measured"}
        for name, needed, value, passed in bars(found):
            lines.append(f"| {name} | {needed} | {value or ''} | {verdict[passed]} |")
    for precision in dict.fromkeys(k.precision for k in found):
        lines += ["", f"## {precision}"]
        for group in dict.fromkeys(k[:3] for k in found if k.precision == precision):
            model, _, scenario = group
            rows = [row for k, row in found.items() if k[:3] == group]
            repeats = sorted({int(row["n"]) for row in rows})
            lines += ["", f"### {model}, {scenario}", ""]
            if scenario == "decode":
                lines += decoding_table(found, group)
            else:
                lines += [described(page, rows, scenario), "", *training_table(found, group)]
            lines += ["", f"Repeats: {' to '.join(map(str, repeats))}."]
    if starved := sum(map(was_starved, page["results"])):
        lines += [
            "",
            f"**{starved} measurements got less than {IDLE:.0%} of a CPU: the machine was not "
            "idle, and wall times are not to be reported.**",
        ]
    failed = [r for r in page["results"] if "error" in r]
    if failed:
        lines += ["", "## Failed", ""]
        for r in failed:
            size = f"B={r['batch']}" if "batch" in r else f"K={r['working_set']}, {r['layers']}"
            where = f"{r['model']}, {r['precision']}, {r['scenario']}, {r['method']}, {size}"
            lines.append(f"- {where}: {r['error']}")
    return "\n".join(lines) + "\n" + NOTES


def described(page: dict[str, Any], rows: list[dict[str, float]], scenario: str) -> str:
    first = rows[0]
    tokens = [row["tokens_a_row"] for row in rows if "tokens_a_row" in row]
    natural = f"{tokens[0]:.0f} tokens on average" if tokens else "natural length"
    batch = page["scenarios"][scenario]["batch_size"]
    steps = max(row.get("steps", 0) for row in rows)
    return (
        f"{int(first['people'])} different users with {int(first['examples'])} examples each "
        f"({page['held_back']} more held back), {page['epochs']:g} epochs = {steps:.0f} steps of "
        f"{batch} x {natural}."
    )


def plot(found: Medians, path: Path) -> None:
    """Milliseconds per user-step by method, the limit as a mark on each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [k[:3] for k in found if k.scenario != "decode" and k.method != "limit"]
    shown = list(dict.fromkeys(names))
    if not shown:
        return
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    colours = {"trainer": "#d55e00", "loop": "#e69f00", "bank": "#0072b2"}
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, group in zip(axes.flat, shown, strict=False):
        keys = [k for k in found if k[:3] == group and k.method in colours]
        keys.sort(key=lambda k: (k.layers != "all", list(colours).index(k.method), k.size))
        values = [found[k]["ms_per_user_step"] for k in keys]
        bars_ = axis.barh(
            [label(k) for k in keys],
            values,
            color=[colours[k.method] for k in keys],
            alpha=0.9,
        )
        axis.bar_label(bars_, [f"{value:.1f}" for value in values], fontsize=8, padding=3)
        for place, key in enumerate(keys):
            limit = found.get(Key(*group, "limit", key.size, key.layers))
            if limit:
                x = limit["ms_per_user_step"]
                axis.plot([x, x], [place - 0.4, place + 0.4], color="black", linewidth=1.5)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
        axis.set_title(f"{group[0]}, {group[2]}, {group[1]}", fontsize=10)
        axis.set_xlabel("ms per user-step (line: limit)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_page(page: dict[str, Any], to: Path) -> str:
    """Write `<to>.md` and `<to>.png`; returns the text."""
    text = page_text(page)
    write_atomic(to.with_suffix(".md"), text)
    plot(medians(page["results"]), to.with_suffix(".png"))
    return text
