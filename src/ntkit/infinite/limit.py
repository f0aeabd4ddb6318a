"""The NNGP and NTK of a network's infinite-width limit, as kernels."""

from __future__ import annotations

from inspect import signature
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.compute.plan import parse_memory
from ntkit.compute.surroundings import undisturbed
from ntkit.compute.tiled.identity import structure
from ntkit.display.notebook import Printed
from ntkit.errors import BadTypeError, BadValueError, one_of, positive, whole
from ntkit.finite.parametrize import Scale, Sigma, check_sigma
from ntkit.infinite.coordinates import OfCoordinates, vector_of
from ntkit.infinite.data import as_data
from ntkit.infinite.layer import Layer
from ntkit.infinite.overflow import refuse_overflow
from ntkit.infinite.paths import Paths
from ntkit.infinite.program import Program
from ntkit.infinite.reading.laws import Laws, Parameterization, frozen
from ntkit.infinite.refinement import within
from ntkit.infinite.tiles import Compile, Plan, Tiles
from ntkit.infinite.variables.numerics import Numerics
from ntkit.inputs import Batch, Inputs, Picked, batch_size, take
from ntkit.kernel import Kernel
from ntkit.module_checks import refuse_stateful
from ntkit.network import Network, network, refuse_complex

LimitKind = Literal["nngp", "ntk"]


class LimitSettings(TypedDict):
    """The optional arguments of `infinite_width`."""

    sigma_w: Sigma
    sigma_b: Sigma
    parameterization: Parameterization
    samples: int
    seed: int
    tol: float | None
    memory: int | float | str
    compile: Compile
    inputs: Picked
    select: str | int | None


class Limit(Printed, OfCoordinates):
    """The infinite-width limit of a network, made by `infinite_width`.

    Attributes
    ----------
    nngp, ntk : LimitKernel
        The covariance of the outputs at the start, and their tangent kernel: ``k(x1, x2)`` is ``[n1, n2]``.
    program : Program
        The tensor program that was read: print it.
    layers : dict[str, Layer]
        The lines of the program by name, each with the kernels of what it computes.
    """

    def __init__(
        self,
        net: Network,
        example: Batch,
        given: Inputs,
        laws: Laws,
        numerics: Numerics,
        settings: LimitSettings,
    ) -> None:
        self.net, self.laws, self.numerics = net, laws, numerics
        self.example = take(example, slice(0, 1))
        self._memory, self.tol = settings["memory"], settings["tol"]
        self._compile: Compile = settings["compile"]
        again = given if callable(settings["inputs"]) else self.example  # from which a clone is read
        self.settings = {"model": net.module, "example": again, **settings}
        with torch.no_grad():
            self.paths = Paths(net, example, laws)
        self.program: Program = self.paths.first.program
        self._tiles: dict[tuple[Program, str | None, bool], Tiles] = {}
        self.tiles(None)
        self.nngp, self.ntk = self.kernel("nngp"), self.kernel("ntk")

    @property
    def layers(self) -> dict[str, Layer]:
        """The lines of the program by name, in their order, each with its kernels."""
        layers = {}
        for e in self.program.lines:
            if e.value is not None:
                kernels = self.kernel("nngp", e.name), self.kernel("ntk", e.name)
                layers[e.name] = Layer(e.name, e.kind, e.text, e.path, *kernels)
        return layers

    @property
    def error(self) -> float:
        """The largest relative error of a kernel so far, measured: zero where all is in closed form.

        Relative to sqrt(K(x, x) K(x', x')). What quadrature and series leave of an E[h h'] adds up from layer
        to layer; where functions are sampled, four standard errors of the kernel itself are added, from
        draws of a few of its entries with other points.
        """
        return self.numerics.error

    def kernel(self, kind: LimitKind, line: str | None = None, positions: bool = False) -> LimitKernel:
        """Return the NNGP or NTK of the output, or of a line of the program.

            K(x, x')[p, p'] = E[h_p(x) h_p'(x')],   Theta(x, x')[p, p'] of the same pairs

        ``[n1, n2]``, the mean over equal positions; with ``positions`` all pairs of them (nodes of a graph,
        pixels, tokens), ``[n1, n2, *positions, *positions']``, and ``[n, *positions, *positions']`` on the
        diagonal: the dimensions of the output or of the line in their order, without samples, channels,
        and those of size 1. A line that there is not is an `NtkitError` of the first call.

        >>> import torch, ntkit
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 1, 3, padding=1))
        >>> limit = ntkit.infinite_width(model, torch.randn(1, 2, 5))
        >>> limit.kernel("ntk", positions=True)(torch.randn(4, 2, 5), torch.randn(3, 2, 5)).shape
        torch.Size([4, 3, 5, 5])
        """
        one_of("kind", kind, get_args(LimitKind))
        settings: dict[str, Any] = self.settings
        kernel = LimitKernel(kind=kind, line=line, positions=positions, **settings)
        kernel._limit = self
        return kernel

    def tiles(self, line: str | None, *batches: Batch, positions: bool = False) -> Tiles:
        """Return what evaluates a line of the program, or the output, of the samples of some batches."""
        if not isinstance(line, str | None):
            raise BadTypeError(f"line={line!r}; expected the name of a line of the program, or None.")
        if not isinstance(positions, bool):
            raise BadTypeError(f"positions={positions!r}; expected True or False.")
        with torch.no_grad():
            program = self.paths.of(*batches).program if batches else self.program
        key = (program, line, positions)
        if key not in self._tiles:
            output = program.framed if positions else program.output
            value = output if line is None else vector_of(program, line)
            self._tiles[key] = Tiles(value, self.numerics, self._memory, self._compile, positions)
        return self._tiles[key]

    def __str__(self) -> str:
        head = f"Limit of {type(self.net.module).__name__} ({self.laws.parameterization} parameterization)"
        rows = [head, str(self.program)]
        if self.error:
            how = f"sampled at {self.numerics.count} points" if self.numerics.sampled else "by quadrature"
            what = "four standard errors" if self.numerics.sampled else "an error"
            rows.append(f"note: {how}, with {what} of up to {self.error:.1e} of the kernel.")
        return "\n".join(rows)


class LimitKernel(Kernel):
    """The NNGP or the NTK of a network's infinite-width limit, ``[n1, n2]`` for each single output.

    The full kernel of o outputs is this one times the identity of size o. Made by `infinite_width`; with
    ``line`` the kernel of a line of the program, as in ``limit.layers``; with ``positions`` that of all
    pairs of positions, ``[n1, n2, *positions, *positions']``: see `Limit.kernel`.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        kind: LimitKind = "ntk",
        line: str | None = None,
        positions: bool = False,
        **settings: Unpack[LimitSettings],
    ) -> None:
        self.model, self.example, self.kind, self.line = model, example, kind, line
        self.positions = positions
        self.inputs: Picked = None
        defaults = {p.name: p.default for p in signature(infinite_width).parameters.values()}
        self._settings = {k: v for k, v in defaults.items() if k not in ("model", "example")} | settings
        vars(self).update(self._settings)
        self._limit: Limit | None = None
        self._repeatable: LimitKernel | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name."""
        return super().get_params(deep) | {name: getattr(self, name) for name in self._settings}

    def identity(self) -> dict[str, object]:
        """Return what tells this kernel from another: not the weights, of which only scales may count."""
        shapes = [f"{list(t.shape[1:])} {t.dtype}" for t in pytree.tree_leaves(self.limit.example)]
        params = self.get_params(deep=False)
        compiled = params["compile"] is True
        return params | {"model": structure(self.model), "example": shapes, "compile": compiled}

    def repeatable(self) -> Kernel:
        """Return this kernel without what hangs on time (``compile="auto"``) or on calls before (``tol``)."""
        params = self.get_params(deep=False)
        if self._repeatable is None or params["tol"] is not None:
            plain = params["tol"] is None and params["compile"] != "auto"
            params["compile"] = params["compile"] is True
            self._repeatable = self if plain else LimitKernel(**params)
        return self._repeatable

    @property
    def limit(self) -> Limit:
        """The limit that this kernel belongs to, read again after `set_params` or `clone`."""
        if self._limit is None:
            one_of("kind", self.kind, get_args(LimitKind))
            own = ("kind", "line", "positions")
            params = {k: v for k, v in self.get_params(deep=False).items() if k not in own}
            self._limit = infinite_width(**params)
        return self._limit

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the kernel between two batches (the second is the first if left out).

        ``[n1, n2]``, or ``[n1, n2, *positions, *positions']``.
        """
        net = self.limit.net
        first = as_data(x1, net, "x1", self.inputs)
        second = None if x2 is None or x2 is x1 else self._checked(as_data(x2, net, "x2", self.inputs))
        with undisturbed(net):
            first = self._checked(first)
            tiles = self._tiles(first, *([] if second is None else [second]))
            block = within(self.limit.tol, tiles, self.kind == "ntk", first, second)
            self._finite(block, first, first if second is None else second)
            return block

    def plan(self, x1: Inputs, x2: Inputs | None = None) -> Plan:
        """Return how the kernel between two batches is made: tiles, bytes, sampled points. Print it."""
        net = self.limit.net
        first = self._checked(as_data(x1, net, "x1", self.inputs))
        second = first if x2 is None else self._checked(as_data(x2, net, "x2", self.inputs))
        with undisturbed(net), torch.no_grad():
            tiles = self._tiles(first, second)
            sizes = batch_size(first), batch_size(second)
            return tiles.plan(self.kind == "ntk", first, *sizes, symmetric=x2 is None or x2 is x1)

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the kernel of each sample with itself, ``[n]`` or ``[n, *positions, *positions']``."""
        batch = self._checked(as_data(x, self.limit.net, picked=self.inputs))
        with undisturbed(self.limit.net):
            tiles = self._tiles(batch)
            diagonal = within(self.limit.tol, tiles, self.kind == "ntk", batch, None, diagonal=True)
            self._finite(diagonal, batch, batch)
            return diagonal

    def _finite(self, kernel: Tensor, x1: Batch, x2: Batch) -> None:
        refuse_overflow(kernel, self.limit, self.kind, self.line, x1, x2)

    def _tiles(self, *batches: Batch) -> Tiles:
        return self.limit.tiles(self.line, *batches, positions=self.positions)

    def _checked(self, x: Batch) -> Batch:
        shapes, wanted = (
            [(*t.shape[1:], *["complex"] * t.is_complex()) for t in pytree.tree_leaves(batch)]
            for batch in (x, self.limit.example)
        )
        if shapes != wanted:
            raise BadValueError(
                f"The limit was read with inputs of shape {wanted}, got {shapes} (without the sample axis); "
                f"call infinite_width with an example of the new shape."
            )
        try:
            return pytree.tree_map(  # whole numbers would overflow in their own products
                lambda t, like: t.to(like.dtype) if like.is_floating_point() else t, x, self.limit.example
            )
        except ValueError as error:
            raise BadValueError(f"The inputs must be given as the limit's example was: {error}") from error

    def __repr__(self) -> str:
        line = f" of line {self.line}" if self.line else ""
        line += " between positions" if self.positions else ""
        laws = f"{self.get_params()['parameterization']} parameterization"
        return f"LimitKernel({self.kind}{line} of {type(self.model).__name__}, {laws})"


def infinite_width(
    model: nn.Module,
    example: Inputs,
    sigma_w: Sigma = 2**0.5,
    sigma_b: Sigma = 0.0,
    *,
    parameterization: Parameterization = "ntk",
    samples: int = 2**13,
    seed: int = 0,
    tol: float | None = None,
    memory: int | float | str = "2GiB",
    compile: Compile = "auto",
    inputs: Picked = None,
    select: str | int | None = None,
) -> Limit:
    """Return the NNGP and NTK of a network's infinite-width limit, read off the module itself.

        g = W h + b:          K(g, g')     = sigma_w^2 E[h h'] + sigma_b^2
                              Theta(g, g') = K(g, g') + sigma_w^2 sum_ij E[d_i h d_j h'] Theta(g_i, g'_j)
        h = phi(g_1, ..., g_k): E[...] under the joint Gaussian of the g's, whose covariance is K

    for two uses of the **same** weight; uses of different weights are independent. ``limit.nngp`` and
    ``limit.ntk`` are kernels, ``[n1, n2]`` for each single output: the full kernel of o outputs is that
    times the identity. ``limit.ntk`` is what `EmpiricalNTK` (mean over outputs) tends to.

    Parameters
    ----------
    model : torch.nn.Module
        The network as it stands, in eval mode; it is not changed. It must end in a linear map. Frozen
        parameters add nothing to the NTK (where all are frozen, all count).
    example : tensor, or tuple or dict of tensors
        A batch of inputs, of which the shapes count. A network that reads values of its samples (whether a
        mask hides anything) is read at a sample whose path serves all of the batch.
    sigma_w, sigma_b : float or dict
        The scales of ``"ntk"``; a dict gives them by module path, ``""`` for all other modules.
    parameterization : {"ntk", "standard"}
        ``"ntk"``: y = sigma_w / sqrt(fan_in) W h + sigma_b b with W, b from N(0, 1), which `ntk_parametrize`
        makes of a network. ``"standard"``: y = W h + b with the widths and the initial variances of the
        module itself (PyTorch's where its entries look like PyTorch's draw, else measured), so that
        Theta' = fan_in E[h h'] + 1 + fan_in Var(W) E[h' h'] Theta is the NTK of the network as it was
        initialized. Parameters used coordinate by coordinate (scales and shifts of norms, learned
        positions) have their own initial mean and variance, and rate 1, in both.
    samples, seed : int
        Quasi-random points for the functions that have neither a closed form nor a Hermite series (gates,
        softmax attention, max-pooling), and their seed. The same points serve all pairs of samples, so a
        value depends on its pair only.
    tol : float, optional
        The relative error that kernels may have: each call makes them again with twice the points, nodes or
        terms until ``limit.error`` of the call is at most that, or a `ToleranceWarning` says what was
        reached (after at most 8 doublings of points and 5 of nodes, fewer where these cannot do). Without
        it they are made once.
    memory : int or str
        A budget in bytes for the tiles in which blocks are made, and for the points that are sampled at a
        time, which take a quarter of it (a mebibyte at least). ``print(limit.ntk.plan(x))`` shows both.
    compile : bool or "auto"
        Whether tiles go through `torch.compile`; ``"auto"``: where the work is long enough to pay for it.
    inputs : optional
        What of an item of a ``DataLoader`` or ``Dataset`` goes into the network: a place (0), a name
        (``"input_ids"``), a list of them, or a function of the item; targets must not. Of the example too.
    select : str or int, optional
        Which part of outputs that are a dict, a tuple or an object, such as ``"logits"``.

    Raises
    ------
    NoRuleError
        An operation whose limit is not known, or a network that has none or a random one (a weight and its
        transpose, the read-out weight used elsewhere, a scalar parameter of all channels, an instance
        norm, a softmax or sigmoid at the end): with the operation, its module and its source line.
    NotPerSampleError
        Batch norm in training mode, active dropout.
    NtkitError
        A model that is not a module; a copy made by `ntk_parametrize` under ``"ntk"``; inputs of another
        shape than the example's.

    References
    ----------
    Cappelletti (2019), "Convolutional neural tangent kernel", section 2 (tensor programs, Eq. 2.3-2.4);
    Giancola (2023), Prop. III.1.2 and Thm. III.1.4; Yang, "Tensor programs II" (2020); Hron et al. (2020)
    for attention.

    Examples
    --------
    >>> import torch, ntkit
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 1)).double()
    >>> x = torch.eye(3, dtype=torch.float64)[:2]
    >>> limit = ntkit.infinite_width(model, x[:1], sigma_w=2**0.5)
    >>> print(limit.program)
     x  Input   data (3)
    g1  MatMul  0.weight x + 0.bias   (fan_in 3)   # 0
    h1  Nonlin  relu(g1)   [closed form]   # 1
    g2  MatMul  2.weight h1 + 2.bias   (fan_in 128)   # 2
    >>> limit.nngp(x)  # 2 / 3 on the diagonal, 2 / (3 pi) off it: the arc-cosine kernel
    tensor([[0.6667, 0.2122],
            [0.2122, 0.6667]], dtype=torch.float64)
    >>> limit.layers["h1"].nngp.diag(x), limit.ntk.normalized()(x)[0, 1]
    (tensor([0.3333, 0.3333], dtype=torch.float64), tensor(0.1592, dtype=torch.float64))
    """
    if not isinstance(model, nn.Module):
        raise BadTypeError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    one_of("parameterization", parameterization, get_args(Parameterization))
    whole("samples", samples, 32)
    whole("seed", seed, None)
    if tol is not None:
        positive("tol", tol)
    check_sigma(sigma_w, sigma_b)
    scaled = [path for path, m in model.named_modules() if isinstance(m, Scale)]
    if scaled and parameterization == "ntk":
        raise BadValueError(
            f"The model went through ntk_parametrize ({scaled[0]} is a factor): its scales would count "
            f"twice. Give the original model, or parameterization='standard', which takes the scales from "
            f"the model."
        )
    net = network(model, select=select)
    refuse_stateful(net.module)
    refuse_complex(net, "The limit of infinite width")
    batch = as_data(example, net, "example", inputs)
    settings = LimitSettings(
        sigma_w=sigma_w, sigma_b=sigma_b, parameterization=parameterization, samples=samples, seed=seed,
        tol=tol, memory=memory, compile=compile, inputs=inputs, select=select,
    )  # fmt: skip
    laws = Laws(parameterization, sigma_w, sigma_b, frozen(model))
    numerics = Numerics(samples, seed, net.dtype, net.device, parse_memory(memory))
    with undisturbed(net):
        return Limit(net, batch, example, laws, numerics, settings)
