"""What a choice is worth on a question: by the metric, by the likelihood, and by both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pfi.gate.trials import worths
from pfi.inference.answering import answers
from pfi.inference.engine import Request, Sampling
from pfi.inference.torch.engine import TorchEngine
from pfi.models.backbone import Backbone, load_backbone
from pfi.tasks import METRICS, Task, get_task


@pytest.fixture(scope="module")
def backbone(backbone_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(backbone_folder("llama")))


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Iterator[TorchEngine]:
    with TorchEngine(backbone) as engine:
        yield engine


def asked(backbone: Backbone, texts: list[str]) -> list[Request]:
    return [Request(backbone.prompt_ids(text), None, Sampling(max_tokens=6)) for text in texts]


def likelihood(backbone: Backbone, text: str, target: str) -> tuple[float, int]:
    """Logarithm of a target's likelihood by one pass of the model, and its tokens."""
    ids, wanted = backbone.prompt_ids(text), backbone.target_ids(target)
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.tensor([[*ids, *wanted]])).logits[0]
    rows = logits[len(ids) - 1 : -1].float().log_softmax(-1)
    return float(rows.gather(1, torch.tensor(wanted)[:, None]).sum()), len(wanted)


def test_free_text_by_its_metric_and_by_each_token(backbone: Backbone, engine: TorchEngine) -> None:
    task = get_task("LaMP_4").model_copy(update={"max_new_tokens": 6})
    texts, targets = ["a quick brown fox", "lazy dog"], ["the fox", "a dog sleeps"]
    requests = asked(backbone, texts)
    metric, likely = worths(engine, task, requests, targets, "both")
    pairs = zip(answers(engine, task, requests), targets, strict=True)
    expected = [METRICS["rouge_1"].compute([a], [b], []) for a, b in pairs]
    assert metric == pytest.approx(expected)
    sums = [likelihood(backbone, text, t) for text, t in zip(texts, targets, strict=True)]
    assert likely == pytest.approx([total / count for total, count in sums], abs=1e-4)
    alone, nothing = worths(engine, task, requests, targets, "likelihood")
    assert alone == pytest.approx(likely) and nothing is None
    assert worths(engine, task, requests, targets, "metric")[1] is None


def test_likelihood_alone_writes_no_answers(
    backbone: Backbone, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("answers are what takes time")

    monkeypatch.setattr("pfi.gate.trials.answers", refuse)
    requests = asked(backbone, ["a quick brown fox"])
    worths(engine, get_task("LaMP_4"), requests, ["dog"], "likelihood")
    with pytest.raises(AssertionError):
        worths(engine, get_task("LaMP_4"), requests, ["dog"], "both")


@pytest.mark.parametrize("name", ["LaMP_3", "LaMP_2N"])
def test_labels_by_their_shares(backbone: Backbone, engine: TorchEngine, name: str) -> None:
    task: Task = get_task(name)
    texts = ["a quick brown fox", "lazy dog"]
    targets = [task.labels[0], task.labels[-1]]
    metric, likely = worths(engine, task, asked(backbone, texts), targets, "both")
    logs = np.array(
        [[likelihood(backbone, text, label)[0] for label in task.labels] for text in texts]
    )
    shares = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
    right = shares[[0, 1], [0, -1]]
    assert likely == pytest.approx(np.log(np.maximum(right, 1e-4)), abs=1e-3)
    if task.kind == "score":
        values = np.array([float(label) for label in task.labels])
        ends = np.array([values[:1], values[-1:]])
        assert metric == pytest.approx(-(shares * np.abs(values - ends)).sum(1), abs=1e-3)
    else:
        assert metric == pytest.approx(right, abs=1e-4)


def test_an_unknown_label_decides_nothing(backbone: Backbone, engine: TorchEngine) -> None:
    requests = asked(backbone, ["lazy dog"])
    metric, likely = worths(engine, get_task("LaMP_2N"), requests, ["no such label"], "both")
    assert metric.tolist() == [0.0] and likely is not None and likely.tolist() == [0.0]
