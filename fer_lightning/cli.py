"""The command `fer-lightning`: what one does with runs that are done.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fer_lightning.errors import UserError

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__.partition("\n")[0])


@cli.callback()
def _commands() -> None:
    """Keeps `evaluate` a subcommand while it is the only one."""


@cli.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    split: Annotated[
        str, typer.Option(help="train, val or test as the run had them; or all, or a split of the source by its name.")
    ] = "test",
    data: Annotated[
        Path | None, typer.Option(help="Other faces than the run's own: a CSV, a folder or an archive.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; else RUN/evaluation/<data>-<split>.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
) -> None:
    """Score a run's best checkpoint again, on any split or on other data."""
    from fer_lightning.evaluate import evaluate as evaluate_run

    evaluate_run(run, split=split, data=data, out=out, accelerator=accelerator)


def app() -> None:
    """Entry point: a user's error ends in one line and exit code 1."""
    try:
        cli()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
