import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

import ntkit
from ntkit.errors import NtkitError

X = torch.randn(23, 3)
DATA = TensorDataset(X, torch.arange(23))


class Pairs:
    """A batch sampler of the user's own."""

    def __iter__(self):
        yield from ([i, 22 - i] for i in range(4))

    def __len__(self):
        return 4


LOADERS = {
    "in order": DataLoader(DATA, batch_size=5),
    "shuffled": DataLoader(DATA, batch_size=5, shuffle=True),
    "last one dropped": DataLoader(DATA, batch_size=5, shuffle=True, drop_last=True),
    "workers": DataLoader(DATA, batch_size=4, shuffle=True, num_workers=2),
    "workers that stay": DataLoader(DATA, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True),
    "own batches": DataLoader(DATA, batch_sampler=Pairs()),
    "with replacement": DataLoader(
        DATA, batch_size=4, sampler=torch.utils.data.RandomSampler(DATA, replacement=True, num_samples=30)
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_indices_are_those_of_the_batch(name):
    loader = ntkit.indexed(LOADERS[name])
    for _ in range(2):
        seen = 0
        for index, (x, y) in loader:
            assert torch.equal(y, index) and torch.equal(x, X[index])
            seen += 1
        assert seen == len(loader) == len(LOADERS[name])


def test_a_pass_that_is_broken_off_leaves_nothing_behind():
    loader = ntkit.indexed(LOADERS["workers"])
    next(iter(loader))
    for index, (_, y) in loader:
        assert torch.equal(y, index)


def test_the_shuffling_is_that_of_the_loader():
    loader = LOADERS["shuffled"]
    torch.manual_seed(0)
    alone = [y for _, y in loader]
    torch.manual_seed(0)
    together = [y for _, (_, y) in ntkit.indexed(loader)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Stream(), batch_size=2), "IterableDataset"),
        (DataLoader(DATA, batch_size=None), "no batches"),
        ([1, 2], "Expected a torch DataLoader, got list"),
    ],
)
def test_what_has_no_indices_is_refused(loader, message):
    with pytest.raises(NtkitError, match=message):
        ntkit.indexed(loader)


def test_batches_of_batches_keep_their_order():
    loader = DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 7, False))
    assert [len(index) for index, _ in ntkit.indexed(loader)] == [7, 7, 7, 2]
