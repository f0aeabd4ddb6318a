"""The usual measures of how new a query is to a network: what kernels have to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntkit.compute.plan import chunks
from ntkit.compute.surroundings import undisturbed
from ntkit.diagnose.targets import Targets
from ntkit.errors import BadValueError
from ntkit.finite.conjugate import ConjugateKernel
from ntkit.inputs import Batch, batch_size, take
from ntkit.network import network

_ROWS = 1024


class Baselines:
    """Scores of a classifier that are larger for newer queries, of one network or of several.

    ``"softmax"``: -max_c p_c (Hendrycks, Gimpel 2017); ``"energy"``: -log sum_c exp f_c (Liu et al. 2020);
    ``"feature mahalanobis"``: to the nearest class mean in the last layer's inputs, one covariance within the
    classes (Lee et al. 2018); ``"feature neighbors"``: the distance to the k-th nearest of these, scaled to
    unit length (Sun et al. 2022); ``"ensemble"``: -max_c of the mean p_c over networks (Lakshminarayanan et
    al. 2017).
    """

    def __init__(
        self, model: nn.Module, x: Batch, targets: Targets, ensemble: Sequence[nn.Module], neighbors: int
    ) -> None:
        self.model, self.ensemble, self.k = model, list(ensemble), min(neighbors, batch_size(x))
        self.features = ConjugateKernel(model)
        h = self._features(x)
        means = (targets.columns.T @ h) / targets.columns.sum(0)[:, None]
        self.unit = nn.functional.normalize(h, dim=1)
        within = h - targets.columns @ means
        values, vectors = torch.linalg.eigh(within.T @ within / len(h))
        there = values > 1e-10 * values[-1]
        self.whiten = vectors[:, there] / values[there].sqrt()
        self.means = means @ self.whiten

    def _features(self, x: Batch) -> Tensor:
        parts = [self.features.features(take(x, s)) for s in chunks(batch_size(x), _ROWS)]
        return torch.cat(parts).double().cpu()

    def scores(self, q: Batch) -> dict[str, Tensor]:
        """Return each score of some queries, ``[q]``."""
        logits, h = outputs(self.model, q), self._features(q)
        found = {
            "softmax": -logits.softmax(1).max(1).values,
            "energy": -logits.logsumexp(1),
            "feature mahalanobis": torch.cdist(h @ self.whiten, self.means).square().min(1).values,
            "feature neighbors": self._to_neighbors(nn.functional.normalize(h, dim=1)),
        }
        if self.ensemble:
            p = torch.stack([outputs(m, q).softmax(1) for m in (self.model, *self.ensemble)]).mean(0)
            found["ensemble"] = -p.max(1).values
        return found

    def _to_neighbors(self, unit: Tensor) -> Tensor:
        parts = [torch.cdist(part, self.unit).kthvalue(self.k, 1).values for part in unit.split(_ROWS)]
        return torch.cat(parts)


@torch.no_grad()
def outputs(model: nn.Module, x: Batch) -> Tensor:
    """Return the logits ``[n, C]`` of a classifier in float64; refuse a network with one output."""
    net = network(model)
    with undisturbed(net):
        parts = [net.direct(take(x, s)).double().cpu() for s in chunks(batch_size(x), _ROWS)]
    logits = torch.cat(parts)
    if logits.shape[1] < 2:
        raise BadValueError("The network has one output; scores of a classifier need a logit for each class.")
    return logits
