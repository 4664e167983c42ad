"""The project's W&B dashboard: compares settings over seeds and per class, during and after training.

Built with W&B's own package for it, wandb-workspaces: `pip install 'fer-lightning[dashboard]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fer_lightning.errors import UserError, flat
from fer_lightning.metrics.scores import CLASS_HEADLINES, HEADLINES

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SWEPT = ("imbalance.name", "optimizer.lr", "optimizer.weight_decay", "augment.erase", "seed")
"""Config values in the parallel coordinates, beside the scores."""


def workspace(entity: str, project: str, classes: Sequence[str], keys: Sequence[str] = ()) -> Workspace:
    """The dashboard, not sent yet.

    Runs are grouped by setting, as a sweep does; every panel shows means and standard deviations over seeds.

    Args:
        entity: W&B user or team.
        project: W&B project.
        classes: class names.
        keys: config keys for the parallel coordinates, in addition to `SWEPT`.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'fer-lightning[dashboard]'") from error

    def curve(metric: str) -> wr.LinePlot:
        return wr.LinePlot(
            title=metric, x="epoch", y=[metric], groupby_aggfunc="mean", groupby_rangefunc="stddev", aggregate=True
        )

    def bars(metric: str) -> wr.BarPlot:
        summary = wr.SummaryMetric(metric)
        return wr.BarPlot(title=metric, metrics=[summary], groupby_aggfunc="mean", groupby_rangefunc="stddev")

    names = [metric.name for metric in HEADLINES]
    columns = [
        *(wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=key) for key in dict.fromkeys((*keys, *SWEPT))),
        *(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(f"test/{name}"), display_name=name) for name in names),
    ]
    by_class = {metric.phrase: [f"{metric.name}/{name}" for name in classes] for metric in CLASS_HEADLINES}
    sections = [
        ws.Section("Settings", panels=[wr.ParallelCoordinatesPlot(columns=columns, title="From settings to scores")]),
        ws.Section("Test scores", panels=[bars(f"test/{name}") for name in names]),
        *(ws.Section(f"Test {t} per class", panels=[bars(f"test/{name}") for name in by_class[t]]) for t in by_class),
        ws.Section("Validation", panels=[curve(f"val/{name}") for name in ("loss", *names)]),
        *(
            ws.Section(f"Validation {t} per class", panels=[curve(f"val/{name}") for name in by_class[t]])
            for t in by_class
        ),
        ws.Section("Training", panels=[curve(f"train/{name}") for name in ("loss", "accuracy")]),
    ]
    for section in sections:
        section.is_open = True
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Settings over seeds",
        sections=sections,
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")]),
        settings=ws.WorkspaceSettings(x_axis="epoch"),
    )


def save(entity: str, project: str, classes: Sequence[str], keys: Sequence[str] = ()) -> str:
    """Send the dashboard to W&B as a saved view, and return its URL.

    Raises:
        UserError: W&B cannot be reached or refuses, for example because there is no such project.
    """
    view = workspace(entity, project, classes, keys)
    try:
        view.save()
    except Exception as error:  # W&B's own errors have no common base
        reason = flat(error, 300)
        raise UserError(
            f"{entity}/{project}: cannot save the dashboard in W&B ({reason}); check project, API key and network"
        ) from error
    return str(view.url)
