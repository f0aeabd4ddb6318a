"""The command line: it parses, calls and prints. Heavy rooms are imported when a command runs."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ntkit import __version__
from ntkit.errors import NtkitError
from ntkit.studies.catalog import STUDIES
from ntkit.studies.config import QUICK, RATES, Activation, DemoConfig, Optimizer, Precision

app = typer.Typer(
    help="Any PyTorch network as its kernel machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_RATES = ", ".join(f"{name} {rate:g}" for name, rate in RATES.items())
_STUDY_HELP = f"The papers' experiments, one command each: {', '.join(STUDIES)}."
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
    _tell(f"{result.residual:.2e} logits", result, config.tol)


@app.command()
def explain(
    folder: Annotated[str, typer.Argument(help="The run folder that ntkit.record made.")],
    model: Annotated[str, typer.Option(help="module:factory, which returns the untrained network.")],
    data: Annotated[str, typer.Option(help="module:function, which returns inputs and targets (x, y).")],
    queries: Annotated[
        str,
        typer.Option(help="module:function, which returns inputs (and labels), or training samples: 0,3,17."),
    ],
    out: Annotated[str, typer.Option(help="The page to write.")] = "report.html",
    loss: Annotated[
        str, typer.Option(help="A name in torch.nn.functional, or module:function.")
    ] = "cross_entropy",
    tol: Annotated[float, typer.Option(help="Tolerance of the account, of the largest movement.")] = 1e-8,
    memory: Annotated[str, typer.Option(help="Memory for the large arrays.")] = "1GiB",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Explain predictions of a recorded run by its training samples, on one page."""
    from ntkit.report.run_page import explain_run

    account, page = explain_run(
        folder, model, data, queries, out, loss=loss, tol=tol, memory=memory, jobs=jobs
    )
    typer.echo(f"report             {page}")
    _tell(f"{float(account.residual.abs().max()):.2e}", account, tol)


def _tell(residual: str, found: Any, tol: float) -> None:
    """Say how well the account behind a page closes."""
    typer.echo(
        f"largest residual   {residual}, {found.relative_residual:.2e} of the largest change by training"
    )
    if not found.converged:
        typer.echo(f"warning: the account did not reach its tolerance of {tol:g}", err=True)


class _Studies(TyperGroup):
    """The studies as commands, imported when asked for; their options are their configurations' fields."""

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        known = super().get_command(ctx, cmd_name)  # type: ignore[arg-type]
        return known if known is not None or cmd_name not in STUDIES else _study_command(cmd_name)


study = typer.Typer(cls=_Studies, no_args_is_help=True, help=_STUDY_HELP, rich_markup_mode=None)
app.add_typer(study, name="study")


@study.command("list")
def list_studies() -> None:
    """Name the studies, what each shows, and where it comes from."""
    width = max(map(len, STUDIES))
    for name, (source, title) in STUDIES.items():
        typer.echo(f"{name:<{width}}  {title}\n{'':<{width}}  {source}")


@study.command("all")
def all_studies(
    out: Annotated[str, typer.Option(help="Folder of their folders; what is finished there stays.")],
    quick: Annotated[bool, typer.Option("--quick", help="The small configurations.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")] = "cpu",
) -> None:
    """Run every study; started again, it goes on with those that are not finished."""
    from ntkit.studies.runner import run_all

    refused = False
    for outcome in run_all(out, quick=quick, seed=seed, device=device):
        if outcome.record is None:
            refused = True
            typer.echo(f"{outcome.name}: {outcome.refusal}", err=True)
            continue
        state = "every bar holds" if outcome.holds else "a bar is missed"
        seconds = outcome.record["seconds"]
        typer.echo(f"{outcome.name:<20} {state:<16} {seconds:6.0f} s  {outcome.folder / 'report.html'}")
    raise typer.Exit(int(refused))


@study.command("document")
def document_studies(
    results: Annotated[str, typer.Argument(help="The folder that `ntkit study all --out` left.")],
    page: Annotated[str, typer.Option(help="The Markdown page to write; pictures go beside it.")],
) -> None:
    """Write the page of all results: the tables, and the figures."""
    from ntkit.studies.document import document

    typer.echo(document(results, page))


def _study_command(name: str) -> Any:
    """Return the command of one study, with an option for each field of its configuration."""
    from ntkit.studies.catalog import configure, module
    from ntkit.studies.study import options

    def command(**given: Any) -> None:
        from ntkit.studies.runner import run_study, table

        out, quick = given.pop("out"), given.pop("quick")
        config = configure(name, quick=quick, **{k: v for k, v in given.items() if v not in (None, [], ())})
        outcome = run_study(name, config, out or f"out/{name}")
        typer.echo(table(outcome))

    own = module(name)
    parameters = [
        inspect.Parameter(
            "out",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=f"Output folder. [default: out/{name}]")],
        ),
        inspect.Parameter(
            "quick",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option("--quick", help=f"A small one ({_spoken(own.QUICK)}).")],
        ),
    ]
    for field, kind, text in options(own.Config):
        parameters.append(
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind, typer.Option(help=text)],
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = f"{STUDIES[name][1]}.\n\n{STUDIES[name][0]}."
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(command)
    return typer.main.get_command(single)


def _spoken(values: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def main() -> None:
    """Run the command line; a refusal is one line on the error stream and exit status 1."""
    try:
        app()
    except NtkitError as error:
        sys.exit(f"ntkit: {error}")


if __name__ == "__main__":
    main()
