"""The planner: limits are kept, more room is never worse, and its predictions hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pfi._util.memory import cgroup_memory
from pfi.cli import plan as plan_command
from pfi.cli.common import OneLineErrors
from pfi.errors import BackboneError, ConfigError
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.open import create_home, open_home
from pfi.profile.plan.machine import (
    CACHED,
    LARGE,
    Gpu,
    Machine,
    PowerMeter,
    Processor,
)
from pfi.profile.plan.planner import LLAMA_KINDS, WAYS, Limits, Plan, plan
from pfi.profile.plan.planning import apply_plan
from pfi.profile.plan.predict import Measured, Model, Work, answering, training
from pfi.profile.plan.shapes import ModelShape, Tensor, read_header, read_shape

MIB, GIB = 1 << 20, 1 << 30


def processor(read: float = 30e9, flops: float = 150e9) -> Processor:
    return Processor(read, 3 * read, 0.6 * read, 0.3 * read, flops, 2 * flops)


def machine(**changes: object) -> Machine:
    usual = Machine(16 * GIB, 8 * GIB, 100 * GIB, 4, 4, processor(), 300 * MIB, llama_cpp=True)
    return replace(usual, **changes)  # type: ignore[arg-type]


def shape(hidden: int = 576, layers: int = 30, vocabulary: int = 8192) -> ModelShape:
    wide = 3 * hidden
    block = {
        **{f"self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"},
        **{f"mlp.{x}_proj.weight": (wide, hidden) for x in ("gate", "up")},
        "mlp.down_proj.weight": (hidden, wide),
        "input_layernorm.weight": (hidden,),
    }
    tensors = [Tensor("model.embed_tokens.weight", (vocabulary, hidden))]
    tensors += [
        Tensor(f"model.layers.{at}.{name}", size)
        for at in range(layers)
        for name, size in block.items()
    ]
    file = 2 * sum(tensor.numbers for tensor in tensors)
    return ModelShape(
        "invented", "llama", tuple(tensors), layers, hidden, wide, 8, 8, hidden // 8, vocabulary,
        2048, True, False, file,
    )  # fmt: skip


machines = st.builds(
    machine,
    memory_free=st.integers(64 * MIB, 32 * GIB),
    disk_free=st.sampled_from([0, 100 * MIB, 100 * GIB]),
    speed=st.builds(processor, st.floats(1e9, 1e12), st.floats(1e9, 1e13)),
    base=st.integers(10 * MIB, 500 * MIB),
    llama_cpp=st.booleans(),
    battery=st.sampled_from([None, False, True]),
    battery_wh=st.sampled_from([None, 1.0, 50.0]),
)
works = st.builds(
    Work,
    examples=st.integers(1, 5000),
    tokens=st.integers(100, 10**6),
    longest=st.integers(16, 640),
    shared=st.booleans(),
)
models = st.builds(
    Model,
    st.builds(shape, st.sampled_from([64, 256, 576, 2048]), st.sampled_from([2, 12, 30])),
    works,
    st.none() | st.builds(Measured, st.floats(0.1, 500), st.floats(1, 5000), st.floats(1, 5000)),
    st.sampled_from([1, 8, 64]),
)
limit_sets = st.builds(
    Limits,
    memory=st.none() | st.integers(64 * MIB, 32 * GIB),
    seconds=st.none() | st.floats(1, 1e5),
    energy=st.none() | st.floats(0.01, 100),
    watts=st.none() | st.floats(1, 300),
)


def made(machine: Machine, model: Model, limits: Limits) -> Plan | None:
    try:
        return plan(machine, model, limits)
    except ConfigError:
        return None


@settings(max_examples=100, deadline=None)
@given(machines, models, limit_sets)
def test_predicted_figures_keep_the_limits(machine: Machine, model: Model, limits: Limits) -> None:
    found = made(machine, model, limits)
    if found is None:
        return
    room = min(machine.memory_free, limits.memory or machine.memory_free)
    chosen, trained = found.chosen, found.training
    # Asked of the predictions anew, not of the plan.
    figures = answering(machine, model, chosen.engine, chosen.bits, chosen.context, chosen.rank)
    assert figures.memory <= room and figures.disk <= machine.disk_free
    assert chosen.engine == "torch" or machine.llama_cpp
    if trained.here:
        blocks = trained.blocks or model.shape.layers
        costs = training(machine, model, trained.rank, blocks)
        assert costs.memory <= room
        assert limits.seconds is None or costs.seconds <= limits.seconds
        watts = limits.watts or 30
        assert limits.energy is None or watts * costs.seconds / 3600 <= limits.energy * 1.000001
        assert not machine.battery or limits.energy is not None or machine.battery_wh


@settings(max_examples=100, deadline=None)
@given(machines, models, limit_sets, st.floats(1.0, 20.0))
def test_more_memory_never_gives_a_worse_plan(
    machine: Machine, model: Model, limits: Limits, factor: float
) -> None:
    less = made(machine, model, limits)
    more = made(
        replace(machine, memory_free=round(machine.memory_free * factor)),
        model,
        limits.model_copy(update={"memory": limits.memory and round(limits.memory * factor)}),
    )
    if less is not None:
        assert more is not None and more.worth >= less.worth


@settings(max_examples=60, deadline=None)
@given(machines, models, limit_sets, st.floats(1.0, 20.0))
def test_more_time_and_energy_never_stop_a_training(
    machine: Machine, model: Model, limits: Limits, factor: float
) -> None:
    less = made(machine, model, limits)
    wider = {
        "seconds": limits.seconds and limits.seconds * factor,
        "energy": limits.energy and limits.energy * factor,
    }
    more = made(machine, model, limits.model_copy(update=wider))
    if less is not None and less.training.here:
        assert more is not None and more.training.here
        assert (more.training.blocks or 99) >= (less.training.blocks or 99)


@settings(max_examples=60, deadline=None)
@given(machines, models)
def test_what_a_refusal_says_is_needed_suffices(machine: Machine, model: Model) -> None:
    machine = replace(machine, memory_free=32 * GIB, disk_free=100 * GIB)
    with pytest.raises(ConfigError, match="cannot answer within 9 MiB") as refused:
        plan(machine, model, Limits(memory=9 * MIB))
    needed = re.search(r"needs ([\d.]+) ([MG]iB) of memory", str(refused.value))
    assert needed
    unit = {"MiB": MIB, "GiB": GIB}[needed[2]]
    plan(machine, model, Limits(memory=round(float(needed[1]) * unit)))
    if unit == MIB:
        with pytest.raises(ConfigError):
            plan(machine, model, Limits(memory=(int(needed[1]) - 1) * unit))


def test_the_nearest_weights_that_are_fast_enough_are_chosen() -> None:
    model = Model(shape(), Work())
    assert plan(machine(), model, Limits()).chosen.bits == "f16"
    slow = machine(speed=processor(3e9, 100e9))
    found = plan(slow, model, Limits(speed=12))
    assert found.chosen.bits in ("q8_0", "q4_k_m")
    assert "12 tokens a second are wanted" in found.reasons["engine"]
    only = plan(machine(llama_cpp=False), model, Limits())
    assert only.chosen.engine == "torch"
    assert {o.refused for o in only.options if o.engine == "llama.cpp"} == {
        "not installed: pip install 'pfi[llama]'"
    }


def test_a_small_memory_shortens_the_context_and_says_so() -> None:
    model = Model(shape(), Work())
    whole = plan(machine(), model, Limits())
    assert whole.chosen.context == 2048 and whole.reasons["context"].endswith("2048 tokens fit")
    tight = plan(machine(disk_free=0), model, Limits(memory=1500 * MIB))
    assert tight.chosen.engine == "torch" and 256 <= tight.chosen.context < 2048
    assert "twice as much does not fit" in tight.reasons["context"]
    with pytest.raises(ConfigError, match=r"needs .* of memory"):
        plan(machine(disk_free=0), model, Limits(memory=500 * MIB))


def test_training_adapts_fewer_blocks_where_time_is_short_and_none_where_it_is_too_short() -> None:
    model = Model(shape(), Work(), Measured(20, 400, 200))
    whole = plan(machine(), model, Limits())
    assert whole.training.here and whole.training.blocks is None
    assert whole.training.figures.seconds == pytest.approx(12_800 * 3 / 200)
    assert whole.training.energy == pytest.approx(30 * 192 / 3600)
    assert "assuming 30 W" in whole.training.reason
    part = plan(machine(), model, Limits(seconds=150))
    assert part.training.here and part.training.blocks == 15
    assert part.settings()["train"] == {"rank": 8, "layers": "last:15"}
    none = plan(machine(), model, Limits(seconds=30))
    assert not none.training.here and "30 s is the limit" in none.training.reason
    assert "Wh is the limit" in plan(machine(), model, Limits(energy=0.1)).training.reason


def test_what_can_be_planned_can_be_run() -> None:
    from pfi.models.gguf.families import BY_MODEL_TYPE
    from pfi.profile.answer.engines import EngineChoice

    assert set(BY_MODEL_TYPE) == LLAMA_KINDS
    for engine, bits, _ in WAYS:
        choice = EngineChoice.of(HomeConfig(engine=engine, bits=bits, context=256))
        assert (choice.name, choice.bits) == (engine, bits)


def test_a_battery_is_spared_unless_asked() -> None:
    model = Model(shape(), Work(), Measured(20, 400, 200))
    for charge in (None, 5.0):
        off = plan(machine(battery=True, battery_wh=charge), model, Limits())
        assert not off.training.here and "battery" in off.training.reason
    assert plan(machine(battery=True, battery_wh=50.0), model, Limits()).training.here
    assert plan(machine(battery=True), model, Limits(energy=3)).training.here
    assert plan(machine(battery=False), model, Limits()).training.here
    assert "12 W measured" in plan(machine(watts=12.0), model, Limits()).training.reason


def test_a_graphics_processor_is_used_as_far_as_its_memory_goes() -> None:
    model = Model(shape(), Work())
    fast = processor(2000e9, 50e12)
    found = plan(machine(gpu=Gpu("invented", 8 * GIB, fast)), model, Limits())
    assert found.chosen.engine == "torch" and found.training.here
    figures = found.chosen.figures
    assert figures and 0 < figures.gpu_memory < 8 * GIB
    alone = plan(machine(), model, Limits()).training.figures.seconds
    assert found.training.figures.seconds < alone / 10
    small = plan(machine(gpu=Gpu("invented", 100 * MIB, fast)), model, Limits())
    assert small.chosen.engine == "llama.cpp" and not small.training.here
    assert "graphics processor's memory" in small.training.reason


def test_a_measured_speed_goes_before_a_predicted_one() -> None:
    known = Model(shape(), Work(), Measured(7.5, 111, 50))
    figures = answering(machine(), known, "torch", "f32", 512, 8)
    assert (figures.decode, figures.prefill) == pytest.approx((7.5, 111))
    fast = machine(speed=replace(processor(), matvec_half=18e9))
    half = answering(fast, known, "torch", "bf16", 512, 8)
    assert 7.5 < half.decode < 15


def test_a_small_array_is_read_at_the_speed_of_the_cache() -> None:
    speed = processor(10e9)
    assert speed.rate(CACHED) == 30e9 and speed.rate(4 * LARGE) == 10e9
    rates = [speed.rate(size) for size in range(CACHED, LARGE, MIB)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "t5"])
def test_sizes_from_headers_are_those_of_the_loaded_model(
    backbone_folder: Callable[[str], Path], family: str
) -> None:
    from pfi.models.adapters import AdapterConfig
    from pfi.models.backbone import load_backbone
    from pfi.models.bank.bank import AdapterBank

    folder = str(backbone_folder(family))
    found = read_shape(folder)
    backbone = load_backbone(folder, device="cpu")
    assert found.parameters == backbone.model.num_parameters()
    assert found.size("f32") == sum(p.nbytes for p in backbone.model.parameters())
    assert found.context == backbone.max_length and found.seq2seq == backbone.seq2seq
    bank = AdapterBank(backbone, AdapterConfig(rank=2), 1)
    assert 2 * found.adapter_numbers == bank.width


def test_the_limit_that_an_encoder_decoder_model_states_counts(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(backbone_folder("t5"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    told = {**config, "max_position_embeddings": 96}
    (folder / "config.json").write_text(json.dumps(told), "utf-8")
    assert read_shape(str(folder)).context == 96


def test_cached_keys_and_values_are_as_large_as_predicted() -> None:
    from pfi.models.backbone import load_backbone
    from pfi.models.families import cache_of

    backbone = load_backbone("embedded", device="cpu")
    import torch

    with torch.inference_mode():
        output = backbone.model(torch.ones(1, 20, dtype=torch.long), use_cache=True)
    cache = cache_of(backbone.model, output)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert read_shape("embedded").cache(20, 4) == held


def test_an_encoder_decoder_model_also_keeps_what_its_encoder_gave(
    backbone_folder: Callable[[str], Path],
) -> None:
    import torch

    from pfi.models.backbone import load_backbone
    from pfi.models.families import cache_of

    folder = str(backbone_folder("t5"))
    ids = torch.ones(1, 20, dtype=torch.long)
    with torch.inference_mode():
        model = load_backbone(folder, device="cpu").model
        output = model(input_ids=ids, decoder_input_ids=ids, use_cache=True)
    cache = cache_of(model, output)
    layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert read_shape(folder).cache(20, 4) == held


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "model.safetensors"
    for content in (b"", b"\x00" * 7, (1 << 40).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7):
        bad.write_bytes(content)
        with pytest.raises(BackboneError, match="no safetensors file"):
            read_header(bad)
    (tmp_path / "config.json").write_text("{}")
    bad.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(BackboneError, match="lacks a size"):
        read_shape(str(tmp_path))
    with pytest.raises(BackboneError, match="no such folder"):
        read_shape("/no/such/folder")
    with pytest.raises(BackboneError, match="not on this machine"):
        read_shape("nobody/no-such-model")


def test_a_container_limit_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "memory.max").write_text("max\n")
    assert cgroup_memory(tmp_path, own) == (None, 0)
    (tmp_path / "outer" / "memory.max").write_text("1000000\n")
    (tmp_path / "outer" / "memory.current").write_text("600000\n")
    (tmp_path / "outer" / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert cgroup_memory(tmp_path, own) == (1_000_000, 100_000)
    own.write_text("4:cpu,memory:/job\n")
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_memory(tmp_path, own) == (None, 0)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000\n")
    assert cgroup_memory(tmp_path, own) == (2_000_000, 0)
    assert cgroup_memory(tmp_path, tmp_path / "missing") == (None, 0)


def test_power_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    assert PowerMeter(tmp_path).watts() is None
    battery = tmp_path / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    (battery / "power_now").write_text("12500000\n")
    (battery / "status").write_text("Charging\n")
    assert PowerMeter(tmp_path).watts() is None
    (battery / "status").write_text("Discharging\n")
    assert PowerMeter(tmp_path).watts() == 12.5
    package = tmp_path / "powercap" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "energy_uj").write_text("0\n")
    meter = PowerMeter(tmp_path)
    (package / "energy_uj").write_text("5000000\n")
    meter._begin -= 1.0
    assert meter.watts() == pytest.approx(5.0, rel=0.05)


_PEAKS = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pfi.profile.answer.engines import EngineChoice, make_engine
from pfi.profile.plan.machine import base_memory
from pfi.train.config import TrainConfig
from pfi.train.trainers import get_trainer
from pfi.train.job import train_one
from pfi.models.backbone import load_backbone
from pfi.inference.engine import Request, Sampling, text_of
from pfi.tasks import Example

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(l.split()[1]) for l in lines if l.startswith("VmHWM"))

folder, base = sys.argv[1], base_memory()
if sys.argv[2] == "train":
    examples = [Example(f"{a} good " * 40, "fine book " * 10, {}, "") for a in "abcd"]
    backbone = load_backbone(folder, device="cpu")
    train_one(get_trainer("bank"), backbone, examples, TrainConfig(epochs=2, batch_size=4))
else:
    with make_engine(EngineChoice(folder, "torch", "f32", 512), Path(folder)) as engine:
        prompt = [5 + at % 200 for at in range(500)]
        text_of(engine.generate(Request(prompt, None, Sampling(max_tokens=8), "me")))
print(json.dumps([base, peak()]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_predicted_peak_memory_is_near_the_measured_one(tmp_path: Path) -> None:
    """Beside the libraries: these alone would hide what a small model takes."""
    import torch
    import transformers as t

    from conftest import save_tokenizer
    from pfi.models.backbone import load_backbone
    from pfi.tasks import Example
    from pfi.train.job import as_piece

    size = save_tokenizer(tmp_path)
    config = t.LlamaConfig(
        vocab_size=size, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=768,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    t.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    found = read_shape(str(tmp_path))

    example = Example("a good " * 40, "fine book " * 10, {}, "")
    piece = as_piece(load_backbone(str(tmp_path), device="cpu"), example, 640)
    work = Work(4, 4 * len(piece), len(piece), 4 * piece.targets, 2, 4)
    processes = {
        what: subprocess.Popen(
            [sys.executable, "-c", _PEAKS, str(tmp_path), what], stdout=subprocess.PIPE, text=True
        )
        for what in ("train", "answer")
    }
    for what, process in processes.items():
        base, measured = json.loads(process.communicate()[0].splitlines()[-1])
        here, model = machine(base=base), Model(found, work)
        predicted = training(here, model, 8, 8).memory
        if what == "answer":
            predicted = answering(here, model, "torch", "f32", 512, 8).memory
        assert measured / 1.5 <= predicted <= 1.5 * measured
        beside = (predicted - base) / (measured - base)
        assert 1 / 1.5 <= beside <= 1.5, (what, predicted, measured, base)


def test_the_short_real_run_measures_models_of_any_kind(
    backbone_folder: Callable[[str], Path],
) -> None:
    from pfi.models.backbone import load_backbone
    from pfi.profile.plan.trial import try_backbone
    from pfi.tasks import Example
    from pfi.train.config import TrainConfig

    examples = [Example("good bad fine", "book", {}, "")] * 3
    for family in ("llama", "t5"):
        folder = str(backbone_folder(family))
        backbone = load_backbone(folder, device="cpu")
        before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
        config = TrainConfig(batch_size=2)
        found = try_backbone(backbone, machine(), read_shape(folder), config, examples)
        assert found.decode > 0 and found.prefill > 0 and found.train and found.train > 0
        after = backbone.model.state_dict()
        assert all(bool((after[k] == v).all()) for k, v in before.items())
        slow = machine(speed=processor(flops=1e3))
        assert try_backbone(backbone, slow, read_shape(folder), config, examples).train is None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PFI_HOME", str(tmp_path / "homes"))
    return create_home(config=HomeConfig(train={"epochs": 2, "layers": "last:1"}))


def call(*arguments: str) -> tuple[int, str]:
    app = typer.Typer(cls=OneLineErrors)
    app.callback()(lambda: None)
    plan_command.register(app)
    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.output


def test_the_command_plans_and_applies(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(disk_free=0)
    monkeypatch.setattr("pfi.profile.plan.planning.measure_machine", lambda folder: here)
    code, output = call("--quick", "--memory", "3GiB")
    assert code == 0 and "Answer with torch" in output and "needs" in output
    assert open_home().config == home.config
    code, output = call("--quick", "--json", "--apply", "--seconds", "10min")
    assert code == 0
    told = json.loads(output)
    assert told["limits"]["seconds"] == 600 and told["plan"]["chosen"]["engine"] == "torch"
    config = open_home().config
    assert (config.engine, config.bits) == ("torch", told["plan"]["chosen"]["bits"])
    assert config.context == 2048 and config.train == {"epochs": 2, "rank": 8}
    assert (
        apply_plan(open_home(), plan(here, Model(read_shape("embedded"), Work()), Limits())) == {}
    )
    code, output = call("--quick", "--memory", "40MB")
    assert code == 2 and "error: --memory: embedded cannot answer within 39 MiB" in output


@pytest.mark.parametrize("given", ["", "2 apples", "-1GiB", "0", "GiB"])
def test_a_limit_that_makes_no_sense_is_refused(home: Home, given: str) -> None:
    code, output = call("--quick", f"--memory={given}")
    assert code == 2 and "--memory" in output


def test_quantities() -> None:
    read = plan_command.quantity
    assert read("2GiB", "bytes", "") == 2 * GIB and read("1.5 GB", "bytes", "") == 1.5e9
    assert read("512m", "bytes", "") == 512 * MIB and read("7", "bytes", "") == 7
    assert read("600", "seconds", "") == read("10min", "seconds", "") == 600
    assert read("20Wh", "energy", "") == 20 and read("36kJ", "energy", "") == pytest.approx(10)
