"""The W&B dashboard as it would be sent: every panel shows something that runs log."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fer_lightning import app
from fer_lightning.app import CONF
from fer_lightning.data.table import FER_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.metrics.scores import by_name
from fer_lightning.report import dashboard

pytest.importorskip("wandb_workspaces")


@pytest.fixture(scope="module")
def sent() -> dict[str, Any]:
    """The request to W&B."""
    view = dashboard.workspace("someone", "fer-lightning", FER_CLASSES, ["data.twins", "seed"])
    return json.loads(view._to_model().model_dump_json(by_alias=True))["spec"]["section"]  # type: ignore[no-any-return]


def panels(sent: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel["config"] for section in sent["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_every_panel_shows_a_score_that_runs_log(sent: dict[str, Any]) -> None:
    known = by_name(FER_CLASSES)
    shown = {name for panel in panels(sent) for name in panel.get("metrics", [])}
    names = {re.sub(r"^summary_metrics\.", "", name) for name in shown}
    assert len(names) > 30
    for name in names:
        split, _, score = name.partition("/")
        assert split in ("train", "val", "test") and score in (("loss", "accuracy") if split == "train" else known), (
            name
        )
    assert {f"test/recall/{name}" for name in FER_CLASSES} | {f"val/f1/{name}" for name in FER_CLASSES} <= names


def test_parallel_coordinates_show_existing_config_values(sent: dict[str, Any]) -> None:
    (plot,) = [panel for panel in panels(sent) if "columns" in panel]
    app.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["data=synthetic"])
    keys = [c["accessor"] for c in plot["columns"] if c["accessor"].startswith("config:")]
    for key in keys:
        assert OmegaConf.select(config, key.removeprefix("config:").replace(".value", "")) is not None, key
    assert len(keys) == len(dashboard.SWEPT) + 1 and len(plot["columns"]) > len(keys)


def test_runs_are_grouped_by_setting(sent: dict[str, Any]) -> None:
    (runs,) = sent["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]


def test_dashboard_without_network_raises_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(dashboard, "workspace", lambda *_: _Refused())
    with pytest.raises(UserError, match=r"someone/p: cannot save the dashboard in W&B \(refused\); check project"):
        dashboard.save("someone", "p", FER_CLASSES)


class _Refused:
    def save(self) -> None:
        raise ConnectionError("refused")
