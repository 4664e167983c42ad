"""The sanity test of saliency maps: those of a network with random weights must differ (Adebayo et al. 2018,
arXiv:1810.03292, section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from fer_lightning.inference.explain.saliency import Maps, saliency
from fer_lightning.models.network import FaceNetwork

TRAINED, ANOTHER = "trained", "trained, map of another face"
"""Names of what the randomised networks are compared with."""

Step = tuple[str, list[FaceNetwork]]


def cascade(networks: Sequence[FaceNetwork]) -> Iterator[Step]:
    """Copies of networks with more and more random weights, from the head down to the first layer.

    The parts are the head and the backbone's children. Each step is named after the part that becomes random, and the
    networks are the same objects in all steps.

    Args:
        networks: members of an ensemble, which are not changed.
    """
    copies = [copy.deepcopy(network) for network in networks]
    parts = [{"head": one.head} | dict(reversed(list(one.backbone.named_children()))) for one in copies]
    names = dict.fromkeys(name for of_one in parts for name, part in of_one.items() if list(part.parameters()))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for name in names:
            for of_one in parts:
                if name in of_one:
                    randomise(of_one[name])
            yield name, copies


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Initialise a module and all within it again; parameters without an initialisation of their own are shuffled."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
        else:
            for parameter in part.parameters(recurse=False):
                values = parameter.flatten()
                parameter.copy_(values[torch.randperm(len(values), device=values.device)].view_as(parameter))


def rank_correlations(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each map of `a` (N, H, W) with that of `b` (N,); nan where one is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (a, b)]
    x, y = (one - one.mean(1, keepdims=True) for one in ranks)
    norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    result: NDArray[np.float64] = np.where(norm > 0, (x * y).sum(1) / np.where(norm > 0, norm, 1), np.nan)
    return result


def sanity(
    networks: Sequence[FaceNetwork], faces: NDArray[np.uint8], classes: NDArray[np.int64], trained: Maps
) -> tuple[pd.DataFrame, dict[str, Maps]]:
    """How much the maps change when the weights become random, for the same classes.

    Args:
        networks: in evaluation mode; not changed.
        faces: uint8 (N, H, W).
        classes: int64 (N,), the classes that `trained` explains.
        trained: maps of the networks.

    Returns:
        A table with the columns randomised (the last part that became random), layer, correlation (mean rank
        correlation with the trained network's map of the same face), deviation (over faces), images (whose maps are
        both not constant) and empty (share of maps without any evidence); and the maps of each step by its name.
    """
    steps = {TRAINED: trained}
    for name, copies in cascade(networks):
        steps[name] = saliency(copies, faces, classes)
    compared = {ANOTHER: {title: np.roll(maps, 1, axis=0) for title, maps in trained.items()}}
    compared |= {name: maps for name, maps in steps.items() if name != TRAINED}
    rows = []
    for name, of_layers in compared.items():
        for title, maps in of_layers.items():
            values = rank_correlations(trained[title], maps)
            known = values[~np.isnan(values)]
            mean, deviation = (known.mean(), known.std()) if len(known) else (np.nan, np.nan)
            empty = float((maps.max((1, 2)) <= 0).mean()) if len(maps) else np.nan
            rows.append((name, title, mean, deviation, len(known), empty))
    columns = ["randomised", "layer", "correlation", "deviation", "images", "empty"]
    return pd.DataFrame(rows, columns=columns), steps
