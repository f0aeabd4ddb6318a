"""The options of the demo; light enough for the command line's help."""

from __future__ import annotations

from typing import Any, Literal

from ntkit.studies.study import StudyConfig, option

RATES: dict[str, float] = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "adam": 3e-3, "adamw": 3e-3}
QUICK: dict[str, Any] = {"samples": 500, "epochs": 6, "hidden": 32, "subset": 60}
_RATES = ", ".join(f"{name} {rate:g}" for name, rate in RATES.items())


class Config(StudyConfig):
    """The demo: a network with one hidden layer learns real digits and is accounted for."""

    samples: int = option(1200, "Digits to train on.", low=10, high=1347)
    epochs: int = option(10, "Passes over the training digits.", low=1, high=1000)
    batch: int = option(32, "Digits in a training step.", low=1, high=1347)
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw"] = option("momentum", "Optimizer.")
    learning_rate: float | None = option(None, f"Learning rate; if none is given: {_RATES}.", above=0)
    weight_decay: float = option(1e-3, "Weight decay.", low=0)
    hidden: int = option(64, "Hidden units.", low=1, high=4096)
    activation: Literal["gelu", "tanh", "silu", "softplus", "sigmoid", "relu"] = option("gelu", "Activation.")
    dtype: Literal["float64", "float32"] = option("float64", "Precision of the training.")
    queries: int = option(12, "Held-out digits to explain.", low=1, high=200)
    subset: int = option(200, "Training digits in the kernel matrix.", low=10, high=1347)
    shown: int = option(6, "Training digits shown each way.", low=1, high=100)
    tol: float = option(1e-8, "Tolerance of the account.", above=0, high=1)

    @property
    def rate(self) -> float:
        """The learning rate: the one given, or else what suits the optimizer."""
        return RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
