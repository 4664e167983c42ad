"""A user's error ends in one clear line and exit code 1, before any training; a defect shows its traceback."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from omegaconf.errors import InterpolationKeyError
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.runs.folder import load_settings
from tests.conftest import TINY, Command, Run, assert_refused_in_one_line
from tests.processes import apart

Train = Callable[..., Run]


def write_csv(path: Path, rows: int = 4) -> Path:
    pixels = " ".join(["7"] * 2304)
    path.write_text("emotion,pixels,Usage\n" + "".join(f"{i % 7},{pixels},Training\n" for i in range(rows)))
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["imbalance=wieghted"], "imbalance=wieghted: there is no such option; did you mean weighted?"),
        (["imbalanc=weighted"], "imbalanc: there is no such key with these options; did you mean imbalance"),
        (
            ["model=vgg", "model.depth=18"],
            "model.depth: there is no such key with these options; did you mean model.width",
        ),
        (["trainer.max_epoch=3"], "trainer.max_epoch: .* did you mean trainer.max_epochs"),
        (["max_epochs=3"], "max_epochs: .* did you mean trainer.max_epochs"),
        (["model.stm=small"], "model.stm: .* did you mean model.stem"),
        (["data.batch_size=many"], "data.batch_size: Value 'many' of type 'str' could not be converted to Integer"),
        (["protocol.name=mine"], r"protocol.name: Invalid value 'mine', expected one of \[kaggle, report, kfold\]"),
        (["seed"], "'seed' is not an override: write key=value"),
        (["logger=null"], "logger=null: name one of the options of logger, all, csv, none,"),
        (["imbalance='none'", "logger=null"], "logger=null: name one of the options of logger"),
        (["imbalance=none", "logger={a: 1}"], "logger={a: 1}: name one of the options of logger, all, csv, none,"),
        (["model.depth=51"], r"model: depth must be one of \[18, 34, 50, 101, 152\], not 51"),
        (["augment.flip=2"], "augment: flip is a probability"),
        (["imbalance.loss.label_smoothing=1"], "imbalance.loss: label_smoothing"),
        (
            ["imbalance.resample.factors.disgust=3"],
            "imbalance.resample is null with these options; choose one of the gr",
        ),
        (["imbalance.head={scale: 3}"], "imbalance.head is null with these options"),
        (["imbalance=balanced", "+imbalance.resample.factors.disgusted=2"], "did you mean 'disgust'"),
        (["monitor.metric=val/f1"], "monitor.metric=val/f1: no such score; did you mean val/f1"),
        (["monitor.metric=val/loss"], "monitor.mode=max contradicts monitor.metric=val/loss: use monitor.mode=min"),
        (["data.path=faces.csv"], "data.path=.*faces.csv contradicts data=synthetic"),
        (["data.classes=[happy,joy]"], "no class 'joy', only angry"),
        (["data.batch_size=1"], "data.batch_size=1"),
        (["protocol.holdout=0.9", "protocol=report"], "protocol.holdout=0.9"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["trainer.max_epochs=0", "trainer.max_steps=5"], "trainer.max_epochs=0"),
        (["trainer.precision=7"], "trainer.precision=7: use precision=fp32, bf16, fp16 or auto"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: use precision="),
        (["trainer.accelerator=cpu", "trainer.precision=16"], "precision=fp16 needs a GPU"),
        (["trainer.accelerator=cpu", "trainer.precision=16-mixed"], "precision=fp16 needs a GPU"),
        (["trainer.accelerator=tpu"], "trainer.accelerator=tpu"),
        (["trainer.devices=[0,1]"], "a CPU has no numbered devices"),
        (["trainer.devices=1.5"], "trainer.devices=1.5: use a number from 1"),
        (["trainer.devices=0"], "use a number from 1"),
        (["trainer.devices=many"], "use a number from 1"),
        (["trainer.devices=2", "data.batch_size=31"], "use 30 or 32"),
        (["trainer.devices=2", "data.batch_size=2"], "use 4"),
        (["trainer.sync_batchnorm=true"], "for GPUs only"),
        pytest.param(
            ["trainer.accelerator=gpu"],
            "sees no GPU here; use accelerator=cpu or auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["trainer.limit_val_batches=0"], "trainer.limit_val_batches=0 .* callbacks=none"),
        (["trainer.limit_val_batches=0", "schedule=plateau", "callbacks=none"], "contradicts schedule=plateau"),
        (["trainer.check_val_every_n_epoch=3", "schedule=plateau", "callbacks=none"], "with schedule=plateau"),
        (["trainer.limit_val_batches=0", "callbacks.checkpoint=null"], "trainer.limit_val_batches=0 .* callbacks=none"),
        (["imbalance=focal", "imbalance.loss.after=0.5"], "defers class weights, but there are none"),
        (
            ["imbalance=remix", "+imbalance.mix.until=0.5", "trainer.max_epochs=-1", "trainer.max_steps=5"],
            "imbalance.mix.until=0.5 depends on the share of trainer.max_epochs",
        ),
        (
            ["finetune.freeze_epochs=2", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"],
            "finetune.freeze_epochs=2 of 3 epochs: with trainer.check_val_every_n_epoch=2 no validation follows",
        ),
        (
            ["model=vit", "model.width=12", "model.preprocessing.size=50"],
            "model: patch=6 does not divide images of 50 pixels, set model.preprocessing.size to a size that fits",
        ),
        (
            ["model=vit", "model.width=12", "model.preprocessing.size=96", "augment.crop=40"],
            "model: patch=6 does not divide images of 80 pixels, which augment.crop and augment.first_side ask for",
        ),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0: use 1 or more"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0 leaves nothing to train on"),
        (["trainer.limit_test_batches=0"], "trainer.limit_test_batches=0 leaves nothing to score"),
        (
            ["trainer.limit_train_batches=1.5"],
            "trainer.limit_train_batches=1.5: use a number of batches",
        ),
        (["trainer.limit_val_batches=some"], "trainer.limit_val_batches=some: use a number of batches"),
        (["trainer.limit_test_batches=nan"], "trainer.limit_test_batches=nan: use a number of batches"),
        (["trainer.compile=fast"], "trainer.compile=fast: use true, false or one of default, reduce-overhead"),
        (["trainer.max_time=soon"], "trainer.max_time=soon: use days:hours:minutes:seconds"),
        (["imbalance.posthoc_tau=nan"], "imbalance.posthoc_tau=nan: use a number"),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1"),
        (["trainer.gradient_clip_val=nan"], "trainer.gradient_clip_val=nan"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: use 1 or more, or -1"),
        (["imbalance=balanced", "imbalance.resample.seed=-1"], "imbalance.resample.seed=-1: use a whole number"),
        (
            ["imbalance=balanced", "imbalance.resample.factors.happy=many"],
            "imbalance.resample.factors.happy=many: use a number",
        ),
        (["imbalance=balanced", "imbalance.resample.factors.happy=nan"], "imbalance.resample: factors.happy must be"),
        (["augment.rotate=inf"], "augment: rotate is a number of degrees, not inf"),
        (["data.eval_batch_size=0"], "data.eval_batch_size=0"),
        (["seed=-1"], "seed=-1: use a whole number from 0 to 4294967295"),
        (["seed=4294967296"], "seed=4294967296"),
        (["protocol.seed=-1"], "protocol.seed=-1"),
        (["data.synthetic.seed=-1"], "data.synthetic.seed=-1"),
        (["optimizer.lr=${nothing}"], "optimizer.lr: .*nothing"),
        (["trainer.check_val_every_n_epoch=3"], "contradicts trainer.max_epochs=2"),
        (["optimizer.lr=-1"], "optimizer: .*-1"),
        (["schedule.warmup=2"], "schedule: schedule.warmup"),
        (["schedule.final=-1"], "schedule: schedule.final is a fraction of optimizer.lr, from 0 to 1, not -1"),
        (["schedule=onecycle", "schedule.start=5"], "schedule: schedule.start is a fraction"),
        (
            ["schedule=constant", "schedule._target_=torch.optim.lr_scheduler.CosineAnnealingLR", "~schedule.warmup"],
            "schedule: torch.optim.lr_scheduler.CosineAnnealingLR does not return a pair",
        ),
        (["optimizer=adamw", "+optimizer.foreach=true"], "optimizer: `fused` and `foreach` cannot be"),
        (["+trainer.val_check_interval=100"], "trainer.val_check_interval: .*100"),
        (
            ["+callbacks.finder={_target_: lightning.pytorch.callbacks.LearningRateFinder}"],
            "callbacks.finder: LearningRateFinder does not work here: set optimizer.lr",
        ),
        (["callbacks.early_stopping=false"], "callbacks.early_stopping=false: .* or callbacks.early_stopping=null"),
        (["+callbacks.x=hello"], "callbacks.x=hello: use names and values with a _target_"),
        (["+logger.csv=false"], "logger.csv=false: .* logger.csv=null to leave it out"),
        (["imbalance=two_stage", "trainer.max_epochs=1"], "leaves no epoch for the first stage: train for more epochs"),
        (
            ["model=vgg", "model.width=4", "model.convs=[2,1]", "model.drop_path=0.5"],
            "model: drop_path=0.5 has no effect with convs=.2, 1.",
        ),
        (["model=vgg", "model.width=4", "model.convs=[1]", "model.drop_path=1.5"], "model: drop_path is a probability"),
        (
            ["model=vit", "model.width=12", "augment=window"],
            "model: patch=6 does not divide images of 40 pixels, which augment.crop and augment.first_side ask for",
        ),
        (
            ["model=vit", "model.width=12", "augment=light", "augment.first_side=24"],
            "model: patch=6 does not divide images of 28 pixels",
        ),
        (
            ["augment=light", "augment.first_side=24", "trainer.max_steps=5"],
            "augment.first_side=24 depends on the share of trainer.max_epochs",
        ),
        (
            ["trainer.compile=reduce-overhead", "trainer.accumulate_grad_batches=2"],
            "trainer.compile=reduce-overhead keeps gradients for one batch only: use trainer.compile=default",
        ),
        (["mix=mixup", "mix.until=0.5", "trainer.max_steps=5"], "mix.until=0.5 depends on the share of"),
        (
            ["seed=0,1"],
            r"seed=0,1: several values; add -m for a job with each of them, or write a list, 'seed=\[0,1\]'",
        ),
        (["+optimizer.lr=0.1"], "An item is already at 'optimizer.lr'.; leave out the +"),
        (["protocol.fold=2"], "protocol.fold=2 has no effect on protocol=kaggle: add protocol=kfold"),
        (["protocol.folds=10"], "protocol.folds=10 has no effect on protocol=kaggle: add protocol=kfold"),
        (["finetune.freeze_epochs=1"], "finetune.freeze_epochs=1 would train a head on random features: add init_from"),
        (["data.drop=duplicates"], r"data.drop takes a list: write 'data.drop=\[…\]'"),
        (["imbalance=none,weighted"], "imbalance=none,weighted: several values; add -m for a job with each of them$"),
        (["imbalance=[none,weighted]"], r"imbalance=\[none,weighted\]: name one option; add -m, without brackets"),
        (["data.classes=[happy]"], "happy is the only class; add images of other classes"),
        (["optimizer.momentum=abc"], "optimizer.momentum=abc: use a number"),
        (["callbacks.early_stopping.patience=abc"], "callbacks.early_stopping.patience=abc: use a whole number"),
        (["mix=mixup", "mix.until=abc"], "mix.until=abc: use a number"),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run is set by this project: for a short run, use trainer.m"),
        (["+trainer.enable_progress_bar=true"], "trainer.enable_progress_bar is set .*: use trainer.progress_bar"),
        (
            ["callbacks=none", "+callbacks.ema.decay=0.9"],
            "callbacks.ema: has settings and no _target_; choose an option .* or remove it: ~callbacks.ema",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_option_is_one_line(train: Train, overrides: list[str], message: str) -> None:
    assert_refused_in_one_line(train(*TINY, *overrides), message)


def test_an_option_in_place_of_an_experiments_has_its_own_values(train: Train) -> None:
    tiny = (o for o in TINY if not o.startswith("model=resnet"))
    run = train("experiment=laptop", *tiny, "model=vgg", "optimizer=sgd", "augment=none", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    settings = load_settings(run.folder)
    assert settings["model"]["width"] == 8 and "stem" not in settings["model"]
    assert settings["optimizer"]["lr"] == 0.02 and settings["optimizer"]["weight_decay"] == 5e-4
    assert settings["schedule"]["_target_"].endswith("onecycle") and settings["trainer"]["gradient_clip_val"] == 1


def test_no_augmentation_whatever_an_experiment_sets_of_it(train: Train) -> None:
    run = train("experiment=report_weighted", *TINY, "augment=none", "trainer.max_epochs=1")
    assert run.code == 0, run.err
    assert load_settings(run.folder)["augment"] == {}


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_ranks_that_are_spread_unevenly_are_refused_in_one_line(rank: int, tmp_path: Path) -> None:
    layout = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 2}
    env = os.environ | {key: str(value) for key, value in layout.items()}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    command = [sys.executable, "train.py", *TINY, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=env, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: 3 ranks with 2 here: every machine needs the same number\n",
    )


def test_unknown_key_in_a_config_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text("defaults: [synthetic]\ncolour: red\n")
    ended = apart(tmp_path / "out", "--config-dir", str(tmp_path), "data=mine")
    assert ended.code == 1
    assert "error: In 'data/mine': Key 'colour' not in 'Data'" in ended.err


def test_missing_source_names_the_remedy(train: Train, tmp_path: Path) -> None:
    write_csv(tmp_path / "fer2013.csv")
    missing = train("data=fer2013", "data.path=null")
    assert missing.code == 1
    assert "data.path" in missing.err
    assert "data=synthetic" in missing.err
    unset = train("data=fer2013", "data.path=")  # as in "data.path=$FER2013" without this variable
    assert "data.path is empty" in unset.err
    near = train(f"data.path={tmp_path / 'fer2031.csv'}")
    assert near.code == 1
    assert "fer2013.csv" in near.err


def test_bad_row_is_named(train: Train, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "fer2013.csv", 9)
    lines = path.read_text().splitlines()
    lines[6] = lines[6].replace(" 7", " 777", 1)
    path.write_text("\n".join(lines))
    assert_refused_in_one_line(train(f"data.path={path}"), "fer2013.csv.*row 5.*777")


def test_unwritable_run_folder_is_one_line(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused_in_one_line(train(*TINY, folder=tmp_path / "file" / "run"), "hydra.run.dir")


def test_non_finite_loss_stops_the_run_and_names_the_step(train: Train) -> None:
    run = train(*TINY, "optimizer.lr=1e38", "trainer.gradient_clip_val=null", "schedule=constant")
    assert run.code == 1
    assert re.search(r"error: the loss is not a finite number at step [1-9]\d* \(epoch 0", run.err), run.err
    assert not (run.folder / "metrics.json").exists()


@pytest.mark.slow
def test_full_error_switch_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *TINY, "model.depth=51", f"hydra.run.dir={tmp_path}"]
    root = Path(__file__).parents[1]
    env = os.environ | {"HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


class TestDefects:
    """What is not known to be the user's error keeps its traceback, whatever was typed."""

    RAISES = "+callbacks.defect={_target_: tests.test_app.Raises, error: %s}"

    @pytest.mark.parametrize(
        "error", ["OSError", "AssertionError", "AttributeError", "ValueError", "InterpolationError"]
    )
    def test_error_inside_the_job_keeps_its_traceback(self, train: Train, error: str) -> None:
        # `data.classes` is null by default, which must not be blamed.
        with pytest.raises(ERRORS[error], match="a defect"):
            train(*TINY, "data.classes=[angry,happy]", self.RAISES % error)

    def test_error_inside_the_job_exits_with_a_traceback(self, tmp_path: Path) -> None:
        ended = apart(tmp_path, *TINY, self.RAISES % "OSError", f"hydra.run.dir={tmp_path}/run")
        assert ended.code == 1
        assert "Traceback" in ended.err
        assert "faces.csv" in ended.err
        assert "hydra.run.dir=<folder>" not in ended.err

    @pytest.mark.parametrize("error", [KeyError, AssertionError])
    def test_defect_of_a_target_keeps_its_traceback(
        self, train: Train, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        def broken(**_: Any) -> None:
            raise error("a defect")

        monkeypatch.setattr("fer_lightning.data.synthetic.synthetic", broken)
        with pytest.raises(error, match="a defect"):
            train(*TINY)

    def test_user_error_inside_the_job_is_one_line(self, train: Train) -> None:
        run = train(*TINY, self.RAISES % "UserError")
        assert (run.code, run.err.splitlines()[-1]) == (1, "error: a defect")


ERRORS: dict[str, Exception | type[Exception]] = {
    "OSError": OSError,
    "AssertionError": AssertionError,
    "AttributeError": AttributeError,
    "ValueError": ValueError,
    "InterpolationError": InterpolationKeyError,
    "UserError": UserError,
}


class Raises(L.Callback):
    """Raises an error of a kind when training starts."""

    def __init__(self, error: str) -> None:
        self.error = error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.error == "OSError":
            raise OSError(errno.EACCES, "a defect", "faces.csv")
        raise ERRORS[self.error]("a defect")


LIGHT = [
    ["train.py", "--help"],
    ["train.py", "--cfg", "job"],
    ["train.py", "imbalance=wieghted"],
    ["train.py", "trainer.max_epoch=3"],
    ["train.py", "logger=null"],
    ["train.py", "resume=nowhere"],
    ["-m", "fer_lightning.app", "--help"],
    ["-c", "from fer_lightning.cli import app; app()", "--help"],
    ["-c", "from fer_lightning.cli import app; app()", "compare", "--help"],
    ["-c", "from fer_lightning.cli import app; app()", "evaluate", "--help"],
]
HEAVY = {"torch", "lightning", "torchmetrics", "albumentations", "cv2", "scipy", "pandas", "matplotlib", "wandb"}


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_command_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = imported(arguments)
    assert packages(modules) & HEAVY == set()
    assert len(modules) < 600  # about 400; torch alone has a thousand


def test_package_imports_neither_torch_nor_hydra() -> None:
    modules = imported(["-c", "import fer_lightning; fer_lightning.__version__"])
    assert packages(modules) & (HEAVY | {"hydra", "omegaconf"}) == set()


def test_public_names_are_imported_on_first_use() -> None:
    import fer_lightning
    from fer_lightning.training.module import FERClassifier

    assert fer_lightning.FERClassifier is FERClassifier
    assert {"FERDataModule", "Predictor", "load_model"} <= set(dir(fer_lightning))
    with pytest.raises(AttributeError, match="nothing"):
        _ = fer_lightning.nothing


def imported(arguments: list[str]) -> set[str]:
    """Every module that a command imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines and "Traceback" not in done.stderr, done.stderr
    return {line.rpartition("|")[2].strip() for line in lines}


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_own_faces_with_other_classes_train(train: Train, tmp_path: Path) -> None:
    """A user's own folder: two classes that FER-2013 does not have, colour photos of any size, no validation folder."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 4)):
        for level, name in ((40, "Bored"), (200, "curious")):
            for i in range(n):
                pixels = rng.integers(level - 30, level + 30, (60 + i, 80, 3), dtype=np.uint8)
                (folder := tmp_path / "mine" / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    run = train(
        f"data.path={tmp_path / 'mine'}", f"data.cache_dir={tmp_path / 'cache'}", "protocol.holdout=0.25",
        "model=resnet18", "data.batch_size=6", "trainer.max_epochs=1", "logger=none", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "bored" in run.out
    assert "curious" in (run.folder / "report/classification_report.csv").read_text()
    state = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    assert state["hyper_parameters"]["classes"] == ["bored", "curious"]
    from fer_lightning.inference.evaluate import evaluate

    other = evaluate(run.folder, data=tmp_path / "mine", split="all")
    assert other["test/support/bored"] == 16


def test_evaluate_of_a_folder_without_a_run_is_one_line(command: Command, tmp_path: Path) -> None:
    code, err = command("evaluate", tmp_path)
    assert code == 1
    assert re.fullmatch("error: .*not a run folder.*\n", err)
