"""Build the wheel, and use it as a stranger would: in a fresh environment, outside the repository.

``python tools/wheel.py`` leaves the wheel in ``dist/``. What pip needs to know stands in its variables
(``PIP_CONSTRAINT``, ``PIP_EXTRA_INDEX_URL``), as the Makefile sets them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = textwrap.dedent(
    '''
    """A small run of one's own, recorded."""

    import torch

    import ntkit


    def build():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


    def data():
        x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
        return x, (x[:, 0] * x[:, 1] > 0).long()


    if __name__ == "__main__":
        model, (x, y) = build(), data()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with ntkit.record("run", model, optimizer, train=(x, y)) as run:
            for _ in range(5):
                for batch in torch.randperm(40).split(10):
                    run.batch(batch)
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()
        print("recorded by", ntkit.__file__)
    '''
)


def build() -> Path:
    """Build the wheel, and look whether it holds every file of the package."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."], cwd=ROOT, check=True)
    wheel = max((ROOT / "dist").glob("ntkit-*.whl"), key=lambda path: path.stat().st_mtime)
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    source = ROOT / "src"
    files = [path for path in (source / "ntkit").rglob("*") if path.is_file()]
    wanted = {str(p.relative_to(source)) for p in files if "__pycache__" not in p.parts}
    missing = sorted(wanted - held)
    if missing or "ntkit/py.typed" not in held:
        sys.exit(f"{wheel.name} lacks {', '.join(missing) or 'ntkit/py.typed'}.")
    print(f"{wheel.relative_to(ROOT)}: {len(held)} files, {wheel.stat().st_size / 1024:.0f} KiB", flush=True)
    return wheel


def use(wheel: Path, folder: Path) -> None:
    """Install a wheel into a fresh environment, and run the demo, a study, and a report of a recorded run."""
    venv.create(folder / "venv", with_pip=True)
    programs, here = folder / "venv" / "bin", folder / "elsewhere"
    here.mkdir()
    python = str(programs / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel)], cwd=here, check=True)
    (here / "mine.py").write_text(RUN, encoding="utf-8")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ntkit = str(programs / "ntkit")
    explain = [ntkit, "explain", "run", "--model", "mine:build", "--data", "mine:data", "--queries", "0,3,17"]
    for command, page in (
        ([ntkit, "--version"], None),
        ([ntkit, "demo", "--quick", "--out", "demo"], "demo/report.html"),
        ([ntkit, "study", "positive-definite", "--quick", "--out", "study"], "study/report.html"),
        ([python, "mine.py"], "run/manifest.json"),
        (explain, "report.html"),
    ):
        print(f"$ {' '.join([Path(command[0]).name, *command[1:]])}", flush=True)
        done = subprocess.run(command, cwd=here, env=plain, stdout=subprocess.PIPE, text=True, check=True)
        print(textwrap.indent(done.stdout.replace(str(folder), "..."), "  "), end="", flush=True)
        if page is not None and not (here / page).stat().st_size:
            sys.exit(f"{page} is empty.")


if __name__ == "__main__":
    built = build()
    with tempfile.TemporaryDirectory(prefix="ntkit-wheel-") as temporary:
        use(built, Path(temporary))
    print(f"{built.name} works outside the repository.")
