"""What predictions would have been without samples: a frozen table, and its check against training again."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float64
from torch import Tensor

from ntkit.errors import BadValueError, NtkitError, RunFolderError, whole
from ntkit.files import Json, as_path, read_tensors, write_atomically
from ntkit.training.accounts.target import name_of
from ntkit.training.counterfactuals.retrain import without_eps
from ntkit.training.recording.indices import Indices

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes

FORMAT = "ntkit counterfactual 1"
_TENSORS = ("effects", "prediction")
_ROUGH = 0.5  # relative changes of a derivative, from which on it says little
_SCALARS = ("target", "chosen", "total", "steps")

Again = Callable[[list[Tensor]], list[Tensor]]  # weights of samples -> outputs [q, o] of the trained networks


class Effect(NamedTuple):
    """What leaving out one training sample would change, in the unit of the output."""

    index: int
    effect: float


@dataclass(frozen=True, repr=False)
class Check:
    """Predicted changes beside those that training again without the samples made, ``[sets, q, o]``.

    Attributes
    ----------
    sets
        The samples left out together, a list for each set.
    predicted, real
        The change of each output by leaving the set out, in its unit.
    """

    sets: list[list[int]]
    predicted: Float64[Tensor, "s q o"]
    real: Float64[Tensor, "s q o"]

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation over the sets, averaged over queries and outputs; 1 is perfect."""
        return self._mean(_ranks)

    @property
    def linear_correlation(self) -> float:
        """Pearson's correlation over the sets, averaged over queries and outputs."""
        return self._mean(lambda v: v)

    @property
    def relative_error(self) -> float:
        """The root mean square of predicted less real over that of real."""
        return float((self.predicted - self.real).norm() / self.real.norm())

    def _mean(self, of: Callable[[np.ndarray], np.ndarray]) -> float:
        a, b = (of(t.flatten(1).numpy()) for t in (self.predicted, self.real))
        a, b = a - a.mean(0), b - b.mean(0)
        size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
        moves = size > 0
        return float(((a * b).sum(0)[moves] / size[moves]).mean()) if moves.any() else float("nan")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw real against predicted changes, a point for each set, query and output."""
        from ntkit.display.account_plots import predicted_and_real

        return predicted_and_real(self, ax)

    def __repr__(self) -> str:
        sizes = sorted({len(s) for s in self.sets})
        return (
            f"<Check of {len(self.sets)} sets of {' or '.join(map(str, sizes))} samples: rank correlation "
            f"{self.rank_correlation:.3f}, linear {self.linear_correlation:.3f}, relative error "
            f"{self.relative_error:.2g}>"
        )

    def _repr_html_(self) -> str:
        from ntkit.display.svg import inline_svg

        return inline_svg(self.plot(), "check")


@dataclass(frozen=True, repr=False)
class Counterfactual:
    """What predictions of a trained network would be without its training samples; made by `counterfactual`.

    To first order in the weights of the samples' losses: exact for small changes of them, and for leaving out
    whole samples as good as the training is smooth. `check` measures that by training again.

    Attributes
    ----------
    effects
        The predicted change of each query's output if sample n is left out, -d f / d eps_n, ``[q, o, n]``.
    prediction
        The outputs at the end of the run, ``[q, o]``.
    target, chosen, total, steps
        What of a prediction is asked for, the numbers of the outputs that each query is about (None if all),
        whether queries are summed, and the number of steps of the run.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> model, loss = torch.nn.Linear(1, 1).double(), torch.nn.MSELoss()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.1), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, x)) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), x).backward()
    ...         _ = optimizer.step()
    >>> c = ntkit.counterfactual(folder, model, loss, train=(x, x), queries=[[0.5]])
    >>> torch.allclose(c.leave_out([0, 7]), c.effects[..., [0, 7]].sum(-1))
    True
    """

    effects: Float64[Tensor, "q o n"]
    prediction: Float64[Tensor, "q o"]
    target: str | int | list[str | int] = "outputs"
    chosen: list[list[int]] | None = None
    total: bool = False
    steps: int = 0
    _again: Again | None = field(default=None, compare=False)

    def leave_out(self, indices: Indices) -> Float64[Tensor, "q o"]:
        """Return the predicted change if these samples are left out together: their effects' sum."""
        return self.effects @ (1 - without_eps(indices, self.effects.shape[-1]))

    def top(self, query: int = 0, k: int = 10, output: int | None = None) -> list[Effect]:
        """Return the k samples that a query's output depends on most, with what leaving each out changes."""
        whole("k", k, 0)
        row = self.effects[self._query(query), self._output(query, output)]
        order = row.abs().argsort(descending=True, stable=True)[:k]
        return [Effect(i, float(row[i])) for i in order.tolist()]

    def output_name(self, query: int, output: int | None = None, classes: Sequence[str] | None = None) -> str:
        """Return what one output is: an output of the network, a margin of two, a loss."""
        query, output = self._query(query), self._output(query, output)
        if self.total and self.chosen is None and self.target in ("predicted", "margin"):
            return str(self.target)  # of each query another one
        return name_of(self.target, None if self.chosen is None else self.chosen[query], output, classes)

    def table(self, query: int = 0, output: int | None = None) -> pandas.DataFrame:
        """Return the effects on one output of a query as a table of pandas, the largest first."""
        try:
            import pandas
        except ImportError as error:
            raise NtkitError("table() makes a table of pandas: pip install pandas.") from error
        rows = self.top(query, self.effects.shape[-1], output)
        name = self.output_name(query, output)
        return pandas.DataFrame(
            {"output": name, "sample": [i for i, _ in rows], "effect": [e for _, e in rows]}
        )

    def show(
        self, query: int = 0, output: int | None = None, count: int = 20, ax: Axes | None = None
    ) -> Axes:
        """Draw the samples that one output of a query depends on most."""
        from ntkit.display.account_plots import effects

        return effects(self, query, ax, output=output, count=count)

    def check(self, sets: int = 20, size: int = 1, *, seed: int = 0) -> Check:
        """Train again without sets of samples, in float64, and return predicted beside real changes.

        Parameters
        ----------
        sets
            How many sets are drawn; for ``size=1`` as many again have the largest mean effects.
        size
            How many samples are left out together.
        seed
            Of the draw.
        """
        if self._again is None:
            raise NtkitError(
                "A counterfactual that was loaded from a file has no run to train again: make it anew with "
                "ntkit.counterfactual, or train with ntkit.retrain."
            )
        n = self.effects.shape[-1]
        whole("sets", sets, 1)
        whole("seed", seed, 0)
        if not 1 <= whole("size", size, 1) < n:
            raise BadValueError(f"size={size} of {n} samples; expected fewer than there are.")
        draw = torch.Generator().manual_seed(seed)
        chosen = [torch.randperm(n, generator=draw)[:size].tolist() for _ in range(sets)]
        if size == 1:
            largest = self.effects.abs().mean((0, 1)).argsort(descending=True)[:sets].tolist()
            drawn = [i for i in torch.randperm(n, generator=draw).tolist() if i not in largest]
            chosen = [[i] for i in [*largest, *drawn[:sets]]]
        base, *real = self._again([without_eps(s, n) for s in [[], *chosen]])
        predicted = torch.stack([self.leave_out(s) for s in chosen])
        return Check(chosen, predicted, torch.stack([r - base for r in real]))

    def smoothness(self, size: int = 1, *, sets: int = 4, seed: int = 0) -> float:
        """Return how far leaving samples out is from linear: the relative error over a few drawn sets.

        Each is left out by half, and whole: the change by half, doubled, less the whole one, over the whole
        one, median over the sets (0 where none of them moved anything). Near 0 derivatives carry, near 1 and
        above they say little: what helps is a smaller or falling rate, larger batches, smooth activations, a
        start that was trained. Above a half a RuntimeWarning says so.
        """
        if self._again is None:
            raise NtkitError("A counterfactual that was loaded from a file has no run to train again.")
        n = self.effects.shape[-1]
        if not 1 <= whole("size", size, 1) < n:
            raise BadValueError(f"size={size} of {n} samples; expected fewer than there are.")
        draw = torch.Generator().manual_seed(whole("seed", seed, 0))
        out = [
            without_eps(torch.randperm(n, generator=draw)[:size], n) for _ in range(whole("sets", sets, 1))
        ]
        base, *found = self._again(
            [torch.ones(n).double(), *(e for full in out for e in ((1 + full) / 2, full))]
        )
        halves, wholes = found[::2], found[1::2]
        moved = [(h - base, w - base) for h, w in zip(halves, wholes, strict=True)]
        bent = [float((2 * h - w).norm() / w.norm()) for h, w in moved if w.any()]
        rough = float(np.median(bent)) if bent else 0.0
        if rough > _ROUGH:
            warnings.warn(
                f"Leaving {size} sample{'s' * (size > 1)} out is far from linear in this run: half of it, "
                f"doubled, differs by {rough:.2g} of the whole. The effects say little of what would have "
                f"happened. A smaller or falling rate, larger batches, smooth activations (GELU, tanh) or a "
                f"trained start help; ntkit.retrain tells what happens without a set of samples.",
                RuntimeWarning,
                stacklevel=2,
            )
        return rough

    def summary(self) -> str:
        """Return shape and meaning, with the largest effects."""
        q, o, n = self.effects.shape
        return "\n".join(
            [
                f"Counterfactual of {q} {'sums of queries' if self.total else 'queries'} x {o} outputs "
                f"over {n} "
                f"samples, {self.steps} steps",
                f"  predictions      largest {float(self.prediction.abs().max()):.6g}",
                f"  one sample out   largest change {float(self.effects.abs().max()):.6g}, typical "
                f"{float(self.effects.abs().median()):.2g}",
                "What would have happened without a sample, to first order; check() measures how good that "
                "is.",
            ]
        )

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from ntkit.display.notebook import listing, with_figure

        if not self.effects.numel():
            return listing(self.summary())
        return with_figure(self.summary(), self.show(0), "counterfactual")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into one safetensors file, in one go."""
        scalars = {name: getattr(self, name) for name in _SCALARS}
        metadata = {"format": FORMAT, "counterfactual": json.dumps(scalars)}
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        try:
            write_atomically(as_path(path), safetensors.torch.save(tensors, metadata))
        except OSError as error:
            raise NtkitError(f"{path} cannot be written ({error.strerror}); choose another place.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Counterfactual:
        """Return one that was saved; `check` and `smoothness` need the run, and are not there."""
        path = as_path(path)
        try:
            tensors, metadata = read_tensors(path.read_bytes())
            if metadata["format"] != FORMAT:
                raise KeyError("format")
            scalars: Json = json.loads(metadata["counterfactual"])
            found = cls(
                **{name: tensors[name] for name in _TENSORS}, **{name: scalars[name] for name in _SCALARS}
            )
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be read ({error.strerror}); give a file of a Counterfactual."
            ) from error
        except (KeyError, ValueError, TypeError) as error:
            raise RunFolderError(
                f"{path} is not a counterfactual, or was truncated or edited. Make it again."
            ) from error
        if found.effects.shape[:2] != found.prediction.shape:
            raise RunFolderError(f"{path} was edited: its effects are not of its predictions. Make it again.")
        return found

    def to_xarray(self) -> xarray.Dataset:
        """Return an xarray Dataset with dimensions query, output, sample; units are the output's."""
        import xarray

        units = {"units": "unit of the network's output"}
        arrays = {
            "effects": (("query", "output", "sample"), self.effects.numpy().copy(), units),
            "prediction": (("query", "output"), self.prediction.numpy().copy(), units),
        }
        meaning = (
            "the change of a prediction if a sample is left out, to first order in the weight of its loss"
        )
        return xarray.Dataset(arrays, attrs={"meaning": meaning, "steps": self.steps})

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_again": None}

    def with_run(self, again: Again) -> Counterfactual:
        """Return the same with what trains its run again."""
        return replace(self, _again=again)

    def _query(self, query: int) -> int:
        q = len(self.effects)
        if not -q <= whole("query", query, None) < q:
            raise BadValueError(f"Query {query} does not exist: there are {q}, counted from 0.")
        return query

    def _output(self, query: int, output: int | None) -> int:
        o = self.effects.shape[1]
        if output is None:
            return int(self.prediction[self._query(query)].argmax())
        if not -o <= whole("output", output, None) < o:
            raise BadValueError(f"Output {output} does not exist: there are {o}, counted from 0.")
        return output


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values, axis=0)
