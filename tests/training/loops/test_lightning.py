"""Lightning's own Trainer on tiny models in memory."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import ntkit
from ntkit.errors import NtkitError

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (ntkit[lightning])")
pytestmark = pytest.mark.filterwarnings("ignore")

from ntkit.training.loops.lightning import LightningRecorder  # noqa: E402


class Classifier(lightning.LightningModule):
    def __init__(self, decay=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        self.decay = decay

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.01, weight_decay=self.decay)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


def data(n=22):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    return x, (x.sum(1) > 0).long()


def fit(module, recorder, tmp_path, loader=None, **settings):
    loader = DataLoader(TensorDataset(*data()), batch_size=5, shuffle=True) if loader is None else loader
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[recorder],
        **settings,
    )
    trainer.fit(module, loader, DataLoader(TensorDataset(*data()), batch_size=7))
    return trainer


@pytest.mark.parametrize("model", [None, "net"])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}])
def test_a_training_is_accounted_for(model, settings, tmp_path):
    module = Classifier(decay=0.1)
    recorder = LightningRecorder(tmp_path / "run", model, train=data())
    trainer = fit(module, recorder, tmp_path, **settings)
    assert recorder.run.steps == trainer.global_step
    network = module if model is None else module.net
    queries = data(4)[0]
    a = ntkit.account(tmp_path / "run", network, cross_entropy, train=data(), queries=queries)
    assert a.converged and a.relative_residual <= 1e-8
    assert torch.allclose(a.prediction, module(queries), atol=1e-12)
    assert a.contributions.abs().sum((0, 1)).min() > 0  # every sample took part
    assert float(a.rounding.abs().max()) < 1e-12


def test_the_loader_is_left_as_it_was(tmp_path):
    loader = DataLoader(TensorDataset(*data()), batch_size=5, shuffle=True, num_workers=1)
    sampler = loader.batch_sampler.sampler
    fit(Classifier(), LightningRecorder(tmp_path / "run", train=data()), tmp_path, loader)
    assert loader.batch_sampler.sampler is sampler


def test_what_was_recorded_before_an_exception_stays(tmp_path):
    class Breaking(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 4:
                raise ValueError("enough")
            return super().training_step(batch, batch_idx)

    module = Breaking()
    recorder = LightningRecorder(tmp_path / "run", train=data())
    with pytest.raises(ValueError, match="enough"):
        fit(module, recorder, tmp_path)
    a = ntkit.account(tmp_path / "run", module, cross_entropy, train=data(), queries=data(2)[0])
    assert a.steps == 4 and a.converged


def test_a_network_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NtkitError, match="has no network 'nett'"):
        fit(Classifier(), LightningRecorder(tmp_path / "run", "nett"), tmp_path)


def test_a_loader_with_batches_of_its_own_is_refused(tmp_path):
    class Pairs:
        def __iter__(self):
            yield from ([i, 21 - i] for i in range(4))

        def __len__(self):
            return 4

    loader = DataLoader(TensorDataset(*data()), batch_sampler=Pairs())
    with pytest.raises(NtkitError, match="makes its batches by Pairs"):
        fit(Classifier(), LightningRecorder(tmp_path / "run"), tmp_path, loader)


def test_workers_that_read_ahead_unseen_are_refused(tmp_path):
    class Own(Classifier):
        def train_dataloader(self):
            return DataLoader(TensorDataset(*data()), batch_size=5, num_workers=1)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[LightningRecorder(tmp_path / "run")],
    )
    with pytest.raises(NtkitError, match="before ntkit could watch"):
        trainer.fit(Own())
