"""Tensor programs written by hand, line by line: a module whose forward pass is the program."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.errors import BadValueError, nearest, whole

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in "abs cos erf exp maximum minimum relu sigmoid sign sin softmax sqrt square tanh where".split()
} | {
    name: getattr(nn.functional, name)
    for name in "celu elu gelu hardswish leaky_relu logsigmoid mish relu6 selu silu softplus".split()
}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class TensorProgram(nn.Module):
    """A tensor program as a network: each line is ``name = expression``, the last one the output.

        g1 = W1 @ x            a G-variable, a product with a weight (data first)
        h1 = tanh(g1)          an H-variable, a function of the coordinates of vectors
        g2 = W2 @ h1 + g1      a linear combination of G-variables
        y  = v @ h2            the read-out, of one row

    A name that no line defines and that stands left of ``@`` is a weight, any other one is a vector of
    parameters; ``W.T @ h`` uses the transpose. The same name is the same weight. Everything that takes a
    network takes a program: ``infinite_width``, ``limit.expect``, ``monte_carlo``, ``EmpiricalNTK``.

    Parameters
    ----------
    lines : str or list of str
        The program. Functions are those of ``torch`` and ``torch.nn.functional`` by name; lines that are
        empty or begin with ``#`` are left out.
    inputs : dict
        The number of entries of each input by its name, ``{"x": 3}``, in the order of the arguments.
    width : int
        Entries of all vectors, of which limits are independent.

    Raises
    ------
    NtkitError
        A line that is no assignment, a name that is defined twice or is unknown as a function, what is no
        arithmetic, function or product with a weight, a last line that is no product.

    References
    ----------
    Cappelletti, "Convolutional neural tangent kernel" (2019), section 2: G- and H-variables.

    Examples
    --------
    >>> import torch, ntkit
    >>> program = ntkit.TensorProgram(
    ...     ["g1 = W1 @ x", "h1 = tanh(g1)", "g2 = W2 @ h1 + g1", "y = v @ relu(g2)"], inputs={"x": 3}
    ... )
    >>> x = torch.eye(3)[:2]
    >>> print(ntkit.infinite_width(program, x).program)
     x  Input    data (3)
    g1  MatMul   W1 x   (fan_in 3)
    h1  Nonlin   tanh(g1)   [quadrature]
    g2  MatMul   W2 h1   (fan_in 64)
    h2  LinComb  g2 + g1
    h3  Nonlin   relu(h2)   [closed form]
    g3  MatMul   v h3   (fan_in 64)
    """

    def __init__(self, lines: str | Sequence[str], inputs: Mapping[str, int], width: int = 64) -> None:
        super().__init__()
        self.width = whole("width", width)
        self.inputs = {name: whole(f"inputs[{name!r}]", size) for name, size in inputs.items()}
        rows = lines.splitlines() if isinstance(lines, str) else list(lines)
        self.lines = [row.strip() for row in rows if row.strip() and not row.strip().startswith("#")]
        self._program = [self._parsed(row) for row in self.lines]
        if not self._program:
            raise BadValueError("The program has no line; expected some, such as 'g1 = W1 @ x'.")
        sizes = dict(self.inputs)
        for place, (name, tree) in enumerate(self._program):
            if name in sizes:
                raise BadValueError(f"{name!r} is defined twice: {self.lines[place]!r}. Take another name.")
            last = place == len(self._program) - 1
            sizes[name] = self._declared(tree, sizes, self.lines[place], 1 if last else self.width)
        if sizes[self._program[-1][0]] != 1:
            raise BadValueError(
                f"The last line, {self.lines[-1]!r}, is no product with a weight; expected the read-out, "
                f"such as 'y = v @ h'."
            )

    def extra_repr(self) -> str:
        """Show the lines when the module is printed."""
        return "\n".join(self.lines)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the last line, ``[n, 1]``, for inputs ``[n, size]`` each."""
        values: dict[str, Tensor] = dict(zip(self.inputs, inputs, strict=True))
        value = None
        for name, tree in self._program:
            value = values[name] = self._value(tree, values)
        assert value is not None
        return value

    def _parsed(self, row: str) -> tuple[str, ast.expr]:
        try:
            (line,) = ast.parse(row).body
        except (SyntaxError, ValueError) as error:
            what = f"{row!r} is no line of a program: {error}; expected 'name = expression'."
            raise BadValueError(what) from error
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return name, value
        raise BadValueError(f"{row!r} is no line of a program; expected 'name = expression'.")

    def _declared(self, tree: ast.expr, sizes: dict[str, int], row: str, out: int) -> int:
        """Make the parameters of an expression; return how many entries it has (0: a number)."""
        match tree:
            case ast.Constant(value=int() | float()):
                return 0
            case ast.Name(id=name):
                if name not in sizes:
                    self._own(name, (self.width,), row)
                return sizes.get(name, self.width)
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                inner = self._declared(right, sizes, row, self.width)
                name, turned = self._weight(left, row)
                if name in sizes:
                    raise BadValueError(f"{name!r} is a vector in {row!r}; left of @ expected a weight.")
                self._own(name, (inner, out) if turned else (out, inner), row)
                return out
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self._joined([left, right], sizes, row, out)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return self._declared(operand, sizes, row, out)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                if name not in FUNCTIONS:
                    raise BadValueError(f"{row!r}: no function {name!r}.{nearest(name, FUNCTIONS)}")
                return self._joined(args, sizes, row, self.width)
        raise BadValueError(
            f"{row!r}: {ast.unparse(tree)!r} is no part of a program; expected names, numbers, arithmetic, "
            f"functions of coordinates, products 'W @ h' and 'W.T @ h'."
        )

    def _joined(self, parts: Sequence[ast.expr], sizes: dict[str, int], row: str, out: int) -> int:
        found = {self._declared(part, sizes, row, out) for part in parts} - {0}
        if len(found) > 1:
            raise BadValueError(f"{row!r} joins vectors of {' and '.join(map(str, sorted(found)))} entries.")
        return found.pop() if found else 0

    def _own(self, name: str, shape: tuple[int, ...], row: str) -> None:
        if name not in self._parameters:
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        elif tuple(getattr(self, name).shape) != shape:
            raise BadValueError(
                f"{row!r}: {name!r} is {list(shape)} here and {list(getattr(self, name).shape)} before."
            )

    def _weight(self, tree: ast.expr, row: str) -> tuple[str, bool]:
        match tree:
            case ast.Name(id=name):
                return name, False
            case ast.Attribute(value=ast.Name(id=name), attr="T"):
                return name, True
        given = ast.unparse(tree)
        raise BadValueError(f"{row!r}: left of @ expected a weight, 'W' or 'W.T', got {given!r}.")

    def _value(self, tree: ast.expr, values: Mapping[str, Tensor]) -> Any:
        match tree:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return values[name] if name in values else getattr(self, name)
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                name, turned = self._weight(left, "")
                weight = getattr(self, name)
                return self._value(right, values) @ (weight if turned else weight.T)
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](self._value(left, values), self._value(right, values))
            case ast.UnaryOp(op=op, operand=operand):
                return _OPERATORS[type(op)](self._value(operand, values))
            case ast.Call(func=ast.Name(id=name), args=args):
                return FUNCTIONS[name](*(self._value(a, values) for a in args))
        raise AssertionError(ast.unparse(tree))
