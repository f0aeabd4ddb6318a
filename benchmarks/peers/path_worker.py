"""The contestants of the path: one training, accounted for by ntkit and by ExPLAIND; the network as truth.

The result of each is what it says the predictions of the queries are, from the initial ones and the sum over
training samples, in units of the largest movement of a prediction; ``gradients`` counts those of queries.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from worker import serve

WHO, STEPS, NODES, TOL, RATE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:6])
SAMPLES, BATCH, QUERIES, DECAY = 320, 32, 20, 0.1


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, labels and queries: no ragged batches, which ExPLAIND gets wrong."""
    x, y = (torch.as_tensor(v) for v in load_digits(return_X_y=True))
    x = (x / 16).float()
    return x[:SAMPLES], y[:SAMPLES].long(), x[SAMPLES : SAMPLES + QUERIES]


def network() -> nn.Module:
    """Return the network as ExPLAIND needs it: float32, log-probabilities at the end."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10), nn.LogSoftmax(dim=1))


def batches() -> list[Tensor]:
    """Return the indices of each step."""
    draw, indices = torch.Generator().manual_seed(0), []
    while len(indices) < STEPS:
        indices += torch.randperm(SAMPLES, generator=draw).split(BATCH)
    return indices[:STEPS]


def in_units(predictions: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return predictions in units of the largest movement."""
    return predictions.double() / (last - first).double().abs().max()


def ntkit_account() -> Callable[[], object]:
    import ntkit

    (x, y, queries), model, loss = data(), network(), nn.NLLLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    folder = tempfile.mkdtemp() + "/run"
    with ntkit.record(folder, model, optimizer, train=(x, y)) as run:
        for index in batches():
            run.batch(index)
            optimizer.zero_grad()
            loss(model(x[index]), y[index]).backward()
            optimizer.step()

    def account() -> Tensor:
        a = ntkit.account(folder, model, loss, train=(x, y), queries=queries, tol=TOL)
        account.gradients = a.spent  # pyright: ignore[reportFunctionMemberAccess]
        return in_units(a.initial + a.contributions.sum(-1) + a.decay, a.initial, a.prediction)

    return account


def truth() -> Callable[[], object]:
    """Train, and return what the network itself predicts."""
    (x, y, queries), model, loss = data(), network(), nn.NLLLoss()
    first = model(queries).detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for index in batches():
        optimizer.zero_grad()
        loss(model(x[index]), y[index]).backward()
        optimizer.step()
    last = model(queries).detach()
    return lambda: in_units(last, first, last)


def explaind() -> Callable[[], object]:
    from explaind.data_paths import DataPath
    from explaind.epk_model import ExactPathKernelModel
    from explaind.model_paths import ModelPath
    from explaind.modulo_model.loss import RegularizedCrossEntropyLoss
    from explaind.optimizer_paths import AdamWOptimizerPath
    from torch.utils.data import DataLoader, TensorDataset

    x, y, queries = data()
    dataset = TensorDataset(x, y)
    dataset.targets = list(y)  # pyright: ignore[reportAttributeAccessIssue]
    path = ModelPath(network(), device="cpu", output_dim=10)
    loss = RegularizedCrossEntropyLoss(alpha=0.0)
    optimizer = AdamWOptimizerPath(path, lr=RATE, weight_decay=DECAY, checkpoints=[], device="cpu")
    steps = DataPath(DataLoader(dataset, batch_size=BATCH), full_batch=False)
    for index in batches():
        targets = torch.stack([y[index], index], 1)
        xb, yb = steps.get_batch((x[index], targets))
        optimizer.zero_grad()
        loss(path.forward(xb), yb).backward()
        optimizer.step()
        path.log_checkpoint()
        optimizer.log_checkpoint()
    first, last = (path.forward(queries, step=k).detach() for k in (0, STEPS))
    machine = ExactPathKernelModel(
        path, optimizer, loss, steps, integral_eps=1 / NODES, early_integral_eps=1 / NODES, device="cpu",
        evaluate_predictions=False, kernel_store_interval=10**9,
    )  # fmt: skip
    machine.get_integral_steps = lambda *_, **__: [  # its own list begins with four steps twice as fine
        (k, [(j + 0.5) / NODES for j in range(NODES)]) for k in range(STEPS)
    ]

    step = (
        machine.exact_path_kernel_step_test
    )  # fails at the first step unless it is told where to keep things
    machine.exact_path_kernel_step_test = lambda *a, prev_eval=None, **k: step(
        *a, prev_eval=prev_eval or {}, **k
    )

    def account() -> Tensor:
        with redirect_stdout(StringIO()):
            predictions = machine.predict(queries)[0]
        return in_units(predictions.detach(), first, last)

    account.gradients = STEPS * NODES * QUERIES  # pyright: ignore[reportFunctionMemberAccess]
    return account


serve({"ntkit": ntkit_account, "float64": truth}.get(WHO, explaind))
