"""What the estimators share: data in as scikit-learn gives it, blocks of the kernel out in float64."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage]
    check_array,
    check_consistent_length,
    check_X_y,
    validate_data,
)
from torch import Tensor

from ntkit.compute.cholesky import Cholesky
from ntkit.compute.eigen import Shifted
from ntkit.compute.matrix import Dense, Matrix, MatrixFree
from ntkit.compute.plan import chunks
from ntkit.compute.threads import fitting_threads
from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadTypeError, BadValueError, NtkitError, one_of
from ntkit.infinite.limit import Limit, infinite_width
from ntkit.kernel import Kernel, Rebuilt
from ntkit.machine.choice.candidates import candidates
from ntkit.machine.choice.leave_one_out import Targets
from ntkit.machine.choice.search import Chosen, Search, choose
from ntkit.machine.inputs.frames import Columns, is_frame, plain
from ntkit.machine.inputs.scaling import AUTO, SCALES, Scaling
from ntkit.machine.kernels import NAMES, FromFunction, KernelLike, as_array, as_kernel
from ntkit.machine.rkhs import RKHSFunction
from ntkit.machine.sessions import Session
from ntkit.machine.solving.newton import Blocks
from ntkit.machine.stored.fits import how_of, is_large, submatrix, times
from ntkit.machine.stored.system import How, TiledSystem
from ntkit.machine.unfitted import check_fitted
from ntkit.network import Floats, Values

_log = logging.getLogger("ntkit")
SAMPLES = "X [n, d] of finite numbers (only a pandas data frame may have missing values)"
ROWS = 2**27  # entries of a block of queries by samples that is made at once


@contextmanager
def refusing(expected: str) -> Generator[None]:
    """Tell what scikit-learn and NumPy raise for data as ntkit's refusal, which is of the same kind."""
    try:
        yield
    except NtkitError:
        raise
    except (TypeError, ValueError) as error:
        refusal = BadTypeError if isinstance(error, TypeError) else BadValueError
        raise refusal(f"{error} Expected {expected}.") from error


def as_numbers(name: str, values: ArrayLike) -> Floats:
    """Return what a user gives for an option as an array of numbers in float64."""
    with refusing(f"numbers as {name}, not {values!r:.100}"):
        return np.asarray(as_array(values), dtype=float)


class KernelMachine(RKHSFunction, Session, BaseEstimator):
    """An estimator over a kernel: checks data, makes blocks, remembers the training samples.

    After ``fit``, ``kernel_`` is the kernel, ``X_fit_`` the training samples as it takes them, scaled (the
    matrix, for ``"precomputed"``), ``precision_`` the dtype in which it computed; ``scaling_`` scales,
    ``columns_`` reads data frames with categories or missing values (else None), and ``search_`` says what
    was compared by leave-one-out (None where nothing was).
    """

    kernel: KernelLike
    scale: str | None
    depth: int | None
    random_state: int
    kernel_: Kernel | None
    X_fit_: Values
    dual_coef_: Floats

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self._precomputed
        return tags

    @property
    def _precomputed(self) -> bool:
        return isinstance(self.kernel, str) and self.kernel == "precomputed"

    def __getstate__(self) -> Any:
        state: Any = super().__getstate__()
        return {k: _rebuilt(v) if isinstance(v, (Kernel, Limit)) else v for k, v in state.items()}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__({k: v.again() if isinstance(v, Rebuilt) else v for k, v in state.items()})

    @property
    def _named(self) -> bool:
        """Whether the kernel is one of vectors that goes by a name, its scales to be found."""
        return isinstance(self.kernel, str) and self.kernel in NAMES

    def _take(self, X: ArrayLike, y: ArrayLike, **checks: object) -> tuple[np.ndarray, np.ndarray]:
        """Return training data as arrays of numbers, frames read; `_settle` then sets the kernel."""
        self._check_tiles(X)
        options = self._options() | checks
        self.columns_: Columns | None = None
        with refusing(f"{SAMPLES}, and y with one target for each row"):
            if is_frame(X) and not self._precomputed and not plain(X):
                validate_data(self, X, y, skip_check_array=True)  # pyright: ignore[reportArgumentType]
                self.columns_ = Columns.of(X)
                out = check_X_y(self.columns_.numbers(X), as_array(y), **options)
            else:
                out = validate_data(self, as_array(X), as_array(y), **options)  # pyright: ignore[reportArgumentType]
        x = np.ascontiguousarray(out[0])  # sums of columns hang on their order in memory, by rounding
        self._sample_shape = x.shape[1:]
        if self._precomputed and x.shape[:2] != (len(x), len(x)):
            raise BadValueError(f"A precomputed kernel matrix must be square, got {x.shape}.")
        if self._precomputed and not _symmetric(x):
            raise BadValueError("The precomputed kernel matrix is not symmetric; give k(X, X).")
        return x, np.asarray(out[1])

    def _stored(self, X: object, y: object, memory: int | str) -> tuple[TiledSystem, np.ndarray] | None:
        """Return a stored matrix that has no room in memory as a system, and the targets; else None."""
        self._check_tiles(X)
        if not isinstance(X, TiledKernel) or not is_large(X, memory):
            return None
        system = TiledSystem(X, self._how())
        with refusing(f"one finite target for each of the {system.n} rows of the stored matrix"):
            targets = check_array(as_array(y), ensure_2d=False, dtype=None)  # pyright: ignore[reportArgumentType]
            check_consistent_length(targets, np.empty((system.n, 0)))
        self.kernel_, self.columns_, self.search_, self.scaling_ = None, None, None, Scaling(None)
        self.n_features_in_, self._sample_shape = system.n, (system.n,)
        self.X_fit_ = X  # pyright: ignore[reportAttributeAccessIssue]
        self.precision_ = X.dtype
        return system, targets

    def _how(self) -> How:
        """Return how a stored matrix is to be solved."""
        return how_of(self)

    def _check_tiles(self, X: object) -> None:
        if isinstance(X, TiledKernel) and not self._precomputed:
            raise BadTypeError(
                f"X is a matrix of kernel values, {X}, and kernel={self.kernel!r} would take it for samples; "
                "give kernel='precomputed'."
            )

    def _settle(
        self,
        x: np.ndarray,
        targets: Targets,
        alpha: float | None = None,
        labels: np.ndarray | None = None,
        counted: np.ndarray | None = None,
    ) -> Chosen | None:
        """Set scaling, kernel and training samples; return what was chosen by leave-one-out, if anything was.

        ``targets`` and ``labels`` are those of the samples ``counted``, all of them for None.
        """
        scale, depth = one_of("scale", self.scale, SCALES), self.depth
        if depth is not None and not self._named:
            raise BadValueError(
                f"depth={depth!r} is for kernel='auto', 'ntk' or 'nngp', this kernel has its own."
            )
        self.search_: Search | None = None
        self.precision_ = torch.float64
        self.scaling_, self.X_fit_ = Scaling(None), x
        if self._precomputed:
            self.kernel_ = None
            return None
        binary = None if self.columns_ is None else self.columns_.binary
        flat = x.reshape(len(x), int(np.prod(self._sample_shape)))
        if not self._named:
            self.kernel_ = as_kernel(self.kernel)
            if scale not in ("auto", None):
                used = flat if counted is None else flat[counted]
                weights = None if targets.root is None else targets.weights.numpy()
                self.scaling_ = Scaling.of(scale, used, weights, binary)
            self.X_fit_ = self._scaled(x)
            return None
        scales = AUTO if scale == "auto" else (scale,)
        compared = candidates(str(self.kernel), depth, scales)
        used = flat if counted is None else flat[counted]
        seed = self.random_state
        chosen = choose(used, targets, compared, alpha, labels, binary, seed, self.verbose)
        self.search_, self.scaling_, self.kernel_ = chosen.search, chosen.scaling, chosen.kernel
        self.X_fit_ = self._scaled(x)
        _log.info("%s chose by %s", type(self).__name__, chosen.search)
        return chosen

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        """Return samples as the kernel takes them: vectors for a kernel by name, else in their shape."""
        if not self._named and self.scaling_.name is None:
            return x
        scaled = self.scaling_(x.reshape(len(x), int(np.prod(x.shape[1:]))))
        return scaled if self._named else scaled.reshape(x.shape)

    def _queries(self, X: ArrayLike) -> np.ndarray:
        """Return queries as the kernel takes them."""
        check_fitted(self)
        self._check_tiles(X)
        if isinstance(X, TiledKernel) and isinstance(self.X_fit_, TiledKernel):
            if X.shape[1] != len(self.X_fit_):
                raise BadValueError(f"{X} has {X.shape[1]} columns; expected {len(self.X_fit_)}, as in fit.")
            return X  # pyright: ignore[reportReturnType]
        options = self._options()
        with refusing("X [m, d] of finite numbers, with the columns that fit had"):
            if self.columns_ is not None:
                if not is_frame(X):
                    raise BadTypeError(
                        f"fit had a data frame with categories, got {type(X).__name__}; give one."
                    )
                validate_data(self, X, reset=False, skip_check_array=True)  # pyright: ignore[reportArgumentType]
                x = check_array(self.columns_.numbers(X), **options)
            else:
                x = validate_data(self, as_array(X), reset=False, **options)  # pyright: ignore[reportArgumentType]
        x = np.ascontiguousarray(x)
        if self._precomputed:
            return x
        if x.shape[1:] != self._sample_shape:
            raise BadValueError(
                f"A sample has shape {x.shape[1:]}; expected {self._sample_shape}, as in fit."
            )
        return self._scaled(x)

    def _options(self) -> Any:
        """Return what scikit-learn checks: a user's kernel may take samples of any shape, and integers."""
        if self._precomputed:
            return {"dtype": [np.float64, np.float32], "allow_nd": True}
        if self._named:
            return {"dtype": np.float64, "allow_nd": True}
        return {"dtype": np.float64} if self.kernel is None else {"dtype": "numeric", "allow_nd": True}

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        """Return the constructor's call, and after ``fit`` what was chosen."""
        call = super().__repr__(N_CHAR_MAX)
        search: Search | None = getattr(self, "search_", None)
        if search is None:
            return call
        return f"{call}  # {search.best.candidate}; {self.scaling_}"

    def _weights(self, sample_weight: ArrayLike | None, X: np.ndarray) -> np.ndarray | None:
        """Return sample weights as an array, None where all are 1."""
        if sample_weight is None:
            return None
        given = as_array(sample_weight)
        with refusing("one finite weight >= 0 for each sample, not all zero"):
            weights = _check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise BadValueError("All sample weights are zero; at least one sample must count.")
        return weights

    @property
    def has_outputs(self) -> bool:
        """Whether the kernel has several numbers for two samples, one for each output or pair of them."""
        if self.kernel_ is None:
            return not isinstance(self.X_fit_, TiledKernel) and self.X_fit_.ndim > 2
        return getattr(self.kernel_, "outputs", None) in ("full", "diagonal")

    def matrix_of(self, index: np.ndarray) -> Tensor:
        """Return the kernel matrix of some of the training samples, in float64."""
        if isinstance(self.X_fit_, TiledKernel):
            return submatrix(self.X_fit_, index)
        if self.kernel_ is None:
            return checked(torch.as_tensor(self.X_fit_[np.ix_(index, index)]), False)
        return self._block(self.X_fit_[index], None, False)

    def _gram(self, scalar: bool = True) -> Tensor:
        """Return the kernel matrix of the training samples in float64."""
        return self._block(self.X_fit_, None, scalar)

    def _matrix(self, budget: int = 8 * ROWS) -> Matrix:
        """Return the kernel matrix of the training samples, not formed where the kernel can avoid it.

        A matrix of at most ``budget`` bytes is formed.
        """
        assert self.kernel_ is not None
        if not hasattr(self.kernel_, "operator") and 8 * len(self.X_fit_) ** 2 <= budget:
            return Dense(self._gram())
        matrix = MatrixFree(self.kernel_, self.X_fit_)
        self.precision_ = torch.float64 if matrix.operator is None else matrix.operator.dtype
        return matrix

    @fitting_threads()
    def _block(self, X1: np.ndarray, X2: np.ndarray | None, scalar: bool = True) -> Tensor:
        if isinstance(X1, TiledKernel):
            block = X1.values()
        elif self.kernel_ is None:
            block = torch.as_tensor(X1 if X1.flags.writeable else X1.copy())
        else:
            block = self.kernel_(X1, X2)
        if X2 is None and isinstance(self.kernel_, FromFunction) and not _symmetric(block.cpu().numpy()):
            raise BadValueError("The kernel function is not symmetric: k(X, X) differs from its transpose.")
        if X2 is None:
            self.precision_ = block.dtype if block.is_floating_point() else torch.float64
        return checked(block, scalar)

    def _diag(self, X: np.ndarray) -> Tensor:
        """Return k(x, x) of queries."""
        if self.kernel_ is None:
            raise BadValueError(
                "A precomputed kernel gives k(queries, training samples) only, a variance needs k(x, x) "
                "too; give the kernel as a function."
            )
        return checked(self.kernel_.diag(X), True, 1)

    @fitting_threads()
    def _apply(self, X: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Return sum_n k(x, x_n) c_n for queries, in blocks of rows."""
        if isinstance(X, TiledKernel):
            return times(X, coefficients)
        parts = []
        for s in chunks(len(X), max(1, ROWS // len(self.X_fit_))):
            block = self._block(X[s], self.X_fit_, not self.has_outputs)
            parts.append((Blocks(block) @ torch.as_tensor(coefficients).to(block)).cpu().numpy())
        return np.concatenate(parts)


class FactoredMachine(KernelMachine):
    """An estimator that solves with its kernel matrix by a factor, None where a solver has none."""

    _factor: Cholesky | Shifted | None

    @property
    def jitter_(self) -> float:
        """What Cholesky added to the diagonal besides the penalty or the noise."""
        return 0.0 if self._factor is None else self._factor.jitter

    @property
    def condition_(self) -> float:
        """The condition number of the kernel matrix with the penalty or noise; NaN without a factor."""
        return float("nan") if self._factor is None else self._factor.condition

    @property
    def min_eigenvalue_(self) -> float:
        """The smallest eigenvalue of the kernel matrix; NaN without a factor."""
        return float("nan") if self._factor is None else self._factor.min_eigenvalue


def _rebuilt(made: Kernel | Limit) -> Rebuilt:
    return Rebuilt(infinite_width, dict(made.settings)) if isinstance(made, Limit) else Rebuilt.of(made)


def is_size(value: object) -> bool:
    """Return whether a value is a finite number that is not negative."""
    return isinstance(value, Real) and 0 <= float(value) < np.inf


def _symmetric(matrix: np.ndarray) -> bool:
    """Return whether a matrix is symmetric to a millionth of its largest value, in blocks of rows."""
    limit = 1e-6 * max(float(matrix.max()), -float(matrix.min()))
    axes = (1, 0, *range(matrix.ndim - 1, 1, -1))  # several numbers for two samples: [n, n, o, o]
    apart = (np.abs(matrix[s] - matrix[:, s].transpose(axes)).max() for s in chunks(len(matrix), 512))
    return not any(d > limit for d in apart)


def checked(block: Tensor, scalar: bool = True, ndim: int = 2) -> Tensor:
    """Return a block in float64, finite, with one number for two samples where that is asked for."""
    block = block.detach()
    if scalar and block.ndim != ndim:
        raise BadValueError(
            f"The kernel gives values of shape {tuple(block.shape[ndim:])} for two samples, this estimator "
            "takes one number; use outputs='mean' or 'trace'."
        )
    block = block.double()
    if not bool(block.sum().isfinite()) and not bool(block.isfinite().all()):
        raise BadValueError(
            "The kernel holds NaN or infinite values. Scale the inputs, or take a model in float64."
        )
    return block
