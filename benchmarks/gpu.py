"""On a CUDA device: tangent kernels beside torch.func, and limits beside the processor of the same machine.

    python benchmarks/gpu.py

Contestants of a job take turns in one process; times are medians of the calls between two synchronizations,
after three calls that warm up. `ratio` is ntkit's time over the peer's, `difference` the largest one over
the largest entry.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import ntkit

Job = tuple[str, str, Callable[[], Tensor], Callable[[], Tensor]]


def contracted(model: nn.Module, x: Tensor) -> Tensor:
    """Return the trace kernel / outputs by torch.func: all Jacobians, then one product."""
    weights = {name: w.detach() for name, w in model.named_parameters()}

    def f(w: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, w, (one[None],))[0]

    rows = vmap(jacrev(f), (None, 0))(weights, x)
    total = sum(torch.einsum("nop,mop->nm", j.flatten(2), j.flatten(2)) for j in rows.values())
    assert isinstance(total, Tensor)
    return total / next(iter(rows.values())).shape[1]


def mlp() -> nn.Module:
    """784-1024-1024-10."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def cnn() -> nn.Module:
    """Four convolutions of 64 channels, pictures 32 x 32."""
    layers: list[nn.Module] = []
    for inputs in (3, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10))


class Encoder(nn.Module):
    """Two encoder layers of width 128 on 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the mean token."""
        return self.head(self.body(x).mean(1))


def jobs(device: str) -> list[Job]:
    """Return (name, peer, ntkit's call, the peer's call)."""
    torch.manual_seed(0)
    found: list[Job] = []
    for name, build, shape in [
        ("MLP 784-1024-1024-10, n = 128", mlp, (128, 784)),
        ("CNN 4 x 64 at 32 x 32, n = 128", cnn, (128, 3, 32, 32)),
        ("encoder 2 x 128, 64 tokens, n = 128", Encoder, (128, 64, 128)),
    ]:
        model, x = build().to(device).eval(), torch.randn(shape, device=device)
        for memory in ("1GiB", "16GiB"):
            kernel = ntkit.EmpiricalNTK(model, memory=memory)
            calls = (lambda k=kernel, x=x: k(x), lambda m=model, x=x: contracted(m, x))
            found.append((f"{name}, memory={memory}", "torch.func", *calls))
    for name, build, shape in [
        ("limit of the MLP, n = 4000", mlp, (4000, 784)),
        ("limit of the CNN, pooled to 4 x 4, n = 8", cnn, (8, 3, 32, 32)),
    ]:
        model, x = build(), torch.randn(shape)
        here = ntkit.infinite_width(model, x[:1])
        there = ntkit.infinite_width(build().to(device), x[:1].to(device))
        z = x.to(device)
        found.append((name, "the processor", lambda k=there, z=z: k.ntk(z), lambda k=here, x=x: k.ntk(x)))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here: this table is of one")
    if chosen.device == "cuda":
        print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
        )
    print("| job | ntkit, s | peer | peer, s | ratio | difference |\n|---|---|---|---|---|---|")
    for name, peer, ours, theirs in jobs(chosen.device):
        taken: dict[int, list[float]] = {0: [], 1: []}
        answers = [call() for _ in range(3) for call in (ours, theirs)][-2:]
        for _ in range(chosen.rounds):
            for index, call in enumerate((ours, theirs)):
                if chosen.device == "cuda":
                    torch.cuda.synchronize()
                start = perf_counter()
                call()
                if chosen.device == "cuda":
                    torch.cuda.synchronize()
                taken[index].append(perf_counter() - start)
        a, b = (answer.cpu().double() for answer in answers)
        difference = float((a - b).abs().max() / b.abs().max())
        mine, other = median(taken[0]), median(taken[1])
        print(
            f"| {name} | {mine:.4g} | {peer} | {other:.4g} | {mine / other:.3f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
