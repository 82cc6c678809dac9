"""The federation benchmark's backbones, clients' data and initial factors, made from a seed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pfi.models.adapters import Adapter, AdapterConfig, lora_config
from pfi.models.backbone import Backbone, load_backbone

TEXT = (
    "a quick brown fox jumps over the lazy dog , good bad fine book film score title and of in "
    "with for on at one two three story plot end music scene actor time day night old new long"
)
WORDS = TEXT.split()
ANSWERS = ("good", "bad", "fine", "old", "new", "long story", "good film", "bad book")


@dataclass(frozen=True)
class Setting:
    """One comparison: what all peers are given.

    Attributes:
        model: ``tiny`` (made here) or a backbone's name.
        rank: of the factors on every linear layer.
        clients: all of them take part in every round.
        steps: of plain gradient descent, each on all of a client's records.
        learning_rate: theirs.
        folder: where the files of this comparison are.
        seed: of all that is made up.
    """

    model: str
    rank: int
    clients: int
    steps: int
    learning_rate: float
    folder: str
    seed: int = 0

    @property
    def adapter_config(self) -> AdapterConfig:
        return AdapterConfig(rank=self.rank, alpha=2.0 * self.rank)

    @property
    def initial(self) -> Path:
        """The factors of round 0, as a peft folder."""
        return Path(self.folder) / "initial"

    def backbone(self) -> Backbone:
        """The frozen model, on the CPU."""
        tiny = self.model == "tiny"
        return load_backbone(Path(self.folder) / "tiny" if tiny else self.model, device="cpu")

    def people(self) -> list[list[tuple[str, str]]]:
        """Each client's prompts and targets."""
        text = (Path(self.folder) / "people.json").read_text(encoding="utf-8")
        return [[(prompt, target) for prompt, target in person] for person in json.loads(text)]

    def save(self) -> Path:
        """Write everything that the peers read; returns the file that names it all."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        people = [person(self.seed, number) for number in range(self.clients)]
        (folder / "people.json").write_text(json.dumps(people), encoding="utf-8")
        if self.model == "tiny":
            tiny_backbone(folder / "tiny", self.seed)
        first_adapter(self.backbone(), self.adapter_config, self.seed).save(self.initial)
        path = folder / "setting.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Setting:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def person(seed: int, number: int) -> list[tuple[str, str]]:
    """A client's three to six records: short prompts, and answers by this client's taste."""
    rng = random.Random(f"{seed} {number}")
    taste = rng.sample(ANSWERS, 2)
    return [
        (" ".join(rng.choices(WORDS, k=rng.randint(8, 14))), rng.choice(taste))
        for _ in range(rng.randint(3, 6))
    ]


def tiny_backbone(folder: Path, seed: int) -> None:
    """Save a random two-block llama of width 32 and a byte-level tokenizer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def first_adapter(backbone: Backbone, config: AdapterConfig, seed: int) -> Adapter:
    """Factors none of which is zero, so that both get gradients in the first step."""
    import copy

    from peft import get_peft_model

    torch.manual_seed(seed)
    model: Any = get_peft_model(copy.deepcopy(backbone.model), lora_config(config, backbone.model))
    adapter = Adapter.of(model)
    weights = {
        name: torch.randn_like(factor) * 0.02 if ".lora_B." in name else factor
        for name, factor in adapter.weights.items()
    }
    return Adapter(adapter.settings, weights)
