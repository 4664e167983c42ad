"""The resolved config of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fer_lightning.app import CONF, register
from fer_lightning.config.resolve import resolve


def resolved(*overrides: str, group: str = "data") -> dict[str, object]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: dict[str, object] = resolve(compose("config", [*overrides, "callbacks=none", "logger=none"]))[group]
    return node


@pytest.mark.parametrize("key", ["data.path", "data.votes", "data.cache_dir"])
def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    name = key.partition(".")[2]
    for value, expected in {"faces": f"{tmp_path}/faces", "'~/faces'": "/home/someone/faces", "": None}.items():
        assert resolved("data=ferplus", f"{key}={value}")[name] == expected


def test_url_stays() -> None:
    assert resolved("data=fer2013", "data.path=https://host/faces.zip")["path"] == "https://host/faces.zip"


def test_home_of_an_unknown_user_is_no_defect() -> None:
    assert str(resolved("data=fer2013", "data.path='~nosuchuser/faces'")["path"]).endswith("/~nosuchuser/faces")


@pytest.mark.parametrize(
    ("overrides", "fused"),
    [
        (["optimizer=adamw", "trainer.gradient_clip_val=1"], False),
        (["optimizer=adamw", "trainer.gradient_clip_val=null"], True),
        (["optimizer=muon", "trainer.gradient_clip_val=1"], None),  # which has no such setting
    ],
)
def test_an_optimizer_of_fp16_is_not_fused_where_gradients_are_clipped(
    overrides: list[str], fused: bool | None
) -> None:
    assert resolved("precision=fp16", *overrides, group="optimizer").get("fused") == fused
