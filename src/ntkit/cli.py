"""The command line: it parses, calls and prints. Heavy rooms are imported when a command runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from ntkit import __version__
from ntkit.errors import NtkitError
from ntkit.studies.config import QUICK, RATES, Activation, DemoConfig, Optimizer, Precision

app = typer.Typer(
    help="Any PyTorch network as its kernel machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_RATES = ", ".join(f"{name} {rate:g}" for name, rate in RATES.items())
_QUICK = ", ".join(f"{value} {name}" for name, value in QUICK.items())


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ntkit {__version__}")
        raise typer.Exit


@app.callback()
def _ntkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    context: typer.Context,
    out: Annotated[
        str, typer.Option(help="Output folder; an earlier demo in it is replaced.")
    ] = DemoConfig.out,
    samples: Annotated[int, typer.Option(help="Digits to train on.")] = DemoConfig.samples,
    epochs: Annotated[int, typer.Option(help="Passes over the training digits.")] = DemoConfig.epochs,
    batch: Annotated[int, typer.Option(help="Digits in a training step.")] = DemoConfig.batch,
    optimizer: Annotated[Optimizer, typer.Option(help="Optimizer.")] = DemoConfig.optimizer,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Learning rate. [default: {_RATES}]")
    ] = DemoConfig.learning_rate,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = DemoConfig.weight_decay,
    hidden: Annotated[int, typer.Option(help="Hidden units.")] = DemoConfig.hidden,
    activation: Annotated[Activation, typer.Option(help="Activation.")] = DemoConfig.activation,
    dtype: Annotated[Precision, typer.Option(help="Precision of the training.")] = DemoConfig.dtype,
    seed: Annotated[int, typer.Option(help="Seed of split, weights and batches.")] = DemoConfig.seed,
    queries: Annotated[int, typer.Option(help="Held-out digits to explain.")] = DemoConfig.queries,
    subset: Annotated[int, typer.Option(help="Training digits in the kernel matrix.")] = DemoConfig.subset,
    shown: Annotated[int, typer.Option(help="Training digits shown each way.")] = DemoConfig.shown,
    tol: Annotated[float, typer.Option(help="Tolerance of the account.")] = DemoConfig.tol,
    quick: Annotated[bool, typer.Option("--quick", help=f"A small one in seconds ({_QUICK}).")] = False,
) -> None:
    """Train a network on handwritten digits and explain its predictions by its training digits."""
    given = {
        name: value
        for name, value in context.params.items()
        if name != "quick" and str(context.get_parameter_source(name)) != "ParameterSource.DEFAULT"
    }
    config = replace(DemoConfig(**QUICK) if quick else DemoConfig(), **given)

    from ntkit.studies import demo as study

    result = study.run(config)
    typer.echo(f"report             {result.report}")
    typer.echo(f"accuracy           {result.accuracy:.4f} on held-out digits")
    typer.echo(
        f"largest residual   {result.residual:.2e} logits, {result.relative_residual:.2e} of the largest "
        f"change by training"
    )
    if not result.converged:
        typer.echo(f"warning: the account did not reach its tolerance of {config.tol:g}", err=True)


def main() -> None:
    """Run the command line; a refusal is one line on the error stream and exit status 1."""
    try:
        app()
    except NtkitError as error:
        sys.exit(f"ntkit: {error}")


if __name__ == "__main__":
    main()
