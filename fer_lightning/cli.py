"""Facial expression recognition: audit data; score, compare and export trained runs; predict on photos and video.

Training is `python train.py` in a checkout, and `python -m fer_lightning.app` elsewhere.

Everything heavy is imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fer_lightning.errors import UserError, printable

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="\n\n".join(__doc__.split("\n\n")[:2]))

Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow code named in a run's config, such as your own networks, to run, and its data to be downloaded. "
        "For runs from people you trust only.",
    ),
]


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="A run folder, a file of `fer-lightning export`, or the name of a shipped model; several are averaged.",
    ),
]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Tta = Annotated[
    str | None,
    typer.Option(
        help="Test-time augmentation: none, flip or ten_crop; else what the model was calibrated with.", metavar="NAME"
    ),
]


@cli.command()
def evaluate(
    models: Models,
    split: Annotated[
        str,
        typer.Option(
            help="train, val or test, as the run's protocol divides them; all; or public or private of FER-2013."
        ),
    ] = "test",
    data: Annotated[
        str | None,
        typer.Option(
            help="Data to score: a CSV, a folder, an archive or a URL; else the run's own. Model files need it.",
        ),
    ] = None,
    twins: Annotated[
        str | None,
        typer.Option(
            help="Duplicates in the training data that clean test images do not have: exact, or near as well."
        ),
    ] = None,
    posthoc_tau: Annotated[
        float | None,
        typer.Option(help="Strength of a logit adjustment by the training class counts; choose it on --split val."),
    ] = None,
    tta: Tta = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; else RUN/evaluation/…, or evaluation/… for several or a file.")
    ] = None,
    accelerator: Accelerator = "auto",
    trust: Trust = False,
) -> None:
    """Score the best checkpoint of a run, a model file, or the mean of several, on any split or on other data."""
    from fer_lightning.inference.evaluate import evaluate as evaluate_models

    evaluate_models(
        models,
        split=split,
        data=data,
        twins=twins,
        posthoc_tau=posthoc_tau,
        tta=tta,
        out=out,
        accelerator=accelerator,
        trust=trust,
    )


@cli.command()
def export(
    models: Models,
    to: Annotated[Path, typer.Option(help="The file to write: .safetensors, .onnx, or .int8.onnx for 8 bits.")],
    tta: Tta = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the weights in a .safetensors file: fp16, fp32, or int8 with a scale for each channel.",
            metavar="NAME",
            show_default="fp16, or that of a model file",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; else that of the file.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The data of the models: for model files, to calibrate and check on; for runs, if moved."),
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", help="Of the weights, as the Hugging Face Hub names it: mit, cc-by-nc-4.0 …")
    ] = "other",
    trust: Trust = False,
) -> None:
    """Write a model file or an ONNX graph that predicts by itself, checked, with a model card beside it."""
    from fer_lightning.inference.export import card_of
    from fer_lightning.inference.export import export as export_models

    checks = export_models(models, to, tta=tta, precision=precision, name=name, data=data, licence=licence, trust=trust)
    for what, value in checks:
        print(f"{what}: {value}")
    print(f"file     {printable(to)} ({to.stat().st_size / 1e6:.2f} MB)\ncard     {printable(card_of(to))}")


@cli.command()
def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Photos, videos, folders of them, or patterns such as 'day1/*.jpg'."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A shipped model's name, a run folder or an exported file; several are averaged.",
            show_default="fer2013-small",
        ),
    ] = None,
    detector: Annotated[
        str,
        typer.Option(help="auto, blaze, haar, none (each image is a face), or a cascade .xml or BlazeFace .tflite."),
    ] = "auto",
    tta: Tta = None,
    camera: Annotated[int | None, typer.Option(help="A camera instead of inputs: 0 is the first; Ctrl-C ends.")] = None,
    every: Annotated[float, typer.Option(help="Seconds between the frames of a video; 0 for all of them.")] = 0.2,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions.csv; else results are printed only.")] = None,
    annotate: Annotated[bool, typer.Option("--annotate", help="Also write copies with boxes and labels.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the job that was ended in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per face.")] = False,
    accelerator: Accelerator = "auto",
    trust: Trust = False,
) -> None:
    """Recognise the expressions of faces in photos, videos or a camera's pictures."""
    from fer_lightning.inference.predict import predict as predict_inputs
    from fer_lightning.inference.zoo import DEFAULT

    code = predict_inputs(
        inputs or [],
        model=model or DEFAULT,
        detector=detector,
        tta=tta,
        camera=camera,
        every=every,
        out=out,
        annotated=annotate,
        resume=resume,
        as_json=as_json,
        accelerator=accelerator,
        trust=trust,
    )
    raise typer.Exit(code)


@cli.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A shipped model, a run folder or an exported file.", show_default="fer2013-small"),
    ] = None,
    build: Annotated[
        Path | None, typer.Option(help="Write the page to this folder, for GitHub Pages or a static Space, and end.")
    ] = None,
    assets: Annotated[
        Path | None, typer.Option(help="Folder with the libraries (or what `npm pack` wrote), instead of a CDN.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8013,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
    trust: Trust = False,
) -> None:
    """Show a page that recognises expressions in photos and the webcam, in the browser alone."""
    from fer_lightning.inference.demo.command import show

    show(model, build=build, assets=assets, port=port, open_browser=not no_browser, trust=trust)


@cli.command()
def download(
    name: Annotated[str, typer.Argument(help="blaze: a face detector that finds more than haar.")],
    source: Annotated[Path | None, typer.Option("--from", help="The file, if this machine has no network.")] = None,
) -> None:
    """Fetch a file that is not in this package, check it and keep it in the cache."""
    from fer_lightning.inference.faces.download import download as fetch

    print(fetch(name, source=source))


@cli.command()
def models() -> None:
    """List the models inside this package, with their scores."""
    from fer_lightning.inference.zoo import show

    show()


@cli.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs or sweeps.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; else `comparison`, with --clean `comparison-clean`, in the folder given or, of "
            "several, in the working directory."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Setting that the others are compared with; else `none`, `common` (most frequent values) or the first."
        ),
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


@cli.command()
def explain(
    models: Models,
    data: Annotated[
        str | None, typer.Option(help="Other faces than the run's own, needed for files: a CSV, a folder, an archive.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="train, val or test, as the run's protocol divides them; all; or public or private of FER-2013."
        ),
    ] = "test",
    images: Annotated[int, typer.Option(help="How many of the images, by the classes' shares; 0 for all.")] = 1000,
    tta: Tta = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; else RUN/explain/…, or explain/… for several or a file.")
    ] = None,
    accelerator: Accelerator = "auto",
    trust: Trust = False,
) -> None:
    """Show where a model looks (Grad-CAM, with a sanity test), and its accuracy on shifted, dark or small faces."""
    from fer_lightning.inference.explain.write import explain as explain_models

    explain_models(
        models, data=data, split=split, images=images, tta=tta, out=out, accelerator=accelerator, trust=trust
    )


def app() -> None:
    """Entry point: a user's error ends in one line and exit code 1."""
    try:
        cli()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
