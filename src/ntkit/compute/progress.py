"""A progress bar with the time left, silent where the output is not a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(description: str, total: int) -> Generator[Callable[[int], None]]:
    """Yield a function to call with the number of steps just done."""
    console = Console(stderr=True)
    if not console.is_terminal:  # there rich 13 prints empty lines for a bar that is disabled
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)
