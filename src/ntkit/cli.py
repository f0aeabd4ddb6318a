"""The command line: it parses, calls and prints. Heavy rooms are imported when a command runs."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: threads that wait sleep

import typer
from typer.core import TyperGroup

from ntkit.errors import NtkitError, nearest
from ntkit.gram_commands import fit, gram
from ntkit.studies.catalog import STUDIES, about, configure, declared
from ntkit.studies.study import options
from ntkit.version import __version__


class _Studies(TyperGroup):
    """The studies as commands, imported when asked for; their options are their configurations' fields."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is made into a command when it is asked for."""
        return tuple(STUDIES)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        near = nearest(args[0], self.names)
        if near and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}.{near}")
        return super().resolve_command(ctx, args)  # type: ignore[arg-type]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        known = super().get_command(ctx, cmd_name)  # type: ignore[arg-type]
        return known if known is not None or cmd_name not in self.names else _study_command(cmd_name)


class _Commands(_Studies):
    """The commands of ntkit, among them the demo, which is a study."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is made into a command when it is asked for."""
        return ("demo",)

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*self.names, *super().list_commands(ctx)]  # type: ignore[arg-type]


app = typer.Typer(
    cls=_Commands,
    help="Any PyTorch network as its kernel machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_STUDY_HELP = f"The papers' experiments, one command each: {', '.join(STUDIES)}."


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ntkit {__version__}")
        raise typer.Exit


@app.callback()
def _ntkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say what is chosen, and why; -vv: all.")
    ] = 0,
) -> None:
    if verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("ntkit").setLevel(logging.INFO if verbose == 1 else logging.DEBUG)


@app.command()
def explain(
    folder: Annotated[str, typer.Argument(help="The run folder that ntkit.record made.")],
    model: Annotated[str, typer.Option(help="module:factory, which returns the untrained network.")] = "",
    data: Annotated[str, typer.Option(help="module:function, which returns inputs and targets (x, y).")] = "",
    queries: Annotated[
        str,
        typer.Option(help="module:function, which returns inputs (and labels), or training samples: 0,3,17."),
    ] = "",
    out: Annotated[str, typer.Option(help="The page to write.")] = "report.html",
    loss: Annotated[
        str, typer.Option(help="A name in torch.nn.functional, or module:function.")
    ] = "cross_entropy",
    tol: Annotated[float, typer.Option(help="Tolerance of the account, of the largest movement.")] = 1e-8,
    memory: Annotated[str, typer.Option(help="Memory for the large arrays.")] = "1GiB",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    target: Annotated[
        str, typer.Option(help="outputs, predicted, margin, loss, or numbers of outputs: 0,2.")
    ] = "outputs",
    classes: Annotated[
        str, typer.Option(help="Names of the outputs, cat,dog, or a file with a line each.")
    ] = "",
    names: Annotated[str, typer.Option(help="A file with a line for each training sample: its name.")] = "",
    picture: Annotated[
        str, typer.Option(help="Height and width of flat inputs that are pictures: 28x28.")
    ] = "",
    keep: Annotated[str, typer.Option(help="A folder for what is finished, to go on from there.")] = "",
    counterfactual: Annotated[
        bool, typer.Option(help="Beside the account, what the predictions depend on.")
    ] = False,
) -> None:
    """Explain predictions of a recorded run by its training samples, on one page.

    For example, with a file mymodel.py that has functions build() and data():

    ntkit explain run --model mymodel:build --data mymodel:data --queries 0,3,17 --target predicted
    """
    from ntkit.report.run_page import explain_run, given_options

    given_options({"--model": model, "--data": data, "--queries": queries})
    account, page = explain_run(
        folder,
        model,
        data,
        queries,
        out,
        loss=loss,
        tol=tol,
        memory=memory,
        jobs=jobs,
        target=target,
        classes=classes,
        names=names,
        picture=picture,
        keep=keep or None,
        with_counterfactual=counterfactual,
    )
    typer.echo(f"report             {page}")
    residual = float(account.residual.abs().max())
    share = f"{account.relative_residual:.2e} of the largest change by training"
    typer.echo(f"largest residual   {residual:.2e}, {share}")
    if not account.converged:
        typer.echo(f"warning: the account did not reach its tolerance of {tol:g}", err=True)


@app.command()
def doctor() -> None:
    """Print versions, devices, threads, memory and compiler, and what would make ntkit faster here."""
    from ntkit.compute.doctor import examine

    for finding in examine():
        typer.echo(f"{finding.name:<22}{finding.found}")
        if finding.advice:
            typer.echo(f"{'':<22}-> {finding.advice}")


@app.command()
def diagnose(
    folder: Annotated[str, typer.Argument(help="The run folder that ntkit.record made.")],
    model: Annotated[str, typer.Option(help="module:factory, which returns the untrained network.")],
    data: Annotated[str, typer.Option(help="module:function, which returns inputs and targets (x, y).")],
    held_out: Annotated[
        str | None, typer.Option(help="module:function, which returns (x, y) that was not trained on.")
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="module:function, which returns inputs: do they extrapolate?")
    ] = None,
    out: Annotated[str, typer.Option(help="The page to write.")] = "diagnosis.html",
    loss: Annotated[
        str, typer.Option(help="A name in torch.nn.functional, or module:function.")
    ] = "cross_entropy",
    samples: Annotated[int, typer.Option(help="So many training samples are drawn, of more.")] = 2000,
    picture: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width of flat inputs that are pictures.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
) -> None:
    """Say whether a recorded run is lazy, what it sees, what it extrapolates to, which labels look wrong."""
    from ntkit.report.diagnosis_page import diagnose_run

    options = {"held_out": held_out, "queries": queries, "samples": samples, "picture": picture, "seed": seed}
    found, page = diagnose_run(folder, model, data, out, loss=loss, **options)
    for question, answer in zip(*found.columns().values(), strict=True):
        typer.echo(f"{question}: {answer}")
    typer.echo(f"page: {page}")


app.add_typer(gram, name="gram")
app.command()(fit)

_MISSED = 2  # the exit status of a study that misses a bar


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
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Run the others, too, after a study that misses a bar.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Studies that run at a time.")] = 1,
) -> None:
    """Run every study; started again, it resumes with those that are not finished.

    The exit status is 2 when a bar was missed, 1 when a study refused.
    """
    from ntkit.studies.runner import run_all

    refused = missed = False
    given = {"quick": quick, "seed": seed, "device": device}
    for outcome in run_all(out, **given, keep_going=keep_going, jobs=jobs):
        if outcome.record is None:
            refused = True
            typer.echo(f"{outcome.name}: {outcome.refusal}", err=True)
            continue
        missed |= not outcome.holds
        state = "every bar holds" if outcome.holds else "a bar is missed"
        seconds = outcome.record["seconds"]
        typer.echo(f"{outcome.name:<20} {state:<16} {seconds:6.0f} s  {outcome.folder / 'report.html'}")
    if missed and not keep_going:
        typer.echo("Stopped at a bar that was missed. To run the others, too: --keep-going", err=True)
    raise typer.Exit(_MISSED if missed else int(refused))


@study.command("document")
def document_studies(
    results: Annotated[str, typer.Argument(help="The folder that `ntkit study all --out` left.")],
    page: Annotated[str, typer.Option(help="The Markdown page to write; pictures go beside it.")],
) -> None:
    """Write the page of all results: the tables, and the figures.

    Of a study that is not there, the page keeps what it says.
    """
    from ntkit.studies.document import document

    typer.echo(document(results, page))


def _study_command(name: str) -> Any:
    """Return the command of one study, with an option for each field of its configuration."""

    def command(**given: Any) -> None:
        from ntkit.studies.runner import run_study, table

        out, quick = given.pop("out"), given.pop("quick")
        config = configure(name, quick=quick, **{k: v for k, v in given.items() if v not in (None, [], ())})
        outcome = run_study(name, config, out or f"out/{name}")
        typer.echo(table(outcome))
        if not outcome.holds:
            raise typer.Exit(_MISSED)

    def parameter(name: str, default: object, kind: object, option: object) -> inspect.Parameter:
        place, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[kind, option]
        return inspect.Parameter(name, place, default=default, annotation=annotation)

    study = declared(name)
    small = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in study.QUICK.items())
    parameters = [
        parameter("out", None, str | None, typer.Option(help=f"Output folder. [default: out/{name}]")),
        parameter("quick", False, bool, typer.Option("--quick", help=f"A small one ({small}).")),
        *(parameter(each, None, kind, typer.Option(help=text)) for each, kind, text in options(study.Config)),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = "{1}.\n\n{0}. The exit status is 2 when a bar is missed.".format(*about(name))
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(command)
    return typer.main.get_command(single)


def main() -> None:
    """Run the command line; a refusal is one line on the error stream and exit status 1."""
    try:
        app()
    except NtkitError as error:
        sys.exit(f"ntkit: {error}")


if __name__ == "__main__":
    main()
