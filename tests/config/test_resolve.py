"""The resolved config of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fer_lightning.app import CONF, register
from fer_lightning.config.resolve import resolve


def resolved(*overrides: str) -> dict[str, object]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data: dict[str, object] = resolve(compose("config", [*overrides, "callbacks=none", "logger=none"]))["data"]
    return data


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
