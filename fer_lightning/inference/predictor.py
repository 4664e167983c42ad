"""From a trained run to class probabilities: the only place that assembles a network for inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fer_lightning.config import devices, instantiate
from fer_lightning.config.precision import BF16, FP16, FP32, has_native_bf16
from fer_lightning.config.saved import check_complete
from fer_lightning.errors import UserError
from fer_lightning.models.network import FaceNetwork
from fer_lightning.runs.checkpoints import read_checkpoint
from fer_lightning.runs.folder import BEST, CHECKPOINTS, CONFIG, load_settings
from fer_lightning.training.losses import log_prior
from fer_lightning.training.module import adjusted

NETWORK = "network."
"""Prefix of the network's parameters and buffers in a checkpoint's state dict."""

AUTOCAST = {BF16: torch.bfloat16, FP16: torch.float16}


class Predictor:
    """Faces to class probabilities.

    Args:
        network: maps faces (B, 1, H, W), float in [0, 1], to logits (B, C).
        classes: class names in label order.
        class_counts: images per class of the training set, for the post-hoc adjustment.
        posthoc_tau: strength of the post-hoc logit adjustment; 0 for none.
        device: where to run.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        channels_last: ask for the channels-last memory layout.
        batch_size: images per forward pass.

    Raises:
        ValueError: `class_counts` does not hold a number per class.
    """

    def __init__(
        self,
        network: FaceNetwork,
        classes: Sequence[str],
        class_counts: Sequence[int],
        *,
        posthoc_tau: float = 0.0,
        device: torch.device | None = None,
        precision: str = FP32,
        channels_last: bool = True,
        batch_size: int = 512,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.network = network.eval().to(self.device)
        self.network.arrange(self.device, channels_last)
        self.classes, self.posthoc_tau, self.batch_size = tuple(classes), posthoc_tau, batch_size
        self.precision = precision
        if len(class_counts) != len(self.classes):
            raise ValueError(f"class_counts must hold {len(self.classes)} numbers, not {len(class_counts)}")
        self._log_prior = log_prior(class_counts).to(self.device)

    @classmethod
    def from_run(cls, run: str | Path, *, accelerator: str = "auto", trust: bool = False) -> Predictor:
        """The best checkpoint of a run.

        It predicts as the run did: in its precision where the device computes that natively, else in float32, with its
        batch size and its post-hoc adjustment.

        Args:
            run: the run folder.
            accelerator: "auto", "cpu" or "gpu".
            trust: allow a network that is not on the allow-list, see `instantiate.check_targets`.

        Raises:
            UserError: the folder holds no run or no best checkpoint, the file is damaged, its network is not allowed,
                or there is no such device.

        Example:
            >>> predictor = load_model("outputs/2026-01-31/12-00-00")  # doctest: +SKIP
            >>> predictor.probabilities(images)  # uint8 (N, 48, 48) to float64 (N, 7)  # doctest: +SKIP
        """
        run_dir = Path(run)
        settings, path = load_settings(run_dir), run_dir / CHECKPOINTS / BEST
        check_complete(settings, run_dir / CONFIG)
        batch_size = settings["data"]["eval_batch_size"]
        if batch_size < 1:
            raise UserError(f"{run_dir / CONFIG}: data.eval_batch_size={batch_size}: use 1 or more")
        kind = devices.kind({"accelerator": accelerator})
        if not path.is_file():
            raise UserError(f"{path}: no best checkpoint; the run has not finished an epoch, or keeps no checkpoints")
        checkpoint = read_checkpoint(path)
        try:
            own, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
            instantiate.check_targets(own["model"], where=str(path), trust=trust)
            try:
                network = instantiate.network(own["model"], len(own["classes"]), own["head_scale"])
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            prefix = len(NETWORK)
            network.load_state_dict({n[prefix:]: value for n, value in state.items() if n.startswith(NETWORK)})
            return cls(
                network,
                own["classes"],
                own["class_counts"],
                posthoc_tau=own["posthoc_tau"],
                device=torch.device(kind),
                precision=_precision(settings["trainer"]["precision"], kind),
                channels_last=own["channels_last"],
                batch_size=batch_size,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{path}: damaged, or not a checkpoint of this project ({reason})") from error

    def logits(self, images: NDArray[np.uint8]) -> Tensor:
        """Logits, adjusted if so configured, float32 (N, C) on the CPU, of grey faces, uint8 (N, H, W).

        Raises:
            ValueError: the images have another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 3:
            raise ValueError(f"images must be uint8 of shape (N, H, W), not {images.dtype} of shape {images.shape}")
        parts = [torch.empty(0, len(self.classes))]
        dtype = AUTOCAST.get(self.precision)
        for start in range(0, len(images), self.batch_size):
            batch = torch.from_numpy(np.array(images[start : start + self.batch_size]))[:, None].to(self.device)
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                logits = adjusted(self.network(batch.float().div_(255)), self._log_prior, self.posthoc_tau)
            parts.append(logits.float().cpu())
        return torch.cat(parts)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Class probabilities, float64 (N, C), of grey faces, uint8 (N, H, W); raises ValueError as `logits` does."""
        probabilities: NDArray[np.float64] = self.logits(images).double().softmax(1).numpy()
        return probabilities


load_model = Predictor.from_run


def _precision(trained: str, kind: str) -> str:
    """The precision of a run, or float32 where the device does not compute it natively."""
    if trained == BF16 and has_native_bf16(kind):
        return BF16
    return FP16 if trained == FP16 and kind == "cuda" else FP32
