"""A run of a network of 25 M weights: what recording it with checkpoints costs, and an account within 8 GiB.

The network is a ResNet-50 (bottlenecks, batch norm) on pictures of 64 x 64, batches of 32, SGD with momentum.
It is trained for some steps before the run begins, as for a fine-tuning: with ``--before 0`` its predictions
in evaluation mode grow to 5e4 and fall to 10 again while the averages of its batch norms lag behind, and a
residual of a hundredth of their change is at float32's rounding. Peaks are those of the whole process, and on
a CUDA device also what torch holds there.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ntkit

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from runs_jobs import sgd

BATCH, SIZE, CLASSES, QUERIES = 32, 64, 1000, 2
BAR_MEMORY, BAR_RECORDING = 8 * 2**30, 0.1  # bytes; seconds a step, a tenth of a step of 1 s


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1, and a skip."""

    def __init__(self, i: int, width: int, stride: int) -> None:
        super().__init__()
        o = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(i, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        self.short = nn.Identity()
        if i != o or stride > 1:
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return F.relu(self.body(x) + self.short(x))


def resnet50() -> nn.Module:
    """Return a ResNet-50 with 1,000 outputs: 25.6 M weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    i = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Bottleneck(i, width, stride if number == 0 else 1))
            i = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, CLASSES))


def main() -> None:
    """Train, record, account; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--before", type=int, default=100, help="steps before the run, at ten times its rate")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--only-recording", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/large_run.md"))
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    x = (torch.randn(chosen.samples, 3, SIZE, SIZE).cumsum(-1).cumsum(-2) / 16).to(device)
    y = torch.randint(CLASSES, (chosen.samples,)).to(device)
    net = resnet50().to(device)
    made = sgd(net.parameters())
    for _ in range(chosen.before):
        index = torch.randperm(chosen.samples)[:BATCH]
        made.zero_grad()
        F.cross_entropy(net(x[index]), y[index]).backward()
        made.step()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    order = [torch.randperm(chosen.samples)[:BATCH] for _ in range(chosen.steps)]

    def train(folder: str | None = None) -> list[float]:
        net.load_state_dict(start)
        net.train()
        made, seconds = sgd(net.parameters()), []
        if chosen.before:
            made.param_groups[0]["lr"] /= 10
        recording = nullcontext()
        if folder is not None:
            recording = ntkit.record(folder, net, made, train=(x, y), every=chosen.every)
        with recording as run:
            begin = time.perf_counter()
            for index in order:
                if run is not None:
                    run.batch(index)
                made.zero_grad()
                F.cross_entropy(net(x[index]), y[index]).backward()
                made.step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                now = time.perf_counter()
                seconds.append(now - begin)
                begin = now
        return seconds

    size = sum(p.numel() for p in net.parameters())
    text = [
        f"Machine: {platform.machine()}, {device}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {size:,} weights, {chosen.steps} steps, every={chosen.every}, "
        f"{chosen.before} steps before; {QUERIES} queries, tol {chosen.tol:g}, memory {chosen.memory}.\n",
        "| what | figure | bar |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as parent:
        plain = train()
        held = train(f"{parent}/run")
        step, more = sum(plain) / len(plain), (sum(held) - sum(plain)) / len(plain)
        text.append(f"| a step of training, s | {step:.3f} (median {median(plain):.3f}) | |")
        text.append(f"| recording, s a step | {more:.3f} | {BAR_RECORDING:g}: {_told(more, BAR_RECORDING)} |")
        if not chosen.only_recording:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            a = ntkit.account(
                f"{parent}/run",
                net,
                "cross_entropy",
                train=(x, y),
                queries=x[:QUERIES],
                target="predicted",
                tol=chosen.tol,
                memory=chosen.memory,
            )
            seconds = time.perf_counter() - begin
            text.append(f"| account, s | {seconds:.0f} ({seconds / sum(plain):.1f} times training) | |")
            text.append(
                f"| residual over movement | {a.relative_residual:.1e} (converged: {a.converged}) | |"
            )
            text.append(f"| made by | {a.plan} | |")
            if device.type == "cuda":
                there = torch.cuda.max_memory_allocated()
                text.append(
                    f"| peak on the device, GiB | {there / 2**30:.2f} | 8: {_told(there, BAR_MEMORY)} |"
                )
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text.append(f"| peak of the process, GiB | {peak / 2**30:.2f} | 8: {_told(peak, BAR_MEMORY)} |")
    print("\n".join(text))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text("\n".join(text) + "\n")


def _told(value: float, bar: float) -> str:
    return "reached" if value <= bar else "**missed**"


if __name__ == "__main__":
    main()
