"""The inputs of an account, checked against the run that it is an account of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.errors import BadValueError, NotPerSampleError, NtkitError, PathMismatchError
from ntkit.files import hash_data
from ntkit.inputs import Batch, Inputs, batch_size, take
from ntkit.module_checks import refuse_stateful
from ntkit.network import Network, as_inputs, network, unwrapped
from ntkit.training.folder.run import Run
from ntkit.training.functional.flat_network import FlatNetwork, Head
from ntkit.training.recording.train_data import Train, as_pair
from ntkit.training.replay.sample_gradients import Samples
from ntkit.training.replay.steps import Replay

Modes = tuple[tuple[str, ...], ...]


def check_model(run: Run, model: nn.Module) -> Network:
    """Return the network of a model, checked: its weights and buffers are those of the run."""
    if not isinstance(model, nn.Module):
        raise BadValueError(f"Expected the torch.nn.Module of the run, got {type(model).__name__}.")
    model = unwrapped(model)
    net = network(model)
    run.device = net.device
    model_shapes = {name: p.shape for name, p in model.named_parameters()}
    if model_shapes != run.shapes:
        differ = [n for n in {**run.shapes, **model_shapes} if run.shapes.get(n) != model_shapes.get(n)]
        first = [
            (n, *(tuple(s[n]) if n in s else "none" for s in (run.shapes, model_shapes))) for n in differ
        ]
        shapes = ", ".join(f"{name}: recorded {a}, given {b}" for name, a, b in first[:5])
        raise PathMismatchError(
            f"The model differs from the one that the run in {run.folder} was recorded with. Parameters that "
            f"differ: {shapes}. Build the model as for the training."
        )
    buffers = {name for name, _ in model.named_buffers()}
    if buffers != set(run.manifest["buffers"]):
        raise PathMismatchError(
            f"The model's buffers {sorted(buffers)} are not those of the run, "
            f"{sorted(run.manifest['buffers'])}. Build the model as for the training."
        )
    if net.dtype != run.dtype:
        raise PathMismatchError(
            f"The model has dtype {net.dtype}, the run was recorded in {run.dtype}; give "
            f"model.to({run.dtype}). The account itself is made in float64 either way."
        )
    return net


def check_given(
    run: Run, model: nn.Module, train: Train, queries: Inputs
) -> tuple[tuple[Batch, Batch], Batch]:
    """Return the training data and the queries as tensors, checked against a run and its model."""
    return check_data(run, model, train), as_inputs(queries, check_model(run, model), "queries")


def check_data(run: Run, model: nn.Module, train: Train) -> tuple[Batch, Batch]:
    """Return the training data as tensors, checked against a run and its model."""
    net = check_model(run, model)
    data = as_pair(train, net)
    n = batch_size(data[0])
    recorded = run.manifest["train_sha256"]
    if recorded is not None and hash_data(*data) != recorded:
        raise PathMismatchError(
            f"`train` is not the data that {run.folder} was recorded with: its sha256 differs "
            f"({hash_data(*data)[:12]}, recorded {recorded[:12]}). Give the same inputs and targets, in the "
            f"same order and dtype."
        )
    for k in range(run.steps):
        if (run.batch(k) >= n).any():
            raise PathMismatchError(
                f"Step {k} used sample {int(run.batch(k).max())}, but `train` has {n} samples. Give the "
                f"data of the run."
            )
    return data


def query_network(
    run: Run,
    model: nn.Module,
    head: Head | None = None,
    select: str | int | None = None,
    dtype: torch.dtype = torch.float64,
) -> FlatNetwork:
    """Return the network that queries are put to: in a dtype, in evaluation mode."""
    net = FlatNetwork(model, run, dtype, head, select)
    net.module.eval()
    refuse_stateful(net.module)
    return net


def refuse_mixing_queries(net: FlatNetwork, w: Tensor, x: Batch) -> None:
    """Refuse a network whose output for one query depends on the others, even in evaluation mode."""
    few = take(x, slice(0, 3))
    try:
        together = net.outputs(w, few)
    except NtkitError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = pytree.tree_map(lambda t: f"{list(t.shape)} {t.dtype}", x)
        raise BadValueError(
            f"The network does not take the queries, {shapes} (the first axis is the sample): {error}. Give "
            f"them as the training inputs are given, x[:3] say."
        ) from error
    alone = torch.cat([net.outputs(w, take(few, slice(i, i + 1))) for i in range(batch_size(few))])
    if not (together - alone).abs().max() <= 1e-9 * together.abs().max():
        raise NotPerSampleError(
            "The network's output for one query depends on the others of the batch, in evaluation mode too: "
            "a query has no prediction of its own. Remove what mixes samples (a norm over the batch without "
            "running statistics, attention across samples)."
        )


def mixing_modes(run: Run, replay: Replay, budget: int) -> frozenset[Modes]:
    """Return the modes in which the samples of a batch depend on each other, by trying the first step.

    There the gradient of the batch is not the sum of those of its samples, computed one by one.
    """
    mixing: set[Modes] = set()
    seen: set[Modes] = set()
    for k in range(run.steps):
        step = run.step(k)
        modes = tuple(f.modes for f in step.forwards)
        if modes in seen:
            continue
        seen.add(modes)
        if replay.mixes(step):
            continue
        w = run.weights(k)
        row = torch.randn(1, len(w), dtype=w.dtype, generator=torch.Generator().manual_seed(0)).to(w.device)
        together = float(row[0] @ replay.gradient(w, k, step))
        row = row.to(replay.dtype)
        try:
            samples = Samples(replay, budget)
            parts = [
                product(row).flatten()
                for part in replay.parts(step)
                for _, product in samples.apart(w.to(replay.dtype), k, part)
            ]
        except NtkitError:
            raise
        except (RuntimeError, ValueError):  # a batch of one may be none that the network takes
            mixing.add(modes)
            continue
        apart = torch.cat(parts)
        tol = 1e-8 if replay.dtype == torch.float64 else 1e-4
        if not abs(float(apart.sum()) - together) <= tol * float(apart.abs().sum()):
            mixing.add(modes)
    return frozenset(mixing)
