"""Types of the root config: a misspelt key or a value of the wrong type fails while the config is composed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

# Optional[...] rather than `| None`: OmegaConf resolves the annotations at run time.
# ruff: noqa: UP045


ABOUT_RESUMING = ("resume", "allow_changes", "trust")
"""Keys that say how to start, not what to run: a run's config.yaml does not have them."""


Mode = StrEnum("Mode", ["min", "max"])
Target = StrEnum("Target", ["majority", "probability", "crossentropy"])
Twins = StrEnum("Twins", ["exact", "near"])
Fault = StrEnum("Fault", ["duplicates", "near_duplicates", "conflicts", "leaks", "blank", "near_blank", "nonface"])
Protocols = StrEnum("Protocols", ["kaggle", "report", "kfold"])


@dataclass
class Monitor:
    metric: str = "val/f1_macro"
    mode: Mode = Mode.max


@dataclass
class Synthetic:
    n_train: int = 2600
    n_val: int = 400
    n_test: int = 3000
    seed: int = 0


@dataclass
class Data:
    name: str = MISSING
    source: dict[str, Any] = field(default_factory=dict)
    path: Optional[str] = None
    votes: Optional[str] = None
    target: Optional[Target] = None
    merge: Any = None  # OmegaConf cannot set a typed dict that is null from the command line
    classes: Optional[list[str]] = None
    twins: Twins = Twins.exact
    drop: list[Fault] = field(default_factory=list)
    relabel: Optional[str] = None
    relabel_digest: Optional[str] = None  # of the file's content: filled in
    cache_dir: Optional[str] = None
    batch_size: int = 128
    eval_batch_size: int = 512
    resident_gib: float = 2.0
    synthetic: Optional[Synthetic] = None


@dataclass
class Protocol:
    name: Protocols = Protocols.kaggle
    holdout: float = 0.1
    seed: int = 0
    folds: int = 5
    fold: int = 0


@dataclass
class Imbalance:
    name: str = MISSING
    resample: Optional[dict[str, Any]] = None
    sampler: Optional[dict[str, Any]] = None
    mix: Optional[dict[str, Any]] = None
    head: Optional[dict[str, Any]] = None
    posthoc_tau: float = 0.0
    retrain_after: Optional[float] = None
    loss: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trainer:
    max_epochs: int = 40
    max_steps: int = -1
    max_time: Optional[str] = None
    accelerator: str = "auto"
    devices: Any = 1
    precision: str = "auto"
    gradient_clip_val: Optional[float] = None
    accumulate_grad_batches: int = 1
    sync_batchnorm: bool = False
    deterministic: bool = False
    channels_last: bool = True
    compile: Any = False  # or true, or a mode
    log_every_n_steps: int = 20
    limit_train_batches: Any = 1.0
    limit_val_batches: Any = 1.0
    limit_test_batches: Any = 1.0
    check_val_every_n_epoch: int = 1
    progress_bar: bool = True


@dataclass
class Distill:
    teachers: list[str] = field(default_factory=list)
    alpha: float = 0.5
    temperature: float = 2.0
    other_data: bool = False
    digests: list[str] = field(default_factory=list)  # of the teachers' content: filled in


@dataclass
class Finetune:
    freeze_epochs: int = 0
    layer_decay: float = 1.0
    backbone_lr_factor: float = 1.0


@dataclass
class Config:
    data: Data = field(default_factory=Data)
    protocol: Protocol = field(default_factory=Protocol)
    imbalance: Imbalance = field(default_factory=Imbalance)
    augment: Optional[dict[str, Any]] = None
    mix: Optional[dict[str, Any]] = None
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    distill: Distill = field(default_factory=Distill)
    init_from: Optional[str] = None
    finetune: Finetune = field(default_factory=Finetune)
    trainer: Trainer = field(default_factory=Trainer)
    callbacks: Optional[dict[str, Any]] = None
    logger: Optional[dict[str, Any]] = None
    seed: int = 0
    monitor: Monitor = field(default_factory=Monitor)
    resume: Optional[str] = None
    allow_changes: bool = False
    trust: bool = False


ADDED = {
    ("data", "resident_gib"): 2.0,
    ("trainer", "compile"): False,
    ("finetune", "backbone_lr_factor"): 1.0,
}
"""Keys that configs of earlier versions lack, and values that give the results of those versions."""


def register() -> None:
    """Register the types with Hydra, under the name that conf/config.yaml starts from, and this module's resolvers."""
    OmegaConf.register_new_resolver("optuna_direction", lambda mode: f"{mode}imize", replace=True)
    ConfigStore.instance().store(name="schema", node=Config)
