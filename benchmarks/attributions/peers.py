"""Methods of other libraries: TRAK of traker and EK-FAC of kronfluence, each as its guide says.

Scores are ``[q, n]``, up to a factor the change of each query's loss if the sample is left out.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

Method = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
BATCH = 100


def trak(net: nn.Module, x: Tensor, y: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    """TRAK (Park et al. 2023) of one checkpoint, projected to 512 numbers: fewer than samples, as it must."""
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    size, device = sum(p.numel() for p in net.parameters()), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        projector = BasicProjector(size, 512, 0, ProjectionType.rademacher, device)
        made = TRAKer(
            net, "image_classification", len(x), folder, device="cpu", projector=projector,
            use_half_precision=False, logging_level=50,
        )  # fmt: skip
        made.load_checkpoint(net.state_dict(), model_id=0)
        for some in torch.arange(len(x)).split(BATCH):
            made.featurize((x[some], y[some]), num_samples=len(some))
        made.finalize_features()
        made.start_scoring_checkpoint("queries", net.state_dict(), 0, len(queries))
        made.score((queries, labels), num_samples=len(queries))
        return torch.as_tensor(made.finalize_scores("queries")).T


def ekfac(net: nn.Module, x: Tensor, y: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    """EK-FAC influence (Grosse et al. 2023) of kronfluence, its default damping."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class Classification(Task):
        def compute_train_loss(self, batch: tuple, model: nn.Module, sample: bool = False) -> Tensor:
            outputs = model(batch[0])
            labels = batch[1]
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(outputs.softmax(1), 1)[:, 0]
            return nn.functional.cross_entropy(outputs, labels, reduction="sum")

        def compute_measurement(self, batch: tuple, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task = Classification()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = prepare_model(net, task)
        made = Analyzer("run", prepared, task, cpu=True, output_dir=folder, disable_tqdm=True)
        made.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
        train, asked = TensorDataset(x, y), TensorDataset(queries, labels)
        made.fit_all_factors("factors", train, per_device_batch_size=BATCH)
        made.compute_pairwise_scores(
            "scores", "factors", asked, train, per_device_query_batch_size=len(queries),
            per_device_train_batch_size=BATCH,
        )  # fmt: skip
        found = made.load_pairwise_scores("scores")
    assert found is not None
    return found["all_modules"]


METHODS: dict[str, Method] = {
    "TRAK of traker, one checkpoint": trak,
    "EK-FAC of kronfluence": ekfac,
}
