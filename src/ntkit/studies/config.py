"""What the studies can be told, checked; light enough for the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ntkit.errors import NtkitError

Optimizer = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
Activation = Literal["gelu", "tanh", "silu", "softplus", "sigmoid", "relu"]
Precision = Literal["float64", "float32"]


@dataclass(frozen=True)
class DemoConfig:
    """The demo: a network with one hidden layer learns real digits and is accounted for."""

    out: str = "out/demo"
    samples: int = 1200
    epochs: int = 10
    batch: int = 32
    optimizer: Optimizer = "momentum"
    learning_rate: float | None = None
    weight_decay: float = 1e-3
    hidden: int = 64
    activation: Activation = "gelu"
    dtype: Precision = "float64"
    seed: int = 0
    queries: int = 12
    subset: int = 200
    shown: int = 6
    tol: float = 1e-8

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise NtkitError(f"{name} is {value!r}; expected a whole number from {least} to {most}.")
        for name, kind in (("optimizer", Optimizer), ("activation", Activation), ("dtype", Precision)):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise NtkitError(f"{name} is {value!r}; expected one of {', '.join(get_args(kind))}.")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise NtkitError(f"learning_rate is {rate}; expected a positive number.")
        if not 0 <= self.weight_decay < float("inf"):
            raise NtkitError(f"weight_decay is {self.weight_decay}; expected zero or a positive number.")
        if not 0 < self.tol < 1:
            raise NtkitError(f"tol is {self.tol}; expected a number between 0 and 1.")

    @property
    def rate(self) -> float:
        """The learning rate: the one given, or else what suits the optimizer."""
        return RATES[self.optimizer] if self.learning_rate is None else self.learning_rate


RATES: dict[str, float] = {"sgd": 0.2, "momentum": 0.05, "nesterov": 0.05, "adam": 3e-3, "adamw": 3e-3}
QUICK: dict[str, Any] = {"samples": 500, "epochs": 6, "hidden": 32, "subset": 60}

_RANGES = (
    ("samples", 10, 1347),
    ("epochs", 1, 1000),
    ("batch", 1, 1347),
    ("hidden", 1, 4096),
    ("seed", 0, 2**31 - 1),
    ("queries", 1, 200),
    ("subset", 10, 1347),
    ("shown", 1, 100),
)
