"""A progress bar with the time left, in terminals and notebooks; silent elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_AFTER, _OFTEN = (
    1.0,
    0.25,
)  # seconds: what ends sooner shows no bar in a notebook; between two pictures of one


@contextmanager
def progress(description: str, total: int) -> Generator[Callable[[int], None]]:
    """Yield a function to call with the number of steps just done."""
    if in_notebook():
        bar = NotebookBar(description, total)
        try:
            yield bar.advance
        finally:
            bar.close()
        return
    console = Console(stderr=True)
    if not console.is_terminal:  # there rich 13 prints empty lines for a bar that is disabled
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as terminal:
        task = terminal.add_task(description, total=total)
        yield lambda done: terminal.advance(task, done)


def in_notebook() -> bool:
    """Whether this is the process of a notebook, whose cells show HTML."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class Shown(Protocol):
    """What IPython returns for something that it shows, and that can be replaced."""

    def update(self, obj: object) -> None:
        """Show something else in its place."""


class NotebookBar:
    """A bar below the cell, replaced as work is done, and gone when it is over."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done = description, max(1, total), 0
        self._begin = self._last = time.monotonic()
        self._shown: Shown | None = None

    def advance(self, done: int) -> None:
        """Note that so many steps more are done."""
        self.done += done
        now = time.monotonic()
        if now - self._begin < _AFTER or now - self._last < _OFTEN:
            return
        self._last = now
        self._show(self.html(now - self._begin))

    def html(self, seconds: float) -> str:
        """Return the bar after so many seconds."""
        left = seconds * (self.total - self.done) / max(1, self.done)
        told = f"{self.done:,} of {self.total:,}, {left // 60:.0f}:{left % 60:02.0f} left"
        bar = f'<progress max="{self.total}" value="{self.done}"></progress>'
        return f"<label>{self.description} {bar} {told}</label>"

    def close(self) -> None:
        """Take it away."""
        if self._shown is not None:
            self._show("")

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        if self._shown is None:
            self._shown = display(HTML(html), display_id=True)
        else:
            self._shown.update(HTML(html))
