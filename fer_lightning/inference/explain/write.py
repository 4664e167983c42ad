"""Runs an explanation, prints a summary and writes robustness.csv, sanity.csv, robustness.png and one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.data.table import SPLITS
from fer_lightning.errors import UserError
from fer_lightning.inference import ensembles
from fer_lightning.inference.explain import pictures, randomised, robustness, saliency
from fer_lightning.inference.explain.robustness import Outcome, number, points
from fer_lightning.inference.explain.sample import labelled_faces, stratified
from fer_lightning.inference.load import as_list, load, together
from fer_lightning.inference.predictor import LoadedModel, NetworkMember
from fer_lightning.models.network import FaceNetwork
from fer_lightning.report import html, tables
from fer_lightning.report.files import check_writable, write_folder
from fer_lightning.report.style import png

SANITY_IMAGES = 128
"""Images of the sample that the sanity test is made with."""

SANITY_SHOWN = 3
"""Faces whose maps in the sanity test are on the page."""


def explain(
    models: str | Path | Sequence[str | Path],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "test",
    images: int = 1000,
    tta: str | None = None,
    out: Path | None = None,
    accelerator: str = "auto",
    trust: bool = False,
) -> pd.DataFrame:
    """Show where a model finds its evidence, test whether the maps depend on its weights, and what it withstands.

    The probabilities of several models are averaged, and so are their maps.

    Args:
        models: run folder, model file or name of a shipped model, or several of them.
        data: other faces than the run's own, labelled with classes that the models know; required for model files.
        split: see `fer_lightning.inference.evaluate.evaluate`.
        images: number of labelled images, drawn with the classes' shares and the same ones each time; 0 for all.
        tta: test-time augmentation of the predictions; maps are of the face itself.
        out: the folder to write; by default one under the run folder, or explain/ in the working directory.
        accelerator: "auto", "cpu" or "gpu".
        trust: allow targets of a run's config that are not on the allow-list, and the download of its data.

    Returns:
        The content of robustness.csv, see `robustness.measure`.

    Raises:
        UserError: no such model or images, a model without gradients or without layers to explain, captum is not
            installed, or the folder cannot be written.
    """
    if images < 0:
        raise UserError(f"--images {images}: use a number of images from 1, or 0 for all of them")
    loaded = [load(model, accelerator=accelerator, trust=trust) for model in as_list(models)]
    networks = networks_of(loaded)
    predictor, classes = together(loaded, tta), loaded[0].classes
    table, rows = labelled_faces(loaded, None if data is None else os.fspath(data), split, trust)
    rows = rows[stratified(table.labels[rows], images)]
    faces, labels = np.asarray(table.images[rows]), table.labels[rows]
    model_name = ensembles.title(loaded)
    out = out or ensembles.default_folder(loaded, "explain", split, data)
    check_writable(out)

    predictions = tables.predictions(
        [name.decode() for name in table.ids[rows].tolist()],
        [SPLITS[i] for i in table.split[rows]],
        labels,
        predictor.probabilities(faces),
        np.zeros(len(table), dtype=bool)[rows],  # not known here, and not shown
        classes,
    )
    guesses = tables.labels_of(predictions, classes, "prediction")
    print(f"maps of {len(faces):,} faces", flush=True)
    maps = saliency.saliency(networks, faces, guesses)
    print("sanity test with random weights", flush=True)
    some = stratified(labels, SANITY_IMAGES)
    sanity, steps = randomised.sanity(
        networks, faces[some], guesses[some], {title: of_layer[some] for title, of_layer in maps.items()}
    )
    measured = robustness.measure(predictor, faces, labels, report=lambda line: print(line, flush=True))

    found, said = _card(robustness.summary(measured)), robustness.sentences(measured)
    plot = png(pictures.robustness(measured))
    files = {
        "robustness.csv": tables.as_csv(measured),
        "sanity.csv": tables.as_csv(sanity),
        "robustness.png": plot,
    }
    sizes = saliency.map_sizes(networks, faces.shape[1])
    accuracy = robustness.undisturbed(measured)
    page = html.render(
        "explain.html",
        model_name,
        list(files),
        kind="explanation",
        facts={
            "model": ", ".join(str(one.path) for one in loaded),
            "data": table.source,
            "split": split,
            "images": f"{len(rows):,}, accuracy {accuracy:.3f}",
            "test-time augmentation": predictor.tta,
            "maps": "; ".join(f"{title}: {sizes[title]}" for title in maps),
        },
        figures={"robustness": plot},
        sentences=said,
        card=found,
        tolerated=f"{100 * robustness.TOLERATED:g}",
        means=pictures.mean_maps(faces, labels, guesses == labels, maps, classes),
        sanity=sanity_frame(sanity),
        sanity_sentence=sanity_sentence(sanity),
        sanity_images=len(some),
        cascade=_cascade(faces[some], predictions["id"].to_numpy()[some], steps),
        examples=pictures.examples(faces, predictions, maps, classes),
        width=1 + len(maps),
        members=len(networks),
    )
    write_folder(out, {**files, "index.html": page.encode()})
    tables.print_frame(found, f"{table.source}, {split}: robustness")
    for sentence in (*said, sanity_sentence(sanity)):
        print(sentence)
    print(f"table    {out / 'robustness.csv'}\npage     {out / 'index.html'}")
    return measured


def networks_of(loaded: Sequence[LoadedModel]) -> list[FaceNetwork]:
    """The networks of models, which all name layers for saliency.

    Raises:
        UserError: a model is a graph without gradients, or a network names no layers, or none that the others name.
    """
    networks: list[FaceNetwork] = []
    common: set[str] | None = None
    for one in loaded:
        for member in one.members:
            if not isinstance(member, NetworkMember):
                raise UserError(f"{one.path}: an ONNX graph has no gradients; name its run or .safetensors file")
            titles = set(saliency.layers_of(member.network))
            common = titles if common is None else common & titles
            if not common:
                backbone = type(member.network.backbone).__name__
                what = "layers for saliency" if not titles else f"layers that those of {loaded[0].path} have as well"
                raise UserError(f"{one.path}: its network, {backbone}, names no {what} (saliency_layers)")
            networks.append(member.network)
    return networks


def sanity_frame(sanity: pd.DataFrame) -> pd.DataFrame:
    """The table of `randomised.sanity` for people: a row for each network, two columns for each layer."""
    names = list(dict.fromkeys(sanity["randomised"]))
    frame: dict[str, list[str]] = {"Compared with": [_step_title(name) for name in names]}
    for layer, of_layer in sanity.groupby("layer", sort=False):
        mean, deviation, empty = (of_layer[name].tolist() for name in ("correlation", "deviation", "empty"))
        frame[f"{layer}: correlation"] = [
            "–" if np.isnan(m) else f"{number(m, '.2f')} ± {d:.2f}" for m, d in zip(mean, deviation, strict=True)
        ]
        frame[f"{layer}: maps without evidence"] = [f"{share:.0%}" for share in empty]
    return pd.DataFrame(frame)


def sanity_sentence(sanity: pd.DataFrame) -> str:
    """The outcome of the sanity test, in numbers."""
    parts = []
    for layer, of_layer in sanity.groupby("layer", sort=False):
        values = of_layer["correlation"].tolist()  # the first is of another face, the last is all random
        of_another, of_all = ("unknown" if np.isnan(v) else number(v, ".2f") for v in (values[0], values[-1]))
        parts.append(f"{of_all} in {layer} (between faces: {of_another})")
    return f"With all weights random, the correlation with the trained network's maps is {' and '.join(parts)}."


def _step_title(name: str) -> str:
    return name if name in (randomised.TRAINED, randomised.ANOTHER) else f"+ {name} random"


def _cascade(faces: Any, ids: Any, steps: dict[str, saliency.Maps]) -> dict[str, list[list[pictures.Picture]]]:
    """By layer a strip of each of some faces: the face, its map, and its maps with more and more random weights."""
    shown = np.linspace(0, len(faces) - 1, min(SANITY_SHOWN, len(faces))).astype(int)
    captions = {name: name if name == randomised.TRAINED else f"+ {name}" for name in steps}
    return {
        layer: [
            [
                {"image": faces[row], "title": ids[row], "caption": [""]},
                *(
                    {"image": pictures.overlay(faces[row], maps[layer][row]), "title": ids[row], "caption": [caption]}
                    for caption, maps in zip(captions.values(), steps.values(), strict=True)
                ),
            ]
            for row in shown
        ]
        for layer in next(iter(steps.values()))
    }


def _card(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The summary of the robustness card for people."""
    ranges = [one.tolerated for one in outcomes]
    return pd.DataFrame(
        {
            "Perturbation": [one.perturbation.heading for one in outcomes],
            "Tolerated range": [
                " to ".join(map(number, dict.fromkeys(within))) if within else "none" for within in ranges
            ],
            "Worst": [number(one.worst) for one in outcomes],
            "Accuracy": [f"{one.accuracy:.3f}" for one in outcomes],
            "Macro-F1": [f"{one.f1_macro:.3f}" for one in outcomes],
            "Points": [points(one.change) for one in outcomes],
            "95 %": [f"{points(one.interval[0])} to {points(one.interval[1])}" for one in outcomes],
        }
    )
