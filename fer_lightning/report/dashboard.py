"""The project's W&B dashboard: settings compared over seeds, per class, while they train and when they are done.

Built with W&B's own package for it, wandb-workspaces: `pip install 'fer-lightning[dashboard]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SWEPT = ("imbalance.name", "optimizer.lr", "optimizer.weight_decay", "augment.erase", "seed")
"""Config values that lead to the scores in the parallel coordinates."""

SCORES = ("accuracy", "balanced_accuracy", "f1_macro", "ece")


def workspace(entity: str, project: str, classes: Sequence[str], keys: Sequence[str] = ()) -> Workspace:
    """The dashboard, nothing sent yet.

    Runs are grouped by what a sweep's jobs are grouped by, their setting; every panel shows means over seeds and the
    standard deviation.

    Args:
        entity, project: of the runs.
        classes: class names.
        keys: config keys for the parallel coordinates, beside `SWEPT`.

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

    columns = [
        *(
            wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name)
            for name in dict.fromkeys((*keys, *SWEPT))
        ),
        *(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(f"test/{name}"), display_name=name) for name in SCORES),
    ]
    sections = [
        ws.Section("Settings", panels=[wr.ParallelCoordinatesPlot(columns=columns, title="From settings to scores")]),
        ws.Section("Test scores", panels=[bars(f"test/{name}") for name in SCORES]),
        ws.Section("Test recall per class", panels=[bars(f"test/recall/{name}") for name in classes]),
        ws.Section("Test F1 per class", panels=[bars(f"test/f1/{name}") for name in classes]),
        ws.Section("Validation", panels=[curve(f"val/{name}") for name in ("loss", *SCORES)]),
        ws.Section("Validation recall per class", panels=[curve(f"val/recall/{name}") for name in classes]),
        ws.Section("Validation F1 per class", panels=[curve(f"val/f1/{name}") for name in classes]),
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
    """Send the dashboard to W&B as a saved view; returns its address.

    Raises:
        UserError: W&B cannot be reached, or there is no such project.
    """
    view = workspace(entity, project, classes, keys)
    try:
        view.save()
    except Exception as error:  # W&B's own errors have no common base
        reason = " ".join(str(error).split())
        raise UserError(f"{entity}/{project}: W&B did not take the dashboard ({reason})") from error
    return str(view.url)
