"""The account of predictions: a frozen table that knows its identity, and how to be saved."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float64
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError, NtkitError, RunFolderError, whole
from ntkit.files import Json, as_path, read_tensors, write_atomically
from ntkit.inputs import Inputs
from ntkit.training.accounts.columns import COLUMNS
from ntkit.training.accounts.plan import AccountPlan
from ntkit.training.accounts.target import name_of

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes

FORMAT = "ntkit account 3"
_SCALARS = ("tol", "nodes", "converged", "steps", "rule", "spent", "target", "chosen", "plan")
_LAST = {"contributions": ("sample",), "by_step": ("step",)}  # the axes behind query and output


class Contribution(NamedTuple):
    """What one training sample contributed to one output of one query, in the unit of the output."""

    index: int
    contribution: float


@dataclass(frozen=True, repr=False)
class Account:
    """Predictions of a trained network as sums over its training samples, made by `account`.

    An exact account of what happened in this run, step by step; not a counterfactual: it does not say
    what the network would predict had a sample been left out. For q queries, o outputs, n samples::

        prediction = initial + contributions.sum(-1) + decay + start + buffers + rounding + residual

    All are float64 tensors on the CPU, in the unit of the network's output.

    Attributes
    ----------
    contributions
        What each training sample's gradients moved the prediction by, ``[q, o, n]``.
    by_step
        The same contributions step by step instead of sample by sample, ``[q, o, steps]``: what the gradients
        of the batch of each step moved, then and, through momentum, later.
    initial, prediction
        The outputs at the first and the last recorded weights, ``[q, o]``, as are the following.
    decay
        What weight decay (L2 or decoupled) moved.
    start
        What momentum, or the lag of an average, from before the recording moved.
    buffers
        What changing buffers (the statistics of batch norm) moved, at fixed weights.
    rounding
        What the steps' deviation from exact arithmetic moved: the precision of the training.
    residual
        What is left, measured: the error of the quadrature along the steps.
    unsigned
        The absolute residuals of the steps added up, ``[q, o]``: where it is much larger than `residual`, the
        steps' errors cancel in the sum.
    tol, nodes, converged, steps
        The tolerance asked for, how many steps took how many nodes, whether the largest abs(residual) is
        at most tol times the largest abs(prediction - initial), and the number of steps.
    rule, spent
        What was asked for as `nodes`, and how many gradients of queries were taken altogether.
    target, chosen
        What was accounted for (`account`'s ``target``), and for each query the numbers of the outputs of the
        network that it is about: all if None, the two of a margin, the label of a loss that has one.
    plan
        How it was made: precision, nodes, where contributions come from, tiles, seconds, bytes.

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
    >>> a = ntkit.account(folder, model, loss, train=(x, x), queries=[[0.5]])
    >>> whole = a.initial + a.contributions.sum(-1) + a.decay + a.start + a.buffers + a.rounding + a.residual
    >>> torch.allclose(whole, a.prediction), a.contributions.shape
    (True, torch.Size([1, 1, 8]))
    """

    contributions: Float64[Tensor, "q o n"]
    by_step: Float64[Tensor, "q o steps"]
    initial: Float64[Tensor, "q o"]
    decay: Float64[Tensor, "q o"]
    start: Float64[Tensor, "q o"]
    buffers: Float64[Tensor, "q o"]
    rounding: Float64[Tensor, "q o"]
    residual: Float64[Tensor, "q o"]
    unsigned: Float64[Tensor, "q o"]
    prediction: Float64[Tensor, "q o"]
    tol: float
    nodes: Mapping[int, int]
    converged: bool
    steps: int
    rule: str = field(default="auto")
    spent: int = field(default=0)
    target: str | int | list[str | int] = field(default="outputs")
    chosen: list[list[int]] | None = field(default=None)
    plan: AccountPlan | None = field(default=None)

    @property
    def relative_residual(self) -> float:
        """Return the largest abs(residual) over the largest abs(prediction - initial), no unit."""
        worst = float(self.residual.abs().max())
        moved = float((self.prediction - self.initial).abs().max())
        return worst / moved if moved > 0 else (0.0 if worst == 0 else float("inf"))

    def top(self, query: int, k: int = 10, output: int | None = None) -> list[Contribution]:
        """Return the k samples whose contributions to a query are largest in size, signed.

        Parameters
        ----------
        query
            Which query, counted from 0 (or from the end, if negative).
        k
            How many; all, if there are fewer.
        output
            Which output; the one of the largest prediction, if left out.
        """
        whole("k", k, 0)
        row = self.contributions[self._query(query), self._output(query, output)]
        order = row.abs().argsort(descending=True, stable=True)[: min(k, len(row))]
        return [Contribution(i, float(row[i])) for i in order.tolist()]

    def output_name(self, query: int, output: int | None = None, classes: Sequence[str] | None = None) -> str:
        """Return what one output of the account is: an output of the network, a margin of two, a loss.

        ``classes`` are the names of all outputs of the network; their numbers if left out.
        """
        query, output = self._query(query), self._output(query, output)
        return name_of(self.target, None if self.chosen is None else self.chosen[query], output, classes)

    def table(self, query: int | None = None, output: int | None = None) -> pandas.DataFrame:
        """Return the contributions as a table of pandas: one row for each sample, query and output.

        Columns are ``query``, ``output`` (its name), ``sample`` and ``contribution``, in the unit of the
        output. With ``query``, only of that one, and of its predicted output if ``output`` is left out; the
        samples that contributed most come first.
        """
        try:
            import pandas
        except ImportError as error:
            raise NtkitError("table() makes a table of pandas: pip install pandas.") from error
        q, o, n = self.contributions.shape
        if query is None:
            pairs = [(i, j) for i in range(q) for j in (range(o) if output is None else [output])]
        else:
            pairs = [(self._query(query) % q, self._output(query, output))]
        parts = [
            pandas.DataFrame(
                {
                    "query": i,
                    "output": self.output_name(i, j),
                    "sample": range(n),
                    "contribution": self.contributions[i, j].numpy(),
                }
            )
            for i, j in pairs
        ]
        rows = pandas.concat(parts, ignore_index=True)
        if query is None:
            return rows
        order = parts[0]["contribution"].abs().to_numpy().argsort(kind="stable")[::-1]
        return rows.iloc[order].reset_index(drop=True)

    def show(
        self, query: int = 0, output: int | None = None, count: int = 20, ax: Axes | None = None
    ) -> Axes:
        """Draw the training samples that contributed most to one output of a query."""
        from ntkit.display.account_plots import contributions

        return contributions(self, query, ax, output=output, count=count)

    def by_class(self, labels: Inputs | None) -> Float64[Tensor, "q o classes"]:
        """Return the contributions summed over the training samples of each class, ``[q, o, classes]``.

        ``labels [n]`` are the classes of the training samples as whole numbers from 0; their sum over classes
        is that of the contributions.
        """
        classes = _as_tensor("labels", labels).reshape(-1)
        n = self.contributions.shape[-1]
        if len(classes) != n or classes.is_floating_point() or classes.is_complex() or int(classes.min()) < 0:
            raise BadValueError(
                f"{len(classes)} labels that begin with {classes[:3].tolist()}; "
                f"expected the classes of the {n} training samples, as whole numbers from 0."
            )
        one_hot = torch.nn.functional.one_hot(classes.long()).to(self.contributions)
        return self.contributions @ one_hot

    def over_time(self, query: int, output: int | None = None) -> Float64[Tensor, " steps"]:
        """Return what the batch of each step moved one output of a query by, ``[steps]``: `by_step` of it.

        Its running sum is the way of the prediction through training, but for decay, start, buffers and
        rounding; a step's share counts all that its gradients moved, through momentum in later steps too.
        """
        return self.by_step[self._query(query), self._output(query, output)]

    def self_influence(self, index: Inputs | None = None) -> Float64[Tensor, "q o"]:
        """Return what each query, itself a training sample, contributed to its own prediction, ``[q, o]``.

        Parameters
        ----------
        index
            Which training sample each query is, ``[q]``; the first q of them in their order if left out. A
            large value for its own label marks a sample that was memorized: rare, or labelled wrong.
        """
        q, o, n = self.contributions.shape
        chosen = torch.arange(q) if index is None else _as_tensor("index", index)
        if (
            chosen.shape != (q,)
            or chosen.is_floating_point()
            or (q and (int(chosen.min()) < 0 or int(chosen.max()) >= n))
        ):
            raise BadValueError(
                f"self_influence takes one training sample, 0 to {n - 1}, for each of the {q} queries; got "
                f"{tuple(chosen.shape)}. Account for training samples as queries, and say which they are."
            )
        return self.contributions.gather(-1, chosen[:, None, None].expand(q, o, 1)).squeeze(-1)

    def margin(self, a: int, b: int) -> Account:
        """Return the account of output a minus output b, as one output: what tells two classes apart."""
        first, second = self._output(0, a), self._output(0, b)
        parts = {name: getattr(self, name) for name in _tensors()}
        margins = {name: t[:, first, None] - t[:, second, None] for name, t in parts.items()}
        margins["unsigned"] = self.unsigned[:, first, None] + self.unsigned[:, second, None]
        numbers = [[a, b] if row is None else [row[first], row[second]] for row in self._chosen()]
        return replace(self, **margins, target="margin", chosen=numbers)

    def _chosen(self) -> list[list[int] | None]:
        return [None] * len(self.prediction) if self.chosen is None else [*self.chosen]

    def _query(self, query: int) -> int:
        q = len(self.contributions)
        if not -q <= whole("query", query, None) < q:
            raise BadValueError(f"Query {query} does not exist: there are {q}, counted from 0.")
        return query

    def _output(self, query: int, output: int | None) -> int:
        o = self.contributions.shape[1]
        if output is None:
            return int(self.prediction[self._query(query)].argmax())
        if not -o <= whole("output", output, None) < o:
            raise BadValueError(f"Output {output} does not exist: there are {o}, counted from 0.")
        return output

    def summary(self) -> str:
        """Return the identity with its numbers, the largest over queries and outputs of each column."""
        moved = float((self.prediction - self.initial).abs().max())
        columns = {"prediction": self.prediction, "= initial": self.initial}
        columns["+ contributions"] = self.contributions.sum(-1)
        columns |= {f"+ {name}": getattr(self, name) for name in (*COLUMNS, "residual")}
        q, o, n = self.contributions.shape
        lines = [
            f"Account of {q} queries x {o} outputs over {n} samples, {self.steps} steps ({self.rule})",
            *(f"  {name:<16}largest {float(column.abs().max()):.6g}" for name, column in columns.items()),
            f"residual / movement: {self.relative_residual:.3g} "
            f"({'within' if self.converged else 'NOT within'} {self.tol:.3g}; movement {moved:.6g})",
            "What happened in this run, exactly; not what would have happened without a sample.",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from ntkit.display.notebook import listing, with_figure

        if not self.contributions.numel():
            return listing(self.summary())
        return with_figure(self.summary(), self.show(0), "account")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the account into one safetensors file, in one go; an older file is replaced."""
        scalars = {name: getattr(self, name) for name in _SCALARS} | {"nodes": dict(self.nodes)}
        scalars["plan"] = None if self.plan is None else asdict(self.plan)
        metadata = {"format": FORMAT, "account": json.dumps(scalars)}
        tensors = {name: getattr(self, name).contiguous() for name in _tensors()}
        try:
            write_atomically(as_path(path), safetensors.torch.save(tensors, metadata))
        except OSError as error:
            raise NtkitError(f"{path} cannot be written ({error.strerror}); choose another place.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Account:
        """Return an account that was saved, checked: complete, finite, and its identity holding."""
        path = as_path(path)
        try:
            tensors, metadata = read_tensors(path.read_bytes())
            if metadata["format"] != FORMAT:
                raise KeyError("format")
            scalars: Json = json.loads(metadata["account"])
            scalars["nodes"] = {int(count): steps for count, steps in scalars["nodes"].items()}
            scalars["plan"] = None if scalars["plan"] is None else AccountPlan(**scalars["plan"])
            account = cls(**{name: tensors[name] for name in _tensors()}, **scalars)
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be read ({error.strerror}); give a file saved by Account."
            ) from error
        except (KeyError, ValueError, TypeError) as error:
            raise RunFolderError(
                f"{path} is not an account, or was truncated or edited. Recompute it from its run."
            ) from error
        if not account._identity_holds():
            raise RunFolderError(
                f"{path} was edited: its columns do not add up to its predictions. Recompute the account."
            )
        return account

    def to_xarray(self) -> xarray.Dataset:
        """Return an xarray Dataset with dimensions query, output, sample; units are the output's."""
        import xarray

        units = {"units": "unit of the network's output"}
        arrays = {}
        for name in _tensors():
            axes = ("query", "output", *_LAST.get(name, ()))
            arrays[name] = axes, getattr(self, name).numpy().copy(), units
        attributes = {
            "identity": "prediction = initial + contributions.sum('sample') + decay + start + buffers + "
            "rounding + residual",
            "meaning": "an exact account of what happened in this run, not a counterfactual",
            "tol": self.tol,
            "steps": self.steps,
            "rule": self.rule,
            "converged": int(self.converged),
            "nodes": json.dumps(dict(self.nodes)),
        }
        return xarray.Dataset(arrays, attrs=attributes)

    def _identity_holds(self) -> bool:
        q, o, _ = self.contributions.shape
        columns = [getattr(self, name) for name in (*COLUMNS, "initial", "residual")]
        if any(c.shape != (q, o) or c.dtype != torch.float64 for c in (*columns, self.prediction)):
            return False
        whole = self.contributions.sum(-1)
        terms = [whole, *columns]
        size = self.contributions.abs().sum(-1) + sum(t.abs() for t in columns)
        if self.by_step.shape != (q, o, self.steps):
            return False
        steps = (self.by_step.sum(-1) - whole).abs() <= 1e-9 * size + 1e-300
        return bool(steps.all() and ((sum(terms) - self.prediction).abs() <= 1e-12 * size + 1e-300).all())


def _tensors() -> list[str]:
    return [f.name for f in fields(Account) if f.name not in _SCALARS]


def _as_tensor(name: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTypeError(
            f"{name} are {values!r}; expected whole numbers, in a list or a tensor."
        ) from error
