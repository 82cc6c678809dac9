"""A profile's model as files: other programs compute what the profile's model computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import llama_world
import numpy as np
import pytest
import torch
from engine_world import make_adapter
from llama_world import needs_llama
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.errors import BackboneError, ConfigError, DataError, StorageError
from pfi.models.backbone import Backbone, load_backbone
from pfi.privacy.ledger.entries import fingerprint
from pfi.profile.adapters.store import AdapterInfo
from pfi.profile.config import HomeConfig
from pfi.profile.export import quality as quality_module
from pfi.profile.export.export import Report, export_gguf, export_merged, export_peft, learnt
from pfi.profile.export.quality import Quality, choose_examples
from pfi.profile.home import Home
from pfi.profile.open import create_home
from pfi.records import Record
from pfi.tasks import get_task

Folder = Callable[[str], Path]
TASK = get_task("LaMP_4")
IDS = [5, 9, 80, 200, 31]


def records(first: int, last: int) -> list[Record]:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return [
        Record(
            id=str(n),
            task="LaMP_4",
            input={"text": f"a quick brown fox jumps over book {n}"},
            output=f"good film {n} fine",
            time=start + timedelta(days=n),
        )
        for n in range(first, last)
    ]


@pytest.fixture
def home(tmp_path: Path, backbone_folder: Folder) -> Home:
    """Six records, a shared adapter and a personal one on it that held back two of them."""
    backbone = str(backbone_folder("llama"))
    home = create_home(root=tmp_path / "root", config=HomeConfig(backbone=backbone), lock="file")
    with home.open_vault() as vault:
        vault.add(records(0, 6))
    plain = load_backbone(backbone)
    about = AdapterInfo(task="LaMP_4", backbone=backbone)
    shared = home.shared_adapters.add(make_adapter(plain, 1, rank=3), about)
    home.shared_adapters.use(shared.version)
    update = {
        "shared": shared.version,
        "read": datetime.now(UTC),
        "held_back": [fingerprint(i) for i in ("4", "5")],
    }
    own = home.personal_adapters.add(make_adapter(plain, 2), about.model_copy(update=update))
    home.personal_adapters.use(own.version)
    return home


@pytest.fixture
def model(home: Home) -> Backbone:
    """What the exports have to equal: both adapters merged one after the other."""
    adapters = [home.shared_adapters.load("0001"), home.personal_adapters.load("0001")]
    return load_backbone(home.config.backbone).with_adapters(adapters)


@torch.inference_mode()
def logits(model: Any) -> np.ndarray:
    found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def llama_logits(path: Path, adapter: Path | None = None) -> np.ndarray:
    return llama_world.llama_logits(path, adapter, IDS)


def equal(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> bool:
    return bool(np.abs(found - expected).max() < tolerance * np.abs(expected).max())


def pfi(home: Home, *arguments: str, code: int = 0) -> Result:
    env = {"PFI_HOME": str(home.path.parent)}
    result = CliRunner(env=env).invoke(app, [*arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def private(*paths: Path) -> bool:
    every = [file for path in paths for file in (path, *path.rglob("*"))]
    return all(file.stat().st_mode & 0o077 == 0 for file in every)


def test_peft_loads_what_it_writes(home: Home, model: Backbone, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "adapter"
    made = export_peft(home, TASK, out)
    plain = AutoModelForCausalLM.from_pretrained(home.config.backbone).eval()
    before = logits(plain)
    assert equal(logits(PeftModel.from_pretrained(plain, out)), logits(model.model))
    assert not equal(before, logits(model.model), 0.05)
    assert (made.learnt.personal, made.learnt.shared, made.learnt.weight) == ("0001", "0001", 1.0)
    assert private(out)
    with pytest.raises(ConfigError, match="exists"):
        export_peft(home, TASK, out)
    home.personal_adapters.use_none("LaMP_4")
    home.shared_adapters.use_none("LaMP_4")
    with pytest.raises(ConfigError, match="uses no adapter"):
        export_peft(home, TASK, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_transformers_loads_the_merged_folder(home: Home, model: Backbone, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_merged(home, TASK, tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert equal(logits(found), logits(model.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("a fox").input_ids == model.tokenizer("a fox").input_ids
    assert equal(logits(load_backbone(tmp_path / "merged").model), logits(model.model))
    assert private(tmp_path / "merged")


@needs_llama
def test_llama_cpp_loads_what_gguf_writes(home: Home, model: Backbone, tmp_path: Path) -> None:
    merged, apart = tmp_path / "m.gguf", tmp_path / "s.gguf"
    stages: list[str] = []
    steps: list[tuple[int, int]] = []
    report = Report(stages.append, lambda *step: steps.append(step))
    export_gguf(home, TASK, merged, bits="f32", report=report)
    assert stages and steps[-1][0] == steps[-1][1]
    assert equal(llama_logits(merged), logits(model.model))
    made = export_gguf(home, TASK, apart, bits="f32", placement="separate")
    assert made.files == (apart, tmp_path / "s.adapter.gguf")
    assert equal(llama_logits(*made.files), logits(model.model))
    assert not equal(llama_logits(apart), logits(model.model), 0.05)
    assert private(merged, *made.files, made.manifest)
    # The backbone's own file is kept for all profiles; nothing of the user is in it.
    assert [file.suffix for file in home.models_folder.glob("*.*")].count(".gguf") == 1
    assert not [*tmp_path.glob(".pfi-export-*")]


@needs_llama
def test_a_backbone_that_is_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it goes the adapter; merged it is written anew."""
    from gguf_world import quantised, tiny

    from pfi.models.gguf.header import read_header

    backbone = tmp_path / "mine" / "model.gguf"
    backbone.parent.mkdir()
    quantised(tiny("llama"), backbone, 8, monkeypatch)
    home = create_home(
        root=tmp_path / "root", config=HomeConfig(backbone=str(backbone)), lock="file"
    )
    with home.open_vault() as vault:
        vault.add(records(0, 6))
    plain = load_backbone(backbone, device="cpu")
    about = AdapterInfo(task="LaMP_4", backbone=str(backbone))
    home.personal_adapters.use(home.personal_adapters.add(make_adapter(plain, 2), about).version)
    adapter = home.personal_adapters.load("0001")
    exact = logits(plain.with_adapters([adapter]).model)
    apart = export_gguf(home, TASK, tmp_path / "apart.gguf", placement="separate")
    assert apart.files[0].read_bytes() == backbone.read_bytes()
    assert equal(llama_logits(*apart.files), exact, 0.1)
    manifest = apart.manifest.read_text()
    assert str(tmp_path) not in manifest
    assert json.loads(manifest)["bits"] == read_header(backbone).bits
    with pytest.raises(ConfigError, match="as it is, not as q4_k_m"):
        export_gguf(home, TASK, tmp_path / "x.gguf", placement="separate", bits="q4_k_m")
    merged = export_gguf(home, TASK, tmp_path / "merged.gguf", bits="f32")
    assert equal(llama_logits(merged.files[0]), exact)
    export_merged(home, TASK, tmp_path / "folder")
    assert np.array_equal(logits(load_backbone(tmp_path / "folder", device="cpu").model), exact)
    export_peft(home, TASK, tmp_path / "peft")
    assert str(tmp_path) not in (tmp_path / "peft" / "adapter_config.json").read_text()


@needs_llama
def test_what_quantising_costs_is_measured_on_held_back_records(
    home: Home, model: Backbone, tmp_path: Path
) -> None:
    made = export_gguf(home, TASK, tmp_path / "m.gguf", bits="q8_0", most_loss=1.0)
    quality = made.quality
    assert quality is not None and quality.held_back and quality.records == 2
    examples = choose_examples(home, TASK, "0001").examples
    assert [example.record_id for example in examples] == ["4", "5"]
    losses = []
    for example in examples:
        prompt = model.prompt_ids(example.prompt)
        target = model.target_ids(example.target)
        with torch.inference_mode():
            found = model.model(torch.tensor([[*prompt, *target]])).logits[0]
        chosen = found.log_softmax(-1)[len(prompt) - 1 : -1][range(len(target)), target]
        losses.append(-chosen.mean().item())
    assert quality.exact_loss == pytest.approx(sum(losses) / 2, abs=1e-4)
    assert 0 < abs(quality.rise) < 0.1
    assert {*quality.metrics} == {*quality.exact_metrics} == {*TASK.metrics}
    manifest = json.loads(made.manifest.read_text())
    assert manifest["quality"]["loss"] == quality.loss
    from pfi._util.files import sha256_file

    assert manifest["sha256"] == {"m.gguf": sha256_file(made.files[0])}
    assert str(tmp_path) not in made.manifest.read_text()


@needs_llama
def test_a_loss_above_the_limit_is_refused_and_leaves_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = quality_module.measure

    def worse(*arguments: Any) -> Quality:
        found = measured(*arguments)
        return found.model_copy(update={"loss": found.exact_loss + 0.06})

    monkeypatch.setattr("pfi.profile.export.export.measure", worse)
    out = tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match=r"rises by 0.060 nats a token, more than 0.05"):
        export_gguf(home, TASK, out, bits="q4_k_m")
    assert not [*tmp_path.glob("m*"), *tmp_path.glob(".pfi*")]
    export_gguf(home, TASK, out, bits="q4_k_m", most_loss=0.07)
    made = export_gguf(home, TASK, tmp_path / "n.gguf", bits="q4_k_m", force=True)
    assert made.quality is not None and made.quality.rise == pytest.approx(0.06)


@needs_llama
def test_without_records_it_is_refused_unless_forced(home: Home, tmp_path: Path) -> None:
    with home.open_vault() as vault:
        vault.delete([str(n) for n in range(6)])
    with pytest.raises(DataError, match="no records"):
        export_gguf(home, TASK, tmp_path / "m.gguf")
    assert not [*tmp_path.glob("m*")]
    assert export_gguf(home, TASK, tmp_path / "m.gguf", force=True).quality is None
    assert export_gguf(home, TASK, tmp_path / "n.gguf", bits="f16").quality is None


def test_what_is_measured_on_is_what_the_adapter_has_not_seen(home: Home) -> None:
    with home.open_vault() as vault:
        vault.add(records(6, 8))
    assert [e.record_id for e in choose_examples(home, TASK, "0001").examples] == list("4567")
    plain = choose_examples(home, TASK, None)
    assert len(plain.examples) == 8 and plain.held_back
    manifest = home.personal_adapters.manifest("0001")
    about = AdapterInfo(**manifest.model_dump(include={*AdapterInfo.model_fields}))
    all_learnt = about.model_copy(update={"held_back": [], "read": datetime.now(UTC)})
    adapter = home.personal_adapters.load("0001")
    home.personal_adapters.add(adapter, all_learnt)
    found = choose_examples(home, TASK, "0002")
    assert len(found.examples) == 8 and not found.held_back


def test_the_gates_weight_counts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfi.gate.choices import Choice, GateConfig
    from pfi.profile.answer.gate_file import Fitted

    fitted = Fitted(
        task="LaMP_4",
        choice=Choice(weight=0.5),
        sure=1.0,
        gain=0.1,
        tried=4,
        users=0,
        backbone=home.config.backbone,
        personal="0001",
        shared="0001",
        settings=GateConfig(),
        date=datetime.now(UTC),
    )
    monkeypatch.setattr("pfi.profile.answer.gate_file.read_gate", lambda home: {"LaMP_4": fitted})
    found = learnt(home, TASK)
    assert found.weight == 0.5
    shared, own = home.shared_adapters.load("0001"), home.personal_adapters.load("0001")
    plain = load_backbone(home.config.backbone)
    expected = logits(plain.with_adapters([shared, own.scaled(0.5)]).model)
    assert equal(logits(found.merged().model), expected)
    adapter = found.adapter()
    assert adapter is not None
    assert equal(logits(plain.with_adapters([adapter]).model), expected)
    other = fitted.model_copy(update={"personal": "0009"})  # fitted with another adapter
    monkeypatch.setattr("pfi.profile.answer.gate_file.read_gate", lambda home: {"LaMP_4": other})
    assert learnt(home, TASK).weight == 1.0


def test_what_makes_no_sense_is_refused(
    home: Home, tmp_path: Path, backbone_folder: Folder
) -> None:
    with pytest.raises(ConfigError, match=r"m.bin.gguf"):
        export_gguf(home, TASK, tmp_path / "m.bin")
    with pytest.raises(ConfigError, match="most_loss"):
        export_gguf(home, TASK, tmp_path / "m.gguf", most_loss=-1)
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(ConfigError, match="exists"):
        export_gguf(home, TASK, tmp_path / "m.gguf", bits="f32")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        export_peft(home, TASK, tmp_path / "file" / "x")
    other = HomeConfig(backbone=str(backbone_folder("gpt2")))
    strange = create_home("other", root=tmp_path / "root", config=other, lock="file")
    with pytest.raises(BackboneError, match="gpt2 model cannot be written as GGUF"):
        export_gguf(strange, TASK, tmp_path / "g.gguf")
    assert not (tmp_path / "g.gguf").exists()


@needs_llama
def test_the_commands(home: Home, tmp_path: Path) -> None:
    out = str(tmp_path / "mine.gguf")
    arguments = ["export", "gguf", out, "--task", "LaMP_4", "--most-loss", "1"]
    said = pfi(home, *arguments).output
    assert "personal adapter 0001 at weight 1" in said and "2 held-back examples" in said
    assert "not encrypted" in said and "rouge" in said
    assert "error:" in pfi(home, *arguments, code=2).output
    folder = str(tmp_path / "a")
    assert "Wrote" in pfi(home, "export", "peft", folder, "--task", "LaMP_4").output
    assert (tmp_path / "a" / "adapter_config.json").exists()
    pfi(home, "export", "merged", str(tmp_path / "b"), "--task", "LaMP_4")
    assert (tmp_path / "b" / "model.safetensors").exists()
    wrong = pfi(home, "export", "gguf", str(tmp_path / "x.gguf"), "--adapter", "beside", code=2)
    assert "separate or merged" in wrong.output
    assert "q4_k_m" in pfi(home, "export", "gguf", "x.gguf", "--bits", "q9", code=2).output
    for file in tmp_path.glob("[ab]/*"):
        data = file.read_bytes()
        assert str(tmp_path).encode() not in data
        assert home.config.backbone.encode() not in data, file.name
