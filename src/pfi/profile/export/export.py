"""A profile's model as files for other programs: GGUF, a peft adapter, or merged weights.

What is written holds what the model has learnt from the user's records, and is not encrypted: it
is readable by its owner only, and takes its place when it is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfi._util.files import sha256_file, sync_folder, write_json
from pfi._util.version import __version__
from pfi.errors import ConfigError, StorageError
from pfi.inference.llama.gguf import Bits
from pfi.models.adapters import Adapter
from pfi.profile.answer.runtime import Runtime
from pfi.profile.export.quality import Quality, choose_examples, measure
from pfi.profile.home import Home
from pfi.tasks import Task

if TYPE_CHECKING:
    from pfi.models.backbone import Backbone

Placement = Literal["separate", "merged"]
#: The rise of the loss, in nats a token, up to which a quantised model is taken.
MOST_LOSS = 0.05
MANIFEST = "pfi.json"
_EXACT = ("f32", "f16", "bf16")  # bits that cost nothing that is worth measuring


@dataclass(frozen=True)
class Learnt:
    """What a task's answers use beside the backbone.

    Attributes:
        backbone: what it is loaded by.
        task: whose answers.
        personal, shared: versions of the adapters in use, or None.
        weight: of the personal one, as the gate says; 0 without one.
        adapters: those in use with their weights, the shared one first.
    """

    backbone: str
    task: str
    personal: str | None
    shared: str | None
    weight: float
    adapters: tuple[tuple[Adapter, float], ...] = ()

    def adapter(self) -> Adapter | None:
        """All adapters as one; None where there is none."""
        from pfi.models.adapters import stacked

        return stacked(self.adapters) if self.adapters else None

    def merged(self) -> Backbone:
        """The backbone with all adapters merged into its weights, on the CPU."""
        from pfi.models.backbone import load_backbone

        plain = load_backbone(self.backbone, device="cpu")
        return plain.with_adapters([adapter.scaled(weight) for adapter, weight in self.adapters])


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: paths of the model's files.
        manifest: path of what is known of them.
        learnt: what they hold.
        quality: of a quantised model, where it was measured.
    """

    files: tuple[Path, ...]
    manifest: Path
    learnt: Learnt
    quality: Quality | None = None


@dataclass(frozen=True)
class Report:
    """Where an export tells how it goes.

    Attributes:
        stage: told what begins, in a few words.
        step: told how much of it is done, and of how much.
    """

    stage: Callable[[str], None] = lambda text: None
    step: Callable[[int, int], None] = field(default=lambda done, total: None)


def learnt(home: Home, task: Task) -> Learnt:
    """What answers to a task use now.

    Raises:
        BackboneError: the personal adapter was trained on another backbone.
        StorageError: an adapter is damaged.
    """
    from pfi.profile.answer.gate_file import read_gate

    personal, shared = Runtime(home).versions(task)
    weight = 1.0 if personal else 0.0
    fitted = read_gate(home).get(task.name)
    if personal and fitted is not None and fitted.counts(home, personal, shared):
        weight = fitted.choice.weight
    adapters = []
    if shared is not None:
        adapters.append((home.shared_adapters.load(shared), 1.0))
    if personal is not None and weight:
        adapters.append((home.personal_adapters.load(personal), weight))
    return Learnt(home.config.backbone, task.name, personal, shared, weight, tuple(adapters))


def export_gguf(
    home: Home,
    task: Task,
    out: Path,
    *,
    bits: Bits | Literal["auto"] = "auto",
    placement: Placement = "merged",
    most_loss: float = MOST_LOSS,
    force: bool = False,
    report: Report = Report(),
) -> Exported:
    """Write a GGUF file for llama.cpp and what is built on it.

    Args:
        home: the device.
        task: whose adapters.
        out: the file, ``*.gguf``; beside it come ``*.json`` and, separately, ``*.adapter.gguf``.
        bits: of the weights; auto is q8_0, but those of the backbone's own GGUF file where it is
            one and the adapters are beside it.
        placement: whether adapters are merged into the weights.
        most_loss: the rise of the loss, in nats a token, up to which it is written.
        force: write it whatever the loss, and where there is nothing to measure it on.
        report: told how it goes.

    Raises:
        BackboneError: the backbone has no place in GGUF, or llama.cpp is not installed.
        ConfigError: the file exists, or quantising costs more than ``most_loss``.
        DataError: there are no records to measure on.
        StorageError: a file cannot be read or written.
    """
    from pfi.inference.llama.gguf import bits_of, write_adapter, write_backbone
    from pfi.inference.llama.gguf_cache import backbone_file, load_config
    from pfi.models.gguf.check import check_bits, check_gguf
    from pfi.models.gguf.families import family_of
    from pfi.models.prompter import gguf_path

    if out.suffix != ".gguf":
        raise ConfigError(f"{out.name} is no name of a GGUF file", fix=f"call it {out.name}.gguf")
    if not most_loss >= 0:
        raise ConfigError(f"most_loss is {most_loss}", fix="give 0 or more")
    config = load_config(home.config.backbone)
    family_of(config, home.config.backbone)
    own = gguf_path(home.config.backbone) if placement == "separate" else None
    written = "q8_0" if bits == "auto" else str(bits)
    if own is not None:
        check_bits(own, bits)
        written = check_gguf(own).bits
    held = learnt(home, task)
    measured = written not in _EXACT and not (force and _nothing_to_measure(home, task, held))
    chosen = choose_examples(home, task, held.personal) if measured else None
    lora, manifest = out.with_suffix(".adapter.gguf"), out.with_suffix(".json")
    names = [out, manifest, *([lora] if placement == "separate" and held.adapters else [])]
    with _room(names) as room:
        adapter = held.adapter() if placement == "separate" else None
        merged = held.merged() if placement == "merged" or chosen else None
        report.stage("writing the weights")
        if placement == "merged":
            assert merged is not None
            write_backbone(
                _nameless(merged), room / out.name, bits_of(written), on_progress=report.step
            )
        else:
            plain = own or backbone_file(
                home.config.backbone,
                home.models_folder,
                bits_of(written),
                on_progress=report.step,
            )
            shutil.copyfile(plain, room / out.name)
        if adapter is not None:
            write_adapter(adapter, config, room / lora.name)
        quality = None
        if chosen is not None:
            assert merged is not None
            report.stage("measuring what quantising costs")
            quality = measure(task, chosen, merged, room / out.name, adapter)
            if quality.rise > most_loss and not force:
                raise ConfigError(
                    f"with {written} the loss rises by {quality.rise:.3f} nats a token, more than "
                    f"{most_loss:g}: {quality}",
                    where=str(out),
                    fix="choose more --bits, raise --most-loss, or write it with --force",
                )
        files = [name for name in names if name != manifest]
        about = {"kind": "gguf", "bits": written, "adapter": placement if held.adapters else "none"}
        _write_manifest(room / manifest.name, held, files, about, quality)
    return Exported(tuple(files), manifest, held, quality)


def export_peft(home: Home, task: Task, out: Path) -> Exported:
    """Write the adapters in use as one adapter in peft's format.

    Raises:
        ConfigError: the folder exists, or there is no adapter.
        StorageError: an adapter is damaged, or the folder cannot be written.
    """
    held = learnt(home, task)
    adapter = held.adapter()
    if adapter is None:
        what = f"task {task.name} uses no adapter"
        raise ConfigError(what, fix="train one with `pfi train`, or choose one with `pfi adapters`")
    with _room([out]) as room:
        folder = room / out.name
        base = None if _is_local(held.backbone) else held.backbone
        settings = {**adapter.settings, "base_model_name_or_path": base}
        replace(adapter, settings=settings).save(folder)
        _write_manifest(folder / MANIFEST, held, sorted(folder.iterdir()), {"kind": "peft"})
    return Exported((out,), out / MANIFEST, held)


def export_merged(home: Home, task: Task, out: Path) -> Exported:
    """Write the backbone with the adapters merged in as a folder for transformers, in 32 bits.

    Raises:
        BackboneError: the backbone cannot be loaded.
        ConfigError: the folder exists.
        StorageError: an adapter is damaged, or the folder cannot be written.
    """
    held = learnt(home, task)
    merged = held.merged()
    with _room([out]) as room:
        folder = room / out.name
        merged.model.save_pretrained(folder)
        merged.tokenizer.save_pretrained(folder)
        _write_manifest(folder / MANIFEST, held, sorted(folder.iterdir()), {"kind": "merged"})
    return Exported((out,), out / MANIFEST, held)


def _nothing_to_measure(home: Home, task: Task, held: Learnt) -> bool:
    from pfi.errors import DataError

    try:
        choose_examples(home, task, held.personal)
    except DataError:
        return True
    return False


def _is_local(backbone: str) -> bool:
    return Path(backbone).expanduser().exists()


def _nameless(backbone: Backbone) -> Backbone:
    """A backbone that was made here, so that its file does not say it is the original."""
    return replace(backbone, name=f"{Path(backbone.name).name} (adapted by pfi)")


@contextmanager
def _room(names: list[Path]) -> Iterator[Path]:
    """A private folder in which files are made that then take their places.

    Raises:
        ConfigError: one of them exists.
        StorageError: the folder cannot be written.
    """
    for path in names:
        if path.exists():
            raise ConfigError("it exists", where=str(path), fix="choose another name or remove it")
    parent = names[0].parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=".pfi-export-", dir=parent))
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", where=str(parent)) from error
    try:
        yield room
        for path in [room, *room.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)
        for path in names:
            (room / path.name).rename(path)
        sync_folder(parent)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", where=str(parent)) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _write_manifest(
    path: Path,
    held: Learnt,
    files: list[Path],
    about: dict[str, str],
    quality: Quality | None = None,
) -> None:
    """What is known of the files, which lie beside it; no folder is named."""
    name = Path(held.backbone).name if _is_local(held.backbone) else held.backbone
    write_json(
        path,
        {
            "format": 1,
            **about,
            "pfi": __version__,
            "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
            "backbone": name,
            "task": held.task,
            "shared": held.shared,
            "personal": held.personal,
            "weight": held.weight,
            "quality": quality.model_dump() if quality else None,
            "sha256": {file.name: sha256_file(path.parent / file.name) for file in files},
        },
    )
