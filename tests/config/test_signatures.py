"""Config values against the signatures of their targets."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from fer_lightning.app import CONF, register
from fer_lightning.config.resolve import resolve
from fer_lightning.config.signatures import check
from fer_lightning.errors import UserError

GROUPS = ("augment", "callbacks", "experiment", "imbalance", "mix", "model", "optimizer", "schedule")


def checked(*overrides: str) -> None:
    folders = ["callbacks.checkpoint.dirpath=x", "callbacks.last=null"]  # which are Hydra's in a job
    typed = [*overrides, *(folders if "callbacks=none" not in overrides else []), "logger=none"]
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check(resolve(compose("config", typed), typed=typed))


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_fits_its_target(group: str) -> None:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert options
    for option in options:
        checked(f"{group}={option}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=abc"], "optimizer.lr=abc: use a number"),
        (["optimizer.lr=null"], "optimizer.lr=null: use a number"),
        (["model.width=2.5"], "model.width=2.5: use a whole number"),
        (["model.zero_init_last=abc"], "model.zero_init_last=abc: use true or false"),
        (["model.stem=large"], "model.stem=large: use 'report' or 'small'"),
        (["model.dropout=abc"], "model.dropout=abc: use a number"),
        (["model.preprocessing.size=abc"], "model.preprocessing.size=abc: use a whole number"),
        (["model.preprocessing.mean=0.5"], r"model.preprocessing.mean=0.5: use a list, as in \[1\]"),
        (["+model.preprocessing.colour=1"], "model.preprocessing.colour: Preprocessing has no such setting"),
        (["model=vgg", "model.convs=3"], r"model.convs=3: use a list, as in \[1\]"),
        (["model=vgg", "model.convs=[1,a]"], r"model.convs\[1\]=a: use a whole number"),
        (["imbalance=focal", "imbalance.loss.gamma=abc"], "imbalance.loss.gamma=abc: use a number"),
        (["imbalance=sampler", "imbalance.sampler.q=abc"], "imbalance.sampler.q=abc: use a number"),
        (["schedule=plateau", "+schedule.warmup=0.1"], "schedule.warmup: plateau has no such setting; leave it out"),
        (
            ["+model.widht=4"],
            "model.widht: ResNet has no such setting; did you mean width.* or remove it with ~model.w",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_value_that_does_not_fit_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        checked(*overrides)


def test_targets_and_types_that_cannot_be_judged_are_left_alone() -> None:
    checked("model._target_=no_package.Net")
    checked("optimizer=adamw", "+optimizer.betas=[0.8,0.9]")
    checked("optimizer._target_=torch.optim.Adadelta", "~optimizer.momentum", "~optimizer.nesterov", "~optimizer.fused")
