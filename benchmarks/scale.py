"""What kernel machines cost from a thousand to ten million rows, on paper, with what was measured beside it.

    python benchmarks/scale.py --page docs/scale.md [--mnist60k out/mnist60k/result.json] [--quick]

All figures are of the model in ntkit/compute/out_of_core/costs.py, with the machines and prices named below;
measurements are made here, on this machine, and stand beside what the model says of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import ntkit
from ntkit.compute.out_of_core import costs
from ntkit.compute.out_of_core.costs import Cost, Machine, Values
from ntkit.compute.out_of_core.in_place import InPlaceCholesky
from ntkit.compute.out_of_core.refine import refined
from ntkit.compute.out_of_core.source import TiledMatrix
from ntkit.compute.plan import format_bytes
from ntkit.machine.kernels import ReLUKernel
from ntkit.machine.stored.system import How, TiledSystem

sys.path.insert(0, str(Path(__file__).parent / "peers"))

ROWS = [10**k for k in range(3, 8)]
OUTPUTS, FEATURES, DEPTH, COLUMNS = 10, 4096, 3, 784
YEAR = 365 * 24.0  # hours


@dataclass(frozen=True)
class Executor:
    """Where tiles are made and systems solved: ``count`` machines of one kind, memory and price of each.

    ``dollars`` are those of an hour, an assumption; ``efficiency`` is the share of the rate of large products
    that kernels' values reach.
    """

    name: str
    machine: Machine
    count: int
    memory: float
    dollars: float
    efficiency: float = 0.5

    def seconds(self, cost: Cost, values: bool = False) -> float:
        """Return the seconds that a cost takes, shared evenly."""
        m = self.machine
        share = self.efficiency if values else 1.0
        faster = Machine(m.name, *(self.count * share * r for r in (m.float32, m.float64, m.memory)))
        disks = Machine(m.name, *(faster.float32, faster.float64, faster.memory), self.count * m.read)
        return cost.seconds(Machine(*_fields(disks), self.count * m.write), 4)

    def price(self, seconds: float) -> float:
        """Return the dollars of so many seconds."""
        return seconds / 3600 * self.dollars * self.count


def _fields(m: Machine) -> tuple[str, float, float, float, float]:
    return m.name, m.float32, m.float64, m.memory, m.read


def executors(here: Machine) -> list[Executor]:
    """Return the machines that are compared; all but the first are assumptions."""
    server = Machine("64 cores", 3e12, 1.5e12, 2e11, 2e9, 1e9)
    gpu = Machine("H100", 4e13, 2e13, 2.4e12, 2e9, 1e9)
    return [
        Executor("in process, this machine", here, 1, 16e9, 0.10),
        Executor("joblib, 64 cores", server, 1, 256e9, 2.60),
        Executor("Ray, 1 H100", gpu, 1, 80e9, 2.50),
        Executor("Ray, 64 H100", gpu, 64, 80e9, 2.50),
    ]


def kernels() -> list[Values]:
    """Return what the values of three kernels cost, counted: a limit, and two networks as they are."""
    import networks

    torch.manual_seed(0)
    # an entry of the limit is a product of vectors, and for each layer some twenty passes over it, arccos
    # among them, each as dear as eight operations of a product
    mlp = Values(f"MLP, limit, depth {DEPTH}", 0.0, 2.0 * COLUMNS + DEPTH * 20 * 8)
    found = [mlp]
    for name, model in (("CNN", networks.cnn()), ("ResNet-18", networks.resnet18())):
        kernel, x = ntkit.EmpiricalNTK(model.eval()), torch.randn(32, 3, 32, 32)
        counts = [(n, float(kernel.plan(x[:n]).flops)) for n in (16, 32)]
        found.append(Values.fitted(f"{name}, as it is", *counts))
    return found


def solvers(n: int, who: Executor) -> dict[str, Cost]:
    """Return the solvers that n rows have room for, with ten right-hand sides and float32 tiles."""
    memory = who.memory * who.count
    found: dict[str, Cost] = {}
    dense = costs.eigendecomposition(n)
    if dense.held <= memory:
        found["eigen"] = dense
    place = costs.cholesky_in_place(n, 4, OUTPUTS)
    if place.held <= memory:
        found["Cholesky in place"] = place
    elif who.count == 1:
        found["Cholesky from disk"] = costs.cholesky_from_disk(n, 4, OUTPUTS, int(memory))
    found["CG on tiles"] = costs.conjugate_gradients(n, 4, OUTPUTS, memory)
    flops = 2.0 * (COLUMNS * FEATURES + (DEPTH - 1) * 1.5 * FEATURES**2 / 2)
    found[f"{FEATURES} features"] = costs.normal_equations(n, FEATURES, OUTPUTS, flops)
    return found


def table(head: list[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    """Return a table of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def time_of(seconds: float) -> str:
    """Return a time in two digits."""
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def money(dollars: float) -> str:
    """Return dollars in two digits."""
    return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:.2g}"


@dataclass(frozen=True)
class Measured:
    """Something that was run here: what, at how many rows, the seconds, and those of the model."""

    what: str
    n: int
    seconds: float
    model: float

    def row(self) -> list[str]:
        """Return a row of the table."""
        return [
            f"**{self.what}**",
            f"{self.n:,}",
            time_of(self.seconds),
            time_of(self.model),
            f"{self.seconds / self.model:.2f}",
        ]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measurements(here: Executor, kinds: list[Values], sizes: list[int]) -> list[Measured]:
    """Return what this machine took for matrices and solutions."""
    return [m for n in sizes for m in _measured(here, kinds[0], n)]


def _measured(here: Executor, kind: Values, n: int) -> Iterator[Measured]:
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(n, COLUMNS)), torch.as_tensor(rng.normal(size=(n, OUTPUTS)))
    with tempfile.TemporaryDirectory() as name:
        tiled = ntkit.TiledKernel(ReLUKernel(DEPTH), x, folder=Path(name) / "t", dtype="float32")
        model = here.seconds(kind.matrix(n, 4), True)
        yield Measured(f"matrix, {kind.name}", n, timed(tiled.build), model)
        shift = 2e-3 * float(tiled.diag().mean())

        def exact() -> None:
            factor = InPlaceCholesky(tiled, shift, Path(name) / "factor", {})
            refined(factor, factor, b)

        yield Measured("Cholesky in place", n, timed(exact), here.seconds(costs.cholesky_in_place(n, 4, 10)))
        system = TiledSystem(tiled, How("cg"))
        model = here.seconds(costs.conjugate_gradients(n, 4, OUTPUTS, 2**33))
        yield Measured("CG on tiles", n, timed(lambda: system.solve(b, shift)), model)
        model = here.seconds(costs.product(n, 4, OUTPUTS, 0))
        yield Measured("a product, streamed", n, timed(lambda: TiledMatrix(tiled, 0) @ b), model)


def page(kinds: list[Values], who: list[Executor], measured: list[Measured]) -> str:
    """Return the page."""
    out = ["# What it costs, from a thousand to ten million rows", ""]
    out += [
        "Written by `benchmarks/scale.py` from the cost model in `ntkit.compute.out_of_core.costs`, by which",
        "",
    ]
    out[-1:] = ['`solver="auto"` chooses too. What was measured is bold; the rest is computed.', ""]
    out += ["## Assumptions", ""]
    out += table(
        [
            "executor",
            "float32 / s",
            "float64 / s",
            "memory / s",
            "disk / s",
            "memory",
            "machines",
            "an hour of one",
        ],
        [
            [
                e.name,
                f"{e.machine.float32:.2g}",
                f"{e.machine.float64:.2g}",
                format_bytes(e.machine.memory),
                format_bytes(e.machine.read),
                format_bytes(e.memory),
                str(e.count),
                f"${e.dollars:.2f}",
            ]
            for e in who
        ],
    )
    share, rank = who[0].efficiency, costs.RANK
    out += [
        "Rates of the first were measured when this page was written; the others, disks, memory and all",
        f"prices are assumptions. Kernels' values reach {share:.0%} of the rate of large products. Matrices",
        f"are float32, right-hand sides {OUTPUTS}, iterations of CG {costs.ITERATIONS}, its preconditioner",
        f"has {rank:g} sqrt(n) columns. What machines send to each other is not in it.",
        "",
        "## The kernel matrix",
        "",
    ]
    out += table(
        ["kernel", "operations a sample", "a pair"],
        [[v.name, f"{v.sample:.2g}", f"{v.pair:.2g}"] for v in kinds],
    )
    for v in kinds:
        rows = []
        for n in ROWS:
            cost = v.matrix(n, 4)
            cells = [(s, e.price(s)) for e in who for s in [e.seconds(cost, True)]]
            rows.append(
                [f"{n:,}", f"{cost.flops:.1e}", format_bytes(cost.written)]
                + [f"{time_of(s)}, {money(d)}" for s, d in cells]
            )
        out += [f"### {v.name}", "", *table(["rows", "FLOPs", "bytes", *(e.name for e in who)], rows)]
    out += [
        "## Solving",
        "",
        "Seconds with the matrix there (features: without one); the quickest is in italics.",
        "",
    ]
    for e in who:
        names = ["eigen", "Cholesky in place", "Cholesky from disk", "CG on tiles", f"{FEATURES} features"]
        rows = []
        for n in ROWS:
            took = {k: e.seconds(c) for k, c in solvers(n, e).items()}
            best = min((k for k in took if k != names[-1]), key=lambda k: took[k])
            cells = [time_of(took[k]) if k in took else "" for k in names]
            rows.append(
                [f"{n:,}", *(f"*{c}*" if k == best else c for k, c in zip(names, cells, strict=True))]
            )
        out += [f"### {e.name}", "", *table(["rows", *names], rows), winners(e), ""]
    out += cluster(kinds, who[-1])
    out += ["## Measured on this machine", ""]
    out += table(
        ["what", "rows", "measured", "model", "ratio"],
        [m.row() for m in measured],
    )
    return "\n".join(out).rstrip() + "\n"


def winners(e: Executor) -> str:
    """Return from how many rows on each exact solver is the quickest."""
    found: list[str] = []
    last = ""
    for n in np.unique(np.logspace(3, 7, 200).astype(int)):
        took = {k: e.seconds(c) for k, c in solvers(int(n), e).items() if "features" not in k}
        best = min(took, key=lambda k: took[k])
        if best != last:
            found.append(f"{best} from {n:,} rows on" if last else f"{best} first")
            last = best
    everything = [
        n
        for n in np.unique(np.logspace(3, 7, 200).astype(int))
        if e.seconds(solvers(int(n), e)[f"{FEATURES} features"])
        < min(e.seconds(c) for k, c in solvers(int(n), e).items() if "features" not in k)
    ]
    features = f"{FEATURES} features, which are an approximation, are quicker from {everything[0]:,} rows on"
    return f"Exact: {'; '.join(found)}. " + (f"{features}." if everything else "Features are never quicker.")


def cluster(kinds: list[Values], e: Executor) -> list[str]:
    """Return what a million rows, exact, need of many GPUs."""
    n = 10**6
    size = costs.stored(n, 4)
    cg = costs.conjugate_gradients(n, 4, OUTPUTS, e.memory * e.count)
    once = costs.product(n, 4, OUTPUTS, size)
    took, each, rank = e.seconds(cg), e.seconds(once), int(costs.RANK * n**0.5)
    out = [
        f"## A million rows, exact, on {e.count} GPUs",
        "",
        f"The upper triangle in float32 is {format_bytes(size)}, {format_bytes(size / e.count)} a GPU of "
        f"{format_bytes(e.memory)}: shards of tiles stay in their memory. A product with {OUTPUTS} right-"
        f"hand sides takes {time_of(each)}, after which every GPU has to have the sum: "
        f"{format_bytes(8.0 * n * OUTPUTS)} to each. Conjugate gradients with {costs.ITERATIONS} of them and "
        f"a preconditioner of {rank:,} columns ({format_bytes(8 * n * rank)} in float64, shared) take "
        f"{time_of(took)}, {money(e.price(took))}.",
        "",
    ]
    rows = []
    for v in kinds:
        build = e.seconds(v.matrix(n, 4), True)
        rows.append(
            [
                v.name,
                time_of(build),
                money(e.price(build)),
                time_of(build + took),
                money(e.price(build + took)),
            ]
        )
    return out + table(["kernel", "matrix", "dollars", "with the solution", "dollars"], rows)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("docs/scale.md"))
    parser.add_argument("--mnist60k", type=Path, help="result.json of make mnist60k, a measured point.")
    parser.add_argument("--quick", action="store_true", help="Measure 1,000 rows only.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    who = executors(costs.this_machine(options.threads))
    kinds = kernels()
    measured = measurements(who[0], kinds, [1000] if options.quick else [2000, 6000])
    if options.mnist60k and options.mnist60k.exists():
        found = json.loads(options.mnist60k.read_text())
        n = found["samples"]
        model = who[0].seconds(kinds[0].matrix(n, 4), True) + who[0].seconds(
            costs.cholesky_in_place(n, 4, 10)
        )
        measured.append(Measured("make mnist60k, matrix and solution", n, found["seconds"], model))
    options.page.write_text(page(kinds, who, measured))
    print(options.page)


if __name__ == "__main__":
    main()
