"""The results of a comparison in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from fer_lightning.comparison.collect import Setting
from fer_lightning.comparison.statistics import Comparison, mean_with_sd
from fer_lightning.metrics.scores import TESTED, Metric


def conclusions(comparison: Comparison) -> list[str]:
    """What the comparison shows, which differences are significant, and how far to trust it."""
    settings, pairs = comparison.settings, comparison.pairs
    if len(settings) < 2:
        return ["There is one setting only, so nothing to compare it with.", *_other_differences(settings[0])]
    sentences = []
    for metric in TESTED:
        best = str(comparison.table["setting"][int(comparison.table[metric.name].to_numpy().argmax())])
        sentences.append(_best(comparison, metric, best))
        if len(settings) > 2 and best != comparison.baseline:
            sentences.append(_from_baseline(comparison, metric))
    few = min(len(setting.runs) for setting in settings)
    with_seeds = max(len(setting.runs) for setting in settings) > 1
    source = "test images and seeds" if with_seeds else "test images"
    sentences.append(
        "A difference is significant if its confidence interval, from a bootstrap over "
        f"{source}, excludes zero. The {len(TESTED) * len(pairs)} intervals ({len(pairs)} "
        f"pair{'s' * (len(pairs) > 1)} × {len(TESTED)} scores) are simultaneous: about 95 % confidence for all of them "
        "together."
    )
    sentences += _other_differences(settings[0])
    if few == 1:
        sentences.append(
            "At least one setting has only one seed: the result is about these trained networks, not about the "
            "training methods, and another seed may reverse the order."
        )
    elif few < 5:
        sentences.append(
            f"With {few} seeds per setting, the variation between seeds is estimated roughly and assumed equal in all "
            "settings: do not rely on differences of the size of the standard deviation."
        )
    return sentences


def _best(comparison: Comparison, metric: Metric, best: str) -> str:
    """Which setting scores highest, and which of the others are significantly lower."""
    above = _differences(comparison, metric, best)
    lower = [name for name, difference in above.items() if difference]
    similar = [name for name, difference in above.items() if not difference]
    row = comparison.table[comparison.table["setting"] == best].to_dict("records")[0]
    parts = [f"{best} has the highest {metric.phrase}, {mean_with_sd(row[metric.name], row[f'{metric.name}_sd'])}"]
    if lower:
        parts.append(f"significantly higher than that of {_listed(lower)}")
    if similar:
        parts.append(f"not significantly different from that of {_listed(similar)}")
    return f"{', '.join(parts)}."


def _from_baseline(comparison: Comparison, metric: Metric) -> str:
    """Which settings differ significantly from the baseline, and in which direction."""
    groups: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    for name, sign in _differences(comparison, metric, comparison.baseline).items():
        groups[sign].append(name)
    words = {-1: "significantly higher for", 1: "significantly lower for", 0: "not significantly different for"}
    parts = [f"{words[sign]} {_listed(names)}" for sign, names in groups.items() if names]
    return f"Compared with {comparison.baseline}, {metric.phrase} is {'; '.join(parts)}."


def _differences(comparison: Comparison, metric: Metric, setting: str) -> dict[str, int]:
    """For each other setting 1 or -1 if `setting` is significantly higher or lower, else 0."""
    signs = {}
    for row in comparison.pairs.to_dict("records"):
        if setting in (row["a"], row["b"]):
            sign = 1 if (row[f"{metric.name}_difference"] > 0) == (row["a"] == setting) else -1
            other = row["b"] if row["a"] == setting else row["a"]
            signs[str(other)] = sign if row[f"{metric.name}_differs"] else 0
    return signs


def _other_differences(setting: Setting) -> list[str]:
    """Differences between runs that the names of settings do not state."""
    if not setting.beside:
        return []
    return [f"Besides name and seed, the runs differ in {_listed(setting.beside)}: the scores reflect all of it."]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
