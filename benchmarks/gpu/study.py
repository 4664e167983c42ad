"""The study of the imbalance strategies at full width on a GPU.

    python benchmarks/gpu/study.py --data fer2013.csv --work WORK [--out OUT] [--minutes 9]

`sweep=imbalance` with a ResNet-18 of width 64 and the small stem: fourteen strategies, three seeds, one after the
other, until the time is up. The same command resumes the sweep, as long as WORK is there. Without albumentations the
two strategies that need it are left out. Writes study.json, the tables of `fer-lightning compare` on the jobs that have
finished, and study.tar.gz, what compare reads of them.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from importlib.util import find_spec

from common import ROOT, SCORING, Call, cli

from fer_lightning.comparison.collect import PREDICTIONS
from fer_lightning.runs.folder import CONFIG, METRICS, finished

WITHOUT_ALBUMENTATIONS = (
    "none, weighted, sampler, sqrt_sampler, focal, class_balanced, balanced_softmax, logit_adjusted, posthoc_adjusted, "
    "ldam_drw, remix, two_stage"
)

RECIPE = (
    "sweep=imbalance",
    "protocol=kaggle",
    "logger=csv",
    "model=resnet18",
    "model.width=64",
    "model.stem=small",
    "optimizer.lr=1e-3",
    "augment=window",
    "trainer.max_epochs=25",
)


def main() -> None:
    call = Call(__doc__ or "")
    call.start()
    sweep = call.work / "study"
    # Whether it was begun: Hydra writes this file first.
    begun = (sweep / "multirun.yaml").exists()
    fewer = [] if find_spec("albumentations") else [f"hydra.sweeper.params.imbalance='{WITHOUT_ALBUMENTATIONS}'"]
    own = [f"data.path={call.data}", *RECIPE, *fewer, *call.overrides, f"hydra.sweep.dir={sweep}"]
    command = [sys.executable, str(ROOT / "train.py"), *([f"resume={sweep}"] if begun else own)]
    complete = call.run(command, keep=SCORING)
    jobs = [folder for folder in sweep.glob("*") if folder.is_dir() and finished(folder) is not None]
    call.note(finished=len(jobs), complete=complete)
    with tarfile.open(call.out / "study.tar.gz", "w:gz") as tar:
        for job in jobs:
            for name in (CONFIG, METRICS, PREDICTIONS):
                tar.add(job / name, f"{job.name}/{name}")
    if jobs and call.run(cli("compare", *map(str, sorted(jobs)), "--out", str(call.work / "comparison"))):
        for file in (call.work / "comparison").glob("*.csv"):
            shutil.copy(file, call.out)


if __name__ == "__main__":
    main()
