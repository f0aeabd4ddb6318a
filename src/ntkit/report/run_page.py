"""The report of a recorded run, from the names of the functions that made it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ntkit.errors import BadTypeError, BadValueError, nearest
from ntkit.inputs import Batch, batch_size, take
from ntkit.report.account_page import PageOptions, explain
from ntkit.training.accounts.account import account
from ntkit.training.accounts.result import Account
from ntkit.training.counterfactuals.counterfactual import counterfactual
from ntkit.training.integrals.quadrature import Nodes


def explain_run(
    folder: str,
    model: str,
    data: str,
    queries: str,
    out: str,
    *,
    loss: str = "cross_entropy",
    tol: float = 1e-8,
    nodes: Nodes = "auto",
    memory: str = "1GiB",
    jobs: int = 1,
    target: str = "outputs",
    classes: str = "",
    names: str = "",
    picture: str = "",
    keep: str | None = None,
    with_counterfactual: bool = False,
) -> tuple[Account, Path]:
    """Account for predictions of a recorded run and write the report; return both the account and the file.

    Parameters
    ----------
    folder
        What `ntkit.record` made.
    model
        ``module:factory``, called without arguments: the network, built as for the training.
    data
        ``module:function``, called without arguments: inputs and targets ``(x, y)``.
    queries
        ``module:function``, called without arguments: inputs, or inputs and their labels as a tuple of two;
        or numbers of training samples, ``0,3,17``.
    out
        The file to write.
    loss
        The name of a function in ``torch.nn.functional``, or ``module:function``.
    tol, nodes, memory, jobs
        As for `ntkit.account`.
    target
        Its name, or numbers of outputs, ``0,2``.
    classes
        The names of the outputs, ``cat,dog``, or a file with a line for each.
    names
        A file with a line for each training sample: what it is called.
    picture
        Height and width of flat inputs that are pictures, ``28x28``.
    keep
        A folder for what is finished.
    with_counterfactual
        Whether to show beside the account what the predictions depend on.

    Raises
    ------
    NtkitError
        A name that leads nowhere, or a function that returns something else; what `ntkit.account` refuses.
    """
    network = called(model, "--model")
    if not isinstance(network, nn.Module):
        raise BadTypeError(f"--model {model} returned {type(network).__name__}, expected a torch.nn.Module.")
    train: object = called(data, "--data")
    if not isinstance(train, (tuple, list)) or len(train) != 2:
        raise BadTypeError(f"--data {data} returned {type(train).__name__}, expected a pair (x, y).")
    pair = train[0], train[1]
    x, truth, asked = _queries(queries, pair)
    shape = _shape(picture)
    ask: dict[str, Any] = {
        "train": pair,
        "queries": x,
        "target": _target(target),
        "memory": memory,
        "jobs": jobs,
    }
    if ask["target"] == "loss":
        if truth is None:
            raise BadValueError("--target loss needs the labels of the queries: --queries returns (x, y).")
        ask["labels"] = truth
    parts = None if keep is None else Path(keep)
    a = account(
        folder, network, loss_named(loss), **ask, tol=tol, nodes=nodes, keep=parts and parts / "account"
    )
    depends = None
    if with_counterfactual:
        depends = counterfactual(
            folder, network, loss_named(loss), **ask, keep=parts and parts / "counterfactual"
        )
    facts = (
        ("run", str(folder)),
        ("training samples", f"{a.contributions.shape[2]:,}"),
        ("steps", f"{a.steps:,}"),
        ("weights", f"{sum(p.numel() for p in network.parameters()):,}"),
        ("loss", loss),
        ("quadrature", f"{a.rule}, {a.spent:,} gradients of queries"),
    )
    labels = train[1] if isinstance(train[1], torch.Tensor) and train[1].numel() == len(train[1]) else None
    lead = (
        f"The training recorded in {folder} was taken apart: each prediction below is the sum of what every "
        f"single training sample added to it."
    )
    options: PageOptions = {"labels": labels, "train": train[0], "facts": facts, "lead": lead}
    options |= {"queries": x, "truth": truth, "query_names": asked, "counterfactual": depends}
    if classes:
        options["classes"] = _lines(classes, "--classes") if Path(classes).is_file() else classes.split(",")
    if names:
        options["names"] = _lines(names, "--names")
    if shape is not None:
        options["picture"] = shape
    return a, explain(a, out, **options)


def given_options(options: dict[str, str]) -> None:
    """Refuse a command with options that are missing: all of them at once."""
    missing = [name for name, value in options.items() if not value]
    if missing:
        raise BadValueError(
            f"missing: {', '.join(missing)}. Give each, as in: ntkit explain run --model mymodel:build "
            f"--data mymodel:data --queries 0,3,17 (ntkit explain --help)."
        )


def _target(text: str) -> Any:
    if all(part.strip().isdigit() for part in text.split(",")):
        return tuple(int(part) for part in text.split(","))
    return text


def _shape(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise BadValueError(f"--picture is {text!r}; expected height x width, 28x28.")
    return int(parts[0]), int(parts[1])


def _lines(file: str, option: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadValueError(f"{option} {file} cannot be read as a text: {error}.") from error


def _queries(text: str, train: tuple[Batch, torch.Tensor]) -> tuple[Any, Any, list[str] | None]:
    """Return inputs, labels and names of the queries."""
    if all(part.strip().isdigit() for part in text.split(",")):
        index = torch.tensor([int(part) for part in text.split(",")])
        n = batch_size(train[0])
        if int(index.max()) >= n:
            raise BadValueError(
                f"--queries {text} names sample {int(index.max())}; the data has {n}, from 0 on."
            )
        y = train[1]
        labels = y[index] if isinstance(y, torch.Tensor) and y.numel() == len(y) else None
        return take(train[0], index), labels, [f"training sample {i}" for i in index.tolist()]
    queries = called(text, "--queries")
    if isinstance(queries, (tuple, list)) and len(queries) == 2:
        return queries[0], queries[1], None
    return queries, None, None


def loss_named(name: str) -> Callable[..., Any]:
    """Return a loss by its name in torch.nn.functional, or as ``module:function``."""
    if ":" in name:
        return _named(name, "--loss")
    function = getattr(nn.functional, name, None)
    if not callable(function):
        raise BadValueError(
            f"--loss {name} is not a function of torch.nn.functional; give one of its names (cross_entropy, "
            f"mse_loss) or module:function.{nearest(name, dir(nn.functional))}"
        )
    return function


def called(name: str, option: str) -> Any:
    """Return what the function of a name returns, called without arguments."""
    factory = _named(name, option)
    try:
        return factory()
    except TypeError as error:
        raise BadTypeError(f"{option} {name} could not be called without arguments: {error}") from error


def _named(name: str, option: str) -> Callable[..., Any]:
    """Return what ``module:name`` names; modules are looked for in the current folder too."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise BadValueError(f"{option} is {name!r}; expected module:name, as in mymodel:build.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise BadValueError(
            f"{option} {name}: there is no module {error.name!r} in {here} or among the installed ones; "
            f"expected module:name."
        ) from error
    except AttributeError as error:
        raise BadValueError(f"{option} {name}: {module} has no {attribute!r}.") from error
    if not callable(function):
        raise BadTypeError(f"{option} {name} is a {type(function).__name__}, expected a function.")
    return function
