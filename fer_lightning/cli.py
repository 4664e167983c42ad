"""The command `fer-lightning`: audit data before training, score and compare runs after it.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fer_lightning.errors import UserError

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__.partition("\n")[0])

Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Accept runs whose config could run any code, such as networks of your own: only from people you trust.",
    ),
]


@cli.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    split: Annotated[
        str, typer.Option(help="train, val or test of the run; or all, or a split of the source by its name.")
    ] = "test",
    data: Annotated[
        str | None, typer.Option(help="Score other faces than the run's own: a CSV, a folder, an archive or a URL.")
    ] = None,
    twins: Annotated[
        str | None,
        typer.Option(help="Which duplicates in the training data make a test image unclean: exact, or near as well."),
    ] = None,
    posthoc_tau: Annotated[
        float | None,
        typer.Option(help="Strength of a logit adjustment by the training class counts; choose it on --split val."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else RUN/evaluation/<data>-<split>.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    trust: Trust = False,
) -> None:
    """Score a run's best checkpoint again, on any split or on other data."""
    from fer_lightning.inference.evaluate import evaluate as evaluate_run

    evaluate_run(
        run,
        split=split,
        data=data,
        twins=twins,
        posthoc_tau=posthoc_tau,
        out=out,
        accelerator=accelerator,
        trust=trust,
    )


@cli.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs or sweeps.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; else `comparison` in the folder given or, of several, in the working directory."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The setting that the others are compared with; else `none`, or the first.")
    ] = None,
    clean: Annotated[bool, typer.Option(help="Only test images without a duplicate in the training data.")] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of test images and seeds.")] = 4000,
) -> None:
    """Compare runs on the same test images: one row per setting, over seeds, with paired tests."""
    from fer_lightning.comparison.write import compare_runs

    compare_runs(runs, out=out, baseline=baseline, clean=clean, resamples=resamples)


@cli.command()
def audit(
    data: Annotated[str, typer.Argument(help="A CSV, a folder or an archive of faces, or the URL of one.")],
    near: Annotated[
        bool, typer.Option(help="Also look for near-duplicates: changed copies of the same photograph.")
    ] = True,
    votes: Annotated[Path | None, typer.Option(help="FER+ votes, fer2013new.csv: non-faces and disagreement.")] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="A finished run on this data, whose predictions show likely wrong labels; more runs cover more images."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else audit/<name of the data>.")] = None,
    trust: Trust = False,
) -> None:
    """Find faults in a data set: duplicates, leaks, conflicting labels, blank and broken images."""
    from fer_lightning.audit.write import audit as audit_data

    audit_data(data, near=near, votes=votes, runs=run or (), out=out, trust=trust)


@cli.command()
def dashboard(
    entity: Annotated[str, typer.Argument(help="W&B user or team.")],
    project: Annotated[str, typer.Argument(help="W&B project, as in logger.wandb.project.")] = "fer-lightning",
    classes: Annotated[str, typer.Option(help="Class names, with commas; else FER-2013's.")] = "",
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="A config key for the parallel coordinates, such as imbalance.loss.gamma, in addition to the defaults."
        ),
    ] = None,
) -> None:
    """Create the project's dashboard on W&B: settings over seeds, per class."""
    from fer_lightning.data.table import FER_CLASSES
    from fer_lightning.report.dashboard import save

    names = [name.strip() for name in classes.split(",")] if classes else FER_CLASSES
    print(save(entity, project, names, key or ()))


def app() -> None:
    """Entry point: a user's error ends in one line and exit code 1."""
    try:
        cli()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
