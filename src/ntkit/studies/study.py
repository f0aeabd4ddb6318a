"""What every study is made of: a configuration, claims that were measured, and a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, dataclass_transform, get_args, get_origin, get_type_hints

from ntkit.errors import BadTypeError, BadValueError, one_of

if TYPE_CHECKING:
    import numpy as np  # loaded when a study runs: help must come at once


def option(
    default: object,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    least: int = 1,
    check: Callable[[str, str], None] | None = None,
) -> Any:
    """Return a field of a configuration: its default, what the command line says of it, and its range.

    ``least`` is how many different values it must have, of an option with several; ``check(name, value)``
    refuses texts that it does not know.
    """
    range_ = {"low": low, "high": high, "above": above, "least": least, "check": check}
    return field(default=default, metadata={"help": help, **range_})


@dataclass_transform(kw_only_default=True, frozen_default=True)
@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What every study can be told; the class of a study's own options is a frozen dataclass, too."""

    seed: int = option(0, "Seed of all that is drawn.", low=0, high=2**31 - 1)
    device: str = option("cpu", "Where to compute: cpu or cuda.")

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, kinds[each.name], getattr(self, each.name)))
        if self.device == "cpu":
            return
        import torch

        try:
            torch.zeros(1, device=self.device).item()
        except (RuntimeError, AssertionError) as error:
            raise BadValueError(
                f"device is {self.device!r}, which this machine does not have: {error}"
            ) from error

    @property
    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, the seed and the device apart."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("seed", "device") and getattr(self, f.name) != f.default
        }


def options(config: type[StudyConfig]) -> list[tuple[str, Any, str]]:
    """Return name, kind and text of each field as an option; several values are a list, None the default."""
    kinds = get_type_hints(config)
    rows = []
    for each in fields(config):
        kind: Any = kinds[each.name]
        default: Any = each.default
        if get_origin(kind) is tuple:
            each_kind = get_args(kind)[0]
            kind = list[str if get_origin(each_kind) is Literal else each_kind]  # type: ignore[misc]
            default = ", ".join(map(str, default))
        shown = "" if default is None else f" [default: {default}]"
        rows.append((each.name, kind | None, f"{each.metadata['help']}{shown}"))
    return rows


def _checked(each: Any, kind: Any, value: object) -> Any:
    """Return the value of a field in its own kind: a number in its range, one of the choices, or several."""
    assert each.default is not MISSING, f"{each.name} has no default"
    if get_origin(kind) is UnionType:
        return None if value is None else _checked(each, get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not values:
            raise BadValueError(f"{each.name} is empty; expected at least one value.")
        values = tuple(_checked(each, get_args(kind)[0], v) for v in values)
        if len(set(values)) < len(values):
            raise BadValueError(
                f"{each.name} is {values}; expected different values: leave the repeated out."
            )
        if len(values) < each.metadata["least"]:
            raise BadValueError(
                f"{each.name} is {values}; expected at least {each.metadata['least']} values: the study "
                "takes their slope or ratio."
            )
        return values
    if get_origin(kind) is Literal:
        return one_of(each.name, value, get_args(kind))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise BadTypeError(f"{each.name} is {value!r}; expected a value of type {kind.__name__}.")
    if each.metadata["check"] is not None:
        each.metadata["check"](each.name, value)
    low, high, above = (each.metadata.get(key) for key in ("low", "high", "above"))
    if isinstance(value, (int, float)) and not (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and isfinite(value)
    ):
        raise BadValueError(f"{each.name} is {value}; expected {_range(low, high, above)}.")
    return value


def _range(low: float | None, high: float | None, above: float | None) -> str:
    if above is not None:
        return f"a number above {above:g}" + ("" if high is None else f", at most {high:g}")
    if low is not None and high is not None:
        return f"a number from {low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else "a number"


@dataclass(frozen=True)
class Claim:
    """One row of a study's table: what a paper says, what was measured, and the bar for it.

    ``low`` and ``high`` bound the measured value, inclusively; without both, the row is a report and asserts
    nothing.
    """

    what: str
    measured: float
    paper: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def bar(self) -> str:
        """The bar in words."""
        low, high = (None if v is None else f"{v:.4g}" for v in (self.low, self.high))
        if low is not None and high is not None:
            return f"= {low}" if self.low == self.high else f"{low} to {high}"
        return f"≥ {low}" if low is not None else f"≤ {high}" if high is not None else ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        if self.low is None and self.high is None:
            return None
        above = self.low is None or self.measured >= self.low
        return bool(above and (self.high is None or self.measured <= self.high))


@dataclass(frozen=True)
class Result:
    """What a study found.

    ``config`` is of the study's own class; ``arrays`` is what its figures draw, given as arrays, tensors or
    lists; ``numbers`` is anything else worth keeping, as JSON has it; ``notes`` says what was scaled down,
    what was not reproduced, and why.
    """

    config: Any
    claims: Sequence[Claim]
    arrays: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", tuple(self.claims))
        object.__setattr__(self, "arrays", {name: array(values) for name, values in self.arrays.items()})


def array(value: object) -> np.ndarray:
    """Return a tensor or a nested list as a contiguous array of the CPU."""
    import numpy as np
    import torch

    return np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
