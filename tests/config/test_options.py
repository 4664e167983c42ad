"""Options that are typed beside an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from fer_lightning.app import CONF, register
from fer_lightning.config.options import with_own_values
from fer_lightning.errors import UserError
from fer_lightning.runs.folder import load_settings
from tests.conftest import TINY
from tests.processes import apart


def composed(*typed: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return with_own_values(compose("config", list(typed)), typed)


def test_the_experiments_values_are_left_out_of_another_option() -> None:
    cfg = composed("experiment=laptop", "optimizer=sgd", "optimizer.momentum=0.8", "model=vgg", "schedule=cosine")
    sgd = {"lr": 0.1, "momentum": 0.8, "weight_decay": 5e-4}
    assert {key: cfg.optimizer[key] for key in sgd} == sgd
    assert cfg.model.width == 32 and "stem" not in cfg.model
    assert cfg.schedule.warmup == 0.05
    assert cfg.augment.crop == 40 and cfg.trainer.max_epochs == 25  # as the experiment says


@pytest.mark.parametrize("option", ["optimizer=adamw", "data.batch_size=32"])
def test_the_experiments_values_stay_in_the_option_of_its_choice(option: str) -> None:
    assert composed("experiment=laptop", option).optimizer.lr == 5e-3


def test_values_for_an_option_that_the_experiment_did_not_choose_stay() -> None:
    assert composed("experiment=quickstart", "augment=strong").augment.rotate == 0
    assert composed("experiment=strong", "imbalance=weighted").imbalance.loss.label_smoothing == 0.1


def test_keys_of_the_experiments_option_can_be_removed_and_are_refused() -> None:
    cfg = composed("experiment=laptop", "model=vgg", "~model.stem", "~model.dropout", "++model.width=8")
    assert cfg.model.width == 8 and "dropout" not in cfg.model
    with pytest.raises(UserError, match=r"^model.stem: there is no such key with these options"):
        composed("experiment=laptop", "model=vgg", "model.stem=small")


def test_a_job_has_one_option_of_a_group() -> None:
    with pytest.raises(UserError, match=r"model=\[vgg,vit\]: name one option; add -m"):
        with_own_values(DictConfig({}), ["model=[vgg,vit]"])


def test_options_in_folders_of_ones_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("defaults: [vgg]\nconvs: [1, 1]\nwidth: 8\n")
    tiny = [option for option in TINY if not option.startswith(("model", "optimizer"))]
    folder = tmp_path / "run"
    options = ("experiment=laptop", "model=mine", *tiny, "trainer.max_epochs=1", f"hydra.run.dir={folder}")
    ended = apart(tmp_path / "out", "--config-dir", str(tmp_path), *options)
    assert ended.code == 0, ended.err
    model = load_settings(folder)["model"]
    assert model["convs"] == [1, 1] and model["width"] == 8 and "stem" not in model
