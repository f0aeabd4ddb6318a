"""The runs of the benchmark of accounts: a network, its data, its optimizer, and how it is trained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from networks import ViT
from torch import Tensor, nn

import ntkit

Inputs = Any  # a tensor, or named ones
WORDS, LENGTH, CLASSES = 1000, 32, 10


class Block(nn.Module):
    """A basic block of a ResNet, with batch norm or without."""

    def __init__(self, i: int, o: int, stride: int, norm: bool, act: type[nn.Module]) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(*pair, 3, s, 1, bias=not norm) for pair, s in (((i, o), stride), ((o, o), 1))
        )
        self.norm_a, self.norm_b = (nn.BatchNorm2d(o) if norm else nn.Identity() for _ in range(2))
        self.act = act()
        self.short = nn.Conv2d(i, o, 1, stride) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and a skip."""
        h = self.act(self.norm_a(self.a(x)))
        return self.act(self.norm_b(self.b(h)) + self.short(x))


def resnet(norm: bool, act: type[nn.Module]) -> nn.Module:
    """Return three blocks of 16, 32 and 64 channels: 78 k weights."""
    first = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16) if norm else nn.Identity(), act()
    blocks = (Block(*sizes, norm, act) for sizes in ((16, 16, 1), (16, 32, 2), (32, 64, 2)))
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Lstm(nn.Module):
    """Words, an LSTM, and a head on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(WORDS, 64), nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the last word's state."""
        return self.head(self.body(self.words(x))[0][:, -1])


def mlp() -> nn.Module:
    """Return 784-256-256-10 with ReLU."""
    layers = nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(256, CLASSES))


def bert() -> nn.Module:
    """Return two layers of width 128, with dropout of 0.1: logits of BertForSequenceClassification."""
    from transformers import BertConfig, BertForSequenceClassification

    from ntkit.training.loops.transformers import Logits

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = BertConfig(vocab_size=WORDS, max_position_embeddings=64, num_labels=CLASSES, **sizes)
    return Logits(BertForSequenceClassification(config))


def pictures(n: int) -> Tensor:
    """Return noise with the correlations of pictures."""
    return torch.randn(n, 3, 32, 32).cumsum(-1).cumsum(-2) / 16


def words(n: int) -> Tensor:
    """Return words whose number says how rare they are."""
    return (WORDS * torch.rand(n, LENGTH).square()).long().clamp(1, WORDS - 1)


def sentences(n: int) -> dict[str, Tensor]:
    """Return words with padding behind them, and the mask that says so."""
    mask = (torch.arange(LENGTH) < torch.randint(LENGTH // 4, LENGTH + 1, (n, 1))).long()
    return {"input_ids": words(n) * mask, "attention_mask": mask}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=5e-4)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW as it is used for transformers."""
    return torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.01)


@dataclass
class Job:
    """One run: what is trained, on what, and what an account of it may cost (over training, by tolerance)."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    rate: float  # of a plain gradient, for TracIn; 0 if the optimizer has none
    batch: int
    momentum: float = 0.0
    samples: int = 512
    bars: tuple[tuple[float, float], ...] = ()  # tolerance, times training

    def mean_rate(self, steps: int) -> float:
        """Return what the gradient of a step moves until the end, with momentum, averaged over the steps."""
        mu = self.momentum
        return self.rate * sum((1 - mu ** (steps - k)) / (1 - mu) for k in range(steps)) / steps

    def begin(self, steps: int) -> None:
        """Draw data, network and batches."""
        torch.manual_seed(0)
        self.x, self.y = self.inputs(self.samples), torch.randint(CLASSES, (self.samples,))
        self.net = self.build()
        self.made = self.optimizer(self.net.parameters())
        self.order = [torch.randperm(self.samples)[: self.batch] for _ in range(steps)]
        self.start = {k: v.clone() for k, v in self.net.state_dict().items()}

    def of(self, index: Tensor | slice) -> Inputs:
        """Return the inputs of some samples."""
        return {k: v[index] for k, v in self.x.items()} if isinstance(self.x, dict) else self.x[index]

    def outputs(self, x: Inputs) -> Tensor:
        """Return logits."""
        return self.net(**x) if isinstance(x, dict) else self.net(x)

    def train(self, folder: str | None = None) -> float:
        """Train from the beginning, recorded or not, and return the seconds."""
        self.net.load_state_dict(self.start)
        self.made.state.clear()
        self.net.train()
        torch.manual_seed(1)
        if folder is None:
            begin = time.perf_counter()
            self._steps(None)
            return time.perf_counter() - begin
        begin = time.perf_counter()
        with ntkit.record(folder, self.net, self.made) as run:
            self._steps(run)
        return time.perf_counter() - begin

    def _steps(self, run: Any) -> None:
        for index in self.order:
            if run is not None:
                run.batch(index)
            self.made.zero_grad()
            F.cross_entropy(self.outputs(self.of(index)), self.y[index]).backward()
            self.made.step()


class TrainerJob(Job):
    """A run that the Trainer of transformers makes, with its own sampler, schedule, clipping and loss."""

    def train(self, folder: str | None = None) -> float:
        """Train from the beginning, recorded or not, and return the seconds."""
        from transformers import Trainer, TrainingArguments

        from ntkit.training.loops.transformers import TransformersRecorder

        self.net.load_state_dict(self.start)
        columns = {**self.x, "labels": self.y}
        data = [{name: value[i] for name, value in columns.items()} for i in range(self.samples)]
        recorders = []
        if folder is not None:  # BERT ignores the number of items that the Trainer tells it
            recorders.append(TransformersRecorder(folder, train=(self.x, self.y), weight=1.0))
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                output_dir=out,
                max_steps=len(self.order),
                per_device_train_batch_size=self.batch,
                learning_rate=5e-4,
                weight_decay=0.01,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            trainer = Trainer(model=self.net.model, args=arguments, train_dataset=data, callbacks=recorders)
            begin = time.perf_counter()
            trainer.train()
            return time.perf_counter() - begin


def jobs() -> dict[str, Job]:
    """Return all runs by name."""
    bars = {(False, act): ((1e-2, 8.0), (1e-3, 8.0)) for act in (nn.ReLU, nn.GELU)}
    bars[True, nn.ReLU], bars[True, nn.GELU] = ((1e-2, 12.0), (1e-3, 25.0)), ((1e-2, 12.0), (1e-3, 12.0))
    made = [
        Job("MLP", mlp, lambda n: torch.randn(n, 784), sgd, 0.02, 64, 0.9),
        *(
            Job(
                f"ResNet, {'batch norm' if with_norm else 'no norm'}, {act.__name__}",
                lambda with_norm=with_norm, act=act: resnet(with_norm, act),
                pictures,
                sgd,
                0.02,
                64,
                0.9,
                bars=bars[with_norm, act],
            )
            for with_norm in (False, True)
            for act in (nn.ReLU, nn.GELU)
        ),
        Job("ViT", lambda: ViT(128, 5, 4), pictures, adamw, 0.0, 32, bars=((1e-3, 15.0),)),
        Job("BERT", bert, sentences, adamw, 0.0, 32, bars=((1e-3, 15.0),)),
        TrainerJob("Trainer, BERT", bert, sentences, adamw, 0.0, 32, bars=((1e-3, 15.0),)),
        Job("LSTM", Lstm, words, lambda p: torch.optim.SGD(p, lr=0.5), 0.5, 32),
    ]
    return {job.name: job for job in made}
